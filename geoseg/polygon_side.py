"""The polygons of a vector file as one side of an evaluation: a mask on the common grid, and outlines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.aoi import AreaOfInterest
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import TransverseMercatorConversion
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import CRSError
from rasterio.features import rasterize

from geoseg.aoi import apply_affine
from geoseg.errors import InputError
from geoseg.join import Joiner
from geoseg.layout import ground_size
from geoseg.outline import simplify
from geoseg.polygon_metrics import Buildings
from geoseg.polygonize import Building, block_parts
from geoseg.sides import ApartError, Box, projecting, rect_around
from geoseg.spool import polygons_array
from geoseg.tiling import ALIGN, Rect, Tiling, ceil_to

VECTOR_SUFFIXES = frozenset(
    (".gpkg", ".geojson", ".json", ".fgb", ".shp", ".parquet", ".geoparquet", ".kml", ".gml", ".sqlite")
)
"""What is opened as polygons; a GeoPackage without a layer of polygons as a raster."""

SCORE = "probability"
"""The attribute that says how sure a prediction is, as geoseg itself writes it."""
TRACED_PX = 1.0
"""Pixels by which outlines are straightened when a mask is traced, as ``geoseg polygonize`` does."""


def is_vector(path: Path) -> bool:
    """Say whether a file is opened as polygons, by its ending and, for a GeoPackage, by its layers."""
    suffix = path.suffix.lower()
    return suffix in VECTOR_SUFFIXES and not (suffix == ".gpkg" and not _layers(path))


class Layer:
    """Polygons of a vector file; on a grid, a mask.

    Files with a spatial index are read window by window; others (GeoJSON, GeoParquet) once and whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[tuple[str, str]] = []
        self.crs: pyproj.CRS | None
        self.bounds: Box | None
        self._layer: str | None = None
        self._columns: list[str] = []
        self._whole: Buildings | None = None
        with _polygons(path):
            if path.suffix.lower() in (".parquet", ".geoparquet"):
                self._open_parquet()
            else:
                self._open_gdal()

    def _open_parquet(self) -> None:
        import geopandas

        frame = geopandas.read_parquet(self.path)
        self.crs = _earthly(frame.geometry.crs)
        scores = frame[SCORE].to_numpy() if SCORE in frame.columns else None
        self._whole = _only_polygons(self.path, frame.geometry.to_numpy(), scores)
        outlines = self._whole.outlines
        self.bounds = tuple(shapely.total_bounds(outlines).tolist()) if len(outlines) else None

    def _open_gdal(self) -> None:
        import pyogrio

        self._layer = _polygon_layer(self.path)
        info = pyogrio.read_info(self.path, layer=self._layer, force_feature_count=True, force_total_bounds=True)
        self.crs = _earthly(info["crs"])
        self.bounds = tuple(info["total_bounds"]) if info["features"] and info["total_bounds"] else None
        self._columns = [SCORE] if SCORE in info["fields"] else []
        if not info["capabilities"]["fast_spatial_filter"]:
            self._whole = self._read(None)

    def _read(self, box: Box | None) -> Buildings:
        import pyogrio

        _meta, _fids, geometries, found = pyogrio.raw.read(
            self.path, layer=self._layer, columns=self._columns, bbox=box
        )
        return _only_polygons(self.path, shapely.from_wkb(geometries), found[0] if self._columns else None)

    def within(self, box: Box) -> Buildings:
        """Return the polygons whose extent meets ``box`` (left, bottom, right, top), in the file's CRS."""
        if self._whole is None:
            with _polygons(self.path):
                return self._read(box)
        return self._whole[np.sort(self._tree.query(shapely.box(*box)))]

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self._whole.outlines if self._whole is not None else ())

    def on(self, grid: GeoBox) -> LayerSide:
        """Return the mask that the polygons make on ``grid``."""
        return LayerSide(self, grid)


