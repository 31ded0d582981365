"""Buildings joined from blocks against labelling and rasterising the whole mask with other libraries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage
from test_polygonize import Bytes, Mask, probability_for

from geoseg.errors import SettingError
from geoseg.join import Joiner
from geoseg.polygonize import Building, Parts, block_parts, buildings_of
from geoseg.tiling import Rect, Tiling


@dataclass(frozen=True)
class SmallBlocks:
    """Blocks of any size, below what a Tiling allows."""

    shape: tuple[int, int]
    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.shape[0] // self.size[0]), -(-self.shape[1] // self.size[1])

    def core_of(self, row: int, col: int) -> Rect:
        (height, width), (rows, cols) = self.shape, self.size
        return Rect(
            row * rows,
            col * cols,
            min((row + 1) * rows, height),
            min((col + 1) * cols, width),
        )


def join(mask: Mask, probability: Bytes, cuts: SmallBlocks | Tiling, skip_empty: bool = False) -> list[Building]:
    whole = Rect(0, 0, *mask.shape)
    joiner = Joiner(cuts)
    found: list[Building] = []
    for row, col in np.ndindex(*cuts.grid):
        core = cuts.core_of(row, col)
        where = core.slices(whole)
        parts = Parts.from_bytes(block_parts(mask[where], probability[where], core).to_bytes())
        if len(parts) or not skip_empty:
            found += joiner.add(row, col, core, parts)
    found += joiner.finish()
    assert joiner.open_parts == 0
    return sorted(found, key=lambda building: building.first)


def record(building: Building) -> tuple[bytes, int, int, tuple[int, int]]:
    return (
        shapely.to_wkb(building.polygon),
        building.pixels,
        building.probability_sum,
        building.first,
    )


def check_against_labels(mask: Mask, probability: Bytes, found: list[Building]) -> None:
    labels, count = ndimage.label(mask)
    assert len(found) == count
    by_label = {int(labels[building.first]): building for building in found}
    assert sorted(by_label) == list(range(1, count + 1))
    for label, building in by_label.items():
        own = labels == label
        assert building.pixels == own.sum() == building.polygon.area
        assert building.probability_sum == probability[own].astype(int).sum()
        assert building.first == tuple(np.argwhere(own)[0])
        assert shapely.is_valid(building.polygon)
        background = np.pad(~own, 1, constant_values=True)
        assert len(building.polygon.interiors) == ndimage.label(background)[1] - 1
        for ring in (building.polygon.exterior, *building.polygon.interiors):
            edges = np.diff(np.asarray(ring.coords), axis=0)
            assert (np.count_nonzero(edges, axis=1) == 1).all()
            horizontal = edges[:, 0] != 0
            assert (horizontal != np.roll(horizontal, 1)).all()
    if found:
        shapes = [(building.polygon, number) for number, building in enumerate(found, 1)]
        painted = rasterize(shapes, out_shape=mask.shape, dtype="int32")
        expected = np.zeros_like(labels)
        for number, building in enumerate(found, 1):
            expected[labels == labels[building.first]] = number
        np.testing.assert_array_equal(painted, expected)


def spiral(size: int) -> Mask:
    mask = np.zeros((size, size), bool)
    row, col, length = 0, 0, size - 1
    mask[0, 0] = True
    for turn in range(size):
        down, right = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        for _ in range(length):
            row, col = row + down, col + right
            mask[row, col] = True
        if turn and turn % 2 == 0:
            length -= 2
        if length < 1:
            break
    return mask


def rings(size: int) -> Mask:
    axis = np.arange(size)
    depth = np.minimum(axis, size - 1 - axis)
    return np.minimum(depth[:, None], depth[None, :]) % 2 == 0


SHAPES = {
    "one pixel": np.ones((1, 1), bool),
    "nothing": np.zeros((5, 4), bool),
    "everything": np.ones((7, 9), bool),
    "checkerboard": np.indices((8, 9)).sum(axis=0) % 2 == 0,
    "spiral": spiral(15),
    "rings in rings": rings(17),
    "comb": (np.indices((9, 12))[1] % 2 == 0) | (np.indices((9, 12))[0] == 4),
    "lattice": (np.indices((9, 11))[1] % 2 == 0) | (np.indices((9, 11))[0] % 2 == 0),
    # Ends that touch at a corner: the hole meets the outside, and two holes meet each other.
    "ring closed by a corner": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], bool),
    "holes at a corner": np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (99, 99)])
def test_shapes_that_are_hard(name: str, size: tuple[int, int]) -> None:
    mask = SHAPES[name]
    probability = probability_for(mask)
    found = join(mask, probability, SmallBlocks(mask.shape, size))
    check_against_labels(mask, probability, found)
    whole = buildings_of(mask, probability)
    assert list(map(record, found)) == list(map(record, whole))


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    shape = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(shape) < draw(st.sampled_from([0.2, 0.5, 0.6, 0.7, 0.9]))
    return ~ndimage.binary_closing(~mask) if draw(st.booleans()) else mask


@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(1, 25), st.integers(1, 25), st.booleans())
def test_cut_anywhere_is_the_same_as_whole(mask: Mask, height: int, width: int, skip_empty: bool) -> None:
    probability = probability_for(mask)
    whole = buildings_of(mask, probability)
    check_against_labels(mask, probability, whole)
    cut = join(mask, probability, SmallBlocks(mask.shape, (height, width)), skip_empty)
    assert list(map(record, cut)) == list(map(record, whole))


def test_large_noise_at_the_percolation_threshold() -> None:
    # Near 0.593 one component of thousands of parts spans everything, with holes touching holes.
    mask = np.random.default_rng(3).random((600, 700)) < 0.6
    probability = probability_for(mask)
    whole = buildings_of(mask, probability)
    cut = join(mask, probability, Tiling(mask.shape, cell=32, halo=0, core=32))
    assert list(map(record, cut)) == list(map(record, whole))
    assert shapely.is_valid([building.polygon for building in whole]).all()
    assert len(whole) == ndimage.label(mask)[1]
    painted = rasterize([building.polygon for building in whole], out_shape=mask.shape)
    np.testing.assert_array_equal(painted.astype(bool), mask)


def test_two_thousand_squared() -> None:
    rng = np.random.default_rng(4)
    mask = ndimage.uniform_filter(rng.random((2000, 2000), dtype=np.float32), 9) > 0.52
    probability = probability_for(mask)
    found = join(mask, probability, Tiling(mask.shape, cell=512, halo=0, core=512))
    assert len(found) == ndimage.label(mask)[1]
    assert sum(building.pixels for building in found) == mask.sum()
    assert sum(building.probability_sum for building in found) == probability[mask].sum(dtype=int)
    assert shapely.is_valid([building.polygon for building in found]).all()
    painted = rasterize([building.polygon for building in found], out_shape=mask.shape)
    np.testing.assert_array_equal(painted.astype(bool), mask)
    keys = [building.key(2000) for building in found]
    assert keys == sorted(set(keys))


def test_what_is_held_does_not_grow_with_the_height() -> None:
    # Two buildings a block, one of them across the seam to the next row of blocks.
    tile = np.zeros((16, 16), bool)
    tile[2:6, 2:6] = tile[14:, 9:12] = tile[:2, 9:12] = True
    held = {}
    for blocks in (4, 40):
        mask = np.tile(tile, (blocks, 3))
        cuts, whole = SmallBlocks(mask.shape, (16, 16)), Rect(0, 0, *mask.shape)
        joiner, most = Joiner(cuts), 0
        for row, col in np.ndindex(*cuts.grid):
            core = cuts.core_of(row, col)
            where = core.slices(whole)
            parts = block_parts(mask[where], probability_for(mask[where]), core)
            found = joiner.add(row, col, core, parts)
            # The one inside comes out at once, the one across the seam above with it.
            assert len(found) == 1 + (row > 0) + (row == 0) + (row == blocks - 1)
            most = max(most, joiner.open_parts)
        assert joiner.finish() == []
        held[blocks] = most
    assert held[4] == held[40] == 3


def test_finish_gives_out_what_waited_for_blocks_that_never_came() -> None:
    mask = np.ones((4, 4), bool)
    cuts = SmallBlocks((40, 4), (4, 4))
    joiner = Joiner(cuts)
    core = cuts.core_of(2, 0)
    assert joiner.add(2, 0, core, block_parts(mask, probability_for(mask), core)) == []
    (building,) = joiner.finish()
    assert building.polygon == shapely.normalize(shapely.box(0, 8, 4, 12))


def test_blocks_out_of_order_or_out_of_place_are_refused() -> None:
    cuts = SmallBlocks((4, 4), (2, 2))
    joiner = Joiner(cuts)
    core = cuts.core_of(0, 1)
    joiner.add(0, 1, core, Parts.empty(core))
    for row, col in ((0, 1), (0, 0), (2, 0)):
        with pytest.raises(SettingError, match="row by row"):
            joiner.add(row, col, core, Parts.empty(core))
    with pytest.raises(SettingError, match="has the core"):
        joiner.add(1, 0, core, Parts.empty(core))
