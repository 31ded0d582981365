"""Any number of rasters as one pixel grid, read window by window.

The grid is that of the first file (or its pixels scaled to a wanted ground distance), its extent the union of all.
Files that share it to within 0.01 px are read as they are; all others are warped onto exactly this lattice while they
are read.

Files that share pixels with one another but not with the grid form a layer, which is warped as if it were one raster,
so that their seams leave no trace. Where files overlap, the earlier one wins wherever it has data; where layers do, the
one with the earliest file.

Validity is what the reader says (nodata, alpha, internal or external mask; :meth:`dataset_mask` of rasterio) and is
never guessed from colours; only a value that is no number (NaN, infinity) is invalid on top of that.

A :class:`Mosaic` holds paths and numbers only, so it can be sent to workers. Each thread opens the files it needs and
keeps the last few open.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import threading
import urllib.error
import urllib.request
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # what a failed read of a mask raises; has no public name
from rasterio.crs import CRS as RasterioCRS  # noqa: N811
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.features import rasterize
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from geoseg.aoi import apply_affine, read_aoi
from geoseg.errors import InputError, SettingError
from geoseg.tiling import Rect

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("tif", "tiff", "gtiff", "vrt", "jp2", "j2k", "png", "jpg", "jpeg", "img", "asc", "bil", "bip", "bsq"),
        *("ecw", "sid", "kea", "dem", "dt0", "dt1", "dt2", "ntf", "nitf", "webp", "bmp", "mbtiles"),
    )
)
"""What counts as a raster in a folder (a .gpkg is more often polygons, a .hdr is a side file)."""

ALIGNED = 0.01
"""Files whose pixels lie within this many pixels of the grid's are read without resampling."""

OPEN_FILES = 24
"""Files that a thread keeps open."""

READ_ERRORS = (RasterioIOError, CPLE_BaseError)
"""What rasterio raises when pixels cannot be read."""

_WARP_BLOCK = (128, 512)
"""Rows and columns that GDAL warps at once; it does so whole, whatever part of it is asked for."""
_WARP_PIXELS = 24_000_000
"""Source pixels held at once while warping."""
_WARP_TOLERANCE = 0.01
"""Error allowed to GDAL's interpolation between exactly projected pixels, in source pixels."""
_BLOCK_PIXELS = 16_000_000
"""Native blocks up to this size are probed whole, so that what is lost never depends on the window."""
_KERNEL_RADIUS = {"nearest": 1, "bilinear": 1, "cubic": 2, "cubic_spline": 2, "lanczos": 3}
_LOCAL_CRS = 'LOCAL_CS["pixels",UNIT["metre",1]]'
_MAX_SIDE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class InputProblem:
    """An input that cannot be used, and why."""

    path: str
    """As the user named it."""
    message: str
    """What was found and what to do."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class ReadProblem:
    """A part of a file that cannot be read; its pixels are invalid."""

    path: str
    """As the user named it."""
    block: tuple[int, int] | None
    """Row and column of the file's own block; None: the whole file."""
    message: str
    """GDAL's own words, shortened."""

    def __str__(self) -> str:
        where = "" if self.block is None else f"block {self.block} "
        return f"{self.path}: {where}unreadable ({self.message})"


@dataclass(frozen=True, slots=True)
class Pixels:
    """A window of the mosaic."""

    values: np.ndarray
    """(3, rows, columns), in the files' own type and scale; 0 where invalid."""
    valid: np.ndarray
    """(rows, columns) bool; True: data."""
    rect: Rect
    """Where on the mosaic grid."""
    problems: tuple[ReadProblem, ...] = ()
    """What could not be read; those pixels are invalid."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a mosaic: what its header says, and where it lies."""

    path: str
    """Absolute path or GDAL name."""
    name: str
    """As the user named it, for messages."""
    rect: Rect
    """The part of the mosaic grid that it covers (the box around it, when rotated against the grid)."""
    layer: int
    """Number of its layer in :attr:`Mosaic.layers`."""
    native: Rect
    """Where it lies on the pixels of its layer."""
    located: bool
    """False: the file has no georeference."""
    bands: tuple[int, int, int]
    """Bands read, counted from 1; of a palette's R, G, B when ``palette``."""
    palette: bool
    """True: band 1 holds indices into a colour table."""
    dtype: str
    """Type of the values after a palette is expanded."""
    alpha: int | None
    """Band that holds the validity where GDAL does not take it for a mask by itself (as beside four colours)."""
    all_valid: bool
    """True: the file has neither nodata, mask nor alpha, and its values are integers."""
    size: int | None
    """Bytes, side files included; None where unknown (most remote files)."""
    stamp: str | None
    """Time of the last change in nanoseconds, or a remote file's ETag; None where unknown."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Files that share pixels with one another: read side by side, and warped, if at all, as one raster.

    So the seams between them leave no trace when the mosaic is resampled.
    """

    rect: Rect
    """The part of the mosaic grid that it covers (the box around it)."""
    aligned: bool
    """True: its pixels are the grid's own; False: it is warped."""
    shape: tuple[int, int]
    """Rows and columns of the layer in its own pixels."""
    transform: tuple[float, float, float, float, float, float]
    """Affine of its pixels: (column, row) to coordinates."""
    crs: str | None
    """WKT, or None."""
    scale: tuple[float, float]
    """Mosaic pixels per own pixel along columns and rows, at most 1: gives the width of the warp's kernel."""


# --- what to open ------------------------------------------------------------------------------------------------


