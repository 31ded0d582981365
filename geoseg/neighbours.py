"""Neighbouring buildings kept apart: where two new outlines would overlap, both go back to safe ones.

Each building has two outlines to choose from: the *best*, which may leave the building's ground, and a *safe* one,
which does not (:func:`geoseg.outline.simplify`), so that safe ones never overlap. A building gets its best outline if
that meets neither the best nor the safe outline of any neighbour, else its safe one. So no two final outlines overlap,
whichever way each choice went, and the choice depends on the building and its neighbours alone: not on the order in
which buildings come, and not on which others come along.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely
from numpy.typing import NDArray

Polygons = NDArray[np.object_]
Index = NDArray[np.int64]

GROUND = 0.5
"""Pixels that a safe outline may lie outside the pixels of its building."""


def kept_apart(pixels: Polygons, best: Polygons, safe: Callable[[Polygons], Polygons]) -> Polygons:
    """Return for each building its best outline, or a safe one where that would meet a neighbour.

    Args:
        pixels: ``(n,)`` pixel outlines; no two overlap.
        best: as many valid outlines.
        safe: gives outlines that never overlap for pixel outlines, each by itself; called for those that need one.
    """
    result: Polygons = np.array(best, dtype=object)
    if len(result) < 2:
        return result
    one, other = shapely.STRtree(best).query(best, predicate="intersects")
    pair = one < other
    one, other = one[pair], other[pair]
    meets = _overlap(best[one], best[other])
    yields = np.zeros(len(best), bool)
    yields[one[meets]] = yields[other[meets]] = True
    mine, theirs = shapely.STRtree(pixels).query(best, predicate="dwithin", distance=GROUND)
    # A building that yields already has nothing more to find out, but its own safe outline still counts for others.
    near = (mine != theirs) & ~yields[mine]
    mine, theirs = mine[near], theirs[near]
    needed = np.unique(np.concatenate([theirs, np.flatnonzero(yields)]))
    fallback: Polygons = np.empty(len(best), dtype=object)
    fallback[needed] = safe(pixels[needed])
    late = np.unique(mine[_overlap(best[mine], fallback[theirs])])
    fallback[late] = safe(pixels[late])
    yields[late] = True
    result[yields] = fallback[yields]
    return result


def _overlap(one: Polygons, other: Polygons) -> NDArray[np.bool_]:
    """Say which pairs share more than their outlines."""
    result = np.zeros(len(one), bool)
    meeting = np.flatnonzero(shapely.intersects(one, other))
    result[meeting] = ~shapely.touches(one[meeting], other[meeting])
    return result
