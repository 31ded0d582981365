"""The polygons of a vector file as one side of an evaluation: a mask on the common grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import CRSError
from rasterio.features import rasterize

from geoseg.aoi import apply_affine
from geoseg.errors import InputError
from geoseg.layout import ground_size
from geoseg.sides import ApartError, Box, projecting, rect_around
from geoseg.tiling import Rect

VECTOR_SUFFIXES = frozenset(
    (".gpkg", ".geojson", ".json", ".fgb", ".shp", ".parquet", ".geoparquet", ".kml", ".gml", ".sqlite")
)
"""What is opened as polygons; a GeoPackage without a layer of polygons as a raster."""


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

    def _read(self, box: Box | None) -> np.ndarray:
        import pyogrio

        _meta, _fids, geometries, _fields = pyogrio.raw.read(self.path, layer=self._layer, columns=[], bbox=box)
        return _only_polygons(self.path, shapely.from_wkb(geometries))

    def within(self, box: Box) -> np.ndarray:
        """Return the polygons whose extent meets ``box`` (left, bottom, right, top), in the file's CRS."""
        if self._whole is None:
            with _polygons(self.path):
                return self._read(box)
        found: np.ndarray = self._whole[np.sort(self._tree.query(shapely.box(*box)))]
        return found

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self._whole)

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
        with projecting(self._layer.path):
            shapes = self._layer.within(self._box(rect))
            shapes = shapely.transform(shapes, self._place) if len(shapes) else shapes
        return burn(shapes, rect), np.ones(rect.shape, bool)

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
