"""The walls of buildings, found in their outlines: where each begins and ends, on which line it lies.

1. The outline is sampled about once a pixel. Of a pixel outline these are the middles of its pixels' edges, and lines
   through them have no steps.
2. Douglas and Peucker's simplification (Cartographica 10, 1973; GEOS's, which keeps polygons valid) says which samples
   are corners, and so which samples are one wall.
3. A wall's line is fitted to its samples by least squares of the distances (the principal axis), not drawn from corner
   to corner: a wall of 30 samples is placed several times more accurately than its two ends are. Samples near the
   corners, which networks round off, do not count.
4. The walls' angles modulo 90°, weighted by length, have their peak at the building's direction: the *statistical
   weighting* of walls of Duchêne et al. (Quantitative and qualitative description of building orientation, ICA workshop
   on generalisation, Paris 2003), refined by the circular mean round the peak.

Everything here is sums in the order of one building's samples, products and square roots: the last bit does not depend
on which buildings are worked on together, nor on where they stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

Polygons = NDArray[np.object_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

MAX_ANGLE = 20.0
"""Degrees by which a wall may be off the building's direction and still belong to it."""
BINS = 30
"""Directions tried in 90° to find the peak."""
TRIM = 2
"""Samples at either end of a wall that its line is not fitted to, if it has twelve or more; of a shorter one, one."""
FITTED = 4
"""Samples that a line is fitted to; a shorter wall keeps the angle from corner to corner."""


@dataclass(frozen=True, eq=False)
class Walls:
    """The walls of many polygons, in order along their rings; each polygon in its own frame, its direction being u."""

    coarse: Polygons
    """The polygons with only the corners left, valid."""
    owner: Index
    """Polygon of each wall, ascending; wall i runs from corner i to the next of its ring."""
    following: Index
    """The next wall of its ring."""
    previous: Index
    """The one before."""
    corner: Floats
    """``(walls, 2)``: where it begins."""
    start: Floats
    """``(walls, 2)``: its corners, moved onto its line, in the polygon's frame."""
    end: Floats
    length: Floats
    middle: Floats
    """``(walls, 2)``: a point of its line, the mean of its samples, in the frame."""
    ring_begin: Index
    """First wall of each ring, and the total."""
    polygon_begin: Index
    """First ring of each polygon, and the total."""
    direction: Floats
    """``(polygons, 2)``: unit vector of u."""
    share: Floats
    """Share of each outline that runs along u or v."""

    def from_frame(self, uv: Floats, polygon: Index) -> Floats:
        """Return points that are given in the frames of polygons in the polygons' own coordinates."""
        c, s = self.direction[polygon].T
        return turned(uv, np.stack([c, -s], axis=1))


def find_walls(polygons: Polygons, tolerance: float) -> Walls:
    """Return the walls of valid polygons in pixels; no sample is farther than ``tolerance`` from the coarse outline.

    The polygons should stand near the origin, for the last digits' sake.
    """
    samples, ring, size, polygon_ring = _samples(polygons)
    owner_of_ring = np.repeat(np.arange(len(polygons)), np.diff(polygon_ring))
    begin = np.cumsum(size) - size
    numbered = np.column_stack([samples, np.arange(len(samples), dtype=np.float64)])
    coarse = _corners_only(shapely.linearrings(numbered, indices=ring), owner_of_ring, tolerance)
    _, coords, (ring_ends, polygon_begin) = shapely.to_ragged_array(coarse, include_z=True)
    last = np.zeros(len(coords), bool)
    last[ring_ends[1:] - 1] = True
    first = coords[~last, 2].astype(np.int64)
    ring_begin = ring_ends - np.arange(len(ring_ends))
    following, previous = np.arange(len(first)) + 1, np.arange(len(first)) - 1
    following[ring_begin[1:] - 1] = ring_begin[:-1]
    previous[ring_begin[:-1]] = ring_begin[1:] - 1
    wall_ring = np.repeat(np.arange(len(size)), np.diff(ring_begin))
    owner = owner_of_ring[wall_ring]
    count = (first[following] - first) % size[wall_ring]
    middle, axis = _fits(samples, first, count, begin[wall_ring], size[wall_ring])
    corner = samples[first]
    chord = corner[following] - corner
    fitted = (axis[:, 0] != 0) | (axis[:, 1] != 0)
    reach = np.sqrt(chord[:, 0] ** 2 + chord[:, 1] ** 2)
    axis = np.where(fitted[:, None], axis, chord / reach[:, None])
    axis *= np.where(_dot(axis, chord) < 0, -1.0, 1.0)[:, None]
    start = middle + axis * _dot(corner - middle, axis)[:, None]
    end = middle + axis * _dot(corner[following] - middle, axis)[:, None]
    direction, share = _directions(axis, reach, fitted, owner, len(polygons))
    frame = direction[owner]
    return Walls(
        coarse=shapely.force_2d(coarse),
        owner=owner,
        following=following,
        previous=previous,
        corner=corner,
        start=turned(start, frame),
        end=turned(end, frame),
        length=reach,
        middle=turned(middle, frame),
        ring_begin=ring_begin,
        polygon_begin=polygon_begin,
        direction=direction,
        share=share,
    )


