"""Measure a prediction against a reference: masks, probabilities or polygons on either side.

Everything is compared on one pixel grid, that of the reference where it is a raster, else that of the prediction, else
(polygons on both sides) one of ``gsd`` metres. Polygons cover the pixels whose centres lie inside. Windows
bound the memory, and the result does not depend on them.

Pixels count where both sides have data: by nodata, alpha or mask as the reader says, by the imagery ``X_rgb.tif``
beside a reference ``X_mask.tif``, and inside an area of interest if one is given. See :mod:`geoseg.metrics`
for the numbers, and :meth:`geoseg.metrics.Boundary.of` for what invalid pixels mean to the boundary IoU.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import CRSError, ProjError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from geoseg.aoi import apply_affine, read_aoi
from geoseg.errors import InputError, SettingError
from geoseg.metrics import (
    MEASURES,
    THRESHOLDS,
    Boundary,
    Confusion,
    Score,
    ThresholdCurve,
    boundary_distance,
    check_probability,
    known,
    reaches,
)
from geoseg.mosaic import READ_ERRORS, SUFFIXES, gdal_env, ground_size
from geoseg.tiling import Rect

if TYPE_CHECKING:
    from geoseg.progress import Progress

Kind = Literal["auto", "mask", "probability"]
KINDS: tuple[Kind, ...] = get_args(Kind)

VECTOR_SUFFIXES = frozenset(
    (".gpkg", ".geojson", ".json", ".fgb", ".shp", ".parquet", ".geoparquet", ".kml", ".gml", ".sqlite")
)
"""What is opened as polygons; a GeoPackage without a layer of polygons as a raster."""

_TITLES = ("IoU", "accuracy", "precision", "recall", "F1", "boundary IoU")
_DEFAULT_THRESHOLD = 0.5
_SAME = 0.01
"""Grids whose corners agree within this many pixels are one."""
_LOCAL_CRS = 'LOCAL_CS["pixels",UNIT["metre",1]]'
_Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
_IMAGERY = re.compile(r"[_-](rgb|image|img)$", re.IGNORECASE)
_ROLE = re.compile(
    r"[_-](rgb|image|img|mask|gt|truth|reference|labels?|pred|predicted|prediction|prob|probability"
    r"|buildings?|footprints?)$",
    re.IGNORECASE,
)
_CITY = re.compile(r"([A-Za-z](?:[A-Za-z-]*[A-Za-z])?)-?\d+")


# --- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """One pair of files, and how they compare."""

    name: str
    """The stem both share, without ``_mask`` and its like."""
    predicted: str
    """Path."""
    reference: str
    """Path."""
    shape: tuple[int, int]
    """Rows and columns compared, invalid pixels included."""
    boundary_px: int
    """Distance of the boundary IoU, pixels."""
    score: Score
    """The counts."""
    curve: ThresholdCurve | None = None
    """For a predicted probability."""

    @property
    def city(self) -> str | None:
        """The city, of a tile that is named as Inria's are (``austin1``, ``tyrol-w12``)."""
        match = _CITY.fullmatch(self.name)
        return match[1] if match else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the curve for JSON."""
        return {
            "predicted": self.predicted,
            "reference": self.reference,
            "city": self.city,
            "shape": list(self.shape),
            "boundary_px": self.boundary_px,
            **self.score.as_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """All tiles, and what follows from them."""

    tiles: tuple[Tile, ...]
    """In the order of their names."""
    threshold: float | None
    """From which a predicted probability counts as building; None when only masks or polygons were predicted."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """Where the curve is shown and the best threshold sought."""
    notes: tuple[str, ...] = field(default=())
    """What was assumed or left out, in sentences."""

    @property
    def per_tile(self) -> dict[str, Score]:
        """Score by tile."""
        return {tile.name: tile.score for tile in self.tiles}

    @cached_property
    def per_city(self) -> dict[str, Score]:
        """Score by city, counts summed over its tiles; tiles not named as Inria's are in none."""
        cities: dict[str, Score] = {}
        for tile in self.tiles:
            if tile.city is not None:
                cities[tile.city] = cities.get(tile.city, Score()) + tile.score
        return dict(sorted(cities.items()))

    @cached_property
    def total(self) -> Score:
        """Score of all tiles, counts summed as the Inria benchmark does."""
        return reduce(add, (tile.score for tile in self.tiles), Score())

    @cached_property
    def curve(self) -> ThresholdCurve | None:
        """Over all tiles; None unless each prediction is a probability."""
        curves = [tile.curve for tile in self.tiles if tile.curve is not None]
        return reduce(add, curves) if curves and len(curves) == len(self.tiles) else None

    @property
    def best_threshold(self) -> float | None:
        """The one of ``thresholds`` with the highest IoU over all tiles, if there is a curve."""
        return self.curve.best(self.thresholds)[0] if self.curve else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        points = self.curve.points(self.thresholds) if self.curve else ()
        return {
            "threshold": self.threshold,
            "best_threshold": self.best_threshold,
            "total": self.total.as_dict(),
            "per_city": {name: score.as_dict() for name, score in self.per_city.items()},
            "per_tile": {tile.name: tile.as_dict() for tile in self.tiles},
            "curve": [
                {"threshold": threshold, **{n: known(getattr(counts, n)) for n in MEASURES[:-1]}}
                for threshold, counts in points
            ]
            or None,
            "notes": list(self.notes),
        }

    def table(self) -> list[tuple[str, ...]]:
        """Return rows of text, the first the header: tiles (if several), cities, total."""
        rows = [(tile.name, tile.score) for tile in self.tiles] if len(self.tiles) > 1 else []
        rows += list(self.per_city.items())
        rows.append(("total", self.total))
        return [("", *_TITLES), *((name, *_figures([getattr(s, m) for m in MEASURES])) for name, s in rows)]

    def curve_table(self) -> list[tuple[str, ...]]:
        """Return rows of text, the first the header, for the threshold curve; empty without one."""
        if self.curve is None:
            return []
        points = self.curve.points(self.thresholds)
        return [
            ("threshold", *_TITLES[:-1]),
            *((f"{t:.2f}", *_figures([getattr(c, m) for m in MEASURES[:-1]])) for t, c in points),
        ]


