"""Outlines read back from the path, and pictures that are refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from geoseg.errors import SettingError
from geoseg.picture import Budget, Preview, draw_picture, outline_path

PLENTY = Budget(1e6, 1e6, 1e6, 1e6)


def preview(**changes: Any) -> Preview:
    values: dict[str, Any] = {
        "rgb": np.zeros((3, 48, 64), dtype=np.uint8),
        "valid": np.ones((48, 64), dtype=bool),
        "outlines": [],
        "caption": "A place",
    }
    return Preview(**values | changes)


def test_outlines_come_back_from_the_path() -> None:
    outlines = [box(10, 10, 20, 25).difference(box(12, 12, 15, 15)), box(30, 5, 45.5, 15)]
    drawn = draw_picture(preview(outlines=outlines), PLENTY, None)
    assert drawn.view_box == "0 0 640 480"
    assert drawn.path is not None
    found = shapely.Polygon()
    for ring in _rings(drawn.path):
        found = found.symmetric_difference(Polygon(ring))
    assert found.equals(shapely.union_all(outlines))


def _rings(path: str) -> list[np.ndarray]:
    """Read the SVG path back, by the grammar of relative moves."""
    result = []
    for part in path.split("z")[:-1]:
        start, steps = part[1:].split("l")
        numbers = [int(number) for number in re.findall(r"[+-]?\d+", steps)]
        moves = np.array([*map(int, start.split()), *numbers]).reshape(-1, 2)
        result.append(np.cumsum(moves, axis=0) / 10)
    return result


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 90), st.floats(-20, 70), st.floats(0.01, 30)), max_size=8))
def test_path_keeps_what_shows(discs: list[tuple[float, float, float]]) -> None:
    shapes = [shapely.Point(x, y).buffer(radius, 6) for x, y, radius in discs]
    path = outline_path(shapes, (48, 64), 10**6)
    assert path is not None
    inside = [shape for shape in shapes if shape.envelope.intersects(box(0, 0, 64, 48))]
    rings = _rings(path)
    assert len(rings) == len(inside)
    for ring, shape in zip(rings, inside, strict=True):
        if len(ring) > 2:  # smaller than what shows
            assert Polygon(ring).exterior.hausdorff_distance(shape.exterior) < 0.3 + 0.1


@pytest.mark.parametrize(
    ("changes", "quoted"),
    [
        ({"rgb": np.zeros((48, 64, 3), dtype=np.uint8)}, r"\(48, 64, 3\)"),
        ({"rgb": np.zeros((3, 48, 64), dtype=np.float32)}, "float32"),
        ({"valid": np.ones((48, 63), dtype=bool)}, r"\(48, 63\)"),
        ({"probability": np.zeros((1, 48, 64), dtype=np.uint8)}, r"\(1, 48, 64\)"),
        ({"rgb": np.zeros((3, 0, 64), dtype=np.uint8)}, r"\(3, 0, 64\)"),
    ],
)
def test_preview_refuses_what_does_not_fit(changes: dict[str, Any], quoted: str) -> None:
    with pytest.raises(SettingError, match=quoted):
        preview(**changes)


def test_a_giant_is_cut_to_the_picture() -> None:
    # Deep enough a recursion to end the process, were it simplified as it is.
    steps = np.repeat(np.arange(60_000), 2)
    giant = Polygon([*np.column_stack([steps[1:], steps[:-1]]), (0, 60_000)])
    path = outline_path([giant], (48, 64), 10**6)
    assert path is not None
    (ring,) = _rings(path)
    assert len(ring) < 300
    assert Polygon(ring).intersection(box(0, 0, 64, 48)).equals(giant.intersection(box(0, 0, 64, 48)))
