"""Square up the outlines of whole buildings: walls that are nearly at right angles become exactly so.

Meant for outlines that :func:`geoseg.outline.simplify` has straightened. Each building is looked at alone: a result
depends neither on its neighbours nor on which buildings come in the same call.

1. **Direction.** The walls' angles modulo 90°, weighted by length, have their peak at the building's direction: the
   *statistical weighting* of walls of Duchêne et al. (Quantitative and qualitative description of building orientation,
   ICA workshop on generalisation, Paris 2003), refined by the circular mean round the peak. Building Regulariser (as
   published in 2025) takes the longest edge instead, which one long diagonal wall is enough to mislead.
2. **Is it square at all?** Where less than :data:`MIN_SHARE` of the outline runs along the two directions, the building
   is round or irregular and stays as it is.
3. **Snap.** A wall nearly along a direction is turned onto it through its middle. A long wall clearly off is a diagonal
   wall and keeps its line. A short edge askew is a cut corner and goes. Parallel neighbours nearer than the tolerance
   become one wall, others are joined by a perpendicular, everything else by intersection. Turning edges about their
   middles and reconnecting them so is the method of Building Regulariser, after RS-building-regularization; geoai's
   ``orthogonalize`` aims at the same. None of their code is used. Lokhat and Touya (Journal of Spatial Information
   Science 13, 2016, https://doi.org/10.5311/JOSIS.2016.13.276) square by least squares over all vertices at once.
4. **Check.** Where the new outline strays from the old one, the walls there are left as they were and the rest is done
   again; a result that is invalid or changes the area by more than :data:`MAX_AREA_CHANGE` is done again with half the
   tolerance. What does not succeed in :data:`ATTEMPTS` is given up, and the building stays as it is.

**Neighbours may overlap.** ``simplify`` keeps every building to its own ground; turning a wall about its middle moves
one half of it outward, and a cut corner grows back, each by up to the tolerance (or one pixel, if that is more).
Buildings less than twice that apart can come to overlap in a thin wedge. It is rare but not ruled out: of 6083
buildings of a dense town (Accra at 0.3 m) 40 did at a tolerance of one pixel, by at most 0.6 pixels of area each and
3e-7 of the whole; at three pixels it was 241, and 2e-5.

**Blunt corners.** The pixels of a building at 45° can lack the tip of a corner by more than one pixel. With a
tolerance of 1 such a tip stays blunt, one corner in thirty; with 1.5 it comes back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SettingError

Polygons = NDArray[np.object_]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Point = tuple[float, float]
Vertex = tuple[Point, int, int]

MAX_ANGLE = 20.0
"""Degrees by which a wall may be off the building's direction and still belong to it."""
MIN_SHARE = 0.7
"""Share of an outline that must run along the two directions for the building to be squared."""
MAX_AREA_CHANGE = 0.05
"""Share of its area by which squaring may change a building."""
CUT = 4.0
"""Tolerances; how long an edge askew may be to be a corner cut by the pixel grid, not a wall. All edges cut at a corner
may be twice as long together. Whether it was one is seen from the result: a true cut leaves the corner too far off."""
ATTEMPTS = 8
"""How often a building is tried, each time with more of its edges left alone, or half the tolerance."""
BINS = 30
"""Directions tried in 90° to find the peak."""
EPSILON = 1e-9
"""Pixels of rounding."""

_ALONG_U, _ALONG_V, _FREE, _CUT = range(4)
"""What an edge is: along the direction, across it, a diagonal wall, a cut corner."""


