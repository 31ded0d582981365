"""Parts of buildings in one block: outlines by hand, bytes, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from geoseg.errors import GeosegError, InputError, SettingError
from geoseg.polygonize import Parts, block_parts, buildings_of, trace
from geoseg.tiling import Rect

Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


def probability_for(mask: Mask, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, mask.shape, dtype=np.uint8)


def test_a_building_by_hand() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:4, 2:5] = True
    mask[2, 3] = False
    (building,) = buildings_of(mask, np.full(mask.shape, 51, np.uint8))
    expected = shapely.box(2, 1, 5, 4) - shapely.box(3, 2, 4, 3)
    assert building.polygon == shapely.normalize(expected)
    assert (building.pixels, building.probability_sum, building.first) == (8, 408, (1, 2))
    assert building.probability == pytest.approx(0.2)
    assert building.key(6) == 8


def test_block_parts_refuses_what_does_not_fit() -> None:
    mask = np.ones((2, 3), bool)
    with pytest.raises(SettingError, match="shape"):
        block_parts(mask, probability_for(mask), Rect(0, 0, 3, 2))
    with pytest.raises(SettingError, match="float64"):
        block_parts(mask, np.ones((2, 3)), Rect(0, 0, 2, 3))  # type: ignore[arg-type]


def test_parts_survive_the_way_through_bytes() -> None:
    mask = np.random.default_rng(0).random((30, 20)) < 0.5
    parts = block_parts(mask, probability_for(mask), Rect(100, 7, 130, 27))
    again = Parts.from_bytes(parts.to_bytes())
    assert again.core == parts.core
    for name in ("offsets", "rows", "cols", "values", "pixels", "probability_sums"):
        np.testing.assert_array_equal(getattr(again, name), getattr(parts, name))
    assert again.to_bytes() == parts.to_bytes()
    labels, _ = ndimage.label(mask)
    first = {tuple(np.argwhere(labels == label)[0] + (100, 7)) for label in np.unique(labels)[1:]}
    assert set(map(tuple, parts.first.tolist())) == first


@pytest.mark.parametrize("damage", [b"", b"not parts", "cut", "flip"])
def test_damaged_bytes_are_an_input_error(damage: bytes | str) -> None:
    good = Parts.empty(Rect(0, 0, 4, 4)).to_bytes()
    bad = {"cut": good[:-5], "flip": good[:-1] + bytes([good[-1] ^ 1])}
    with pytest.raises(InputError, match="parts of buildings"):
        Parts.from_bytes(damage if isinstance(damage, bytes) else bad[damage])


def test_parts_that_do_not_fit_are_an_error_and_no_building() -> None:
    square = np.array([0, 0, 2, 2]), np.array([0, 2, 0, 2]), np.array([1, -1, -1, 1])
    owner = np.zeros(4, int)
    assert trace(owner, *square, np.array([4]))[0].area == 4
    with pytest.raises(GeosegError, match="fit together"):
        trace(owner, *square, np.array([5]))
    with pytest.raises(GeosegError, match="fit together"):
        trace(owner[:3], *(axis[:3] for axis in square), np.array([4]))
