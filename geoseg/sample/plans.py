"""How street blocks are laid out, one function per kind of quarter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import atan2, hypot, pi

import numpy as np
import shapely
from shapely.geometry import Polygon

from geoseg.sample.city import (
    Array,
    Block,
    Box,
    Building,
    City,
    Part,
    cells,
    clipped,
    rounded,
    turned,
    xy,
)
from geoseg.sample.site import Site
from geoseg.tiling import Rect


def _house(site: Site, x: float, y: float, angle: float, a: float, b: float) -> list[Part]:
    """A rectangle with perhaps an L, T or U wing or an annexe."""
    rng, colour = site.rng, site.roof_colour()
    roof = site.pick(("gable", "hip", "flat"), (0.5, 0.38, 0.12))
    parts = [Part(x, y, angle, a, b, roof, colour)]

    def wing(u: float, v: float, half_length: float, half_width: float, across: bool) -> None:
        px, py = turned(x, y, angle, u, v)
        turn = pi / 2 if across else 0.0
        parts.append(Part(px, py, angle + turn, half_length, half_width, roof, colour))

    shape, side = rng.random(), site.pick((-1, 1))
    if shape < 0.33:
        w = a * rng.uniform(0.3, 0.48)
        wing((a - w) * side, b * 0.6 * site.pick((-1, 1)), b * rng.uniform(0.8, 1.1), w, True)
    elif shape < 0.48:
        w = a * rng.uniform(0.25, 0.35)
        wing(rng.uniform(-0.4, 0.4) * a, b * 0.7 * side, b * 0.9, w, True)
    elif shape < 0.58:
        for end in (-1, 1):
            wing(end * a * 0.72, b * 0.8 * side, b, a * 0.28, True)
    elif shape < 0.72:
        wing((a + b * 0.3) * side, b * rng.uniform(-0.3, 0.3), b * 0.6, b * 0.6, False)
    return parts


def _houses(site: Site) -> None:
    """Detached houses on plots with lawns, drives, fences, sheds and pools."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, "grass"))
    width, setback = rng.uniform(13, 21) * m, rng.uniform(3, 8) * m
    depth = (hypot(*(site.lot[3] - site.lot[0])) + hypot(*(site.lot[2] - site.lot[1]))) / 4
    hedge = site.tint("leaf") if rng.random() < 0.5 else site.tint("dry", "twig")
    thick = (0.45 if rng.random() < 0.5 else 0.12) * m
    deep = rng.uniform(4.2, 6.2) * m
    for k in (0, 2, 1, 3):
        p, d, n, length = next(site.sides((k,)))
        angle, along = atan2(d[1], d[0]), rng.uniform(0.5, 3) * m
        while along + width < length:
            plot = width * rng.uniform(0.85, 1.2)
            mid = p + d * (along + plot / 2)
            along += plot
            if k % 2 == 0 and rng.random() < 0.75:
                x, y = p + d * along + n * depth * 0.55
                site.paint(Box(x, y, angle + pi / 2, depth * 0.45, thick, hedge, 0.9, 0.8, 1.3 * m))
            a, b = min(plot / 2 - 1.2 * m, rng.uniform(5.5, 9) * m), deep * rng.uniform(0.8, 1.2)
            if rng.random() < 0.15:
                a, b = b, a
            back = setback + b + rng.uniform(0, 2) * m
            house = mid + n * back
            parts = _house(site, house[0], house[1], angle + rng.normal(0, 0.02), a, b)
            if site.build(parts, rng.uniform(3.5, 7), "house", 1.2, int(rng.integers(0, 4))):
                _garden(site, mid, d, n, angle, plot, back, b, depth if k % 2 == 0 else 14 * m)
    site.scatter_trees(0.8)


