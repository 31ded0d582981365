"""Which samples of an outline are one wall, decided for a whole ring at once.

A ring's samples are cut into walls at some of its candidate corners. Each wall gets the cheapest of three lines: along
the building's direction, across it, or free (the principal axis of its samples). A cut costs

    the mean square of the samples' distances from their line, times the samples' number or less (:data:`ENOUGH`),
    + a price for each wall, a higher one for a free wall, and one for a jog between two parallel walls

and the cheapest cut of all is found by dynamic programming, as in Bellman and Roth, "Curve fitting by segmented
straight lines" (Journal of the American Statistical Association 64, 1969) and Perez and Vidal, "Optimum polygonal
approximation of digitized curves" (Pattern Recognition Letters 15, 1994); that the price of a description is part of
the cost is the principle of minimum description length (Rissanen, Automatica 14, 1978). A wall thus is levelled, or a
jog kept, by how much of the outline says so, not by which corner was looked at first.

Sums over samples are differences of running sums in whole numbers, hence exact: the result does not depend on which
rings are worked on together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.cut_kernel import cut, kernel

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNIT = 2048
"""Samples are whole numbers of one over this many pixels."""
WINDOW = 32
"""Candidates that a wall spans at most; what is longer is joined afterwards."""
ENOUGH = 12.0
"""Samples that count fully; of more, which wiggle together, only the square root of their number does."""
BUNCH = 6_000
"""Candidates that are worked on together where nothing is compiled; it bounds the memory."""
TRIM = 2
"""Samples at either end of a wall that its line is not fitted to, for networks round corners off, if it has twelve or
more; of a shorter one, one."""
FITTED = 4
"""Samples that a free line is fitted to; a shorter wall runs from corner to corner."""
FREE_PRICE = 6.0
"""Prices of a wall that a free wall costs."""
JOG_PRICE = 2.0
"""Prices of a wall that a jog between two parallel walls costs besides."""
ALONG, ACROSS, FREE = range(3)
"""Kinds of lines."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Running sums along the samples of closed rings; a ring's first sample comes again at its end."""

    xy: NDArray[np.int64]
    """``(samples, 2)`` in units of one over :data:`UNIT` pixels."""
    place: NDArray[np.int64]
    """0, 1, … along each ring."""
    running: NDArray[np.int64]
    """``(5, samples + 1)``: sums over all samples before, of x, y, xx, xy, yy; they wrap round, differences do not."""

    @classmethod
    def of(cls, xy: NDArray[np.int64], place: NDArray[np.int64]) -> Sums:
        """Sum up."""
        x, y = xy.T
        running = np.zeros((5, len(xy) + 1), np.int64)
        for row, values in zip(running, (x, y, x * x, x * y, y * y), strict=True):
            np.cumsum(values, out=row[1:])
        return cls(xy, place, running)

    def moments(self, begin: Index, end: Index) -> tuple[Index, Floats, Floats, Floats, Floats, Floats]:
        """Return number, mean x and y, and central second moments xx, xy, yy of walls' inner samples, in pixels.

        A wall runs from sample ``begin`` to sample ``end``, both included; some are left out at both ends.
        """
        count = end - begin
        trim = np.clip(count // 6, (count > 1).astype(np.int64), TRIM)
        low, high = begin + trim, end - trim + 1
        number = high - low
        x0, y0 = self.xy[low, 0], self.xy[low, 1]
        sx, sy, sxx, sxy, syy = (row[high] - row[low] for row in self.running)
        # About the first of them: still exact, and no longer large numbers that nearly cancel.
        sxx = sxx - 2 * x0 * sx + number * x0 * x0
        sxy = sxy - x0 * sy - y0 * sx + number * x0 * y0
        syy = syy - 2 * y0 * sy + number * y0 * y0
        mx, my = (sx - number * x0) / number, (sy - number * y0) / number
        square = 1.0 / UNIT**2
        return (
            number,
            (x0 + mx) / UNIT,
            (y0 + my) / UNIT,
            (sxx - number * mx * mx) * square,
            (sxy - number * mx * my) * square,
            (syy - number * my * my) * square,
        )


@dataclass(frozen=True, eq=False)
class Cut:
    """Rings cut into walls; arrays with one entry for each wall, ring by ring, in order."""

    ring: Index
    begin: Index
    """Sample where it begins, as an index into :class:`Sums`."""
    end: Index
    """Sample where it ends, which is where the next begins, or the ring's first sample come again."""
    kind: Index


def cheapest(
    sums: Sums, corner: Index, size: Index, direction: Floats, price: Floats, only_free: Bools, must: Bools
) -> Cut:
    """Cut rings into walls.

    Args:
        sums: of all rings.
        corner: samples that are candidates, ring by ring; the first of a ring is its first sample, the last the same
            come again.
        size: ``(rings,)`` number of candidates of each ring, three at least.
        direction: ``(rings, 2)``: unit vectors.
        price: ``(rings,)`` of a wall.
        only_free: ``(rings,)``: only free lines, at the price of others.
        must: ``(candidates,)``: where a wall has to end.
    """
    begin = np.cumsum(size) - size
    function = compiled()
    if function is None:
        return _step_by_step(sums, corner, size, direction, price, only_free, must)
    arrive, back, before = np.full((len(corner), 3), np.inf), *np.zeros((2, len(corner), 3), np.int64)
    arrays = {
        "xy": sums.xy, "running": sums.running, "corner": corner, "begin": begin, "size": size, "direction": direction,
        "price": price, "only_free": only_free, "must": must, "arrive": arrive, "back": back, "before": before,
    }  # fmt: skip
    cut(function, {name: np.ascontiguousarray(array) for name, array in arrays.items()}, len(size), len(sums.xy))
    return _followed(corner, begin, size, arrive, back, before)


def compiled() -> Any:
    """Return what cuts rings at the speed of the processor; None where nothing can be compiled."""
    return kernel(window=WINDOW, unit=UNIT, enough=ENOUGH, trim=TRIM, free_price=FREE_PRICE, jog_price=JOG_PRICE)


def _step_by_step(
    sums: Sums, corner: Index, size: Index, direction: Floats, price: Floats, only_free: Bools, must: Bools
) -> Cut:
    """Do as :func:`cheapest`, where nothing can be compiled: some rings at a time, from the largest to the smallest."""
    order = np.argsort(-size, kind="stable")
    begin = (np.cumsum(size) - size)[order]
    bunch = (np.cumsum(size[order]) - 1) // BUNCH
    parts: list[Cut] = []
    for number in np.unique(bunch):
        among = bunch == number
        here = order[among]
        slots = np.repeat(begin[among] - (np.cumsum(size[here]) - size[here]), size[here])
        slots += np.arange(len(slots))
        cut = _at_once(sums, corner[slots], size[here], direction[here], price[here], only_free[here], must[slots])
        parts.append(Cut(here[cut.ring], cut.begin, cut.end, cut.kind))
    whole = Cut(*(np.concatenate([getattr(part, name) for part in parts]) for name in Cut.__dataclass_fields__))
    sort = np.argsort(whole.ring, kind="stable")
    return Cut(whole.ring[sort], whole.begin[sort], whole.end[sort], whole.kind[sort])


def _at_once(
    sums: Sums, corner: Index, size: Index, direction: Floats, price: Floats, only_free: Bools, must: Bools
) -> Cut:
    """Cut rings with descending numbers of candidates: those that are not at their end yet are always the first."""
    begin = np.cumsum(size) - size
    ring = np.repeat(np.arange(len(size)), size)
    place = np.arange(len(ring)) - begin[ring]
    window = int(min(WINDOW, size[0] - 1))
    cost = _costs(sums, corner, place, ring, direction, price, only_free, must, window)
    # Between two walls of one kind, unless both are free, is a jog.
    jog = (price * JOG_PRICE)[:, None, None] * np.diag([1.0, 1.0, 0.0])
    backwards, kinds = np.arange(window), np.arange(3)
    # What it costs to come to a candidate by a wall of one kind, and to set out from it by one.
    arrive = np.full((len(ring), 3), np.inf)
    leave = np.full((len(ring) + window, 3), np.inf)
    leave[begin + window] = 0.0
    back = np.zeros((len(ring), 3), np.int64)
    before = np.zeros((len(ring), 3), np.int64)
    active = np.searchsorted(-size, -np.arange(1, size[0] + 1), side="right")
    for step in range(1, int(size[0])):
        here = begin[: active[step]] + step
        total = cost[here] + leave[(here + window - 1)[:, None] - backwards]
        choice = total.argmin(axis=1)
        rows = np.arange(len(here))[:, None]
        back[here] = choice
        arrive[here] = came = total[rows, choice, kinds]
        onward = came[:, None, :] + jog[: len(here)]
        before[here] = kind = onward.argmin(axis=2)
        leave[here + window] = onward[rows, kinds, kind]
    return _followed(corner, begin, size, arrive, back, before)


def _costs(
    sums: Sums,
    corner: Index,
    place: Index,
    ring: Index,
    direction: Floats,
    price: Floats,
    only_free: Bools,
    must: Bools,
    window: int,
) -> Floats:
    """Return ``(candidates, window, kinds)``: what a wall costs that comes from ``1 + w`` candidates before."""
    cost = np.full((len(corner), window, 3), np.inf)
    many = np.minimum(place, window)
    to = np.repeat(np.arange(len(corner)), many)
    back = np.arange(len(to)) - np.repeat(np.cumsum(many) - many, many)
    passed = np.cumsum(must)
    # A corner that has to be may be at a wall's ends only.
    allowed = passed[to - 1] == passed[to - 1 - back]
    to, back = to[allowed], back[allowed]
    of = ring[to]
    number, _, _, xx, xy, yy = sums.moments(corner[to - 1 - back], corner[to])
    along, across, free = squares(xx, xy, yy, direction[of])
    share, one, straight = weight(number), price[of], only_free[of]
    cost[to, back, ALONG] = np.where(straight, np.inf, along * share + one)
    cost[to, back, ACROSS] = np.where(straight, np.inf, across * share + one)
    cost[to, back, FREE] = free * share + np.where(straight, 1.0, FREE_PRICE) * one
    return cost


def squares(xx: Floats, xy: Floats, yy: Floats, direction: Floats) -> tuple[Floats, Floats, Floats]:
    """Return sums of squared distances from the best line of each kind, given central second moments."""
    c, s = direction.T
    cross = 2 * c * s * xy
    along = s * s * xx - cross + c * c * yy
    across = c * c * xx + cross + s * s * yy
    double = np.sqrt((xx - yy) ** 2 + 4 * xy * xy)
    return np.maximum(along, 0), np.maximum(across, 0), np.maximum((xx + yy - double) / 2, 0)


def weight(number: Index) -> Floats:
    """Return what the squared distances of a wall with so many samples count."""
    return np.where(number > ENOUGH, np.sqrt(ENOUGH / number), 1.0)


def _followed(corner: Index, begin: Index, size: Index, arrive: Floats, back: Index, before: Index) -> Cut:
    """Go back from the ends of rings along the cheapest walls."""
    number = np.arange(len(size))
    slot = begin + size - 1
    kind = np.argmin(arrive[slot], axis=1)
    rings, begins, ends, kinds = [], [], [], []
    while len(number):
        start = slot - 1 - back[slot, kind]
        rings.append(number)
        begins.append(start)
        ends.append(slot)
        kinds.append(kind)
        kind = before[start, kind]
        on = start > begin[number]
        number, slot, kind = number[on], start[on], kind[on]
    if not rings:
        none = np.zeros(0, np.int64)
        return Cut(none, none, none, none)
    ring, first, last, what = (np.concatenate(part) for part in (rings, begins, ends, kinds))
    # Candidates come ring by ring.
    sort = np.argsort(first)
    return Cut(ring[sort], corner[first][sort], corner[last][sort], what[sort])