class LayerSide:
    """Polygons rasterised window by window: building where a pixel's centre lies in one. Valid everywhere."""

    probability = False

    def __init__(self, layer: Layer, grid: GeoBox) -> None:
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

    def touches_grid(self) -> bool:
        """Say whether the polygons' extent meets the grid; no polygons are at home anywhere."""
        if self._layer.bounds is None:
            return True
        with projecting(self._layer.path):
            box = self._layer.bounds
            if self._there is not None:
                box = self._there.transform_bounds(*box)
        x, y = shapely.get_coordinates(shapely.box(*box)).T
        return rect_around(*apply_affine(~self._grid.affine, x, y), self._grid) is not None

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Rasterise; see :class:`geoseg.sides.Side`."""
        return burn(self._placed(rect).outlines, rect), np.ones(rect.shape, bool)

    def buildings(self, rect: Rect) -> Buildings:
        """Return the polygons whose extent meets ``rect``, whole, one building each, in pixel coordinates and valid.

        Broken ones (an outline that crosses itself) are repaired, and the layer's notes say how many, and how
        many have several parts.
        """
        found = self._placed(rect)
        broken = ~shapely.is_valid(found.outlines)
        outlines = found.outlines.copy()
        outlines[broken] = shapely.make_valid(outlines[broken], method="structure", keep_collapsed=False)
        found = _solid(Buildings(outlines, found.scores))
        several = int(np.count_nonzero(shapely.get_num_geometries(found.outlines) > 1))
        for count, what in (
            (int(np.count_nonzero(broken)), "invalid; repaired to compare outlines"),
            (several, "of several parts; each counts as one building"),
        ):
            if count:
                self._layer.notes.append((self._layer.path.name, f"{count} polygons {what}"))
        return found

    def _placed(self, rect: Rect) -> Buildings:
        with projecting(self._layer.path):
            found = self._layer.within(self._box(rect))
            if not len(found):
                return found
            return Buildings(shapely.transform(found.outlines, self._place), found.scores)

    def _box(self, rect: Rect) -> Box:
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


def burn(shapes: np.ndarray, rect: Rect) -> np.ndarray:
    """Return where the centres of the pixels of ``rect`` lie in one of ``shapes``, bool; all in pixel coordinates."""
    mask = np.zeros(rect.shape, np.uint8)
    if len(shapes):
        # Moved by whole pixels, not by another affine, so that centres on an edge fall alike in every window. Parts
        # apart, since GDAL leaves out what two parts of one polygon share.
        moved = shapely.get_parts(shapely.transform(shapes, lambda xy: xy - (rect.col0, rect.row0)))
        rasterize(moved, out=mask, transform=Affine.identity(), default_value=1)
    return mask.view(bool)


def traced(
    read: Callable[[Rect], tuple[np.ndarray, np.ndarray]], rect: Rect, window: int
) -> tuple[Buildings, np.ndarray]:
    """Return the buildings of a mask, and the area of which it says nothing, as polygons in pixel coordinates.

    A building is what is connected by edges of pixels, and its outline is straightened within :data:`TRACED_PX`, as
    ``geoseg polygonize`` does.

    Args:
        read: returns mask and validity, both bool, of a rectangle.
        rect: what to trace.
        window: read at once, pixels, but for rounding up. All outlines are held.
    """
    tiling = Tiling(rect.shape, ALIGN, 0, 0, ceil_to(window, ALIGN))
    joiners = Joiner(tiling), Joiner(tiling)
    found: tuple[list[Building], list[Building]] = ([], [])
    rows, cols = tiling.grid
    for row, col in np.ndindex(rows, cols):
        core = tiling.core_of(row, col)
        row0, col0 = core.row0 + rect.row0, core.col0 + rect.col0
        mask, valid = read(Rect(row0, col0, row0 + core.height, col0 + core.width))
        for joiner, pixels, done in zip(joiners, (mask & valid, ~valid), found, strict=True):
            parts = block_parts(pixels, np.zeros(core.shape, np.uint8), core)
            done += joiner.add(row, col, core, parts)
    outlines = []
    for joiner, done in zip(joiners, found, strict=True):
        done += joiner.finish()
        done.sort(key=lambda building: building.first)
        outlines.append(polygons_array([building.polygon for building in done]))
    buildings, silent = simplify(outlines[0], TRACED_PX), outlines[1]
    return Buildings(_moved(buildings, rect)), _moved(silent, rect)


def _moved(outlines: np.ndarray, rect: Rect) -> np.ndarray:
    if not len(outlines):
        return outlines
    found: np.ndarray = shapely.transform(outlines, lambda xy: xy + np.array((rect.col0, rect.row0)))
    return found


def cropped(buildings: Buildings, rect: Rect, silent: np.ndarray) -> Buildings:
    """Return what of buildings lies in ``rect`` and in none of the polygons ``silent``; all in pixel coordinates."""
    box = shapely.box(rect.col0, rect.row0, rect.col1, rect.row1)
    outlines = buildings.outlines.copy()
    across = ~shapely.covered_by(outlines, box)
    outlines[across] = shapely.intersection(outlines[across], box)
    which, met = shapely.STRtree(silent).query(outlines, predicate="intersects")
    # Hits come sorted by building.
    starts = np.flatnonzero(np.diff(which, prepend=-1))
    for begin, end in pairwise(np.append(starts, len(which))):
        hole = shapely.union_all(silent[met[begin:end]])
        outlines[which[begin]] = shapely.difference(outlines[which[begin]], hole)
    return _solid(Buildings(outlines, buildings.scores))


def _solid(buildings: Buildings) -> Buildings:
    """Return what has an area: lines that cutting left are taken off, and buildings that are nothing else dropped."""
    outlines = buildings.outlines.copy()
    for index in np.flatnonzero(~np.isin(shapely.get_type_id(outlines), (3, 6))):
        parts = shapely.get_parts(outlines[index])
        outlines[index] = shapely.union_all(parts[shapely.area(parts) > 0])
    return Buildings(outlines, buildings.scores)[shapely.area(outlines) > 0]


def to_ground(grid: GeoBox, rect: Rect) -> Callable[[np.ndarray], np.ndarray]:
    """Return what takes pixel coordinates ``(points, 2)`` of a grid to metres on the ground, in a plane.

    The plane is a transverse Mercator projection through the middle of ``rect`` on the CRS's own datum: angles are
    true, and lengths too long by 3 in 100 000 at 50 km to the east or west, less nearer. A CRS that is not tied to the
    Earth has its unit converted; without CRS, coordinates are those of the grid.
    """

    def on_map(xy: np.ndarray) -> np.ndarray:
        return np.stack(apply_affine(grid.affine, xy[:, 0], xy[:, 1]), axis=1)

    if grid.crs is None:
        return on_map
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt()).to_2d()
    geodetic = crs.geodetic_crs
    if geodetic is None or crs.get_geod() is None:
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
        return lambda xy: on_map(xy) * unit
    x, y = on_map(np.array([[(rect.col0 + rect.col1) / 2, (rect.row0 + rect.row1) / 2]]))[0]
    degrees = math.degrees(geodetic.axis_info[0].unit_conversion_factor)
    lon, lat = np.array(pyproj.Transformer.from_crs(crs, geodetic, always_xy=True).transform(x, y)) * degrees
    if not np.isfinite((lon, lat)).all():
        raise InputError(f"the buildings lie where {crs.name} is not defined; check their CRS and coordinates")
    local = ProjectedCRS(TransverseMercatorConversion(lat, lon), geodetic_crs=geodetic)
    there = pyproj.Transformer.from_crs(crs, local, always_xy=True)

    def on_ground(xy: np.ndarray) -> np.ndarray:
        x, y = on_map(xy).T
        found = np.stack(there.transform(x, y), axis=1)
        if not np.isfinite(found).all():
            raise InputError(
                f"buildings lie too far from each other, or where {crs.name} is not defined, to be measured"
            )
        return found

    return on_ground


def grid_around(ours: Layer, theirs: Layer, gsd: float) -> GeoBox:
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
    boxes: list[Box] = []
    for layer, box in found:
        with projecting(layer.path):
            if layer.crs is not None and crs is not None and layer.crs != crs:
                box = pyproj.Transformer.from_crs(layer.crs, crs, always_xy=True).transform_bounds(*box)
        boxes.append(box)
    if len(boxes) == 2 and not shapely.box(*boxes[0]).intersects(shapely.box(*boxes[1])):
        raise ApartError(ours.path, theirs.path)
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


def _utm(layer: Layer, box: Box) -> pyproj.CRS:
    with projecting(layer.path):
        west, south, east, north = pyproj.Transformer.from_crs(layer.crs, 4326, always_xy=True).transform_bounds(*box)
    lon, lat = (west + east) / 2, (south + north) / 2
    zones = query_utm_crs_info(datum_name="WGS 84", area_of_interest=AreaOfInterest(lon, lat, lon, lat))
    if not zones:
        raise InputError(f"{layer.path}: no UTM zone at {lon:.3f}, {lat:.3f}; give polygons in a projected CRS")
    return pyproj.CRS.from_epsg(zones[0].code)


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


def _only_polygons(path: Path, shapes: np.ndarray, scores: np.ndarray | None) -> Buildings:
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    areal = there & np.isin(shapely.get_type_id(shapes), (3, 6))
    if there.any() and not areal.any():
        raise InputError(f"{path}: holds {shapes[there][0].geom_type}; buildings are polygons")
    if scores is not None and scores.dtype.kind not in "iuf":
        scores = None
    found: np.ndarray = shapely.force_2d(shapes[areal])
    return Buildings(found, None if scores is None else scores[areal].astype(np.float64))


def _earthly(crs: Any) -> pyproj.CRS | None:
    """Return a CRS, None for an undefined Cartesian one as GeoPackage writes it."""
    if crs is None:
        return None
    known = pyproj.CRS.from_user_input(crs)
    return None if known.is_engineering else known


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