def expand_inputs(inputs: Iterable[str | Path]) -> list[str]:
    """Return the rasters that files, folders, globs and GDAL names stand for, in order, each once.

    A folder stands for the rasters directly inside, sorted so that ``t_2`` comes before ``t_10``.

    Raises:
        InputError: something named does not exist, a folder holds no raster, or nothing was named.
    """
    found: list[str] = []
    for item in inputs:
        name = str(item)
        path = Path(name)
        if _is_gdal_name(name):
            found.append(name)
        elif path.is_dir():
            inside = _rasters_in(path)
            if not inside:
                raise InputError(f"{name}: no raster in this folder (.tif, .vrt, .jp2, .png, …)")
            found.extend(inside)
        elif path.exists():
            found.append(name)
        elif any(character in name for character in "*?["):
            found.extend(_expand_glob(name))
        else:
            raise InputError(f"{name}: no such file or folder")
    if not found:
        raise InputError("no input: name at least one raster, folder or GDAL name")
    return list(dict.fromkeys(found))


def _is_gdal_name(name: str) -> bool:
    # Two letters before the colon, so that C:\ remains a path.
    prefixed = re.match(r"[A-Za-z][A-Za-z0-9_+]+:", name) and not Path(name).exists()
    return name.startswith("/vsi") or bool(prefixed)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def _rasters_in(folder: Path) -> list[str]:
    names = [
        entry.name
        for entry in os.scandir(folder)
        if not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file()
    ]
    return [str(folder / name) for name in sorted(names, key=lambda n: (_natural(n), n))]


def _expand_glob(pattern: str) -> list[str]:
    hits = sorted(glob.glob(pattern, recursive=True), key=lambda n: (_natural(n), n))
    named_suffix = re.fullmatch(r"\.\w+", Path(pattern).suffix)
    found: list[str] = []
    for hit in hits:
        path = Path(hit)
        if path.is_dir():
            # `*` meets folders of other things, too: only those with rasters count.
            found.extend(_rasters_in(path))
        elif named_suffix or path.suffix.lower() in SUFFIXES:
            found.append(hit)
    if not found:
        raise InputError(f"{pattern}: matches no raster")
    return found


@contextmanager
def gdal_env(*, cache_mb: int = 256) -> Iterator[None]:
    """GDAL settings for reading mosaics: a modest cache, retries for remote files."""
    with rasterio.Env(
        GDAL_CACHEMAX=cache_mb,
        GDAL_HTTP_MAX_RETRY=4,
        GDAL_HTTP_RETRY_DELAY=1,
        GDAL_HTTP_TIMEOUT=120,
        GDAL_HTTP_MULTIPLEX="YES",
        VSI_CACHE=True,
        # Otherwise the end of a truncated JPEG is grey and passes for data.
        GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
    ):
        yield


# --- one file ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Header:
    """What one file says about itself."""

    name: str
    path: str
    shape: tuple[int, int]
    affine: Affine
    crs: RasterioCRS | None
    located: bool
    bands: tuple[int, int, int]
    palette: bool
    dtype: str
    alpha: int | None
    all_valid: bool
    size: int | None
    stamp: str | None


@dataclass(frozen=True, slots=True)
class _Opened:
    dataset: DatasetReader
    palette: np.ndarray | None


_warnings_lock = threading.Lock()
_local = threading.local()


def close_files() -> None:
    """Close the files that this thread keeps open."""
    for opened in _open_files().values():
        opened.dataset.close()
    _open_files().clear()


def _open_files() -> OrderedDict[tuple[Any, ...], _Opened]:
    if not hasattr(_local, "files"):
        _local.files = OrderedDict()
    files: OrderedDict[tuple[Any, ...], _Opened] = _local.files
    return files


def _is_remote(path: str) -> bool:
    # /vsizip//vsicurl/… is remote, too; /vsizip//data/a.zip is not.
    return bool(re.search(r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)", path)) or bool(
        re.match(r"(https?|s3|gs|az|ftp)://", path)
    )


def _open(path: str) -> DatasetReader:
    # With more threads GDAL (3.10) gives out a block that it failed to read as zeros once the window around it failed.
    options: dict[str, Any] = {"GDAL_NUM_THREADS": 1}
    if _is_remote(path):
        # One listing of a bucket can cost more than the pixels; local files keep it, for side files depend on it.
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"
    with rasterio.Env(**options):
        return rasterio.open(path)


def _opened(source: Source) -> _Opened:
    """Return the open file of this thread, opening it and closing the one unused for longest as needed."""
    files = _open_files()
    key = (source.path, source.size, source.stamp)
    if key in files:
        files.move_to_end(key)
        return files[key]
    if not source.located:
        # Without georeference there is one file only, so that the lock costs nothing.
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = _open(source.path)
    else:
        dataset = _open(source.path)
    opened = _Opened(dataset, _palette(dataset) if source.palette else None)
    files[key] = opened
    while len(files) > OPEN_FILES:
        files.popitem(last=False)[1].dataset.close()
    return opened


def _palette(dataset: DatasetReader) -> np.ndarray:
    """Return the colour table as (3, entries) of uint8."""
    table = np.zeros((3, np.iinfo(dataset.dtypes[0]).max + 1), np.uint8)
    for index, colour in dataset.colormap(1).items():
        table[:, index] = colour[:3]
    return table


def _inspect(name: str, bands: tuple[int, int, int] | None) -> _Header | InputProblem:
    path = name if _is_gdal_name(name) else os.path.abspath(name)
    try:
        with _open(path) as dataset:
            return _header(name, path, dataset, bands)
    except (RasterioError, CPLE_BaseError, CRSError, OSError, UnicodeDecodeError) as error:
        return InputProblem(name, f"cannot be opened as a raster: {_words(error)}")


