"""Metrics of outlines against cases computed by hand, simple loops and properties; then through files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from shapely import affinity

from geoseg.cli import main
from geoseg.errors import SettingError
from geoseg.evaluate import evaluate
from geoseg.polygon_metrics import (
    Buildings,
    PolygonScore,
    average_precision,
    boundary_iou,
    compare,
    complexity_iou,
    hausdorff,
    one_to_one,
    overlaps,
    polis,
    tangent_angle,
    vertices,
)

SQUARE = shapely.box(0, 0, 10, 10)
COURT = shapely.Polygon(SQUARE.exterior, [[(4, 4), (6, 4), (6, 6), (4, 6)]])
TWO_PARTS = shapely.MultiPolygon([SQUARE, shapely.box(20, 0, 30, 10)])
UTM = "EPSG:32633"
EAST, NORTH = 400_000, 5_800_000


def many(*shapes: Any) -> np.ndarray:
    array = np.empty(len(shapes), object)
    array[:] = shapes
    return array


def moved(shape: Any, x: float, y: float = 0) -> Any:
    return affinity.translate(shape, x, y)


# --- by hand -----------------------------------------------------------------------------------------------------


def test_squares_one_apart() -> None:
    a, b = many(SQUARE), many(moved(SQUARE, 1))
    pairs, iou = overlaps(a, b)
    assert pairs.tolist() == [[0, 0]]
    assert iou[0] == pytest.approx(90 / 110)
    # On either side two vertices are 1 away, and two lie on the other outline.
    assert polis(a, b)[0] == pytest.approx(0.5)
    assert hausdorff(a, b)[0] == pytest.approx(1)
    assert tangent_angle(a, b)[0] == pytest.approx(0)
    # Frames of 36 m² each, which share 90 m² less what is inner to one of them, 9 × 8 m².
    assert boundary_iou(a, b, 1.0)[0] == pytest.approx(18 / 54)


def test_a_vertex_more_on_a_straight_wall() -> None:
    more = many(shapely.Polygon([(0, 0), (5, 0), (10, 0), (10, 10), (0, 10)]))
    a = many(SQUARE)
    assert vertices(more).tolist() == [5]
    assert polis(more, a)[0] == 0
    assert complexity_iou(np.ones(1), vertices(more), vertices(a))[0] == pytest.approx(8 / 9)
    figures = compare(Buildings(more), Buildings(a)).summary()
    assert figures["n_ratio"] == 5 / 4
    assert figures["c_iou"] == pytest.approx(8 / 9)


def test_a_vertex_more_off_the_wall() -> None:
    # Its own four vertices are on the other outline, the fifth is 2 from it; back, all four are.
    peak = many(shapely.Polygon([(0, 0), (10, 0), (10, 10), (5, 12), (0, 10)]))
    assert polis(peak, many(SQUARE))[0] == pytest.approx(2 / 5 / 2)
    assert hausdorff(peak, many(SQUARE))[0] == pytest.approx(2)
    assert tangent_angle(peak, many(SQUARE))[0] == pytest.approx(math.degrees(math.atan2(2, 5)))


@pytest.mark.parametrize("rise", [1.0, 2.0, 5.0])
def test_a_wall_turned_by_a_known_angle(rise: float) -> None:
    truth = many(shapely.box(0, 0, 20, 10))
    found = many(shapely.Polygon([(0, 0), (20, 0), (20, 10 + rise), (0, 10)]))
    assert tangent_angle(found, truth)[0] == pytest.approx(math.degrees(math.atan2(rise, 20)))
    assert hausdorff(found, truth)[0] == pytest.approx(rise)


def test_a_hole_belongs_to_the_outline_and_not_to_the_area() -> None:
    whole, court = many(SQUARE), many(COURT)
    assert overlaps(whole, court)[1][0] == pytest.approx(0.96)
    assert vertices(court).tolist() == [8]
    # Four of the court's eight vertices are 4 away from the other outline.
    assert polis(whole, court)[0] == polis(court, whole)[0] == pytest.approx(2 / 2)
    assert hausdorff(whole, court)[0] == hausdorff(court, whole)[0] == pytest.approx(4)
    assert compare(Buildings(whole), Buildings(court)).summary()["c_iou"] == pytest.approx(0.96 * (1 - 4 / 12))
    # 36 m² within 1 m of the shell, and around the hole strips of 4 · 2 m² and four quarters of a circle.
    assert boundary_iou(whole, court, 1.0)[0] == pytest.approx(36 / (36 + 8 + math.pi), abs=0.001)


def test_several_parts_are_one_building() -> None:
    one, two = many(SQUARE), many(TWO_PARTS)
    pairs, iou = overlaps(one, two)
    assert (pairs.tolist(), iou[0]) == ([[0, 0]], pytest.approx(0.5))
    assert polis(one, two)[0] == pytest.approx((10 + 10 + 20 + 20) / 8 / 2)
    assert hausdorff(two, one)[0] == pytest.approx(20)
    assert vertices(two).tolist() == [8]
    assert compare(Buildings(one), Buildings(two)).tp == 1


def test_repeated_points_are_one_vertex() -> None:
    twice = shapely.Polygon([(0, 0), (0, 0), (10, 0), (10, 0), (10, 0), (10, 10), (0, 10)])
    assert vertices(many(twice, SQUARE)).tolist() == [4, 4]
    assert polis(many(twice), many(moved(SQUARE, 1)))[0] == pytest.approx(0.5)


def test_what_overlaps_by_exactly_a_half_is_found() -> None:
    found = many(shapely.box(0, 0, 10, 5), shapely.box(100, 0, 110, 4.9), shapely.box(10, 0, 20, 10))
    pairs, _iou = overlaps(found, many(SQUARE, moved(SQUARE, 100)))
    assert pairs.tolist() == [[0, 0]]
    assert len(overlaps(many(), many(SQUARE))[0]) == len(overlaps(many(SQUARE), many())[0]) == 0
    with pytest.raises(SettingError, match=r"1\.5"):
        overlaps(found, found, 1.5)


def test_the_better_of_two_is_matched() -> None:
    found = many(moved(SQUARE, 2), moved(SQUARE, 1), moved(SQUARE, 500))
    score = compare(Buildings(found), Buildings(many(SQUARE, moved(SQUARE, 900))))
    assert (score.tp, score.fp, score.fn) == (1, 2, 1)
    assert (score.precision, score.recall, score.f1) == (1 / 3, 1 / 2, 2 / 5)
    assert score.matches.iou[0] == pytest.approx(90 / 110)


def test_nothing_on_one_side() -> None:
    nobody, somebody = Buildings(many()), Buildings(many(SQUARE))
    missed, false, empty = compare(nobody, somebody), compare(somebody, nobody), compare(nobody, nobody)
    assert (missed.recall, missed.summary()["ap"]) == (0, 0)
    assert math.isnan(missed.precision)
    assert false.precision == 0
    assert math.isnan(false.summary()["ap"])
    for score in (missed, false, empty):
        assert score.as_dict()["polis_m"] is None
        json.dumps(score.as_dict(), allow_nan=False)


def test_area_that_counts() -> None:
    """A pair counts where its reference is, a false prediction where it is."""
    truth = Buildings(many(SQUARE, moved(SQUARE, 50), moved(SQUARE, 100)))
    found = Buildings(many(SQUARE, moved(SQUARE, 51), moved(SQUARE, 200), moved(SQUARE, 300)))
    score = compare(
        found,
        truth,
        predicted_inside=np.array([False, True, True, False]),
        reference_inside=np.array([True, False, True]),
    )
    assert (score.tp, score.fp, score.fn) == (1, 1, 1)
    assert score.matches.iou.tolist() == [1]
    assert (score.predicted, score.reference) == (2, 2)
    # Only one of the four ranks as false at a low threshold; the second matches what does not count, below 0.85.
    assert score.hits[:, 0].tolist() == [1, -1, 0, -1]
    assert score.hits[:, -1].tolist() == [1, 0, 0, -1]
    with pytest.raises(SettingError, match="4 buildings need as many"):
        compare(found, truth, predicted_inside=np.array([True]))


@pytest.mark.parametrize(
    ("scores", "hits", "references", "expected"),
    [
        ([0.9, 0.8], [1, 0], 2, 51 / 101),
        ([0.8, 0.9], [1, 0], 2, 51 / 101 / 2),
        ([0.8, 0.8], [1, 0], 2, 51 / 101 / 2),
        ([0.9, math.nan], [1, 0], 2, 51 / 101 / 2),
        ([0.9, 0.8, 0.7], [1, 0, 1], 2, (51 + 50 * 2 / 3) / 101),
        ([0.9, 0.8, 0.7], [0, 1, 1], 2, 2 / 3),
        ([0.9, 0.8], [-1, 1], 1, 1.0),
        ([], [], 3, 0.0),
        ([0.5], [0], 0, math.nan),
    ],
)
def test_average_precision(scores: list[float], hits: list[int], references: int, expected: float) -> None:
    found = average_precision(np.array(scores), np.array(hits, np.int8)[:, None], references)
    assert found.tolist() == pytest.approx([expected], nan_ok=True)


def test_average_precision_from_buildings() -> None:
    # IoUs of 9/11 and 2/3: found at seven and four of the ten thresholds.
    truth = Buildings(many(SQUARE, moved(SQUARE, 100)))
    shapes = many(moved(SQUARE, 1), moved(SQUARE, 102), moved(SQUARE, 300))
    sure = compare(Buildings(shapes, np.array([0.9, 0.8, 0.1])), truth).summary()
    assert sure["ap50"] == 1
    assert sure["ap75"] == pytest.approx(51 / 101)
    assert sure["ap"] == pytest.approx((4 * 1 + 3 * 51 / 101) / 10)
    wrong = compare(Buildings(shapes, np.array([0.1, 0.2, 0.9])), truth).summary()
    assert wrong["ap50"] == pytest.approx(2 / 3)
    unknown = compare(Buildings(shapes), truth).summary()
    assert unknown["ap50"] == pytest.approx(2 / 3)


def test_scores_add_up() -> None:
    def part(seed: int) -> tuple[Buildings, Buildings]:
        rng = np.random.default_rng(seed)
        truth = many(*(moved(SQUARE, 40 * i, 1000 * seed) for i in range(9)))
        found = many(*(moved(s, *rng.uniform(-3, 3, 2)) for s in truth[rng.random(9) > 0.3]))
        return Buildings(found, rng.random(len(found))), Buildings(truth)

    halves = [part(1), part(2)]
    both = compare(
        Buildings(
            np.concatenate([found.outlines for found, _ in halves]),
            np.concatenate([found.scores for found, _ in halves]),
        ),
        Buildings(np.concatenate([truth.outlines for _, truth in halves])),
    )
    added = compare(*halves[0]) + compare(*halves[1]) + PolygonScore()
    assert added.as_dict() == pytest.approx(both.as_dict())
    assert 0 < both.f1 < 1


@pytest.mark.parametrize(("function", "value"), [(hausdorff, 0.0), (tangent_angle, -1.0), (boundary_iou, 0.0)])
def test_lengths_are_above_nothing(function: Any, value: float) -> None:
    with pytest.raises(SettingError, match="above 0"):
        function(many(SQUARE), many(SQUARE), value)
    with pytest.raises(SettingError, match="2 outlines cannot have 1 scores"):
        Buildings(many(SQUARE, SQUARE), np.ones(1))


# --- against simple loops ----------------------------------------------------------------------------------------


@st.composite
def star(draw: st.DrawFn) -> Any:
    """A polygon around the origin, in places concave, now and then with a hole."""
    count = draw(st.integers(3, 9))
    radii = draw(st.lists(st.integers(40, 90), min_size=count, max_size=count))
    turn = draw(st.floats(0, 6))
    angles = turn + 2 * np.pi * np.arange(count) / count
    shell = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1) / 10
    hole = [[(-1, -1), (1, -1), (0.5, 1)]] if draw(st.booleans()) else []
    shape = shapely.Polygon(shell, hole)
    return shape if shape.is_valid else shapely.Polygon(shell)


def rings_of(shape: Any) -> list[list[tuple[float, float]]]:
    return [list(ring.coords)[:-1] for ring in (shape.exterior, *shape.interiors)]


def nearest(point: tuple[float, float], shape: Any) -> tuple[float, tuple[float, float]]:
    """Distance to the outline and where on it, edge by edge."""
    best = (math.inf, (0.0, 0.0))
    for ring in rings_of(shape):
        for (ax, ay), (bx, by) in zip(ring, [*ring[1:], ring[0]], strict=True):
            dx, dy = bx - ax, by - ay
            share = ((point[0] - ax) * dx + (point[1] - ay) * dy) / (dx * dx + dy * dy)
            share = min(1.0, max(0.0, share))
            foot = (ax + share * dx, ay + share * dy)
            best = min(best, (math.dist(point, foot), foot))
    return best


def steps_of(shape: Any, spacing: float) -> list[list[tuple[float, float]]]:
    walks = []
    for ring in rings_of(shape):
        walk = [ring[0]]
        for (ax, ay), (bx, by) in zip(ring, [*ring[1:], ring[0]], strict=True):
            count = max(1, math.ceil(math.dist((ax, ay), (bx, by)) / spacing))
            walk += [(ax + (bx - ax) * k / count, ay + (by - ay) * k / count) for k in range(1, count + 1)]
        walks.append(walk)
    return walks


def slow_polis(a: Any, b: Any) -> float:
    sides = []
    for one, two in ((a, b), (b, a)):
        away = [nearest(corner, two)[0] for ring in rings_of(one) for corner in ring]
        sides.append(sum(away) / (2 * len(away)))
    return sum(sides)


def slow_hausdorff(a: Any, b: Any, spacing: float) -> float:
    return max(nearest(p, two)[0] for one, two in ((a, b), (b, a)) for walk in steps_of(one, spacing) for p in walk)


def slow_angle(found: Any, truth: Any, spacing: float) -> float:
    worst = math.nan
    for walk in steps_of(found, spacing):
        feet = [nearest(p, truth)[1] for p in walk]
        for p, q, f, g in zip(walk, walk[1:], feet, feet[1:], strict=False):
            here, there = math.dist(p, q), math.dist(f, g)
            if min(here, there) > 0 and 0.5 < here / there < 2:
                cosine = abs((q[0] - p[0]) * (g[0] - f[0]) + (q[1] - p[1]) * (g[1] - f[1])) / here / there
                worst = np.nanmax([worst, math.degrees(math.acos(min(1.0, cosine)))])
    return worst


@given(star(), star(), st.floats(-1, 1), st.floats(-1, 1))
def test_loops_agree(one: Any, other: Any, x: float, y: float) -> None:
    two = moved(other, x, y)
    a, b = many(one), many(two)
    assert polis(a, b)[0] == pytest.approx(slow_polis(one, two), abs=1e-9)
    assert hausdorff(a, b, 0.7)[0] == pytest.approx(slow_hausdorff(one, two, 0.7), abs=1e-9)


@pytest.mark.parametrize("turn", [1.0, 7.0, 20.0, 45.0])
def test_loops_agree_on_angles_of_a_turned_building(turn: float) -> None:
    # Off any symmetry, so that no point is equally near to two walls.
    truth = shapely.Polygon([(0, 0), (17.3, 0), (17.3, 6.1), (9.9, 6.1), (9.9, 12.7), (0, 12.7)])
    found = affinity.rotate(moved(truth, 0.23, 0.11), turn, origin=(7.7, 5.3))
    angle = tangent_angle(many(found), many(truth), 0.31)[0]
    assert angle == pytest.approx(slow_angle(found, truth, 0.31), abs=1e-5)
    assert angle >= turn - 1e-9


@given(star(), st.floats(0.1, 3))
def test_equal_buildings_have_no_error(shape: Any, spacing: float) -> None:
    a = many(shape)
    assert polis(a, a)[0] == pytest.approx(0, abs=1e-12)
    assert hausdorff(a, a, spacing)[0] == pytest.approx(0, abs=1e-9)
    assert tangent_angle(a, a, spacing)[0] == pytest.approx(0, abs=1e-3)
    assert boundary_iou(a, a)[0] == pytest.approx(1)
    figures = compare(Buildings(a), Buildings(a)).summary()
    for name in ("precision", "recall", "f1", "ap", "iou", "c_iou", "n_ratio"):
        assert figures[name] == pytest.approx(1)


@given(star(), star(), st.floats(0.2, 5), st.floats(-100, 100))
def test_symmetry_place_and_scale(one: Any, two: Any, scale: float, shift: float) -> None:
    a, b = many(one), many(two)
    assert polis(a, b)[0] == pytest.approx(polis(b, a)[0])
    assert hausdorff(a, b)[0] == pytest.approx(hausdorff(b, a)[0])
    assert polis(a, b)[0] <= hausdorff(a, b)[0] + 1e-12
    larger = [many(moved(affinity.scale(s, scale, scale, origin=(0, 0)), shift, -shift)) for s in (one, two)]
    assert polis(*larger)[0] == pytest.approx(scale * polis(a, b)[0], abs=1e-9)
    # In how many parts an edge is cut may hang on its last digit; half a step is what that may change.
    assert hausdorff(*larger, spacing=0.5 * scale)[0] == pytest.approx(scale * hausdorff(a, b)[0], abs=0.25 * scale)
    iou, scaled = (overlaps(*pair, 0.01)[1] for pair in ((a, b), larger))
    assert scaled == pytest.approx(iou)
    assert boundary_iou(*larger, scale)[0] == pytest.approx(boundary_iou(a, b, 1.0)[0], rel=1e-6)


@given(st.integers(0, 10_000))
def test_matching_is_that_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = np.unique(rng.integers(0, 6, (rng.integers(0, 25), 2)), axis=0).astype(np.int64)
    first, second = rng.integers(0, 3, len(pairs)).astype(float), rng.random(len(pairs))
    expected: list[int] = []
    for index in sorted(range(len(pairs)), key=lambda i: (-first[i], -second[i])):
        if not any((pairs[index] == pairs[other]).any() for other in expected):
            expected.append(index)
    assert one_to_one(pairs, first, second).tolist() == expected


@given(st.integers(0, 10_000))
def test_average_precision_is_that_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    scores, hits = rng.permutation(count) / count, rng.integers(0, 2, count)
    references = int(hits.sum() + rng.integers(1, 5))
    curve = []
    right = 0
    for done, index in enumerate(np.argsort(-scores), 1):
        right += int(hits[index])
        curve.append((right, right / done))
    total = 0.0
    for step in range(101):
        total += max((p for found, p in curve if 100 * found >= step * references), default=0.0)
    got = average_precision(scores, hits[:, None].astype(np.int8), references)[0]
    assert got == pytest.approx(total / 101)


def test_intersections_of_boxes_are_those_of_sums() -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 60, (2, 80, 2))
    sizes = rng.uniform(3, 20, (2, 80, 2))
    a, b = (shapely.box(*c.T, *(c + s).T) for c, s in zip(corners, sizes, strict=True))
    expected = {}
    for i in range(80):
        for j in range(80):
            low = np.maximum(corners[0, i], corners[1, j])
            high = np.minimum(corners[0, i] + sizes[0, i], corners[1, j] + sizes[1, j])
            common = float(np.prod(np.maximum(high - low, 0)))
            iou = common / (sizes[0, i].prod() + sizes[1, j].prod() - common)
            if iou >= 0.2:
                expected[i, j] = iou
    pairs, iou = overlaps(a, b, 0.2)
    assert len(expected) > 5
    assert dict(zip(map(tuple, pairs.tolist()), iou.tolist(), strict=True)) == pytest.approx(expected)


# --- through files -----------------------------------------------------------------------------------------------


def house(x: float, y: float, width: float = 12, height: float = 9) -> Any:
    return shapely.box(EAST + x, NORTH + y, EAST + x + width, NORTH + y + height)


def save(path: Path, shapes: list[Any], crs: str | None = UTM, to: str | None = None, **columns: Any) -> Path:
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)
    frame = frame if to is None else frame.to_crs(to)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif crs is None:
        with pytest.warns(UserWarning, match="crs"):
            frame.to_file(path, engine="pyogrio", SRID=-1)
    else:
        frame.to_file(path, engine="pyogrio")
    return path


def save_mask(path: Path, mask: np.ndarray, valid: np.ndarray | None = None, gsd: float = 0.5) -> Path:
    place = Affine(gsd, 0, EAST, 0, -gsd, NORTH + gsd * mask.shape[0])
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", "GTiff", *mask.shape[::-1], 1, crs=UTM, transform=place, dtype="uint8") as file,
    ):
        file.write(mask.astype(np.uint8), 1)
        if valid is not None:
            file.write_mask(valid)
    return path


def call(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--progress", "none"])
    assert result.exit_code == 0, result.output
    return result


def test_two_geopackages_in_different_crs(tmp_path: Path) -> None:
    reference = save(tmp_path / "truth.gpkg", [house(0, 0), house(40, 0), house(80, 0), house(0, 60)])
    found = save(
        tmp_path / "found.gpkg",
        [house(1, 0), house(40, 1), house(200, 0)],
        to="EPSG:3857",
        probability=[0.9, 0.8, 0.3],
    )
    result = call(found, reference, "--gsd", "0.5", "--json")
    total = json.loads(result.stdout)["polygons"]["total"]
    assert (total["predicted"], total["reference"], total["matched"]) == (3, 4, 2)
    assert (total["precision"], total["recall"]) == (pytest.approx(2 / 3), 1 / 2)
    # UTM is 0.04 % short here, and houses were cut in Mercator; a metre is a metre to that.
    ious = [9 * 11 / (2 * 9 * 12 - 9 * 11), 12 * 8 / (2 * 9 * 12 - 12 * 8)]
    assert total["iou"] == pytest.approx(np.mean(ious), abs=1e-4)
    assert total["c_iou"] == pytest.approx(total["iou"])
    assert total["polis_m"] == pytest.approx(0.5, rel=1e-3)
    assert total["polis_m_median"] == pytest.approx(0.5, rel=1e-3)
    assert total["hausdorff_m"] == pytest.approx(1, rel=1e-3)
    assert total["hausdorff_m_p95"] == pytest.approx(1, rel=1e-3)
    assert total["n_ratio"] == 1
    assert total["tangent_angle_deg"] == pytest.approx(0, abs=0.01)
    # Both are found at IoUs up to 0.8.
    assert total["ap50"] == pytest.approx(51 / 101)
    text = call(found, reference, "--gsd", "0.5").stdout
    rows = [line.split() for line in text.splitlines() if line]
    assert ["total", "3", "4", "2", "0.6667", "0.5000", "0.5714", "0.3535"] in rows
    assert any(row[0] == "outlines" and "C-IoU" in row for row in rows)
    without = json.loads(call(found, reference, "--gsd", "0.5", "--no-polygons", "--json").stdout)
    assert without["polygons"] is None


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "geojson", "parquet"])
def test_probability_ranks_in_any_format(tmp_path: Path, ending: str) -> None:
    to = "EPSG:4326" if ending == "geojson" else None
    shapes = [house(200, 0), house(0, 0)]
    reference = save(tmp_path / "r.gpkg", [house(0, 0)])
    ranked = save(tmp_path / f"p.{ending}", shapes, to=to, probability=[0.2, 0.9])
    result = evaluate(ranked, reference, gsd=1.0)
    assert result.polygons["total"]["total"].summary()["ap"] == 1
    assert result.notes == ()
    blind = save(tmp_path / f"q.{ending}", shapes, to=to, probability=["low", "high"])
    result = evaluate(blind, reference, gsd=1.0)
    assert result.polygons["total"]["total"].summary()["ap"] == 0.5
    assert result.notes == (f"q.{ending}: no probability to rank buildings by, so the average precision ranks none",)


def test_metres_are_those_on_the_ground(tmp_path: Path) -> None:
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(10, 60)
    # 40 × 40 Mercator metres at 60° north are about 20 × 20 on the ground, and 4 are 2.
    one = save(tmp_path / "a.gpkg", [shapely.box(x, y, x + 40, y + 40)], "EPSG:3857")
    two = save(tmp_path / "b.gpkg", [shapely.box(x + 4, y, x + 44, y + 40)], "EPSG:3857")
    for first, second in ((one, two), (two, one)):
        figures = evaluate(first, second, gsd=0.5).polygons["total"]["total"].summary()
        assert figures["hausdorff_m"] == pytest.approx(2, rel=0.005)
        assert figures["polis_m"] == pytest.approx(1, rel=0.005)
        assert figures["boundary_iou"] == pytest.approx(18 / 54, abs=0.2)
    wide = evaluate(one, two, gsd=0.5, boundary_m=50).polygons["total"]["total"].summary()
    assert wide["boundary_iou"] == pytest.approx(wide["iou"])


def test_metres_on_a_grid_of_degrees(tmp_path: Path) -> None:
    # At 60° north a degree of longitude is half one of latitude: 12 × 24 pixels are near enough a square of 13 m.
    step = 1e-5
    mask = np.zeros((60, 120), np.uint8)
    mask[20:32, 40:64] = 1
    raster = tmp_path / "r.tif"
    place = Affine(step, 0, 10, 0, -step, 60)
    with rasterio.open(raster, "w", "GTiff", 120, 60, 1, crs="EPSG:4326", transform=place, dtype="uint8") as file:
        file.write(mask, 1)
    box = shapely.box(10 + 43 * step, 60 - 32 * step, 10 + 67 * step, 60 - 20 * step)
    found = save(tmp_path / "p.gpkg", [box], "EPSG:4326")
    _forth, _back, east = pyproj.Geod(ellps="WGS84").inv(10, 60, 10 + 3 * step, 60)
    figures = evaluate(found, raster).polygons["total"]["total"].summary()
    assert figures["hausdorff_m"] == pytest.approx(east, rel=1e-3)
    assert figures["polis_m"] == pytest.approx(east / 2, rel=1e-3)
    assert figures["tangent_angle_deg"] == pytest.approx(0, abs=1e-3)


def test_mask_as_reference_cuts_both_sides(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    mask[40:56, 60:80] = True  # goes on beyond the tile
    valid = np.ones(mask.shape, bool)
    valid[10:30, 20:24] = False  # takes 2 m of the first
    raster = save_mask(tmp_path / "r.tif", mask, valid)
    shapes = [house(10, 15, 15, 10), house(30, 2, 25, 8), house(60, 5), house(10.2, 15.5, 1, 1)]
    for window in (37, 2048):
        result = evaluate(save(tmp_path / "p.gpkg", shapes), raster, window=window)
        score = result.polygons["total"]["total"]
        # What lies outside, or where nothing is known, is no false building.
        assert (score.tp, score.fp, score.fn) == (2, 0, 0)
        assert score.summary()["iou"] == pytest.approx(1)
        assert score.summary()["polis_m"] == pytest.approx(0, abs=1e-6)
        assert any(note.startswith("r.tif: outlines traced") for note in result.notes)
    # A predicted raster has no outlines of its own.
    assert evaluate(raster, tmp_path / "p.gpkg").polygons == {}
    assert evaluate(tmp_path / "p.gpkg", raster, polygons=False).polygons == {}


def test_traced_reference_is_straightened(tmp_path: Path) -> None:
    tilted = affinity.rotate(house(20, 20, 30, 18), 20)
    place = Affine(0.5, 0, EAST, 0, -0.5, NORTH + 70)
    mask = rasterio.features.rasterize([tilted], (140, 140), transform=place).astype(bool)
    raster = save_mask(tmp_path / "r.tif", mask)
    figures = evaluate(save(tmp_path / "p.gpkg", [tilted]), raster).polygons["total"]["total"].summary()
    # Stairs of pixels would have some 140 vertices.
    assert figures["n_ratio"] > 0.4
    assert figures["polis_m"] < 0.5


def test_area_of_interest_asks_where_the_reference_lies(tmp_path: Path) -> None:
    area = save(tmp_path / "area.gpkg", [house(-5, -5, 50, 50)])
    reference = save(tmp_path / "r.gpkg", [house(0, 0), house(36, 0), house(80, 0)])
    # The last is false in the area; the third is false outside it.
    found = save(tmp_path / "p.gpkg", [house(0, 0), house(41, 0, 11), house(80, 30), house(0, 30)])
    score = evaluate(found, reference, gsd=0.5, aoi=area).polygons["total"]["total"]
    assert (score.tp, score.fp, score.fn) == (1, 1, 1)


def test_imagery_beside_polygons_says_where_they_count(tmp_path: Path) -> None:
    valid = np.ones((40, 100), bool)
    valid[:, 60:] = False
    save_mask(tmp_path / "t_rgb.tif", np.ones((40, 100), bool), valid)
    reference = save(tmp_path / "t_mask.gpkg", [house(0, 0), house(34, 0)])
    found = save(tmp_path / "p.gpkg", [house(0, 0), house(34, 10)])
    score = evaluate(found, reference, gsd=0.5).polygons["total"]["total"]
    assert (score.tp, score.fp, score.fn) == (1, 0, 0)


def test_broken_and_compound_polygons(tmp_path: Path) -> None:
    bow = shapely.Polygon([(EAST, NORTH), (EAST + 10, NORTH + 10), (EAST + 10, NORTH), (EAST, NORTH + 10)])
    pair = shapely.MultiPolygon([house(30, 0), house(50, 0)])
    path = save(tmp_path / "p.gpkg", [bow, pair])
    result = evaluate(path, path, gsd=0.5)
    score = result.polygons["total"]["total"]
    assert (score.tp, score.fp, score.fn) == (2, 0, 0)
    assert "p.gpkg: 1 polygons invalid; repaired to compare outlines" in result.notes
    # Repaired, the crossed one has two parts as well.
    assert "p.gpkg: 2 polygons of several parts; each counts as one building" in result.notes


def test_without_crs_lengths_are_those_of_the_coordinates(tmp_path: Path) -> None:
    one = save(tmp_path / "a.gpkg", [shapely.box(0, 0, 100, 100)], None)
    two = save(tmp_path / "b.gpkg", [shapely.box(10, 0, 110, 100)], None)
    result = evaluate(one, two, gsd=1.0)
    assert result.polygons["total"]["total"].summary()["hausdorff_m"] == pytest.approx(10)
    assert any("units of the coordinates" in note for note in result.notes)


def test_folders_sum_up(tmp_path: Path) -> None:
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
    offset = {"austin1": 0, "austin2": 1, "vienna1": 2}
    for name, shift in offset.items():
        save(tmp_path / f"r/{name}.gpkg", [house(0, 0), house(50, 0)])
        save(tmp_path / f"p/{name}.gpkg", [house(shift, 0)], probability=[0.5])
    result = evaluate(tmp_path / "p", tmp_path / "r", gsd=0.5)
    assert list(result.polygons["per_tile"]) == list(offset)
    assert list(result.polygons["per_city"]) == ["austin", "vienna"]
    total = result.polygons["total"]["total"]
    assert (total.tp, total.fp, total.fn) == (3, 0, 3)
    assert result.polygons["per_city"]["austin"].summary()["hausdorff_m"] == pytest.approx(0.5, rel=1e-3)
    found, outlines = result.polygon_tables()
    assert [[row[0] for row in rows] for rows in found[1:]] == [list(offset), ["austin", "vienna"], ["total"]]
    assert {len(row) for rows in outlines for row in rows} == {10}
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["polygons"]["per_tile"]["vienna1"]["matched"] == 1


def test_no_polygon_predicted(tmp_path: Path) -> None:
    empty = save(tmp_path / "p.gpkg", [])
    raster = save_mask(tmp_path / "r.tif", np.pad(np.ones((10, 10), bool), 20))
    score = evaluate(empty, raster).polygons["total"]["total"]
    assert (score.tp, score.fp, score.fn) == (0, 0, 1)


def test_sample_city(tmp_path: Path) -> None:
    """A tile's mask traced as the command does, against the exact outlines the mask was drawn from."""
    sample = Path(__file__).resolve().parents[1] / "sample_tiles"
    traced = tmp_path / "p.gpkg"
    done = CliRunner().invoke(main, ["polygonize", str(sample / "truth/tile_0_0.tif"), str(traced), "--no-square"])
    assert done.exit_code == 0, done.output
    score = evaluate(traced, sample / "buildings.gpkg", gsd=0.3).polygons["total"]["total"]
    figures = score.summary()
    assert score.precision > 0.9  # but for those that the tile's edge cuts
    assert figures["polis_m_median"] < 0.15  # half a pixel
    again = evaluate(traced, sample / "truth/tile_0_0.tif").polygons["total"]["total"]
    assert again.precision == 1
    # The mask's own outlines are only simplified; the command's are cut into walls.
    assert again.summary()["polis_m"] < 0.15
