"""``item.json``: a run as a STAC item, so that catalogues find it by place, time and contents.

STAC 1.1 (https://github.com/radiantearth/stac-spec) with the extensions *projection*, *processing*, *raster* and
*classification*. Links are relative: the folder can be moved, and put on a server as it is.

geoseg does not know when the imagery was taken (the time in a TIFF's tags is mostly that of its last conversion), and
the standard wants a time: it is that of the run, and the description says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from geoseg.aoi import apply_affine
from geoseg.write import replacing

if TYPE_CHECKING:
    from geoseg.mosaic import Mosaic

STAC_VERSION = "1.1.0"
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in (
        ("classification", "2.0.0"),
        ("processing", "1.2.0"),
        ("projection", "2.0.0"),
        ("raster", "2.0.0"),
    )
)
DECIMALS = 7
"""Of longitudes and latitudes: a centimetre, as in GeoJSON."""
MAX_VERTICES = 500
"""A footprint of more is replaced by its convex hull."""

_SIDE_PARTS = 20
"""An edge as long as the mosaic is cut into so many, each straight enough in longitudes and latitudes."""

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_ASSETS: dict[str, tuple[str, str, list[str]]] = {
    "mask": ("Building mask, 255 = building", _COG, ["data"]),
    "probability": ("Probability of building, 255 = 1.0", _COG, ["data"]),
    "buildings_gpkg": ("Building footprints", "application/geopackage+sqlite3", ["data"]),
    "buildings_fgb": ("Building footprints", "application/vnd.flatgeobuf", ["data"]),
    "buildings_parquet": ("Building footprints", "application/vnd.apache.parquet", ["data"]),
    "buildings_geojson": ("Building footprints", "application/geo+json", ["data"]),
    "report": ("Report with pictures and figures", "text/html", ["overview", "metadata"]),
    "project": ("QGIS project of imagery and results", "application/x-qgis-project", ["visual"]),
    "run": ("Settings, versions, counts and failures of the run", "application/json", ["metadata"]),
}
"""Title, media type and roles of a result, by its name in ``run.json``."""

_BANDS: dict[str, dict[str, Any]] = {
    "mask": {
        "name": "mask",
        "data_type": "uint8",
        "classification:classes": [
            {"value": 0, "name": "other", "description": "No building"},
            {"value": 255, "name": "building", "description": "Building"},
        ],
    },
    "probability": {"name": "probability", "data_type": "uint8", "raster:scale": 1 / 255, "raster:offset": 0.0},
}


def write_item(path: Path, run: Mapping[str, Any], mosaic: Mosaic, name: str) -> str | None:
    """Write the item of a run, or say why there is none.

    Args:
        path: Where to write; an item of an earlier run is removed when there is none now.
        run: What ``run.json`` holds.
        mosaic: The imagery's grid.
        name: The item's id.

    Returns:
        None when it is written, else the reason why it cannot be.

    Raises:
        OutputError: The file cannot be written.
    """
    outline = None if mosaic.crs is None else footprint(mosaic)
    if outline is None:
        path.unlink(missing_ok=True)
        if mosaic.crs is None:
            return "the imagery has no coordinate reference system"
        return f"the imagery's reference system ({mosaic.crs.proj.name}) does not lead to longitude and latitude"
    text = json.dumps(item(run, mosaic, name, outline), indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    return None


def item(run: Mapping[str, Any], mosaic: Mosaic, name: str, outline: shapely.Geometry) -> dict[str, Any]:
    """Return the item as JSON values; ``outline`` is as :func:`footprint` returns it."""
    counts, model = run["counts"], run["model"]
    height, width = mosaic.shape
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "geometry": _rounded(shapely.geometry.mapping(outline)),
        "bbox": _bbox(outline),
        "properties": {
            "title": f"{counts['buildings']} building footprints",
            "description": (
                "Building footprints found in aerial imagery by a neural network. The time is that of the run: when "
                "the imagery was taken is not known."
            ),
            "datetime": run["finished"],
            "created": run["finished"],
            **({"gsd": run["mosaic"]["ground_gsd_m"]} if run["mosaic"]["ground_gsd_m"] else {}),
            **_projection(mosaic),
            "proj:shape": [height, width],
            "proj:transform": [float(value) for value in tuple(mosaic.transform)[:6]],
            "processing:software": {"geoseg": str(run["geoseg"])},
            "processing:lineage": (
                f"geoseg {run['geoseg']}, model {model['name']}: outlines of pixels whose probability of building is "
                f"{run['settings']['threshold']:g} or more"
            ),
            "geoseg:model": model["name"],
            "geoseg:model_sha256": model["sha256"],
            "geoseg:threshold": run["settings"]["threshold"],
            "geoseg:buildings": counts["buildings"],
            "geoseg:building_area_m2": counts["building_area_m2"],
        },
        "links": [],
        "assets": {
            key: _asset(key, file) for key, file in {**run["outputs"], "run": "run.json"}.items() if key in _ASSETS
        },
    }


def _asset(key: str, file: str) -> dict[str, Any]:
    title, kind, roles = _ASSETS[key]
    asset = {"href": f"./{quote(file)}", "title": title, "type": kind, "roles": roles}
    return asset | ({"bands": [_BANDS[key]]} if key in _BANDS else {})


def _projection(mosaic: Mosaic) -> dict[str, Any]:
    crs = CRS.from_user_input(mosaic.wkt)
    code = crs.to_authority(min_confidence=100)
    if code:
        return {"proj:code": ":".join(code)}
    return {"proj:code": None, "proj:wkt2": crs.to_wkt()}


def footprint(mosaic: Mosaic) -> shapely.Geometry | None:
    """Return the ground that the files cover, inside the area of interest, in longitude and latitude (WGS 84).

    A polygon or multipolygon, cut at the antimeridian as RFC 7946 wants. None when the CRS does not lead there.
    """
    boxes = [shapely.box(s.rect.col0, s.rect.row0, s.rect.col1, s.rect.row1) for s in mosaic.sources]
    covered = shapely.union_all(boxes)
    if mosaic.aoi is not None:
        inside = shapely.intersection(covered, shapely.union_all(shapely.from_wkb(np.array(mosaic.aoi, dtype=object))))
        covered = inside if inside.area > 0 else covered
    if shapely.get_num_coordinates(covered) > MAX_VERTICES:
        covered = shapely.convex_hull(covered)
    dense = shapely.segmentize(covered, max(mosaic.shape) / _SIDE_PARTS)
    try:
        to_degrees = Transformer.from_crs(mosaic.wkt, "OGC:CRS84", always_xy=True)
        on_map = shapely.transform(
            dense, lambda xy: np.column_stack(apply_affine(mosaic.transform, xy[:, 0], xy[:, 1]))
        )
        placed = shapely.transform(
            on_map, lambda xy: np.column_stack(to_degrees.transform(xy[:, 0], xy[:, 1], errcheck=True))
        )
    except ProjError:
        return None
    if not np.isfinite(shapely.get_coordinates(placed)).all():
        return None
    return _cut(placed)


def _cut(placed: shapely.Geometry) -> shapely.Geometry:
    """Cut at the antimeridian, round, and turn the rings as GeoJSON wants."""
    west, _south, east, _north = placed.bounds
    if east - west > 180:
        unrolled = shapely.transform(placed, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))
        halves = [
            shapely.intersection(shapely.make_valid(unrolled), shapely.box(0, -90, 180, 90)),
            shapely.transform(
                shapely.intersection(shapely.make_valid(unrolled), shapely.box(180, -90, 360, 90)),
                lambda xy: xy - [360, 0],
            ),
        ]
        placed = shapely.union_all(halves)
    # Vertices that were put into straight lines, and still lie in them, go.
    simple = shapely.simplify(shapely.make_valid(placed), 10 * 10.0**-DECIMALS)
    parts = shapely.get_parts(shapely.set_precision(simple, 10.0**-DECIMALS))
    polygons = shapely.get_parts(parts[np.isin(shapely.get_type_id(parts), (3, 6))])
    turned = shapely.orient_polygons(shapely.normalize(polygons))
    return turned[0] if len(turned) == 1 else shapely.multipolygons(turned)


def _bbox(outline: shapely.Geometry) -> list[float]:
    """Return west, south, east, north; west is the larger where the outline passes the antimeridian."""
    west, south, east, north = outline.bounds
    parts = shapely.bounds(shapely.get_parts(outline))
    eastern = parts[:, 0] >= 0
    if west == -180 and east == 180 and eastern.any() and not eastern.all():
        west, east = parts[eastern, 0].min(), parts[~eastern, 2].max()
    return [round(float(value), DECIMALS) for value in (west, south, east, north)]


def _rounded(value: Any) -> Any:
    """Return nested coordinates as lists of rounded numbers, in JSON's types."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, DECIMALS) if isinstance(value, float) else value
