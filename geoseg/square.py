"""Square up the outlines of whole buildings: walls that are nearly at right angles become exactly so.

Each building is looked at alone: a result depends neither on its neighbours nor on which buildings come in the same
call. What neighbours then do to each other is the matter of :mod:`geoseg.neighbours`.

1. **Walls.** :mod:`geoseg.walls` finds the walls in the outline, fits a line to each, and the building's direction.
2. **Is it square at all?** Where less than :data:`MIN_SHARE` of the outline runs along the direction or across it, the
   building is round or irregular, and its walls keep the lines that were fitted.
3. **Snap.** A wall nearly along a direction is turned onto it through its middle. A long wall clearly off is a diagonal
   wall and keeps its line. A short edge askew is a cut corner and goes. Parallel neighbours nearer than the tolerance
   become one wall, others are joined by a perpendicular, everything else by intersection. Turning edges about their
   middles and reconnecting them so is the method of Building Regulariser, after RS-building-regularization; geoai's
   ``orthogonalize`` aims at the same. None of their code is used; they take a wall's place from two of its points,
   here it is the mean of all. Lokhat and Touya (Journal of Spatial Information Science 13, 2016,
   https://doi.org/10.5311/JOSIS.2016.13.276) square by least squares over all vertices at once.
4. **Check.** Where the new outline strays from the old one, the walls there are left as they were and the rest is done
   again; a result that is invalid or changes the area by more than :data:`MAX_AREA_CHANGE` is done again with half the
   tolerance. What does not succeed in :data:`ATTEMPTS` is given up: the building gets the corners that were found,
   joined by straight lines, or, if that would change its area by twice as much, stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SettingError
from geoseg.walls import MAX_ANGLE, Walls, find_walls

Polygons = NDArray[np.object_]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Point = tuple[float, float]
Vertex = tuple[Point, int, int]

MIN_SHARE = 0.5
"""Share of an outline that must run along the two directions for the building to be squared."""
MAX_AREA_CHANGE = 0.05
"""Share of its area by which squaring may change a building."""
MAX_DIFFERENCE = 0.13
"""Share of its area in which a small building's new and old outlines may differ. A disc and a square of one size differ
in 0.18, but for a disc of a few pixels the tolerance alone would not tell."""
SMALL = 50.0
"""Squares of the reach; where the tip of a square as large as a disc is farther from it, the reach tells."""
CUT = 4.0
"""Tolerances; how long an edge askew may be to be a corner cut by the pixel grid, not a wall. All edges cut at a corner
may be twice as long together. Whether it was one is seen from the result: a true cut leaves the corner too far off."""
REACH = 1.5
"""Tolerances that new and old outline may be apart."""
ATTEMPTS = 4
"""How often a building is tried, each time with more of its edges left alone, or half the tolerance."""
GRID = 2.0**-20
"""Pixels that new coordinates are multiples of, so that moving an outline by whole pixels rounds nothing: what is valid
in one place is valid in any."""
EPSILON = 1e-9
"""Pixels of rounding."""

_ALONG_U, _ALONG_V, _FREE, _CUT = range(4)
"""What an edge is: along the direction, across it, a diagonal wall, a cut corner."""


def square_up(polygons: Polygons, tolerance_px: float) -> Polygons:
    """Return squared outlines: one each, valid, none empty, with as many holes as before or as they were.

    No guarantee that neighbours stay apart; see :mod:`geoseg.neighbours`.

    Args:
        polygons: ``(n,)`` array of valid polygons in pixels (x = column, y = row), such as pixel outlines.
        tolerance_px: how far, in pixels, a wall may be from the outline it stands for, and how far apart parallel walls
            may be to become one. No corner of the new outline is farther from the old one, nor a corner found in the
            old one from the new, than :func:`reach_of` says. 0 changes nothing.

    Raises:
        SettingError: the tolerance is negative or not a number.
    """
    if not (math.isfinite(tolerance_px) and tolerance_px >= 0):
        raise SettingError(f"tolerance is {tolerance_px} px; it must be a number not below 0")
    result: Polygons = np.array(polygons, dtype=object)
    if not len(result) or tolerance_px == 0:
        return result
    corner = np.floor(shapely.bounds(result)[:, :2])
    return _moved(_squared_at_origin(_moved(shapely.remove_repeated_points(result), -corner), tolerance_px), corner)


def _moved(polygons: Polygons, by: Floats) -> Polygons:
    sizes = shapely.get_num_coordinates(polygons)
    return np.asarray(shapely.transform(polygons, lambda xy: xy + np.repeat(by, sizes, axis=0)), dtype=object)


def _squared_at_origin(polygons: Polygons, tolerance_px: float) -> Polygons:
    """Do the work, where digits are many and the same wherever a building stands."""
    before = shapely.normalize(polygons)
    result = before.copy()
    walls = find_walls(before, tolerance_px)
    area = shapely.area(before)
    left = np.ones(len(result), bool)
    reach = reach_of(tolerance_px) + EPSILON
    tolerance = np.full(len(result), float(tolerance_px))
    # Where a building is round or irregular, its walls keep their own lines.
    stays = (walls.share < MIN_SHARE)[walls.owner]
    known: dict[int, list[Vertex]] = {}
    todo = np.arange(len(result))
    for _ in range(ATTEMPTS):
        if not len(todo):
            break
        todo, after, sources = _squared(walls, todo, tolerance, stays, known)
        sound = shapely.is_valid(after) & (np.abs(shapely.area(after) - area[todo]) <= MAX_AREA_CHANGE * area[todo])
        small = np.flatnonzero(sound & (area[todo] <= SMALL * reach**2))
        common = shapely.area(shapely.intersection(before[todo[small]], after[small]))
        differs = shapely.area(after[small]) + area[todo[small]] - 2 * common > MAX_DIFFERENCE * area[todo[small]]
        sound[small[differs]] = False
        # Such a building is round: its walls keep their lines, unless they do already.
        round_ = todo[small[differs]]
        newly = ~_all_stay(walls, stays)[round_]
        strays = _strays(walls, before[todo], after, todo, sources, stays, reach)
        far = np.bincount(np.searchsorted(todo, walls.owner[strays]), minlength=len(todo)) > 0
        good = sound & ~far
        result[todo[good]] = shapely.normalize(after[good])
        left[todo[good]] = False
        stays[strays] = True
        stays[np.isin(walls.owner, round_)] = True
        tolerance[todo[~far & ~np.isin(todo, round_[newly])]] /= 2
        begin, end = walls.polygon_begin[todo[~far]], walls.polygon_begin[todo[~far] + 1]
        outdated = (np.searchsorted(walls.ring_begin, strays, side="right") - 1).tolist()
        for pair in zip(begin.tolist(), end.tolist(), strict=True):
            outdated += range(*pair)
        for ring in outdated:
            known.pop(ring, None)
        todo = todo[~good]
    coarse, old = walls.coarse[left], before[left]
    close = np.abs(shapely.area(coarse) - area[left]) <= 2 * MAX_AREA_CHANGE * area[left]
    close &= shapely.hausdorff_distance(shapely.boundary(old), shapely.boundary(coarse)) <= reach
    result[np.flatnonzero(left)[close]] = shapely.normalize(coarse[close])
    return result


def reach_of(tolerance_px: float) -> float:
    """Return how far, in pixels, squared outlines may be from those they stand for."""
    return max(REACH * tolerance_px, 1.0)


def _all_stay(walls: Walls, stays: Bools) -> Bools:
    """Say of which polygons all walls keep their lines."""
    return np.bincount(walls.owner, ~stays, len(walls.direction)) == 0


def _strays(
    walls: Walls, before: Polygons, after: Polygons, todo: Index, sources: Index, stays: Bools, reach: float
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
    lost = mine[~shapely.dwithin(new[place], shapely.points(walls.corner[mine]), reach)]
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


def _shorter(walls: Walls, stays: Bools, pairs: Index) -> Index:
    """Return of each pair of edges the shorter that is not left alone already."""
    length = walls.length[pairs]
    length[stays[pairs]] = np.inf
    return pairs[np.arange(len(pairs)), np.argmin(length, axis=1)]


def _squared(
    walls: Walls, todo: Index, tolerance: Floats, stays: Bools, known: dict[int, list[Vertex]]
) -> tuple[Index, Polygons, Index]:
    """Return which of ``todo`` can be squared, their new outlines, and the two walls each new vertex comes from.

    ``known`` keeps the rings that an earlier attempt has made and that would come out the same.
    """
    kinds = np.where(stays, _FREE, _kinds(walls.end - walls.start, tolerance[walls.owner]))
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
                start, end, middle = walls.start[part].tolist(), walls.end[part].tolist(), walls.middle[part].tolist()
                length = walls.length[part].tolist()
                ring = _ring(start, end, middle, kinds[part].tolist(), length, limit)
                # One too small to have walls, as a shaft of two pixels, keeps its lines.
                known[number] = (
                    ring if len(ring) >= 3 else _ring(start, end, middle, [_FREE] * len(length), length, limit)
                )
        new = [known[number] for number in numbers]
        if all(len(ring) >= 3 for ring in new):
            rings += new
            begins += [begin[number] for number in numbers]
            owners += [len(made)] * len(new)
            made.append(polygon)
    if not made:
        return todo[:0], np.zeros(0, object), np.zeros((0, 2), np.int64)
    kept = np.array(made)
    owner = np.array(owners)
    sizes = [len(ring) for ring in rings]
    vertex = np.repeat(kept[owner], sizes)
    uv = np.array([point for ring in rings for point, _, _ in ring])
    sources = np.array([(one, other) for ring in rings for _, one, other in ring])
    sources += np.repeat(begins, sizes)[:, None]
    xy = np.rint(walls.from_frame(uv, vertex) / GRID) * GRID
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


def _ring(
    starts: list[Point],
    ends: list[Point],
    middles: list[Point],
    kinds: list[int],
    lengths: list[float],
    tolerance: float,
) -> list[Vertex]:
    """Return the new vertices of one ring, and the walls each comes from; fewer than three if it cannot be done."""
    lines = _merged(_lines(starts, ends, middles, kinds, lengths, tolerance), tolerance)
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


def _lines(
    starts: list[Point],
    ends: list[Point],
    middles: list[Point],
    kinds: list[int],
    lengths: list[float],
    tolerance: float,
) -> list[_Line]:
    """Return the edges without cut corners; cut edges in a row that are long together are a curve and stay."""
    count = len(starts)
    begin = next((edge for edge in range(count) if kinds[edge] != _CUT), None)
    if begin is None:
        return []
    lines: list[_Line] = []
    cut: list[_Line] = []
    for edge in (*range(begin, count), *range(begin + 1)):
        start, end = starts[edge], ends[edge]
        kind = kinds[edge]
        if kind in (_CUT, _FREE):
            line = _Line(_FREE, 0.0, True, lengths[edge], 0.0, 0.0, start, end, edge, edge)
        else:
            across, ahead = (1, 0) if kind == _ALONG_U else (0, 1)
            a, b = start[across], end[across]
            forward = end[ahead] > start[ahead]
            at, low, high = middles[edge][across], min(a, b), max(a, b)
            line = _Line(kind, at, forward, lengths[edge], low, high, start, end, edge, edge)
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
        return _corner(line, following, tolerance)
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


def _corner(line: _Line, following: _Line, tolerance: float) -> list[Point]:
    """Return the vertices between two diagonal walls: where they meet, unless that is far from where they end."""
    (ax, ay), (bx, by) = line.start, line.end
    (cx, cy), (dx, dy) = following.start, following.end
    ux, uy, vx, vy = bx - ax, by - ay, dx - cx, dy - cy
    cross = ux * vy - uy * vx
    if cross != 0:
        t = ((cx - ax) * vy - (cy - ay) * vx) / cross
        meeting = (ax + t * ux, ay + t * uy)
        if max(math.dist(meeting, line.end), math.dist(meeting, following.start)) <= tolerance:
            return [meeting]
    if math.dist(line.end, following.start) <= tolerance:
        return [((bx + cx) / 2, (by + cy) / 2)]
    return [line.end, following.start]


def _meeting(free: _Line, fixed: _Line) -> Point | None:
    """Return where a diagonal wall's line meets a squared one."""
    (u0, v0), (u1, v1) = free.start, free.end
    if fixed.kind == _ALONG_U:
        return None if v0 == v1 else (u0 + (u1 - u0) * (fixed.at - v0) / (v1 - v0), fixed.at)
    return None if u0 == u1 else (fixed.at, v0 + (v1 - v0) * (fixed.at - u0) / (u1 - u0))