def square_up(polygons: Polygons, tolerance_px: float) -> Polygons:
    """Return squared outlines: one each, valid, none empty, with as many holes as before.

    No guarantee that neighbours stay apart; see the module.

    Args:
        polygons: ``(n,)`` array of valid polygons in pixels (x = column, y = row), as they come from
            :func:`geoseg.outline.simplify`.
        tolerance_px: how far, in pixels, a wall's end may move when its wall is turned, and how far apart parallel
            walls may be to become one. No vertex of the new outline is farther from the old one, nor the other way
            round, than this or one pixel, whichever is more. 0 changes nothing.

    Raises:
        SettingError: the tolerance is negative or not a number.
    """
    if not (math.isfinite(tolerance_px) and tolerance_px >= 0):
        raise SettingError(f"tolerance is {tolerance_px} px; it must be a number not below 0")
    result: Polygons = np.array(polygons, dtype=object)
    if not len(result) or tolerance_px == 0:
        return result
    before = shapely.normalize(shapely.remove_repeated_points(result))
    walls = _walls(before)
    area = shapely.area(before)
    reach = max(tolerance_px, 1.0) + EPSILON
    tolerance = np.full(len(result), float(tolerance_px))
    stays = np.zeros(len(walls.uv), bool)
    todo = np.flatnonzero(walls.share >= MIN_SHARE)
    known: dict[int, list[Vertex]] = {}
    for _ in range(ATTEMPTS):
        if not len(todo):
            break
        todo, after, sources = _squared(before, walls, todo, tolerance, stays, known)
        sound = shapely.is_valid(after) & (np.abs(shapely.area(after) - area[todo]) <= MAX_AREA_CHANGE * area[todo])
        strays = _strays(walls, before[todo], after, todo, sources, stays, reach)
        far = np.bincount(np.searchsorted(todo, walls.owner[strays]), minlength=len(todo)) > 0
        good = sound & ~far
        result[todo[good]] = shapely.normalize(after[good])
        stays[strays] = True
        tolerance[todo[~far]] /= 2
        begin, end = walls.polygon_begin[todo[~far]], walls.polygon_begin[todo[~far] + 1]
        outdated = (np.searchsorted(walls.ring_begin, strays, side="right") - 1).tolist()
        for pair in zip(begin.tolist(), end.tolist(), strict=True):
            outdated += range(*pair)
        for ring in outdated:
            known.pop(ring, None)
        todo = todo[~good]
    return result


