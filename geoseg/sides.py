"""A side of an evaluation: what :mod:`geoseg.raster_side` and :mod:`geoseg.polygon_side` have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from geoseg.errors import InputError
from geoseg.tiling import Rect

SAME = 0.01
"""Grids whose corners agree within this many pixels are one."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


class ApartError(InputError):
    """The two sides do not overlap."""

    def __init__(self, ours: Path, theirs: Path) -> None:
        """Name both files."""
        super().__init__(f"{ours} does not overlap {theirs}; check that both are in the CRS they say they are")


class Side(Protocol):
    """A prediction or a reference on the common grid."""

    probability: bool
    """Whether values are probabilities, not a mask."""

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Return values (bool, or float32 probability) and validity (bool), (rows, columns)."""
        ...


def rect_around(x: np.ndarray, y: np.ndarray, grid: GeoBox) -> Rect | None:
    """Return the pixels of ``grid`` around points in its pixel coordinates; None when they are all outside it."""
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if not len(x) or not len(y):
        return None
    col0, col1 = math.floor(x.min() + SAME), math.ceil(x.max() - SAME)
    row0, row1 = math.floor(y.min() + SAME), math.ceil(y.max() - SAME)
    if row1 <= row0 or col1 <= col0:
        return None
    return Rect(row0, col0, row1, col1) & Rect(0, 0, *grid.shape)


@contextmanager
def projecting(path: Path) -> Iterator[None]:
    """Turn a failing transformation into an error that names ``path``."""
    try:
        yield
    except ProjError as error:
        raise InputError(f"{path}: cannot be brought to the CRS of the other side: {error}") from error
