"""Metrics for outlines: which buildings were found, and how well their outlines agree.

All functions take arrays of shapely polygons in plane coordinates of one unit (metres on the ground, as
:mod:`geoseg.evaluate` gives them) and compare element by element. They hold in general:

- Polygons are valid and not empty. A *building* is one element, whatever it consists of: a multipolygon is one building
  with several outlines.
- The *outline* of a building is all of its rings, those around holes included; its *vertices* are the distinct points
  of all rings (the closing point and points repeated in a row are not counted, points on a straight line are).
- Nothing is cut here. Which buildings count near the edge of a reference is said at :func:`compare`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SettingError
from geoseg.metrics import known, ratio
from geoseg.wall_angle import wall_angle

Polygons = NDArray[np.object_]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Index = NDArray[np.int64]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""From which IoU on a building counts as found, for the average precision: 0.5, 0.55 … 0.95, as COCO has them."""
SPACING = 0.5
"""Metres between points along an outline that is sampled. Published evaluations take one or two pixels of 0.3 m."""
BOUNDARY = 1.0
"""Metres within which the boundary IoU of outlines looks.

The published 2 % of the image's diagonal is a band wider than any building once the image is a town.
"""
BATCH = 500
"""Pairs of outlines that are measured at once; it bounds the memory."""
MAX_STRETCH = 2.0
"""See :func:`tangent_angle`."""

_SLACK = 1e-9
"""IoUs are compared with thresholds to within this, so that rounding does not part equals."""
_RECALLS = np.arange(101) / 100
_COUNTED, _FALSE, _IGNORED = 1, 0, -1


@dataclass(frozen=True, eq=False)
class Buildings:
    """One side of a comparison; arrays of one length."""

    outlines: Polygons
    """Polygons or multipolygons, valid, one per building."""
    scores: Floats | None = None
    """How sure each is, larger is surer; NaN where that is not known. None for "not known of any"."""

    def __post_init__(self) -> None:
        if self.scores is not None and len(self.scores) != len(self.outlines):
            raise SettingError(f"{len(self.outlines)} outlines cannot have {len(self.scores)} scores")

    def __len__(self) -> int:
        return len(self.outlines)

    def __getitem__(self, which: Any) -> Buildings:
        """Return some of the buildings: a slice, a mask or an array of indices."""
        return Buildings(self.outlines[which], None if self.scores is None else self.scores[which])


# --- pairs of buildings ------------------------------------------------------------------------------------------


def overlaps(predicted: Polygons, reference: Polygons, least: float = IOU_THRESHOLDS[0]) -> tuple[Index, Floats]:
    """Return the pairs whose IoU is at least ``least``: ``(pairs, 2)`` indices (predicted, reference), and the IoUs.

    IoU is area of intersection over area of union, holes being no part of a building. Pairs come sorted by index.
    """
    if not (0 < least <= 1):
        raise SettingError(f"an IoU to reach lies above 0 and at most at 1, not at {least}")
    two, one = shapely.STRtree(predicted).query(reference)
    size_one, size_two = shapely.area(predicted)[one], shapely.area(reference)[two]
    # What boxes share is no less than what buildings share: it settles most neighbours without an intersection.
    box_one, box_two = shapely.bounds(predicted)[one], shapely.bounds(reference)[two]
    shared = np.minimum(box_one[:, 2:], box_two[:, 2:]) - np.maximum(box_one[:, :2], box_two[:, :2])
    most = np.minimum(shared.prod(axis=1), np.minimum(size_one, size_two))
    near = most * (1 + least) >= (size_one + size_two) * least * (1 - _SLACK)
    one, two, size_one, size_two = one[near], two[near], size_one[near], size_two[near]
    common = np.zeros(len(one))
    for part in _batches(len(one)):
        common[part] = shapely.area(shapely.intersection(predicted[one[part]], reference[two[part]]))
    iou = common / (size_one + size_two - common)
    order = np.lexsort((two, one))
    order = order[iou[order] >= least - _SLACK]
    return np.stack([one[order], two[order]], axis=1), iou[order]


