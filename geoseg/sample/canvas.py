"""Drawing: what the camera sees of a window of the city, and the truth about it."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, cos, floor, hypot, pi, sin
from typing import Any

import numpy as np
import shapely

from geoseg.sample.city import (
    ROUND_SIDES,
    Array,
    Box,
    Building,
    City,
    Part,
    Tree,
    cells,
    look_of,
    ring,
)
from geoseg.sample.plans import layout
from geoseg.sample.texture import blur, stamps_of, textures_of
from geoseg.tiling import Rect

_MARGIN = 3
"""Pixels drawn around a chunk for the blur and the grain."""
CHUNK = 512
"""Pixels a side that are drawn at once."""


def _column(colour: Iterable[float]) -> Array:
    return np.array(tuple(colour), np.float32)[:, None, None]


class _Canvas:
    """Pixels of a rectangle; all painting is a function of the pixel's position in the city."""

    def __init__(self, city: City, rect: Rect) -> None:
        self.look, self.rect = look_of(city.seed), rect
        self.stamps = stamps_of(city)
        self.shade = np.zeros(rect.shape, np.float32)
        self.mask = np.zeros(rect.shape, bool)
        self.noise = {}
        for name, texture in textures_of(city.seed).items():
            n = len(texture)
            rows, cols = np.arange(rect.row0, rect.row1) % n, np.arange(rect.col0, rect.col1) % n
            self.noise[name] = texture[rows[:, None], cols]
        self.rgb = self.material("asphalt", rect)

    def area(self, x0: float, y0: float, x1: float, y1: float) -> Rect | None:
        """Pixels of the canvas that the box and one pixel around it cover."""
        row0, col0, row1, col1 = floor(y0) - 1, floor(x0) - 1, ceil(y1) + 1, ceil(x1) + 1
        here = self.rect
        if row0 >= here.row1 or col0 >= here.col1 or row1 <= here.row0 or col1 <= here.col0:
            return None
        return Rect(row0, col0, row1, col1) & here

    def convex(self, points: Array) -> tuple[Rect, Array] | None:
        """Distance of pixel centres to the sides of a polygon, positive inside."""
        area = self.area(*points.min(0), *points.max(0))
        if area is None:
            return None
        ax, ay = np.floor(points[0])
        px = (np.arange(area.col0, area.col1) + (0.5 - ax)).astype(np.float32)
        py = (np.arange(area.row0, area.row1) + (0.5 - ay)).astype(np.float32)[:, None]
        out = np.full(area.shape, np.inf, np.float32)
        for p, q in zip(points, np.roll(points, -1, 0), strict=True):
            length = hypot(*(q - p))
            if length > 1e-9:
                nx, ny = (p[1] - q[1]) / length, (q[0] - p[0]) / length
                level = np.float32(nx * (p[0] - ax) + ny * (p[1] - ay))
                np.minimum(out, px * np.float32(nx) + (py * np.float32(ny) - level), out=out)
        return area, out

    def material(self, name: str, area: Rect) -> Array:
        """Textured ground, (3, H, W)."""
        fine, mid, coarse = (self.noise[k][area.slices(self.rect)] for k in ("fine", "mid", "coarse"))
        colour = {k: _column(v) for k, v in self.look.ground.items()}
        if name == "grass":
            worn = np.clip(0.35 + 0.22 * mid + 0.25 * coarse - 0.3 * np.float32(self.look.lush), 0, 1)
            base, tone = (
                colour["grass"] + (colour["dry"] - colour["grass"]) * worn,
                0.07 * fine + 0.05 * mid,
            )
        elif name == "dry":
            worn = np.clip(0.3 + 0.2 * mid + 0.25 * coarse, 0, 0.7)
            base, tone = (
                colour["dry"] + (colour["grass"] - colour["dry"]) * worn,
                0.06 * fine + 0.05 * mid,
            )
        elif name == "earth":
            worn = np.clip(-0.1 + 0.25 * mid + 0.2 * coarse, 0, 0.8)
            base, tone = (
                colour["earth"] + (colour["grass"] - colour["earth"]) * worn,
                0.05 * fine + 0.07 * mid,
            )
        else:
            base, tone = colour[name], 0.02 * fine + 0.04 * mid + 0.05 * coarse
        return np.asarray(base * (1 + tone), np.float32)

    def blend(self, area: Rect, alpha: Array, colour: Array) -> None:
        view = self.rgb[(slice(None), *area.slices(self.rect))]
        view += alpha * (colour - view)

    def darken(self, area: Rect, amount: Array) -> None:
        view = self.shade[area.slices(self.rect)]
        np.maximum(view, amount, out=view)

    def ground(self, points: Array, name: str) -> None:
        found = self.convex(points)
        if found:
            self.blend(found[0], np.clip(found[1] + 0.5, 0, 1), self.material(name, found[0]))

    def box(self, b: Box, dx: float = 0, dy: float = 0) -> tuple[Rect, Array, Array, Array] | None:
        """Where a box (moved by dx, dy) lies: coordinates along and across, opacity."""
        c, s = cos(b.angle), sin(b.angle)
        w = b.half_length * abs(c) + b.half_width * abs(s)
        h = b.half_length * abs(s) + b.half_width * abs(c)
        area = self.area(b.x + dx - w, b.y + dy - h, b.x + dx + w, b.y + dy + h)
        if area is None:
            return None
        px = (np.arange(area.col0, area.col1) + (0.5 - b.x - dx)).astype(np.float32)
        py = (np.arange(area.row0, area.row1) + (0.5 - b.y - dy)).astype(np.float32)[:, None]
        u, v = px * np.float32(c) + py * np.float32(s), py * np.float32(c) - px * np.float32(s)
        # what is thinner than a pixel keeps its width as opacity
        most = np.float32(min(1.0, 2 * b.half_width))
        alpha = np.clip(np.float32(b.half_width + 0.5) - np.abs(v), 0, most)
        alpha *= np.clip(np.float32(b.half_length + 0.5) - np.abs(u), 0, 1)
        alpha *= np.float32(b.opacity)
        return area, u, v, alpha

    def flat(self, b: Box) -> None:
        """Paint a box, its shadow first when it stands up."""
        if b.height:
            self.cast_box(b)
        found = self.box(b)
        if found:
            area, _, _, alpha = found
            colour = _column(b.colour)
            if b.rough:
                at = area.slices(self.rect)
                texture = 0.06 * self.noise["fine"][at] + 0.06 * self.noise["mid"][at]
                colour = colour * (1 + np.float32(b.rough) * texture)
            self.blend(area, alpha, colour)

    def cast_box(self, b: Box) -> None:
        reach = b.height * self.look.reach * 0.5
        found = self.box(b, -self.look.sun[0] * reach, -self.look.sun[1] * reach)
        if found:
            strength = np.float32(self.look.shadow * 0.85)
            self.blend(found[0], found[3] * strength, _column((30, 32, 40)))

    def car(self, b: Box) -> None:
        """A body with a windscreen and a rear window, on its shadow."""
        self.cast_box(b)
        found = self.box(b)
        if found:
            area, u, v, alpha = found
            w = u / np.float32(b.half_length)
            glass = ((w > 0.15) & (w < 0.42)) | ((w > -0.8) & (w < -0.6))
            tone = np.where(glass, np.float32(0.35), np.float32(1)) * (1 + np.float32(0.1) * np.sign(v))
            self.blend(area, alpha, _column(b.colour) * tone)

    def cast(self, part: Part, height: float) -> None:
        """Shadow on the ground: the part swept away from the sun."""
        sweep = -np.array(self.look.sun) * height * self.look.reach
        corners = part.corners
        both = np.concatenate([corners, corners + sweep])
        if self.area(*both.min(0), *both.max(0)) is None:
            return
        hull = shapely.convex_hull(shapely.MultiPoint(both))
        found = self.convex(ring(hull))
        if found:
            self.darken(found[0], np.clip(found[1] * np.float32(0.8) + 0.5, 0, 1))

    def _stamp(self, x: float, y: float, n: int) -> tuple[Rect, tuple[slice, slice]] | None:
        row, col = floor(y), floor(x)
        whole = Rect(row - n, col - n, row + n + 1, col + n + 1)
        area = whole & self.rect
        return (area, area.slices(whole)) if area else None

    def tree_shadow(self, t: Tree) -> None:
        alpha = self.stamps[t.stamp][0]
        away = t.height * self.look.reach * 0.6
        x, y = t.x - self.look.sun[0] * away, t.y - self.look.sun[1] * away
        found = self._stamp(x, y, len(alpha) // 2)
        if found:
            self.darken(found[0], alpha[found[1]] * np.float32(0.95))

    def tree(self, t: Tree) -> None:
        alpha, tone = self.stamps[t.stamp]
        found = self._stamp(t.x, t.y, len(alpha) // 2)
        if found:
            area, at = found
            self.blend(area, alpha[at], _column(t.colour) * tone[at])

    def building(self, b: Building) -> None:
        """Roof slopes by the angle to the sun, ridges and eaves, fittings; the truth alongside."""
        area = self.area(*b.polygon.bounds)
        if area is None:
            return
        at = area.slices(self.rect)
        inside = np.full(area.shape, -9.0)
        top = np.full(area.shape, -9.0, np.float32)
        tone = np.ones(area.shape, np.float32)
        which = np.zeros(area.shape, np.intp)
        for k, part in enumerate(b.parts):
            distance, height, slope = self._slopes(part, b, area)
            np.maximum(inside, distance, out=inside)
            better = height > top
            np.copyto(top, height, where=better)
            np.copyto(tone, slope, where=better)
            which[better] = k
        edge = np.clip(np.float32(1.4) - inside.astype(np.float32), 0, 1)
        parapet = b.parts[0].roof == "flat" and b.ribs > 0
        tone += edge * np.float32(0.14 if parapet else -0.1)
        tone *= 1 + 0.025 * self.noise["fine"][at] + 0.05 * self.noise["mid"][at]
        colours = np.array([part.colour for part in b.parts], np.float32)
        colour = np.moveaxis(colours[which], 2, 0) * tone
        self.blend(area, np.clip(inside + 0.5, 0, 1).astype(np.float32), colour)
        self.mask[at] |= inside > 0
        for box in b.details:
            self.flat(box)

    def _slopes(self, part: Part, b: Building, area: Rect) -> tuple[Array, Array, Array]:
        """Distance to the sides (float64, as the truth hangs on it), height and tone of a part."""
        c, s = cos(part.angle), sin(part.angle)
        sun_x, sun_y = self.look.sun
        along, across = c * sun_x + s * sun_y, c * sun_y - s * sun_x
        px = np.arange(area.col0, area.col1) + 0.5 - part.x
        py = (np.arange(area.row0, area.row1) + 0.5 - part.y)[:, None]
        u: Array = px * c + py * s
        v: Array = py * c - px * s
        if part.roof == "round":
            turns = (np.arange(ROUND_SIDES) + 0.5) * (2 * pi / ROUND_SIDES)
            far = np.max([u * cos(t) + v * sin(t) for t in turns], axis=0)
            distance = part.half_length * cos(pi / ROUND_SIDES) - far
            tone = 1 + b.relief * (u * along + v * across) / part.half_length
            return distance, distance.astype(np.float32), tone.astype(np.float32)
        du: Array = part.half_length - np.abs(u)
        dv: Array = part.half_width - np.abs(v)
        distance = np.minimum(du, dv)
        du, dv, u, v = (a.astype(np.float32) for a in (du, dv, u, v))
        height: Any = distance.astype(np.float32)
        face: Any = 0.0
        if part.roof == "gable":
            height = np.asarray(np.where(du > -0.7, dv, np.float32(-9)))
            face = np.sign(v) * np.float32(across)
        elif part.roof == "hip":
            face = np.where(du < dv, np.sign(u) * np.float32(along), np.sign(v) * np.float32(across))
        elif part.roof == "shed":
            face = across * 0.6
        tone = np.ones(area.shape, np.float32)
        tone += np.float32(b.relief) * face
        if b.ribs:
            tone += np.float32(b.ribs) * (np.abs((u * np.float32(0.37)) % 1 - np.float32(0.5)) * 4 - 1)
        if part.roof in ("gable", "hip"):
            tone += np.where(np.abs(v) < 0.7, np.float32(0.07), np.float32(0))
        return distance, height, tone

    def develop(self) -> Array:
        """Blur, haze, contrast and grain of a camera; (3, H, W) uint8 without the margin."""
        look, n = self.look, _MARGIN
        rgb = blur(self.rgb, look.blur)
        rgb *= look.gain[:, None, None] * np.float32(1 - look.haze)
        rgb += _column((168, 176, 186)) * np.float32(look.haze)
        rgb -= np.float32(118)
        rgb *= np.float32(look.contrast)
        rgb += np.float32(118.5)
        grain = self.noise["grain"] * np.float32(look.noise)
        rgb[0] += grain
        rgb[1] += (grain + np.roll(grain, 1, 0)) * np.float32(0.5)
        rgb[2] += (grain + np.roll(grain, 1, 1)) * np.float32(0.5)
        return np.clip(rgb[:, n:-n, n:-n], 0, 255).astype(np.uint8)


def _draw_chunk(rect: Rect, city: City) -> tuple[Array, Array]:
    n = _MARGIN
    canvas = _Canvas(city, Rect(rect.row0 - n, rect.col0 - n, rect.row1 + n, rect.col1 + n))
    blocks = [layout(city, row, col) for row, col in cells(city, canvas.rect)]
    for block in blocks:
        for points, name in block.ground:
            canvas.ground(points, name)
    for block in blocks:
        for box in block.flat:
            canvas.flat(box)
        for car in block.cars:
            canvas.car(car)
        for building in block.buildings:
            for part in building.parts:
                canvas.cast(part, building.height)
        for tree in block.trees:
            canvas.tree_shadow(tree)
    # the sky still lights a shadow, and it is blue
    canvas.rgb *= 1 - canvas.shade * (_column((1.0, 0.97, 0.88)) * np.float32(canvas.look.shadow))
    for block in blocks:
        for building in block.buildings:
            canvas.building(building)
    for block in blocks:
        for tree in block.trees:
            canvas.tree(tree)
    return canvas.develop(), canvas.mask[n:-n, n:-n]


def draw(rect: Rect, city: City) -> tuple[Array, Array]:
    """Draw a window of the city.

    Returns the image, (3, H, W) uint8 RGB, and the truth, (H, W) bool, True where the centre of
    the pixel lies on a building. Equals the same window cut from any larger drawing. ``rect`` may
    lie anywhere, also at negative rows and columns.
    """
    rgb, mask = np.empty((3, *rect.shape), np.uint8), np.empty(rect.shape, bool)
    for row in range(rect.row0, rect.row1, CHUNK):
        for col in range(rect.col0, rect.col1, CHUNK):
            part = Rect(row, col, min(row + CHUNK, rect.row1), min(col + CHUNK, rect.col1))
            at = part.slices(rect)
            rgb[(slice(None), *at)], mask[at] = _draw_chunk(part, city)
    return rgb, mask
