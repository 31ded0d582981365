"""What a city is made of: its style, its streets, and the things that stand in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, cos, floor, isfinite, pi, sin
from typing import Any

import numpy as np
import shapely
from shapely.geometry import Polygon

from geoseg.errors import SettingError
from geoseg.tiling import Rect

Array = np.ndarray[Any, np.dtype[Any]]
RGB = tuple[float, float, float]

OFFSET = 1 << 20
"""Added to lattice rows and columns in seeds, which may not be negative."""
REACH_M = 30.0
"""No shadow or crown reaches further from its block."""
ROUND_SIDES = 32
"""Sides of a round roof."""


@dataclass(frozen=True, slots=True)
class Part:
    """A convex piece of roof: a rectangle, or a disc (``roof="round"``) of 32 sides."""

    x: float
    y: float
    angle: float
    half_length: float
    half_width: float
    roof: str
    """``gable``, ``hip``, ``shed``, ``flat`` or ``round``."""
    colour: RGB

    @property
    def corners(self) -> Array:
        """(N, 2) vertices, clockwise on the screen."""
        if self.roof == "round":
            turns = np.arange(ROUND_SIDES) * (2 * pi / ROUND_SIDES) + self.angle
            ring = np.stack([np.cos(turns), np.sin(turns)], 1)
            return (self.x, self.y) + self.half_length * ring
        a, b = self.half_length, self.half_width
        uv = ((-a, -b), (a, -b), (a, b), (-a, b))
        return np.array([turned(self.x, self.y, self.angle, u, v) for u, v in uv])


@dataclass(frozen=True, slots=True)
class Box:
    """A small oriented rectangle: a car, a marking, a drive, a chimney, a hedge."""

    x: float
    y: float
    angle: float
    half_length: float
    half_width: float
    colour: RGB
    opacity: float = 1.0
    rough: float = 0.0
    """How strongly the ground's texture shows, 0 to 1."""
    height: float = 0.0
    """Above what it stands on; above zero it casts a shadow."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A crown: where, and which of the city's stamps."""

    x: float
    y: float
    stamp: int
    colour: RGB
    height: float


@dataclass(frozen=True, slots=True)
class Building:
    """A roof made of parts; ``polygon`` is exactly their union, in pixel coordinates."""

    parts: tuple[Part, ...]
    polygon: Polygon
    height: float
    kind: str
    relief: float
    """Difference in tone between a lit and a shaded slope."""
    ribs: float
    """Contrast of the joints between metal sheets."""
    details: tuple[Box, ...] = ()