def _header(name: str, path: str, dataset: DatasetReader, bands: tuple[int, int, int] | None) -> _Header | InputProblem:
    if not dataset.count:
        return InputProblem(name, "holds no band of its own; name one of its subdatasets")
    if dataset.transform.is_identity and dataset.gcps[0]:
        return InputProblem(name, "is placed by ground control points only; rectify it first (gdalwarp)")
    if dataset.transform.determinant == 0:
        return InputProblem(name, f"its transform {tuple(dataset.transform)[:6]} is degenerate")
    palette = dataset.colorinterp[0] == ColorInterp.palette and dataset.dtypes[0] in (
        "uint8",
        "uint16",
    )
    chosen = _choose_bands(dataset, palette, bands)
    if isinstance(chosen, str):
        return InputProblem(name, chosen)
    kinds = {dataset.dtypes[band - 1] for band in ((1,) if palette else chosen)}
    if len(kinds) > 1 or any(kind.startswith("complex") for kind in kinds):
        return InputProblem(name, f"its bands {chosen} are {', '.join(sorted(kinds))}; they must be of one real type")
    dtype = "uint8" if palette else kinds.pop()
    unmasked = {flag for band in dataset.mask_flag_enums for flag in band} == {MaskFlags.all_valid}
    alpha = min(_alpha_bands(dataset), default=None) if unmasked else None
    size, stamp = _state(path, dataset)
    return _Header(
        name=name,
        path=path,
        shape=(dataset.height, dataset.width),
        affine=dataset.transform,
        crs=dataset.crs if dataset.crs and not dataset.transform.is_identity else None,
        located=not dataset.transform.is_identity,
        bands=chosen,
        palette=palette,
        dtype=dtype,
        alpha=alpha,
        all_valid=unmasked and alpha is None and np.dtype(dtype).kind in "iu",
        size=size,
        stamp=stamp,
    )


def _alpha_bands(dataset: DatasetReader) -> set[int]:
    kinds = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return {band for band, kind in kinds if kind == ColorInterp.alpha}


def _choose_bands(
    dataset: DatasetReader, palette: bool, bands: tuple[int, int, int] | None
) -> tuple[int, int, int] | str:
    """Return three bands, or what is wrong."""
    alpha = _alpha_bands(dataset)
    colours = [1, 2, 3] if palette else [i for i in dataset.indexes if i not in alpha]
    if bands is not None:
        for band in bands:
            if band in alpha and not palette:
                return f"band {band} is its alpha, not a colour; choose others with --bands"
            if band not in colours:
                return f"has {len(colours)} bands, so there is no band {band}; choose with --bands"
        return bands
    if len(colours) == 1:
        return colours[0], colours[0], colours[0]
    if len(colours) < 3:
        return f"has {len(colours)} bands, three are needed; name the three with --bands (1,1,2, say)"
    return colours[0], colours[1], colours[2]


def _state(path: str, dataset: DatasetReader) -> tuple[int | None, str | None]:
    """Return bytes and last change of a file and all files it is made of, where that can be known."""
    if _is_remote(path):
        return _remote_state(path)
    archive = re.match(r"/vsi(?:zip|tar|gzip|7z|rar)/+(.*?\.(?:zip|tar|tgz|gz|7z|rar))", path)
    files = ["/" + archive[1], archive[1]] if archive else [path, *dataset.files]
    states = [os.stat(file) for file in dict.fromkeys(files) if os.path.isfile(file)]
    if not states:
        return None, None
    return sum(s.st_size for s in states), str(max(s.st_mtime_ns for s in states))


def _remote_state(path: str) -> tuple[int | None, str | None]:
    url = re.sub(r"^/vsicurl/", "", path)
    if not re.match(r"https?://", url):
        return None, None
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http and https only, see above
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length", "")
            stamp = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            return (int(length) if length.isdigit() else None), stamp
    except (urllib.error.URLError, OSError, ValueError):
        # Servers may refuse HEAD. The pixels come through GDAL; without this a resume cannot see a changed file.
        return None, None


def _words(error: BaseException) -> str:
    """Return the innermost message of an error in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or str(error) or type(error).__name__
    text = " ".join(str(text).split())
    return text if len(text) <= 200 else text[:199] + "…"


# --- pixels of one file ------------------------------------------------------------------------------------------

_Part = tuple[np.ndarray | None, np.ndarray, tuple[ReadProblem, ...]]
"""Values (3, rows, columns) or None, validity (rows, columns), problems."""


def _read_layer(mosaic: Mosaic, number: int, rect: Rect, values: bool = True) -> _Part:
    """Read ``rect`` of a layer's own pixels; where its files overlap, the earlier one wins."""
    valid = np.zeros(rect.shape, bool)
    array = np.zeros((3, *rect.shape), mosaic.dtype) if values else None
    problems: list[ReadProblem] = []
    for source, common in mosaic.members_in(number, rect):
        rows, cols = common.slices(rect)
        if valid[rows, cols].all():
            continue
        row, col = source.native.row0, source.native.col0
        local = Rect(common.row0 - row, common.col0 - col, common.row1 - row, common.col1 - col)
        part, has, lost = _read_native(source, local, values)
        problems.extend(lost)
        if array is not None and part is not None:
            np.copyto(array[:, rows, cols], part, where=has & ~valid[rows, cols])
        valid[rows, cols] |= has
    return array, valid, tuple(problems)


def _read_native(source: Source, rect: Rect, values: bool = True) -> _Part:
    """Read a rectangle of the file's own pixels; only blocks that cannot be read are lost."""
    try:
        opened = _opened(source)
    except (*READ_ERRORS, OSError) as error:
        problem = ReadProblem(source.name, None, _words(error))
        return _nothing(source.dtype, rect, values), np.zeros(rect.shape, bool), (problem,)
    try:
        return *_read_once(opened, source, rect, values), ()
    except READ_ERRORS:
        return _read_by_blocks(opened, source, rect, values)


def _nothing(dtype: Any, rect: Rect, values: bool) -> np.ndarray | None:
    return np.zeros((3, *rect.shape), dtype) if values else None


