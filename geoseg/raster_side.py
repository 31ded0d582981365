"""A raster as one side of an evaluation: what its numbers mean, and how they come to the common grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyproj
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from geoseg.aoi import apply_affine
from geoseg.errors import InputError, SettingError
from geoseg.metrics import check_probability
from geoseg.raster import READ_ERRORS
from geoseg.sides import SAME, rect_around
from geoseg.tiling import Rect

Kind = Literal["auto", "mask", "probability"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LOCAL_CRS = 'LOCAL_CS["pixels",UNIT["metre",1]]'


@dataclass(frozen=True)
class _Coding:
    """What the numbers of a raster mean."""

    path: Path
    probability: bool
    scale: float
    offset: float
    classes: tuple[int, ...] | None
    ignore: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, dataset: DatasetReader, kind: Kind, classes: Any, ignore: tuple[int, ...]) -> _Coding:
        dtype = np.dtype(dataset.dtypes[0])
        if dtype.kind not in "uif":
            raise InputError(f"{path}: its pixels are {dtype}; a mask or probability holds real numbers")
        scale, offset = float(dataset.scales[0]), float(dataset.offsets[0])
        scaled = (scale, offset) != (1.0, 0.0)
        probability = kind == "probability" or (kind == "auto" and (scaled or dtype.kind == "f"))
        if probability and dtype.kind != "f" and not scaled:
            scale = 1 / float(np.iinfo(dtype).max)
        return cls(path, probability, scale, offset, classes, ignore)

    def decode(self, raw: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values and validity."""
        if raw.dtype.kind == "f":
            valid = valid & np.isfinite(raw)
        if self.ignore:
            valid = valid & ~np.isin(raw, self.ignore)
        if self.probability:
            with np.errstate(invalid="ignore", over="ignore"):
                values = raw.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
            try:
                check_probability(values[valid])
            except SettingError as error:
                raise InputError(f"{self.path}: {error}; is it a mask or an image? If a mask, say so") from None
            return values, valid
        if self.classes is not None:
            return np.isin(raw, self.classes), valid
        return raw != 0, valid