def one_to_one(pairs: Index, first: Floats, *others: Floats) -> Index:
    """Return the indices of the pairs that a greedy matching takes, in the order in which it takes them.

    Pairs are gone through by the value in ``first``, largest first, between equals by ``others``, at last in the order
    given, and each is taken whose two buildings are still free. Where no buildings of one side overlap each other,
    an IoU above 0.5 leaves no choice: each building then has one partner at most.
    """
    ranked = np.lexsort([-values for values in reversed((first, *others))])
    left = np.arange(len(ranked))
    taken = np.zeros(len(ranked), bool)
    while len(left):
        one, two = pairs[ranked[left]].T
        # A pair that comes first for both its buildings is taken whatever the others are.
        leading = np.zeros((2, len(left)), bool)
        leading[0, np.unique(one, return_index=True)[1]] = True
        leading[1, np.unique(two, return_index=True)[1]] = True
        now = leading.all(axis=0)
        taken[left[now]] = True
        left = left[~(np.isin(one, one[now]) | np.isin(two, two[now]))]
    found: Index = ranked[taken]
    return found


def average_precision(scores: Floats, hits: NDArray[np.int8], references: int) -> Floats:
    """Return the average precision by threshold, as COCO's evaluation has it (Lin et al. 2014, arXiv 1405.0312).

    Predictions enter by score, highest first. Precision is made to fall with recall (at each recall the best at that or
    a higher one) and averaged at the recalls 0, 0.01 … 1; where recall never gets, precision is 0. Equal scores
    enter together, so that the order of a file does not matter; if a score is missing (NaN), all
    are equal, and what results is in essence precision · recall. COCO's limit of 100 detections does not apply.

    Args:
        scores: ``(predictions,)``.
        hits: ``(predictions, thresholds)``: 1 for a building found, 0 for a false one, -1 for one that does not count.
        references: buildings there are to find. Without any, precision has no meaning: NaN.
    """
    if not references:
        return np.full(hits.shape[1], np.nan)
    if np.isnan(scores).any():
        scores = np.zeros(len(scores))
    order = np.argsort(-scores, kind="stable")
    result = np.zeros(hits.shape[1])
    for index in range(hits.shape[1]):
        rows = order[hits[order, index] != _IGNORED]
        if not len(rows):
            continue
        last = np.append(np.diff(scores[rows]) != 0, True)
        right = np.cumsum(hits[rows, index] == _COUNTED)[last]
        precision = right / (np.flatnonzero(last) + 1)
        best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        result[index] = best[np.searchsorted(right / references, _RECALLS - _SLACK)].mean()
    return result


# --- pairs of outlines -------------------------------------------------------------------------------------------


def vertices(outlines: Polygons) -> Index:
    """Return the number of vertices of each building."""
    _points, owner = _corners(outlines)
    return np.bincount(owner, minlength=len(outlines)).astype(np.int64)


def polis(one: Polygons, two: Polygons) -> Floats:
    """Return the PoLiS distance of each pair of buildings, in the units of the coordinates.

    The mean over vertices of the distance to the nearest point (not vertex) of the other outline, taken from either
    side and averaged: ``1 / 2q · Σ_j min_b |a_j - b| + 1 / 2r · Σ_k min_a |b_k - a|`` with q vertices a_j, r vertices
    b_k, and a, b any point of the outlines. It is symmetric, and 0 for equal outlines only.

    After Avbelj, Müller and Bamler, "A Metric for Polygon Comparison and Building Extraction Evaluation", IEEE
    Geoscience and Remote Sensing Letters 12(1), 2015, doi 10.1109/LGRS.2014.2330695. Vertices of holes and of further
    parts count as any other, and the nearest point may lie on any ring. Widespread code divides by q + 1, since it
    counts the closing point, and gets less.
    """
    return (_mean_distance(one, two) + _mean_distance(two, one)) / 2


def hausdorff(one: Polygons, two: Polygons, spacing: float = SPACING) -> Floats:
    """Return the Hausdorff distance between the outlines of each pair, in the units of the coordinates.

    The farthest that a point of either outline (any ring) is from the nearest point of the other. Points are
    looked at every ``spacing`` at most and at all vertices, so that the true value is larger by at most half of that.
    (Huttenlocher, Klanderman and Rucklidge 1993, "Comparing images using the Hausdorff distance", IEEE PAMI 15(9).)
    """
    result = np.zeros(len(one))
    for part in _batches(len(one)):
        for outlines, others in ((one[part], two[part]), (two[part], one[part])):
            points, owner, _ring = _sampled(outlines, spacing)
            away = shapely.distance(shapely.points(points), shapely.boundary(others)[owner])
            np.maximum.at(result[part], owner, away)
    return result


