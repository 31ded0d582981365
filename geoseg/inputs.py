"""What a user names, as raster files: found in folders, and asked for what they say about themselves."""

from __future__ import annotations

import glob
import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS as RasterioCRS  # noqa: N811
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from geoseg.errors import InputError
from geoseg.processes import batched, how_many, side_by_side
from geoseg.raster import READ_ERRORS, is_remote, open_dataset, words

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("tif", "tiff", "gtiff", "vrt", "jp2", "j2k", "png", "jpg", "jpeg", "img", "asc", "bil", "bip", "bsq"),
        *("ecw", "sid", "kea", "dem", "dt0", "dt1", "dt2", "ntf", "nitf", "webp", "bmp", "mbtiles"),
    )
)
"""What counts as a raster in a folder (a .gpkg is more often polygons, a .hdr is a side file)."""


_BESIDE = (".aux.xml", ".msk", ".AUX.XML", ".MSK")
_WORLD = (".tfw", ".tifw", ".tiffw", ".wld", ".tab", ".TFW", ".TIFW", ".TIFFW", ".WLD", ".TAB")
"""Files beside a GeoTIFF that say where it lies or which pixels are valid: endings after its name, and in place of its
own."""


MANY, CHUNK = 1000, 200
"""Files that several processes are started for, and how many of them each opens at a time. GDAL takes a millisecond and
a half for a file, of which threads can share next to nothing."""


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
class Header:
    """What one file says about itself."""

    name: str
    """As the user named it."""
    path: str
    """Absolute path or GDAL name."""
    shape: tuple[int, int]
    """Rows and columns."""
    affine: Affine
    """Pixel (column, row) to coordinates."""
    crs: RasterioCRS | None
    """None where the file names none, or has no georeference."""
    located: bool
    """False: the file has no georeference."""
    bands: tuple[int, int, int]
    """This and all below: see :class:`geoseg.raster.Source`."""
    palette: bool
    dtype: str
    alpha: int | None
    all_valid: bool
    size: int | None
    stamp: str | None


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


def read_headers(names: Sequence[str], bands: tuple[int, int, int] | None) -> tuple[list[Header], list[InputProblem]]:
    """Open every file once; return what they say about themselves, and those that cannot be used, each in order.

    ``bands`` are three bands counted from 1; by default the first three that are not alpha, a palette's colours, or the
    only band three times.
    """
    processes = how_many() if len(names) >= MANY else 1
    chunks = [names] if processes < 2 else list(batched(names, CHUNK))
    answers = [answer for some in side_by_side(partial(_inspected, bands=bands), chunks, processes) for answer in some]
    headers = [answer for answer in answers if isinstance(answer, Header)]
    return headers, [answer for answer in answers if isinstance(answer, InputProblem)]


def _inspected(names: Sequence[str], bands: tuple[int, int, int] | None) -> list[Header | InputProblem]:
    """Return what some files say about themselves."""
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(8, len(names)), "headers") as pool,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        answers = list(pool.map(lambda name: _inspect(name, bands), names))
    # One object for each reference system: between processes each object travels as text, to be parsed again.
    same: dict[str, RasterioCRS] = {}
    return [
        replace(answer, crs=same.setdefault(answer.crs.to_wkt(), answer.crs))
        if isinstance(answer, Header) and answer.crs is not None
        else answer
        for answer in answers
    ]


def sort_out(headers: list[Header], problems: list[InputProblem]) -> list[Header]:
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


def _inspect(name: str, bands: tuple[int, int, int] | None) -> Header | InputProblem:
    path = name if _is_gdal_name(name) else os.path.abspath(name)
    try:
        with open_dataset(path) as dataset:
            return _header(name, path, dataset, bands)
    except (RasterioError, *READ_ERRORS, CRSError, OSError, UnicodeDecodeError) as error:
        return InputProblem(name, f"cannot be opened as a raster: {words(error)}")


def _header(name: str, path: str, dataset: DatasetReader, bands: tuple[int, int, int] | None) -> Header | InputProblem:
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
    return Header(
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
    if is_remote(path):
        return _remote_state(path)
    archive = re.match(r"/vsi(?:zip|tar|gzip|7z|rar)/+(.*?\.(?:zip|tar|tgz|gz|7z|rar))", path)
    if archive:
        files = ["/" + archive[1], archive[1]]
    elif dataset.driver == "GTiff":
        # GDAL's own list takes as long as opening the file, for looking after metadata of a dozen vendors.
        stem = os.path.splitext(path)[0]
        files = [path, *(path + ending for ending in _BESIDE), *(stem + ending for ending in _WORLD)]
    else:
        files = [path, *dataset.files]
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
