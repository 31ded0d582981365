"""Square up the outlines of whole buildings: walls that are nearly at right angles become exactly so.

Each building is looked at alone: a result depends neither on its neighbours nor on which buildings come in the same
call. What neighbours then do to each other is the matter of :mod:`geoseg.neighbours`.

1. **Direction.** :mod:`geoseg.walls` samples the outline, finds clear corners and, from them, the building's direction.
2. **Is it square at all?** Where less than :data:`MIN_SHARE` of the outline runs along the direction or across it, or
   the building is round (:data:`ROUND`), walls keep the lines that fit them.
3. **Walls.** :mod:`geoseg.fitting` cuts the rings into walls, each along the direction, across it, or on a line of its
   own, which costs more: a wall clearly askew is a diagonal wall, a corner cut by the pixel grid is none. The direction
   is improved by all squared walls at once, and :mod:`geoseg.lines` lets neighbours meet. A wall's place is the mean of
   all its samples; turning edges about their middles and reconnecting them is the method of Building Regulariser, after
   RS-building-regularization, and geoai's ``orthogonalize`` aims at the same. None of their code is used. Lokhat and
   Touya (Journal of Spatial Information Science 13, 2016, https://doi.org/10.5311/JOSIS.2016.13.276) square by least
   squares over all vertices at once.
4. **Check.** Where a wall strays from the outline, a corner is put and the ring cut again. A result that is invalid,
   strays still or changes the area by more than :data:`MAX_AREA_CHANGE` is done again with half the tolerance. What
   does not succeed in :data:`ATTEMPTS` is given up: the building gets the corners that were found, joined by straight
   lines, or, if that would change its area by twice as much, stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SettingError
from geoseg.fitting import UNIT, Cut, Sums, cheapest
from geoseg.lines import Lines, corners
from geoseg.walls import Rings, counted, sampled

Polygons = NDArray[np.object_]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

MIN_SHARE = 0.5
"""Share of an outline that must run along the two directions for the building to be squared."""
MAX_AREA_CHANGE = 0.05
"""Share of its area by which squaring may change a building."""
ROUND = 0.06
"""Share of the mean by which the distances of an outline's samples from its middle vary, once it is stretched to be as
long as it is wide, below which a building is round. Of a circle they do not vary, of a square by 0.11."""
PRICE = 1.8
"""Squares of the tolerance, times samples, that a wall more must save; see :mod:`geoseg.fitting`."""
REACH = 2.25
"""Tolerances that new and old outline may be apart."""
ASTRAY = 1.5
"""Reaches that a wall's end may leave a sample behind: more is a piece lost."""
ATTEMPTS = 4
"""How often a building is tried, each time with half the tolerance."""
ROUNDS = 4
"""How often corners are put where a wall would stray from the outline."""
GRID = 2.0**-20
"""Pixels that new coordinates are multiples of, so that moving an outline by whole pixels rounds nothing: what is valid
in one place is valid in any."""
EPSILON = 1e-9
"""Pixels of rounding."""


def square_up(polygons: Polygons, tolerance_px: float, *, snap: bool = True, dense: bool = False) -> Polygons:
    """Return squared outlines: one each, valid, none empty, with as many holes as before or as they were.

    No guarantee that neighbours stay apart; see :mod:`geoseg.neighbours`.

    Args:
        polygons: ``(n,)`` array of valid polygons in pixels (x = column, y = row), such as pixel outlines.
        tolerance_px: how far, in pixels, a wall may be from the outline it stands for, and how far apart parallel walls
            may be to become one. No corner of the new outline is farther from the old one, nor a corner found in the
            old one from the new, than :func:`reach_of` says. 0 changes nothing.
        snap: turn walls that nearly run along the building's direction or across it; without, all keep their own lines.
        dense: vertices are about a pixel apart and what is to be fitted, as those of :mod:`geoseg.subpixel`; otherwise
            edges are, and cut into pieces.

    Raises:
        SettingError: the tolerance is negative or not a number.
    """
    if not (math.isfinite(tolerance_px) and tolerance_px >= 0):
        raise SettingError(f"tolerance is {tolerance_px} px; it must be a number not below 0")
    result: Polygons = np.array(polygons, dtype=object)
    if not len(result) or tolerance_px == 0:
        return result
    corner = np.floor(shapely.bounds(result)[:, :2])
    here = shapely.normalize(_moved(shapely.remove_repeated_points(result), -corner))
    return _moved(_squared(here, sampled(here, tolerance_px, dense), tolerance_px, snap), corner)


