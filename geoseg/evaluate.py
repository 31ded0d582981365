"""Measure a prediction against a reference: masks, probabilities or polygons on either side.

Everything is compared on one pixel grid, that of the reference where it is a raster, else that of the prediction, else
(polygons on both sides) one of ``gsd`` metres. Polygons cover the pixels whose centres lie inside. Windows
bound the memory, and the result does not depend on them.

Pixels count where both sides have data: by nodata, alpha or mask as the reader says, by the imagery ``X_rgb.tif``
beside a reference ``X_mask.tif``, and inside an area of interest if one is given. See :mod:`geoseg.metrics`
for the numbers, and :meth:`geoseg.metrics.Boundary.of` for what invalid pixels mean to the boundary IoU.

Where polygons were predicted, buildings and their outlines are compared as well, in metres on the ground; see
:mod:`geoseg.polygon_metrics` for the numbers. Both sides are held for that, file by file.

- Polygons on both sides: nothing is cut. A building counts if a point of it (that of ``point_on_surface``) lies in the
  area of interest and where imagery beside the reference is valid; so does the prediction that matches it, wherever
  it lies, and a prediction without partner by its own point.
- A raster as reference: its buildings are traced as ``geoseg polygonize`` does (connected pixels, outlines straightened
  within a pixel), so that distances below a pixel mean little. Since the raster's edge and invalid pixels
  cut its buildings, the prediction is cut there too, and what remains is a building; the cut
  is then part of both outlines. The area of interest decides as above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from geoseg.aoi import read_aoi
from geoseg.errors import InputError, SettingError
from geoseg.evaluation import Evaluation, Tile
from geoseg.layout import ground_size
from geoseg.metrics import THRESHOLDS, Boundary, Confusion, Score, ThresholdCurve, boundary_distance, reaches
from geoseg.pairing import Pair, pair_files, some
from geoseg.polygon_metrics import BOUNDARY, SPACING, Buildings, PolygonScore, compare
from geoseg.polygon_side import (
    SCORE,
    Layer,
    LayerSide,
    burn,
    cropped,
    grid_around,
    is_vector,
    to_ground,
    traced,
)
from geoseg.raster import gdal_env
from geoseg.raster_side import KINDS, Kind, Raster, reading
from geoseg.sides import ApartError, Side, projecting
from geoseg.tiling import Rect

if TYPE_CHECKING:
    from geoseg.progress import Progress

_DEFAULT_THRESHOLD = 0.5
_BOUNDARY_PX = 3
"""Of the boundary IoU of outlines where there are no metres."""


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
    polygons: bool

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
        size = _pixel(grid, rect)
        if size is None:
            raise SettingError(
                "boundary_m: the rasters have no CRS, so that a metre cannot be told in pixels; give boundary_px"
            )
        return max(1, round(self.boundary_m / size))

    def lengths(self, grid: GeoBox, rect: Rect) -> tuple[float, float]:
        """Return the spacing of points along outlines and the distance of their boundary IoU, metres if there are."""
        size = _pixel(grid, rect)
        pixel = math.sqrt(abs(grid.affine.determinant)) if size is None else size
        spacing, boundary = (pixel, _BOUNDARY_PX * pixel) if size is None else (SPACING, BOUNDARY)
        if self.boundary_px is not None:
            boundary = self.boundary_px * pixel
        return spacing, self.boundary_m or boundary


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
    polygons: bool = True,
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
            published. On a raster of a whole town that is a wide band: better give one of the two. That of outlines
            is 1 m unless given.
        boundary_m: the same in metres on the ground.
        gsd: pixel size in metres on the ground, for polygons on both sides. Their common grid spans the extent of both,
            so that accuracy (background counts) depends on that extent.
        aoi: vector file; only pixels with their centre inside its polygons count.
        window: side of the windows in which rasters are read, pixels.
        polygons: where polygons were predicted, compare buildings and outlines too. All buildings of a pair of files
            are held for that, some 2 kB each.
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
        polygons=polygons,
    )
    pairs, unpaired = pair_files(predicted, reference)
    one_of_many = len({pair.predicted for pair in pairs}) < len(pairs) or len({p.reference for p in pairs}) < len(pairs)
    remarks: dict[str, list[str]] = {}
    tiles: list[Tile] = []
    apart: list[ApartError] = []
    if progress is not None:
        progress.stage("evaluating", len(pairs))
    with gdal_env():
        for pair in pairs:
            try:
                tile, found = _evaluate_pair(pair, settings)
            except ApartError as error:
                # One file against a folder: that some tiles lie elsewhere is expected, that all do is not.
                if not one_of_many:
                    raise
                apart.append(error)
                found = ((pair.name, "left out, since the two sides do not overlap"),)
            else:
                tiles.append(tile)
            for name, remark in found:
                remarks.setdefault(remark, []).append(name)
            if progress is not None:
                progress.advance()
    if not tiles:
        raise InputError(f"none of {len(pairs)} pairs overlap; the first: {apart[0]}")
    if not sum(tile.score.confusion.pixels for tile in tiles):
        raise InputError(f"{predicted}, {reference}: no pixel is valid on both sides, so there is nothing to compare")
    probable = any(tile.curve is not None for tile in tiles)
    return Evaluation(
        tiles=tuple(tiles),
        threshold=(_DEFAULT_THRESHOLD if threshold is None else threshold) if probable else None,
        thresholds=settings.thresholds,
        notes=(*unpaired, *(f"{some(dict.fromkeys(names))}: {remark}" for remark, names in remarks.items())),
    )


def _evaluate_pair(pair: Pair, settings: _Settings) -> tuple[Tile, tuple[tuple[str, str], ...]]:
    with ExitStack() as stack:
        ours, theirs = _open_side(pair.predicted, stack), _open_side(pair.reference, stack)
        grid = _grid_of(ours, theirs, settings)
        predicted, reference, rect = _sides(ours, theirs, grid, settings)
        also_valid: list[_Validity] = []
        remarks: list[tuple[str, str]] = []
        if pair.imagery is not None and not (imagery := Raster(pair.imagery, stack)).all_valid:
            also_valid.append(_imagery_mask(imagery, pair.reference, grid))
            remarks.append((pair.imagery.name, "imagery beside the reference; where it is invalid, nothing counts"))
        area: np.ndarray | None = None
        imaged = tuple(also_valid)
        if settings.aoi is not None:
            area = shapely.from_wkb(read_aoi(settings.aoi, grid))
            also_valid.append(partial(burn, area))
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
        outlines: PolygonScore | None = None
        if settings.polygons and isinstance(predicted, LayerSide):
            where = _Where(grid, rect, imaged, area)
            outlines, found_out = _compare_outlines(pair, predicted, reference, where, settings)
            remarks += found_out
        remarks = ours.notes + theirs.notes + remarks
    names = pair.name, str(pair.predicted), str(pair.reference)
    return Tile(*names, rect.shape, distance, score, curve, outlines), tuple(dict.fromkeys(remarks))


def _open_side(path: Path, stack: ExitStack) -> Raster | Layer:
    return Layer(path) if is_vector(path) else Raster(path, stack)


def _grid_of(ours: Raster | Layer, theirs: Raster | Layer, settings: _Settings) -> GeoBox:
    if isinstance(theirs, Raster):
        return theirs.grid
    if isinstance(ours, Raster):
        return ours.grid
    if settings.gsd is None:
        raise SettingError(
            f"{ours.path} and {theirs.path} are both polygons; give the pixel size in metres to compare them at (gsd)"
        )
    return grid_around(ours, theirs, settings.gsd)


def _sides(ours: Raster | Layer, theirs: Raster | Layer, grid: GeoBox, settings: _Settings) -> tuple[Side, Side, Rect]:
    """Return both sides on the grid, and the part of it to compare."""
    predicted, first = _place(ours, theirs, grid, settings.predicted_as, settings.predicted_classes, ())
    reference, second = _place(theirs, ours, grid, "auto", settings.classes, settings.ignore)
    common = first & second
    if common is None:
        raise ApartError(ours.path, theirs.path)
    return predicted, reference, common


def _place(
    side: Raster | Layer,
    other: Raster | Layer,
    grid: GeoBox,
    kind: Kind,
    classes: tuple[int, ...] | None,
    ignore: tuple[int, ...],
) -> tuple[Side, Rect]:
    """Return one side on the grid, and the part of the grid of which it says something."""
    if isinstance(side, Layer):
        placed = side.on(grid)
        if not placed.touches_grid():
            raise ApartError(side.path, other.path)
        # Polygons say where buildings are, and by their absence where none are.
        return placed, Rect(0, 0, *grid.shape)
    with projecting(side.path):
        footprint = side.footprint(grid, other.path)
    if footprint is None:
        raise ApartError(side.path, other.path)
    return side.on(grid, kind, classes, ignore), footprint


_Validity = Callable[[Rect], np.ndarray]
"""Returns what is valid in a rectangle of the grid, bool."""


def _imagery_mask(raster: Raster, reference: Path, grid: GeoBox) -> _Validity:
    with projecting(raster.path):
        raster.footprint(grid, reference)
    dataset = raster.data(grid)

    def valid(rect: Rect) -> np.ndarray:
        with reading(raster.path):
            mask: np.ndarray = dataset.dataset_mask(window=rect.window) > 0
        return mask

    return valid


@dataclass(frozen=True)
class _Where:
    """What part of a grid is compared."""

    grid: GeoBox
    rect: Rect
    imaged: tuple[_Validity, ...]
    """Where there is imagery."""
    area: np.ndarray | None
    """Polygons of interest in pixel coordinates; None for everything."""


def _compare_outlines(
    pair: Pair, predicted: LayerSide, reference: Side, where: _Where, settings: _Settings
) -> tuple[PolygonScore, list[tuple[str, str]]]:
    """Compare buildings, as the module's text says; return remarks as well."""

    def read(window: Rect) -> tuple[np.ndarray, np.ndarray]:
        true, valid = np.zeros(window.shape, bool), np.ones(window.shape, bool)
        if not isinstance(reference, LayerSide):
            true, valid = reference.read(window)
        for mask in where.imaged:
            valid = valid & mask(window)
        return reaches(true, _DEFAULT_THRESHOLD) if reference.probability else true, valid

    remarks: list[tuple[str, str]] = []
    found = predicted.buildings(where.rect)
    silent = np.zeros(0, object)
    if not isinstance(reference, LayerSide):
        true, silent = traced(read, where.rect, settings.window)
        found = cropped(found, where.rect, silent)
        remarks.append((pair.reference.name, "outlines traced from pixels and straightened within one of them"))
    else:
        true = reference.buildings(where.rect)
        if where.imaged:
            silent = traced(read, where.rect, settings.window)[1]
    if len(found) and (found.scores is None or np.isnan(found.scores).any()):
        remarks.append((pair.predicted.name, f"no {SCORE} to rank buildings by, so the average precision ranks none"))
    if where.grid.crs is None:
        remarks.append((pair.reference.name, "without CRS; what should be metres is in units of the coordinates"))
    spacing, boundary = settings.lengths(where.grid, where.rect)
    place = to_ground(where.grid, where.rect)
    score = compare(
        *(Buildings(shapely.transform(side.outlines, place), side.scores) for side in (found, true)),
        predicted_inside=_inside(found, where.area, silent),
        reference_inside=_inside(true, where.area, silent),
        spacing=spacing,
        boundary=boundary,
    )
    return score, remarks


def _inside(buildings: Buildings, area: np.ndarray | None, silent: np.ndarray) -> np.ndarray:
    """Return which buildings have their point in the area (None for everywhere) and not where nothing is said."""
    points = shapely.point_on_surface(buildings.outlines)
    inside = np.ones(len(points), bool)
    for shapes, wanted in ((area, True), (silent, False)):
        if shapes is not None:
            hit = np.zeros(len(points), bool)
            hit[shapely.STRtree(shapes).query(points, predicate="intersects")[0]] = True
            inside &= hit == wanted
    return inside


def _pixel(grid: GeoBox, rect: Rect) -> float | None:
    """Return the side of a pixel in the middle of ``rect``, metres on the ground; None without CRS."""
    crs = None if grid.crs is None else grid.crs.to_wkt()
    size = ground_size(crs, grid.affine, (rect.col0 + rect.col1) / 2, (rect.row0 + rect.row1) / 2)
    return None if size is None else math.sqrt(size[0] * size[1])


def _windows(rect: Rect, side: int) -> Iterator[Rect]:
    for row in range(rect.row0, rect.row1, side):
        for col in range(rect.col0, rect.col1, side):
            yield Rect(row, col, min(row + side, rect.row1), min(col + side, rect.col1))
