"""Footprints read back from the bytes of the page, and which of them are kept when there is not room for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Point, Polygon, box

from geoseg.errors import SettingError
from geoseg.packing import AREA_STEPS, CHANCE_STEPS, UNITS, Packed, Packer, encode

PLENTY = 10**7


@dataclass
class Read:
    """A footprint as a reader sees it."""

    id: int
    area: float | None
    probability: float
    polygon: Polygon


def read(data: bytes) -> list[Read]:
    """Decode by the grammar, number by number."""
    numbers = []
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    assert shift == 0
    found = []
    left = iter(numbers)
    for number in left:
        area, chance, rings = (next(left) for _ in range(3))
        shapes = []
        for _ in range(rings):
            corners = next(left)
            folded = np.array([next(left) for _ in range(2 * corners)]).reshape(-1, 2)
            shapes.append(np.cumsum((folded >> 1) ^ -(folded & 1), axis=0) / UNITS)
        found.append(
            Read(
                number, (area - 1) / AREA_STEPS if area else None, chance / CHANCE_STEPS, Polygon(shapes[0], shapes[1:])
            )
        )
    return found


def pack(polygons: list[Polygon], budget: int = PLENTY, batches: int = 1) -> Packed:
    packer = Packer(budget)
    array = np.array(polygons, dtype=object)
    ids = np.arange(1, len(array) + 1)
    for part in np.array_split(np.arange(len(array)), batches):
        packer.add(array[part], ids[part], shapely.area(array[part]) * 0.25, np.full(len(part), 0.5))
    return packer.packed()


def test_footprints_come_back() -> None:
    court = box(10, 10, 60, 50).difference(box(20, 20, 30.5, 40)).difference(box(40, 20, 50, 30))
    array = np.array([court, box(100_000, 50_000, 100_010, 50_020), box(-3, -2, 5, 5)], dtype=object)
    packer = Packer(PLENTY)
    packer.add(array, np.array([3, 300, 70_000]), np.array([123.45, np.nan, 0.0]), np.array([0.8765, 0.0, 1.0]))
    made = packer.packed()
    found = read(made.data)
    assert [one.id for one in found] == [3, 300, 70_000]
    assert [one.area for one in found] == [pytest.approx(123.45, abs=0.051), None, 0.0]
    assert [one.probability for one in found] == [pytest.approx(0.8765, abs=0.00051), 0.0, 1.0]
    assert all(one.polygon.equals(polygon) for one, polygon in zip(found, array, strict=True))
    assert (made.drawn, made.total, made.smallest) == (3, 3, 0.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 3e5), st.floats(0, 3e5), st.floats(0.6, 40), st.integers(1, 9), st.booleans()),
        max_size=12,
    )
)
def test_outlines_leave_theirs_by_less_than_shows(places: list[tuple[float, float, float, int, bool]]) -> None:
    shapes = [Point(x, y).buffer(r, quads) for x, y, r, quads, _ in places]
    shapes = [
        shape.difference(shapely.affinity.scale(shape, 0.5, 0.5)) if holed else shape
        for shape, (*_, holed) in zip(shapes, places, strict=True)
    ]
    found = read(pack(shapes).data)
    assert [one.id for one in found] == list(range(1, len(shapes) + 1))
    for one, shape in zip(found, shapes, strict=True):
        assert len(one.polygon.interiors) == len(shape.interiors)
        assert one.polygon.boundary.hausdorff_distance(shape.boundary) < 0.25 + 1 / UNITS
        assert one.area == pytest.approx(shape.area * 0.25, abs=0.5001 / AREA_STEPS)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(0, 900), st.integers(1, 9))
def test_the_largest_are_kept_however_they_come(sides: list[int], budget: int, batches: int) -> None:
    squares = [box(100 * i, 0, 100 * i + side, side) for i, side in enumerate(sides)]
    made = pack(squares, budget, batches)
    array = np.array(squares, dtype=object)
    _, sizes = encode(array, np.arange(1, len(array) + 1), shapely.area(array) * 0.25, np.full(len(array), 0.5))
    # By hand: from the largest on, the earlier first, until one does not fit.
    order = sorted(range(len(sides)), key=lambda i: (-sides[i], i))
    expected = []
    taken = 0
    for i in order:
        taken += int(sizes[i])
        if taken > budget:
            break
        expected.append(i + 1)
    assert [one.id for one in read(made.data)] == sorted(expected)
    assert len(made.data) <= budget
    assert (made.drawn, made.total) == (len(expected), len(sides))


def test_memory_is_that_of_the_budget() -> None:
    packer = Packer(1000)
    for first in range(1, 40_001, 1000):
        squares = shapely.box(np.arange(1000), 0, np.arange(1000) + 5 + first / 4e4, 5)
        packer.add(squares, np.arange(first, first + 1000), shapely.area(squares), np.full(1000, 0.5))
        held = sum(batch.data.nbytes + 24 * len(batch) for batch in packer._batches)
        assert held < 60_000
    assert packer.packed().total == 40_000


def test_one_giant_does_not_take_all_the_room() -> None:
    steps = np.repeat(np.arange(60_000), 2)
    stairs = np.column_stack([steps[1:], steps[:-1]])
    # Every corner of the stairs stands out by more than what is simplified at first.
    giant = Polygon([*(3 * stairs), (0, 180_000)])
    holes = [box(9 * i + 1, 170_001, 9 * i + 4, 170_004) for i in range(9000)]
    holed = box(0, 170_000, 90_000, 170_005).difference(shapely.union_all(holes))
    found = read(pack([giant, holed, box(0, 0, 5, 5)]).data)
    assert [one.id for one in found] == [1, 2, 3]
    assert len(found[0].polygon.exterior.coords) < 20_000
    assert found[1].polygon.equals(box(0, 170_000, 90_000, 170_005))


def test_nothing_at_all() -> None:
    assert pack([]) == Packed(b"", 0, 0)
    assert pack([box(0, 0, 9, 9)], budget=0) == Packed(b"", 0, 1)
    with pytest.raises(SettingError, match="-1 bytes"):
        Packer(-1)
