"""The pixels of one raster file, and of files that lie side by side.

Each thread opens the files it needs and keeps the last few open. Where a window cannot be read whole, it is read by the
file's own blocks, and only those that are damaged are lost.
"""

from __future__ import annotations

import atexit
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what a failed read of a mask raises; has no public name
from rasterio.enums import Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader

from geoseg.tiling import Rect

OPEN_FILES = 24
"""Files that a thread keeps open."""

READ_ERRORS = (RasterioIOError, CPLE_BaseError)
"""What rasterio raises when pixels cannot be read."""

_BLOCK_PIXELS = 16_000_000
"""Native blocks up to this size are probed whole, so that what is lost never depends on the window."""


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
class Source:
    """One file of a mosaic: what its header says, and where it lies."""

    path: str
    """Absolute path or GDAL name."""
    name: str
    """As the user named it, for messages."""
    rect: Rect
    """The part of the mosaic grid that it covers (the box around it, when rotated against the grid)."""
    layer: int
    """Number of its layer in :attr:`geoseg.mosaic.Mosaic.layers`."""
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


Part = tuple[np.ndarray | None, np.ndarray, tuple[ReadProblem, ...]]
"""Values (3, rows, columns) or None, validity (rows, columns), problems."""


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


@dataclass(frozen=True, slots=True)
class _Opened:
    dataset: DatasetReader
    palette: np.ndarray | None


_NETWORKS = ":".join(f"/vsi{name}/" for name in ("curl", "s3", "gs", "az", "adls", "oss", "swift", "webhdfs"))

_warnings_lock = threading.Lock()
_local = threading.local()


def close_files() -> None:
    """Close the files that this thread keeps open."""
    for opened in _open_files().values():
        opened.dataset.close()
    _open_files().clear()


class _Files(OrderedDict[tuple[Any, ...], _Opened]):
    """What a thread has open, the file unused for longest first."""


_every: WeakValueDictionary[int, _Files] = WeakValueDictionary()


def _open_files() -> _Files:
    if not hasattr(_local, "files"):
        _local.files = _Files()
        _every[id(_local.files)] = _local.files
    files: _Files = _local.files
    return files


@atexit.register
def _close_all() -> None:
    # rasterio complains of files that are still open when the interpreter has gone.
    for files in list(_every.values()):
        for opened in list(files.values()):
            opened.dataset.close()


def is_remote(path: str) -> bool:
    """Say whether a path or GDAL name leads over a network."""
    # /vsizip//vsicurl/… is remote, too; /vsizip//data/a.zip is not.
    return bool(re.search(r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)", path)) or bool(
        re.match(r"(https?|s3|gs|az|ftp)://", path)
    )


