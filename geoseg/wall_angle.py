"""By how much the walls of an outline are turned against those they stand for, on the average along it.

The maximum tangent angle error (:func:`geoseg.polygon_metrics.tangent_angle`) compares steps along an outline with the
steps of their projections, and where these go round a corner of the reference it sees an angle that no wall has: exact
outlines moved by 0.1, 0.2 and 0.3 m get 15°, 30° and 42°, steps of 0.5 m being taken, and outlines too far off to be
compared get less. This figure compares edges with edges.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

Polygons = NDArray[np.object_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

CELLS = 2_000_000
"""Pairs of a piece and an edge that are looked at together; it bounds the memory."""


def wall_angle(predicted: Polygons, reference: Polygons, spacing: float) -> Floats:
    """Return the mean angle of each pair, degrees from 0 to 90; of an outline with other angles than right ones, too.

    The predicted outline is cut into pieces of ``spacing`` at most. The angle of each is that to the reference's edge
    nearest to its middle, or to another that is at most ``spacing`` farther, if that is smaller: beside a corner the
    wall that a piece stands for need not be the nearest. It counts by the piece's length. All rings are walked, holes
    included, and the edge may lie on any ring. Not symmetric: the reference is not walked.
    """
    pieces, owner = _edges(shapely.segmentize(predicted, spacing))
    walls, building = _edges(reference)
    result = np.zeros(len(predicted))
    first, begin = (np.searchsorted(one, np.arange(len(predicted) + 1)) for one in (owner, building))
    size = np.diff(first) * np.diff(begin)
    bunch = np.cumsum(size) // CELLS
    for number in np.unique(bunch):
        pairs = np.flatnonzero(bunch == number)
        piece = np.arange(first[pairs[0]], first[pairs[-1] + 1])
        many = np.diff(begin)[owner[piece]]
        each = np.repeat(piece, many)
        start = np.cumsum(many) - many
        wall = begin[owner[each]] + np.arange(len(each)) - np.repeat(start, many)
        away, angle = _compared(pieces[each], walls[wall])
        nearest = np.minimum.reduceat(away, start)
        least = np.minimum.reduceat(np.where(away <= np.repeat(nearest, many) + spacing, angle, 90.0), start)
        step = pieces[piece, 1] - pieces[piece, 0]
        length = np.hypot(step[:, 0], step[:, 1])
        total = [np.bincount(owner[piece] - pairs[0], one, len(pairs)) for one in (length * least, length)]
        result[pairs] = total[0] / total[1]
    return result


def _edges(outlines: Polygons) -> tuple[Floats, Index]:
    """Return ``(edges, 2, 2)``: the ends of all edges, and the building of each, ascending."""
    parts, owner = shapely.get_parts(outlines, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(shapely.remove_repeated_points(rings), return_index=True)
    on = np.flatnonzero(ring[1:] == ring[:-1])
    return np.stack([xy[on], xy[on + 1]], axis=1), owner[part[ring[on]]]


def _compared(pieces: Floats, walls: Floats) -> tuple[Floats, Floats]:
    """Return how far the middle of each piece is from a wall, and the angle between the two."""
    middle = pieces.mean(axis=1)
    step, along = pieces[:, 1] - pieces[:, 0], walls[:, 1] - walls[:, 0]
    share = ((middle - walls[:, 0]) * along).sum(axis=1) / (along**2).sum(axis=1)
    gap = walls[:, 0] + along * np.clip(share, 0, 1)[:, None] - middle
    cross = np.abs(step[:, 0] * along[:, 1] - step[:, 1] * along[:, 0])
    return np.hypot(gap[:, 0], gap[:, 1]), np.degrees(np.arctan2(cross, np.abs((step * along).sum(axis=1))))
