"""Pixel and boundary metrics as counts that can be added: per window, per tile, per city, per epoch.

Nothing here averages ratios. Counts are summed and a ratio is taken last, as the Inria benchmark does
(Maggiori et al. 2017, "Can semantic labeling methods generalize to any city?"). Every array is (rows, columns) or any
other shape that the arrays given together share; ``valid`` is True where a pixel counts. A ratio without
anything to divide by (no building anywhere, say) is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from scipy.ndimage import minimum_filter1d

from geoseg.errors import SettingError

LEVELS = 255
"""Steps between probability 0 and 1 that a :class:`ThresholdCurve` tells apart."""

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Where a curve is shown unless said otherwise: 0.05, 0.10 … 0.95."""

PUBLISHED_BOUNDARY = 0.02
"""Distance of the boundary IoU as published, as a share of the image diagonal."""

MEASURES = ("iou", "accuracy", "precision", "recall", "f1", "boundary_iou")
"""Names of the ratios of a :class:`Score`, in the order in which tables show them."""

_SLACK = 1e-6
"""Probabilities are compared with thresholds to within this, so that 51 · (1/255) as float32 reaches 0.2."""

Part = tuple[slice, slice]
_ALL: Part = (slice(None), slice(None))


def ratio(part: int, whole: int) -> float:
    """Return ``part / whole``, NaN when there is no whole."""
    return part / whole if whole else math.nan


def known(value: float) -> float | None:
    """Return a ratio as JSON can hold it: None for NaN."""
    return None if math.isnan(value) else value


