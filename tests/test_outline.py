"""Straightened outlines: valid, near the old ones, never over a neighbour."""

from __future__ import annotations

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
from geoseg.outline import MAX_AREA_CHANGE, simplify
from geoseg.polygonize import buildings_of

Polygons = NDArray[np.object_]


def outlines(mask: NDArray[np.bool_]) -> Polygons:
    found = buildings_of(mask, mask.astype(np.uint8))
    polygons = np.empty(len(found), dtype=object)
    polygons[:] = [building.polygon for building in found]
    return polygons


def turned(width: float, height: float, degrees: float) -> shapely.Polygon:
    box = affinity.rotate(shapely.box(0, 0, width, height), degrees, origin="centroid")
    return affinity.translate(box, 45.37, 55.21)


def overlap(polygons: Polygons) -> float:
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    pair = one < other
    common = shapely.intersection(polygons[one[pair]], polygons[other[pair]])
    return float(shapely.area(common).sum())


@pytest.mark.parametrize("degrees", [3, 10, 17, 26.565, 30, 45, 71])
def test_stairs_become_straight_walls(degrees: float) -> None:
    true = turned(60.3, 35.7, degrees)
    stairs = outlines(rasterize([true], out_shape=(160, 160)).astype(bool))
    (straight,) = simplify(stairs, 1.0)
    assert len(straight.exterior.coords) - 1 <= 12 < len(stairs[0].exterior.coords)
    assert straight.area == pytest.approx(true.area, rel=0.025)
    assert straight.hausdorff_distance(true) < 0.8


def test_walls_along_the_grid_keep_their_corners() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 4:25] = True
    mask[5:12, 4:10] = False
    mask[20:24, 15:19] = False
    stairs = outlines(mask)
    assert simplify(stairs, 1.0)[0] == stairs[0]


def test_a_jog_of_one_pixel_is_levelled() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:30, 5:30] = mask[6:30, 30:55] = True
    (straight,) = simplify(outlines(mask), 1.0)
    assert len(straight.exterior.coords) - 1 == 4


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    field = ndimage.uniform_filter(rng.random(shape), draw(st.sampled_from([1, 3, 5])))
    return field > np.quantile(field, draw(st.floats(0.1, 0.9)))


@settings(max_examples=200, deadline=None)
@given(masks(), st.sampled_from([0.5, 0.7, 1.0, 1.5, 3.0]))
def test_valid_near_and_on_own_ground(mask: NDArray[np.bool_], tolerance: float) -> None:
    stairs = outlines(mask)
    if not len(stairs):
        return
    straight = simplify(stairs, tolerance)
    assert shapely.is_valid(straight).all()
    assert (shapely.get_type_id(straight) == shapely.GeometryType.POLYGON).all()
    assert not shapely.is_empty(straight).any()
    before = shapely.area(stairs)
    assert (np.abs(shapely.area(straight) - before) <= MAX_AREA_CHANGE * before + 1e-9).all()
    assert (shapely.get_num_coordinates(straight) <= shapely.get_num_coordinates(stairs)).all()
    rings = shapely.get_num_interior_rings
    np.testing.assert_array_equal(rings(straight), rings(stairs))
    corners, owner = shapely.get_coordinates(stairs, return_index=True)
    gap = shapely.distance(shapely.points(corners), shapely.boundary(straight)[owner])
    assert gap.max() <= tolerance + 1e-6
    # Neighbours that touch at a corner or stand a pixel apart included.
    assert overlap(straight) < 1e-6


@settings(max_examples=50, deadline=None)
@given(masks())
def test_each_outline_depends_on_itself_alone(mask: NDArray[np.bool_]) -> None:
    stairs = outlines(mask)
    together = simplify(stairs, 1.0)
    for number in range(len(stairs)):
        alone = simplify(stairs[number : number + 1], 1.0)
        assert shapely.to_wkb(alone[0]) == shapely.to_wkb(together[number])


def test_small_buildings_stay() -> None:
    mask = np.zeros((12, 12), bool)
    mask[1, 1] = mask[3, 3:5] = mask[6:8, 1:3] = mask[6, 6] = mask[7, 7] = True
    stairs = outlines(mask)
    for tolerance in (1.0, 5.0, 100.0):
        straight = simplify(stairs, tolerance)
        assert (shapely.area(straight) == shapely.area(stairs)).all()


@pytest.mark.parametrize("tolerance", [0.0, 0.49])
def test_below_half_a_pixel_nothing_changes(tolerance: float) -> None:
    stairs = outlines(np.random.default_rng(0).random((20, 20)) < 0.6)
    straight = simplify(stairs, tolerance)
    assert straight is not stairs
    assert list(straight) == list(stairs)


def test_no_buildings() -> None:
    assert simplify(np.zeros(0, dtype=object), 1.0).shape == (0,)


def test_what_cannot_be_done_is_refused() -> None:
    square = np.array([shapely.box(0, 0, 4, 4)], dtype=object)
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="tolerance"):
            simplify(square, tolerance)
    for polygon in (shapely.box(0, 0, 1.5, 3), turned(10, 10, 45)):
        with pytest.raises(SettingError, match="pixel edges"):
            simplify(np.array([polygon], dtype=object), 1.0)
