"""Stitching window results: taper weights that sum to one, and their accumulation.

Around every line between two lattice cells lies a strip as wide as the taper, half of it on either side. Across
it the weight of one window falls as a raised cosine while that of its neighbour rises as one minus the same
numbers; elsewhere a window weighs one on its own cell and zero outside. At the sides of the mosaic there is no
neighbour and the weight stays one. The two axes multiply, so all weights on a pixel sum to one by construction and
nothing has to be divided, hidden or filled in afterwards. A taper of zero crops windows to their cells.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoseg.tiling import Rect, Tiling, Window

FloatArray = NDArray[np.float32]


def rising(taper: int) -> FloatArray:
    """Return the weights of the right-hand window across a strip, shape ``(taper,)``, from near 0 to near 1.

    A raised cosine at the pixel centres: ``w[k] = sin²(π/2 · (k + ½) / taper)``.
    """
    centres = (np.arange(taper, dtype=np.float64) + 0.5) / max(taper, 1)
    return (np.sin(np.pi / 2 * centres) ** 2).astype(np.float32)


def axis_weights(tiling: Tiling, axis: int, start: int, stop: int, index: int) -> FloatArray:
    """Return the weights of the windows of lattice row or column ``index`` along one axis.

    Args:
        tiling: The lattice.
        axis: 0 for rows, 1 for columns.
        start: First pixel wanted, counted from the mosaic's first row or column.
        stop: One past the last pixel wanted.
        index: Row (axis 0) or column (axis 1) of the cell in the lattice.

    Returns:
        float32 weights, shape ``(stop - start,)``; zero outside the window's support.
    """
    length, size, taper = tiling.shape[axis], tiling.cell, tiling.taper
    half, ramp = taper // 2, rising(taper)
    at = np.arange(start, stop)
    weights = np.ones(stop - start, dtype=np.float32)
    first, last = index * size, (index + 1) * size
    if first > 0:
        weights[at < first - half] = 0
        strip = (at >= first - half) & (at < first + half)
        weights[strip] = ramp[at[strip] - (first - half)]
    if last < length:
        weights[at >= last + half] = 0
        strip = (at >= last - half) & (at < last + half)
        # One minus the neighbour's weight, so that the pair sums to one to the last bit; a product, because a
        # cell as narrow as the taper rises and falls on the same pixels.
        weights[strip] *= 1 - ramp[at[strip] - (last - half)]
    return weights


def weights(tiling: Tiling, window: Window, rect: Rect) -> FloatArray:
    """Return a window's weights on the pixels of ``rect``, float32 of shape ``rect.shape``."""
    rows = axis_weights(tiling, 0, rect.row0, rect.row1, window.cell.row0 // tiling.cell)
    cols = axis_weights(tiling, 1, rect.col0, rect.col1, window.cell.col0 // tiling.cell)
    return np.outer(rows, cols)


def blend(
    tiling: Tiling, core: Rect, results: Iterable[tuple[Window, Tensor]], device: torch.device | str = "cpu"
) -> Tensor:
    """Add window results into the pixels of a block.

    Args:
        tiling: The lattice that the windows come from.
        core: The pixels wanted.
        results: Windows with their probabilities, float32 of shape ``window.pixels.shape`` on ``device``. The order in
            which they come must depend on nothing but the lattice (row by row, as :meth:`Tiling.windows` yields them):
            at most four windows meet on a pixel and float sums keep their last bit only in a fixed order.
        device: Where the sum is made.

    Returns:
        ``Σ w·p``, float32 of shape ``core.shape``; zero where no window was given.
    """
    total = torch.zeros(core.shape, dtype=torch.float32, device=device)
    for window, values in results:
        part = window.support & core
        if part is None:
            continue
        piece = torch.as_tensor(values, device=device)[part.slices(window.pixels)]
        if tiling.taper == 0:
            total[part.slices(core)] = piece
        else:
            total[part.slices(core)] += torch.from_numpy(weights(tiling, window, part)).to(device) * piece
    return total
