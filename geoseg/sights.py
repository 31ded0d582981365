"""What a block tells the report: its imagery made small, how much of it is building, and where there is most to see."""

from __future__ import annotations

import heapq
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoseg.tiling import Rect, ceil_to

if TYPE_CHECKING:
    from geoseg.scaling import Scaling

DETAIL = 512
"""Side in pixels of the report's full-resolution pictures."""
DETAILS = 4
"""How many of them."""
CANDIDATES = 8 * DETAILS
"""Squares that are remembered: of the best ones some touch."""


def counted(core: Rect, mask: NDArray[np.bool_], valid: NDArray[np.bool_]) -> dict[str, Any]:
    """Return facts of a block: ``valid_pixels``, ``building_pixels``, and the ``densest`` of its squares.

    These are the squares with the most outline in them, as ``[edges, row0, col0, row1, col1]`` in pixels of the mosaic,
    in no order: they show most.
    """
    densest: list[list[int]] = []
    for row in range(0, core.height, DETAIL):
        rows = mask[row : row + DETAIL]
        edges = rows[:, 1:] != rows[:, :-1]
        for col in range(0, core.width, DETAIL):
            there = valid[row : row + DETAIL, col : col + DETAIL]
            if not np.count_nonzero(there) > 0.9 * there.size:
                continue
            rect = Rect(core.row0 + row, core.col0 + col, core.row0 + row + DETAIL, core.col0 + col + DETAIL)
            inside = rect & core
            if inside is not None:
                remember(densest, [int(np.count_nonzero(edges[:, col : col + DETAIL])), *astuple(inside)])
    return {
        "valid_pixels": int(np.count_nonzero(valid)),
        "building_pixels": int(np.count_nonzero(mask)),
        "densest": densest,
    }


def remember(densest: list[list[int]], square: list[int]) -> None:
    """Add a square where it is among the best."""
    push = heapq.heappush if len(densest) < CANDIDATES else heapq.heappushpop
    push(densest, square)


def shrunk(values: NDArray[np.generic], valid: NDArray[np.bool_], scaling: Scaling, factor: int) -> NDArray[np.uint8]:
    """Return ``(3, H, W)`` stored values on [0, 1] averaged over ``factor`` × ``factor`` valid pixels, as 8 bit.

    Ragged right and bottom sides average over what is there; squares without data are black.
    """
    low, high = scaling.low, scaling.high
    kind: Any = values.dtype
    if factor == 1 and kind == np.uint8 and (low, high) == (0, 255):
        return values if valid.all() else np.where(valid, values, np.uint8(0))  # type: ignore[return-value]
    clipped = kind.kind == "f" or np.iinfo(kind).min < low or np.iinfo(kind).max > high
    small = np.zeros((len(values), *(-(-side // factor) for side in valid.shape)), np.uint8)
    # Some rows at a time: what is made of them on the way takes several times their room.
    band = ceil_to(DETAIL, factor)
    for row in range(0, len(valid), band):
        some, there = values[:, row : row + band], valid[row : row + band]
        if clipped:
            some = np.clip(some.astype(np.float64), low, high)
        if not there.all():
            some = np.where(there, some, some.dtype.type(0))
        count = sums(there, factor)
        mean = (sums(some, factor) / np.maximum(count, 1) - low) / (high - low)
        rows = slice(row // factor, row // factor + len(count))
        small[:, rows] = np.where(count > 0, np.rint(255 * mean), 0)
    return small


def sums(values: NDArray[np.generic], factor: int) -> NDArray[np.float64]:
    """Return the sums of squares of ``factor`` pixels along the last two axes, smaller ones at the right and bottom."""
    # Whole numbers stay such, which is exact and quick; rows first, as they lie in memory.
    kind = np.float64 if values.dtype.kind == "f" else np.int64 if values.dtype.itemsize > 2 else np.uint32
    height, width = (-(-side // factor) for side in values.shape[-2:])
    rows = np.zeros((*values.shape[:-2], height, values.shape[-1]), kind)
    total = np.zeros((*values.shape[:-2], height, width), kind)
    for step in range(factor):
        part = values[..., step::factor, :]
        rows[..., : part.shape[-2], :] += part
    for step in range(factor):
        part = rows[..., step::factor]
        total[..., : part.shape[-1]] += part
    return total.astype(np.float64)
