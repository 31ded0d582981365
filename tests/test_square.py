"""Squared outlines: right angles where a building has them, and never worse than the outline that came in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy import ndimage
from shapely import affinity

from geoseg.errors import SettingError
from geoseg.polygonize import buildings_of
from geoseg.square import MAX_AREA_CHANGE, reach_of, square_up

Polygons = NDArray[np.object_]

SHAPES = {
    4: shapely.box(0, 0, 60.3, 35.7),
    6: shapely.Polygon([(0, 0), (70, 0), (70, 24), (30, 24), (30, 55), (0, 55)]),
    8: shapely.Polygon([(0, 0), (72, 0), (72, 50), (48, 50), (48, 20), (22, 20), (22, 50), (0, 50)]),
}
"""Rectangle, L and U by their number of corners."""


def array(*polygons: shapely.Polygon) -> Polygons:
    result = np.empty(len(polygons), dtype=object)
    result[:] = polygons
    return result


def outlines(mask: NDArray[np.bool_]) -> Polygons:
    return array(*(building.polygon for building in buildings_of(mask, mask.astype(np.uint8))))


def from_mask(*shapes: shapely.Polygon, size: int = 160) -> Polygons:
    mask = rasterize(shapes, out_shape=(size, size)).astype(bool)
    return outlines(mask)


def placed(shape: shapely.Polygon, degrees: float) -> shapely.Polygon:
    turned = affinity.rotate(shape, degrees, origin="centroid")
    return affinity.translate(turned, 80.37 - turned.centroid.x, 80.21 - turned.centroid.y)


def corners(ring: shapely.LinearRing) -> NDArray[np.float64]:
    """Return by how much each corner of a ring is off a right angle, in degrees."""
    points = np.array(ring.coords)[:-1]
    ahead, behind = np.roll(points, -1, axis=0) - points, np.roll(points, 1, axis=0) - points
    cosine = (ahead * behind).sum(axis=1) / np.hypot(*ahead.T) / np.hypot(*behind.T)
    return np.abs(np.degrees(np.arccos(np.clip(cosine, -1, 1))) - 90)


@pytest.mark.parametrize("count", SHAPES)
@pytest.mark.parametrize(("tolerance", "most"), [(1.5, 0.9), (2.0, 1.0)])
def test_a_square_building_gets_its_corners_back(count: int, tolerance: float, most: float) -> None:
    """Pixels can lack the tip of a corner by more than one pixel: small tolerances leave a few tips blunt."""
    right = total = exact = 0
    angles = range(0, 91, 3)
    for degrees in angles:
        true = placed(SHAPES[count], degrees)
        (squared,) = square_up(from_mask(true), tolerance)
        assert squared.area == pytest.approx(true.area, rel=0.05), degrees
        assert squared.hausdorff_distance(true) < 2, degrees
        off = corners(squared.exterior)
        right += int((off < 1).sum())
        total += len(off)
        exact += len(off) == count and off.max() < 1
    assert exact >= most * len(angles)
    assert right >= 0.94 * total


@pytest.mark.parametrize("degrees", [7, 26.565, 45, 83])
def test_the_direction_is_that_of_the_walls(degrees: float) -> None:
    (squared,) = square_up(from_mask(placed(SHAPES[6], degrees)), 2.0)
    edges = np.diff(np.array(squared.exterior.coords), axis=0)
    off = (np.degrees(np.arctan2(edges[:, 1], edges[:, 0])) - degrees + 45) % 90 - 45
    assert np.abs(off).max() < 1


def test_an_exact_corner_by_hand() -> None:
    crooked = shapely.Polygon([(0, 0), (40, 0.5), (40.5, 20.5), (0.5, 20)])
    (squared,) = square_up(array(crooked), 1.0)
    assert len(squared.exterior.coords) == 5
    assert corners(squared.exterior).max() < 1e-4
    assert squared.area == pytest.approx(crooked.area, rel=0.002)
    # Long walls lean by 0.5/40, short ones by -0.5/20. Least squares of distances weight them by length cubed, and two
    # samples at either end do not count.
    lean = (36**3 * 0.5 / 40 - 16**3 * 0.5 / 20) / (36**3 + 16**3)
    edges = np.diff(np.array(squared.exterior.coords), axis=0)
    longest = edges[np.argmax(np.hypot(*edges.T))]
    assert math.tan(math.atan2(longest[1], longest[0])) == pytest.approx(lean, rel=0.1)


def test_walls_along_the_grid_keep_their_coordinates() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 4:25] = True
    mask[5:12, 4:10] = mask[20:24, 15:19] = False
    plain = outlines(mask)
    for tolerance in (1.0, 2.0):
        assert shapely.normalize(square_up(plain, tolerance))[0] == shapely.normalize(plain)[0]


@pytest.mark.parametrize(("jog", "count"), [(0.8, 4), (1.8, 6), (4.0, 6)])
def test_parallel_walls_nearer_than_the_tolerance_become_one(jog: float, count: int) -> None:
    house = shapely.Polygon([(0, 0), (30, 0), (30, jog), (60, jog), (60, 30), (0, 30)])
    (squared,) = square_up(array(house), 1.0)
    assert len(squared.exterior.coords) - 1 == count
    assert corners(squared.exterior).max() < 1e-4
    assert squared.area == pytest.approx(house.area, rel=1e-3)


@pytest.mark.parametrize("radius", [6.3, 12.0, 25.4, 60.0])
def test_a_round_building_stays_round(radius: float) -> None:
    true = shapely.Point(80.2, 79.7).buffer(radius)
    for tolerance in (1.0, 2.0):
        (squared,) = square_up(from_mask(true), tolerance)
        assert corners(squared.exterior).min() > 5  # not one right angle
        assert squared.area == pytest.approx(true.area, rel=MAX_AREA_CHANGE + 0.02)
        assert squared.hausdorff_distance(true) < 1 + tolerance


def test_a_building_of_many_directions_keeps_them() -> None:
    angle, radius = np.arange(10) * math.pi / 5, np.array([70, 30] * 5)
    star = shapely.Polygon(np.stack([80 + radius * np.cos(angle), 80 + radius * np.sin(angle)], axis=1))
    (squared,) = square_up(from_mask(star), 2.0)
    assert squared.hausdorff_distance(star) < 4  # the tips are thinner than a pixel
    assert shapely.area(squared ^ star) < 0.03 * star.area


@pytest.mark.parametrize("degrees", [0, 12, 30])
def test_a_diagonal_wall_is_kept(degrees: float) -> None:
    cut = shapely.Polygon([(0, 0), (70, 0), (70, 30), (50, 50), (0, 50)])
    true = placed(cut, degrees)
    (squared,) = square_up(from_mask(true), 1.0)
    assert squared.area == pytest.approx(true.area, rel=0.02)
    off = np.sort(corners(squared.exterior))
    assert len(off) == 5
    assert off[:3].max() < 1
    np.testing.assert_allclose(off[3:], 45, atol=4)


def test_courtyards_take_the_direction_of_their_building() -> None:
    yard = shapely.Polygon(shapely.box(0, 0, 80, 60).exterior, [shapely.box(20, 15, 55, 42).exterior])
    for degrees in (5, 17, 33, 62):
        (squared,) = square_up(from_mask(placed(yard, degrees)), 1.5)
        assert len(squared.interiors) == 1
        assert len(squared.interiors[0].coords) == len(squared.exterior.coords) == 5
        edges = np.vstack([np.diff(np.array(ring.coords), axis=0) for ring in shapely.get_rings(squared)])
        turned = np.degrees(np.arctan2(edges[:, 1], edges[:, 0])) % 90
        assert np.abs((turned - turned[0] + 45) % 90 - 45).max() < 1e-4


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Draw masks of blobs, some with boxes at an angle, which are nearly square buildings."""
    shape = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    field = ndimage.uniform_filter(rng.random(shape), draw(st.sampled_from([1, 3, 5])))
    mask: NDArray[np.bool_] = field > np.quantile(field, draw(st.floats(0.1, 0.9)))
    if draw(st.booleans()):
        boxes = [
            affinity.rotate(shapely.box(x, y, x + rng.uniform(3, 25), y + rng.uniform(3, 25)), rng.uniform(0, 90))
            for x, y in rng.uniform(0, 40, (4, 2))
        ]
        mask = rasterize(boxes, out_shape=shape).astype(bool) ^ (mask & (rng.random(shape) < 0.1))
    return mask


