"""The mosaic against rasterio's own merging, warping and masks, and against numpy."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Geod
from rasterio.enums import ColorInterp, Resampling
from rasterio.merge import merge
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from geoseg.errors import InputError, SettingError
from geoseg.mosaic import (
    Mosaic,
    close_files,
    expand_inputs,
    gdal_env,
    ground_size,
    open_mosaic,
    reflect,
)
from geoseg.tiling import Rect

UTM = "EPSG:32614"
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 4_000_000)


def noise(shape: tuple[int, ...], dtype: Any = "uint8", seed: int = 0, low: int = 1, high: int = 250) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def smooth(shape: tuple[int, int], dtype: Any = "uint8", top: float = 200.0) -> np.ndarray:
    """Three smooth bands: resampling them in two ways gives nearly the same."""
    y, x = np.mgrid[: shape[0], : shape[1]] / 20.0
    bands = [np.sin(x) + np.cos(y), np.cos(x + y), np.sin(x * 0.7 - y)]
    return np.stack([top * (0.5 + 0.2 * band) for band in bands]).astype(dtype)


def write(
    path: Path,
    values: np.ndarray,
    *,
    transform: Affine | None = NORTH_UP,
    crs: str | None = UTM,
    mask: np.ndarray | None = None,
    **options: Any,
) -> Path:
    interp = options.pop("interp", None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        with rasterio.open(
            path,
            "w",
            driver=options.pop("driver", "GTiff"),
            count=len(values),
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            crs=crs,
            transform=transform,
            **options,
        ) as dataset:
            if interp is not None:
                dataset.colorinterp = interp
            dataset.write(values)
            if mask is not None:
                dataset.write_mask(mask)
    return path


def only(path: Path, **options: Any) -> Mosaic:
    mosaic, problems = open_mosaic([path], **options)
    assert problems == []
    return mosaic


# --- inputs


def test_expand_folder_sorted_naturally(tmp_path: Path) -> None:
    for name in ("t_10.tif", "t_2.TIF", ".hidden.tif", "a.tif.tmp", "notes.txt", "t_2.tfw"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.tif").mkdir()
    found = expand_inputs([tmp_path])
    assert [Path(name).name for name in found] == ["t_2.TIF", "t_10.tif"]


def test_expand_globs_gdal_names_and_duplicates(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "a.tfw"):
        (tmp_path / name).write_bytes(b"")
    remote = ["/vsicurl/https://example.org/a b?x=[1].tif", "s3://bucket/key.tif"]
    found = expand_inputs([str(tmp_path / "*"), *remote, tmp_path / "a.tif"])
    assert found == [str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), *remote]


def test_expand_complains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tif: no such file"):
        expand_inputs([tmp_path / "gone.tif"])
    with pytest.raises(InputError, match="no raster in this folder"):
        expand_inputs([tmp_path])
    with pytest.raises(InputError, match="matches no raster"):
        expand_inputs([str(tmp_path / "*.tif")])
    with pytest.raises(InputError, match="no input"):
        expand_inputs([])


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = write(tmp_path / "a.tif", noise((3, 20, 30)))
    (tmp_path / "b.tif").write_text("not a raster")
    write(tmp_path / "c.tif", noise((2, 20, 30)))
    write(tmp_path / "d.tif", noise((3, 20, 30)), crs=None)
    write(tmp_path / "e.tif", noise((3, 20, 30), "uint16"))
    mosaic, problems = open_mosaic([tmp_path])
    assert [source.path for source in mosaic.sources] == [str(good)]
    assert [Path(problem.path).name for problem in problems] == [
        "b.tif",
        "c.tif",
        "d.tif",
        "e.tif",
    ]
    for problem, words in zip(
        problems, ("cannot be opened", "2 bands.*--bands", "no CRS", "uint16.*uint8"), strict=True
    ):
        assert re.search(words, problem.message)
    with pytest.raises(InputError, match=r"(?s)none of the 2.*b\.tif.*c\.tif"):
        open_mosaic([tmp_path / "b.tif", tmp_path / "c.tif"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"bands": (0, 1, 2)}, "bands"),
        ({"gsd": -1.0}, "gsd"),
        ({"gsd": float("nan")}, "gsd"),
        ({"resampling": "magic"}, "resampling"),
    ],
)
def test_wrong_options(tmp_path: Path, option: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        open_mosaic([write(tmp_path / "a.tif", noise((3, 4, 4)))], **option)


# --- one file: bands, types, validity


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "int8"])
def test_types(tmp_path: Path, dtype: str) -> None:
    values = noise((3, 21, 33), dtype, high=100)
    mosaic = only(write(tmp_path / "a.tif", values))
    got = mosaic.read(Rect(2, 3, 20, 30))
    assert mosaic.dtype == got.values.dtype == np.dtype(dtype)
    assert np.array_equal(got.values, values[:, 2:20, 3:30])
    assert got.valid.all()
    assert got.problems == ()


def test_bands_of_many(tmp_path: Path) -> None:
    values = noise((7, 9, 8), "uint16", high=60000)
    path = write(tmp_path / "a.tif", values)
    extent = Rect(0, 0, 9, 8)
    assert np.array_equal(only(path).read(extent).values, values[:3])
    assert np.array_equal(only(path, bands=(5, 3, 7)).read(extent).values, values[[4, 2, 6]])
    with pytest.raises(InputError, match=r"a\.tif: has 7 bands, so there is no band 9.*--bands"):
        open_mosaic([path], bands=(1, 2, 9))


def test_grey_is_three_times_the_band(tmp_path: Path) -> None:
    values = noise((1, 9, 8))
    got = only(write(tmp_path / "a.tif", values)).read(Rect(0, 0, 9, 8))
    assert np.array_equal(got.values, np.repeat(values, 3, axis=0))


@pytest.mark.parametrize("colours", [1, 3, 4])
def test_alpha_is_validity_and_never_a_colour(tmp_path: Path, colours: int) -> None:
    values = noise((colours + 1, 12, 10))
    values[-1] = np.where(noise((12, 10), seed=2) > 120, 255, 0)
    interp = [ColorInterp.undefined] * colours + [ColorInterp.alpha]
    path = write(tmp_path / "a.tif", values, interp=interp, photometric="MINISBLACK")
    got = only(path).read(Rect(0, 0, 12, 10))
    assert np.array_equal(got.valid, values[-1] > 0)
    bands = [0, 0, 0] if colours == 1 else [0, 1, 2]
    assert np.array_equal(got.values, values[bands] * got.valid)
    with pytest.raises(InputError, match="is its alpha"):
        open_mosaic([path], bands=(1, 1, colours + 1))


def test_nodata_is_invalid_only_in_all_bands(tmp_path: Path) -> None:
    values = noise((3, 16, 16), low=0, high=3)
    path = write(tmp_path / "a.tif", values, nodata=0)
    got = only(path).read(Rect(0, 0, 16, 16))
    assert np.array_equal(got.valid, (values != 0).any(axis=0))
    with rasterio.open(path) as dataset:
        assert np.array_equal(got.valid, dataset.dataset_mask() > 0)
    assert np.array_equal(got.values, values)


def test_internal_mask_wins_and_black_is_data(tmp_path: Path) -> None:
    mask = noise((40, 50), seed=4) > 100
    values = np.zeros((3, 40, 50), "uint8")
    values[1] = 7
    mosaic = only(write(tmp_path / "a.tif", values, mask=mask))
    got = mosaic.read(Rect(5, 6, 30, 31))
    assert np.array_equal(got.valid, mask[5:30, 6:31])
    assert np.array_equal(got.values[1], 7 * mask[5:30, 6:31])
    black = only(write(tmp_path / "b.tif", np.zeros((3, 4, 4), "uint8")))
    assert black.read(Rect(0, 0, 4, 4)).valid.all()


def test_external_mask_beside_the_file(tmp_path: Path) -> None:
    mask = noise((8, 9), seed=5) > 100
    path = write(tmp_path / "a.tif", noise((3, 8, 9)))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists()
    with gdal_env():
        assert np.array_equal(only(path).read(Rect(0, 0, 8, 9)).valid, mask)


def test_not_a_number_is_not_data(tmp_path: Path) -> None:
    values = noise((3, 8, 9), "float32")
    values[1, 2, 3] = np.nan
    values[0, 4, 4] = np.inf
    got = only(write(tmp_path / "a.tif", values)).read(Rect(0, 0, 8, 9))
    assert np.argwhere(~got.valid).tolist() == [[2, 3], [4, 4]]
    assert np.isfinite(got.values).all()


def palette_file(path: Path, **options: Any) -> tuple[Path, np.ndarray]:
    index = noise((1, 30, 40), low=0, high=5)
    write(path, index, photometric="PALETTE", **options)
    table = {i: (i * 40, 255 - i * 10, i, 255) for i in range(5)}
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, table)
    colours = np.array([table[i][:3] for i in range(5)], np.uint8)
    return path, np.moveaxis(colours[index[0]], -1, 0)


def test_palette_becomes_colours(tmp_path: Path) -> None:
    path, colours = palette_file(tmp_path / "a.tif")
    assert np.array_equal(only(path).read(Rect(1, 2, 30, 39)).values, colours[:, 1:30, 2:39])
    swapped = only(path, bands=(3, 2, 1)).read(Rect(0, 0, 30, 40))
    assert np.array_equal(swapped.values, colours[::-1])


def test_palette_is_expanded_before_resampling(tmp_path: Path) -> None:
    path, colours = palette_file(tmp_path / "a.tif")
    plain = write(tmp_path / "b.tif", colours)
    one, other = only(path, gsd=0.8), only(plain, gsd=0.8)
    assert one.shape == other.shape != (30, 40)
    assert np.array_equal(one.read(one.extent).values, other.read(other.extent).values)


@pytest.mark.parametrize(
    "transform",
    [
        NORTH_UP,
        Affine(0.5, 0, 500000, 0, 0.5, 4_000_000),
        NORTH_UP @ Affine.rotation(30),
        Affine(-0.5, 0.1, 500000, 0.2, 0.6, 4_000_000),
    ],
    ids=["north", "south", "rotated", "sheared"],
)
def test_any_affine_is_read_as_it_is(tmp_path: Path, transform: Affine) -> None:
    values = noise((3, 31, 47))
    path = write(tmp_path / "a.tif", values[:, :, :20], transform=transform)
    shift = transform @ Affine.translation(20, 0)
    right = write(tmp_path / "b.tif", values[:, :, 20:], transform=shift)
    mosaic, problems = open_mosaic([path, right])
    assert problems == []
    assert mosaic.transform.almost_equals(transform)
    assert [layer.aligned for layer in mosaic.layers] == [True]
    assert np.array_equal(mosaic.read(mosaic.extent).values, values)


def test_no_georeference(tmp_path: Path) -> None:
    one = write(tmp_path / "a.png", noise((3, 9, 8)), transform=None, crs=None, driver="PNG")
    two = write(tmp_path / "b.tif", noise((3, 9, 8)), transform=None, crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rasterio.errors.NotGeoreferencedWarning)
        mosaic, problems = open_mosaic([one, two])
        close_files()
        got = mosaic.read(mosaic.extent)
    assert np.array_equal(got.values, noise((3, 9, 8)))
    assert not mosaic.georeferenced
    assert mosaic.crs is None
    assert mosaic.ground_gsd is None
    assert [(Path(p.path).name, "no georeference" in p.message) for p in problems] == [("b.tif", True)]
    with pytest.raises(SettingError, match="no CRS"):
        open_mosaic([one], gsd=0.3)


def test_placed_but_without_crs(tmp_path: Path) -> None:
    values = smooth((40, 60))
    one = write(tmp_path / "a.tif", values[:, :, :30], crs=None)
    two = write(
        tmp_path / "b.tif",
        values[:, :, 30:],
        crs=None,
        transform=NORTH_UP @ Affine.translation(30.4, 0),
    )
    mosaic, problems = open_mosaic([one, two])
    assert problems == []
    assert mosaic.georeferenced
    assert [layer.aligned for layer in mosaic.layers] == [True, False]
    got = mosaic.read(mosaic.extent)
    assert got.valid[:, :60].mean() > 0.98
    assert np.abs(got.values[:, :, 32:59].astype(int) - values[:, :, 32:59]).max() < 12


# --- many files


def grid_of_files(folder: Path, rng: np.random.Generator, n: int = 5) -> list[Path]:
    """Overlapping files on one grid, some with holes, some reaching to negative offsets."""
    paths = []
    for number in range(n):
        row, col = (int(v) for v in rng.integers(-40, 40, 2))
        shape = tuple(int(v) for v in rng.integers(5, 60, 2))
        paths.append(
            write(
                folder / f"t{number}.tif",
                rng.integers(1, 255, (3, *shape)).astype("uint8"),
                transform=NORTH_UP @ Affine.translation(col, row),
                mask=rng.random(shape) > 0.3 if number % 2 else None,
            )
        )
    return paths


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_equal_rasterio_merge(tmp_path: Path, seed: int) -> None:
    paths = grid_of_files(tmp_path, np.random.default_rng(seed))
    mosaic, problems = open_mosaic(paths)
    assert problems == []
    expected, transform = merge([str(path) for path in paths], masked=True, method="first")
    assert mosaic.shape == expected.shape[1:]
    assert mosaic.transform.almost_equals(transform)
    whole = mosaic.read(mosaic.extent)
    mask = np.ma.getmaskarray(expected)
    assert np.array_equal(whole.valid, ~mask[0])
    assert np.array_equal(whole.values, expected.filled(0))
    height, width = mosaic.shape
    rng = np.random.default_rng(seed)
    for _ in range(5):
        row, col = int(rng.integers(height)), int(rng.integers(width))
        rect = Rect(row, col, int(rng.integers(row, height)) + 1, int(rng.integers(col, width)) + 1)
        rows, cols = rect.slices(mosaic.extent)
        part = mosaic.read(rect)
        assert np.array_equal(part.values, whole.values[:, rows, cols])
        assert np.array_equal(part.valid, whole.valid[rows, cols])
        assert mosaic.has_data(rect) == part.valid.any()


def test_read_outside_is_wrong_use(tmp_path: Path) -> None:
    mosaic = only(write(tmp_path / "a.tif", noise((3, 9, 8))))
    with pytest.raises(SettingError, match="outside"):
        mosaic.read(Rect(0, 0, 10, 8))


def test_many_files_are_found_by_an_index(tmp_path: Path) -> None:
    mosaic = only(write(tmp_path / "a.tif", noise((3, 9, 8))))
    places = [Rect(r * 9, c * 8, r * 9 + 9, c * 8 + 8) for r in range(100) for c in range(100)]
    sources = tuple(replace(mosaic.sources[0], rect=place, native=place) for place in places)
    many = replace(mosaic, sources=sources)
    found = list(many.members_in(0, Rect(8, 7, 10, 9)))
    assert [(s.rect.row0, s.rect.col0) for s, _ in found] == [(0, 0), (0, 8), (9, 0), (9, 8)]
    assert [part.area for _, part in found] == [1, 1, 1, 1]
    assert len(list(many.members_in(0, Rect(0, 0, 9, 8)))) == 1


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


def test_lattices_are_told_apart(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{i}.tif", noise((3, 8, 8)), transform=NORTH_UP @ Affine.translation(*shift))
        for i, shift in enumerate([(0, 0), (8, 0.5), (16, 3.508), (24, 0.2), (32, 7), (40, 0.496), (48, 1.199)])
    ]
    mosaic, _ = open_mosaic(paths)
    assert [source.layer for source in mosaic.sources] == [0, 1, 1, 2, 0, 1, 2]
    assert mosaic.shape == (15, 56)


def test_real_town_equals_rasterio_merge(shared_data: Path) -> None:
    folder = shared_data / "scenes" / "banepa"
    with gdal_env():
        mosaic, problems = open_mosaic([folder])
        assert problems == []
        assert len(mosaic.sources) == 6
        assert sorted(mosaic.shape) == [8704, 11264]
        assert [layer.aligned for layer in mosaic.layers] == [True]
        assert mosaic.ground_gsd == pytest.approx(0.132, abs=0.001)
        # Across the corner where four files meet.
        corner = mosaic.sources[0].rect
        rect = Rect(corner.row1 - 333, corner.col1 - 411, corner.row1 + 222, corner.col1 + 517)
        got = mosaic.read(rect)
        x0, y0 = mosaic.transform @ (rect.col0, rect.row0)
        x1, y1 = mosaic.transform @ (rect.col1, rect.row1)
        paths = [source.path for source in mosaic.sources]
        expected, _ = merge(paths, bounds=(x0, y1, x1, y0))
        valid = np.zeros(rect.shape, bool)
        for path in paths:  # rasterio.merge takes black for nodata, so the masks are laid out by hand
            with rasterio.open(path) as dataset:
                col, row = (round(v) for v in ~mosaic.transform @ (dataset.transform.c, dataset.transform.f))
                part = rect & Rect(row, col, row + dataset.height, col + dataset.width)
                if part:
                    window = Rect(part.row0 - row, part.col0 - col, part.row1 - row, part.col1 - col).window
                    valid[part.slices(rect)] = dataset.dataset_mask(window=window) > 0
    assert np.array_equal(got.valid, valid)
    assert np.array_equal(got.values, expected * valid)


# --- reflection


@given(length=st.integers(1, 12), before=st.integers(0, 30), after=st.integers(0, 30))
def test_reflect_is_numpys(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    assert np.array_equal(reflect(np.arange(-before, length + after), length), expected)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40))
def test_padded_equals_numpy_pad(tmp_path: Path, data: st.DataObject, height: int, width: int) -> None:
    values = noise((3, height, width), seed=height * 100 + width)
    mask = noise((height, width), seed=3) > 60
    path = write(tmp_path / f"{height}x{width}.tif", values, mask=mask)
    mosaic = only(path)
    pad = ((0, 70), (0, 70))
    whole = np.pad(values * mask, ((0, 0), *pad), mode="reflect")
    row0, col0 = data.draw(st.integers(0, height + 30)), data.draw(st.integers(0, width + 30))
    rect = Rect(
        row0,
        col0,
        data.draw(st.integers(row0 + 1, height + 70)),
        data.draw(st.integers(col0 + 1, width + 70)),
    )
    got = mosaic.read_padded(rect)
    rows, cols = rect.slices(Rect(0, 0, 1, 1))
    assert got.rect == rect
    assert np.array_equal(got.values, whole[:, rows, cols])
    assert np.array_equal(got.valid, np.pad(mask, pad, mode="reflect")[rows, cols])


# --- warping


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
                monkeypatch.setattr("geoseg.mosaic._WARP_PIXELS", 40_000)
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


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        ("EPSG:3857", Affine(0.3, 0, 9_510_000, 0, -0.3, 3_205_000)),
        ("EPSG:4326", Affine(2e-6, 0, 15.5, 0, -2e-6, 60.2)),
        ("EPSG:2263", Affine(1.0, 0, 990_000, 0, -1.0, 200_000)),
        (UTM, NORTH_UP @ Affine.rotation(20)),
    ],
)
def test_ground_gsd(tmp_path: Path, crs: str, affine: Affine) -> None:
    path = write(tmp_path / "a.tif", noise((3, 60, 80)), crs=crs, transform=affine)
    mosaic = only(path)
    # Independent: the diagonal of the whole image on WGS84, in equal steps.
    corner_x, corner_y = zip(affine @ (0, 30), affine @ (80, 30), affine @ (40, 0), affine @ (40, 60), strict=True)
    lon, lat = transform_points(crs, "EPSG:4326", list(corner_x), list(corner_y))
    geod = Geod(ellps="WGS84")
    along = geod.inv(lon[0], lat[0], lon[1], lat[1])[2] / 80
    across = geod.inv(lon[2], lat[2], lon[3], lat[3])[2] / 60
    assert mosaic.ground_gsd == pytest.approx((along * across) ** 0.5, rel=1e-4)
    coarse = only(path, gsd=1.5)
    assert coarse.ground_gsd == pytest.approx(1.5, rel=1e-3)
    height, width = coarse.shape
    size = ground_size(coarse.wkt, coarse.transform, width / 2, height / 2)
    assert size == pytest.approx((1.5, 1.5), rel=0.01)
    assert coarse.read(coarse.extent).valid.mean() > 0.9


def test_foot_is_converted() -> None:
    size = ground_size(rasterio.crs.CRS.from_epsg(2263).to_wkt(), Affine(1, 0, 990_000, 0, -1, 200_000), 0, 0)
    assert size == pytest.approx((0.3048, 0.3048), rel=1e-3)


def test_too_far_apart(tmp_path: Path) -> None:
    one = write(tmp_path / "a.tif", noise((3, 4, 4)), transform=Affine(1e-3, 0, 0, 0, -1e-3, 0))
    two = write(tmp_path / "b.tif", noise((3, 4, 4)), transform=Affine(1e-3, 0, 9e6, 0, -1e-3, 0))
    with pytest.raises(InputError, match="so far apart"):
        open_mosaic([one, two])


# --- area of interest


AREA = shapely.Polygon(
    [(500003.03, 3999990.11), (500030.17, 3999998.05), (500028.02, 3999975.13), (500010.08, 3999972.01)],
    [[(500014.07, 3999985.06), (500020.03, 3999985.02), (500017.09, 3999980.04)]],
)


def centres_inside(mosaic: Mosaic, area: shapely.Geometry) -> np.ndarray:
    height, width = mosaic.shape
    y, x = np.mgrid[:height, :width] + 0.5
    gx, gy = mosaic.transform @ (x.ravel(), y.ravel())
    return shapely.contains_xy(area, gx, gy).reshape(height, width)


@pytest.mark.parametrize(
    ("crs", "suffix"),
    [(UTM, "gpkg"), ("EPSG:4326", "geojson"), ("EPSG:3857", "shp"), (None, "gpkg")],
)
def test_area_of_interest(tmp_path: Path, crs: str | None, suffix: str) -> None:
    frame = gpd.GeoDataFrame(geometry=[AREA], crs=UTM)
    frame = frame.to_crs(crs) if crs else frame.set_crs(None, allow_override=True)
    frame.to_file(tmp_path / f"area.{suffix}", engine="pyogrio")
    path = write(tmp_path / "a.tif", noise((3, 80, 90)))
    mosaic = only(path, aoi=tmp_path / f"area.{suffix}")
    expected = centres_inside(mosaic, AREA)
    got = mosaic.inside_aoi(mosaic.extent)
    # Reprojected and stored coordinates move by less than a hundredth of a pixel.
    assert (got != expected).sum() <= (0 if crs in (UTM, None) else 2)
    for rect in (Rect(0, 0, 20, 20), Rect(20, 20, 33, 47), Rect(25, 25, 26, 26)):
        rows, cols = rect.slices(mosaic.extent)
        assert np.array_equal(mosaic.inside_aoi(rect), got[rows, cols])
        assert mosaic.has_data(rect) == got[rows, cols].any()
    assert only(path).inside_aoi(Rect(0, 0, 3, 3)).all()


def test_area_edges_are_densified(tmp_path: Path) -> None:
    # A triangle over half a continent: its long straight edge in degrees is a curve in the images' CRS.
    area = shapely.Polygon([(-110, 30.0), (-88, 42.27), (-88, 30)])
    gpd.GeoDataFrame(geometry=[area], crs="EPSG:4326").to_file(tmp_path / "area.gpkg")
    values = noise((3, 50, 50))
    path = write(tmp_path / "a.tif", values, transform=Affine(20, 0, 499500, 0, -20, 4_000_500))
    lon, lat = -99.0, 30 + 11 * 12.27 / 22
    x, y = transform_points("EPSG:4326", UTM, [lon], [lat])
    path = write(tmp_path / "a.tif", values, transform=Affine(20, 0, x[0] - 500, 0, -20, y[0] + 500))
    mosaic = only(path, aoi=tmp_path / "area.gpkg")
    rows, cols = np.mgrid[:50, :50] + 0.5
    gx, gy = mosaic.transform @ (cols.ravel(), rows.ravel())
    lon_, lat_ = transform_points(UTM, "EPSG:4326", gx.tolist(), gy.tolist())
    expected = shapely.contains_xy(area, lon_, lat_).reshape(50, 50)
    assert 0.3 < expected.mean() < 0.7
    assert (mosaic.inside_aoi(mosaic.extent) != expected).sum() <= 2


def test_area_of_interest_complaints(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((3, 80, 90)))
    pixels = write(tmp_path / "p.tif", noise((3, 80, 90)), crs=None, transform=None)
    (tmp_path / "text.geojson").write_text("hello")
    gpd.GeoDataFrame(geometry=[shapely.Point(500003, 3999990)], crs=UTM).to_file(tmp_path / "pt.gpkg")
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_file(tmp_path / "far.gpkg")
    for image, area, words in (
        (path, "gone.gpkg", "no such file"),
        (path, "text.geojson", "cannot be read"),
        (path, "pt.gpkg", "no polygons"),
        (path, "far.gpkg", "outside the images"),
        (pixels, "far.gpkg", "have no CRS"),
    ):
        with pytest.raises(InputError, match=words):
            open_mosaic([image], aoi=tmp_path / area)


def test_area_in_pixels_without_georeference(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tif", noise((3, 30, 40)), crs=None, transform=None)
    frame = gpd.GeoDataFrame(geometry=[shapely.box(10, 5, 20, 15)], crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame.to_file(tmp_path / "area.gpkg")
    expected = np.zeros((30, 40), bool)
    expected[5:15, 10:20] = True
    mosaic = only(path, aoi=tmp_path / "area.gpkg")
    assert np.array_equal(mosaic.inside_aoi(mosaic.extent), expected)


# --- damaged files


def damage(path: Path, values: np.ndarray, keep: float = 0.6, **options: Any) -> Path:
    write(path, values, tiled=True, blockxsize=64, blockysize=64, compress="deflate", **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def readable_blocks(path: Path) -> dict[tuple[int, int], bool]:
    found = {}
    with rasterio.open(path) as dataset:
        for index, window in dataset.block_windows(1):
            try:
                dataset.read(window=window)
                found[index] = True
            except rasterio.errors.RasterioIOError:
                found[index] = False
    return found


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("threads", [1, 4])
def test_truncated_file_loses_only_its_unreadable_blocks(tmp_path: Path, interleave: str, threads: int) -> None:
    values = noise((3, 300, 500))
    path = damage(tmp_path / "a.tif", values, interleave=interleave)
    blocks = readable_blocks(path)
    assert 3 < sum(blocks.values()) < len(blocks) - 3 or interleave == "band"
    expected = np.zeros((300, 500), bool)
    for (row, col), fine in blocks.items():
        expected[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64] = fine
    with gdal_env(), rasterio.Env(GDAL_NUM_THREADS=threads):
        mosaic = only(path)
        for rect in (mosaic.extent, mosaic.extent, Rect(100, 90, 260, 420), Rect(65, 1, 66, 499)):
            got = mosaic.read(rect)
            rows, cols = rect.slices(mosaic.extent)
            assert np.array_equal(got.valid, expected[rows, cols])
            assert np.array_equal(got.values, (values * expected)[:, rows, cols])
            lost = {
                (row, col)
                for (row, col), fine in blocks.items()
                if not fine and Rect(row * 64, col * 64, row * 64 + 64, col * 64 + 64) & rect
            }
            assert {problem.block for problem in got.problems} == lost
            assert len(got.problems) == len(lost)
            assert all("a.tif" in str(p) and len(p.message) < 201 for p in got.problems)


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


def test_file_gone_after_opening(tmp_path: Path) -> None:
    one = write(tmp_path / "a.tif", noise((3, 20, 20)))
    two = write(tmp_path / "b.tif", noise((3, 20, 20), seed=1))
    mosaic, _ = open_mosaic([one, two])
    close_files()
    one.unlink()
    got = mosaic.read(mosaic.extent)
    assert [(Path(p.path).name, p.block) for p in got.problems] == [("a.tif", None)]
    assert np.array_equal(got.values, noise((3, 20, 20), seed=1))


def test_unreadable_mask_counts_as_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((3, 20, 20)), nodata=0)
    mosaic = only(path)
    close_files()
    path.unlink()
    assert mosaic.has_data(mosaic.extent)


# --- identity, pickling, other sources


def test_pickle_round_trip(tmp_path: Path) -> None:
    paths = grid_of_files(tmp_path, np.random.default_rng(0))
    mosaic, _ = open_mosaic(paths)
    before = mosaic.read(mosaic.extent)
    text = pickle.dumps(mosaic)
    again = pickle.loads(text)
    assert again == mosaic
    assert b"STRtree" not in text
    assert np.array_equal(again.read(again.extent).values, before.values)
    assert again.fingerprint() == mosaic.fingerprint()


def test_fingerprint_changes_with_what_matters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((5, 20, 20)))
    gpd.GeoDataFrame(geometry=[AREA], crs=UTM).to_file(tmp_path / "area.gpkg")
    first = only(path)
    assert json.loads(json.dumps(first.identity())) == first.identity()
    prints = {
        first.fingerprint(),
        only(path, bands=(3, 2, 1)).fingerprint(),
        only(path, gsd=1.0).fingerprint(),
        only(path, aoi=tmp_path / "area.gpkg").fingerprint(),
        only(path, resampling="cubic").fingerprint(),
    }
    os.utime(path, ns=(1, 1))
    prints.add(only(path).fingerprint())
    assert len(prints) == 6


def test_vrt_and_zip(tmp_path: Path) -> None:
    import zipfile

    values = noise((3, 20, 30))
    path = write(tmp_path / "a.tif", values)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "inner/a.tif")
    xml = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><SRS>{UTM}</SRS>'
        f"<GeoTransform>500000,0.5,0,4000000,0,-0.5</GeoTransform>{xml}</VRTDataset>"
    )
    for name in (tmp_path / "a.vrt", f"/vsizip/{tmp_path}/a.zip/inner/a.tif"):
        mosaic = only(name)
        assert np.array_equal(mosaic.read(mosaic.extent).values, values)
        assert mosaic.sources[0].size
    # The files behind a VRT count, too.
    before = only(tmp_path / "a.vrt").fingerprint()
    os.utime(path, ns=(10**18 * 9, 10**18 * 9))
    assert only(tmp_path / "a.vrt").fingerprint() != before


def test_over_http(tmp_path: Path) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    values = noise((3, 20, 30))
    write(tmp_path / "a.tif", values)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.tif"
        with gdal_env():
            for name in (url, f"/vsicurl/{url}"):
                mosaic = only(name)  # type: ignore[arg-type]
                assert np.array_equal(mosaic.read(mosaic.extent).values, values)
                assert mosaic.sources[0].size == (tmp_path / "a.tif").stat().st_size
                assert mosaic.sources[0].stamp
    finally:
        close_files()
        server.shutdown()
        server.server_close()
