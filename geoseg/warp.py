"""A layer of files warped onto the mosaic's grid, so that no pixel depends on the window that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS as RasterioCRS  # noqa: N811
from rasterio.enums import Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT

from geoseg.layout import Layer, map_points, same_crs
from geoseg.raster import Part, ReadProblem, nothing
from geoseg.tiling import Rect

WARP_PIXELS = 24_000_000
"""Source pixels held at once while warping."""

_WARP_BLOCK = (128, 512)
"""Rows and columns that GDAL warps at once; it does so whole, whatever part of it is asked for."""
_WARP_TOLERANCE = 0.01
"""Error allowed to GDAL's interpolation between exactly projected pixels, in source pixels."""
_KERNEL_RADIUS = {"nearest": 1, "bilinear": 1, "cubic": 2, "cubic_spline": 2, "lanczos": 3}
_LOCAL_CRS = 'LOCAL_CS["pixels",UNIT["metre",1]]'


@dataclass(frozen=True, slots=True)
class Target:
    """The grid that layers are warped onto, and how."""

    shape: tuple[int, int]
    """Rows and columns."""
    transform: Affine
    """Pixel (column, row) to coordinates."""
    crs: str | None
    """WKT, or None."""
    dtype: np.dtype
    """Type of the values."""
    resampling: str
    """A name of :class:`rasterio.enums.Resampling`."""


def warp(layer: Layer, read: Callable[[Rect, bool], Part], target: Target, part: Rect, values: bool = True) -> Part:
    """Resample a layer onto a rectangle of the mosaic grid.

    The pixels needed are read as the files have them, block by block where some fail, and laid into a sparse raster in
    memory of the layer's full size, which GDAL then warps in its fixed blocks of the mosaic grid: no pixel depends on
    the window. A pixel is valid where the layer's pixel under its centre is; its value comes from valid pixels only.

    Args:
        layer: what is warped.
        read: reads a rectangle of the layer's own pixels, and their values unless told False.
        target: the grid.
        part: in the pixels of the grid.
        values: False gives the validity only.
    """
    region = _source_region(layer, part, target)
    if region is None:
        return nothing(target.dtype, part, values), np.zeros(part.shape, bool), ()
    halves = _halves(part)
    if region.area > WARP_PIXELS and halves:
        array, valid = nothing(target.dtype, part, values), np.zeros(part.shape, bool)
        problems: list[ReadProblem] = []
        for half in halves:
            half_array, half_valid, half_problems = warp(layer, read, target, half, values)
            rows, cols = half.slices(part)
            valid[rows, cols] = half_valid
            problems.extend(half_problems)
            if array is not None:
                array[:, rows, cols] = half_array
        return array, valid, tuple(dict.fromkeys(problems))
    native, native_valid, lost = read(region, values)
    whole = bool(native_valid.all())
    valid = np.zeros(part.shape, bool)
    if native is not None:
        mask = None if whole else native_valid
        with _in_memory(layer, region, native, mask) as dataset:
            warped = _warp_dataset(dataset, layer, part, target, target.resampling, alpha=True)
        array, valid = warped[:3], warped[3] > 0
    else:
        array = None
    if native is None or not whole:
        flat = native_valid[None].astype(np.uint8)
        with _in_memory(layer, region, flat, None) as dataset:
            valid = _warp_dataset(dataset, layer, part, target, "nearest", alpha=False)[0] > 0
    if array is not None:
        np.copyto(array, array.dtype.type(0), where=~valid)
    return array, valid, lost


def _halves(part: Rect) -> tuple[Rect, Rect] | None:
    """Cut a rectangle in two along the lines between GDAL's warp blocks, across its longer side."""
    rows, cols = _WARP_BLOCK
    middle = round((part.col0 + part.col1) / 2 / cols) * cols
    if part.width >= part.height and part.col0 < middle < part.col1:
        return (
            Rect(part.row0, part.col0, part.row1, middle),
            Rect(part.row0, middle, part.row1, part.col1),
        )
    middle = round((part.row0 + part.row1) / 2 / rows) * rows
    if part.row0 < middle < part.row1:
        return (
            Rect(part.row0, part.col0, middle, part.col1),
            Rect(middle, part.col0, part.row1, part.col1),
        )
    return None


def _source_region(layer: Layer, part: Rect, target: Target) -> Rect | None:
    """Return the layer's pixels that GDAL may look at to make ``part``, or None when it has none there."""
    rows, cols = _WARP_BLOCK
    height, width = target.shape
    whole = Rect(
        part.row0 // rows * rows,
        part.col0 // cols * cols,
        min(-(-part.row1 // rows) * rows, height),
        min(-(-part.col1 // cols) * cols, width),
    )
    x, y = np.meshgrid(np.linspace(whole.col0, whole.col1, 17), np.linspace(whole.row0, whole.row1, 17))
    points = map_points(x.ravel(), y.ravel(), target.transform, target.crs, Affine(*layer.transform), layer.crs)
    if not len(points):
        return None
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    radius = _KERNEL_RADIUS.get(target.resampling, 3) + 1
    margin_x = radius / layer.scale[0] + 3 + 0.02 * (right - left)
    margin_y = radius / layer.scale[1] + 3 + 0.02 * (bottom - top)
    row0, row1 = math.floor(top - margin_y), math.ceil(bottom + margin_y)
    col0, col1 = math.floor(left - margin_x), math.ceil(right + margin_x)
    return Rect(row0, col0, row1, col1) & Rect(0, 0, *layer.shape)


@contextmanager
def _in_memory(layer: Layer, region: Rect, values: np.ndarray, valid: np.ndarray | None) -> Iterator[DatasetReader]:
    """Lay a region of the layer into an otherwise empty raster of its size."""
    # The table of tiles takes memory even where tiles are empty.
    tile = 256 if max(layer.shape) < 100_000 else 1024
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=layer.shape[0],
            width=layer.shape[1],
            count=len(values),
            dtype=values.dtype,
            crs=RasterioCRS.from_wkt(layer.crs or _LOCAL_CRS),
            transform=Affine(*layer.transform),
            photometric="MINISBLACK",
            alpha="UNSPECIFIED",
            tiled=True,
            blockxsize=tile,
            blockysize=tile,
            SPARSE_OK=True,
            BIGTIFF="IF_SAFER",
        ) as dataset:
            dataset.write(values, window=region.window)
            if valid is not None:
                dataset.write_mask(valid, window=region.window)
        with memory.open() as dataset:
            yield dataset


def _warp_dataset(
    dataset: DatasetReader,
    layer: Layer,
    part: Rect,
    target: Target,
    resampling: str,
    *,
    alpha: bool,
) -> np.ndarray:
    height, width = target.shape
    same = layer.crs is None or target.crs is None or same_crs(layer.crs, target.crs)
    crs = dataset.crs if same else RasterioCRS.from_wkt(target.crs)
    with (
        # Fixed blocks of the whole grid, not chunks of the window: what a pixel gets depends on nothing else.
        rasterio.Env(GDAL_VRT_WARP_USE_DATASET_RASTERIO="NO"),
        WarpedVRT(
            dataset,
            crs=crs,
            transform=target.transform,
            height=height,
            width=width,
            resampling=Resampling[resampling],
            tolerance=_WARP_TOLERANCE,
            add_alpha=alpha,
            # By default GDAL takes the kernel's width from each chunk anew.
            XSCALE=layer.scale[0],
            YSCALE=layer.scale[1],
        ) as warped,
    ):
        pixels: np.ndarray = warped.read(window=part.window)
        return pixels
