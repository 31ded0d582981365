"""Warped layers against GDAL's own warping of whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasters import NORTH_UP, UTM, damage, noise, only, readable_blocks, smooth, write

from geoseg.mosaic import Mosaic, open_mosaic
from geoseg.tiling import Rect


@pytest.mark.parametrize("gsd", [0.37, 1.3])
def test_seams_leave_no_trace_when_resampled(tmp_path: Path, gsd: float) -> None:
    values, mask = noise((3, 230, 310), low=0), noise((230, 310), seed=1) > 30
    whole = write(tmp_path / "whole.tif", values, mask=mask)
    (tmp_path / "parts").mkdir()
    for row, rows in ((0, 97), (97, 133)):
        for col, cols in ((0, 121), (121, 189)):
            write(
                tmp_path / "parts" / f"{row}_{col}.tif",
                values[:, row : row + rows, col : col + cols],
                mask=mask[row : row + rows, col : col + cols],
                # A shift that the eye cannot see and writers of tiles leave behind.
                transform=NORTH_UP @ Affine.translation(col + (0.003 if row else 0), row),
            )
    one = only(whole, gsd=gsd)
    many, problems = open_mosaic([tmp_path / "parts"], gsd=gsd)
    assert problems == []
    assert len(many.layers) == 1
    assert many.shape == one.shape
    first, second = one.read(one.extent), many.read(many.extent)
    assert np.array_equal(first.valid, second.valid)
    assert np.array_equal(first.values, second.values)


def other_crs_file(path: Path, values: np.ndarray, **options: Any) -> Path:
    """About the place of NORTH_UP, in Web Mercator, turned by 10 degrees."""
    x, y = transform_points(UTM, "EPSG:3857", [500020.0], [3999990.0])
    affine = Affine.translation(x[0], y[0]) @ Affine.rotation(-10) @ Affine.scale(0.7, -0.7)
    return write(path, values, crs="EPSG:3857", transform=affine, **options)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_other_crs_equals_warping_directly(tmp_path: Path, resampling: str, dtype: str) -> None:
    first = write(tmp_path / "a.tif", smooth((90, 130), dtype))
    second = other_crs_file(tmp_path / "b.tif", smooth((300, 400), dtype))
    mosaic, problems = open_mosaic([first, second], resampling=resampling)
    assert problems == []
    got = mosaic.read(mosaic.extent)
    with (
        rasterio.open(second) as dataset,
        WarpedVRT(
            dataset,
            crs=UTM,
            transform=mosaic.transform,
            height=mosaic.shape[0],
            width=mosaic.shape[1],
            resampling=Resampling[resampling],
            tolerance=0.001,
            add_alpha=True,
        ) as warped,
    ):
        expected = warped.read()
    own = mosaic.sources[0].rect.slices(mosaic.extent)
    valid = expected[3] > 0
    valid[own] = True
    # Positions are interpolated to within a tolerance: now and then a pixel on the very edge differs.
    assert (got.valid != valid).sum() <= 4
    valid &= got.valid
    assert np.array_equal(got.values[:, own[0], own[1]], smooth((90, 130), dtype))
    difference = np.abs(got.values.astype(float) - expected[:3])
    difference[:, own[0], own[1]] = 0
    # The kernel is GDAL's, the position its interpolation between exact points; nearest may take the neighbour.
    assert difference[:, valid].max() <= (6 if resampling == "nearest" else 1)
    assert np.mean(difference[:, valid] > 0.2) < 0.05


@pytest.mark.parametrize("gsd", [0.2, 0.5, 1.1, 3.0])
def test_gsd_equals_warping_directly(tmp_path: Path, gsd: float) -> None:
    path = write(tmp_path / "a.tif", smooth((210, 330)))
    mosaic = only(path, gsd=gsd)
    assert mosaic.ground_gsd == pytest.approx(gsd, rel=1.1e-3)
    got = mosaic.read(mosaic.extent)
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs=UTM,
            transform=mosaic.transform,
            height=mosaic.shape[0],
            width=mosaic.shape[1],
            resampling=Resampling.bilinear,
        ) as warped,
    ):
        expected = warped.read()
    assert got.valid.all()
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(got.values[inner].astype(int) - expected[inner]).max() <= 2
    # The image keeps its place: the picture's extent is the file's to half a pixel.
    height, width = mosaic.shape
    right, bottom = mosaic.transform @ (width, height)
    assert right == pytest.approx(500000 + 165, abs=gsd)
    assert bottom == pytest.approx(4_000_000 - 105, abs=gsd)


def warped_mosaics(folder: Path) -> list[Mosaic]:
    holes = noise((300, 400), seed=8) > 40
    holes[100:200, 150:260] = False
    first = write(folder / "a.tif", smooth((90, 130)))
    second = other_crs_file(folder / "b.tif", noise((3, 300, 400)), mask=holes)
    third = write(
        folder / "c.tif",
        noise((3, 900, 1500), seed=3),
        transform=Affine(0.11, 0, 500020.03, 0, -0.11, 4_000_020.07),
    )
    alone = write(folder / "d.tif", noise((3, 700, 1500)), mask=noise((700, 1500), seed=2) > 90)
    return [
        open_mosaic([first, second, third])[0],
        open_mosaic([second, third])[0],
        open_mosaic([alone], gsd=1.0)[0],
        open_mosaic([alone], gsd=0.31)[0],
    ]


def test_warped_pixels_do_not_depend_on_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    for mosaic in warped_mosaics(tmp_path):
        whole = mosaic.read(mosaic.extent)
        height, width = mosaic.shape
        for turn in range(6):
            if turn == 3:  # and not on how much memory warping may take
                monkeypatch.setattr("geoseg.warp.WARP_PIXELS", 40_000)
            row, col = int(rng.integers(height)), int(rng.integers(width))
            rect = Rect(row, col, min(row + 211, height), min(col + 307, width))
            rows, cols = rect.slices(mosaic.extent)
            part = mosaic.read(rect)
            assert np.array_equal(part.valid, whole.valid[rows, cols])
            assert np.array_equal(part.values, whole.values[:, rows, cols])
            assert mosaic.has_data(rect) == part.valid.any()
        monkeypatch.undo()


def test_warped_validity_is_that_of_the_pixel_under_the_centre(tmp_path: Path) -> None:
    mask = noise((70, 110), seed=2) > 90
    path = write(tmp_path / "a.tif", noise((3, 70, 110)), mask=mask)
    mosaic = only(path, gsd=0.35)
    got = mosaic.read(mosaic.extent)
    height, width = mosaic.shape
    y, x = np.mgrid[:height, :width] + 0.5
    scale = mosaic.transform.a / 0.5
    rows, cols = np.floor(y * scale).astype(int), np.floor(x * scale).astype(int)
    inside = (rows < 70) & (cols < 110)
    expected = np.zeros((height, width), bool)
    expected[inside] = mask[rows[inside], cols[inside]]
    assert np.array_equal(got.valid, expected)
    # Values come from valid pixels only: no darkening towards holes.
    assert got.values[:, got.valid].min() >= 1


def test_truncated_file_when_warped(tmp_path: Path) -> None:
    values = smooth((600, 700)) // 2 + noise((3, 600, 700), high=60)
    path = damage(tmp_path / "a.tif", values, keep=0.5)
    sound = write(tmp_path / "b.tif", values)
    mosaic, whole = only(path, gsd=0.8), only(sound, gsd=0.8)
    got, expected = mosaic.read(mosaic.extent), whole.read(whole.extent)
    assert got.problems
    share = np.mean(list(readable_blocks(path).values()))
    assert got.valid.mean() == pytest.approx(share, abs=0.1)
    assert 0.1 < got.valid.mean() < 0.9
    # Away from lost blocks nothing changes.
    far = surrounded(got.valid, 3)
    assert np.array_equal(got.values[:, far], expected.values[:, far])
    for rect in (Rect(100, 20, 201, 333), Rect(7, 100, 300, 101)):
        rows, cols = rect.slices(mosaic.extent)
        part = mosaic.read(rect)
        assert np.array_equal(part.valid, got.valid[rows, cols])
        assert np.array_equal(part.values, got.values[:, rows, cols])


def surrounded(valid: np.ndarray, reach: int) -> np.ndarray:
    """Pixels whose whole neighbourhood of ``reach`` is valid."""
    padded = np.pad(valid, reach, constant_values=True)
    size = 2 * reach + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size)).all(axis=(2, 3))