@settings(max_examples=200, deadline=None)
@given(masks(), st.sampled_from([0.0, 0.5, 1.0, 1.7, 4.0]))
def test_always_valid_near_and_whole(mask: NDArray[np.bool_], tolerance: float) -> None:
    plain = outlines(mask)
    squared = square_up(plain, tolerance)
    assert squared.shape == plain.shape
    assert shapely.is_valid(squared).all()
    assert (shapely.get_type_id(squared) == shapely.GeometryType.POLYGON).all()
    assert not shapely.is_empty(squared).any()
    rings = shapely.get_num_interior_rings
    np.testing.assert_array_equal(rings(squared), rings(plain))
    area = shapely.area(plain)
    assert (np.abs(shapely.area(squared) - area) <= 2 * MAX_AREA_CHANGE * area + 1e-9).all()
    far = shapely.hausdorff_distance(shapely.boundary(plain), shapely.boundary(squared))
    # Walls lie within the tolerance, and half a pixel, of what was between their ends.
    assert far.max(initial=0) <= reach_of(tolerance) + tolerance + 0.5
    points, owner = shapely.get_coordinates(squared, return_index=True)
    away = shapely.distance(shapely.points(points), shapely.boundary(plain)[owner])
    assert away.max(initial=0) <= reach_of(tolerance) + 1e-6
    again = square_up(plain, tolerance)
    np.testing.assert_array_equal(shapely.to_wkb(again), shapely.to_wkb(squared))


