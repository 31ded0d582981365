"""Outlines as samples: which may be corners, and what direction a building has.

1. The outline is sampled about once a pixel. Of a pixel outline these are the middles of its pixels' edges, and lines
   through them have no steps.
2. Douglas and Peucker's simplification (Cartographica 10, 1973; GEOS's, which keeps polygons valid) says which samples
   are clear corners, and, with less tolerance, which may be corners at all.
3. Lines are fitted to the samples between clear corners by least squares of the distances (the principal axis), but for
   those near the corners, which networks round off.
4. The lines' angles modulo 90°, weighted by length, have their peak at the building's direction: the *statistical
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

from geoseg.fitting import FITTED, TRIM, UNIT

Polygons = NDArray[np.object_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

MAX_ANGLE = 20.0
"""Degrees by which a wall may be off the building's direction and still belong to it."""
BINS = 30
"""Directions tried in 90° to find the peak."""
FINE = 0.3
"""Tolerances within which a sample is no candidate for a corner."""


@dataclass(frozen=True, eq=False)
class Rings:
    """Samples along the rings of many polygons, and what they tell at first sight."""

    xy: Index
    """``(samples, 2)`` in units of one over :data:`UNIT` pixels; a ring's first sample comes again as its last."""
    size: Index
    """Samples of each ring, the one that comes again counted twice."""
    polygon_ring: Index
    """First ring of each polygon, and the total."""
    candidate: Index
    """Samples that may be corners, ring by ring: the first, the last, and at least two between."""
    candidates: Index
    """Candidates of each ring."""
    candidate_begin: Index
    """Where those of each ring begin."""
    coarse: Polygons
    """The polygons with only clear corners left, valid."""
    direction: Floats
    """``(polygons, 2)``: unit vector."""
    share: Floats
    """Share of each outline that runs along the direction or across it."""
    unevenness: Floats
    """By which share of the mean the distances of each shell's samples from its middle vary, as a standard deviation,
    once it is stretched to be as long as it is wide: 0 for a circle and nearly so for an ellipse, 0.11 for a square."""


def sampled(polygons: Polygons, tolerance: float, dense: bool = False) -> Rings:
    """Return the samples of valid polygons in pixels; none is farther than ``tolerance`` from the coarse outline.

    The polygons should stand near the origin, for the last digits' sake. If they are ``dense``, their vertices are the
    samples.
    """
    samples, ring, size, polygon_ring = _samples(polygons, dense)
    owner_of_ring = np.repeat(np.arange(len(polygons)), np.diff(polygon_ring))
    begin = np.cumsum(size) - size
    numbered = np.column_stack([samples, np.arange(len(samples), dtype=np.float64)])
    rings = shapely.linearrings(numbered, indices=ring)
    coarse = _corners_only(rings, owner_of_ring, tolerance)
    first, ring_begin = _numbers(coarse)
    wall_ring = np.repeat(np.arange(len(size)), np.diff(ring_begin))
    owner = owner_of_ring[wall_ring]
    following = np.arange(len(first)) + 1
    following[ring_begin[1:] - 1] = ring_begin[:-1]
    count = (first[following] - first) % size[wall_ring]
    axis = _axes(samples, first, count, begin[wall_ring], size[wall_ring])
    chord = samples[first[following]] - samples[first]
    fitted = (axis[:, 0] != 0) | (axis[:, 1] != 0)
    reach = np.sqrt(_dot(chord, chord))
    axis = np.where(fitted[:, None], axis, chord / np.where(reach > 0, reach, 1.0)[:, None])
    direction, share = _directions(axis, reach, fitted, owner, len(polygons))
    closed = np.repeat(begin, size + 1) + counted(size + 1) % np.repeat(size, size + 1)
    candidate, candidates = _candidates(samples[closed], size + 1, FINE * tolerance)
    return Rings(
        xy=np.rint(samples[closed] * UNIT).astype(np.int64),
        size=size + 1,
        polygon_ring=polygon_ring,
        candidate=candidate,
        candidates=candidates,
        candidate_begin=np.cumsum(candidates) - candidates,
        coarse=shapely.force_2d(coarse),
        direction=direction,
        share=share,
        unevenness=_unevenness(samples, ring, size)[polygon_ring[:-1]],
    )


def _numbers(polygons: Polygons) -> tuple[Index, Index]:
    """Return the numbers that samples carry as their third coordinate, open, and where rings begin among them."""
    _, coords, (ring_ends, _) = shapely.to_ragged_array(polygons, include_z=True)
    last = np.zeros(len(coords), bool)
    last[ring_ends[1:] - 1] = True
    return coords[~last, 2].astype(np.int64), ring_ends - np.arange(len(ring_ends))