@dataclass(slots=True)
class Block:
    """Everything on one street block and on the streets above and left of it."""

    ground: list[tuple[Array, str]] = field(default_factory=list)
    flat: list[Box] = field(default_factory=list)
    cars: list[Box] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class City:
    """Which city: all that a drawing depends on."""

    seed: int = 0
    gsd: float = 0.3
    """Metres per pixel."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.seed < 0:
            raise SettingError(f"the seed of a city must not be negative, not {self.seed}")
        if not (isfinite(self.gsd) and 0.05 <= self.gsd <= 2):
            raise SettingError(f"the pixel size must lie between 0.05 and 2 m, not {self.gsd}")


@dataclass(frozen=True, slots=True)
class Look:
    """Style of a whole city, drawn from its seed."""

    theta: float
    """Direction of the streets."""
    step_m: tuple[float, float]
    jitter: float
    sun: tuple[float, float]
    """Unit vector towards the sun, x and y."""
    reach: float
    """Length of a shadow per height."""
    shadow: float
    relief: float
    families: Array
    kinds: Array
    ground: dict[str, Array]
    """Colours of ground materials, (3,) each."""
    lush: float
    trees: float
    bare: float
    """Share of trees without leaves."""
    gain: Array
    contrast: float
    haze: float
    blur: float
    noise: float


@lru_cache(maxsize=8)
def look_of(seed: int) -> Look:
    """Draw the style of a city."""
    rng = np.random.default_rng([seed, 1])
    azimuth = rng.uniform(0.15, 0.85) * pi  # the sun stands in the southern half, y points south
    lush = float(rng.uniform())

    def near(colour: RGB, spread: float) -> Array:
        return np.array(colour) * rng.uniform(1 - spread, 1 + spread) + rng.uniform(-4, 4, 3)

    return Look(
        theta=float(rng.uniform(-0.6, 0.6)),
        step_m=(float(rng.uniform(95, 150)), float(rng.uniform(64, 94))),
        jitter=float(rng.uniform(0.03, 0.12)),
        sun=(cos(azimuth), sin(azimuth)),
        reach=float(rng.uniform(0.35, 1.1)),
        shadow=float(rng.uniform(0.5, 0.72)),
        relief=float(rng.uniform(0.12, 0.32)),
        families=rng.dirichlet([0.8, 0.6, 0.8, 0.6, 0.5, 0.5, 0.4]) * 0.8 + 0.2 / 7,
        kinds=rng.dirichlet([2.2, 0.8, 0.8, 0.8, 1.0, 0.3, 0.6]) * 0.85 + 0.15 / 7,
        ground={
            "grass": near((92, 106, 68) if lush > 0.4 else (108, 110, 78), 0.12),
            "dry": near((150, 139, 108), 0.12),
            "earth": near((160, 134, 108), 0.14),
            "asphalt": near((112, 112, 112), 0.2),
            "paving": near((166, 163, 156), 0.1),
            "leaf": near((60, 76, 46), 0.16),
            "twig": near((112, 103, 92), 0.1),
        },
        lush=lush,
        trees=float(rng.uniform(0.6, 2.2)),
        bare=float(rng.choice([0.0, 0.05, 0.5])),
        gain=(rng.uniform(0.95, 1.25) * (1 + rng.uniform(-0.035, 0.035, 3))).astype(np.float32),
        contrast=float(rng.uniform(0.92, 1.2)),
        haze=float(rng.uniform(0, 0.16)),
        blur=float(rng.uniform(0.08, 0.2)),
        noise=float(rng.uniform(1.0, 3.2)),
    )


@lru_cache(maxsize=8192)
def _node(city: City, i: int, j: int) -> tuple[float, float]:
    look = look_of(city.seed)
    jitter = np.random.default_rng([city.seed, 4, i + OFFSET, j + OFFSET]).uniform(-1, 1, 2)
    x = (j + jitter[0] * look.jitter) * look.step_m[0] / city.gsd
    y = (i + jitter[1] * look.jitter) * look.step_m[1] / city.gsd
    c, s = cos(look.theta), sin(look.theta)
    return x * c - y * s, x * s + y * c


def quad_of(city: City, i: int, j: int) -> Array:
    """Corners of a block, (4, 2), clockwise on the screen: the middles of its crossings."""
    at = ((i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j))
    return np.array([_node(city, a, b) for a, b in at])


@lru_cache(maxsize=8192)
def half_street(city: City, axis: int, line: int) -> float:
    """Half the width of the street along a line of the lattice; axis 0 is a row, 1 a column."""
    rng = np.random.default_rng([city.seed, 5, axis, line + OFFSET])
    return float(rng.choice([2.6, 3.2, 3.8, 4.6, 7.0], p=[0.15, 0.3, 0.3, 0.15, 0.1])) / city.gsd


def cells(city: City, rect: Rect) -> list[tuple[int, int]]:
    """Blocks of which anything may show in ``rect``, in lattice order."""
    look, reach = look_of(city.seed), REACH_M / city.gsd
    x0, y0, x1, y1 = rect.col0 - reach, rect.row0 - reach, rect.col1 + reach, rect.row1 + reach
    x, y = np.array([x0, x1, x0, x1]), np.array([y0, y0, y1, y1])
    c, s = cos(look.theta), sin(look.theta)
    j = (x * c + y * s) * city.gsd / look.step_m[0]
    i = (y * c - x * s) * city.gsd / look.step_m[1]
    found = []
    for a in range(floor(i.min()) - 1, ceil(i.max()) + 1):
        for b in range(floor(j.min()) - 1, ceil(j.max()) + 1):
            quad = quad_of(city, a, b)
            (left, top), (right, bottom) = quad.min(0), quad.max(0)
            if left < x1 and right > x0 and top < y1 and bottom > y0:
                found.append((a, b))
    return found


def inset(points: Array, by: Sequence[float]) -> Array:
    """Move the sides of a polygon that is clockwise on the screen inwards, each by its own."""
    d = np.roll(points, -1, 0) - points
    d /= np.hypot(d[:, 0], d[:, 1])[:, None]
    normal = np.stack([-d[:, 1], d[:, 0]], 1)
    level = (normal * points).sum(1) + np.asarray(by)
    return np.array([np.linalg.solve(normal[[k - 1, k]], level[[k - 1, k]]) for k in range(len(points))])


def rounded(points: Array, radius: float) -> Array:
    """Round the corners of a convex polygon, (N, 2) in and out."""
    core = Polygon(points).buffer(-radius, join_style="mitre")
    return ring(core.buffer(radius, quad_segs=2))


def ring(polygon: Any) -> Array:
    """Vertices of the exterior of a polygon, (N, 2), clockwise on the screen."""
    return shapely.get_coordinates(shapely.orient_polygons(polygon, exterior_cw=False))[:-1]


def turned(x: float, y: float, angle: float, u: float, v: float) -> tuple[float, float]:
    """The point ``u`` along and ``v`` across a direction from (x, y)."""
    c, s = cos(angle), sin(angle)
    return x + u * c - v * s, y + u * s + v * c


def xy(point: Array) -> tuple[float, float]:
    """Plain numbers of a point."""
    return float(point[0]), float(point[1])


def clipped(values: Iterable[float]) -> RGB:
    """Make a colour of three numbers, neither black nor burnt out."""
    r, g, b = (min(245.0, max(20.0, float(v))) for v in values)
    return r, g, b
