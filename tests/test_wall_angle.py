"""The mean angle of walls, by hand, against a slower way, and where the published maximum goes wrong."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from shapely import affinity

import geoseg.wall_angle as module
from geoseg.polygon_metrics import tangent_angle
from geoseg.wall_angle import wall_angle

Polygons = NDArray[np.object_]
BOX = shapely.box(0, 0, 20, 10)
L = shapely.Polygon([(0, 0), (20, 0), (20, 8), (8, 8), (8, 15), (0, 15)])


def array(*polygons: shapely.Polygon) -> Polygons:
    result = np.empty(len(polygons), dtype=object)
    result[:] = polygons
    return result


@pytest.mark.parametrize("degrees", [0, 1, 2, 3])
def test_a_turned_box_is_turned_by_so_much(degrees: float) -> None:
    assert wall_angle(array(affinity.rotate(BOX, degrees)), array(BOX), 0.6)[0] == pytest.approx(degrees, abs=1e-6)


@pytest.mark.parametrize("moved", [0.1, 0.3, 0.5])
def test_exact_walls_have_no_error_wherever_they_stand(moved: float) -> None:
    away = affinity.translate(L, moved, 0.6 * moved)
    assert wall_angle(array(away), array(L), 0.5)[0] < 1e-9
    # The published maximum sees corners: the reason why this figure is here.
    assert tangent_angle(array(affinity.translate(L, 0.3, 0.18)), array(L), 0.5)[0] > 20


def test_stairs_by_hand() -> None:
    steps = [(x, y) for k in range(8) for x, y in ((k, k), (k + 1, k))]
    stairs = shapely.Polygon([*steps, (8, 8), (0, 8)])
    # 16 m of stairs are turned by 45°, of a total of 32 m; the triangle's other walls are true.
    triangle = shapely.Polygon([(0, 0), (8, 8), (0, 8)])
    assert wall_angle(array(stairs), array(triangle), 0.1)[0] == pytest.approx(45 * 16 / 32, abs=1.5)


def slowly(predicted: shapely.Polygon, reference: shapely.Polygon, spacing: float) -> float:
    total = weight = 0.0
    walls = [pair for ring in shapely.get_rings(reference) for pair in pairwise(ring.coords)]
    for ring in shapely.get_rings(shapely.segmentize(predicted, spacing)):
        for (ax, ay), (bx, by) in pairwise(ring.coords):
            middle = shapely.Point((ax + bx) / 2, (ay + by) / 2)
            away = [shapely.LineString(wall).distance(middle) for wall in walls]
            angles = []
            for distance, ((px, py), (qx, qy)) in zip(away, walls, strict=True):
                if distance <= min(away) + spacing:
                    turn = math.degrees(math.atan2(by - ay, bx - ax) - math.atan2(qy - py, qx - px)) % 180
                    angles.append(min(turn, 180 - turn))
            length = math.hypot(bx - ax, by - ay)
            total, weight = total + length * min(angles), weight + length
    return total / weight


def test_against_a_slower_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    yard = shapely.Polygon(BOX.exterior, [shapely.box(4, 3, 15, 7).exterior])
    references = array(*(affinity.rotate(shape, rng.uniform(0, 90)) for shape in (BOX, L, yard) * 4))
    predicted = array(
        *(
            affinity.translate(affinity.rotate(shape, rng.normal(0, 9)), *rng.normal(0, 1, 2)).simplify(
                rng.uniform(0, 3)
            )
            for shape in references
        )
    )
    expected = [slowly(one, two, 0.7) for one, two in zip(predicted, references, strict=True)]
    for cells in (50, 2_000_000):
        monkeypatch.setattr(module, "CELLS", cells)
        np.testing.assert_allclose(wall_angle(predicted, references, 0.7), expected, atol=1e-6)
    assert wall_angle(predicted[:0], references[:0], 0.7).shape == (0,)
