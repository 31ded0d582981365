"""Filters, measures and numbers, against hand-computed cases and PROJ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod, Proj, Transformer
from shapely import Polygon, box

from geoseg.errors import SettingError
from geoseg.footprints import Rules, finish, measure
from geoseg.spool import Outlines, polygons_array

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_300_000)


@dataclass(frozen=True)
class Fake:
    polygon: Polygon
    pixels: int
    probability_sum: int
    first: tuple[int, int]


def square(row: int, col: int, side: int, holes: list[Polygon] | None = None) -> Fake:
    polygon = Polygon(box(col, row, col + side, row + side).exterior, [hole.exterior for hole in holes or []])
    return Fake(polygon, int(polygon.area), int(polygon.area) * 204, (row, col))


def one(polygon: Polygon) -> np.ndarray:
    return polygons_array([polygon])


@pytest.mark.parametrize("code", [32614, 2263, 27572, 5070, 3031])
@pytest.mark.parametrize("side", [10.0, 300.0])
def test_projected_squares_agree_with_the_projection_s_scale(code: int, side: float) -> None:
    """Area and side of a square follow from PROJ's local scale factors, another way to the
    truth."""
    crs = CRS.from_epsg(code)
    west, south, east, north = crs.area_of_use.bounds
    lon, lat = west + 0.4 * (east - west), south + 0.4 * (north - south)
    x, y = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(*_in_units_of(crs, lon, lat))
    area, perimeter = measure(one(box(x, y, x + side, y + side)), crs)
    unit = crs.axis_info[0].unit_conversion_factor
    factors = Proj(crs).get_factors(lon, lat)
    assert area[0] == pytest.approx((side * unit) ** 2 / factors.areal_scale, rel=3e-4)
    assert perimeter[0] == pytest.approx(4 * math.sqrt(area[0]), rel=0.02)


def _in_units_of(crs: CRS, lon: float, lat: float) -> tuple[float, float]:
    """Turn Greenwich degrees into the geographic coordinates of a CRS (grads from Paris, say)."""
    geodetic = crs.geodetic_crs
    factor = math.degrees(geodetic.axis_info[0].unit_conversion_factor)
    meridian = geodetic.prime_meridian
    shift = math.degrees(meridian.longitude * meridian.unit_conversion_factor)
    return (lon - shift) / factor, lat / factor


def test_degree_square_at_the_equator() -> None:
    """One second of arc: 30.92 m along the equator, 30.71 m along a meridian (WGS 84)."""
    second = 1 / 3600
    area, perimeter = measure(one(box(10, 0, 10 + second, second)), "EPSG:4326")
    east = math.radians(second) * 6_378_137
    north = math.radians(second) * 6_378_137 * (1 - 0.00669437999014)
    assert area[0] == pytest.approx(east * north, rel=1e-6)
    assert perimeter[0] == pytest.approx(2 * (east + north), rel=1e-6)


def test_web_mercator_is_not_believed() -> None:
    """At 60° north Web Mercator shows lengths about twice as large, areas four times.

    By the ellipsoid's radii of curvature N and M (Snyder 1987, 4-18 to 4-20,
    https://doi.org/10.3133/pp1395).
    """
    y = Transformer.from_crs(4326, 3857, always_xy=True).transform(10, 60)[1]
    area, perimeter = measure(one(box(0, y - 10, 20, y + 10)), 3857)
    e2 = 0.00669437999014
    w = 1 - e2 * math.sin(math.radians(60)) ** 2
    east = 20 * math.cos(math.radians(60)) / math.sqrt(w)
    north = 20 * math.cos(math.radians(60)) * (1 - e2) / w**1.5
    assert area[0] == pytest.approx(east * north, rel=1e-5)
    assert perimeter[0] == pytest.approx(2 * (east + north), rel=1e-5)


def test_survey_feet() -> None:
    """A 100 ft square is 929.03 m², up to the scale of New York's projection."""
    area, perimeter = measure(one(box(980_000, 200_000, 980_100, 200_100)), "EPSG:2263")
    assert area[0] == pytest.approx(929.03, rel=1e-3)
    assert perimeter[0] == pytest.approx(121.92, rel=1e-3)


def test_grads_and_degrees_give_the_same_area() -> None:
    """NTF in Lambert II, and in grads from Paris."""
    polygon = box(600_000, 2_400_000, 600_050, 2_400_050)
    to_grads = Transformer.from_crs(27572, 4807, always_xy=True)
    grads = shapely.transform(polygon, lambda xy: np.column_stack(to_grads.transform(*xy.T)))
    assert measure(one(grads), 4807)[0] == pytest.approx(measure(one(polygon), 27572)[0], rel=1e-6)
    assert measure(one(polygon), 27572)[0] == pytest.approx(2500, rel=1e-3)