class RasterSide:
    """Values of a raster on the grid; warped ones come through two virtual rasters."""

    def __init__(self, coding: _Coding, values: DatasetReader, validity: DatasetReader, all_valid: bool) -> None:
        self.probability = coding.probability
        self._coding, self._values, self._validity, self._all_valid = coding, values, validity, all_valid
        self._positive: float | None = None

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Read and decode; see :class:`geoseg.sides.Side`."""
        with reading(self._coding.path):
            raw = self._values.read(1, window=rect.window)
            valid = np.ones(rect.shape, bool) if self._all_valid else _validity(self._validity, rect)
        values, valid = self._coding.decode(raw, valid)
        if not self.probability and self._coding.classes is None:
            self._check_two_values(raw[valid & values])
        return values, valid

    def _check_two_values(self, positives: np.ndarray) -> None:
        """Raise when a mask has more than one value besides 0, for then it is not plain which one means building."""
        if not positives.size:
            return
        values = {float(positives.min()), float(positives.max())}
        if self._positive is not None:
            values.add(self._positive)
        if len(values) > 1:
            raise InputError(
                f"{self._coding.path}: holds {' and '.join(f'{v:g}' for v in sorted(values))}, perhaps more, where a "
                "mask has one value besides 0. Say which values mean building (classes), which are not labelled "
                "(ignore), or that it is a probability"
            )
        self._positive = values.pop()


def _validity(dataset: DatasetReader, rect: Rect) -> np.ndarray:
    # GDAL does not take the alpha that warping adds to floats for a mask.
    alpha = dataset.colorinterp.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in dataset.colorinterp else None
    found: np.ndarray = (
        dataset.read_masks(1, window=rect.window) if alpha is None else dataset.read(alpha, window=rect.window)
    )
    return found > 0


class Raster:
    """An open raster, before it is known on which grid it is wanted."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        with reading(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self.dataset: DatasetReader = stack.enter_context(rasterio.open(path))
        if not self.dataset.count:
            raise InputError(f"{path}: holds no band of its own; name one of its subdatasets")
        affine = self.dataset.transform
        if affine.determinant == 0:
            raise InputError(f"{path}: its transform {tuple(affine)[:6]} is degenerate")
        self.located = not affine.is_identity
        crs = self.dataset.crs if self.located and self.dataset.crs else None
        self.grid = GeoBox(self.dataset.shape, affine, None if crs is None else crs.to_wkt())
        self.notes: list[tuple[str, str]] = []

    @property
    def all_valid(self) -> bool:
        """Whether the file cannot have invalid pixels."""
        return all(flags == [MaskFlags.all_valid] for flags in self.dataset.mask_flag_enums)

    def footprint(self, grid: GeoBox, anchor: Path) -> Rect | None:
        """Return the part of ``grid`` on which this raster lies."""
        if self._fits(grid):
            return Rect(0, 0, *self.grid.shape)
        if not self.located or grid.affine.is_identity:
            one, two = (f"{w} × {h} px" for h, w in (self.grid.shape, grid.shape))
            raise InputError(f"{self.path} has {one}, {anchor} {two}, and they lack the georeference to relate them")
        if (self.grid.crs is None) != (grid.crs is None):
            bare = self.path if self.grid.crs is None else anchor
            raise InputError(f"{bare} has no CRS, the other side has one; assign it (gdal_edit -a_srs) to relate them")
        height, width = self.grid.shape
        edge = shapely.segmentize(shapely.box(0, 0, width, height), max(height, width) / 20)
        x, y = apply_affine(self.grid.affine, *shapely.get_coordinates(edge).T)
        return rect_around(*self._to(grid, x, y), grid)

    def _to(self, grid: GeoBox, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map coordinates to pixels of ``grid``."""
        if self.grid.crs is not None and grid.crs is not None and self.grid.crs != grid.crs:
            there = pyproj.Transformer.from_crs(self.grid.crs.to_wkt(), grid.crs.to_wkt(), always_xy=True)
            x, y = (np.asarray(v) for v in there.transform(x, y))
        return apply_affine(~grid.affine, x, y)

    def _fits(self, grid: GeoBox) -> bool:
        """Say whether the pixels of both are the same ones."""
        if tuple(self.grid.shape) != tuple(grid.shape):
            return False
        # Predictions are often written as PNG: of equal size, they are taken for the same pixels.
        if not self.located or grid.affine.is_identity:
            return True
        if self.grid.crs is not None and grid.crs is not None and self.grid.crs != grid.crs:
            return False
        height, width = grid.shape
        col, row = np.array([0.0, width, 0.0]), np.array([0.0, 0.0, height])
        there = apply_affine(~grid.affine, *apply_affine(self.grid.affine, col, row))
        return bool(max(np.abs(there[0] - col).max(), np.abs(there[1] - row).max()) <= SAME)

    def on(self, grid: GeoBox, kind: Kind, classes: Any, ignore: tuple[int, ...]) -> RasterSide:
        """Return the values on ``grid``: as they are, by nearest neighbour (mask) or bilinear (probability)."""
        coding = _Coding.of(self.path, self.dataset, kind, classes, ignore)
        flags = self.dataset.mask_flag_enums[0]
        zero_nodata = flags == [MaskFlags.nodata] and self.dataset.nodata == 0
        if zero_nodata:
            self.notes.append((self.path.name, "0 is declared as no data, and read as background"))
        if self._fits(grid):
            if self.located == grid.affine.is_identity:
                self.notes.append((self.path.name, "only one side is georeferenced; compared pixel by pixel"))
            return RasterSide(coding, self.dataset, self.dataset, zero_nodata)
        nearest = self._warped(grid, Resampling.nearest, zero_nodata)
        smooth = self._warped(grid, Resampling.bilinear, zero_nodata) if coding.probability else nearest
        return RasterSide(coding, smooth, nearest, False)

    def data(self, grid: GeoBox) -> DatasetReader:
        """Return a raster on ``grid`` for its validity only."""
        return self.dataset if self._fits(grid) else self._warped(grid, Resampling.nearest, False)

    def _warped(self, grid: GeoBox, resampling: Resampling, zero_nodata: bool) -> WarpedVRT:
        options: dict[str, Any] = {"src_nodata": None} if zero_nodata else {}
        source = self.dataset.crs if self.grid.crs is not None else rasterio.CRS.from_wkt(_LOCAL_CRS)
        target = source
        if grid.crs is not None and self.grid.crs != grid.crs:
            target = rasterio.CRS.from_wkt(grid.crs.to_wkt())
        scale = self._scale(grid)
        # Fixed blocks and a fixed kernel, not chunks of the window: what a pixel gets depends on nothing else.
        self._stack.enter_context(rasterio.Env(GDAL_VRT_WARP_USE_DATASET_RASTERIO="NO"))
        with reading(self.path):
            return self._stack.enter_context(
                WarpedVRT(
                    self.dataset,
                    src_crs=source,
                    crs=target,
                    transform=grid.affine,
                    height=grid.shape[0],
                    width=grid.shape[1],
                    resampling=resampling,
                    tolerance=SAME,
                    add_alpha=ColorInterp.alpha not in self.dataset.colorinterp,
                    XSCALE=scale,
                    YSCALE=scale,
                    **options,
                )
            )

    def _scale(self, grid: GeoBox) -> float:
        """Return the pixels of ``grid`` that one pixel of this raster spans, in its middle."""
        height, width = self.grid.shape
        col, row = np.array([-0.5, 0.5, 0.0, 0.0]) + width / 2, np.array([0.0, 0.0, -0.5, 0.5]) + height / 2
        x, y = self._to(grid, *apply_affine(self.grid.affine, col, row))
        return math.sqrt(math.hypot(x[1] - x[0], y[1] - y[0]) * math.hypot(x[3] - x[2], y[3] - y[2]))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn GDAL's errors into one that names ``path``."""
    try:
        yield
    except (RasterioError, *READ_ERRORS) as error:
        raise InputError(f"{path}: cannot be read: {error.__cause__ or error}") from error