@settings(max_examples=60, deadline=None)
@given(masks())
def test_each_building_depends_on_itself_alone(mask: NDArray[np.bool_]) -> None:
    plain = outlines(mask)
    together = square_up(plain, 1.0)
    for number in range(len(plain)):
        alone = square_up(plain[number : number + 1], 1.0)
        assert shapely.to_wkb(alone[0]) == shapely.to_wkb(together[number])


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_where_a_building_stands_does_not_matter(mask: NDArray[np.bool_], dx: int, dy: int) -> None:
    plain = outlines(mask)
    here = square_up(plain, 1.0)
    there = square_up(shapely.transform(plain, lambda xy: xy + np.array([dx, dy])), 1.0)
    back = shapely.transform(there, lambda xy: xy - np.array([dx, dy]))
    assert (shapely.get_num_coordinates(here) == shapely.get_num_coordinates(back)).all()
    assert shapely.area(shapely.symmetric_difference(here, back)).max(initial=0.0) < 1e-4


def test_small_buildings_stay_near_themselves() -> None:
    mask = np.zeros((12, 12), bool)
    mask[1, 1] = mask[3, 3:5] = mask[6:8, 1:3] = mask[6, 6] = mask[7, 7] = True
    plain = outlines(mask)
    for tolerance in (1.0, 5.0, 100.0):
        np.testing.assert_allclose(
            shapely.area(square_up(plain, tolerance)), shapely.area(plain), rtol=2 * MAX_AREA_CHANGE
        )


def test_no_tolerance_and_no_buildings_change_nothing() -> None:
    plain = from_mask(placed(SHAPES[4], 20))
    same = square_up(plain, 0.0)
    assert same is not plain
    assert same[0] is plain[0]
    assert square_up(np.zeros(0, dtype=object), 1.0).shape == (0,)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(SettingError, match="tolerance"):
        square_up(array(shapely.box(0, 0, 4, 4)), tolerance)
