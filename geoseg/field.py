"""Probabilities of single pixels, looked up in a raster on disk wherever an outline runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geoseg.errors import InputError

Index = NDArray[np.int64]

TILE = 512
"""Side of the squares that are read at once, that of the tiles in our own rasters."""


@dataclass(frozen=True, eq=False)
class Field:
    """A probability raster, open; a context manager that closes it.

    Only the squares that outlines run through are read, and one is held at a time: memory grows with neither the raster
    nor what is asked for at once.
    """

    dataset: rasterio.io.DatasetReader
    """Its first band counts."""
    threshold: float
    """Stored value from which a pixel is building."""

    @classmethod
    def open(cls, path: str | Path, threshold: float) -> Self:
        """Open a raster.

        Args:
            path: a file or a GDAL name.
            threshold: in stored values.

        Raises:
            InputError: it cannot be opened.
        """
        try:
            return cls(rasterio.open(path), threshold)
        except RasterioError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the file for itself.
        return type(self).open, (self.dataset.name, self.threshold)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dataset.close()

    def at(self, rows: Index, cols: Index) -> NDArray[np.floating[Any]]:
        """Return the stored values of pixels; NaN where there is no data or no pixel.

        Raises:
            InputError: the raster cannot be read.
        """
        height, width = self.dataset.shape
        values = np.full(len(rows), np.nan, np.float32)
        here = np.flatnonzero((rows >= 0) & (rows < height) & (cols >= 0) & (cols < width))
        tile = rows[here] // TILE * (-(-width // TILE)) + cols[here] // TILE
        order = np.argsort(tile, kind="stable")
        here = here[order]
        ends = np.flatnonzero(np.diff(tile[order], append=-1)) + 1
        begin = 0
        for end in ends.tolist():
            part = here[begin:end]
            top, left = int(rows[part[0]]) // TILE * TILE, int(cols[part[0]]) // TILE * TILE
            window = Window(left, top, min(TILE, width - left), min(TILE, height - top))
            try:
                stored, valid = self.dataset.read(1, window=window), self.dataset.read_masks(1, window=window)
            except RasterioError as error:
                raise InputError(f"{self.dataset.name}: cannot be read ({error})") from error
            place = rows[part] - top, cols[part] - left
            values[part] = np.where(valid[place] > 0, stored[place], np.nan)
            begin = end
        return values
