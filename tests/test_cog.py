"""The raster format itself: what comes back, at any size and cut, and that GDAL and rio-cogeo find it in order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

import geoseg.cog
from geoseg.tiles import Tiles, cell_of, level_shapes, tiles_of
from geoseg.tiling import Rect
from geoseg.write import writing_cog

GRID = Affine(0.3, 0, 400_000, 0, -0.3, 5_800_000)


def pixels(shape: tuple[int, int], seed: int = 0, holes: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, shape, dtype=np.uint8)
    valid = np.kron(rng.random((-(-shape[0] // 97), -(-shape[1] // 97))) > holes, np.ones((97, 97), bool))
    return values, valid[: shape[0], : shape[1]]


def rects(shape: tuple[int, int], step: tuple[int, int]) -> list[Rect]:
    corners = itertools.product(range(0, shape[0], step[0]), range(0, shape[1], step[1]))
    return [Rect(r, c, min(r + step[0], shape[0]), min(c + step[1], shape[1])) for r, c in corners]


def write(path: Path, values: np.ndarray, valid: np.ndarray, kind: str, cut: list[Rect]) -> bytes:
    box = GeoBox(values.shape, GRID, "EPSG:32633")
    with writing_cog(path, box, kind) as raster:  # type: ignore[arg-type]
        for rect in cut:
            part = rect.slices(Rect(0, 0, 1, 1))
            raster.write(rect, values[part], valid[part])
    return path.read_bytes()


def overviews(values: np.ndarray, valid: np.ndarray, average: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Halve until it fits a tile, pixel by pixel."""
    levels = [(np.where(valid, values, 0), valid)]
    while max(levels[-1][0].shape) > geoseg.cog.TILE:
        values, valid = levels[-1]
        if not average:
            levels.append((values[::2, ::2], valid[::2, ::2]))
            continue
        even = [(0, side % 2) for side in values.shape]
        four, there = np.pad(values.astype(int) * valid, even), np.pad(valid, even).astype(int)
        total, count = (sum(a[r::2, c::2] for r in (0, 1) for c in (0, 1)) for a in (four, there))
        levels.append(((total + count // 2) // np.maximum(count, 1), count > 0))
    return levels


@pytest.mark.parametrize("kind", ["mask", "probability"])
@pytest.mark.parametrize("shape", [(1, 1), (512, 513), (1100, 2049), (1537, 700)])
def test_every_level_comes_back(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    values, valid = pixels(shape)
    if kind == "mask":
        values = np.where(values > 99, 255, 0).astype(np.uint8)
    write(tmp_path / "a.tif", values, valid, kind, rects(shape, (640, 512)))
    expected = overviews(values, valid, kind == "probability")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == [2 ** (n + 1) for n in range(len(expected) - 1)]
    for number, (grey, there) in enumerate(expected):
        options = {"overview_level": number - 1} if number else {}
        with rasterio.open(tmp_path / "a.tif", **options) as file:
            np.testing.assert_array_equal(file.read(1), grey)
            np.testing.assert_array_equal(file.dataset_mask() > 0, there)
    ok, errors, warnings = cog_validate(tmp_path / "a.tif", strict=True)
    assert (ok, errors) == (True, []), warnings


@given(st.tuples(st.integers(1, 1400), st.integers(1, 1400)), st.tuples(st.integers(60, 900), st.integers(60, 900)))
@settings(deadline=None, max_examples=15)
def test_bytes_do_not_depend_on_cut_and_order(tmp_path_factory, shape: tuple[int, int], step: tuple[int, int]) -> None:
    folder = tmp_path_factory.mktemp("cut")
    values, valid = pixels(shape)
    whole = write(folder / "one.tif", values, valid, "probability", [Rect(0, 0, *shape)])
    cut = rects(shape, step)
    assert write(folder / "two.tif", values, valid, "probability", cut[::-1]) == whole


@pytest.mark.parametrize("step", [(512, 1024), (1024, 1024), (1536, 1024), (2048, 2560), (2560, 700)])
@pytest.mark.parametrize("kind", ["mask", "probability"])
def test_bytes_do_not_depend_on_who_packs_the_overviews(tmp_path: Path, kind: str, step: tuple[int, int]) -> None:
    values, valid = pixels((2700, 2100), holes=0.6)
    if kind == "mask":
        values = np.where(values > 99, 255, 0).astype(np.uint8)
    small = write(tmp_path / "small.tif", values, valid, kind, rects((2700, 2100), (300, 300)))
    assert write(tmp_path / "large.tif", values, valid, kind, rects((2700, 2100), step)) == small


@given(st.integers(1, 1700), st.integers(1, 1700), st.integers(0, 9), st.booleans())
@settings(deadline=None, max_examples=25)
def test_tiles_hold_every_pixel_once_and_travel(height: int, width: int, seed: int, average: bool) -> None:
    shape = (1700, 1650)
    rng = np.random.default_rng(seed)
    top, left = int(rng.integers(0, shape[0] - 1)), int(rng.integers(0, shape[1] - 1))
    rect = Rect(top, left, min(top + height, shape[0]), min(left + width, shape[1]))
    values, valid = pixels(rect.shape, seed)
    tiles = tiles_of(rect, values, valid, shape, average=average)
    again = Tiles.from_bytes(tiles.to_bytes())
    assert again.to_bytes() == tiles.to_bytes()
    for level, extent in enumerate(level_shapes(shape)):
        seen = np.zeros(extent, int)
        for number in again.places[again.places[:, 0] == level, 1].tolist():
            seen[cell_of(number, extent).slices(Rect(0, 0, *extent))] += 1
        for piece in again.pieces:
            if piece.level == level:
                seen[piece.rect.slices(Rect(0, 0, *extent))] += 1
        assert seen.max() <= 1
        if level == 0:
            there = np.zeros(extent, bool)
            there[rect.slices(Rect(0, 0, *extent))] = valid
            assert seen[there].all()


def test_tiles_of_another_raster_are_refused(tmp_path: Path) -> None:
    values, valid = pixels((1400, 1400), holes=0.0)
    other = tiles_of(Rect(0, 0, 1400, 1400), values, valid, (1400, 1400), average=True)
    cut = tiles_of(Rect(600, 600, 1000, 1000), values[:400, :400], valid[:400, :400], (1400, 1400), average=True)
    for shape, tiles in (((600, 600), other), ((600, 600), cut)):
        with (
            pytest.raises(ValueError, match="of another raster"),
            writing_cog(tmp_path / "a.tif", GeoBox(shape, GRID, "EPSG:32633"), "probability") as raster,
        ):
            raster.add(tiles)


def test_what_is_left_out_leaves_holes_and_nothing_else(tmp_path: Path) -> None:
    shape = (1300, 1300)
    values, valid = pixels(shape, holes=0.0)
    cut = rects(shape, (300, 300))
    write(tmp_path / "a.tif", values, valid, "probability", cut[::2])
    expected = np.zeros(shape, bool)
    for rect in cut[::2]:
        expected[rect.slices(Rect(0, 0, 1, 1))] = True
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.dataset_mask() > 0, expected)
        np.testing.assert_array_equal(file.read(1), np.where(expected, values, 0))


def test_large_files_are_big_tiffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, valid = pixels((1100, 1100))
    cut = rects((1100, 1100), (512, 512))
    small = write(tmp_path / "small.tif", values, valid, "probability", cut)
    monkeypatch.setattr(geoseg.cog, "_LARGEST", 10_000)
    big = write(tmp_path / "big.tif", values, valid, "probability", cut)
    assert (small[:4], big[:4]) == (b"II*\0", b"II+\0")
    with rasterio.open(tmp_path / "small.tif") as one, rasterio.open(tmp_path / "big.tif") as other:
        np.testing.assert_array_equal(one.read(1), other.read(1))
        np.testing.assert_array_equal(one.dataset_mask(), other.dataset_mask())
        assert (one.transform, one.crs, one.tags(1), one.scales) == (
            other.transform,
            other.crs,
            other.tags(1),
            other.scales,
        )
    assert cog_validate(tmp_path / "big.tif", strict=True)[0]


def test_gdal_finds_tiles_and_their_masks_in_one_piece(tmp_path: Path) -> None:
    """What the layout promises: size before, last bytes after each tile, and its mask's right behind."""
    values, valid = pixels((1024, 1024), holes=0.5)
    content = write(tmp_path / "a.tif", values, valid, "probability", rects((1024, 1024), (512, 512)))
    with rasterio.open(tmp_path / "a.tif") as file:
        for row, col in itertools.product(range(2), repeat=2):
            at = int(file.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
            size = int(file.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1))
            assert int.from_bytes(content[at - 4 : at], "little") == size
            assert content[at + size : at + size + 4] == content[at + size - 4 : at + size]
            mask = int.from_bytes(content[at + size + 4 : at + size + 8], "little")
            end = at + size + 8 + mask
            assert content[end : end + 4] == content[end - 4 : end]


def test_an_empty_raster_of_any_size_is_nothing_but_a_directory(tmp_path: Path) -> None:
    with writing_cog(tmp_path / "a.tif", GeoBox((200_000, 200_000), GRID, "EPSG:32633"), "mask"):
        pass
    # 24 bytes a tile of the raster and its mask, overviews a third more, and 30 kB for all else.
    assert (tmp_path / "a.tif").stat().st_size < 24 * 391**2 * 4 / 3 + 30_000
    with rasterio.open(tmp_path / "a.tif") as file:
        window = rasterio.windows.Window(100_000, 150_000, 700, 700)
        assert not file.read(1, window=window).any()
        assert not file.dataset_mask(window=window).any()