def test_holes_subtract_from_area_and_add_to_perimeter() -> None:
    shell, hole = box(5e5, 3e6, 5e5 + 20, 3e6 + 20), box(5e5 + 5, 3e6 + 5, 5e5 + 15, 3e6 + 15)
    polygon = Polygon(shell.exterior, [hole.exterior])
    outer = measure(one(shell), 32614)
    inner = measure(one(hole), 32614)
    area, perimeter = measure(polygons_array([polygon, shell]), 32614)
    assert area == pytest.approx([outer[0][0] - inner[0][0], outer[0][0]])
    assert perimeter == pytest.approx([outer[1][0] + inner[1][0], outer[1][0]])


def test_without_crs_units_are_those_of_the_coordinates() -> None:
    area, perimeter = measure(one(box(0, 0, 3, 4)), None)
    assert (area[0], perimeter[0]) == (12, 14)


def test_local_crs_is_planar_in_its_unit() -> None:
    local = 'LOCAL_CS["site",UNIT["foot",0.3048]]'
    area, perimeter = measure(one(box(0, 0, 10, 10)), local)
    assert area[0] == pytest.approx(100 * 0.3048**2)
    assert perimeter[0] == pytest.approx(40 * 0.3048)


def test_outside_the_domain_is_not_a_number() -> None:
    nowhere, here = box(1e30, 1e30, 2e30, 2e30), box(5e5, 3e6, 5e5 + 1, 3e6 + 1)
    area, perimeter = measure(polygons_array([nowhere, here]), 32614)
    assert np.isnan(area).tolist() == np.isnan(perimeter).tolist() == [True, False]


def test_no_polygons_measure_nothing() -> None:
    area, perimeter = measure(polygons_array([]), 32614)
    assert area.shape == perimeter.shape == (0,)


def test_unknown_crs_is_quoted() -> None:
    with pytest.raises(SettingError, match="'EPSG:1'"):
        measure(one(box(0, 0, 1, 1)), "EPSG:1")


@settings(max_examples=30, deadline=None)
@given(x=st.floats(2e5, 8e5), y=st.floats(1e5, 7e6), radius=st.floats(2, 200), sides=st.integers(3, 40))
def test_agrees_with_pyproj_ring_by_ring(x: float, y: float, radius: float, sides: int) -> None:
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    polygon = Polygon(np.column_stack((x + radius * np.cos(angles), y + radius * np.sin(angles))))
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    lonlat = shapely.transform(polygon, lambda xy: np.column_stack(to_degrees.transform(*xy.T)))
    expected = Geod(ellps="WGS84").geometry_area_perimeter(lonlat)
    area, perimeter = measure(one(polygon), 32633)
    assert area[0] == pytest.approx(abs(expected[0]), rel=1e-6, abs=1e-3)
    assert perimeter[0] == pytest.approx(expected[1], rel=1e-9)


def test_attributes_of_a_square() -> None:
    """20 × 20 pixels of half a metre: 100 m², 40 m, up to UTM's scale of 0.9996."""
    (result,) = finish([Outlines.of([square(4, 6, 20)])], UTM, "EPSG:32614")
    assert result.id.tolist() == [1]
    assert result.area_m2[0] == pytest.approx(100 / 0.9996**2, abs=2e-3)
    assert result.perimeter_m[0] == pytest.approx(40 / 0.9996, abs=2e-3)
    assert result.probability.tolist() == [0.8]
    assert result.polygons[0].bounds == (500_003, 3_299_988, 500_013, 3_299_998)


@pytest.mark.parametrize(
    "affine",
    [UTM, Affine(0.5, 0, 5e5, 0, 0.5, 3.3e6), Affine(0.4, 0.3, 5e5, 0.3, -0.4, 3.3e6)],
    ids=["north-up", "south-up", "rotated"],
)
def test_shells_turn_left_and_holes_right(affine: Affine) -> None:
    courtyard = square(0, 0, 30, holes=[box(5, 5, 15, 15)])
    (result,) = finish([Outlines.of([courtyard])], affine, "EPSG:32614")
    polygon = result.polygons[0]
    assert polygon.is_valid
    assert polygon.exterior.is_ccw
    assert not polygon.interiors[0].is_ccw
    assert result.area_m2[0] == pytest.approx(800 * 0.25, rel=1e-3)