def _garden(
    site: Site,
    mid: Array,
    d: Array,
    n: Array,
    angle: float,
    plot: float,
    back: float,
    b: float,
    depth: float,
) -> None:
    """Yard, drive, terrace, shed, pool of a house ``back`` from the middle ``mid`` of its front."""
    rng, m = site.rng, site.m
    if rng.random() < 0.6:
        x, y = mid + n * depth / 2
        yard = Box(
            x,
            y,
            angle,
            plot / 2,
            depth / 2,
            site.tint("dry", "grass", "grass", "earth"),
            rng.uniform(0.2, 0.7),
            1,
        )
        site.paint(yard, under=True)
    if rng.random() < 0.75:
        start = mid + d * (plot / 2 - 2.2 * m) * site.pick((-1, 1))
        reach = back * rng.uniform(0.5, 1.0)
        x, y = start + n * (reach / 2 - 0.8 * m)
        half = rng.uniform(1.3, 2.4) * m
        site.paint(
            Box(
                x,
                y,
                angle + pi / 2,
                reach / 2 + 0.8 * m,
                half,
                site.tint("paving", "asphalt"),
                0.95,
                0.5,
            )
        )
        if rng.random() < 0.5:
            site.car(*xy(start + n * reach * 0.5), angle + pi / 2 + rng.normal(0, 0.05))
    if rng.random() < 0.5:
        x, y = mid + n * (back + b + 1.5 * m) + d * rng.uniform(-4, 4) * m
        a1, b1 = rng.uniform(1.5, 4) * m, rng.uniform(1.5, 2.5) * m
        site.paint(Box(x, y, angle, a1, b1, site.tint("paving", "twig"), 0.9, 0.5))
    x, y = mid + n * (back + b + rng.uniform(3, 8) * m) + d * rng.uniform(-0.35, 0.35) * plot
    chance = rng.random()
    bed = Polygon(Part(x, y, angle, 4.2 * m, 2.6 * m, "flat", (0, 0, 0)).corners)
    if chance < 0.12 and site.free(bed, 0.3):
        site.paint(Box(x, y, angle, 4.2 * m, 2.6 * m, site.tint("paving"), 0.9, 0.4))
        site.paint(Box(x, y, angle, 3.4 * m, 1.8 * m, (98, 160, 178), 0.95, 0.3))
        site.taken.append(bed)
    elif chance < 0.55:
        a1, b1 = sorted(rng.uniform(1.1, 3.2, 2) * m, reverse=True)
        roof = site.pick(("gable", "flat"))
        shed = Part(x, y, angle + rng.normal(0, 0.1), a1, b1, roof, site.roof_colour())
        site.build([shed], 2.4, "shed", 0.8)
    for _ in range(4):
        x, y = mid + d * plot * rng.choice([-0.48, 0.48]) + n * rng.uniform(2 * m, depth)
        site.tree(x, y, rng.uniform(0.7, 2.4))


def _rows(site: Site) -> None:
    """Terraces along the streets; a row is one building."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, site.pick(("grass", "dry", "earth"))))
    unit, deep = rng.uniform(5, 8) * m, rng.uniform(4, 6) * m
    roof, alike = site.pick(("gable", "gable", "flat")), rng.random() < 0.5
    base = site.roof_colour()
    for p, d, n, length in site.sides((0, 2, 1, 3)):
        angle, along = atan2(d[1], d[0]), rng.uniform(1, 5) * m
        while along < length - 3 * unit:
            count = min(int(rng.integers(3, 10)), int((length - along) / unit))
            inward = n * (deep + rng.uniform(2.5, 3.2) * m)
            parts = []
            for k in range(count):
                x, y = p + d * (along + (k + 0.5) * unit) + inward
                colour = clipped(np.array(base) * rng.uniform(0.94, 1.06)) if alike else site.roof_colour()
                parts.append(Part(x, y, angle, unit * 0.51, deep * site.pick((1, 1, 1.06)), roof, colour))
            if site.build(parts, rng.uniform(5, 9), "row", 1.5, count):
                for k in range(count):
                    _back_yard(site, p + d * (along + (k + 0.5) * unit), n, angle, unit, deep)
            along += count * unit + rng.uniform(2, 8) * m
    _infill(site, 10, (2.2, 5), (1.6, 3), 1.0)
    site.scatter_trees(0.7, high=3.5)


def _back_yard(site: Site, front: Array, n: Array, angle: float, unit: float, deep: float) -> None:
    rng, m = site.rng, site.m
    if rng.random() < 0.8:
        half = deep * rng.uniform(0.7, 1.3)
        x, y = front + n * (2 * deep + 3.2 * m + half)
        tint = site.tint("grass", "grass", "paving", "dry", "earth")
        site.paint(Box(x, y, angle, unit * 0.48, half, tint, rng.uniform(0.4, 0.9), 1))
        x, y = front + n * (2 * deep + 3.2 * m + half)
        side = turned(x, y, angle, unit / 2, 0)
        site.paint(Box(*side, angle + pi / 2, half, 0.15 * m, site.tint("twig", "leaf"), 0.8, 0.6, m))
        if rng.random() < 0.5:
            site.tree(*xy(front + n * (2 * deep + 3 * m + 2 * half)), rng.uniform(0.8, 2.2))
    if rng.random() < 0.3:
        site.car(*xy(front + n * 0.6 * m), angle + rng.normal(0, 0.03))


def _commercial(site: Site) -> None:
    """Halls with flat roofs, car parks around them."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, site.pick(("asphalt", "paving", "asphalt"))))
    for _ in range(50):
        x, y = site.anywhere(0.12)
        a, b = sorted((rng.uniform(7, 34) * m, rng.uniform(6, 20) * m), reverse=True)
        if rng.random() < 0.6 and site.block.buildings:
            site.car_park(x, y, site.base, a, max(b, 7 * m))
            continue
        if rng.random() < 0.12:
            disc = Part(x, y, site.base, rng.uniform(6, 15) * m, 0, "round", site.roof_colour((3, 4)))
            site.build([disc], 9, "round", 3)
            continue
        roof = site.pick(("flat", "flat", "flat", "gable", "shed"))
        parts = [Part(x, y, site.base, a, b, roof, site.roof_colour((2, 3, 4, 5, 6)))]
        if rng.random() < 0.4:
            at = turned(x, y, site.base, a * 0.6, 0)
            parts.append(Part(*at, site.base + pi / 2, b * 1.5, a * 0.3, roof, parts[0].colour))
        site.build(parts, rng.uniform(5, 12), "hall", 5, int(rng.integers(3, 16)))
    for p, d, n, length in site.sides(range(4)):
        if rng.random() < 0.6:
            for along in np.arange(4 * m, length - 4 * m, rng.uniform(7, 12) * m):
                site.tree(*xy(p + d * along + n * 1.5 * m), rng.uniform(1.2, 2.6))
    site.scatter_trees(0.12)