def _moved(polygons: Polygons, by: Floats) -> Polygons:
    sizes = shapely.get_num_coordinates(polygons)
    return np.asarray(shapely.transform(polygons, lambda xy: xy + np.repeat(by, sizes, axis=0)), dtype=object)


def _squared(before: Polygons, rings: Rings, tolerance_px: float, snap: bool) -> Polygons:
    """Do the work near the origin, where digits are many and the same wherever a building stands."""
    result = before.copy()
    sums = Sums.of(rings.xy, counted(rings.size))
    area = shapely.area(before)
    tolerance = np.full(len(result), float(tolerance_px))
    # Where a building is round or irregular, its walls keep their own lines.
    free = (rings.share < MIN_SHARE) | (rings.unevenness < ROUND) | (not snap)
    todo = np.arange(len(result))
    reach = reach_of(tolerance_px) + EPSILON
    for _ in range(ATTEMPTS):
        if not len(todo):
            break
        made, after = _outlines(rings, sums, todo, tolerance, free)
        sound = shapely.is_valid(after) & (np.abs(shapely.area(after) - area[made]) <= MAX_AREA_CHANGE * area[made])
        result[made[sound]] = shapely.normalize(after[sound])
        todo = np.setdiff1d(todo, made[sound], assume_unique=True)
        tolerance[todo] /= 2
    coarse, old = rings.coarse[todo], before[todo]
    close = np.abs(shapely.area(coarse) - area[todo]) <= 2 * MAX_AREA_CHANGE * area[todo]
    close &= shapely.hausdorff_distance(shapely.boundary(old), shapely.boundary(coarse)) <= reach
    result[todo[close]] = shapely.normalize(coarse[close])
    return result