def _candidates(xy: Floats, size: Index, tolerance: float) -> tuple[Index, Index]:
    """Return the samples of closed rings that may be corners, and the number of them for each ring."""
    numbered = np.column_stack([xy, np.arange(len(xy), dtype=np.float64)])
    # As lines, for of a ring GEOS may leave out the first point.
    lines = shapely.linestrings(numbered, indices=np.repeat(np.arange(len(size)), size))
    simple = shapely.simplify(lines, tolerance, preserve_topology=False)
    flat = shapely.get_num_coordinates(simple) < 4
    simple[flat] = lines[flat]
    coords, ring = shapely.get_coordinates(simple, include_z=True, return_index=True)
    return coords[:, 2].astype(np.int64), np.bincount(ring, minlength=len(size))


def counted(size: Index) -> Index:
    """Return 0 … n - 1 for each n."""
    place: Index = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
    return place


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


def _dot(one: Floats, other: Floats) -> Floats:
    result: Floats = one[:, 0] * other[:, 0] + one[:, 1] * other[:, 1]
    return result


def _samples(polygons: Polygons, dense: bool) -> tuple[Floats, Index, Index, Index]:
    """Return samples along open rings, the ring of each, samples by ring, and the first ring of each polygon.

    Each edge is cut into pieces of about a pixel, whose middles are the samples, or all vertices of dense rings are; a
    ring has four at least. The first of a ring is the one farthest from its middle, for that is surely a corner.
    """
    _, coords, (ring_ends, polygon_ring) = shapely.to_ragged_array(polygons)
    ring_of = np.repeat(np.arange(len(ring_ends) - 1), np.diff(ring_ends))
    inner = np.ones(len(coords), bool)
    inner[ring_ends[1:] - 1] = False
    edge = np.flatnonzero(inner)
    if dense:
        return _from_corner(coords[edge], ring_of[edge], polygon_ring)
    vector: Floats = coords[edge + 1] - coords[edge]
    pieces = np.rint(np.sqrt(_dot(vector, vector))).astype(np.int64)
    few = np.bincount(ring_of[edge], pieces)[ring_of[edge]] < 4
    pieces = np.maximum(pieces, np.where(few, 2, 1))
    step = np.repeat(edge, pieces)
    part = np.arange(len(step)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    samples = coords[step] + vector.repeat(pieces, axis=0) * ((part + 0.5) / pieces.repeat(pieces))[:, None]
    return _from_corner(samples, ring_of[step], polygon_ring)


def _from_corner(samples: Floats, ring: Index, polygon_ring: Index) -> tuple[Floats, Index, Index, Index]:
    """Let each ring begin with its outermost sample."""
    size = np.bincount(ring)
    begin = np.cumsum(size) - size
    middle = np.stack([np.bincount(ring, values) / size for values in samples.T], axis=1)
    away = samples - middle[ring]
    reach = _dot(away, away)
    hits = np.flatnonzero(reach == np.maximum.reduceat(reach, begin)[ring])
    start = hits[np.unique(ring[hits], return_index=True)[1]]
    place = np.arange(len(ring)) - begin[ring]
    order = begin[ring] + (start[ring] - begin[ring] + place) % size[ring]
    return np.rint(samples[order] * UNIT) / UNIT, ring, size, polygon_ring


def _axes(samples: Floats, first: Index, count: Index, begin: Index, size: Index) -> Floats:
    """Return the unit vector of each wall's line; zero where samples are too few.

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
    result: Floats = np.where(good[:, None], axis, 0.0)
    return result


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


def _unevenness(samples: Floats, ring: Index, size: Index) -> Floats:
    """Return it for each ring, see :class:`Rings`."""

    def mean(values: Floats) -> Floats:
        result: Floats = np.bincount(ring, values) / size
        return result

    x, y = (values - mean(values)[ring] for values in samples.T)
    xx, xy, yy = mean(x * x), mean(x * y), mean(y * y)
    det = xx * yy - xy * xy
    # The distance after stretching is that of Mahalanobis.
    scale = np.where(det > 0, det, 1.0)
    square = (yy[ring] * x * x - 2 * xy[ring] * x * y + xx[ring] * y * y) / scale[ring]
    away = np.sqrt(np.maximum(square, 0))
    middle = mean(away)
    return np.where(
        det > 0, np.sqrt(np.maximum(mean(away * away) - middle * middle, 0)) / np.maximum(middle, 1e-300), 1.0
    )


def half_angle(unit: Floats) -> Floats:
    """Return unit vectors at half the angle, angles being -180° … 180°."""
    c, s = unit.T
    side = np.where(s < 0, -1.0, 1.0)
    # Two forms of the same half, each exact where the other loses digits.
    half_c = np.where(c >= 0, 1 + c, np.abs(s))
    half_s = np.where(c >= 0, s, side * (1 - c))
    size = np.sqrt(half_c**2 + half_s**2)
    return np.stack([half_c / size, half_s / size], axis=1)