def _perimeter(site: Site) -> None:
    """Closed blocks around courtyards, and smaller things inside."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, site.pick(("paving", "grass", "dry"))))
    colour = np.array(site.roof_colour())
    roof = site.pick(("gable", "hip", "flat"), (0.6, 0.2, 0.2))
    alike, deep = rng.random() < 0.4, rng.uniform(4.5, 7) * m
    a, b, _, d = site.lot
    whole = hypot(*(b - a)) / 2, hypot(*(d - a)) / 2
    pieces = 1 if whole[0] < 35 * m or rng.random() < 0.3 else 2
    for k in range(pieces):
        x, y = site.at((k + 0.5) / pieces, 0.5)
        for shrink in (0.94, 0.88, 0.8, 0.72, 0.64):
            half_a, half_b = whole[0] / pieces * shrink, whole[1] * shrink
            if min(half_a, half_b) < 2.2 * deep:
                break
            u, v = half_a - deep, half_b - deep
            wings = [(0, -v, half_a, 0), (u, 0, half_b, 1), (0, v, half_a, 0), (-u, 0, half_b, 1)]
            if rng.random() < 0.25:
                wings.pop(int(rng.integers(4)))
            parts = []
            for du, dv, half, turn in wings:
                own = colour if alike else colour * 0.5 + np.array(site.roof_colour()) * 0.5
                at = turned(x, y, site.base, du, dv)
                parts.append(Part(*at, site.base + turn * pi / 2, half, deep, roof, clipped(own)))
            if site.build(parts, rng.uniform(8, 14), "court", 2, int(rng.integers(6, 24))):
                yard = site.tint("grass", "paving", "asphalt")
                site.paint(Box(x, y, site.base, half_a - deep, half_b - deep, yard, 0.9, 1), True)
                break
    _infill(site, 40, (3, 8), (2.5, 6), 1.0)
    site.scatter_trees(0.6, high=3.5)


def _infill(site: Site, tries: int, long_m: tuple[float, float], wide_m: tuple[float, float], gap: float) -> None:
    rng, m = site.rng, site.m
    for _ in range(tries):
        a, b = sorted((rng.uniform(*long_m) * m, rng.uniform(*wide_m) * m), reverse=True)
        x, y = site.anywhere()
        if site.crowded(x, y, b):
            continue
        angle = site.base + rng.normal(0, 0.02) + site.pick((0.0, pi / 2))
        parts = _house(site, x, y, angle, a, b)
        site.build(parts, rng.uniform(2.5, 6), "infill", gap, int(rng.integers(0, 2)))


def _informal(site: Site) -> None:
    """Small metal roofs close together on bare earth."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, site.pick(("earth", "earth", "dry"))))
    turn = site.base + rng.normal(0, 0.1)
    families = site.pick(((6, 3, 4), (6, 1, 0), (3, 4, 6, 2), (0, 1, 5, 2)))
    gap = rng.uniform(0.4, 1.2)
    for k in range(int(rng.integers(160, 420))):
        x, y = site.anywhere(0.01)
        big = 1.5 if k < 50 else 0.9 if k < 200 else 0.65
        a, b = sorted((rng.uniform(3, 7) * m * big, rng.uniform(2, 4.5) * m * big), reverse=True)
        if site.crowded(x, y, b):
            continue
        angle = turn + rng.normal(0, 0.04) + site.pick((0.0, pi / 2))
        roof = site.pick(("gable", "shed", "hip", "flat"), (0.45, 0.25, 0.15, 0.15))
        parts = [Part(x, y, angle, a, b, roof, site.roof_colour(families))]
        if rng.random() < 0.35:
            at = turned(x, y, angle, a * 0.7, b * 0.1)
            colour = site.roof_colour(families)
            parts.append(Part(*at, angle + pi / 2, b * 1.4, a * 0.3, roof, colour))
        site.build(parts, rng.uniform(2.5, 5), "small", gap)
    for _ in range(int(rng.integers(10, 80))):  # things that lie about
        x, y = site.anywhere(0.01)
        size = rng.uniform(0.3, 1.3, 2) * m
        colour = site.tint("twig", "paving", "earth", "asphalt", spread=0.4)
        site.paint(Box(x, y, turn, size[0], size[1], colour, 0.9, 0.8, 0.5 * m))
    for _ in range(int(rng.integers(0, 8))):
        x, y = site.anywhere(0.05)
        if site.free(shapely.Point(x, y).buffer(3 * m), 0.2):
            site.car(x, y, rng.uniform(0, pi))
    site.scatter_trees(0.3, high=4)


