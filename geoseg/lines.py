"""The lines on which the walls of rings lie, and the corners where they meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoseg.fitting import ACROSS, ALONG, FITTED, FREE, UNIT, Cut, Sums, squares, weight
from geoseg.walls import half_angle

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]

SAME = 1e-9
"""Pixels of rounding: nearer vertices are one."""
MERGES = 16
"""Times that walls of a ring are merged at most."""
AROUND = 12
"""Samples to either side of a corner, among which the outline is sought that two walls meet on."""
PARALLEL = 0.25
"""Sine of the angle between lines that are too nearly parallel to meet, one of which is free."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Walls in order along their rings, and the line of each."""

    ring: Index
    kind: Index
    number: Index
    """Samples that the line is fitted to."""
    middle: Floats
    """``(walls, 2)``: a point of it, the mean of these samples."""
    spread: Floats
    """``(walls, 3)``: their central second moments xx, xy, yy."""
    begin: Index
    """Sample where the wall begins, as an index into :class:`geoseg.fitting.Sums`."""
    end: Index

    @classmethod
    def of(cls, sums: Sums, cut: Cut) -> Lines:
        """Fit."""
        number, x, y, xx, xy, yy = sums.moments(cut.begin, cut.end)
        middle, spread = np.stack([x, y], axis=1), np.stack([xx, xy, yy], axis=1)
        return cls(cut.ring, cut.kind, number, middle, spread, cut.begin, cut.end)

    def __len__(self) -> int:
        return len(self.ring)

    def __getitem__(self, which: Bools) -> Lines:
        return Lines(**{name: values[which] for name, values in vars(self).items()})

    @classmethod
    def together(cls, parts: list[Lines]) -> Lines:
        """Return the walls of all, ring by ring."""
        whole = {name: np.concatenate([vars(part)[name] for part in parts]) for name in cls.__dataclass_fields__}
        order = np.argsort(whole["ring"], kind="stable")
        return cls(**{name: values[order] for name, values in whole.items()})

    def following(self) -> Index:
        """Return the next wall of each wall's ring."""
        last = np.append(self.ring[1:] != self.ring[:-1], np.ones(min(len(self), 1), bool))
        first = np.flatnonzero(np.append(np.ones(min(len(self), 1), bool), last[:-1]))
        after = np.arange(len(self)) + 1
        after[last] = first
        return after

    def merged(self, price: Floats, direction: Floats) -> Lines:
        """Return the walls with those on one line made one, where that is cheaper.

        What was cut is the cheapest but for two things: a ring has to start somewhere, and that need not be a corner;
        and a wall may span more candidates than were looked at.

        Args:
            price: of a wall, for each ring.
            direction: ``(rings, 2)``: unit vectors.
        """
        lines, done = self, []
        for _ in range(MERGES):
            after = lines.following()
            many = np.bincount(lines.ring, minlength=len(price))[lines.ring]
            squared = lines.kind != FREE
            next_, second = (lines._cheaper(other, price, direction) for other in (after, after[after]))
            adjacent, across = next_ & (many > 4), second & squared & (many > 5)
            found = np.flatnonzero(adjacent | across)
            if not len(found):
                break
            # One of each ring at a time, for a wall can be merged with one other only.
            one = found[np.unique(lines.ring[found], return_index=True)[1]]
            other = np.where(adjacent[one], after[one], after[after[one]])
            number, middle, spread = lines._together(one, other)
            every = Lines(**{name: values.copy() for name, values in vars(lines).items()})
            every.number[other], every.middle[other], every.spread[other] = number, middle, spread
            every.begin[other] = lines.begin[one]
            kept = np.ones(len(lines), bool)
            kept[one] = False
            kept[after[one[~adjacent[one]]]] = False
            lines = every[kept]
            # A ring in which nothing was merged has nothing more to merge.
            on = np.isin(lines.ring, every.ring[one])
            done.append(lines[~on])
            lines = lines[on]
        return Lines.together([*done, lines])

    def _cheaper(self, other: Index, price: Floats, direction: Floats) -> Bools:
        """Say of which walls one line for it and the other one costs less than two."""
        every = np.arange(len(self))
        number, _, spread = self._together(every, other)
        frame = direction[self.ring]
        apart = _misfit(self.kind, self.number, self.spread, frame)
        more = _misfit(self.kind, number, spread, frame) - apart - apart[other]
        saved = price[self.ring] * np.where(self.kind == FREE, 1.0, 2.0)
        cheaper: Bools = (self.kind == self.kind[other]) & (other != every) & (more < saved)
        return cheaper

    def _together(self, one: Index, other: Index) -> tuple[Index, Floats, Floats]:
        """Return number, middle and spread of the samples of two walls each."""
        first, second = self.number[one], self.number[other]
        number = first + second
        x, y = (self.middle[other] - self.middle[one]).T
        middle = (self.middle[one] * first[:, None] + self.middle[other] * second[:, None]) / number[:, None]
        between = np.stack([x * x, x * y, y * y], axis=1) * (first * second / number)[:, None]
        return number, middle, self.spread[one] + self.spread[other] + between

    def directions(self, polygon: Index, first: Floats) -> Floats:
        """Return the direction of each polygon that its squared walls fit best; ``first`` where there are none.

        Args:
            polygon: of each wall.
            first: ``(polygons, 2)``: unit vectors.
        """
        sign = np.select([self.kind == ALONG, self.kind == ACROSS], [1.0, -1.0], 0.0)
        xx, xy, yy = self.spread.T
        parts = (sign * (xx - yy), sign * 2 * xy)
        double = np.stack([np.bincount(polygon, part, len(first)) for part in parts], axis=1)
        size = np.sqrt((double**2).sum(axis=1))
        known = size > 0
        better = half_angle(np.where(known[:, None], double / np.where(known, size, 1.0)[:, None], [1.0, 0.0]))
        better *= np.where((better * first).sum(axis=1) < 0, -1.0, 1.0)[:, None]
        return np.where(known[:, None], better, first)

    def axes(self, sums: Sums, direction: Floats) -> Floats:
        """Return the unit vector of each line; ``direction`` is that of each wall's polygon."""
        c, s = direction.T
        xx, xy, yy = self.spread.T
        double = np.stack([xx - yy, 2 * xy], axis=1)
        size = np.sqrt((double**2).sum(axis=1))
        good = (self.number >= FITTED) & (size > 0)
        fitted = half_angle(np.where(good[:, None], double / np.where(good, size, 1.0)[:, None], [1.0, 0.0]))
        chord = (sums.xy[self.end] - sums.xy[self.begin]) / UNIT
        reach = np.sqrt((chord**2).sum(axis=1))
        free = np.where(good[:, None], fitted, chord / np.where(reach > 0, reach, 1.0)[:, None])
        free = np.where((reach > 0)[:, None] | good[:, None], free, [1.0, 0.0])
        kind = self.kind[:, None]
        return np.where(kind == ALONG, direction, np.where(kind == ACROSS, np.stack([-s, c], axis=1), free))


