"""Outlines finer than pixels: where the probability passes the threshold between two pixels' centres.

A pixel outline (:mod:`geoseg.polygonize`) runs along edges that each part a building's pixel from a background pixel.
Every such edge becomes one vertex on the line between the two centres, where the probability, taken to be linear
between them, is the threshold: the vertices of marching squares (Lorensen and Cline, Computer Graphics 21, 1987; in the
plane, as contourpy has it). Which vertex follows which stays as in the pixel outline, so it is the join across blocks
that decides what is one building, and there is no seam to meet at: vertices are looked up in the finished raster, when
buildings are whole.

Each piece of the outline lies in the square between four centres. Where two buildings touch at a corner, each has its
own corner of that square, and where a building touches itself, each background pixel has one; vertices keep
:data:`MARGIN` from the centres. So outlines are valid and never meet, whatever the probabilities are.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import SettingError

Polygons = NDArray[np.object_]
Floats = NDArray[np.float64]
Index = NDArray[np.int64]

MARGIN = 1 / 64
"""Pixels between a vertex and the centres it lies between, at least."""
GRID = 1024
"""Vertices lie on multiples of one over this many pixels: sums of few of them are exact, wherever a building stands."""


class Chances(Protocol):
    """A probability raster, such as :class:`geoseg.field.Field`."""

    @property
    def threshold(self) -> float:
        """Probability from which a pixel is building, in the units of :meth:`at`."""

    def at(self, rows: Index, cols: Index) -> NDArray[np.floating[Any]]:
        """Return the probability of pixels; NaN where there is no data or no pixel."""


def crossings(polygons: Polygons, chances: Chances) -> Polygons:
    """Return the outlines at the threshold for pixel outlines: one each, valid, as many rings, none over another.

    An edge beside a pixel without data, or at the raster's end, stays where it is: its vertex is its middle.

    Args:
        polygons: ``(n,)`` array of pixel outlines as :mod:`geoseg.polygonize` makes them.
        chances: the raster that the outlines were made from.

    Raises:
        SettingError: a polygon is not a pixel outline.
    """
    if not len(polygons):
        return np.array(polygons, dtype=object)
    _, coords, (ring_ends, polygon_rings) = shapely.to_ragged_array(shapely.normalize(polygons))
    inner = np.ones(len(coords), bool)
    inner[ring_ends[1:] - 1] = False
    edge = np.flatnonzero(inner)
    vector = coords[edge + 1] - coords[edge]
    if ((vector[:, 0] != 0) == (vector[:, 1] != 0)).any() or (coords != np.rint(coords)).any():
        raise SettingError("sub-pixel outlines are made from outlines along pixel edges, in whole pixels")
    length = np.abs(vector).sum(axis=1).astype(np.int64)
    step = np.repeat(vector / length[:, None], length, axis=0)
    place = np.arange(len(step)) - np.repeat(np.cumsum(length) - length, length)
    middle = np.repeat(coords[edge], length, axis=0) + step * (place + 0.5)[:, None]
    # Normalised shells run clockwise and holes counter-clockwise: the building is to the right.
    outward = np.column_stack([-step[:, 1], step[:, 0]])
    inside, outside = np.floor(middle - outward / 2).astype(np.int64), np.floor(middle + outward / 2).astype(np.int64)
    # Asked for together, for most lie in the same part of the raster.
    pixels = np.concatenate([inside, outside])
    within, beyond = chances.at(pixels[:, 1], pixels[:, 0]).astype(np.float64).reshape(2, -1)
    fall = within - beyond
    # Of 0/0, and of values that do not fall (the mask was made from finer ones), the clip and the NaN take care.
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((within - chances.threshold) / fall, MARGIN, 1 - MARGIN)
    share = np.where(np.isnan(share) | (fall <= 0), 0.5, np.rint(share * GRID) / GRID)
    ring = np.repeat(np.repeat(np.arange(len(ring_ends) - 1), np.diff(ring_ends) - 1), length)
    owner = np.repeat(np.arange(len(polygons)), np.diff(polygon_rings))
    rings = shapely.linearrings(middle + outward * (share - 0.5)[:, None], indices=ring)
    return np.asarray(shapely.polygons(rings, indices=owner), dtype=object)