def _figures(values: Sequence[float]) -> list[str]:
    return ["–" if math.isnan(value) else f"{value:.4f}" for value in values]


# --- what is asked for -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    threshold: float | None
    thresholds: tuple[float, ...]
    classes: tuple[int, ...] | None
    predicted_classes: tuple[int, ...] | None
    ignore: tuple[int, ...]
    predicted_as: Kind
    boundary_px: int | None
    boundary_m: float | None
    gsd: float | None
    aoi: str | Path | None
    window: int

    def __post_init__(self) -> None:
        for value in (*self.thresholds, *(() if self.threshold is None else (self.threshold,))):
            if not 0 < value <= 1:
                raise SettingError(f"a threshold lies above 0 and at most at 1, not at {value}")
        if not self.thresholds:
            raise SettingError("thresholds: give at least one")
        if self.predicted_as not in KINDS:
            raise SettingError(f"predicted_as is {self.predicted_as!r}; it must be one of {', '.join(KINDS)}")
        if self.boundary_px is not None and self.boundary_m is not None:
            raise SettingError("the boundary's distance is given in pixels and in metres; give one of the two")
        if self.boundary_px is not None and (self.boundary_px < 1 or self.boundary_px != int(self.boundary_px)):
            raise SettingError(f"boundary_px is {self.boundary_px}; it must be a whole number from 1")
        for name in ("boundary_m", "gsd"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"{name} is {value}; it must be a length in metres above 0")
        if self.window < 1:
            raise SettingError(f"window is {self.window} px; it must be at least 1")

    def distance(self, grid: GeoBox, rect: Rect) -> int:
        """Return the boundary's distance in pixels for the part ``rect`` of a grid."""
        if self.boundary_px is not None:
            return int(self.boundary_px)
        if self.boundary_m is None:
            return boundary_distance(rect.shape)
        size = ground_size(
            None if grid.crs is None else grid.crs.to_wkt(),
            grid.affine,
            (rect.col0 + rect.col1) / 2,
            (rect.row0 + rect.row1) / 2,
        )
        if size is None:
            raise SettingError(
                "boundary_m: the rasters have no CRS, so that a metre cannot be told in pixels; give boundary_px"
            )
        return max(1, round(self.boundary_m / math.sqrt(size[0] * size[1])))


@dataclass(frozen=True, slots=True)
class Pair:
    """Files that belong together."""

    name: str
    """What both are called, without ``_mask`` and its like."""
    predicted: Path
    """A raster or a vector file."""
    reference: Path
    """A raster or a vector file."""
    imagery: Path | None = None
    """The imagery beside the reference, whose validity counts as well."""


