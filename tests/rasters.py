"""Rasters that several test modules write and open."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

from geoseg.mosaic import Mosaic, open_mosaic

UTM = "EPSG:32614"
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 4_000_000)


def noise(shape: tuple[int, ...], dtype: Any = "uint8", seed: int = 0, low: int = 1, high: int = 250) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def smooth(shape: tuple[int, int], dtype: Any = "uint8", top: float = 200.0) -> np.ndarray:
    """Three smooth bands: resampling them in two ways gives nearly the same."""
    y, x = np.mgrid[: shape[0], : shape[1]] / 20.0
    bands = [np.sin(x) + np.cos(y), np.cos(x + y), np.sin(x * 0.7 - y)]
    return np.stack([top * (0.5 + 0.2 * band) for band in bands]).astype(dtype)


def write(
    path: Path,
    values: np.ndarray,
    *,
    transform: Affine | None = NORTH_UP,
    crs: str | None = UTM,
    mask: np.ndarray | None = None,
    **options: Any,
) -> Path:
    interp = options.pop("interp", None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        with rasterio.open(
            path,
            "w",
            driver=options.pop("driver", "GTiff"),
            count=len(values),
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            crs=crs,
            transform=transform,
            **options,
        ) as dataset:
            if interp is not None:
                dataset.colorinterp = interp
            dataset.write(values)
            if mask is not None:
                dataset.write_mask(mask)
    return path


def only(path: Path, **options: Any) -> Mosaic:
    mosaic, problems = open_mosaic([path], **options)
    assert problems == []
    return mosaic


def damage(path: Path, values: np.ndarray, keep: float = 0.6, **options: Any) -> Path:
    write(path, values, tiled=True, blockxsize=64, blockysize=64, compress="deflate", **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def readable_blocks(path: Path) -> dict[tuple[int, int], bool]:
    found = {}
    with rasterio.open(path) as dataset:
        for index, window in dataset.block_windows(1):
            try:
                dataset.read(window=window)
                found[index] = True
            except rasterio.errors.RasterioIOError:
                found[index] = False
    return found
