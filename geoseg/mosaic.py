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

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.features import rasterize

from geoseg.aoi import read_aoi
from geoseg.errors import InputError, SettingError
from geoseg.inputs import InputProblem, expand_inputs, read_headers, sort_out
from geoseg.layout import Layer, ground_size, place, scaled
from geoseg.raster import OPEN_FILES, Part, ReadProblem, Source, is_blank, read_side_by_side
from geoseg.tiling import Rect
from geoseg.warp import Target, warp


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
    def _target(self) -> Target:
        return Target(self.shape, self.transform, self.wkt, self.dtype, self.resampling)

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

    def _read_part(self, number: int, part: Rect, values: bool = True) -> Part:
        def read(rect: Rect, values: bool) -> Part:
            return read_side_by_side(self.members_in(number, rect), rect, self.dtype, values)

        layer = self.layers[number]
        # An aligned layer has the mosaic's own pixels, from the mosaic's first on.
        return read(part, values) if layer.aligned else warp(layer, read, self._target, part, values)

    def read(self, rect: Rect) -> Pixels:
        """Read a rectangle of the grid.

        Raises:
            SettingError: ``rect`` passes the grid's edge (see :meth:`read_padded`).
        """
        if not self.extent.contains(rect):
            raise SettingError(f"{rect} lies outside the mosaic of {self.shape} px")
        layers = list(self.layers_in(rect))
        if len(layers) == 1 and layers[0][1] == rect and self.layers[layers[0][0]].aligned:
            array, has, lost = self._read_part(layers[0][0], rect)
            if array is not None:  # already 0 where invalid
                return Pixels(array, has, rect, tuple(dict.fromkeys(lost)))
        values = np.zeros((3, *rect.shape), self.dtype)
        valid = np.zeros(rect.shape, bool)
        problems: list[ReadProblem] = []
        for number, part in layers:
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
        # Most of it is copied as it is; of the rest one axis after the other, as whole rows are copied fastest.
        inside = self.extent & rect
        core = None if inside is None else (inside.slices(rect), inside.slices(inner.rect))
        rows, cols = rows - row0, cols - col0
        values, valid = (_mirrored(array, rows, cols, core) for array in (inner.values, inner.valid))
        return Pixels(values, valid, rect, inner.problems)

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

    def is_blank(self, rect: Rect) -> bool:
        """Say whether ``rect`` surely has no data in the area of interest; reads no pixels.

        Quick enough to ask for every block of a mosaic before any work. Files are looked into only if they are few.
        """
        if self.aoi is not None and not len(self._aoi_index.query(_box(rect), predicate="intersects")):
            return True
        few = len(self.sources) <= OPEN_FILES
        for number, part in self.layers_in(rect):
            if not (few and self.layers[number].aligned):
                return False
            if not all(is_blank(source, common) for source, common in self.members_in(number, part)):
                return False
        return True

    def has_data(self, rect: Rect) -> bool:
        """Say whether any pixel of ``rect`` is valid and inside the area of interest.

        Reads masks only where headers do not tell. Where a mask cannot be read the answer is yes, so that
        :meth:`read` comes to report it.
        """
        if self.is_blank(rect):
            return False
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
        inputs: files, folders, globs and GDAL names (see :func:`geoseg.inputs.expand_inputs`); earlier ones win where
            they overlap.
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
    headers, problems = read_headers(names, bands)
    headers = sort_out(headers, problems)
    if headers:
        placed = place(headers, headers[0].affine, problems)
        affine = scaled(placed, gsd) if gsd is not None else placed.affine
        if affine != placed.affine:
            placed = place(headers, affine, problems)
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


def _mirrored(
    array: np.ndarray, rows: np.ndarray, cols: np.ndarray, core: tuple[tuple[slice, slice], tuple[slice, slice]] | None
) -> np.ndarray:
    """Return ``array[..., rows[:, None], cols]``; ``core`` says where a part of it lies that is only shifted."""
    if core is None:
        return array.take(rows, axis=-2).take(cols, axis=-1)
    (down, right), source = core
    found = np.empty((*array.shape[:-2], len(rows), len(cols)), array.dtype)
    found[..., down, right] = array[..., source[0], source[1]]
    for beside in (slice(right.start), slice(right.stop, None)):
        found[..., down, beside] = array[..., source[0], :].take(cols[beside], axis=-1)
    for beyond in (slice(down.start), slice(down.stop, None)):
        found[..., beyond, :] = array.take(rows[beyond], axis=-2).take(cols, axis=-1)
    return found