class _ApartError(InputError):
    """The two sides do not overlap."""


def evaluate(
    predicted: str | Path,
    reference: str | Path,
    *,
    threshold: float | None = None,
    thresholds: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
    predicted_classes: Sequence[int] | None = None,
    ignore: Sequence[int] = (),
    predicted_as: Kind = "auto",
    boundary_px: int | None = None,
    boundary_m: float | None = None,
    gsd: float | None = None,
    aoi: str | Path | None = None,
    window: int = 2048,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a prediction with a reference, file by file.

    Args:
        predicted: a raster or vector file, or a folder of them. A raster of floats or with a stored scale is a
            probability, any other one a mask.
        reference: likewise. Files of two folders are paired by stem (see :func:`pair_files`); a single file is
            compared with each file of a folder that it overlaps.
        threshold: probability from which a pixel is building; 0.5 unless given. Masks have none.
        thresholds: where to show the threshold curve; 0.05, 0.10 … 0.95 unless given.
        classes: values of a reference mask that mean building; by default the only value there is besides 0.
        predicted_classes: likewise of a predicted mask.
        ignore: values of a reference mask that mean "not labelled"; those pixels count in nothing.
        predicted_as: "mask" or "probability" overrules what the file looks like; integers without a scale
            then stand for 0 … the highest of their type.
        boundary_px: distance of the boundary IoU in pixels; by default 2 % of the diagonal of each tile, as
            published. On a raster of a whole town that is a wide band: better give one of the two.
        boundary_m: the same in metres on the ground.
        gsd: pixel size in metres on the ground, for polygons on both sides. Their common grid spans the extent of both,
            so that accuracy (background counts) depends on that extent.
        aoi: vector file; only pixels with their centre inside its polygons count.
        window: side of the windows in which rasters are read, pixels.
        progress: told of each tile.

    Raises:
        InputError: a file is missing, unreadable or holds something else than announced; nothing matches; sizes differ
            and there is no georeference to go by; the sides do not overlap.
        SettingError: an option is out of range, or ``gsd`` is needed.
    """
    settings = _Settings(
        threshold=threshold,
        thresholds=THRESHOLDS if thresholds is None else tuple(thresholds),
        classes=None if classes is None else tuple(classes),
        predicted_classes=None if predicted_classes is None else tuple(predicted_classes),
        ignore=tuple(ignore),
        predicted_as=predicted_as,
        boundary_px=boundary_px,
        boundary_m=boundary_m,
        gsd=gsd,
        aoi=aoi,
        window=window,
    )
    pairs, unpaired = pair_files(predicted, reference)
    one_of_many = len({pair.predicted for pair in pairs}) < len(pairs) or len({p.reference for p in pairs}) < len(pairs)
    remarks: dict[str, list[str]] = {}
    tiles: list[Tile] = []
    apart: list[_ApartError] = []
    if progress is not None:
        progress.stage("evaluating", len(pairs), pixels=True)
    with gdal_env():
        for pair in pairs:
            pixels = 0
            try:
                tile, found = _evaluate_pair(pair, settings)
            except _ApartError as error:
                # One file against a folder: that some tiles lie elsewhere is expected, that all do is not.
                if not one_of_many:
                    raise
                apart.append(error)
                found = ((pair.name, "left out, since the two sides do not overlap"),)
            else:
                tiles.append(tile)
                pixels = math.prod(tile.shape)
            for name, remark in found:
                remarks.setdefault(remark, []).append(name)
            if progress is not None:
                progress.advance(1, pixels=pixels)
    if not tiles:
        raise InputError(f"none of {len(pairs)} pairs overlap; the first: {apart[0]}")
    if not sum(tile.score.confusion.pixels for tile in tiles):
        raise InputError(f"{predicted}, {reference}: no pixel is valid on both sides, so there is nothing to compare")
    probable = any(tile.curve is not None for tile in tiles)
    return Evaluation(
        tiles=tuple(tiles),
        threshold=(_DEFAULT_THRESHOLD if threshold is None else threshold) if probable else None,
        thresholds=settings.thresholds,
        notes=(*unpaired, *(f"{_some(dict.fromkeys(names))}: {remark}" for remark, names in remarks.items())),
    )


# --- which files belong together ---------------------------------------------------------------------------------


def pair_files(predicted: str | Path, reference: str | Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Return the pairs of files to compare, by name, and notes on files without a partner.

    Two files are a pair whatever they are called. In folders (directly inside) those are a pair whose stems agree once
    a last ``_rgb``, ``_mask``, ``_gt``, ``_pred``, ``_probability`` or the like is taken off. A single file goes with
    each file of a folder. Imagery (``_rgb``, ``_image``, ``_img``) beside a label of the same stem is no label.

    Raises:
        InputError: something is missing, nothing matches, or a stem is there twice.
    """
    ours, theirs = _candidates(predicted), _candidates(reference)
    if isinstance(ours, Path):
        if isinstance(theirs, Path):
            return (_pair(_key(theirs), ours, theirs),), ()
        return tuple(_pair(key, ours, _only(key, files)) for key, files in theirs.items()), ()
    if isinstance(theirs, Path):
        return tuple(_pair(key, _only(key, files), theirs) for key, files in ours.items()), ()
    common = [key for key in theirs if key in ours]
    if not common:
        raise InputError(
            f"{predicted} holds {_some(ours)} and {reference} holds {_some(theirs)}: no stem is in both. "
            "Name files alike (austin1.tif with austin1.tif or austin1_mask.tif), or give two files"
        )
    notes = []
    for lonely, folder, where in (
        (set(theirs) - set(ours), reference, predicted),
        (set(ours) - set(theirs), predicted, reference),
    ):
        if lonely:
            notes.append(f"{folder}: {_some(sorted(lonely))} without a partner in {where}, left out")
    return tuple(_pair(key, _only(key, ours[key]), _only(key, theirs[key])) for key in common), tuple(notes)


def _candidates(where: str | Path) -> Path | dict[str, list[Path]]:
    """Return a file, or the files of a folder by stem."""
    path = Path(where)
    if str(where).startswith("/vsi") or path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{where}: no such file or folder")
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir(), key=lambda f: _natural(f.name)):
        known = file.suffix.lower() in SUFFIXES | VECTOR_SUFFIXES - {".json"}
        if known and file.is_file() and not file.name.startswith("."):
            found.setdefault(_key(file), []).append(file)
    if not found:
        raise InputError(f"{where}: no raster and no vector file in this folder")
    return found