def reach_of(tolerance_px: float) -> float:
    """Return how far, in pixels, squared outlines may be from those they stand for."""
    return max(REACH * tolerance_px, 1.0)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some rings of :class:`geoseg.walls.Rings`, and what they are to be cut by; arrays with one entry for each."""

    ring: Index
    owner: Index
    """Its polygon."""
    candidate: Index
    """Candidates of all, ascending."""
    begin: Index
    """First candidate."""
    size: Index
    """Number of candidates."""
    price: Floats
    reach: Floats
    free: Bools

    @classmethod
    def of(cls, rings: Rings, todo: Index, tolerance: Floats, free: Bools) -> _Chosen:
        """Take the rings of some polygons."""
        many = np.diff(rings.polygon_ring)[todo]
        ring = np.repeat(rings.polygon_ring[todo], many) + counted(many)
        owner, size = np.repeat(todo, many), rings.candidates[ring]
        candidate = rings.candidate[np.repeat(rings.candidate_begin[ring], size) + counted(size)]
        limit = tolerance[owner]
        price, reach = PRICE * limit**2, np.maximum(REACH * limit, 1.0)
        return cls(ring, owner, candidate, np.cumsum(size) - size, size, price, reach, free[owner])

    def between(self, lines: Lines) -> tuple[Index, Index]:
        """Return the candidates between the ends of walls: the wall, and the place among all candidates, of each."""
        first, last = (np.searchsorted(self.candidate, one) for one in (lines.begin, lines.end))
        # A ring's last candidate is its first come again.
        round_ = self.size[lines.ring] - 1
        inner = np.maximum((last - first) % round_ - 1, 0)
        wall = np.repeat(np.arange(len(lines)), inner)
        begin = self.begin[lines.ring[wall]]
        return wall, begin + (first[wall] - begin + 1 + counted(inner)) % round_[wall]


def _outlines(rings: Rings, sums: Sums, todo: Index, tolerance: Floats, free: Bools) -> tuple[Index, Polygons]:
    """Return which of ``todo`` can be squared, and their new outlines."""
    chosen = _Chosen.of(rings, todo, tolerance, free)
    lines, direction = _walls(chosen, sums, rings.direction)
    axes = lines.axes(sums, direction[chosen.owner[lines.ring]])
    reach = chosen.reach[lines.ring]
    vertex, count, near = corners(lines, axes, sums, rings.size[chosen.ring[lines.ring]], reach)
    vertex = np.rint(vertex / GRID) * GRID
    near &= _followed(chosen, sums, lines, vertex, count)
    number = np.repeat(lines.ring, count)
    fine = np.bincount(number, minlength=len(chosen.ring)) >= 3
    fine[lines.ring[~near]] = False
    whole = np.bincount(chosen.owner[~fine], minlength=len(tolerance)) == 0
    kept = whole[chosen.owner[number]]
    made = todo[whole[todo]]
    if not len(made):
        return made, np.zeros(0, object)
    ring, place = np.unique(number[kept], return_inverse=True)
    linear = shapely.linearrings(vertex[kept], indices=place)
    polygons = shapely.polygons(linear, indices=np.searchsorted(made, chosen.owner[ring]))
    return made, np.asarray(polygons, dtype=object)


def _followed(chosen: _Chosen, sums: Sums, lines: Lines, vertex: Floats, count: Index) -> Bools:
    """Say which walls come near enough to all candidates that they stand for."""
    ends = np.cumsum(count)
    after = lines.following()
    start = np.empty((len(lines), 2))
    start[after] = vertex[ends - 1]
    end = vertex[ends - count]

    def away(points: Floats, wall: Index) -> Floats:
        along, to = end[wall] - start[wall], points - start[wall]
        length = (along**2).sum(axis=1)
        share = np.clip((to * along).sum(axis=1) / np.where(length > 0, length, 1.0), 0, 1)
        distance: Floats = np.sqrt(((to - along * share[:, None]) ** 2).sum(axis=1))
        return distance

    every = np.arange(len(lines))
    corner = sums.xy[lines.end] / UNIT
    limit = ASTRAY * chosen.reach
    near = np.minimum(away(corner, every), away(corner, after)) <= limit[lines.ring]
    wall, place = chosen.between(lines)
    far = away(sums.xy[chosen.candidate[place]] / UNIT, wall) > limit[lines.ring[wall]]
    near[wall[far]] = False
    result: Bools = near
    return result


def _walls(chosen: _Chosen, sums: Sums, direction: Floats) -> tuple[Lines, Floats]:
    """Return the walls of rings, and the direction of every polygon, improved."""
    must = np.zeros(len(chosen.candidate), bool)
    of = np.repeat(np.arange(len(chosen.ring)), chosen.size)
    frame = direction[chosen.owner]
    done: list[Lines] = []
    todo = np.arange(len(chosen.ring))
    for attempt in range(ROUNDS):
        mine = np.isin(of, todo)
        size, price = chosen.size[todo], chosen.price[todo]
        cut = cheapest(sums, chosen.candidate[mine], size, frame[todo], price, chosen.free[todo], must[mine])
        lines = Lines.of(sums, Cut(todo[cut.ring], cut.begin, cut.end, cut.kind)).merged(chosen.price, frame)
        strays = _strays(chosen, sums, lines, lines.axes(sums, frame[lines.ring]))
        must[strays] = True
        todo = np.unique(of[strays]) if attempt < ROUNDS - 1 else todo[:0]
        done.append(lines[~np.isin(lines.ring, todo)])
        if not len(todo):
            break
    lines = Lines.together(done)
    return lines, lines.directions(chosen.owner[lines.ring], direction)


def _strays(chosen: _Chosen, sums: Sums, lines: Lines, axes: Floats) -> Index:
    """Return of each wall that strays the candidate between its ends that is farthest from its line."""
    wall, place = chosen.between(lines)
    away = sums.xy[chosen.candidate[place]] / UNIT - lines.middle[wall]
    distance = np.abs(away[:, 0] * axes[wall, 1] - away[:, 1] * axes[wall, 0])
    far = np.flatnonzero(distance > chosen.reach[lines.ring[wall]])
    far = far[np.lexsort((place[far], -distance[far], wall[far]))]
    strays: Index = place[far[np.unique(wall[far], return_index=True)[1]]]
    return strays
