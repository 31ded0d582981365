"""The cutting of a mosaic, against painted pixels and plain counting."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import SettingError
from geoseg.tiling import ALIGN, Rect, Tiling, ceil_to


@st.composite
def tilings(draw, longest: int = 300) -> Tiling:
    """Any legal tiling of a mosaic of 1 × 1 up to ``longest`` pixels a side."""
    side = st.one_of(st.integers(1, 3), st.integers(1, longest), st.integers(1, longest // 32).map(lambda k: 32 * k))
    cell, halo = 32 * draw(st.integers(1, 4)), 32 * draw(st.integers(0, 3))
    taper = 2 * draw(st.integers(0, min(2 * halo, cell) // 2))
    return Tiling((draw(side), draw(side)), cell, halo, taper, cell * draw(st.integers(1, 3)))


@st.composite
def rects(draw) -> Rect:
    row0, col0 = draw(st.integers(-20, 20)), draw(st.integers(-20, 20))
    return Rect(row0, col0, row0 + draw(st.integers(1, 20)), col0 + draw(st.integers(1, 20)))


def pixels_of(rect: Rect) -> set[tuple[int, int]]:
    return set(itertools.product(range(rect.row0, rect.row1), range(rect.col0, rect.col1)))


# ------------------------------------------------------------------------------------- rectangles


@given(rects(), rects())
def test_rectangles_intersect_contain_and_measure_as_sets_of_pixels_do(a, b):
    common = pixels_of(a) & pixels_of(b)
    both = a & b
    assert (pixels_of(both) if both else set()) == common
    assert a.contains(b) == (pixels_of(b) <= pixels_of(a))
    assert a.area == len(pixels_of(a))
    assert a.shape == (a.height, a.width)


@given(rects(), st.integers(0, 9))
def test_growing_adds_a_frame_and_is_cut(rect, margin):
    within = Rect(-22, -22, 41, 41)
    frame = {(r + i, c + j) for r, c in pixels_of(rect) for i in (-margin, 0, margin) for j in (-margin, 0, margin)}
    grown = rect.grow(margin, within)
    assert within.contains(grown)
    assert grown.contains(rect)
    # The corners of the frame, cut, are the corners of the grown rectangle.
    rows, cols = np.array(sorted(frame)).T
    assert grown == Rect(max(rows.min(), -22), max(cols.min(), -22), min(rows.max(), 40) + 1, min(cols.max(), 40) + 1)


def test_slices_and_rasterio_window_point_at_the_same_pixels():
    origin, rect = Rect(10, 20, 40, 60), Rect(12, 25, 15, 31)
    array = np.add.outer(1000 * np.arange(10, 40), np.arange(20, 60))
    assert array[rect.slices(origin)].shape == (3, 6)
    assert array[rect.slices(origin)][0, 0] == 12_025
    window = rect.window
    assert (window.row_off, window.col_off, window.height, window.width) == (12, 25, 3, 6)


@pytest.mark.parametrize("corners", [(0, 0, 0, 5), (0, 0, 5, 0), (3, 0, 2, 5)])
def test_a_rectangle_without_pixels_is_refused_with_its_numbers(corners):
    with pytest.raises(SettingError, match=re.escape(f"row0={corners[0]}")):
        Rect(*corners)


@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_ceil_to_is_the_first_multiple(value, step):
    assert ceil_to(value, step) % step == 0
    assert 0 <= ceil_to(value, step) - value < step


# ----------------------------------------------------------------------------------- the invariants


@given(tilings())
@settings(deadline=None)
def test_cores_partition_the_mosaic(tiling):
    painted = np.zeros(tiling.shape, dtype=int)
    names = []
    for block in tiling:
        assert tiling.extent.contains(block.core)
        assert block == tiling.block(*block.index)
        assert block.core == tiling.core_of(*block.index)
        painted[block.core.slices(tiling.extent)] += 1
        names.append(block.name)
    assert (painted == 1).all()
    assert len(names) == len(set(names)) == len(tiling)


@given(tilings())
@settings(deadline=None)
def test_windows_are_aligned_and_see_their_cell_with_halo_as_far_as_there_are_pixels(tiling):
    rows, cols = tiling.shape
    bottom, right = (-(-side // ALIGN) * ALIGN for side in (rows, cols))
    assert tiling.padded == Rect(0, 0, bottom, right)
    cells = np.zeros(tiling.shape, dtype=int)
    for window in tiling.windows(tiling.extent):
        seen, cell = window.pixels, window.cell
        assert all(value % ALIGN == 0 for value in (seen.row0, seen.col0, seen.height, seen.width))
        assert tiling.padded.contains(seen)
        for near, far, low, high, length in (
            (seen.row0, seen.row1, cell.row0, cell.row1, bottom),
            (seen.col0, seen.col1, cell.col0, cell.col1, right),
        ):
            assert near == 0 or near == low - tiling.halo
            assert far == length or far >= high + tiling.halo
        assert seen.contains(window.support)
        assert window.support.contains(cell)
        cells[cell.slices(tiling.extent)] += 1
    assert (cells == 1).all()


@given(tilings())
@settings(deadline=None)
def test_a_block_lists_each_window_whose_support_meets_its_core_once_row_by_row(tiling):
    half = tiling.taper // 2
    lattice = list(itertools.product(*(range(-(-side // tiling.cell)) for side in tiling.shape)))

    def meets(cell: tuple[int, int], core: Rect) -> bool:
        spans = ((core.row0, core.row1, cell[0]), (core.col0, core.col1, cell[1]))
        return all(
            # A cell that the mosaic cuts has no support beyond it, and no core lies there either.
            max(low, i * tiling.cell - half) < min(high, (i + 1) * tiling.cell + half)
            for low, high, i in spans
        )

    for block in tiling:
        listed = [(w.cell.row0 // tiling.cell, w.cell.col0 // tiling.cell) for w in block.windows]
        assert listed == [cell for cell in lattice if meets(cell, block.core)]
        assert list(block.windows) == [tiling.window(*cell) for cell in listed]


@given(tilings(), st.integers(1, 5))
@settings(deadline=None)
def test_windows_do_not_depend_on_the_size_of_blocks(tiling, times):
    other = Tiling(tiling.shape, tiling.cell, tiling.halo, tiling.taper, tiling.cell * times)
    assert {w for b in tiling for w in b.windows} == {w for b in other for w in b.windows}


@given(tilings())
@settings(deadline=None)
def test_forward_ratio_is_the_sum_over_all_windows_of_all_blocks(tiling):
    total = sum(window.pixels.area for block in tiling for window in block.windows)
    assert tiling.forward_ratio() == pytest.approx(total / (tiling.shape[0] * tiling.shape[1]), rel=1e-12)


def test_one_pixel_is_one_block_with_one_window_of_32_pixels():
    (block,) = Tiling((1, 1))
    (window,) = block.windows
    assert block.core == window.cell == window.support == Rect(0, 0, 1, 1)
    assert window.pixels == Rect(0, 0, 32, 32)
    assert Tiling((1, 1)).forward_ratio() == 1024


def test_a_case_by_hand():
    # 100 columns in cells of 64: [0, 64) and [64, 100); halo 32 reaches to 96 and back to 32; padded to 128.
    tiling = Tiling((10, 100), cell=64, halo=32, taper=16, core=64)
    first, second = tiling
    assert [w.pixels for w in first.windows] == [Rect(0, 0, 32, 96), Rect(0, 32, 32, 128)]
    assert [w.support for w in first.windows] == [Rect(0, 0, 10, 72), Rect(0, 56, 10, 100)]
    assert first.windows == second.windows
    # Both blocks run both windows: 4 × 32 × 96 forward pixels for 1000.
    assert tiling.forward_ratio() == pytest.approx(12.288)
    # Without a taper each runs its own.
    assert Tiling((10, 100), 64, 32, 0, 64).forward_ratio() == pytest.approx(6.144)


def test_the_geometry_of_a_huge_mosaic_costs_nothing():
    tiling = Tiling((10**9, 10**9), 1024, 192, 64, 2048)
    assert tiling.grid == (488_282, 488_282)
    assert len(tiling) == 488_282**2
    assert len(tiling.block(488_281, 488_281).windows) == 4
    assert next(iter(tiling)).index == (0, 0)


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shape": (0, 5)}, "0 × 5"),
        ({"cell": 48}, "cell is 48"),
        ({"cell": 0}, "cell is 0"),
        ({"cell": -32}, "cell is -32"),
        ({"halo": 16}, "halo is 16"),
        ({"halo": -32}, "halo is -32"),
        ({"taper": 3}, "taper is 3"),
        ({"taper": -2}, "taper is -2"),
        ({"taper": 66, "halo": 32}, "taper is 66"),
        ({"taper": 66, "halo": 64}, "taper is 66"),
        ({"core": 96}, "core is 96"),
        ({"core": 0}, "core is 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(wrong, words):
    fitting = {"shape": (100, 100), "cell": 64, "halo": 64, "taper": 0, "core": 128}
    with pytest.raises(SettingError, match=words):
        Tiling(**(fitting | wrong))


@pytest.mark.parametrize("index", [(-1, 0), (0, 2), (2, 0)])
def test_a_block_or_cell_outside_is_refused(index):
    tiling = Tiling((64, 64), 32, 0, 0, 32)
    with pytest.raises(SettingError, match="2 × 2"):
        tiling.block(*index)
    if min(index) >= 0:
        with pytest.raises(SettingError, match="outside the mosaic"):
            tiling.window(*index)