def _misfit(kind: Index, number: Index, spread: Floats, direction: Floats) -> Floats:
    misfit: Floats = np.choose(kind, squares(spread[:, 0], spread[:, 1], spread[:, 2], direction)) * weight(number)
    return misfit


def corners(lines: Lines, axes: Floats, sums: Sums, size: Index, reach: Floats) -> tuple[Floats, Index, Bools]:
    """Return the vertices where each wall meets the next, how many, one or two, and whether they are near the outline.

    That is where their lines meet; where they do not, or farther than ``reach`` from the outline there, it is the two
    points of the lines that are nearest to where the wall ended: a jog.

    Args:
        lines: of whole rings.
        axes: unit vector of each.
        sums: the samples.
        size: samples of each wall's ring.
        reach: pixels, for each wall.
    """
    after = lines.following()
    at = sums.xy[lines.end] / UNIT
    there, onward = lines.middle[after], axes[after]
    cross = axes[:, 0] * onward[:, 1] - axes[:, 1] * onward[:, 0]
    way = there - lines.middle
    meets = np.abs(cross) >= PARALLEL
    t = (way[:, 0] * onward[:, 1] - way[:, 1] * onward[:, 0]) / np.where(meets, cross, 1.0)
    meeting = lines.middle + axes * t[:, None]
    far = np.flatnonzero(meets & (((meeting - at) ** 2).sum(axis=1) > reach**2))
    # Walls that meet at a blunt angle may do so far from where one was found to end, and yet on the outline.
    meets[far] = _near(meeting[far], lines.end[far], sums, size[far], reach[far])
    one = lines.middle + axes * ((at - lines.middle) * axes).sum(axis=1)[:, None]
    two = there + onward * ((at - there) * onward).sum(axis=1)[:, None]
    near = ((one - two) ** 2).sum(axis=1) <= (reach / 2) ** 2
    free, other = lines.kind == FREE, lines.kind[after] == FREE
    # A free wall bends to a squared one, two free ones to their middle.
    bent = np.where(free[:, None], np.where(other[:, None], (one + two) / 2, two), one)
    single = meets | (near & (free | other)) | (((one - two) ** 2).sum(axis=1) <= SAME**2)
    first = np.where(meets[:, None], meeting, np.where(single[:, None], bent, one))
    count = np.where(single, 1, 2)
    vertex = np.repeat(first, count, axis=0)
    vertex[np.cumsum(count)[~single] - 1] = two[~single]
    shift = np.maximum(((one - at) ** 2).sum(axis=1), ((two - at) ** 2).sum(axis=1))
    return vertex, count, meets | (shift <= reach**2)


def _near(points: Floats, end: Index, sums: Sums, size: Index, reach: Floats) -> Bools:
    """Say which points are within reach of one of the samples around ``end``."""
    if not len(points):
        return np.zeros(0, bool)
    around = np.arange(-AROUND, AROUND + 1)
    begin = end - sums.place[end]
    # A ring's last sample is its first come again.
    number = begin[:, None] + (sums.place[end][:, None] + around) % (size - 1)[:, None]
    away = sums.xy[number] / UNIT - points[:, None]
    near: Bools = ((away**2).sum(axis=2) <= reach[:, None] ** 2).any(axis=1)
    return near