def test_small_buildings_go_and_numbers_have_no_gaps() -> None:
    sides = [2, 20, 4, 30, 3]  # m²: 1, 100, 4, 225, 2.25
    batches = [Outlines.of([square(0, 40 * i, side)]) for i, side in enumerate(sides)]
    results = list(finish(batches, UTM, "EPSG:32614", Rules(min_area_m2=4)))
    assert [result.id.tolist() for result in results] == [[1], [2], [3]]
    assert [round(result.area_m2[0]) for result in results] == [100, 4, 225]


def test_small_holes_are_filled_before_small_buildings_go() -> None:
    # 10 × 10 pixels of which 8 × 8 are a hole: 9 m² as they are, 25 m² once filled.
    ring = square(0, 0, 10, holes=[box(1, 1, 9, 9)])
    two = square(50, 50, 40, holes=[box(55, 55, 59, 59), box(65, 65, 75, 75)])
    batch = Outlines.of([ring, two])
    (result,) = finish([batch], UTM, "EPSG:32614", Rules(min_area_m2=20, min_hole_m2=17))
    assert shapely.get_num_interior_rings(result.polygons).tolist() == [0, 1]
    assert result.area_m2 == pytest.approx([25, 400 - 25], rel=1e-3)
    (result,) = finish([batch], UTM, "EPSG:32614", Rules(min_area_m2=20))
    assert shapely.get_num_interior_rings(result.polygons).tolist() == [2]


def test_thresholds_are_square_metres_on_the_ground() -> None:
    """In Web Mercator at 60° north a pixel of 1 unit covers a quarter of a square metre."""
    y = Transformer.from_crs(4326, 3857, always_xy=True).transform(0, 60)[1]
    affine = Affine(1, 0, 0, 0, -1, y)
    batch = Outlines.of([square(0, 0, 10), square(0, 20, 20)])  # 25 and 100 m²
    (result,) = finish([batch], affine, 3857, Rules(min_area_m2=26))
    assert result.area_m2 == pytest.approx([100], rel=0.01)


def test_no_written_area_is_below_the_minimum() -> None:
    def shrink(polygons: np.ndarray) -> np.ndarray:
        return shapely.buffer(polygons, -1, join_style="mitre")

    batch = Outlines.of([square(0, 0, 10), square(0, 20, 12), square(0, 40, 2)])
    rules = Rules(min_area_m2=20, simplify=shrink)
    (result,) = finish([batch], UTM, "EPSG:32614", rules)
    assert result.area_m2 == pytest.approx([25], rel=1e-3)
    (result,) = finish([batch], UTM, "EPSG:32614", Rules(simplify=shrink))
    assert len(result) == 2  # the third became empty


def test_simplify_must_return_as_many() -> None:
    with pytest.raises(SettingError, match="2 outlines gave 1"):
        list(
            finish(
                [Outlines.of([square(0, 0, 5), square(0, 9, 5)])],
                UTM,
                None,
                Rules(simplify=lambda polygons: polygons[:1]),
            )
        )


def test_batches_are_taken_one_at_a_time() -> None:
    taken = []

    def source() -> Iterator[Outlines]:
        for row in range(1000):
            taken.append(row)
            yield Outlines.of([square(row * 10, 0, 5)])

    results = finish(source(), UTM, "EPSG:32614")
    next(results)
    next(results)
    assert len(taken) == 2


def test_nothing_comes_of_nothing() -> None:
    assert list(finish([], UTM, "EPSG:32614")) == []
    assert list(finish([Outlines.of([])], UTM, "EPSG:32614", Rules(min_area_m2=3))) == []


def test_ids_do_not_depend_on_batches() -> None:
    buildings = [square(0, 30 * i, 3 + i % 9) for i in range(60)]
    rules = Rules(min_area_m2=5)

    def rows(size: int) -> list[tuple[int, float]]:
        parts = (Outlines.of(buildings[i : i + size]) for i in range(0, 60, size))
        return [
            (int(number), float(area))
            for result in finish(parts, UTM, "EPSG:32614", rules)
            for number, area in zip(result.id, result.area_m2, strict=True)
        ]

    assert rows(1) == rows(7) == rows(60)
    assert [number for number, _ in rows(7)] == list(range(1, len(rows(7)) + 1))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_rules_quote_bad_values(bad: float) -> None:
    with pytest.raises(SettingError, match=f"min_hole_m2 is {bad}"):
        Rules(min_hole_m2=bad)
