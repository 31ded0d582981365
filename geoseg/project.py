"""``project.qgz``: imagery, footprints, mask and probability as a QGIS project, styled, with relative paths.

Written as QGIS 3.22 writes it, which later versions read; what is left out of the XML QGIS fills in by itself. The same
results give the same bytes.

Imagery of many files goes through a VRT written beside, one for all files that share pixels, so that QGIS opens each
file when it is drawn and not before.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from geoseg.style import footprint_renderer, mask_renderer, probability_renderer, rgb_renderer
from geoseg.vrt import relative, write_vrt
from geoseg.write import replacing

if TYPE_CHECKING:
    from geoseg.mosaic import Mosaic
    from geoseg.raster import Source

VERSION = "3.22.0-Białowieża"
MAX_FILES = 40
"""Files of imagery that become a layer each; more are gathered in a VRT."""
MARGIN = 0.03
"""Share of the mosaic's sides that the map shows around it at first."""

VECTORS = ("gpkg", "fgb", "geojson", "parquet")
"""Which of the footprints' files is shown: the first that is there (few builds of QGIS read GeoParquet)."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class _Layer:
    id: str
    """At least eleven characters: QGIS gives a new one to a layer whose own is shorter."""
    title: str
    source: str
    """As QGIS takes it, relative to the project."""
    provider: str
    crs: str | None
    """WKT or a code such as ``EPSG:4326``."""
    renderer: Element | None
    """None leaves it to QGIS."""
    shown: bool = True


def write_project(
    path: Path, mosaic: Mosaic, formats: Sequence[str], stretch: tuple[float, float], title: str
) -> str | None:
    """Write the project, or say why there is none; it appears complete or not at all.

    Args:
        path: The project file; the results are in its folder.
        mosaic: The imagery.
        formats: Of the footprints' files.
        stretch: Values of the imagery that are shown black and white, where it is not of bytes.
        title: What QGIS calls the project.

    Returns:
        None when it is complete, else what is missing.

    Raises:
        OutputError: The file cannot be written.
    """
    if not mosaic.georeferenced:
        path.unlink(missing_ok=True)
        return "the imagery has no georeference: QGIS would not show footprints and imagery in one place"
    imagery, left_out = _imagery(path.parent, mosaic, stretch)
    text = _document(mosaic, [*_results(mosaic, formats)], imagery, title)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo(f"{path.stem}.qgs", _ZIP_TIME), text, zipfile.ZIP_DEFLATED)
    return left_out


def _results(mosaic: Mosaic, formats: Sequence[str]) -> Iterator[_Layer]:
    form = min(formats, key=VECTORS.index)
    source = f"./buildings.{form}" + ("|layername=buildings" if form == "gpkg" else "")
    crs = "EPSG:4326" if form == "geojson" else mosaic.wkt
    yield _Layer("geoseg_footprints", "Footprints", source, "ogr", crs, footprint_renderer())
    yield _Layer("geoseg_mask", "Mask", "./mask.tif", "gdal", mosaic.wkt, mask_renderer(), shown=False)
    yield _Layer(
        "geoseg_probability",
        "Probability",
        "./probability.tif",
        "gdal",
        mosaic.wkt,
        probability_renderer(),
        shown=False,
    )


def _imagery(folder: Path, mosaic: Mosaic, stretch: tuple[float, float]) -> tuple[list[_Layer], str | None]:
    """Return the layers of the imagery, uppermost first, and what is missing."""
    for old in folder.glob("imagery*.vrt"):
        old.unlink()
    sources = [source for source in mosaic.sources if _in_xml(source.path)]
    lost = len(mosaic.sources) - len(sources)
    if len(sources) <= MAX_FILES:
        layers = [
            _Layer(
                f"geoseg_imagery_{number}",
                Path(source.name).stem or source.name,
                relative(source.path, folder),
                "gdal",
                mosaic.layers[source.layer].crs,
                _rgb(source, stretch),
            )
            for number, source in enumerate(sources, 1)
        ]
    else:
        layers = []
        for number, layer in enumerate(mosaic.layers[:MAX_FILES]):
            members = [source for source in sources if source.layer == number]
            name = "imagery.vrt" if len(mosaic.layers) == 1 else f"imagery_{number + 1}.vrt"
            write_vrt(folder / name, layer, members)
            title = f"{len(members)} files"
            renderer = None if members[0].dtype == "uint8" else rgb_renderer((1, 2, 3), stretch, alpha=4)
            layers.append(_Layer(f"geoseg_imagery_{number + 1}", title, f"./{name}", "gdal", layer.crs, renderer))
        lost += sum(source.layer >= MAX_FILES for source in sources)
    lacking = f"{lost} file{'s' if lost > 1 else ''} of imagery {'are' if lost > 1 else 'is'} not in it"
    return layers, lacking if lost else None


def _rgb(source: Source, stretch: tuple[float, float]) -> Element | None:
    if source.palette or (source.dtype == "uint8" and source.bands in ((1, 2, 3), (1, 1, 1))):
        return None  # QGIS does right by itself, and knows alpha and mask
    return rgb_renderer(source.bands, None if source.dtype == "uint8" else stretch, alpha=source.alpha)


def _in_xml(path: str) -> bool:
    """Say whether a file name can stand in XML."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return all(char >= " " for char in path)


