"""Write results so that they appear complete or not at all, and rasters as Cloud Optimized GeoTIFF.

:func:`replacing` is the one way in which any file of a run comes into being: it is written inside a
hidden folder beside its destination, flushed to the disk and renamed. Whatever else a library
leaves there (journals, overview files) goes away with the folder, also when the process was killed:
the next attempt sweeps it.

:func:`writing_cog` takes a raster of any size rectangle by rectangle; see :mod:`geoseg.cog` for how.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # copying raises it bare, and there is no public name
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoseg.cog import Cog, Template
from geoseg.errors import GeosegError, OutputError, SettingError
from geoseg.tiles import AVERAGE, TILE, Tiles
from geoseg.tiling import Rect

RasterKind = Literal["mask", "probability"]

THREADS = min(8, os.cpu_count() or 1)
"""Threads that compress tiles and compute overviews; more would only wait for the disk."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def scratch(path: Path | str) -> Iterator[Path]:
    """Yield an empty hidden folder ``.NAME.part`` beside ``path``, for use while ``path`` is made.

    It is removed at the end. What a killed process left there is swept first, which is why its name
    is fixed, and why two processes must not make the same ``path`` at the same time.

    Raises:
        OutputError: the parent folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    part = path.parent / f".{path.name}.part"
    try:
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        yield part
    except GeosegError:
        raise
    except OSError as error:
        # An input that cannot be read inside the block is not ours to explain.
        if not _concerns(error, part, path):
            raise
        raise OutputError(explain(error, path)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, the file there becomes ``path``.

    The temporary path has the same name and lies in a :func:`scratch` folder beside ``path``, so
    the rename never crosses a file system, and libraries may put journals and the like next to it.
    When the block raises, or the process dies, ``path`` is what it was before.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or the block wrote no
            file.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; a file is to be written there")
    with scratch(path) as folder:
        yield folder / path.name
        _publish(folder / path.name, path)


def explain(error: OSError, path: Path) -> str:
    """Say in plain words why ``path`` could not be written."""
    if error.errno in _NO_SPACE:
        return f"{path}: no space left on the disk, or over the quota; free some and run again"
    if error.errno in _FORBIDDEN:
        return f"{path}: no permission to write here; choose another folder with --out"
    return f"{path}: cannot be written: {error.strerror or error}"


def _publish(temporary: Path, path: Path) -> None:
    if not temporary.is_file():
        raise OutputError(f"{path}: nothing was written")
    _flush(temporary)
    os.replace(temporary, path)
    if os.name != "nt":  # Windows cannot open folders, and flushes the rename itself
        _flush(path.parent)


def _flush(path: Path) -> None:
    # Windows flushes only what is open for writing; folders open for reading only.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _concerns(error: OSError, part: Path, path: Path) -> bool:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = any(name.startswith(str(part)) or name == str(path) for name in names)
    return ours or error.errno in _NO_SPACE


@dataclass(frozen=True, slots=True)
class _Layout:
    description: str
    scale: float
    average: bool


_LAYOUTS: dict[RasterKind, _Layout] = {
    # Classes have no mean, and every overview pixel should be a pixel of the mask.
    "mask": _Layout("mask", 1.0, average=AVERAGE["mask"]),
    "probability": _Layout("probability", 1 / 255, average=AVERAGE["probability"]),
}


class CogWriter:
    """Takes the rectangles of one raster; made by :func:`writing_cog`."""

    def __init__(self, cog: Cog, shape: tuple[int, int], kind: RasterKind) -> None:
        self._cog = cog
        self._kind = kind
        self.extent = Rect(0, 0, *shape)
        """The whole raster."""

    def write(self, rect: Rect, values: NDArray[np.generic], valid: NDArray[np.bool_]) -> None:
        """Write a rectangle, in any order, no pixel twice.

        Args:
            rect: where, in pixels of the raster.
            values: ``(rect.height, rect.width)`` uint8. Mask: 0 or 255 (or bool). Probability: 255
                = 1.0.
            valid: ``(rect.height, rect.width)`` bool, True = data. Values elsewhere are written as
                0.

        Raises:
            SettingError: shapes, types or values are not as above, or ``rect`` leaves the raster.
            OutputError: the disk is full or fails.
        """
        self._check(rect, values, valid)
        if not valid.any():  # the file is sparse: what was never written is invalid
            return
        grey = (
            values.view(np.uint8) * np.uint8(255) if values.dtype == np.bool_ else values.astype(np.uint8, copy=False)
        )
        self._cog.write(rect, grey, valid)

    def add(self, tiles: Tiles) -> None:
        """Take a rectangle, of which no pixel was written before, as packed tiles; see :func:`geoseg.tiles.tiles_of`.

        Raises:
            ValueError: The tiles are not of this raster.
        """
        self._cog.add(tiles)

    def _check(self, rect: Rect, values: NDArray[np.generic], valid: NDArray[np.bool_]) -> None:
        if not self.extent.contains(rect):
            raise SettingError(f"{rect} leaves the raster of {self.extent.shape} pixels")
        if values.shape != rect.shape or valid.shape != rect.shape:
            raise SettingError(
                f"{rect} takes arrays of {rect.shape}, not {values.shape} (values) and {valid.shape} (valid)"
            )
        if valid.dtype != np.bool_:
            raise SettingError(f"validity must be bool, not {valid.dtype}")
        if values.dtype == np.bool_ and self._kind == "mask":
            return
        if values.dtype != np.uint8:
            raise SettingError(f"values of a {self._kind} raster must be uint8, not {values.dtype}")
        if self._kind == "mask" and (odd := values[valid & (values != 0) & (values != 255)]).size:
            raise SettingError(f"a mask holds 0 and 255, not {odd.flat[0]}")


@contextmanager
def writing_cog(path: Path | str, geobox: GeoBox, kind: RasterKind) -> Iterator[CogWriter]:
    """Yield a writer for a Cloud Optimized GeoTIFF, uint8; it appears when the block ends well.

    Pixels that are never written, or written as invalid, are 0 in the band and in the internal
    mask. A mask has overviews by nearest neighbour, a probability by the mean of its valid pixels;
    the probability carries its scale (1/255) as band metadata. Twice the size of the result is
    needed on the disk for a while.

    Args:
        path: destination; replaced if it exists.
        geobox: shape, affine (may be rotated or south-up) and CRS or None.
        kind: what the values mean.

    Raises:
        SettingError: ``kind`` is unknown.
        OutputError: see :func:`replacing`.
    """
    path = Path(path)
    if kind not in _LAYOUTS:
        raise SettingError(f"no raster of kind {kind!r}; it must be one of {', '.join(_LAYOUTS)}")
    shape = (int(geobox.shape[0]), int(geobox.shape[1]))
    with replacing(path) as temporary:
        template = _template(temporary.parent, geobox, kind, path)
        with Cog(temporary, shape, template, average=_LAYOUTS[kind].average, threads=THREADS) as cog:
            yield CogWriter(cog, shape, kind)
            cog.finish()
        _check(temporary, shape, path)


def _template(folder: Path, geobox: GeoBox, kind: RasterKind, path: Path) -> Template:
    """Let GDAL write one pixel with the georeference and the band's description, and take the file apart."""
    layout = _LAYOUTS[kind]
    georeference: dict[str, Any] = {}
    if not geobox.affine.is_identity:
        georeference["transform"] = geobox.affine
    if geobox.crs is not None:
        georeference["crs"] = CRS.from_user_input(geobox.crs)
    profile = {"height": 1, "width": 1, "count": 1, "dtype": "uint8", "photometric": "MINISBLACK"}
    options = {"GDAL_TIFF_INTERNAL_MASK": True, "GDAL_PAM_ENABLED": False}
    plain, pixel = folder / "pixel.tif", folder / "template.tif"
    with _explained(path), rasterio.Env(**options), warnings.catch_warnings():
        # A mosaic without georeference is allowed, and was reported where it was opened.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(plain, "w", driver="GTiff", **profile, **georeference) as dataset:
            dataset.set_band_description(1, layout.description)
            if layout.scale != 1.0:
                dataset.scales = (layout.scale,)
                dataset.offsets = (0.0,)
            dataset.write_mask(np.full((1, 1), 255, np.uint8))
        rasterio.shutil.copy(plain, pixel, driver="COG", COMPRESS="DEFLATE", PREDICTOR="NO", BLOCKSIZE=TILE)
    return Template.of(pixel.read_bytes())


def _check(temporary: Path, shape: tuple[int, int], path: Path) -> None:
    """Let GDAL look at what came out."""
    with _explained(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(temporary) as result:
            is_cog = result.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
            has_mask = result.mask_flag_enums == ([MaskFlags.per_dataset],)
            if not (is_cog and has_mask and result.shape == shape):
                raise OutputError(f"{path}: GDAL {rasterio.__gdal_version__} does not read it as a COG with a mask")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn rasterio's errors about the file being written into ours."""
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        reason = f"{error.__cause__ or error}"
        if "No space left" in reason or "File too large" in reason or "quota" in reason:
            raise OutputError(explain(OSError(errno.ENOSPC, ""), path)) from error
        raise OutputError(f"{path}: cannot be written: {reason}") from error
