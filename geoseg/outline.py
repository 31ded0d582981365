"""Straighten the outlines of whole buildings: stairs of pixels become the walls they stand for.

This is Douglas and Peucker's line simplification (Cartographica 10, 1973) with two changes that
pixel outlines need.

**Where vertices may lie.** The ends of a *step* (an edge one pixel long between a left and a
right turn) are an effect of the pixel grid: a straight wall, digitised, has steps in one of its
two directions only. The middle of a step lies on the wall within half a pixel, its ends need not.
So new outlines run through middles of steps and through corners that no straight wall has: those
away from steps, and the ends of an edge between two turns to one side.

**How far a line may leave the building.** Neighbours are not looked at, since they may lie in
another block, and a result must not depend on blocks. Instead every building keeps to ground that
no other building's outline can take: of a background pixel beside it, the triangle between their
common edge and the pixel's centre, and along a longer edge the half pixel beside it. The
triangles of two buildings do not overlap, not even where buildings touch at a corner or stand one
pixel apart. For a line that means: no outward corner on its inner side, and no inward corner
further inside than half a pixel as seen along the axes. The digitised line itself always
qualifies.

Every corner of the old outline is within the tolerance of the new one. An outline that would
become invalid or change its area by more than :data:`MAX_AREA_CHANGE` is done again with half the
tolerance, or stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SettingError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

MIN_TOLERANCE = 0.5
"""Pixels; below this no step can be levelled and outlines stay as they are."""
MAX_AREA_CHANGE = 0.1
"""Share of its area by which simplifying may change a building."""
EPSILON = 1e-9
"""Pixels of rounding allowed when a corner lies on a line."""


def simplify(polygons: NDArray[np.object_], tolerance_px: float) -> NDArray[np.object_]:
    """Return straightened outlines: one each, valid, none empty, none on another's ground.

    Args:
        polygons: ``(n,)`` array of pixel outlines as :mod:`geoseg.polygonize` makes them: valid, edges along pixel
            edges, no vertex on a straight line, integer coordinates.
        tolerance_px: how far, in pixels, a corner of the old outline may be from the new one. Below half a pixel the
            polygons come back unchanged; 1 is enough to make straight walls straight.

    Raises:
        SettingError: the tolerance is negative or not a number, or a polygon is not a pixel outline.
    """
    if not (math.isfinite(tolerance_px) and tolerance_px >= 0):
        raise SettingError(f"tolerance is {tolerance_px} px; it must be a number not below 0")
    result: NDArray[np.object_] = np.array(polygons, dtype=object)
    todo = np.arange(len(result))
    tolerance = tolerance_px
    while len(todo) and tolerance >= MIN_TOLERANCE:
        before = shapely.normalize(result[todo])
        after, lost = _straightened(before, tolerance)
        good = shapely.is_valid(after)
        if tolerance >= 2 * MIN_TOLERANCE:
            good &= ~lost
        area = shapely.area(before)
        good &= np.abs(shapely.area(after) - area) <= MAX_AREA_CHANGE * area
        result[todo[good]] = shapely.normalize(after[good])
        todo = todo[~good]
        tolerance /= 2
    return result


@dataclass(frozen=True)
class _Chain:
    """All rings of many polygons as one row of points; a ring ends with its first point again."""

    xy: Floats
    """``(points, 2)``: corners and, between them, middles of steps."""
    ring: Index
    """Ring of each point, ascending."""
    convex: Bools
    """The building turns outward here (corners only)."""
    corner: Bools
    """A corner, not the middle of a step."""
    candidate: Bools
    """A vertex may stay here."""


def _straightened(polygons: NDArray[np.object_], tolerance: float) -> tuple[NDArray[np.object_], Bools]:
    """Return outlines with few vertices, and which polygons have a ring that came down to a line.

    Such a ring (a small hole, say) keeps all its corners.

    The polygons must be normalised: shells run clockwise and holes counter-clockwise, the
    building to their right.
    """
    _, coords, (ring_ends, polygon_ends) = shapely.to_ragged_array(polygons)
    sizes = np.diff(ring_ends) - 1
    last = np.zeros(len(coords), bool)
    last[ring_ends[1:] - 1] = True
    ring = np.repeat(np.arange(len(sizes)), sizes)
    chain = _from_best_start(_chain(coords[~last], ring, sizes))
    kept = _fewer(chain, _kept(chain, tolerance), tolerance)
    lost = np.bincount(chain.ring[kept]) < 4
    kept = np.where(lost[chain.ring], chain.corner, kept)
    rings = shapely.linearrings(chain.xy[kept], indices=chain.ring[kept])
    owners = np.repeat(np.arange(len(polygons)), np.diff(polygon_ends))
    straight = np.asarray(shapely.polygons(rings, indices=owners), dtype=object)
    return straight, np.bincount(owners[lost], minlength=len(polygons)) > 0


def _chain(xy: Floats, ring: Index, sizes: Index) -> _Chain:
    """Return the points of open rings: corners, middles of steps, and what each of them is."""
    begin = np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = sizes[ring]
    place = np.arange(len(xy)) - begin
    following, previous = begin + (place + 1) % size, begin + (place - 1) % size
    edge = xy[following] - xy
    if ((edge[:, 0] != 0) == (edge[:, 1] != 0)).any() or (xy != np.round(xy)).any():
        raise SettingError("outlines to simplify must run along pixel edges, in whole pixels")
    before = edge[previous]
    convex = before[:, 0] * edge[:, 1] - before[:, 1] * edge[:, 0] < 0
    tip = convex == convex[following]
    step = (np.abs(edge[:, 0]) + np.abs(edge[:, 1]) == 1) & ~tip
    steps = np.flatnonzero(step)
    # No straight wall has an edge between two turns to the same side: both its ends are true
    # corners.
    stays = tip | tip[previous] | ~(step | step[previous])
    position = np.concatenate([np.arange(len(xy)) * 2, steps * 2 + 1])
    order = np.argsort(position, kind="stable")
    middles = np.ones(len(steps), bool)
    return _Chain(
        xy=np.concatenate([xy, xy[steps] + edge[steps] / 2])[order],
        ring=np.concatenate([ring, ring[steps]])[order],
        convex=np.concatenate([convex, ~middles])[order],
        corner=np.concatenate([np.ones(len(xy), bool), ~middles])[order],
        candidate=np.concatenate([stays, middles])[order],
    )


def _from_best_start(chain: _Chain) -> _Chain:
    """Return the chain with each ring starting and ending at its outermost candidate."""
    ring = chain.ring
    count = np.bincount(ring)
    begin = np.cumsum(count) - count
    centre = np.stack([np.bincount(ring, axis) for axis in chain.xy.T], axis=1) / count[:, None]
    away_x, away_y = (chain.xy - centre[ring]).T
    reach = away_x * away_x + away_y * away_y
    start = _first_largest(np.where(chain.candidate, reach, -1.0), begin)
    length = count + 1
    new_ring = np.repeat(np.arange(len(count)), length)
    place = np.arange(len(new_ring)) - np.repeat(np.cumsum(length) - length, length)
    source = begin[new_ring] + (start[new_ring] - begin[new_ring] + place) % count[new_ring]
    return _Chain(
        chain.xy[source],
        new_ring,
        chain.convex[source],
        chain.corner[source],
        chain.candidate[source],
    )


def _first_largest(values: Floats, begin: Index) -> Index:
    """Return where the first largest value of each group lies; groups start at ``begin``."""
    largest = np.maximum.reduceat(values, begin)
    group = np.repeat(np.arange(len(begin)), np.diff(np.append(begin, len(values))))
    hits = np.flatnonzero(values == largest[group])
    return hits[np.unique(group[hits], return_index=True)[1]]


def _kept(chain: _Chain, tolerance: float) -> Bools:
    """Return which points become vertices: split lines at the farthest candidate until all will do."""
    kept = np.zeros(len(chain.ring), bool)
    kept[:1] = kept[-1:] = True
    changes = np.flatnonzero(np.diff(chain.ring))
    kept[changes] = kept[changes + 1] = True
    active = np.flatnonzero(~kept)
    while len(active):
        ends = np.flatnonzero(kept)
        line = np.searchsorted(ends, active)
        bad, distance = _judge(chain, active, ends[line - 1], ends[line], tolerance)
        begin = np.flatnonzero(np.diff(line, prepend=-1))
        group = np.cumsum(np.diff(line, prepend=line[:1]) != 0)
        distance = np.where(chain.candidate[active], distance, -1.0)
        split = np.logical_or.reduceat(bad, begin) & (np.maximum.reduceat(distance, begin) >= 0)
        kept[active[_first_largest(distance, begin)[split]]] = True
        active = active[split[group]]
        active = active[~kept[active]]
    return kept


def _fewer(chain: _Chain, kept: Bools, tolerance: float) -> Bools:
    """Return the vertices that are needed; splitting leaves some others, mostly mid-wall."""
    kept = kept.copy()
    for parity in (0, 1, 0, 1):
        ends = np.flatnonzero(kept)
        ring = chain.ring[ends]
        count = np.bincount(ring)
        place = np.arange(len(ends)) - (np.cumsum(count) - count)[ring]
        # Every other vertex at a time, so that no line is judged while its ends may go; four
        # vertices stay.
        inner = (place > 0) & (place < count[ring] - 1) & (place % 2 == parity)
        trial = kept.copy()
        trial[ends[inner & (count[ring] > 5)]] = False
        gone = np.flatnonzero(kept & ~trial)
        if not len(gone):
            continue
        ends = np.flatnonzero(trial)
        between = np.flatnonzero(~trial)
        line = np.searchsorted(ends, between)
        bad, _ = _judge(chain, between, ends[line - 1], ends[line], tolerance)
        refused = np.zeros(len(ends) + 1, bool)
        refused[line[bad]] = True
        kept[gone] = refused[np.searchsorted(ends, gone)]
    return kept


def _judge(chain: _Chain, points: Index, start: Index, end: Index, tolerance: float) -> tuple[Bools, Floats]:
    """Say which points forbid the line from ``start`` to ``end``, and how far each is from it."""
    (x, y), (px, py) = chain.xy.T, chain.xy[points].T
    x0, y0 = x[start], y[start]
    dx, dy, ax, ay = x[end] - x0, y[end] - y0, px - x0, py - y0
    length = np.sqrt(dx * dx + dy * dy)
    closed = length == 0
    length[closed] = 1.0
    # Positive to the left, which is outside the building.
    outside = (dx * ay - dy * ax) / length
    along = (dx * ax + dy * ay) / length
    beyond = along - np.clip(along, 0.0, np.where(closed, 0.0, length))
    # From the ring's start back to itself there is no line, only a point.
    aside = np.where(closed, np.sqrt(ax * ax + ay * ay), outside)
    distance = np.sqrt(aside * aside + beyond * beyond)
    # Half a pixel along both axes, seen at a right angle to the line.
    room = np.where(chain.convex[points], 0.0, (np.abs(dx) + np.abs(dy)) / length / 2)
    bad = chain.corner[points] & ((outside < -room - EPSILON) | (distance > tolerance + EPSILON))
    return bad | closed, distance
