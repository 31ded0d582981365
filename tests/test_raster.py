"""The pixels and the validity of single files, sound and damaged, against rasterio's masks and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasters import damage, noise, only, readable_blocks, write

from geoseg.errors import InputError
from geoseg.mosaic import open_mosaic
from geoseg.raster import close_files, gdal_env
from geoseg.tiling import Rect


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "int8"])
def test_types(tmp_path: Path, dtype: str) -> None:
    values = noise((3, 21, 33), dtype, high=100)
    mosaic = only(write(tmp_path / "a.tif", values))
    got = mosaic.read(Rect(2, 3, 20, 30))
    assert mosaic.dtype == got.values.dtype == np.dtype(dtype)
    assert np.array_equal(got.values, values[:, 2:20, 3:30])
    assert got.valid.all()
    assert got.problems == ()


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


@pytest.mark.parametrize("kind", ["nodata", "alpha", "bands", "plain", "mask"])
def test_what_a_file_does_not_hold_is_blank(tmp_path: Path, kind: str) -> None:
    """Only tiles that are missing and read as no data count, and only if all of the rectangle is such."""
    path = tmp_path / "a.tif"
    shape = {"driver": "GTiff", "height": 64, "width": 96, "count": 4 if kind == "alpha" else 3, "dtype": "uint8"}
    options: dict[str, Any] = {"tiled": True, "blockxsize": 32, "blockysize": 32, "SPARSE_OK": True, "compress": "LZW"}
    options["interleave"] = "band" if kind == "bands" else "pixel"
    if kind in ("nodata", "bands"):
        options["nodata"] = 0
    if kind == "alpha":
        options |= {"photometric": "RGB", "alpha": "YES"}
    options |= {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)}
    window = Rect(0, 32, 32, 64).window
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **shape, **options) as file:
        file.write(np.full((shape["count"], 32, 32), 9, np.uint8), window=window)
        if kind == "mask":
            file.write_mask(np.full((32, 32), 255, np.uint8), window=window)
    mosaic = only(path)
    known = kind in ("nodata", "alpha", "bands")
    assert mosaic.is_blank(Rect(0, 0, 32, 32)) == known
    assert mosaic.is_blank(Rect(32, 0, 64, 96)) == known
    assert mosaic.is_blank(Rect(0, 64, 64, 96)) == known
    assert not mosaic.is_blank(Rect(0, 0, 32, 33))
    assert not mosaic.is_blank(Rect(31, 63, 33, 65))
    for row in range(0, 64, 8):
        for col in range(0, 96, 8):
            rect = Rect(row, col, row + 8, col + 8)
            assert mosaic.is_blank(rect) <= (not mosaic.read(rect).valid.any())


def test_a_file_that_cannot_be_opened_is_not_blank(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((3, 16, 16)), nodata=0)
    mosaic = only(path)
    close_files()
    path.write_bytes(b"no raster")
    assert not mosaic.is_blank(Rect(0, 0, 16, 16))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int8", "float32"])
@pytest.mark.parametrize("nodata", [0, 1, 100, -5])
@pytest.mark.parametrize("bands", [None, (3, 1, 2), (1, 1, 2)])
def test_nodata_is_what_gdal_takes_for_it(
    tmp_path: Path, dtype: str, nodata: int, bands: tuple[int, int, int] | None
) -> None:
    if nodata < 0 and dtype.startswith("u"):
        pytest.skip("no such value")
    values = noise((3, 16, 16), dtype, low=max(nodata - 1, 0), high=max(nodata, 0) + 2)
    path = write(tmp_path / "a.tif", values, nodata=nodata)
    got = open_mosaic([path], bands=bands)[0].read(Rect(1, 2, 16, 15))
    with rasterio.open(path) as dataset:
        expected = dataset.dataset_mask()[1:, 2:15] > 0
    np.testing.assert_array_equal(got.valid, expected)
    chosen = [band - 1 for band in bands or (1, 2, 3)]
    np.testing.assert_array_equal(got.values, values[chosen, 1:, 2:15] * expected)
