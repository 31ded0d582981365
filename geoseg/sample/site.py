"""A street block while things are being placed on it: what is free, and how to build there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import atan2, hypot, pi
from typing import Any, TypeVar

import numpy as np
import shapely
from shapely.geometry import Polygon

from geoseg.sample.city import (
    OFFSET,
    RGB,
    Array,
    Block,
    Box,
    Building,
    City,
    Part,
    Tree,
    clipped,
    half_street,
    inset,
    look_of,
    quad_of,
    turned,
)
from geoseg.sample.texture import CROWNS_M

T = TypeVar("T")

_TILE = [(152, 88, 68), (160, 100, 80), (134, 82, 66), (122, 84, 70), (170, 120, 96), (142, 98, 82)]
_BROWN = [(112, 96, 84), (128, 108, 92), (98, 88, 80), (140, 124, 108)]
_GREY = [(122, 120, 118), (102, 102, 105), (142, 138, 132), (128, 128, 131)]
_CONCRETE = [(172, 167, 157), (150, 147, 140), (184, 180, 170), (160, 151, 140)]
_WHITE = [(214, 214, 211), (202, 206, 208), (192, 199, 203), (222, 220, 214)]
_DARK = [(72, 72, 76), (86, 84, 82), (62, 64, 69), (90, 84, 79)]
_METAL = [
    (98, 122, 146),
    (106, 130, 118),
    (148, 112, 92),
    (172, 174, 173),
    (132, 92, 76),
    (180, 175, 164),
]
ROOFS = [_TILE, _BROWN, _GREY, _CONCRETE, _WHITE, _DARK, _METAL]
CARS = [
    *[(228, 228, 226), (214, 216, 218), (196, 198, 200), (226, 226, 226)],
    *[(62, 64, 68), (42, 42, 46), (50, 52, 56), (130, 132, 136), (112, 114, 118), (92, 94, 98)],
    *[(136, 46, 42), (52, 68, 104), (168, 158, 140)],
]


class Site:
    """A block while things are being placed on it; ``m`` is pixels per metre."""

    def __init__(self, city: City, i: int, j: int) -> None:
        """Measure the lot of a block; nothing stands on it yet."""
        self.look, self.m = look_of(city.seed), 1 / city.gsd
        self.rng = np.random.default_rng([city.seed, 6, i + OFFSET, j + OFFSET])
        self.block, self.quad = Block(), quad_of(city, i, j)
        lines = ((0, i), (1, j + 1), (0, i + 1), (1, j))
        self.half = [half_street(city, axis, line) for axis, line in lines]
        self.kerb = inset(self.quad, self.half)
        self.lot = inset(self.kerb, [1.6 * self.m] * 4)
        self.inner = Polygon(self.lot)
        shapely.prepare(self.inner)
        self.base = atan2(*(self.lot[1] - self.lot[0])[::-1])
        self.taken: list[Polygon] = []
        self.cores: list[tuple[float, float, float]] = []
        self.saplings: list[tuple[float, float, float]] = []
        mix = self.look.families**1.3 + self.rng.dirichlet([0.3] * len(ROOFS)) * 0.5
        self.mix: list[float] = mix.tolist()

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Choose one, evenly or by weights."""
        if weights is None:
            return options[int(self.rng.integers(len(options)))]
        steps = list(accumulate(weights))
        k = bisect_right(steps, self.rng.random() * steps[-1])
        return options[min(k, len(options) - 1)]

    def roof_colour(self, families: Sequence[int] = range(len(ROOFS))) -> RGB:
        """A roof of this block, of some of the families of materials."""
        base = np.array(self.pick(ROOFS[self.pick(families, [self.mix[k] for k in families])]))
        return clipped(base * self.rng.uniform(0.82, 1.12) + self.rng.uniform(-5, 5, 3))

    def tint(self, *names: str, spread: float = 0.15) -> RGB:
        """A ground material of the city, lighter or darker."""
        return clipped(self.look.ground[self.pick(names)] * self.rng.uniform(1 - spread, 1 + spread))

    def at(self, s: float, t: float) -> Array:
        """Point of the lot from coordinates in the unit square."""
        a, b, c, d = self.lot
        return np.asarray((a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t)

    def anywhere(self, edge: float = 0.02) -> tuple[float, float]:
        """A point of the lot, ``edge`` (share of its side) away from the border."""
        x, y = self.at(*self.rng.uniform(edge, 1 - edge, 2))
        return float(x), float(y)

    def sides(self, which: Sequence[int]) -> Iterator[tuple[Array, Array, Array, float]]:
        """Start, direction, inward normal and length of sides of the lot, 0 the upper one."""
        for k in which:
            p, q = self.lot[k], self.lot[(k + 1) % 4]
            length = hypot(*(q - p))
            d = (q - p) / length
            yield p, d, np.array([-d[1], d[0]]), length

    def free(self, polygon: Any, gap: float) -> bool:
        """Say whether a shape lies inside the lot and ``gap`` metres from all that stands there."""
        if not self.inner.contains(polygon):
            return False
        return not self.taken or bool(shapely.distance(np.array(self.taken), polygon).min() > gap * self.m)

    def crowded(self, x: float, y: float, radius: float) -> bool:
        """Say quickly whether a disc certainly overlaps a building; False is no promise."""
        return any((x - a) ** 2 + (y - b) ** 2 < (radius + r) ** 2 for a, b, r in self.cores)

    def paint(self, box: Box, under: bool = False) -> None:
        """Put something flat on the ground, over or under what is there."""
        self.block.flat.insert(0, box) if under else self.block.flat.append(box)

    def build(self, parts: list[Part], height_m: float, kind: str, gap: float = 1.0, details: int = 0) -> bool:
        """Place a building when there is room for it, ``gap`` metres from everything else."""
        core = (parts[0].x, parts[0].y, parts[0].half_width or parts[0].half_length * 0.95)
        if self.crowded(*core):
            return False
        shapes = [Polygon(part.corners) for part in parts]
        if not self.free(shapes[0], gap):  # before the union, which takes longer
            return False
        whole = shapes[0] if len(shapes) == 1 else shapely.union_all(shapes).simplify(1e-7)
        if not isinstance(whole, Polygon) or not self.free(whole, gap):
            return False
        if any(Polygon(hole).area < 12 * self.m**2 for hole in whole.interiors):
            return False
        self.taken.append(whole)
        if not whole.interiors:
            p, (x, y, radius) = parts[0], core
            ends = max(p.half_length - radius, 0)
            for u in (0, ends, -ends) if ends > radius / 2 else (0,):
                self.cores.append((*turned(x, y, p.angle, u, 0), radius))
        relief = self.look.relief * self.rng.uniform(0.6, 1.3)
        ribs = self.pick((0.0, 0.0, 0.04, 0.08))
        fittings = tuple(self._fitting(self.pick(parts)) for _ in range(details))
        found = tuple(box for box in fittings if box is not None)
        self.block.buildings.append(Building(tuple(parts), whole, height_m * self.m, kind, relief, ribs, found))
        return True

    def _fitting(self, p: Part) -> Box | None:
        """A chimney, a skylight, a solar panel or a ventilator, well inside the part."""
        rng, m = self.rng, self.m
        flat, panel = p.roof == "flat", p.roof != "flat" and rng.random() < 0.25
        a, b = rng.uniform(0.35, 1.3, 2) * m if flat else np.full(2, rng.uniform(0.25, 0.45) * m)
        if panel:
            a, b = rng.uniform(1.2, 2.8) * m, min(0.3 * p.half_width, 1.2 * m)
        room = p.half_length - 2 * a, p.half_width - 1.6 * b
        if min(room) <= 0:
            return None
        u, v = rng.uniform(-1, 1) * room[0], rng.uniform(-1, 1) * room[1]
        if panel:
            v = 0.5 * p.half_width * self.pick((-1, 1))
        grey = rng.uniform(90, 220)
        colour = (50.0, 56.0, 74.0) if panel else (grey, grey, grey)
        height = 0.0 if panel else rng.uniform(0.4, 1.8) * m
        x, y = turned(p.x, p.y, p.angle, u, v)
        return Box(x, y, p.angle, float(a), float(b), colour, 0.9, 0.0, height)

    def tree(self, x: float, y: float, radius_m: float) -> None:
        """Ask for a tree; it is planted in the end unless it stood too far over something."""
        self.saplings.append((x, y, radius_m))

    def scatter_trees(self, density: float, low: float = 1.0, high: float = 4.5) -> None:
        """Trees per 100 m², before those that stand in the way are dropped; some in clumps."""
        count = self.rng.poisson(density * self.look.trees * self.inner.area / self.m**2 / 130)
        for _ in range(count):
            x, y = self.anywhere(0.01)
            for _ in range(self.pick((1, 1, 1, 3, 5))):
                dx, dy = self.rng.normal(0, 3 * self.m, 2)
                self.tree(x + dx, y + dy, low + (high - low) * self.rng.beta(1.3, 2.2))

    def plant(self) -> None:
        """Turn the trees asked for into trees, all at once since the search is costly."""
        if not self.saplings:
            return
        rng, m = self.rng, self.m
        saplings = np.array(self.saplings)
        distance = np.full(len(saplings), np.inf)
        if self.taken:
            points = shapely.points(saplings[:, :2])
            tree = shapely.STRtree(self.taken)
            found, gaps = tree.query_nearest(points, return_distance=True, all_matches=False)
            distance[found[0]] = gaps
        for (x, y, radius), gap in zip(saplings, distance, strict=True):
            if gap < radius * m * 0.7:
                continue
            bare = rng.random() < self.look.bare
            base = self.look.ground["twig" if bare else "leaf"] * rng.uniform(0.72, 1.3)
            k = int(np.abs(CROWNS_M - radius).argmin())
            stamp = 3 * k + (2 if bare else int(rng.integers(2)))
            colour = clipped(base + rng.uniform(-6, 6, 3))
            self.block.trees.append(Tree(x, y, stamp, colour, radius * m * rng.uniform(1.2, 2.0)))

    def car(self, x: float, y: float, angle: float) -> None:
        """Park a car."""
        rng, m = self.rng, self.m
        colour = clipped(np.array(self.pick(CARS)) * rng.uniform(0.85, 1.08))
        length, width, height = rng.uniform(2.0, 2.45), rng.uniform(0.85, 1.0), 1.4
        if rng.random() < 0.05:
            length, width, height, colour = rng.uniform(2.8, 4.5), 1.15, 2.8, (224.0, 224.0, 222.0)
        box = Box(x, y, angle, length * m, width * m, colour, 1.0, 0.0, height * m)
        self.block.cars.append(box)

    def car_park(self, x: float, y: float, angle: float, a: float, b: float) -> None:
        """Bays in rows along the length, with aisles between; half sizes in pixels."""
        m, rng = self.m, self.rng
        bed = Part(x, y, angle, a, b, "flat", (0, 0, 0))
        if not self.free(Polygon(bed.corners), 1.5):
            return
        self.taken.append(Polygon(bed.corners))
        self.paint(Box(x, y, angle, a, b, self.tint("asphalt"), 1.0, 0.5))
        fill, v, row = rng.uniform(0.2, 0.95), -b + 2.7 * m, 0
        while v < b - 2.5 * m:
            for u in np.arange(-a + 2 * m, a - 2 * m, 2.6 * m):
                line = turned(x, y, angle, u - 1.3 * m, v)
                self.paint(Box(*line, angle + pi / 2, 2.4 * m, 0.07 * m, (215, 215, 210), 0.7))
                if rng.random() < fill:
                    at = turned(x, y, angle, u + rng.normal(0, 0.1) * m, v)
                    self.car(*at, angle + pi / 2 + rng.normal(0, 0.02))
            v += (11.0 if row % 2 == 0 else 5.2) * m
            row += 1