def _corners_only(rings: Polygons, owner: Index, tolerance: float) -> Polygons:
    """Return the polygons of rings, simplified; a third of the time that keeping all valid from the start takes."""
    dense = shapely.polygons(rings, indices=owner)
    simple = shapely.simplify(rings, tolerance, preserve_topology=False)
    sound = shapely.get_num_coordinates(simple) >= 4
    whole = np.bincount(owner[~sound], minlength=len(dense)) == 0
    coarse = np.array(dense, dtype=object)
    kept = whole[owner]
    number = np.cumsum(whole) - 1
    coarse[whole] = shapely.polygons(simple[kept], indices=number[owner[kept]])
    whole &= shapely.is_valid(coarse)
    coarse[~whole] = shapely.simplify(dense[~whole], tolerance)
    return coarse


def turned(xy: Floats, direction: Floats) -> Floats:
    """Return vectors in a frame whose first axis is a unit vector."""
    (x, y), (c, s) = xy.T, direction.T
    return np.stack([x * c + y * s, y * c - x * s], axis=1)


def _dot(one: Floats, other: Floats) -> Floats:
    result: Floats = one[:, 0] * other[:, 0] + one[:, 1] * other[:, 1]
    return result


def _samples(polygons: Polygons) -> tuple[Floats, Index, Index, Index]:
    """Return samples along open rings, the ring of each, samples by ring, and the first ring of each polygon.

    Each edge is cut into pieces of about a pixel, whose middles are the samples; a ring has four at least. The first of
    a ring is the one farthest from its middle, for that is surely a corner.
    """
    _, coords, (ring_ends, polygon_ring) = shapely.to_ragged_array(polygons)
    ring_of = np.repeat(np.arange(len(ring_ends) - 1), np.diff(ring_ends))
    inner = np.ones(len(coords), bool)
    inner[ring_ends[1:] - 1] = False
    edge = np.flatnonzero(inner)
    vector: Floats = coords[edge + 1] - coords[edge]
    pieces = np.rint(np.sqrt(_dot(vector, vector))).astype(np.int64)
    few = np.bincount(ring_of[edge], pieces)[ring_of[edge]] < 4
    pieces = np.maximum(pieces, np.where(few, 2, 1))
    step = np.repeat(edge, pieces)
    part = np.arange(len(step)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    samples = coords[step] + vector.repeat(pieces, axis=0) * ((part + 0.5) / pieces.repeat(pieces))[:, None]
    ring = ring_of[step]
    size = np.bincount(ring)
    begin = np.cumsum(size) - size
    middle = np.stack([np.bincount(ring, values) / size for values in samples.T], axis=1)
    away = samples - middle[ring]
    reach = _dot(away, away)
    hits = np.flatnonzero(reach == np.maximum.reduceat(reach, begin)[ring])
    start = hits[np.unique(ring[hits], return_index=True)[1]]
    place = np.arange(len(ring)) - begin[ring]
    order = begin[ring] + (start[ring] - begin[ring] + place) % size[ring]
    return samples[order], ring, size, polygon_ring


def _fits(samples: Floats, first: Index, count: Index, begin: Index, size: Index) -> tuple[Floats, Floats]:
    """Return the mean and the unit vector of each wall's line; the vector is zero where samples are too few.

    Walls begin at sample ``first`` and have ``count`` samples up to the next; their rings begin at ``begin`` and
    have ``size`` samples.
    """
    # The sample at a corner may lie on either wall.
    trim = np.clip(count // 6, np.where(count > 1, 1, 0), TRIM)
    used = count + 1 - 2 * trim
    wall = np.repeat(np.arange(len(first)), used)
    place = np.arange(len(wall)) - np.repeat(np.cumsum(used) - used, used)
    at = begin[wall] + (first[wall] - begin[wall] + trim[wall] + place) % size[wall]
    x, y = samples[at].T
    mean = np.stack([np.bincount(wall, values) / used for values in (x, y)], axis=1)
    x, y = x - mean[wall, 0], y - mean[wall, 1]
    xx, xy, yy = (np.bincount(wall, values) for values in (x * x, x * y, y * y))
    # The principal axis lies at half the angle of this vector.
    double = np.stack([xx - yy, 2 * xy], axis=1)
    size_of = np.sqrt(_dot(double, double))
    good = (used >= FITTED) & (size_of > 0)
    axis = half_angle(double / np.where(good, size_of, 1.0)[:, None])
    return mean, np.where(good[:, None], axis, 0.0)


def _directions(
    axis: Floats, length: Floats, fitted: NDArray[np.bool_], owner: Index, count: int
) -> tuple[Floats, Floats]:
    """Return each building's direction as a unit vector (0 … 90°), and the share of its walls that agree.

    Angles modulo 90° are angles once multiplied by four. Walls with a fitted line decide, if there are any.
    """
    fitted = fitted | (np.bincount(owner, fitted, count) == 0)[owner]
    c, s = axis.T
    c2, s2 = c * c - s * s, 2 * c * s
    c4, s4 = c2 * c2 - s2 * s2, 2 * c2 * s2
    score = np.empty((BINS, count))
    tried = [(math.cos(angle), math.sin(angle)) for angle in (2 * math.pi * k / BINS for k in range(BINS))]
    narrow, wide = math.cos(4 * math.radians(MAX_ANGLE / 2)), math.cos(4 * math.radians(MAX_ANGLE))
    for k, (ck, sk) in enumerate(tried):
        agreement = np.maximum(c4 * ck + s4 * sk - narrow, 0)
        score[k] = np.bincount(owner, np.where(fitted, length * agreement, 0), count)
    peak = np.array(tried)[np.argmax(score, axis=0)]
    for _ in range(2):
        pc, ps = peak[owner].T
        # The angle of a line through samples is the less certain the shorter it is.
        weight = np.where(fitted & (c4 * pc + s4 * ps >= narrow), length * length, 0.0)
        mean: Floats = np.stack([np.bincount(owner, weight * one, count) for one in (c4, s4)], axis=1).astype(float)
        size = np.sqrt(_dot(mean, mean))
        peak = np.where(size[:, None] > 0, mean / np.where(size > 0, size, 1.0)[:, None], peak)
    pc, ps = peak[owner].T
    agrees = c4 * pc + s4 * ps >= wide
    share = np.bincount(owner, length * agrees, count) / np.bincount(owner, length, count)
    return half_angle(half_angle(peak)), share


def half_angle(unit: Floats) -> Floats:
    """Return unit vectors at half the angle, angles being -180° … 180°."""
    c, s = unit.T
    side = np.where(s < 0, -1.0, 1.0)
    # Two forms of the same half, each exact where the other loses digits.
    half_c = np.where(c >= 0, 1 + c, np.abs(s))
    half_s = np.where(c >= 0, s, side * (1 - c))
    size = np.sqrt(half_c**2 + half_s**2)
    return np.stack([half_c / size, half_s / size], axis=1)
