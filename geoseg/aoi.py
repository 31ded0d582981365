"""Area of interest: polygons of any vector file, in any CRS, as polygons in the mosaic's pixel coordinates.

Pixel coordinates: x = column, y = row; pixel ``(r, c)`` covers ``[c, c + 1] × [r, r + 1]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from geoseg.errors import InputError

SEGMENTS = 200
"""An edge that is reprojected is cut so that none is longer than the mosaic's diagonal by this number."""


class OutsideError(InputError):
    """The area of interest does not meet the images."""


def apply_affine(affine: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map arrays of coordinates."""
    a, b, c, d, e, f = tuple(affine)[:6]
    return a * x + b * y + c, d * x + e * y + f


def read_aoi(path: str | Path, geobox: GeoBox) -> tuple[bytes, ...]:
    """Return the polygons of ``path`` as WKB in the pixel coordinates of ``geobox``.

    Every layer with polygons counts. Polygons are repaired where they cross themselves, cut to the surroundings of
    the grid, and their edges densified before they are reprojected, since a straight line in one CRS is
    a curve in another. A file without CRS is taken to be in the CRS of the grid.

    Raises:
        InputError: the file is missing, unreadable, without polygons, or (OutsideError) lies outside the grid.
    """
    found: list[Any] = []
    polygons = 0
    for geometries, crs in _layers(path):
        polygons += len(geometries)
        found.extend(_to_pixels(path, geometries, crs, geobox))
    if not polygons:
        raise InputError(f"{path}: no polygons in it; an area of interest needs at least one")
    height, width = geobox.shape
    extent = shapely.box(0, 0, width, height)
    inside = [polygon for polygon in found if polygon.intersection(extent).area > 0]
    if not inside:
        raise OutsideError(
            f"{path}: its polygons lie outside the images; check that both are in the CRS they say they are"
        )
    return tuple(shapely.to_wkb(polygon) for polygon in inside)


def _layers(path: str | Path) -> Iterator[tuple[np.ndarray, CRS | None]]:
    """Yield the polygons and the CRS of every layer that has some."""
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    name = str(path)
    if "://" not in name and not name.startswith("/vsi") and not Path(name).exists():
        raise InputError(f"{name}: no such file (area of interest)")
    try:
        for layer, _kind in pyogrio.list_layers(name):
            meta, _fids, geometries, _fields = pyogrio.raw.read(name, layer=layer, columns=[])
            if geometries is None:
                continue
            shapes = shapely.force_2d(shapely.from_wkb(geometries))
            shapes = shapes[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))]
            shapes = shapes[np.isin(shapely.get_type_id(shapes), (3, 6))]
            if len(shapes):
                yield shapes, CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    except (DataSourceError, DataLayerError, shapely.errors.GEOSException, CRSError) as error:
        raise InputError(f"{name}: cannot be read as an area of interest: {error}") from error


def _to_pixels(path: str | Path, shapes: np.ndarray, crs: CRS | None, geobox: GeoBox) -> Iterator[Any]:
    """Yield the polygons near the grid, in its pixel coordinates."""
    shapes = shapely.make_valid(shapes)
    target = CRS.from_wkt(geobox.crs.to_wkt()) if geobox.crs is not None else None
    if crs is not None and target is None:
        raise InputError(
            f"{path}: the area of interest is in {crs.name}, but the images have no CRS to place it in; "
            "give polygons without CRS, in the coordinates of the images"
        )
    if crs is not None and target is not None and not crs.equals(target, ignore_axis_order=True):
        shapes = _reproject(path, shapes, crs, target, geobox)
    inverse: Affine = ~geobox.affine

    def place(xy: np.ndarray) -> np.ndarray:
        return np.stack(apply_affine(inverse, xy[:, 0], xy[:, 1]), axis=1)

    for part in shapely.get_parts(shapely.make_valid(shapely.transform(shapes, place))):
        # Repair may leave collections with the odd line in them.
        yield from (piece for piece in shapely.get_parts(part) if piece.geom_type == "Polygon")


def _reproject(path: str | Path, shapes: np.ndarray, crs: CRS, target: CRS, geobox: GeoBox) -> np.ndarray:
    """Return what lies near the grid, densified, in the CRS of the grid."""
    try:
        x, y = _outline(crs, target, geobox)
        if not len(x):
            raise InputError(f"{path}: {crs.name} cannot express where the images are")
        margin_x, margin_y = np.ptp(x) * 0.1, np.ptp(y) * 0.1
        near = shapely.box(x.min() - margin_x, y.min() - margin_y, x.max() + margin_x, y.max() + margin_y)
        # Cutting first keeps a polygon of a whole country from being densified at the scale of one town.
        cut = shapely.intersection(shapes, near)
        step = max(float(np.hypot(np.ptp(x), np.ptp(y))) / SEGMENTS, 1e-12)
        dense = shapely.segmentize(cut[~shapely.is_empty(cut)], step)
        forth = Transformer.from_crs(crs, target, always_xy=True)

        def project(points: np.ndarray) -> np.ndarray:
            return np.stack(forth.transform(points[:, 0], points[:, 1], errcheck=True), axis=1)

        projected: np.ndarray = shapely.transform(dense, project)
    except ProjError as error:
        raise InputError(f"{path}: cannot be brought from {crs.name} to {target.name}: {error}") from error
    return projected


def _outline(crs: CRS, target: CRS, geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Return points along the edge of the grid, in ``crs``; those that it cannot express are left out."""
    edge = shapely.from_wkb(geobox.extent.geom.wkb)
    xy = shapely.get_coordinates(shapely.segmentize(edge, edge.length / SEGMENTS))
    x, y = Transformer.from_crs(target, crs, always_xy=True).transform(xy[:, 0], xy[:, 1])
    fine = np.isfinite(x) & np.isfinite(y)
    return x[fine], y[fine]
