"""The report's histogram of building areas, as bars and axes of an SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geoseg import wording as say
from geoseg.areas import AreaHistogram


@dataclass(frozen=True)
class Chart:
    """Bars and axes in the coordinates of an SVG of ``WIDTH`` × ``HEIGHT`` units."""

    WIDTH = 1040
    HEIGHT = 300
    LEFT, TOP, BASE = 58, 26, 252

    bars: tuple[tuple[float, float, float, float, str], ...]
    """x, y, width, height, tooltip."""
    x_ticks: tuple[tuple[float, str], ...]
    x_minor: tuple[float, ...]
    y_ticks: tuple[tuple[float, str], ...]
    median_x: float | None
    median: str
    unit: str
    facts: tuple[tuple[str, str], ...]
    note: str


def draw_chart(areas: AreaHistogram, in_metres: bool) -> Chart:
    """Lay out the histogram; ``in_metres`` says whether areas are square metres or square pixels."""
    unit = "m²" if in_metres else "px²"
    merge = areas.PER_DECADE // 10
    counts = areas.counts.reshape(-1, merge).sum(axis=1)
    edges = areas.edges[::merge]
    right = Chart.WIDTH - 14
    decades = math.log10(areas.HIGH / areas.LOW)

    def x_of(area: float) -> float:
        inner = right - Chart.LEFT
        return round(Chart.LEFT + inner * math.log10(area / areas.LOW) / decades, 2)

    ticks = nice_ticks(int(counts.max()))
    height = (Chart.BASE - Chart.TOP) / ticks[-1]
    bars = []
    for number, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        x, tall = x_of(low), round(number * height, 2)
        if number:
            text = f"{say.size(low)} to {say.size(high)}{say.SPACE}{unit}: {say.count(number)} buildings"
            box = (x + 0.6, round(Chart.BASE - tall, 2), round(x_of(high) - x - 1.2, 2), tall)
            bars.append((*box, text))
    powers = [10.0**power for power in range(round(decades) + 1)]
    minor = [step * power for power in powers[:-1] for step in (2, 5)]
    median = areas.median
    inside = median is not None and areas.LOW <= median <= areas.HIGH
    outside = [
        f"{say.count(number)} {side} {say.size(bound)}{say.SPACE}{unit}"
        for number, side, bound in (
            (areas.below, "smaller than", areas.LOW),
            (areas.above, "of at least", areas.HIGH),
        )
        if number
    ]
    return Chart(
        bars=tuple(bars),
        x_ticks=tuple((x_of(power), say.size(power)) for power in powers),
        x_minor=tuple(x_of(area) for area in minor),
        y_ticks=tuple((round(Chart.BASE - tick * height, 2), say.count(tick)) for tick in ticks),
        median_x=x_of(median) if median is not None and inside else None,
        median=say.sized(median, unit),
        unit=unit,
        facts=(
            ("Smallest", say.sized(areas.minimum, unit)),
            ("Median (estimated)", say.sized(median, unit)),
            ("Mean", say.sized(areas.mean, unit)),
            ("19 of 20 are smaller than", say.sized(areas.quantile(0.95), unit)),
            ("Largest", say.sized(areas.maximum, unit)),
        ),
        note=f"Not drawn: {' and '.join(outside)}." if outside else "",
    )


def nice_ticks(most: int) -> list[int]:
    """Return whole numbers from 0 to at least ``most``, three to six of them, evenly spaced."""
    step = 1
    while step * 5 < most:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return list(range(0, max(most, 2) + step, step))
