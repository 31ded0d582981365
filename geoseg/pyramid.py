"""A picture as tiles of several sizes, encoded to stand in a page within a number of bytes.

Tiles are JPEG, which costs least time, or WebP where a part of them is transparent; Pillow writes both, JPEG several
times as fast as GDAL.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from geoseg.picture import NO_DATA, data_uri
from geoseg.write import THREADS

TILE = 512
"""Side of a tile in pixels; those at the right and bottom are smaller."""

_QUALITIES = (85, 78, 70, 60, 50, 40, 30)
_GREY_QUALITIES = (95, *_QUALITIES)
"""Values, not looks: the map draws a line at one of them."""
_SAMPLE = 12
"""Tiles from which the size of all is estimated before all are encoded."""
_STRIP = 256
"""Rows of a level made at once, so that no temporary array is as large as the picture."""


@dataclass(frozen=True)
class Level:
    """A picture of one size."""

    width: int
    height: int
    factor: int
    """Pixels of the whole picture for one of this level, along a side."""
    tiles: tuple[str, ...]
    """Data URIs, row by row; empty where there is nothing to show."""

    def facts(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {"width": self.width, "height": self.height, "factor": self.factor, "tiles": list(self.tiles)}


@dataclass(frozen=True)
class Plane:
    """A picture before it is cut."""

    pixels: NDArray[np.uint8]
    """``(3, h, w)``, or ``(h, w)`` grey, where 0 is nothing to show."""
    valid: NDArray[np.bool_]
    """``(h, w)``, True where there is something to show."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.valid.shape[0], self.valid.shape[1]

    def halved(self) -> Plane:
        """Return it at half the size: means over the valid ones of 2 × 2 pixels."""
        height, width = (-(-side // 2) for side in self.shape)
        pixels = np.zeros((*self.pixels.shape[:-2], height, width), np.uint8)
        valid = np.zeros((height, width), bool)
        for row in range(0, height, _STRIP):
            rows = slice(2 * row, 2 * (row + _STRIP))
            there = self.valid[rows].astype(np.uint16)
            count = _sums(there)
            total = _sums(self.pixels[..., rows, :] * there)
            half = np.maximum(count, 1)
            pixels[..., row : row + _STRIP, :] = (total + half // 2) // half
            valid[row : row + _STRIP] = count > 0
        return Plane(pixels, valid)

    def tiles(self) -> Iterator[Plane]:
        """Cut it, row by row."""
        height, width = self.shape
        for row in range(0, height, TILE):
            for col in range(0, width, TILE):
                cut = np.s_[row : row + TILE, col : col + TILE]
                yield Plane(self.pixels[..., *cut], self.valid[cut])


def _sums(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return sums over squares of 2 × 2; what lies beyond the right and lower side counts as 0."""
    height, width = values.shape[-2:]
    if height % 2 or width % 2:
        values = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, height % 2), (0, width % 2)])
    rows = values[..., 0::2, :] + values[..., 1::2, :]
    summed: NDArray[np.uint16] = rows[..., 0::2] + rows[..., 1::2]
    return summed


def reduced(plane: Plane, most: int) -> Plane:
    """Return a picture halved until its longer side has at most ``most`` pixels."""
    while max(plane.shape) > most:
        plane = plane.halved()
    return plane


def build(plane: Plane, budget: int) -> tuple[Level, ...]:
    """Return the levels, the coarsest (one tile) first and each twice as large as the one before.

    Where they do not fit into ``budget`` characters quality falls first, then the largest level is left out.
    """
    sizes, first = [plane], 1
    while max(sizes[-1].shape) > TILE:
        sizes.append(sizes[-1].halved())
    with ThreadPoolExecutor(THREADS) as threads:
        while True:
            for quality in _QUALITIES if plane.pixels.ndim == 3 else _GREY_QUALITIES:
                write = partial(_written, quality=quality)
                if len(sizes) > 1 and _estimate(sizes, write, threads.map) > budget:
                    continue
                levels = tuple(
                    Level(one.shape[1], one.shape[0], first * 2**number, tuple(threads.map(write, one.tiles())))
                    for number, one in reversed(list(enumerate(sizes)))
                )
                if len(sizes) == 1 or sum(len(tile) for level in levels for tile in level.tiles) <= budget:
                    return levels
            del sizes[0]
            first *= 2


def _estimate(sizes: list[Plane], write: Callable[[Plane], str], mapped: Callable[..., Iterator[str]]) -> float:
    """Guess what all levels take from a few tiles of the largest."""
    tiles = list(sizes[0].tiles())
    some = tiles[:: max(1, len(tiles) // _SAMPLE)]
    taken = sum(map(len, mapped(write, some)))
    area = sum(one.valid.size for one in some)
    return float(taken * sum(one.valid.size for one in sizes) / area)


def _written(tile: Plane, quality: int) -> str:
    from PIL import Image

    grey = tile.pixels.ndim == 2
    if not tile.valid.any() or (grey and not tile.pixels.any()):
        return ""
    buffer = io.BytesIO()
    clear = not tile.valid.all()
    if grey:
        Image.fromarray(tile.pixels).save(buffer, "JPEG", quality=quality)
    elif clear and _webp():
        alpha = tile.valid * np.uint8(255)
        bands = np.dstack([*(tile.pixels * tile.valid), alpha])
        # The quickest of its methods: the slowest gains a tenth in size and takes four times as long.
        Image.fromarray(bands).save(buffer, "WEBP", quality=quality, method=0)
    else:
        shown = np.where(tile.valid, tile.pixels, np.array(NO_DATA, np.uint8)[:, None, None])
        Image.fromarray(np.dstack([*shown])).save(buffer, "JPEG", quality=quality)
    return data_uri("webp" if clear and _webp() and not grey else "jpeg", buffer.getvalue())


@cache
def _webp() -> bool:
    from PIL import features

    return bool(features.check("webp"))
