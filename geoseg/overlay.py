"""Pixels of a comparison: masks in two colours, and hits, errors and misses laid over an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

HIT: Colour = (55, 225, 110)
"""Building, and found."""
FALSE: Colour = (222, 30, 10)
"""Predicted as building, but background."""
MISSED: Colour = (0, 70, 255)
"""Building, but missed."""
NO_DATA: Colour = (222, 205, 178)
"""No data in the image, the truth or the prediction."""
OUTLINE: Colour = (255, 225, 77)
"""Contour of the truth, as in the report."""
BUILDING, BACKGROUND = (250, 250, 250), (38, 42, 46)
"""Masks."""

OPACITY = 0.68
"""Of the three colours over the image; with these they differ to eyes without red, green or blue cones, too."""


def classify(found: Any, truth: Any, valid: Any) -> NDArray[np.uint8]:
    """Return, for bool arrays of one shape: 0 background, 1 hit, 2 false, 3 missed, 4 no data."""
    found, truth = np.asarray(found, bool), np.asarray(truth, bool)
    classes = np.where(found, np.where(truth, 1, 2), np.where(truth, 3, 0))
    return np.where(np.asarray(valid, bool), classes, 4).astype(np.uint8)


def overlay(rgb: NDArray[np.uint8], shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay the classes over an image, which turns grey so that the only colours are theirs.

    Args:
        rgb: ``(3, h, w)``.
        shares: ``(5, h, w)``, the share of each pixel that belongs to each class of :func:`classify`.

    Returns:
        ``(3, h, w)``.
    """
    grey = np.einsum("c,chw->hw", np.array([0.299, 0.587, 0.114], np.float32), rgb.astype(np.float32))
    # Neither black nor white: on both a colour could not be told from others.
    base = np.broadcast_to(45 + 0.65 * grey, rgb.shape)
    opacity = np.array([0, OPACITY, OPACITY, OPACITY, 1], np.float32)
    colours = np.array([(0, 0, 0), HIT, FALSE, MISSED, NO_DATA], np.float32)
    covered = np.tensordot(opacity, shares, 1)
    mixed: NDArray[np.uint8] = np.rint(base * (1 - covered) + np.tensordot(colours.T * opacity, shares, 1)).astype(
        np.uint8
    )
    return mixed


def shrunk(values: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Return means over squares of ``factor`` pixels, smaller ones at the right and bottom; ``(..., h, w)``."""
    if factor == 1:
        return values.astype(np.float32)
    height, width = values.shape[-2:]
    sums = values.astype(np.float32)
    for axis, length in ((-2, height), (-1, width)):
        sums = np.add.reduceat(sums, np.arange(0, length, factor), axis=axis)
    rows, cols = (np.diff([*range(0, length, factor), length]) for length in (height, width))
    area = (rows[:, None] * cols).astype(np.float32)
    mean: NDArray[np.float32] = np.divide(sums, area, dtype=np.float32)
    return mean


def mask_picture(shares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture of a mask: ``(3, h, w)`` from shares of building, background and no data, 255 = all."""
    colours = np.array([BUILDING, BACKGROUND, NO_DATA], np.float32)
    total = shares.astype(np.float32).sum(axis=0)
    mixed: NDArray[np.uint8] = np.rint(np.tensordot(colours.T, shares.astype(np.float32), 1) / total).astype(np.uint8)
    return mixed
