"""The histogram's bars and axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.areas import AreaHistogram
from geoseg.chart import draw_chart, nice_ticks


def test_bars_show_the_counts() -> None:
    areas = AreaHistogram()
    areas.add([0.5, 10, 10.5, 11, 99, 2e5])
    chart = draw_chart(areas, in_metres=True)
    (_, _, _, three, text), (_, _, _, one, _) = chart.bars
    assert three == pytest.approx(3 * one, rel=1e-3)
    assert text == "10 to 12.6\u202fm²: 3 buildings"
    assert chart.note == "Not drawn: 1 smaller than 1\u202fm² and 1 of at least 100\u202f000\u202fm²."


@given(st.integers(0, 10**9))
def test_ticks_are_few_even_and_reach_the_top(most: int) -> None:
    ticks = nice_ticks(most)
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0
    assert ticks[-2] < max(most, 2) + 1 <= ticks[-1] + 1
    assert len(set(np.diff(ticks))) == 1
    assert str(ticks[1]).rstrip("0") in {"1", "2", "5"}