def open_dataset(path: str) -> DatasetReader:
    """Open a file with the options that reading it faithfully takes; raises what rasterio raises."""
    # With more threads GDAL (3.10) gives out a block that it failed to read as zeros once the window around it failed.
    options: dict[str, Any] = {"GDAL_NUM_THREADS": 1}
    # Side files are looked for by their names: listing a folder of 10 000 files for each of them doubles the time of
    # opening it, and one listing of a bucket can cost more than the pixels. Buckets have no side files.
    options["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR" if is_remote(path) else "TRUE"
    if is_remote(path):
        # GDAL otherwise remembers pixels, and that a file is missing, for as long as the process lives.
        options["CPL_VSIL_CURL_NON_CACHED"] = _NETWORKS
    with rasterio.Env(**options):
        return rasterio.open(path)


def _opened(source: Source) -> _Opened:
    """Return the open file of this thread, opening it and closing the one unused for longest as needed."""
    files = _open_files()
    key = (source.path, source.size, source.stamp)
    if key in files:
        files.move_to_end(key)
        return files[key]
    # An earlier state of the file keeps its bytes in GDAL's cache while it is open.
    for other in [other for other in files if other[0] == source.path]:
        files.pop(other).dataset.close()
    # Without georeference there is one file only, so that a lock costs nothing.
    dataset = open_dataset(source.path) if source.located else quietly(open_dataset, source.path)
    opened = _Opened(dataset, _palette(dataset) if source.palette else None)
    files[key] = opened
    while len(files) > OPEN_FILES:
        files.popitem(last=False)[1].dataset.close()
    return opened


def quietly(opening: Callable[..., DatasetReader], path: str | Path, **options: Any) -> DatasetReader:
    """Return what ``opening`` makes of a path, without a warning that it has no georeference, which was told before."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return opening(path, **options)


def _palette(dataset: DatasetReader) -> np.ndarray:
    """Return the colour table as (3, entries) of uint8."""
    table = np.zeros((3, np.iinfo(dataset.dtypes[0]).max + 1), np.uint8)
    for index, colour in dataset.colormap(1).items():
        table[:, index] = colour[:3]
    return table


def words(error: BaseException) -> str:
    """Return the innermost message of an error in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or str(error) or type(error).__name__
    text = " ".join(str(text).split())
    return text if len(text) <= 200 else text[:199] + "…"


def read_side_by_side(members: Iterable[tuple[Source, Rect]], rect: Rect, dtype: Any, values: bool = True) -> Part:
    """Read ``rect`` of the pixels that files share; where they overlap, the earlier one wins.

    Args:
        members: the files that meet ``rect``, in order, each with the rectangle common to both.
        rect: in the pixels of the files' layer (:attr:`Source.native`).
        dtype: of the values.
        values: False reads the validity only.
    """
    members = list(members)
    if len(members) == 1 and members[0][1] == rect and members[0][0].dtype == str(np.dtype(dtype)):
        return _read_native(members[0][0], _local_rect(members[0][0], rect), values)
    valid = np.zeros(rect.shape, bool)
    array = nothing(dtype, rect, values)
    problems: list[ReadProblem] = []
    for source, common in members:
        rows, cols = common.slices(rect)
        if valid[rows, cols].all():
            continue
        part, has, lost = _read_native(source, _local_rect(source, common), values)
        problems.extend(lost)
        if array is not None and part is not None:
            np.copyto(array[:, rows, cols], part, where=has & ~valid[rows, cols])
        valid[rows, cols] |= has
    return array, valid, tuple(problems)


def is_blank(source: Source, rect: Rect) -> bool:
    """Say whether a rectangle of a file's layer surely has no data in it, without reading pixels.

    Tiles that a GeoTIFF does not hold, as in the sea around an island, are known from its directory; they read as
    nodata (and its alpha as 0). Other files, and those that cannot be opened, give False.
    """
    if source.all_valid or source.alpha is not None or is_remote(source.path):
        return False
    try:
        dataset = _opened(source).dataset
    except (*READ_ERRORS, OSError):
        return False
    bands = (1,) if source.palette else source.bands
    flags = {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}
    clear = flags == {MaskFlags.nodata} or (MaskFlags.alpha in flags and dataset.nodata is None)
    if dataset.driver != "GTiff" or not clear:
        return False
    if MaskFlags.alpha in flags:
        bands = (*bands, dataset.count)  # GDAL takes the last band for alpha only
    if dataset.interleaving == Interleaving.pixel:
        bands = bands[:1]
    local = _local_rect(source, rect)
    rows, cols = dataset.block_shapes[bands[0] - 1]
    return not any(
        dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
        for band in set(bands)
        for row in range(local.row0 // rows, -(-local.row1 // rows))
        for col in range(local.col0 // cols, -(-local.col1 // cols))
    )


def _local_rect(source: Source, rect: Rect) -> Rect:
    """Return a rectangle of the layer's pixels in the file's own."""
    row, col = source.native.row0, source.native.col0
    return Rect(rect.row0 - row, rect.col0 - col, rect.row1 - row, rect.col1 - col)


def _read_native(source: Source, rect: Rect, values: bool = True) -> Part:
    """Read a rectangle of the file's own pixels; only blocks that cannot be read are lost."""
    try:
        opened = _opened(source)
    except (*READ_ERRORS, OSError) as error:
        problem = ReadProblem(source.name, None, words(error))
        return nothing(source.dtype, rect, values), np.zeros(rect.shape, bool), (problem,)
    try:
        return *_read_once(opened, source, rect, values), ()
    except READ_ERRORS:
        return _read_by_blocks(opened, source, rect, values)


def nothing(dtype: Any, rect: Rect, values: bool) -> np.ndarray | None:
    """Return values of nothing but invalid pixels, or None when no values are wanted."""
    return np.zeros((3, *rect.shape), dtype) if values else None


def _read_once(opened: _Opened, source: Source, rect: Rect, values: bool) -> tuple[np.ndarray | None, np.ndarray]:
    dataset, window = opened.dataset, rect.window
    if values and (absent := _nodata_of(opened, source)) is not None:
        array = dataset.read(list(source.bands), window=window)
        valid = array[0] != absent[0]
        for band, value in zip(array[1:], absent[1:], strict=True):
            valid |= band != value
        _blacken(array, valid)
        return array, valid
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
    _blacken(array, valid)
    return (array if values else None), valid


def _blacken(array: np.ndarray, valid: np.ndarray) -> None:
    """Make invalid pixels 0."""
    if not valid.all():
        # Not by index, which would have 16 bytes for each of them.
        np.copyto(array, array.dtype.type(0), where=~valid)


def _nodata_of(opened: _Opened, source: Source) -> list[int] | None:
    """Return each band's nodata where that alone makes a file's mask, which then need not be read besides the bands."""
    dataset = opened.dataset
    if opened.palette is not None or source.alpha is not None or sorted(source.bands) != list(dataset.indexes):
        return None
    if any(flags != [MaskFlags.nodata] for flags in dataset.mask_flag_enums):
        return None
    found = [dataset.nodatavals[band - 1] for band in source.bands]
    kind: Any = np.dtype(source.dtype)
    if kind.kind not in "iu" or kind.itemsize > 4:
        return None
    known = all(value == int(value) and np.iinfo(kind).min <= value <= np.iinfo(kind).max for value in found)
    return [int(value) for value in found] if known else None


def _read_by_blocks(opened: _Opened, source: Source, rect: Rect, values: bool) -> Part:
    """Read block by native block, so that what is lost depends on the file and not on the window."""
    array, valid = nothing(source.dtype, rect, values), np.zeros(rect.shape, bool)
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
                problems.append(ReadProblem(source.name, (row, col), words(error)))
                continue
            inside, here = common.slices(probe), common.slices(rect)
            valid[here] = part_valid[inside]
            if array is not None and part is not None:
                array[:, here[0], here[1]] = part[:, inside[0], inside[1]]
    return array, valid, tuple(problems)