def reaches(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Say which probabilities are at least ``threshold`` (NaN is not)."""
    answer: np.ndarray = probability >= np.float32(threshold - _SLACK)
    return answer


def boundary_distance(shape: tuple[int, int]) -> int:
    """Return the published distance for an image of ``shape``: 2 % of the diagonal in pixels, at least 1."""
    return max(1, round(PUBLISHED_BOUNDARY * math.hypot(*shape)))


def boundary_band(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return the pixels of a mask that lie within ``distance`` pixels of its contour, (rows, columns) bool.

    This is G_d ∩ G of Cheng et al. 2021 (arXiv 2103.16562). As in their reference implementation the distance is
    the chessboard's (``distance`` erosions with a 3 × 3 square), a pixel beside the background has distance 1,
    and what lies outside the array is background, so that a building cut off there has a contour there.
    """
    if distance < 1:
        raise SettingError(f"the boundary's distance is {distance} px; it must be at least 1")
    core = np.asarray(mask, bool).view(np.uint8)
    for axis in (0, 1):
        core = minimum_filter1d(core, 2 * distance + 1, axis=axis, mode="constant", cval=0)
    return np.asarray(mask, bool) & (core == 0)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Pixels by what was predicted and what is true."""

    tp: int = 0
    """Building, and found."""
    fp: int = 0
    """Predicted as building, but background."""
    fn: int = 0
    """Building, but missed."""
    tn: int = 0
    """Background, and left so."""

    def __post_init__(self) -> None:
        _check_counts(self)

    @classmethod
    def of(cls, predicted: Any, truth: Any, valid: Any = None) -> Confusion:
        """Count; all arrays of one shape, bool or anything of which non-zero means building (valid).

        Raises:
            SettingError: the shapes differ.
        """
        found, true, counts = _same_shape(predicted, truth, valid)
        tp = int(np.count_nonzero(found & true & counts))
        positives, trues = int(np.count_nonzero(found & counts)), int(np.count_nonzero(true & counts))
        total = int(np.count_nonzero(counts))
        return cls(tp, positives - tp, trues - tp, total - positives - trues + tp)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        """Valid pixels."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def iou(self) -> float:
        """Intersection over union of the buildings (Jaccard index)."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float:
        """Share of valid pixels that are right."""
        return ratio(self.tp + self.tn, self.pixels)

    @property
    def precision(self) -> float:
        """Share of predicted building that is building."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of building that was predicted."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall (Dice coefficient)."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True, slots=True)
class Boundary:
    """Pixels of two boundary bands, for the boundary IoU of Cheng et al. 2021 (arXiv 2103.16562)."""

    intersection: int = 0
    """Pixels in both bands."""
    union: int = 0
    """Pixels in at least one."""

    def __post_init__(self) -> None:
        _check_counts(self)

    @classmethod
    def of(cls, predicted: Any, truth: Any, valid: Any = None, *, distance: int, part: Part = _ALL) -> Boundary:
        """Count in ``part`` of the arrays, (rows, columns); the rest of them serves to see contours from there.

        Invalid pixels are background in both masks before contours are sought: they count in neither number, and
        a building that reaches into them has its contour at their edge on both sides alike, just
        as at the edge of the image. An image framed by invalid pixels therefore scores as the image alone.

        Raises:
            SettingError: the shapes differ, or the distance is below 1.
        """
        found, true, counts = _same_shape(predicted, truth, valid)
        one = boundary_band(found & counts, distance)[part]
        two = boundary_band(true & counts, distance)[part]
        return cls(int(np.count_nonzero(one & two)), int(np.count_nonzero(one | two)))

    def __add__(self, other: Boundary) -> Boundary:
        return Boundary(self.intersection + other.intersection, self.union + other.union)

    @property
    def iou(self) -> float:
        """Boundary IoU."""
        return ratio(self.intersection, self.union)


@dataclass(frozen=True, slots=True)
class Score:
    """The counts of a tile, a city or all; adding two gives those of both together."""

    confusion: Confusion = field(default_factory=Confusion)
    """Pixels."""
    boundary: Boundary = field(default_factory=Boundary)
    """Pixels near contours."""

    def __add__(self, other: Score) -> Score:
        return Score(self.confusion + other.confusion, self.boundary + other.boundary)

    @property
    def iou(self) -> float:
        """Intersection over union of the buildings; NaN where there are none at all."""
        return self.confusion.iou

    @property
    def accuracy(self) -> float:
        """Share of valid pixels that are right."""
        return self.confusion.accuracy

    @property
    def precision(self) -> float:
        """Share of predicted building that is building."""
        return self.confusion.precision

    @property
    def recall(self) -> float:
        """Share of building that was predicted."""
        return self.confusion.recall

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return self.confusion.f1

    @property
    def boundary_iou(self) -> float:
        """Intersection over union of the bands along the contours."""
        return self.boundary.iou

    def as_dict(self) -> dict[str, Any]:
        """Return ratios and counts for JSON; a ratio without meaning is None."""
        counts = self.confusion
        return {
            **{name: known(getattr(self, name)) for name in MEASURES},
            "tp": counts.tp,
            "fp": counts.fp,
            "fn": counts.fn,
            "tn": counts.tn,
        }


def _no_counts() -> tuple[int, ...]:
    return (0,) * (LEVELS + 1)


@dataclass(frozen=True, slots=True)
class ThresholdCurve:
    """Two histograms of probability, from which the confusion at every threshold follows.

    Bin ``k`` holds probabilities from ``k / 255`` to below ``(k + 1) / 255``. For probabilities stored in 8 bits that
    is exact at every threshold; for finer ones at the thresholds ``k / 255``, between which it takes the next above.
    """

    building: tuple[int, ...] = field(default_factory=_no_counts)
    """True building pixels by bin, 256 counts."""
    background: tuple[int, ...] = field(default_factory=_no_counts)
    """True background pixels by bin, 256 counts."""

    def __post_init__(self) -> None:
        for name in ("building", "background"):
            counts = getattr(self, name)
            if len(counts) != LEVELS + 1 or min(counts) < 0:
                raise SettingError(f"{name} must be {LEVELS + 1} counts from 0, not {counts!r}")

    @classmethod
    def of(cls, probability: Any, truth: Any, valid: Any = None) -> ThresholdCurve:
        """Count floating probabilities 0 … 1, or ``uint8`` with 255 for 1; all arrays of one shape.

        Raises:
            SettingError: the shapes differ, or a valid probability is outside 0 … 1 or no number.
        """
        values = np.asarray(probability)
        _found, true, counts = _same_shape(values, truth, valid)
        chosen = values[counts]
        if chosen.dtype != np.uint8:
            check_probability(chosen)
            chosen = (chosen.astype(np.float32, copy=False) * LEVELS + LEVELS * _SLACK).astype(np.uint8)
        is_building = true[counts]
        return cls(_histogram(chosen[is_building]), _histogram(chosen[~is_building]))

    def __add__(self, other: ThresholdCurve) -> ThresholdCurve:
        return ThresholdCurve(
            tuple(a + b for a, b in zip(self.building, other.building, strict=True)),
            tuple(a + b for a, b in zip(self.background, other.background, strict=True)),
        )

    def at(self, threshold: float) -> Confusion:
        """Return the confusion when probabilities from ``threshold`` (0 … 1) on are building."""
        if not 0 <= threshold <= 1:
            raise SettingError(f"a threshold lies between 0 and 1, not at {threshold}")
        first = math.ceil((threshold - _SLACK) * LEVELS)
        return Confusion(
            tp=sum(self.building[first:]),
            fp=sum(self.background[first:]),
            fn=sum(self.building[:first]),
            tn=sum(self.background[:first]),
        )

    def points(self, thresholds: Iterable[float] = THRESHOLDS) -> tuple[tuple[float, Confusion], ...]:
        """Return ``(threshold, confusion)`` for each threshold."""
        return tuple((threshold, self.at(threshold)) for threshold in thresholds)

    def best(self, thresholds: Sequence[float] = THRESHOLDS) -> tuple[float, Confusion]:
        """Return the threshold of the highest IoU and its confusion; of equals, the one nearest to 0.5.

        Raises:
            SettingError: there is no threshold to choose from.
        """
        if not thresholds:
            raise SettingError("no thresholds to choose the best from")
        # Without any building each IoU is NaN, which must not win or lose by accident.
        return max(self.points(thresholds), key=lambda p: (np.nan_to_num(p[1].iou, nan=-1.0), -abs(p[0] - 0.5)))


def check_probability(values: np.ndarray) -> None:
    """Raise SettingError when a value is not a number between 0 and 1."""
    if values.size:
        low, high = float(values.min()), float(values.max())
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise SettingError(f"probabilities lie between 0 and 1; these reach from {low:g} to {high:g}")


def _histogram(bins: np.ndarray) -> tuple[int, ...]:
    return tuple(np.bincount(bins, minlength=LEVELS + 1).tolist())


def _check_counts(counts: Confusion | Boundary) -> None:
    for name in (f.name for f in fields(counts)):
        if getattr(counts, name) < 0:
            raise SettingError(f"{name} is {getattr(counts, name)}; a count cannot be negative")


def _same_shape(predicted: Any, truth: Any, valid: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found, true = np.asarray(predicted), np.asarray(truth)
    counts = np.ones(true.shape, bool) if valid is None else np.asarray(valid)
    if not found.shape == true.shape == counts.shape:
        raise SettingError(
            f"prediction {found.shape}, truth {true.shape} and validity {counts.shape} must have one shape"
        )
    return found.astype(bool, copy=False), true.astype(bool, copy=False), counts.astype(bool, copy=False)
