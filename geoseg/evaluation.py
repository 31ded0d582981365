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
from geoseg.polygon_metrics import PolygonScore

_TITLES = ("IoU", "accuracy", "precision", "recall", "F1", "boundary IoU")
_FOUND = ("predicted", "true", "matched", "precision", "recall", "F1", "AP")
_OUTLINES = (
    ("boundary\nIoU", "boundary_iou", ".4f"),
    ("C-IoU", "c_iou", ".4f"),
    ("N\nratio", "n_ratio", ".3f"),
    ("PoLiS\nmean m", "polis_m", ".3f"),
    ("PoLiS\nmedian", "polis_m_median", ".3f"),
    ("Hausd.\nmean m", "hausdorff_m", ".3f"),
    ("Hausd.\n95 % m", "hausdorff_m_p95", ".3f"),
    ("angle\nmax °", "tangent_angle_deg", ".2f"),
    ("angle\nmean °", "wall_angle_deg", ".2f"),
)
"""Title, name in :meth:`PolygonScore.summary`, format."""
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
    polygons: PolygonScore | None = None
    """Of buildings and outlines, for predicted polygons."""

    @property
    def city(self) -> str | None:
        """The city, of a tile that is named as Inria's are (``austin1``, ``tyrol-w12``)."""
        match = _CITY.fullmatch(self.name)
        return match[1] if match else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the curve and the polygons for JSON."""
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
        return {
            city: reduce(add, (tile.score for tile in tiles), Score()) for city, tiles in self._tiles_by_city.items()
        }

    @cached_property
    def _tiles_by_city(self) -> dict[str, list[Tile]]:
        cities: dict[str, list[Tile]] = {}
        for tile in self.tiles:
            if tile.city is not None:
                cities.setdefault(tile.city, []).append(tile)
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

    @cached_property
    def polygons(self) -> dict[str, dict[str, PolygonScore]]:
        """Scores of buildings and outlines under ``per_tile``, ``per_city`` and ``total``, each by name.

        Empty unless each prediction is of polygons (and they were to be compared).
        """
        per_tile = {tile.name: tile.polygons for tile in self.tiles if tile.polygons is not None}
        if len(per_tile) < len(self.tiles):
            return {}
        per_city = {
            city: reduce(add, (per_tile[tile.name] for tile in tiles), PolygonScore())
            for city, tiles in self._tiles_by_city.items()
        }
        return {
            "per_tile": per_tile,
            "per_city": per_city,
            "total": {"total": reduce(add, per_tile.values(), PolygonScore())},
        }

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
            "polygons": self._polygons_as_dict(),
            "notes": list(self.notes),
        }

    def _polygons_as_dict(self) -> dict[str, Any] | None:
        if not self.polygons:
            return None
        groups = {
            group: {name: score.as_dict() for name, score in scores.items()} for group, scores in self.polygons.items()
        }
        return {**groups, "total": groups["total"]["total"]}

    def table(self) -> list[list[tuple[str, ...]]]:
        """Return rows of text in sections: header; tiles, if several; cities, if they say more; total."""
        by_group: dict[str, Mapping[str, Score]] = {
            "per_tile": self.per_tile,
            "per_city": self.per_city,
            "total": {"total": self.total},
        }
        groups = [by_group[name] for name in self._groups]
        rows = [[(name, *_figures(score, MEASURES)) for name, score in group.items()] for group in groups]
        return [[("", *_TITLES)], *rows]

    @property
    def _groups(self) -> list[str]:
        """What tables show: tiles, if several; cities, if they say more; total."""
        groups = ["per_tile"] if len(self.tiles) > 1 else []
        cities = self._tiles_by_city
        # One city of all tiles is the total once more.
        several = len(cities) > 1 or sum(map(len, cities.values())) < len(self.tiles)
        return [*groups, *(["per_city"] if cities and several else []), "total"]

    def polygon_tables(self) -> list[list[list[tuple[str, ...]]]]:
        """Return two tables in sections as :meth:`table` does: buildings found; outlines of those. Or none."""
        if not self.polygons:
            return []
        found: list[list[tuple[str, ...]]] = [[("buildings", *_FOUND)]]
        outlines: list[list[tuple[str, ...]]] = [[("outlines", *(title for title, _name, _form in _OUTLINES))]]
        for group in self._groups:
            rows: list[tuple[str, ...]] = []
            shapes: list[tuple[str, ...]] = []
            for name, score in self.polygons[group].items():
                figures = score.summary()
                ratios = (_text(figures[key]) for key in ("precision", "recall", "f1", "ap"))
                rows.append((name, str(score.predicted), str(score.reference), str(score.tp), *ratios))
                shapes.append((name, *(_text(figures[key], form) for _title, key, form in _OUTLINES)))
            found.append(rows)
            outlines.append(shapes)
        return [found, outlines]

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
    return [_text(value) for value in values]


def _text(value: float, form: str = ".4f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def show(result: Evaluation, stream: IO[str], *, curve: bool = False) -> None:
    """Print an evaluation as tables, with the threshold curve if wanted and there is one."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # What reads a pipe wants whole names, however long.
    console = Console(
        file=stream, width=None if stream.isatty() else 10_000, markup=False, emoji=False, highlight=False
    )
    tables = [result.table(), *result.polygon_tables(), *([result.curve_table()] if curve and result.curve else [])]
    for table in tables:
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