def tangent_angle(predicted: Polygons, reference: Polygons, spacing: float = SPACING) -> Floats:
    """Return the maximum tangent angle error of each pair, degrees from 0 to 90.

    The predicted outline is sampled evenly (at its vertices, and between them every ``spacing`` at most), each point is
    projected to the nearest of the reference's outline, and the largest angle is sought between a step along the
    prediction and the step between its projections. Steps of which either length is more than twice the other, or one
    is 0, are left out, for there the projection jumps; NaN when none is left. All rings are walked, holes included, and
    the nearest point may lie on any ring.

    After Girard, Smirnov, Solomon and Tarabalka, "Polygonal Building Extraction by Frame Field Learning", CVPR 2021,
    and the code published with it, but that points are projected to the building that was matched, not to
    any building there is. Not symmetric: the reference is not walked.

    It is as published, but for walls :mod:`geoseg.wall_angle` says more: a step whose projections go round a corner
    counts, where the way round is about as long as the step.
    """
    result = np.full(len(predicted), np.nan)
    for part in _batches(len(predicted)):
        points, owner, ring = _sampled(predicted[part], spacing)
        lines = shapely.shortest_line(shapely.points(points), shapely.boundary(reference[part])[owner])
        nearest = shapely.get_coordinates(lines).reshape(-1, 2, 2)[:, 1]
        same = ring[1:] == ring[:-1]
        walked, projected = np.diff(points, axis=0)[same], np.diff(nearest, axis=0)[same]
        here, there = np.hypot(*walked.T), np.hypot(*projected.T)
        fine = (here > 0) & (there > 0) & (here < MAX_STRETCH * there) & (there < MAX_STRETCH * here)
        along = np.abs((walked[fine] * projected[fine]).sum(axis=1))
        across = np.abs(walked[fine, 0] * projected[fine, 1] - walked[fine, 1] * projected[fine, 0])
        # fmax passes over NaN, with which each building starts.
        np.fmax.at(result[part], owner[1:][same][fine], np.degrees(np.arctan2(across, along)))
    return result


def complexity_iou(iou: Floats, predicted: Index, reference: Index) -> Floats:
    """Return the C-IoU of pairs from their IoU and numbers of vertices.

    ``IoU · (1 - |N_A - N_B| / (N_A + N_B))``: too many or too few vertices take from the IoU. After Zorzi, Bazrafkan,
    Habenschuss and Fraundorfer, "PolyWorld: Polygonal Building Extraction with Graph Neural Networks in
    Satellite Images", CVPR 2022, who take an image with all its buildings for A and B; here each pair of
    matched buildings is A and B, so that missed buildings do not count twice and surplus here does not make up for
    want there.
    """
    return iou * (1 - np.abs(predicted - reference) / (predicted + reference))


def boundary_iou(one: Polygons, two: Polygons, distance: float = BOUNDARY) -> Floats:
    """Return the boundary IoU of each pair of buildings.

    The IoU of what lies in each building within ``distance`` of its own outline (of any ring), after Cheng et al. 2021
    (arXiv 2103.16562); here with areas in place of pixels, and the distance as the crow flies. The number of the same
    name that :class:`geoseg.metrics.Boundary` has is that of all buildings as pixels.
    """
    if not distance > 0:
        raise SettingError(f"the boundary's distance is {distance}; it must be above 0")
    result = np.zeros(len(one))
    for part in _batches(len(one)):
        bands = [shapely.difference(side, shapely.buffer(side, -distance)) for side in (one[part], two[part])]
        common = shapely.area(shapely.intersection(*bands))
        result[part] = common / (shapely.area(bands[0]) + shapely.area(bands[1]) - common)
    return result


# --- all together ------------------------------------------------------------------------------------------------


def _no_floats() -> Floats:
    return np.zeros(0)


def _no_counts() -> Index:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Matches:
    """What was measured at the pairs of matched buildings; arrays of one length."""

    iou: Floats = field(default_factory=_no_floats)
    """Intersection over union."""
    boundary_iou: Floats = field(default_factory=_no_floats)
    """See :func:`boundary_iou`."""
    polis: Floats = field(default_factory=_no_floats)
    """Metres."""
    hausdorff: Floats = field(default_factory=_no_floats)
    """Metres."""
    angle: Floats = field(default_factory=_no_floats)
    """Maximum tangent angle error, degrees; NaN where it cannot be told."""
    wall_angle: Floats = field(default_factory=_no_floats)
    """Mean angle of walls, degrees; see :mod:`geoseg.wall_angle`."""
    predicted_vertices: Index = field(default_factory=_no_counts)
    """Vertices of the prediction."""
    reference_vertices: Index = field(default_factory=_no_counts)
    """Vertices of the reference."""

    def __len__(self) -> int:
        return len(self.iou)

    def __add__(self, other: Matches) -> Matches:
        names = [f.name for f in fields(self)]
        return Matches(**{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})