def _document(mosaic: Mosaic, results: list[_Layer], imagery: list[_Layer], title: str) -> bytes:
    root = Element("qgis", projectname=title, version=VERSION)
    SubElement(root, "title").text = title
    _crs(SubElement(root, "projectCrs"), mosaic.wkt)
    tree = SubElement(root, "layer-tree-group")
    _group(tree, "Buildings", results)
    _group(tree, "Imagery", imagery, expanded=len(imagery) <= 5)
    canvas = SubElement(root, "mapcanvas", name="theMapCanvas", annotationsVisible="1")
    _texts(canvas, units=_units(mosaic))
    box = _extent(mosaic)
    _texts(SubElement(canvas, "extent"), **{name: repr(value) for name, value in box.items()})
    SubElement(canvas, "rotation").text = "0"
    _crs(SubElement(canvas, "destinationsrs"), mosaic.wkt)
    projectlayers = SubElement(root, "projectlayers")
    for layer in (*results, *imagery):
        _maplayer(projectlayers, layer)
    order = SubElement(root, "layerorder")
    for layer in (*results, *imagery):
        SubElement(order, "layer", id=layer.id)
    properties = SubElement(root, "properties")
    SubElement(SubElement(properties, "Paths"), "Absolute", type="bool").text = "false"
    SubElement(SubElement(properties, "Measure"), "Ellipsoid", type="QString").text = _ellipsoid(mosaic)
    if mosaic.crs is not None:
        # Otherwise QGIS ignores the project's CRS.
        SubElement(SubElement(properties, "SpatialRefSys"), "ProjectionsEnabled", type="int").text = "1"
    views = SubElement(root, "ProjectViewSettings", UseProjectScales="0")
    default = SubElement(views, "DefaultViewExtent", {name: repr(value) for name, value in box.items()})
    _crs(default, mosaic.wkt)
    indent(root, " ")
    head = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    body: bytes = tostring(root, encoding="utf-8")
    return head + body + b"\n"


def _group(tree: Element, name: str, layers: list[_Layer], expanded: bool = True) -> None:
    group = SubElement(tree, "layer-tree-group", name=name, checked="Qt::Checked", expanded=str(int(expanded)))
    for layer in layers:
        SubElement(
            group,
            "layer-tree-layer",
            id=layer.id,
            name=layer.title,
            source=layer.source,
            providerKey=layer.provider,
            checked="Qt::Checked" if layer.shown else "Qt::Unchecked",
            expanded="0",
        )


def _maplayer(parent: Element, layer: _Layer) -> None:
    vector = layer.provider == "ogr"
    kind = {"type": "vector", "geometry": "Polygon"} if vector else {"type": "raster"}
    element = SubElement(parent, "maplayer", {**kind, "autoRefreshEnabled": "0", "hasScaleBasedVisibilityFlag": "0"})
    _texts(element, id=layer.id, datasource=layer.source, layername=layer.title)
    _crs(SubElement(element, "srs"), layer.crs)
    SubElement(element, "provider", {"encoding": "UTF-8"} if vector else {}).text = layer.provider
    if vector:
        element.append(layer.renderer if layer.renderer is not None else footprint_renderer())
        _texts(element, previewExpression='"id"', layerOpacity="1", blendMode="0")
    elif layer.renderer is not None:
        SubElement(element, "pipe").append(layer.renderer)


def _texts(parent: Element, **values: str) -> None:
    for name, value in values.items():
        SubElement(parent, name).text = value


def _crs(parent: Element, crs: str | None) -> None:
    """Add a CRS as QGIS writes it: by code where there is one, and as WKT for others."""
    if crs is None:
        return
    from pyproj import CRS

    known = CRS.from_user_input(crs)
    code = known.to_authority(min_confidence=100)
    system = SubElement(parent, "spatialrefsys", nativeFormat="Wkt")
    _texts(system, wkt=known.to_wkt(), authid=":".join(code) if code else "", description=known.name)


def _units(mosaic: Mosaic) -> str:
    if mosaic.crs is None:
        return "unknown"
    if mosaic.crs.geographic:
        return "degrees"
    name = str(mosaic.crs.proj.axis_info[0].unit_name)
    return {"metre": "meters", "foot": "feet", "US survey foot": "US survey feet"}.get(name, "unknown")


def _ellipsoid(mosaic: Mosaic) -> str:
    """Return what lengths and areas are measured on, as the attributes of the footprints are."""
    ellipsoid: Any = None if mosaic.crs is None else mosaic.crs.proj.ellipsoid
    code = ellipsoid.to_json_dict().get("id") if ellipsoid else None
    return f"{code['authority']}:{code['code']}" if code else "NONE"


def _extent(mosaic: Mosaic) -> dict[str, float]:
    height, width = mosaic.shape
    corners = [mosaic.transform @ corner for corner in ((0, 0), (width, 0), (0, height), (width, height))]
    xs, ys = zip(*corners, strict=True)
    margin = MARGIN * max(max(xs) - min(xs), max(ys) - min(ys))
    return {
        "xmin": float(min(xs) - margin),
        "ymin": float(min(ys) - margin),
        "xmax": float(max(xs) + margin),
        "ymax": float(max(ys) + margin),
    }
