"""Buildings inside a block traced there, and the rest joined: together the same as the mask as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import InputError, SettingError
from geoseg.join import Joiner
from geoseg.polygonize import Parts, block_parts, buildings_of
from geoseg.spool import Spool
from geoseg.tiling import Rect, Tiling
from geoseg.wholes import Found


def random_mask(seed: int, shape: tuple[int, int], share: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < share, rng.integers(0, 256, shape, dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.7))
def test_whole_ones_and_joined_ones_are_all(tmp_path_factory: pytest.TempPathFactory, seed: int, share: float) -> None:
    shape = (70, 90)
    mask, grey = random_mask(seed, shape, share)
    tiling = Tiling(shape, 32, 0, 0, 32)
    joiner = Joiner(tiling)
    with Spool(tmp_path_factory.mktemp("spool") / "s.sqlite", shape[1]) as spool:
        inside = 0
        for block in tiling:
            part = block.core.slices(tiling.extent)
            parts = block_parts(mask[part], grey[part], block.core)
            found = Found.from_bytes(Found.of(parts).to_bytes())
            assert len(found.whole) + len(found.parts) == len(parts)
            inside += len(found.whole)
            spool.add_wholes(found.whole)
            spool.add(joiner.add(*block.index, block.core, found.parts))
        spool.add(joiner.finish())
        batches = list(spool.batches())
    wanted = buildings_of(mask, grey)
    assert sum(len(batch) for batch in batches) == len(wanted) >= inside
    if wanted:
        (batch,) = batches
        assert shapely.to_wkb(batch.polygons).tolist() == [shapely.to_wkb(one.polygon) for one in wanted]
        assert batch.pixels.tolist() == [one.pixels for one in wanted]
        assert batch.probability_sum.tolist() == [one.probability_sum for one in wanted]


def test_boxes_are_those_of_the_outlines() -> None:
    mask, grey = random_mask(3, (40, 50), 0.3)
    whole = Found.of(block_parts(mask, grey, Rect(100, 200, 140, 250))).whole
    polygons = shapely.from_wkb(list(whole.wkb()))
    assert len(whole) > 20
    np.testing.assert_array_equal(shapely.bounds(polygons), whole.boxes)
    assert whole.first[:, 0].min() > 100  # none touches the block's first row


def test_a_block_without_buildings() -> None:
    found = Found.from_bytes(Found.of(Parts.empty(Rect(0, 0, 5, 7))).to_bytes())
    assert (len(found.whole), len(found.parts)) == (0, 0)
    assert list(found.whole.wkb()) == []
    assert found.parts.top.tolist() == [-1] * 7


@pytest.mark.parametrize("damage", [lambda b: b"x" + b, lambda b: b[:40], lambda b: b[:30] + b"\0" * 8 + b[38:]])
def test_damaged_bytes(damage) -> None:
    mask, grey = random_mask(3, (40, 50), 0.3)
    data = Found.of(block_parts(mask, grey, Rect(0, 0, 40, 50))).to_bytes()
    with pytest.raises(InputError, match="buildings of a block"):
        Found.from_bytes(damage(data))


def test_spooled_pixels_lie_in_the_mosaic(tmp_path: Path) -> None:
    mask, grey = random_mask(3, (40, 50), 0.3)
    whole = Found.of(block_parts(mask, grey, Rect(0, 200, 40, 250))).whole
    with Spool(tmp_path / "s.sqlite", 210) as spool, pytest.raises(SettingError, match="not in a mosaic of 210"):
        spool.add_wholes(whole)