def _read_once(opened: _Opened, source: Source, rect: Rect, values: bool) -> tuple[np.ndarray | None, np.ndarray]:
    dataset, window = opened.dataset, rect.window
    if source.all_valid:
        valid = np.ones(rect.shape, bool)
    elif source.alpha is not None:
        valid = dataset.read(source.alpha, window=window) > 0
    else:
        valid = dataset.dataset_mask(window=window) > 0
    floating = np.dtype(source.dtype).kind == "f"
    if not values and not floating:
        return None, valid
    if opened.palette is not None:
        lookup = opened.palette[[band - 1 for band in source.bands]]
        array = lookup[:, dataset.read(1, window=window)]
    elif len(set(source.bands)) == 1:
        one = dataset.read(source.bands[0], window=window)
        array = np.repeat(one[None], 3, axis=0)
    else:
        array = dataset.read(list(source.bands), window=window)
    if floating:
        valid &= np.isfinite(array).all(axis=0)
    if not valid.all():
        array[:, ~valid] = 0
    return (array if values else None), valid


def _read_by_blocks(opened: _Opened, source: Source, rect: Rect, values: bool) -> _Part:
    """Read block by native block, so that what is lost depends on the file and not on the window."""
    array, valid = _nothing(source.dtype, rect, values), np.zeros(rect.shape, bool)
    problems: list[ReadProblem] = []
    rows, cols = opened.dataset.block_shapes[source.bands[0] - 1 if not source.palette else 0]
    extent = Rect(0, 0, *source.native.shape)
    for row in range(rect.row0 // rows, -(-rect.row1 // rows)):
        for col in range(rect.col0 // cols, -(-rect.col1 // cols)):
            block = Rect(row * rows, col * cols, (row + 1) * rows, (col + 1) * cols) & extent
            common = block & rect if block else None
            if block is None or common is None:
                continue
            probe = block if block.area <= _BLOCK_PIXELS else common
            try:
                part, part_valid = _read_once(opened, source, probe, values)
            except READ_ERRORS as error:
                problems.append(ReadProblem(source.name, (row, col), _words(error)))
                continue
            inside, here = common.slices(probe), common.slices(rect)
            valid[here] = part_valid[inside]
            if array is not None and part is not None:
                array[:, here[0], here[1]] = part[:, inside[0], inside[1]]
    return array, valid, tuple(problems)


def _warp(mosaic: Mosaic, number: int, part: Rect, values: bool = True) -> _Part:
    """Resample a layer onto a rectangle of the mosaic grid.

    The pixels needed are read as the files have them, block by block where some fail, and laid into a sparse raster in
    memory of the layer's full size, which GDAL then warps in its fixed blocks of the mosaic grid: no pixel depends on
    the window. A pixel is valid where the layer's pixel under its centre is; its value comes from valid pixels only.
    """
    layer = mosaic.layers[number]
    region = _source_region(layer, part, mosaic)
    if region is None:
        return _nothing(mosaic.dtype, part, values), np.zeros(part.shape, bool), ()
    halves = _halves(part)
    if region.area > _WARP_PIXELS and halves:
        array, valid = _nothing(mosaic.dtype, part, values), np.zeros(part.shape, bool)
        problems: list[ReadProblem] = []
        for half in halves:
            half_array, half_valid, half_problems = _warp(mosaic, number, half, values)
            rows, cols = half.slices(part)
            valid[rows, cols] = half_valid
            problems.extend(half_problems)
            if array is not None:
                array[:, rows, cols] = half_array
        return array, valid, tuple(dict.fromkeys(problems))
    native, native_valid, lost = _read_layer(mosaic, number, region, values)
    whole = bool(native_valid.all())
    valid = np.zeros(part.shape, bool)
    if native is not None:
        mask = None if whole else native_valid
        with _in_memory(layer, region, native, mask) as dataset:
            warped = _warp_dataset(dataset, layer, part, mosaic, mosaic.resampling, alpha=True)
        array, valid = warped[:3], warped[3] > 0
    else:
        array = None
    if native is None or not whole:
        flat = native_valid[None].astype(np.uint8)
        with _in_memory(layer, region, flat, None) as dataset:
            valid = _warp_dataset(dataset, layer, part, mosaic, "nearest", alpha=False)[0] > 0
    if array is not None:
        array[:, ~valid] = 0
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


def _source_region(layer: Layer, part: Rect, mosaic: Mosaic) -> Rect | None:
    """Return the layer's pixels that GDAL may look at to make ``part``, or None when it has none there."""
    rows, cols = _WARP_BLOCK
    height, width = mosaic.shape
    whole = Rect(
        part.row0 // rows * rows,
        part.col0 // cols * cols,
        min(-(-part.row1 // rows) * rows, height),
        min(-(-part.col1 // cols) * cols, width),
    )
    x, y = np.meshgrid(np.linspace(whole.col0, whole.col1, 17), np.linspace(whole.row0, whole.row1, 17))
    points = _map_points(x.ravel(), y.ravel(), mosaic.transform, mosaic.wkt, Affine(*layer.transform), layer.crs)
    if not len(points):
        return None
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    radius = _KERNEL_RADIUS.get(mosaic.resampling, 3) + 1
    margin_x = radius / layer.scale[0] + 3 + 0.02 * (right - left)
    margin_y = radius / layer.scale[1] + 3 + 0.02 * (bottom - top)
    row0, row1 = math.floor(top - margin_y), math.ceil(bottom + margin_y)
    col0, col1 = math.floor(left - margin_x), math.ceil(right + margin_x)
    return Rect(row0, col0, row1, col1) & Rect(0, 0, *layer.shape)


def _map_points(
    x: np.ndarray, y: np.ndarray, affine: Affine, crs: str | None, to: Affine, to_crs: str | None
) -> np.ndarray:
    """Map pixel coordinates of one grid to those of another, (n, 2); points without an image are left out."""
    x, y = apply_affine(affine, x, y)
    if crs is not None and to_crs is not None and not _same_crs(crs, to_crs):
        x, y = (np.asarray(v) for v in transform_points(crs, to_crs, x.tolist(), y.tolist())[:2])
    points = np.stack(apply_affine(~to, x, y), axis=1)
    inside: np.ndarray = points[np.isfinite(points).all(axis=1)]
    return inside


@lru_cache(maxsize=256)
def _same_crs(one: str, other: str) -> bool:
    return one == other or RasterioCRS.from_wkt(one) == RasterioCRS.from_wkt(other)


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
    mosaic: Mosaic,
    resampling: str,
    *,
    alpha: bool,
) -> np.ndarray:
    height, width = mosaic.shape
    same = layer.crs is None or mosaic.wkt is None or _same_crs(layer.crs, mosaic.wkt)
    crs = dataset.crs if same else RasterioCRS.from_wkt(mosaic.wkt)
    with (
        # Fixed blocks of the whole grid, not chunks of the window: what a pixel gets depends on nothing else.
        rasterio.Env(GDAL_VRT_WARP_USE_DATASET_RASTERIO="NO"),
        WarpedVRT(
            dataset,
            crs=crs,
            transform=mosaic.transform,
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


# --- the mosaic --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mosaic:
    """Rasters as one pixel grid; holds paths and numbers only. Made by :func:`open_mosaic`."""

    geobox: GeoBox
    """The grid: shape (rows, columns), affine, CRS or None."""
    sources: tuple[Source, ...]
    """The files, in order."""
    layers: tuple[Layer, ...]
    """Files that share pixels, grouped; where layers overlap the earlier wins, and inside one the earlier file."""
    resampling: str = "bilinear"
    """How files that do not share the grid are resampled (a name of :class:`rasterio.enums.Resampling`)."""
    aoi: tuple[bytes, ...] | None = None
    """Polygons of the area of interest, WKB in pixel coordinates; None: everything."""
    georeferenced: bool = True
    """False: the files say nothing about where they lie, and coordinates are pixels."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise SettingError("a mosaic needs at least one file")
        kinds = sorted({source.dtype for source in self.sources})
        if len(kinds) > 1:
            raise SettingError(f"the files of a mosaic must be of one type, not {', '.join(kinds)}")

    def __getstate__(self) -> dict[str, Any]:
        # Without the indices, which each process makes for itself.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.geobox.shape[0]), int(self.geobox.shape[1])

    @property
    def extent(self) -> Rect:
        """The whole grid."""
        return Rect(0, 0, *self.shape)

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) to coordinates."""
        return self.geobox.affine

    @property
    def crs(self) -> CRS | None:
        """CRS of the grid, or None."""
        return self.geobox.crs

    @cached_property
    def wkt(self) -> str | None:
        """CRS of the grid as WKT, or None."""
        return None if self.geobox.crs is None else str(self.geobox.crs.to_wkt())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self.sources[0].dtype)

    @cached_property
    def ground_gsd(self) -> float | None:
        """Metres on the ground that a pixel at the centre spans (root of its area), None without CRS.

        Differs from the pixel's size in the CRS where the CRS does not keep lengths: in EPSG:3857 by the cosine of the
        latitude, in degrees and feet by far.
        """
        height, width = self.shape
        size = ground_size(self.wkt, self.transform, width / 2, height / 2)
        return None if size is None else math.sqrt(size[0] * size[1])

    @cached_property
    def _index(self) -> shapely.STRtree:
        return shapely.STRtree([_box(layer.rect) for layer in self.layers])

    @cached_property
    def _members(self) -> list[tuple[shapely.STRtree, list[Source]]]:
        members: list[list[Source]] = [[] for _ in self.layers]
        for source in self.sources:
            members[source.layer].append(source)
        return [(shapely.STRtree([_box(s.native) for s in group]), group) for group in members]

    @cached_property
    def _aoi_index(self) -> shapely.STRtree:
        return shapely.STRtree(shapely.from_wkb(np.array(self.aoi or (), dtype=object)))

    def layers_in(self, rect: Rect) -> Iterator[tuple[int, Rect]]:
        """Yield number and common rectangle of the layers whose box meets ``rect``, in order."""
        for number in np.sort(self._index.query(_box(rect))):
            common = self.layers[number].rect & rect
            if common is not None:
                yield int(number), common

    def members_in(self, layer: int, rect: Rect) -> Iterator[tuple[Source, Rect]]:
        """Yield the files of a layer that meet ``rect`` of its own pixels, in order, with the common rectangle."""
        tree, members = self._members[layer]
        for number in np.sort(tree.query(_box(rect))):
            source = members[number]
            common = source.native & rect
            if common is not None:
                yield source, common

    def _read_part(self, number: int, part: Rect, values: bool = True) -> _Part:
        if not self.layers[number].aligned:
            return _warp(self, number, part, values)
        # An aligned layer has the mosaic's own pixels, from the mosaic's first on.
        return _read_layer(self, number, part, values)

    def read(self, rect: Rect) -> Pixels:
        """Read a rectangle of the grid.

        Raises:
            SettingError: ``rect`` passes the grid's edge (see :meth:`read_padded`).
        """
        if not self.extent.contains(rect):
            raise SettingError(f"{rect} lies outside the mosaic of {self.shape} px")
        values = np.zeros((3, *rect.shape), self.dtype)
        valid = np.zeros(rect.shape, bool)
        problems: list[ReadProblem] = []
        for number, part in self.layers_in(rect):
            rows, cols = part.slices(rect)
            if valid[rows, cols].all():
                continue
            array, has, lost = self._read_part(number, part)
            problems.extend(lost)
            if array is not None:
                np.copyto(values[:, rows, cols], array, where=has & ~valid[rows, cols])
            valid[rows, cols] |= has
        return Pixels(values, valid, rect, tuple(dict.fromkeys(problems)))

    def read_padded(self, rect: Rect) -> Pixels:
        """Read a rectangle that may pass the grid's edge, where the image is reflected.

        Equal to cutting ``rect`` out of the whole mosaic padded by ``numpy.pad(…, mode="reflect")``: row ``H + k`` is
        row ``H - 2 - k``, to and fro for tiny rasters.
        """
        if self.extent.contains(rect):
            return self.read(rect)
        height, width = self.shape
        rows = reflect(np.arange(rect.row0, rect.row1), height)
        cols = reflect(np.arange(rect.col0, rect.col1), width)
        row0, col0 = int(rows.min()), int(cols.min())
        inner = self.read(Rect(row0, col0, int(rows.max()) + 1, int(cols.max()) + 1))
        take = np.ix_(rows - row0, cols - col0)
        return Pixels(inner.values[:, take[0], take[1]], inner.valid[take], rect, inner.problems)

    def inside_aoi(self, rect: Rect) -> np.ndarray:
        """Return (rows, columns) bool: pixels of ``rect`` whose centre lies in the area of interest."""
        if self.aoi is None:
            return np.ones(rect.shape, bool)
        tree = self._aoi_index
        box = _box(rect)
        near = [tree.geometries[i] for i in tree.query(box, predicate="intersects")]
        if not near:
            return np.zeros(rect.shape, bool)
        if any(polygon.contains_properly(box) for polygon in near):
            return np.ones(rect.shape, bool)
        shift = Affine.translation(rect.col0, rect.row0)
        burnt: np.ndarray = rasterize(near, out_shape=rect.shape, transform=shift, dtype="uint8")
        return burnt.astype(bool)

    def has_data(self, rect: Rect) -> bool:
        """Say whether any pixel of ``rect`` is valid and inside the area of interest.

        Reads masks only where headers do not tell. Where a mask cannot be read the answer is yes, so that
        :meth:`read` comes to report it.
        """
        inside = None if self.aoi is None else self.inside_aoi(rect)
        if inside is not None and not inside.any():
            return False
        for number, part in self.layers_in(rect):
            wanted = None if inside is None else inside[part.slices(rect)]
            if wanted is not None and not wanted.any():
                continue
            if self.layers[number].aligned and wanted is None:
                members = self.members_in(number, part)
                if any(source.all_valid for source, _common in members):
                    return True
            _values, valid, lost = self._read_part(number, part, values=False)
            if lost or (valid if wanted is None else valid & wanted).any():
                return True
        return False

    def identity(self) -> dict[str, Any]:
        """Return what the pixels depend on, as plain JSON values: files with size and last change, grid, area."""
        aoi = None if self.aoi is None else hashlib.sha256(b"\0".join(self.aoi)).hexdigest()
        return {
            "files": [[s.path, s.size, s.stamp, list(s.bands)] for s in self.sources],
            "shape": list(self.shape),
            "transform": [float(v) for v in tuple(self.transform)[:6]],
            "crs": self.wkt,
            "dtype": str(self.dtype),
            "resampling": self.resampling,
            "aoi": aoi,
        }

    def fingerprint(self) -> str:
        """Return a hash of :meth:`identity`."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _box(rect: Rect) -> Any:
    return shapely.box(rect.col0, rect.row0, rect.col1, rect.row1)


def reflect(index: np.ndarray, length: int) -> np.ndarray:
    """Fold indices into ``0 … length - 1`` as ``numpy.pad(mode="reflect")`` does."""
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded = index % period
    return np.where(folded < length, folded, period - folded)


def ground_size(crs: str | None, affine: Affine, col: float, row: float) -> tuple[float, float] | None:
    """Return the metres on the ground that one pixel spans along its row and its column, on the CRS's ellipsoid.

    Measured as geodesics (Karney 2013, by PROJ) through the point ``(col, row)``. A CRS that is not tied to the Earth
    has its unit converted. None without CRS.
    """
    if crs is None:
        return None
    projected = pyproj.CRS.from_wkt(crs).to_2d()
    geodetic, geod = projected.geodetic_crs, projected.get_geod()
    if geodetic is None or geod is None:
        unit = projected.axis_info[0].unit_conversion_factor if projected.axis_info else 1.0
        a, b, _c, d, e, _f = tuple(affine)[:6]
        return math.hypot(a, d) * unit, math.hypot(b, e) * unit
    x, y = apply_affine(
        affine,
        np.array([col - 0.5, col + 0.5, col, col]),
        np.array([row, row, row - 0.5, row + 0.5]),
    )
    lon, lat = pyproj.Transformer.from_crs(projected, geodetic, always_xy=True).transform(x, y)
    # Some geodetic CRSs count in grads.
    degrees = math.degrees(geodetic.axis_info[0].unit_conversion_factor)
    lon, lat = np.asarray(lon) * degrees, np.asarray(lat) * degrees
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise InputError(f"the images lie where {projected.name} is not defined; check their CRS and coordinates")
    _forth, _back, metres = geod.inv(lon[[0, 2]], lat[[0, 2]], lon[[1, 3]], lat[[1, 3]])
    return float(metres[0]), float(metres[1])


def open_mosaic(
    inputs: Iterable[str | Path],
    *,
    bands: tuple[int, int, int] | None = None,
    gsd: float | None = None,
    aoi: str | Path | None = None,
    resampling: str = "bilinear",
) -> tuple[Mosaic, list[InputProblem]]:
    """Open every header once and lay the files out on one grid.

    Args:
        inputs: files, folders, globs and GDAL names (see :func:`expand_inputs`); earlier ones win where they overlap.
        bands: three bands counted from 1; by default the first three that are not alpha, a palette's colours, or the
            only band three times.
        gsd: metres on the ground per pixel at the mosaic's centre. The first file's grid is scaled to it (in both
            directions alike where its pixels are square on the ground to within 2 %, else each for itself, as
            degrees need); left alone where it is right to within 0.1 %. By default the first file's pixels.
        aoi: vector file with polygons in any CRS (see :func:`geoseg.aoi.read_aoi`).
        resampling: for files that do not share the grid; a name of :class:`rasterio.enums.Resampling`.

    Returns:
        The mosaic, and the files that cannot be part of it, with the reason.

    Raises:
        InputError: something named does not exist, or no file can be used, or the area of interest cannot.
        SettingError: an option makes no sense.
    """
    _check_options(bands, gsd, resampling)
    names = expand_inputs(inputs)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(8, len(names)), "headers") as pool,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        answers = list(pool.map(lambda name: _inspect(name, bands), names))
    problems = [answer for answer in answers if isinstance(answer, InputProblem)]
    headers = [answer for answer in answers if isinstance(answer, _Header)]
    headers = _sort_out(headers, problems)
    if headers:
        placed = _place(headers, headers[0].affine, problems)
        affine = _scaled(placed, gsd) if gsd is not None else placed.affine
        if affine != placed.affine:
            placed = _place(headers, affine, problems)
    if not headers or not placed.sources:
        listed = "\n".join(f"  {problem}" for problem in problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"none of the {len(names)} inputs can be used:\n{listed}{more}")
    geobox = GeoBox(placed.shape, placed.affine, placed.crs)
    mosaic = Mosaic(
        geobox=geobox,
        sources=placed.sources,
        layers=placed.layers,
        resampling=resampling,
        aoi=None if aoi is None else read_aoi(aoi, geobox),
        georeferenced=headers[0].located,
    )
    order = {name: number for number, name in enumerate(names)}
    return mosaic, sorted(problems, key=lambda problem: order[problem.path])


def _check_options(bands: Sequence[int] | None, gsd: float | None, resampling: str) -> None:
    if bands is not None and (len(bands) != 3 or any(band < 1 for band in bands)):
        raise SettingError(f"bands are {bands!r}; name three, counted from 1, such as 4,3,2")
    if gsd is not None and not (math.isfinite(gsd) and gsd > 0):
        raise SettingError(f"gsd is {gsd}; it must be metres per pixel above 0")
    if resampling not in Resampling.__members__ or resampling == "gauss":
        raise SettingError(f"resampling is {resampling!r}; try nearest, bilinear, cubic or average")


def _sort_out(headers: list[_Header], problems: list[InputProblem]) -> list[_Header]:
    """Return the files that go together, adding the others to ``problems``."""

    def keep(wanted: Sequence[bool], why: str) -> None:
        nonlocal headers
        problems.extend(InputProblem(h.name, why.format(h=h)) for h, w in zip(headers, wanted, strict=True) if not w)
        headers = [h for h, w in zip(headers, wanted, strict=True) if w]

    if any(h.crs is not None for h in headers):
        keep(
            [h.crs is not None for h in headers],
            "has no CRS, the other files do; assign it one (gdal_edit.py -a_srs EPSG:…)",
        )
    elif any(h.located for h in headers):
        keep([h.located for h in headers], "has no georeference, the other files do; add one")
    elif len(headers) > 1:
        keep(
            [number == 0 for number in range(len(headers))],
            f"has no georeference, so it cannot be placed beside {headers[0].name}; run it on its own",
        )
    if headers:
        dtype, first = headers[0].dtype, headers[0].name
        keep(
            [h.dtype == dtype for h in headers],
            f"its values are {{h.dtype}}, those of {first} are {dtype}; convert it or run it on its own",
        )
    return headers


@dataclass(frozen=True, slots=True)
class _Placed:
    affine: Affine
    shape: tuple[int, int]
    crs: str | None
    sources: tuple[Source, ...]
    layers: tuple[Layer, ...]


_Box = tuple[int, int, int, int]
"""First row and column, last ones + 1; may be negative."""


@dataclass(slots=True)
class _Lattice:
    """Pixels that files share, while files are being laid out."""

    affine: Affine
    crs: str | None
    aligned: bool
    members: list[tuple[int, _Header, _Box, _Box]]
    """Order, header, box on the grid, box on this lattice."""


def _place(headers: list[_Header], affine: Affine, problems: list[InputProblem]) -> _Placed:
    """Lay files out on the grid of ``affine``; those that have no place there go to ``problems``."""
    crs = None if headers[0].crs is None else headers[0].crs.to_wkt()
    lattices = _Lattices(affine, crs)
    known = {problem.path for problem in problems}
    for order, header in enumerate(headers):
        own = None if header.crs is None else header.crs.to_wkt()
        lattice, native = lattices.find(header, own)
        box = native if lattice.aligned else _box_on_grid(header, own, affine, crs)
        if box is not None:
            lattice.members.append((order, header, box, native))
        elif header.name not in known:
            problems.append(InputProblem(header.name, "cannot be projected to the CRS of the first file"))
    used = [lattice for lattice in lattices.all if lattice.members]
    used.sort(key=lambda lattice: lattice.members[0][0])
    if not used:
        return _Placed(affine, (0, 0), crs, (), ())
    row0, col0, row1, col1 = _union([box for lattice in used for _o, _h, box, _n in lattice.members])
    shape = row1 - row0, col1 - col0
    if max(shape) > _MAX_SIDE:
        raise InputError(
            f"the files lie so far apart that the grid would have {shape[0]} × {shape[1]} px; leave out the stray one"
        )
    grid = affine @ Affine.translation(col0, row0)
    layers: list[Layer] = []
    sources: list[tuple[int, Source]] = []
    for number, lattice in enumerate(used):
        whole = _union([box for _o, _h, box, _n in lattice.members])
        own_row0, own_col0, own_row1, own_col1 = _union([native for _o, _h, _b, native in lattice.members])
        if lattice.aligned:
            own_row0, own_col0, own_row1, own_col1 = row0, col0, row1, col1
        own_affine = lattice.affine @ Affine.translation(own_col0, own_row0)
        rect = _shifted(whole, row0, col0)
        layers.append(
            Layer(
                rect=rect,
                aligned=lattice.aligned,
                shape=(own_row1 - own_row0, own_col1 - own_col0),
                transform=_six(own_affine),
                crs=lattice.crs,
                scale=(1.0, 1.0) if lattice.aligned else _kernels(rect, grid, crs, own_affine, lattice.crs),
            )
        )
        sources.extend(
            (order, _source(header, number, _shifted(box, row0, col0), _shifted(native, own_row0, own_col0)))
            for order, header, box, native in lattice.members
        )
    sources.sort(key=lambda pair: pair[0])
    return _Placed(grid, shape, crs, tuple(source for _order, source in sources), tuple(layers))


def _source(header: _Header, layer: int, rect: Rect, native: Rect) -> Source:
    return Source(
        path=header.path,
        name=header.name,
        rect=rect,
        layer=layer,
        native=native,
        located=header.located,
        bands=header.bands,
        palette=header.palette,
        dtype=header.dtype,
        alpha=header.alpha,
        all_valid=header.all_valid,
        size=header.size,
        stamp=header.stamp,
    )


def _six(affine: Affine) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = tuple(affine)[:6]
    return a, b, c, d, e, f


def _union(boxes: list[_Box]) -> _Box:
    array = np.array(boxes, dtype=np.int64)
    row0, col0 = array[:, :2].min(axis=0)
    row1, col1 = array[:, 2:].max(axis=0)
    return int(row0), int(col0), int(row1), int(col1)


def _shifted(box: _Box, row: int, col: int) -> Rect:
    return Rect(box[0] - row, box[1] - col, box[2] - row, box[3] - col)


class _Lattices:
    """The grid's own lattice and those of files that do not share it, found by hashing."""

    def __init__(self, affine: Affine, crs: str | None) -> None:
        self.grid = _Lattice(affine, crs, True, [])
        self.all = [self.grid]
        self._references: dict[tuple[Any, ...], Affine] = {}
        self._by_phase: dict[tuple[Any, ...], list[_Lattice]] = {}

    def find(self, header: _Header, crs: str | None) -> tuple[_Lattice, _Box]:
        """Return the lattice that the file's pixels belong to, and where they lie on it."""
        own_crs = self.grid.crs is None or crs is None or _same_crs(crs, self.grid.crs)
        box = _box_on_lattice(header, self.grid.affine) if own_crs else None
        if box is not None:
            return self.grid, box
        a, b, c, d, e, f = tuple(header.affine)[:6]
        kind = (crs, *(f"{value:.6e}" for value in (a, b, d, e)))
        reference = self._references.setdefault(kind, header.affine)
        # Fraction of a pixel by which the file is shifted, in bins twice as wide as what is taken for equal.
        bins = round(0.5 / ALIGNED)
        phase = [round(float(v) % 1 * bins) for v in ~reference @ (c, f)]
        for row in (-1, 0, 1):
            for col in (-1, 0, 1):
                key = (*kind, (phase[0] + col) % bins, (phase[1] + row) % bins)
                for lattice in self._by_phase.get(key, ()):
                    box = _box_on_lattice(header, lattice.affine)
                    if box is not None:
                        return lattice, box
        lattice = _Lattice(header.affine, crs, False, [])
        self.all.append(lattice)
        self._by_phase.setdefault((*kind, phase[0] % bins, phase[1] % bins), []).append(lattice)
        return lattice, (0, 0, *header.shape)


def _box_on_lattice(header: _Header, affine: Affine) -> _Box | None:
    """Return the place of a file whose pixels are those of ``affine``, or None when they are not."""
    height, width = header.shape
    corners_x, corners_y = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    points = np.stack(apply_affine(~affine @ header.affine, corners_x, corners_y), axis=1)
    col, row = (int(v) for v in np.rint(points[0]))
    exact = np.stack([corners_x + col, corners_y + row], axis=1)
    return (row, col, row + height, col + width) if np.abs(points - exact).max() <= ALIGNED else None


def _box_on_grid(header: _Header, own: str | None, affine: Affine, crs: str | None) -> _Box | None:
    """Return the grid's pixels that a file covers, or None when its outline cannot be projected."""
    height, width = header.shape
    steps = np.linspace(0, 1, 65)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    edge_x = np.concatenate([steps, steps, zero, one]) * width
    edge_y = np.concatenate([zero, one, steps, steps]) * height
    points = _map_points(edge_x, edge_y, header.affine, own, affine, crs)
    if len(points) < len(edge_x):
        return None
    # Pixels whose centre is inside: a sliver at the edge would never be valid.
    col0, row0 = (math.ceil(v - 0.5 - 1e-6) for v in points.min(axis=0))
    col1, row1 = (math.floor(v + 0.5 + 1e-6) for v in points.max(axis=0))
    return row0, col0, max(row1, row0 + 1), max(col1, col0 + 1)


def _kernels(rect: Rect, grid: Affine, crs: str | None, own: Affine, own_crs: str | None) -> tuple[float, float]:
    """Return grid pixels per own pixel, along its columns and rows, in the middle of ``rect``."""
    x = np.array([0.0, 1.0, 0.0]) + (rect.col0 + rect.col1 - 1) / 2
    y = np.array([0.0, 0.0, 1.0]) + (rect.row0 + rect.row1 - 1) / 2
    back = _map_points(x, y, grid, crs, own, own_crs)
    if len(back) < 3:
        return 1.0, 1.0
    jacobian = np.stack([back[1] - back[0], back[2] - back[0]], axis=1)
    return _kernel(np.hypot(*jacobian[0])), _kernel(np.hypot(*jacobian[1]))


def _kernel(extent: float) -> float:
    # As GDAL does, no wider kernel for less than 5 % of shrinking: it would only blur.
    scale = 1 / float(extent)
    return 1.0 if scale > 0.95 else scale


def _scaled(placed: _Placed, gsd: float) -> Affine:
    """Return the grid's affine with pixels of ``gsd`` metres on the ground at the mosaic's centre."""
    height, width = placed.shape
    size = ground_size(placed.crs, placed.affine, width / 2, height / 2)
    if size is None:
        raise SettingError(
            f"gsd is {gsd} m, but the images have no CRS, so that their scale is unknown; "
            "leave the option out or give them a CRS"
        )
    along, across = size
    if abs(along / across - 1) < 0.02:
        along = across = math.sqrt(along * across)
    if abs(along / gsd - 1) < 1e-3 and abs(across / gsd - 1) < 1e-3:
        return placed.affine
    return placed.affine @ Affine.scale(gsd / along, gsd / across)