def _park(site: Site) -> None:
    """Trees, lawns, paths, sometimes a sports ground."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, site.pick(("grass", "dry", "grass"))))
    for _ in range(3):
        p, q = site.at(rng.uniform(), 0.02), site.at(rng.uniform(), 0.98)
        x, y = (p + q) / 2
        dx, dy = q - p
        half = rng.uniform(0.8, 1.6) * m
        site.paint(Box(x, y, atan2(dy, dx), hypot(dx, dy) / 2, half, site.tint("dry", "paving"), 0.85, 0.5))
    if rng.random() < 0.4:
        x, y = site.anywhere(0.35)
        court = site.pick(((94, 116, 104), (152, 98, 82), (98, 116, 140)))
        site.taken.append(Polygon(Part(x, y, site.base, 17 * m, 9 * m, "flat", court).corners))
        site.paint(Box(x, y, site.base, 17 * m, 9 * m, court, 1, 0.3))
        for u in (-16, 0, 16):
            at = turned(x, y, site.base, u * m, 0)
            site.paint(Box(*at, site.base + pi / 2, 8 * m, 0.08 * m, (225, 225, 220), 0.9))
    _infill(site, 3, (4, 9), (3, 6), 4)
    site.scatter_trees(rng.uniform(0.8, 3.2), high=5.5)


def _estate(site: Site) -> None:
    """Slabs of flats on lawns, with car parks."""
    rng, m = site.rng, site.m
    site.block.ground.append((site.lot, site.pick(("grass", "grass", "dry"))))
    angle = site.base + site.pick((0.0, pi / 2, rng.uniform(-0.4, 0.4)))
    colour, roof = site.roof_colour((0, 2, 3, 4, 5)), site.pick(("flat", "flat", "hip", "gable"))
    a, b = rng.uniform(12, 28) * m, rng.uniform(5, 8) * m
    for k in range(50):
        x, y = site.anywhere(0.05)
        if k % 4 == 3:
            site.car_park(x, y, angle, rng.uniform(8, 20) * m, 8.2 * m)
            continue
        parts = [Part(x, y, angle, a, b, roof, colour)]
        shape = rng.random()
        if shape < 0.3:
            at = turned(x, y, angle, a - b, b)
            parts.append(Part(*at, angle + pi / 2, a * 0.6, b, roof, colour))
        elif shape < 0.5:
            for end in (-0.5, 0.5):
                at = turned(x, y, angle, a * end, b * 0.4)
                parts.append(Part(*at, angle, a * 0.16, b * 0.9, roof, colour))
        site.build(parts, rng.uniform(8, 14), "flats", 6, int(rng.integers(4, 16)))
    _infill(site, 6, (2.5, 7), (1.5, 3), 2.0)
    site.scatter_trees(0.9, high=5)


PLANS: tuple[Callable[[Site], None], ...] = (
    _houses, _rows, _commercial, _perimeter, _informal, _park, _estate,
)  # fmt: skip


def patches(site: Site) -> None:
    """Worn, mown, dug or stored-upon corners of the ground, and mended asphalt."""
    rng, m = site.rng, site.m
    for _ in range(rng.poisson(site.inner.area / m**2 / 350)):
        x, y = site.anywhere(0.08)
        angle, (a, b) = site.base + rng.normal(0, 0.05), rng.uniform(0.8, 8, 2) * m
        if site.inner.contains(Polygon(Part(x, y, angle, a, b, "flat", (0, 0, 0)).corners)):
            colour = site.tint("grass", "dry", "earth", "paving", "leaf", "twig")
            site.paint(Box(x, y, angle, a, b, colour, rng.uniform(0.1, 0.6), 1))


def streets(site: Site) -> None:
    """Markings, mends, cars and trees of the streets above and left of the block."""
    rng, m, quad = site.rng, site.m, site.quad
    white = (208.0, 207.0, 200.0)
    for a, b, half in ((quad[0], quad[1], site.half[0]), (quad[3], quad[0], site.half[3])):
        length = hypot(*(b - a))
        d, angle = (b - a) / length, atan2(*(b - a)[::-1])
        n = np.array([-d[1], d[0]])
        for _ in range(rng.poisson(4)):
            x, y = a + d * rng.uniform(0, length) + n * rng.uniform(-0.7, 0.7) * half
            size = rng.uniform(0.8, 7) * m, rng.uniform(0.3, 0.25 * half / m + 0.4) * m
            site.paint(Box(x, y, angle, *size, site.tint("asphalt", spread=0.3), 0.5, 0.5))
        if half > 3 * m and rng.random() < 0.7:
            for t in np.arange(10 * m, length - 10 * m, 6 * m):
                site.paint(Box(*xy(a + d * t), angle, 1.5 * m, 0.08 * m, white, 0.7))
        if half > 3.5 * m and rng.random() < 0.6:
            for across in np.arange(-half + 0.7 * m, half - 0.5 * m, 1.1 * m):
                x, y = a + d * 10.5 * m + n * across
                site.paint(Box(x, y, angle, 1.4 * m, 0.25 * m, white, 0.75))
        parked = rng.uniform(0, 0.35) if half > 2.8 * m else 0.02
        for t in np.arange(14 * m, length - 9 * m, 6.2 * m):
            for side in (-1, 1):
                if rng.random() < parked:
                    x, y = a + d * (t + rng.normal(0, 0.5) * m) + n * side * (half - 1.1 * m)
                    site.car(x, y, angle + rng.normal(0, 0.02))
        for _ in range(rng.poisson(0.7)):
            x, y = a + d * rng.uniform(0.15, 0.9) * length + n * site.pick((-1, 1)) * half * 0.4
            site.car(x, y, angle)
    if rng.random() < 0.35 * site.look.trees:
        for p, d, n, length in site.sides(range(4)):
            for t in np.arange(5 * m, length - 5 * m, rng.uniform(8, 14) * m):
                if rng.random() < 0.7:
                    site.tree(*xy(p + d * t - n * 0.6 * m), rng.uniform(1.2, 3.2))


@lru_cache(maxsize=512)
def layout(city: City, row: int, col: int) -> Block:
    """Return what stands on the street block in lattice row ``row`` and column ``col``."""
    site = Site(city, row, col)
    site.block.ground.append((rounded(site.kerb, 4 * site.m), "paving"))
    patches(site)
    site.pick(PLANS, site.look.kinds.tolist())(site)
    streets(site)
    site.plant()
    return site.block


def buildings(rect: Rect, city: City) -> Iterator[Building]:
    """Yield the buildings of which any part lies in ``rect``, whole, in lattice order."""
    frame = shapely.box(rect.col0, rect.row0, rect.col1, rect.row1)
    for row, col in cells(city, rect):
        for building in layout(city, row, col).buildings:
            if building.polygon.intersects(frame):
                yield building
