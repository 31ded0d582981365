"""What an evaluation found: scores by tile, by city and in all, as text and as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add
from typing import IO, Any

from geoseg.metrics import MEASURES, THRESHOLDS, Confusion, Score, ThresholdCurve, known

_TITLES = ("IoU", "accuracy", "precision", "recall", "F1", "boundary IoU")
_CITY = re.compile(r"([A-Za-z](?:[A-Za-z-]*[A-Za-z])?)-?\d+")


@dataclass(frozen=True, slots=True)
class Tile:
    """One pair of files, and how they compare."""

    name: str
    """The stem both share, without ``_mask`` and its like."""
    predicted: str
    """Path."""
    reference: str
    """Path."""
    shape: tuple[int, int]
    """Rows and columns compared, invalid pixels included."""
    boundary_px: int
    """Distance of the boundary IoU, pixels."""
    score: Score
    """The counts."""
    curve: ThresholdCurve | None = None
    """For a predicted probability."""

    @property
    def city(self) -> str | None:
        """The city, of a tile that is named as Inria's are (``austin1``, ``tyrol-w12``)."""
        match = _CITY.fullmatch(self.name)
        return match[1] if match else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the curve for JSON."""
        return {
            "predicted": self.predicted,
            "reference": self.reference,
            "city": self.city,
            "shape": list(self.shape),
            "boundary_px": self.boundary_px,
            **self.score.as_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """All tiles, and what follows from them."""

    tiles: tuple[Tile, ...]
    """In the order of their names."""
    threshold: float | None
    """From which a predicted probability counts as building; None when only masks or polygons were predicted."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """Where the curve is shown and the best threshold sought."""
    notes: tuple[str, ...] = field(default=())
    """What was assumed or left out, in sentences."""

    @property
    def per_tile(self) -> dict[str, Score]:
        """Score by tile."""
        return {tile.name: tile.score for tile in self.tiles}

    @cached_property
    def per_city(self) -> dict[str, Score]:
        """Score by city, counts summed over its tiles; tiles not named as Inria's are in none."""
        cities: dict[str, Score] = {}
        for tile in self.tiles:
            if tile.city is not None:
                cities[tile.city] = cities.get(tile.city, Score()) + tile.score
        return dict(sorted(cities.items()))

    @cached_property
    def total(self) -> Score:
        """Score of all tiles, counts summed as the Inria benchmark does."""
        return reduce(add, (tile.score for tile in self.tiles), Score())

    @cached_property
    def curve(self) -> ThresholdCurve | None:
        """Over all tiles; None unless each prediction is a probability."""
        curves = [tile.curve for tile in self.tiles if tile.curve is not None]
        return reduce(add, curves) if curves and len(curves) == len(self.tiles) else None

    @property
    def best_threshold(self) -> float | None:
        """The one of ``thresholds`` with the highest IoU over all tiles, if there is a curve."""
        return self.curve.best(self.thresholds)[0] if self.curve else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        points = self.curve.points(self.thresholds) if self.curve else ()
        return {
            "threshold": self.threshold,
            "best_threshold": self.best_threshold,
            "total": self.total.as_dict(),
            "per_city": {name: score.as_dict() for name, score in self.per_city.items()},
            "per_tile": {tile.name: tile.as_dict() for tile in self.tiles},
            "curve": [
                {"threshold": threshold, **{n: known(getattr(counts, n)) for n in MEASURES[:-1]}}
                for threshold, counts in points
            ]
            or None,
            "notes": list(self.notes),
        }

    def table(self) -> list[list[tuple[str, ...]]]:
        """Return rows of text in sections: header; tiles, if several; cities, if they say more; total."""
        groups: list[Mapping[str, Score]] = [{"total": self.total}]
        if list(self.per_city.values()) not in ([], [self.total]):
            groups.insert(0, self.per_city)
        if len(self.tiles) > 1:
            groups.insert(0, self.per_tile)
        rows = [[(name, *_figures(score, MEASURES)) for name, score in group.items()] for group in groups]
        return [[("", *_TITLES)], *rows]

    def curve_table(self) -> list[list[tuple[str, ...]]]:
        """Return rows of text in sections: header; thresholds. Empty without a curve."""
        if self.curve is None:
            return []
        points = self.curve.points(self.thresholds)
        rows = [(f"{threshold:.2f}", *_figures(counts, MEASURES[:-1])) for threshold, counts in points]
        return [[("threshold", *_TITLES[:-1])], rows]

    def summary(self) -> str:
        """Return one line on what was compared, and how."""
        distances = sorted({tile.boundary_px for tile in self.tiles})
        reach = f"{distances[0]}" + (f" to {distances[-1]}" if len(distances) > 1 else "")
        parts = [
            f"{len(self.tiles)} {'tile' if len(self.tiles) == 1 else 'tiles'}",
            f"{self.total.confusion.pixels:,} pixels".replace(",", " "),
            f"boundary within {reach} px",
        ]
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:g}")
        if self.best_threshold is not None:
            parts.append(f"best IoU from threshold {self.best_threshold:g}")
        return " · ".join(parts)


def _figures(counts: Score | Confusion, measures: Sequence[str]) -> list[str]:
    values = [getattr(counts, measure) for measure in measures]
    return ["–" if math.isnan(value) else f"{value:.4f}" for value in values]


def show(result: Evaluation, stream: IO[str], *, curve: bool = False) -> None:
    """Print an evaluation as tables, with the threshold curve if wanted and there is one."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # What reads a pipe wants whole names, however long.
    console = Console(
        file=stream, width=None if stream.isatty() else 10_000, markup=False, emoji=False, highlight=False
    )
    for table in [result.table(), *([result.curve_table()] if curve and result.curve else [])]:
        (header,), *sections = table
        drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, title in enumerate(header):
            drawn.add_column(title, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
        for rows in sections:
            for row in rows:
                drawn.add_row(*row)
            drawn.add_section()
        console.print(drawn)
        console.print()
    console.print(result.summary())