def _strays(
    walls: _Walls, before: Polygons, after: Polygons, todo: Index, sources: Index, stays: Bools, reach: float
) -> Index:
    """Return the edges to leave alone, because old and new outline are too far apart where they are.

    ``sources`` says for each vertex of ``after`` which two old edges, and what was between, it comes from.
    """
    old, new = shapely.boundary(before), shapely.boundary(after)
    shapely.prepare(old)
    shapely.prepare(new)
    chosen = np.zeros(len(walls.share), bool)
    chosen[todo] = True
    mine = np.flatnonzero(chosen[walls.owner])
    place = np.searchsorted(todo, walls.owner[mine])
    lost = mine[~shapely.dwithin(new[place], shapely.points(walls.xy[mine]), reach)]
    rings, owner = shapely.get_rings(after, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    vertex = np.append(ring[1:] == ring[:-1], np.zeros(min(len(ring), 1), bool))
    apart = sources[~shapely.dwithin(old[owner[ring[vertex]]], shapely.points(xy[vertex]), reach)]
    # What was cut away between two walls comes back first, the longer of two walls last.
    found = [_shorter(walls, stays, np.stack([walls.previous[lost], lost], axis=1))]
    direct = walls.following[apart[:, 0]] == apart[:, 1]
    found.append(_shorter(walls, stays, apart[direct]))
    for first, last in apart[~direct].tolist():
        edge = int(walls.following[first])
        while edge != last:
            found.append(np.array([edge]))
            edge = int(walls.following[edge])
    return np.unique(np.concatenate(found))


def _shorter(walls: _Walls, stays: Bools, pairs: Index) -> Index:
    """Return of each pair of edges the shorter that is not left alone already."""
    length = walls.length[pairs]
    length[stays[pairs]] = np.inf
    return pairs[np.arange(len(pairs)), np.argmin(length, axis=1)]


@dataclass(frozen=True)
class _Walls:
    """The edges of many polygons, each polygon in its own frame: turned so that its direction is u."""

    xy: Floats
    """``(vertices, 2)``: open rings, one after another; edge i runs from vertex i to the next of its ring."""
    owner: Index
    """Polygon of each vertex, ascending."""
    following: Index
    """The next vertex of its ring."""
    previous: Index
    """The one before."""
    uv: Floats
    """``(vertices, 2)``: the vertices in the polygon's frame."""
    edge: Floats
    """``(vertices, 2)``: the edges as vectors in that frame."""
    length: Floats
    """Their lengths."""
    ring_begin: Index
    """First vertex of each ring, and the total."""
    polygon_begin: Index
    """First ring of each polygon, and the total."""
    origin: Floats
    """``(polygons, 2)``: where each frame begins."""
    direction: Floats
    """``(polygons, 2)``: unit vector of u."""
    share: Floats
    """Share of each outline that runs along u or v."""


def _walls(polygons: Polygons) -> _Walls:
    _, coords, (ring_ends, polygon_begin) = shapely.to_ragged_array(polygons)
    last = np.zeros(len(coords), bool)
    last[ring_ends[1:] - 1] = True
    xy = coords[~last]
    ring_begin = ring_ends - np.arange(len(ring_ends))
    owner = np.repeat(np.arange(len(polygons)), np.diff(ring_begin[polygon_begin]))
    origin = xy[ring_begin[polygon_begin[:-1]]]
    edge = np.diff(coords, axis=0, append=0)[~last]
    direction, share = _directions(edge, owner, len(polygons))
    following, previous = np.arange(len(xy)) + 1, np.arange(len(xy)) - 1
    following[ring_begin[1:] - 1] = ring_begin[:-1]
    previous[ring_begin[:-1]] = ring_begin[1:] - 1
    return _Walls(
        xy=xy,
        owner=owner,
        following=following,
        previous=previous,
        uv=_into_frame(xy - origin[owner], direction[owner]),
        edge=_into_frame(edge, direction[owner]),
        length=np.sqrt(edge[:, 0] ** 2 + edge[:, 1] ** 2),
        ring_begin=ring_begin,
        polygon_begin=polygon_begin,
        origin=origin,
        direction=direction,
        share=share,
    )


def _into_frame(xy: Floats, direction: Floats) -> Floats:
    (x, y), (c, s) = xy.T, direction.T
    return np.stack([x * c + y * s, y * c - x * s], axis=1)


def _directions(edge: Floats, owner: Index, count: int) -> tuple[Floats, Floats]:
    """Return each building's direction as a unit vector (0 … 90°), and the share of its edges that agree.

    Angles modulo 90° are angles once multiplied by four. All of it is products, sums in order and square roots, whose
    last bit does not depend on how many buildings are worked on together, as that of an arc tangent can.
    """
    length = np.sqrt(edge[:, 0] ** 2 + edge[:, 1] ** 2)
    c, s = (edge / length[:, None]).T
    c2, s2 = c * c - s * s, 2 * c * s
    c4, s4 = c2 * c2 - s2 * s2, 2 * c2 * s2
    score = np.empty((BINS, count))
    tried = [(math.cos(angle), math.sin(angle)) for angle in (2 * math.pi * k / BINS for k in range(BINS))]
    narrow, wide = math.cos(4 * math.radians(MAX_ANGLE / 2)), math.cos(4 * math.radians(MAX_ANGLE))
    for k, (ck, sk) in enumerate(tried):
        score[k] = np.bincount(owner, length * np.maximum(c4 * ck + s4 * sk - narrow, 0), count)
    peak = np.array(tried)[np.argmax(score, axis=0)]
    for limit in (narrow, narrow):
        pc, ps = peak[owner].T
        # An edge between two pixels is off by an angle that falls with its length: hence the square.
        weight = np.where(c4 * pc + s4 * ps >= limit, length * length, 0.0)
        mean = np.stack([np.bincount(owner, weight * one, count) for one in (c4, s4)], axis=1)
        size = np.sqrt(mean[:, 0] ** 2 + mean[:, 1] ** 2)
        peak = np.where(size[:, None] > 0, mean / np.where(size > 0, size, 1.0)[:, None], peak)
    pc, ps = peak[owner].T
    agrees = c4 * pc + s4 * ps >= wide
    share = np.bincount(owner, length * agrees, count) / np.bincount(owner, length, count)
    return _half_angle(_half_angle(peak)), share


def _half_angle(unit: Floats) -> Floats:
    """Return unit vectors at half the angle, angles being -180° … 180°."""
    c, s = unit.T
    side = np.where(s < 0, -1.0, 1.0)
    # Two forms of the same half, each exact where the other loses digits.
    half_c = np.where(c >= 0, 1 + c, np.abs(s))
    half_s = np.where(c >= 0, s, side * (1 - c))
    size = np.sqrt(half_c**2 + half_s**2)
    return np.stack([half_c / size, half_s / size], axis=1)


def _squared(
    before: Polygons, walls: _Walls, todo: Index, tolerance: Floats, stays: Bools, known: dict[int, list[Vertex]]
) -> tuple[Index, Polygons, Index]:
    """Return which of ``todo`` can be squared, their new outlines, and the two old edges each new vertex comes from.

    ``known`` keeps the rings that an earlier attempt has made and that would come out the same.
    """
    kinds = np.where(stays, _FREE, _kinds(walls.edge, tolerance[walls.owner]))
    begin, first_ring = walls.ring_begin.tolist(), walls.polygon_begin.tolist()
    rings: list[list[Vertex]] = []
    begins: list[int] = []
    owners: list[int] = []
    made: list[int] = []
    for polygon, limit in zip(todo.tolist(), tolerance[todo].tolist(), strict=True):
        numbers = range(first_ring[polygon], first_ring[polygon + 1])
        for number in numbers:
            if number not in known:
                part = slice(begin[number], begin[number + 1])
                lists = walls.uv[part].tolist(), kinds[part].tolist(), walls.length[part].tolist()
                known[number] = _ring(*lists, limit)
        new = [known[number] for number in numbers]
        if all(len(ring) >= 3 for ring in new):
            rings += new
            begins += [begin[number] for number in numbers]
            owners += [len(made)] * len(new)
            made.append(polygon)
    if not made:
        return todo[:0], before[:0], np.zeros((0, 2), np.int64)
    kept = np.array(made)
    owner = np.array(owners)
    sizes = [len(ring) for ring in rings]
    vertex = np.repeat(kept[owner], sizes)
    uv = np.array([point for ring in rings for point, _, _ in ring])
    sources = np.array([(one, other) for ring in rings for _, one, other in ring])
    sources += np.repeat(begins, sizes)[:, None]
    c, s = walls.direction[vertex].T
    xy = walls.origin[vertex] + _into_frame(uv, np.stack([c, -s], axis=1))
    linear = shapely.linearrings(xy, indices=np.repeat(np.arange(len(rings)), sizes))
    return kept, np.asarray(shapely.polygons(linear, indices=owner), dtype=object), sources


def _kinds(edge: Floats, tolerance: Floats) -> Index:
    """Say of each edge whether it may be turned to u or v, is a wall of its own, or a cut corner."""
    du, dv = np.abs(edge).T
    aside, along = np.minimum(du, dv), np.maximum(du, dv)
    # Turned about its middle, an edge's ends move by half of what it strays.
    turns = (aside <= along * math.tan(math.radians(MAX_ANGLE))) & (aside <= 2 * tolerance)
    short = du**2 + dv**2 <= (CUT * tolerance) ** 2
    return np.where(turns, np.where(du >= dv, _ALONG_U, _ALONG_V), np.where(short, _CUT, _FREE))


@dataclass(frozen=True, slots=True)
class _Line:
    """A wall on its way to its new place, made of one old edge or several."""

    kind: int
    at: float
    """Its v where it runs along u, its u where it runs along v; of no use for a diagonal wall."""
    forward: bool
    """It runs towards larger u (or v)."""
    length: float
    low: float
    """Least v (or u) of its old edges."""
    high: float
    """Largest."""
    start: Point
    end: Point
    first: int
    """Its first old edge."""
    last: int


def _ring(points: list[Point], kinds: list[int], lengths: list[float], tolerance: float) -> list[Vertex]:
    """Return the new vertices of one ring, and the edges each comes from; fewer than three if it cannot be done."""
    lines = _merged(_lines(points, kinds, lengths, tolerance), tolerance)
    if len(lines) < 3:
        return []
    new: list[Vertex] = []
    for line, following in zip(lines, lines[1:] + lines[:1], strict=True):
        for point in _joint(line, following, tolerance):
            if not new or math.dist(point, new[-1][0]) > EPSILON:
                new.append((point, line.last, following.first))
    if math.dist(new[0][0], new[-1][0]) <= EPSILON:
        new.pop()
    return new


def _lines(points: list[Point], kinds: list[int], lengths: list[float], tolerance: float) -> list[_Line]:
    """Return the edges without cut corners; cut edges in a row that are long together are a curve and stay."""
    count = len(points)
    begin = next((edge for edge in range(count) if kinds[edge] != _CUT), None)
    if begin is None:
        return []
    lines: list[_Line] = []
    cut: list[_Line] = []
    for edge in (*range(begin, count), *range(begin + 1)):
        start, end = points[edge], points[(edge + 1) % count]
        kind = kinds[edge]
        if kind in (_CUT, _FREE):
            line = _Line(_FREE, 0.0, True, lengths[edge], 0.0, 0.0, start, end, edge, edge)
        else:
            across, ahead = (1, 0) if kind == _ALONG_U else (0, 1)
            a, b = start[across], end[across]
            forward = end[ahead] > start[ahead]
            line = _Line(kind, (a + b) / 2, forward, lengths[edge], min(a, b), max(a, b), start, end, edge, edge)
        if kind == _CUT:
            cut.append(line)
            continue
        if cut and sum(one.length for one in cut) > 2 * CUT * tolerance:
            lines += cut
        cut = []
        lines.append(line)
    return lines[:-1]


def _merged(lines: list[_Line], tolerance: float) -> list[_Line]:
    """Return the lines with parallel neighbours on one line, also those with a jog less than the tolerance between."""
    done: list[_Line] = []
    for line in lines:
        done.append(line)
        while _merge_end(done, tolerance):
            pass
    # The ring's ends: let its last lines come first, and see whether they belong to what follows.
    for _ in range(2):
        if len(done) > 4:
            done = _rolled(done, tolerance)
    return done


def _rolled(lines: list[_Line], tolerance: float) -> list[_Line]:
    rolled = lines[1:] + lines[:1]
    _merge_end(rolled, tolerance)
    return rolled


def _merge_end(lines: list[_Line], tolerance: float) -> bool:
    """Merge the last line with the one before, or the one before a short jog; say whether it did."""
    for back in (2, 3):
        if len(lines) < back:
            return False
        one, other = lines[-back], lines[-1]
        if one.kind != other.kind or one.kind == _FREE:
            continue
        if one.forward != other.forward:
            # There and back again: the tip of a blunt corner.
            if back == 2 and abs(one.at - other.at) < tolerance and min(one.length, other.length) <= tolerance:
                lines[-2:] = [one if one.length > other.length else other]
                return True
            continue
        if back == 3 and (lines[-2].kind == _FREE or lines[-2].length > tolerance):
            continue
        length = one.length + other.length
        at = (one.at * one.length + other.at * other.length) / length
        low, high = min(one.low, other.low), max(one.high, other.high)
        if abs(one.at - other.at) >= tolerance or high - low > 2 * tolerance:
            continue
        at = min(max(at, high - tolerance), low + tolerance)
        merged = _Line(one.kind, at, one.forward, length, low, high, one.start, other.end, one.first, other.last)
        lines[-back:] = [merged]
        return True
    return False


def _joint(line: _Line, following: _Line, tolerance: float) -> list[Point]:
    """Return the vertices between two lines."""
    (pu, pv), (qu, qv) = line.end, following.start
    if line.kind == _FREE and following.kind == _FREE:
        return [line.end, following.start]
    if line.kind == _FREE or following.kind == _FREE:
        free, fixed, near = (line, following, line.end) if line.kind == _FREE else (following, line, following.start)
        meeting = _meeting(free, fixed)
        if meeting is not None and math.dist(meeting, near) <= CUT * tolerance:
            return [meeting]
        foot = (near[0], fixed.at) if fixed.kind == _ALONG_U else (fixed.at, near[1])
        return [near, foot] if free is line else [foot, near]
    if line.kind != following.kind:
        return [(following.at, line.at) if line.kind == _ALONG_U else (line.at, following.at)]
    if line.kind == _ALONG_U:
        u = (pu + qu) / 2
        return [(u, line.at), (u, following.at)]
    v = (pv + qv) / 2
    return [(line.at, v), (following.at, v)]


def _meeting(free: _Line, fixed: _Line) -> Point | None:
    """Return where a diagonal wall's line meets a squared one."""
    (u0, v0), (u1, v1) = free.start, free.end
    if fixed.kind == _ALONG_U:
        return None if v0 == v1 else (u0 + (u1 - u0) * (fixed.at - v0) / (v1 - v0), fixed.at)
    return None if u0 == u1 else (fixed.at, v0 + (v1 - v0) * (fixed.at - u0) / (u1 - u0))