def _only(key: str, files: list[Path]) -> Path:
    labels = [file for file in files if not _IMAGERY.search(file.stem)] or files
    if len(labels) > 1:
        names = " and ".join(file.name for file in labels)
        raise InputError(
            f"{labels[0].parent}: {names} all stand for {key!r}; name the one that is meant, or remove others"
        )
    return labels[0]


def _pair(name: str, predicted: Path, reference: Path) -> Pair:
    beside: list[Path] = []
    if _ROLE.search(reference.stem) and not _IMAGERY.search(reference.stem) and reference.parent.is_dir():
        beside = [
            file
            for file in sorted(reference.parent.glob(f"{_glob_safe(_key(reference))}[_-]*"))
            if file.suffix.lower() in SUFFIXES and _IMAGERY.search(file.stem) and _key(file) == _key(reference)
        ]
    return Pair(name, predicted, reference, beside[0] if beside else None)


def _glob_safe(text: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", text)


def _key(path: Path) -> str:
    return _ROLE.sub("", path.stem)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


# --- the two sides -----------------------------------------------------------------------------------------------


class _Side(Protocol):
    """A prediction or a reference on the common grid."""

    probability: bool
    """Whether values are probabilities, not a mask."""

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Return values (bool, or float32 probability) and validity (bool), (rows, columns)."""
        ...


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


class _RasterSide:
    """Values of a raster on the grid; warped ones come through two virtual rasters."""

    def __init__(self, coding: _Coding, values: DatasetReader, validity: DatasetReader, all_valid: bool) -> None:
        self.probability = coding.probability
        self._coding, self._values, self._validity, self._all_valid = coding, values, validity, all_valid
        self._positive: float | None = None

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        with _reading(self._coding.path):
            raw = self._values.read(1, window=rect.window)
            valid = (
                np.ones(rect.shape, bool) if self._all_valid else self._validity.read_masks(1, window=rect.window) > 0
            )
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


class _Raster:
    """An open raster, before it is known on which grid it is wanted."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        with _reading(path), warnings.catch_warnings():
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
        return _rect_around(*self._to(grid, x, y), grid)

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
        return bool(max(np.abs(there[0] - col).max(), np.abs(there[1] - row).max()) <= _SAME)

    def on(self, grid: GeoBox, kind: Kind, classes: Any, ignore: tuple[int, ...]) -> _RasterSide:
        """Return the values on ``grid``: as they are, by nearest neighbour (mask) or bilinear (probability)."""
        coding = _Coding.of(self.path, self.dataset, kind, classes, ignore)
        flags = self.dataset.mask_flag_enums[0]
        zero_nodata = flags == [MaskFlags.nodata] and self.dataset.nodata == 0
        if zero_nodata:
            self.notes.append((self.path.name, "0 is declared as no data, and read as background"))
        if self._fits(grid):
            if self.located == grid.affine.is_identity:
                self.notes.append((self.path.name, "only one side is georeferenced; compared pixel by pixel"))
            return _RasterSide(coding, self.dataset, self.dataset, zero_nodata)
        nearest = self._warped(grid, Resampling.nearest, zero_nodata)
        smooth = self._warped(grid, Resampling.bilinear, zero_nodata) if coding.probability else nearest
        return _RasterSide(coding, smooth, nearest, False)

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
        with _reading(self.path):
            return self._stack.enter_context(
                WarpedVRT(
                    self.dataset,
                    src_crs=source,
                    crs=target,
                    transform=grid.affine,
                    height=grid.shape[0],
                    width=grid.shape[1],
                    resampling=resampling,
                    tolerance=_SAME,
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


class _Layer:
    """Polygons of a vector file; on a grid, a mask.

    Files with a spatial index are read window by window; others (GeoJSON, GeoParquet) once and whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[tuple[str, str]] = []
        self.crs: pyproj.CRS | None
        self.bounds: _Box | None
        self._layer: str | None = None
        self._whole: np.ndarray | None = None
        with _polygons(path):
            if path.suffix.lower() in (".parquet", ".geoparquet"):
                self._open_parquet()
            else:
                self._open_gdal()

    def _open_parquet(self) -> None:
        import geopandas

        shapes = geopandas.read_parquet(self.path).geometry
        self.crs = _earthly(shapes.crs)
        self._whole = _only_polygons(self.path, shapes.to_numpy())
        self.bounds = tuple(shapely.total_bounds(self._whole).tolist()) if len(self._whole) else None

    def _open_gdal(self) -> None:
        import pyogrio

        self._layer = _polygon_layer(self.path)
        info = pyogrio.read_info(self.path, layer=self._layer, force_feature_count=True, force_total_bounds=True)
        self.crs = _earthly(info["crs"])
        self.bounds = tuple(info["total_bounds"]) if info["features"] and info["total_bounds"] else None
        if not info["capabilities"]["fast_spatial_filter"]:
            self._whole = self._read(None)

    def _read(self, box: _Box | None) -> np.ndarray:
        import pyogrio

        _meta, _fids, geometries, _fields = pyogrio.raw.read(self.path, layer=self._layer, columns=[], bbox=box)
        return _only_polygons(self.path, shapely.from_wkb(geometries))

    def within(self, box: _Box) -> np.ndarray:
        """Return the polygons whose extent meets ``box`` (left, bottom, right, top), in the file's CRS."""
        if self._whole is None:
            with _polygons(self.path):
                return self._read(box)
        found: np.ndarray = self._whole[np.sort(self._tree.query(shapely.box(*box)))]
        return found

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self._whole)

    def on(self, grid: GeoBox) -> _LayerSide:
        """Return the mask that the polygons make on ``grid``."""
        return _LayerSide(self, grid)


class _LayerSide:
    """Polygons rasterised window by window: building where a pixel's centre lies in one. Valid everywhere."""

    probability = False

    def __init__(self, layer: _Layer, grid: GeoBox) -> None:
        self._layer, self._grid = layer, grid
        self._there: pyproj.Transformer | None = None
        if layer.crs is not None and grid.crs is None:
            raise InputError(
                f"{layer.path} is in {layer.crs.name}, but the raster has no CRS to place it in; give polygons "
                "without CRS in the raster's own coordinates (of x = column, y = row when it has none)"
            )
        if layer.crs is None and grid.crs is not None:
            layer.notes.append((layer.path.name, "without CRS; its coordinates are taken to be in the raster's"))
        if layer.crs is not None and grid.crs is not None:
            target = pyproj.CRS.from_wkt(grid.crs.to_wkt())
            if not layer.crs.equals(target, ignore_axis_order=True):
                self._there = pyproj.Transformer.from_crs(layer.crs, target, always_xy=True)

    def footprint(self) -> Rect | None:
        """Return the part of the grid within the polygons' extent; all of it when there are no polygons."""
        if self._layer.bounds is None:
            return Rect(0, 0, *self._grid.shape)
        with _projecting(self._layer.path):
            box = self._layer.bounds
            if self._there is not None:
                box = self._there.transform_bounds(*box)
        x, y = shapely.get_coordinates(shapely.box(*box)).T
        return _rect_around(*apply_affine(~self._grid.affine, x, y), self._grid)

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Rasterise; see :class:`_Side`."""
        with _projecting(self._layer.path):
            shapes = self._layer.within(self._box(rect))
            shapes = shapely.transform(shapes, self._place) if len(shapes) else shapes
        mask = np.zeros(rect.shape, np.uint8)
        if len(shapes):
            # Moved by whole pixels, not by another affine, so that centres on an edge fall alike in every window. Parts
            # apart, since GDAL leaves out what two parts of one polygon share.
            shapes = shapely.get_parts(shapely.transform(shapes, lambda xy: xy - (rect.col0, rect.row0)))
            rasterize(shapes, out=mask, transform=Affine.identity(), default_value=1)
        return mask.view(bool), np.ones(rect.shape, bool)

    def _box(self, rect: Rect) -> _Box:
        corners = np.array([rect.col0 - 1, rect.col1 + 1]), np.array([rect.row0 - 1, rect.row1 + 1])
        x, y = apply_affine(self._grid.affine, *(a.ravel() for a in np.meshgrid(*corners)))
        box = float(x.min()), float(y.min()), float(x.max()), float(y.max())
        if self._there is None:
            return box
        left, bottom, right, top = self._there.transform_bounds(*box, direction="INVERSE")
        return left, bottom, right, top

    def _place(self, xy: np.ndarray) -> np.ndarray:
        x, y = xy.T
        if self._there is not None:
            x, y = self._there.transform(x, y, errcheck=True)
        return np.stack(apply_affine(~self._grid.affine, x, y), axis=1)


def _open_side(path: Path, stack: ExitStack) -> _Raster | _Layer:
    suffix = path.suffix.lower()
    if suffix in VECTOR_SUFFIXES and not (suffix == ".gpkg" and not _layers(path)):
        return _Layer(path)
    return _Raster(path, stack)


def _layers(path: Path) -> list[tuple[str, str]]:
    """Return name and geometry type of the layers that have geometry."""
    import pyogrio

    with _polygons(path):
        return [(str(name), str(kind)) for name, kind in pyogrio.list_layers(path) if kind is not None]


def _polygon_layer(path: Path) -> str:
    """Return the layer with the buildings: the only one with polygons, or the one of that name."""
    found = _layers(path)
    layers = [name for name, kind in found if "Point" not in kind and "Line" not in kind]
    if not layers:
        kinds = ", ".join(sorted({kind for _, kind in found})) or "no geometry"
        raise InputError(f"{path}: holds {kinds}; buildings are polygons")
    if len(layers) > 1 and "buildings" not in layers:
        raise InputError(f"{path}: holds the layers {', '.join(layers)}; keep one, or call the one meant 'buildings'")
    return "buildings" if "buildings" in layers else layers[0]


def _only_polygons(path: Path, shapes: np.ndarray) -> np.ndarray:
    shapes = shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
    polygons = shapes[np.isin(shapely.get_type_id(shapes), (3, 6))]
    if len(shapes) and not len(polygons):
        raise InputError(f"{path}: holds {shapes[0].geom_type}; buildings are polygons")
    found: np.ndarray = shapely.force_2d(polygons)
    return found


def _earthly(crs: Any) -> pyproj.CRS | None:
    """Return a CRS, None for an undefined Cartesian one as GeoPackage writes it."""
    if crs is None:
        return None
    known = pyproj.CRS.from_user_input(crs)
    return None if known.is_engineering else known


def _rect_around(x: np.ndarray, y: np.ndarray, grid: GeoBox) -> Rect | None:
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if not len(x) or not len(y):
        return None
    col0, col1 = math.floor(x.min() + _SAME), math.ceil(x.max() - _SAME)
    row0, row1 = math.floor(y.min() + _SAME), math.ceil(y.max() - _SAME)
    if row1 <= row0 or col1 <= col0:
        return None
    return Rect(row0, col0, row1, col1) & Rect(0, 0, *grid.shape)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (RasterioError, *READ_ERRORS) as error:
        raise InputError(f"{path}: cannot be read: {error.__cause__ or error}") from error


@contextmanager
def _polygons(path: Path) -> Iterator[None]:
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        yield
    except InputError:
        raise
    except (DataSourceError, DataLayerError, shapely.errors.GEOSException, CRSError, OSError, ValueError) as error:
        # pyarrow's and geopandas' errors about a broken file are ValueErrors.
        raise InputError(f"{path}: cannot be read as polygons: {error}") from error


@contextmanager
def _projecting(path: Path) -> Iterator[None]:
    try:
        yield
    except ProjError as error:
        raise InputError(f"{path}: cannot be brought to the CRS of the other side: {error}") from error


# --- one pair ----------------------------------------------------------------------------------------------------


def _evaluate_pair(pair: Pair, settings: _Settings) -> tuple[Tile, tuple[tuple[str, str], ...]]:
    with ExitStack() as stack:
        ours, theirs = _open_side(pair.predicted, stack), _open_side(pair.reference, stack)
        grid = _grid_of(ours, theirs, settings)
        predicted, reference, rect = _sides(ours, theirs, grid, settings)
        also_valid: list[_Validity] = []
        remarks = ours.notes + theirs.notes
        if pair.imagery is not None and not (imagery := _Raster(pair.imagery, stack)).all_valid:
            also_valid.append(_imagery_mask(imagery, pair.reference, grid))
            remarks.append((pair.imagery.name, "imagery beside the reference; where it is invalid, nothing counts"))
        if settings.aoi is not None:
            also_valid.append(_aoi_mask(settings.aoi, grid))
        distance = settings.distance(grid, rect)
        threshold = _DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
        score = Score()
        curve = ThresholdCurve() if predicted.probability else None
        for window in _windows(rect, settings.window):
            # The band of a pixel depends on what is within the distance, no further.
            seen = window.grow(distance, rect)
            inside = window.slices(seen)
            (found, valid), (true, there) = predicted.read(seen), reference.read(seen)
            valid = valid & there
            for mask in also_valid:
                valid &= mask(seen)
            if reference.probability:
                true = reaches(true, _DEFAULT_THRESHOLD)
            if curve is not None:
                curve += ThresholdCurve.of(found[inside], true[inside], valid[inside])
                found = reaches(found, threshold)
            score += Score(
                Confusion.of(found[inside], true[inside], valid[inside]),
                Boundary.of(found, true, valid, distance=distance, part=inside),
            )
    tile = Tile(pair.name, str(pair.predicted), str(pair.reference), rect.shape, distance, score, curve)
    return tile, tuple(remarks)


def _grid_of(ours: _Raster | _Layer, theirs: _Raster | _Layer, settings: _Settings) -> GeoBox:
    if isinstance(theirs, _Raster):
        return theirs.grid
    if isinstance(ours, _Raster):
        return ours.grid
    if settings.gsd is None:
        raise SettingError(
            f"{ours.path} and {theirs.path} are both polygons; give the pixel size in metres to compare them at (gsd)"
        )
    return _grid_for(ours, theirs, settings.gsd)


def _sides(
    ours: _Raster | _Layer, theirs: _Raster | _Layer, grid: GeoBox, settings: _Settings
) -> tuple[_Side, _Side, Rect]:
    """Return both sides on the grid, and the part of it to compare."""
    whole = Rect(0, 0, *grid.shape)
    rect: Rect | None = whole
    sides: list[_Side] = []
    for side, other in ((ours, theirs), (theirs, ours)):
        footprint: Rect | None
        if isinstance(side, _Layer):
            layer = side.on(grid)
            sides.append(layer)
            # Polygons say where buildings are, and by their absence where none are.
            footprint = whole if layer.footprint() is not None else None
        else:
            with _projecting(side.path):
                footprint = side.footprint(grid, other.path)
            if footprint is not None:
                sides.append(
                    side.on(grid, settings.predicted_as, settings.predicted_classes, ())
                    if side is ours
                    else side.on(grid, "auto", settings.classes, settings.ignore)
                )
        rect = rect & footprint if rect is not None and footprint is not None else None
        if rect is None:
            raise _ApartError(
                f"{ours.path} does not overlap {theirs.path}; check that both are in the CRS they say they are"
            )
    return sides[0], sides[1], rect  # type: ignore[return-value]  # None has raised


_Validity = Callable[[Rect], np.ndarray]
"""Returns what is valid in a rectangle of the grid, bool."""


def _imagery_mask(raster: _Raster, reference: Path, grid: GeoBox) -> _Validity:
    with _projecting(raster.path):
        raster.footprint(grid, reference)
    dataset = raster.data(grid)

    def valid(rect: Rect) -> np.ndarray:
        with _reading(raster.path):
            mask: np.ndarray = dataset.dataset_mask(window=rect.window) > 0
        return mask

    return valid


def _aoi_mask(path: str | Path, grid: GeoBox) -> _Validity:
    shapes = shapely.from_wkb(read_aoi(path, grid))

    def inside(rect: Rect) -> np.ndarray:
        mask = np.zeros(rect.shape, np.uint8)
        moved = shapely.transform(shapes, lambda xy: xy - (rect.col0, rect.row0))
        rasterize(moved, out=mask, transform=Affine.identity(), default_value=1)
        return mask.view(bool)

    return inside


def _windows(rect: Rect, side: int) -> Iterator[Rect]:
    for row in range(rect.row0, rect.row1, side):
        for col in range(rect.col0, rect.col1, side):
            yield Rect(row, col, min(row + side, rect.row1), min(col + side, rect.col1))


def _grid_for(ours: _Layer, theirs: _Layer, gsd: float) -> GeoBox:
    """Return a grid of ``gsd`` metres on the ground around two layers, in the reference's CRS if that is projected."""
    if (ours.crs is None) != (theirs.crs is None):
        bare = ours.path if ours.crs is None else theirs.path
        raise InputError(f"{bare} has no CRS, the other side has one; assign it to relate them")
    found = [(layer, layer.bounds) for layer in (theirs, ours) if layer.bounds is not None]
    if not found:
        raise InputError(f"{ours.path} and {theirs.path}: no polygons in either, so there is nothing to compare")
    crs = theirs.crs
    if crs is not None and not crs.is_projected:
        crs = _utm(*found[0])
    boxes: list[_Box] = []
    for layer, box in found:
        with _projecting(layer.path):
            if layer.crs is not None and crs is not None and layer.crs != crs:
                box = pyproj.Transformer.from_crs(layer.crs, crs, always_xy=True).transform_bounds(*box)
        boxes.append(box)
    if len(boxes) == 2 and not shapely.box(*boxes[0]).intersects(shapely.box(*boxes[1])):
        raise _ApartError(
            f"{ours.path} does not overlap {theirs.path}; check that both are in the CRS they say they are"
        )
    left, bottom = np.min(boxes, axis=0)[:2]
    right, top = np.max(boxes, axis=0)[2:]
    wkt = None if crs is None else crs.to_wkt()
    middle = Affine.translation((left + right) / 2, (bottom + top) / 2)
    metres_x, metres_y = ground_size(wkt, middle, 0, 0) or (1.0, 1.0)
    step_x, step_y = gsd / metres_x, gsd / metres_y
    # Lines at whole multiples of the step, so that the same place has the same pixels whatever the extent.
    col0, col1 = math.floor(left / step_x), max(math.ceil(right / step_x), math.floor(left / step_x) + 1)
    row0, row1 = math.floor(-top / step_y), max(math.ceil(-bottom / step_y), math.floor(-top / step_y) + 1)
    affine = Affine(step_x, 0, col0 * step_x, 0, -step_y, -row0 * step_y)
    return GeoBox((row1 - row0, col1 - col0), affine, wkt)


def _utm(layer: _Layer, box: _Box) -> pyproj.CRS:
    with _projecting(layer.path):
        west, south, east, north = pyproj.Transformer.from_crs(layer.crs, 4326, always_xy=True).transform_bounds(*box)
    lon, lat = (west + east) / 2, (south + north) / 2
    zones = query_utm_crs_info(datum_name="WGS 84", area_of_interest=AreaOfInterest(lon, lat, lon, lat))
    if not zones:
        raise InputError(f"{layer.path}: no UTM zone at {lon:.3f}, {lat:.3f}; give polygons in a projected CRS")
    return pyproj.CRS.from_epsg(zones[0].code)