def _no_hits() -> NDArray[np.int8]:
    return np.zeros((0, len(IOU_THRESHOLDS)), np.int8)


@dataclass(frozen=True, eq=False)
class PolygonScore:
    """What a comparison of buildings found in a tile, a city or all; adding two gives that of both together.

    Nothing is averaged over tiles: counts are summed, and means, medians and percentiles are over all matched buildings
    of all tiles. They say nothing about buildings that were not matched, for which there are precision and recall; so
    a method that finds only the easy buildings may look better in them than one that finds all.
    """

    fp: int = 0
    """Predicted buildings that no reference matches at IoU 0.5."""
    fn: int = 0
    """Reference buildings that no prediction matches at IoU 0.5."""
    matches: Matches = field(default_factory=Matches)
    """The others."""
    scores: Floats = field(default_factory=_no_floats)
    """Of every prediction, also those that do not count; NaN where there is none."""
    hits: NDArray[np.int8] = field(default_factory=_no_hits)
    """``(predictions, thresholds)``, see :func:`average_precision`."""

    def __add__(self, other: PolygonScore) -> PolygonScore:
        return PolygonScore(
            self.fp + other.fp,
            self.fn + other.fn,
            self.matches + other.matches,
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.hits, other.hits]),
        )

    @property
    def tp(self) -> int:
        """Pairs of matched buildings."""
        return len(self.matches)

    @property
    def predicted(self) -> int:
        """Predicted buildings that count."""
        return self.tp + self.fp

    @property
    def reference(self) -> int:
        """Buildings there are to find."""
        return self.tp + self.fn

    @property
    def precision(self) -> float:
        """Share of predicted buildings that match one."""
        return ratio(self.tp, self.predicted)

    @property
    def recall(self) -> float:
        """Share of buildings that were found."""
        return ratio(self.tp, self.reference)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return ratio(2 * self.tp, self.predicted + self.reference)

    def summary(self) -> dict[str, float]:
        """Return all figures by name, NaN where there is nothing to measure.

        ``ap`` is the mean of the average precision over :data:`IOU_THRESHOLDS`, ``ap50`` and ``ap75`` are those at one.
        ``n_ratio`` is the vertices of all matched predictions over those of their references (1 is best), after
        Zorzi et al. 2022, who take the mean of the ratio over images. The others are means over the matched
        pairs, ``…_median`` and ``…_p95`` the median and the 95th percentile.
        """
        pairs = self.matches
        by_threshold = average_precision(self.scores, self.hits, self.reference)
        complexity = complexity_iou(pairs.iou, pairs.predicted_vertices, pairs.reference_vertices)
        angles = pairs.angle[~np.isnan(pairs.angle)]
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "ap": float(by_threshold.mean()),
            "ap50": float(by_threshold[0]),
            "ap75": float(by_threshold[IOU_THRESHOLDS.index(0.75)]),
            "iou": _mean(pairs.iou),
            "boundary_iou": _mean(pairs.boundary_iou),
            "c_iou": _mean(complexity),
            "n_ratio": ratio(int(pairs.predicted_vertices.sum()), int(pairs.reference_vertices.sum())),
            "polis_m": _mean(pairs.polis),
            "polis_m_median": _percentile(pairs.polis, 50),
            "hausdorff_m": _mean(pairs.hausdorff),
            "hausdorff_m_p95": _percentile(pairs.hausdorff, 95),
            "tangent_angle_deg": _mean(angles),
            "tangent_angle_deg_median": _percentile(angles, 50),
            "wall_angle_deg": _mean(pairs.wall_angle),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return figures and counts for JSON; a figure without meaning is None."""
        counts = {"predicted": self.predicted, "reference": self.reference, "matched": self.tp}
        return {**counts, **{name: known(value) for name, value in self.summary().items()}}


def compare(
    predicted: Buildings,
    reference: Buildings,
    *,
    predicted_inside: Bools | None = None,
    reference_inside: Bools | None = None,
    spacing: float = SPACING,
    boundary: float = BOUNDARY,
) -> PolygonScore:
    """Match buildings one to one, and measure how they differ.

    A prediction matches a building from an IoU of 0.5 on; conflicts, which only overlapping buildings on one side can
    have, go to the higher IoU (see :func:`one_to_one`). For the average precision, predictions choose in the order of
    their scores instead, at each threshold anew, as in COCO's evaluation.

    Where only an area counts, all buildings are matched, also beyond it, and then counted: a building, and the
    prediction that matches it, where the building is inside; a prediction without partner where it is inside itself.

    Args:
        predicted: with scores, if there are any.
        reference: its scores do not matter.
        predicted_inside: which predictions lie in the area that counts; None for all.
        reference_inside: likewise.
        spacing: between points along outlines, units of the coordinates.
        boundary: distance of the boundary IoU, units of the coordinates.

    Raises:
        SettingError: a length is not above 0, or a mask does not fit.
    """
    ours_in = _mask(predicted_inside, len(predicted))
    theirs_in = _mask(reference_inside, len(reference))
    pairs, iou = overlaps(predicted.outlines, reference.outlines)
    taken = one_to_one(pairs, iou)
    state = _states(pairs[taken], ours_in, theirs_in)
    counted = taken[theirs_in[pairs[taken, 1]]]
    one, two = predicted.outlines[pairs[counted, 0]], reference.outlines[pairs[counted, 1]]
    scores = np.full(len(predicted), np.nan) if predicted.scores is None else predicted.scores.astype(np.float64)
    rank = np.zeros(len(predicted)) if np.isnan(scores).any() else scores
    hits = np.zeros((len(predicted), len(IOU_THRESHOLDS)), np.int8)
    for index, threshold in enumerate(IOU_THRESHOLDS):
        fit = np.flatnonzero(iou >= threshold - _SLACK)
        chosen = fit[one_to_one(pairs[fit], rank[pairs[fit, 0]], iou[fit])]
        hits[:, index] = _states(pairs[chosen], ours_in, theirs_in)
    return PolygonScore(
        fp=int(np.count_nonzero(state == _FALSE)),
        fn=int(np.count_nonzero(theirs_in)) - len(counted),
        matches=Matches(
            iou=iou[counted],
            boundary_iou=boundary_iou(one, two, boundary),
            polis=polis(one, two),
            hausdorff=hausdorff(one, two, spacing),
            angle=tangent_angle(one, two, spacing),
            wall_angle=wall_angle(one, two, spacing),
            predicted_vertices=vertices(one),
            reference_vertices=vertices(two),
        ),
        scores=scores,
        hits=hits,
    )


def _mask(inside: Bools | None, count: int) -> Bools:
    mask = np.ones(count, bool) if inside is None else np.asarray(inside, bool)
    if mask.shape != (count,):
        raise SettingError(f"{count} buildings need as many values that say whether they are inside, not {mask.shape}")
    return mask


def _states(matched: Index, ours_in: Bools, theirs_in: Bools) -> NDArray[np.int8]:
    """Return for each prediction whether it counts as found, as false or not at all."""
    state = np.where(ours_in, _FALSE, _IGNORED).astype(np.int8)
    state[matched[:, 0]] = np.where(theirs_in[matched[:, 1]], _COUNTED, _IGNORED)
    return state


def _batches(count: int) -> Iterator[slice]:
    for start in range(0, count, BATCH):
        yield slice(start, start + BATCH)


def _rings(outlines: Polygons) -> tuple[Polygons, Index]:
    """Return all rings, and the building of each."""
    parts, owner = shapely.get_parts(outlines, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, owner[part]


def _corners(outlines: Polygons) -> tuple[Floats, Index]:
    """Return the vertices of buildings, ``(vertices, 2)``, and the building of each, ascending."""
    rings, owner = _rings(outlines)
    points, ring = shapely.get_coordinates(shapely.remove_repeated_points(rings), return_index=True)
    # Rings end with their first point.
    keep = np.zeros(len(ring), bool)
    keep[:-1] = ring[1:] == ring[:-1]
    return points[keep], owner[ring[keep]]


def _sampled(outlines: Polygons, spacing: float) -> tuple[Floats, Index, Index]:
    """Return points along closed rings, ``(points, 2)``, and building and ring of each, ascending."""
    if not spacing > 0:
        raise SettingError(f"the spacing along outlines is {spacing}; it must be above 0")
    rings, owner = _rings(outlines)
    points, ring = shapely.get_coordinates(shapely.segmentize(rings, spacing), return_index=True)
    return points, owner[ring], ring


def _mean_distance(one: Polygons, two: Polygons) -> Floats:
    """Return the mean over the vertices of ``one`` of the distance to the outline of ``two``, pair by pair."""
    result = np.zeros(len(one))
    for part in _batches(len(one)):
        points, owner = _corners(one[part])
        away = shapely.distance(shapely.points(points), shapely.boundary(two[part])[owner])
        result[part] = np.bincount(owner, away) / np.bincount(owner)
    return result


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _percentile(values: Floats, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else math.nan
