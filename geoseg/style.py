"""How results look in QGIS: renderers, a QML style of the footprints, and the GeoPackage table where QGIS finds it.

QGIS looks for a table ``layer_styles`` in a GeoPackage and applies the row that is marked as
default. The table's columns are those that QGIS itself writes (QgsOgrProvider, *Save style in
database*).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

from geoseg.picture import INFERNO

TABLE = "layer_styles"

OUTLINE = "227,26,28,255"
"""Red, green, blue, opacity: strong enough to be seen on imagery of any colour."""
FILL = "255,191,0,70"
"""Faint enough to leave the roof visible below."""
MASK = "#e31a1c"
MASK_ALPHA = 120
"""Of 255."""
INTERNAL_MASK = 2
"""Number of the band as which QGIS shows the internal mask of our rasters; it is the opacity of the first."""

_COLUMNS = """
    "id" INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    "f_table_catalog" TEXT(256),
    "f_table_schema" TEXT(256),
    "f_table_name" TEXT(256),
    "f_geometry_column" TEXT(256),
    "styleName" TEXT(30),
    "styleQML" TEXT,
    "styleSLD" TEXT,
    "useAsDefault" BOOLEAN,
    "description" TEXT,
    "owner" TEXT(30),
    "ui" TEXT(30),
    "update_time" DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))
"""


def footprint_renderer() -> ElementTree.Element:
    """Return QGIS's element for a single fill symbol with an outline."""
    options = {
        "color": FILL,
        "style": "solid",
        "outline_color": OUTLINE,
        "outline_style": "solid",
        "outline_width": "0.4",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
        "offset": "0,0",
        "offset_unit": "MM",
    }
    renderer = ElementTree.Element(
        "renderer-v2",
        type="singleSymbol",
        symbollevels="0",
        enableorderby="0",
        forceraster="0",
    )
    symbols = ElementTree.SubElement(renderer, "symbols")
    symbol = ElementTree.SubElement(
        symbols, "symbol", type="fill", name="0", alpha="1", clip_to_extent="1", force_rhr="0"
    )
    layer = ElementTree.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
    values = ElementTree.SubElement(layer, "Option", type="Map")
    for name, value in options.items():
        ElementTree.SubElement(values, "Option", type="QString", name=name, value=value)
    return renderer


def footprint_qml() -> str:
    """Return the footprints' style as QML, for QGIS 3."""
    root = ElementTree.Element("qgis", version="3.22.0", styleCategories="Symbology")
    root.append(footprint_renderer())
    ElementTree.SubElement(root, "layerGeometryType").text = "2"
    ElementTree.indent(root, " ")
    body = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{body}\n"


def mask_renderer() -> ElementTree.Element:
    """Return QGIS's element for ``mask.tif``: buildings in a colour that lets the imagery through, all else clear."""
    renderer = _raster_renderer("paletted", INTERNAL_MASK, band="1")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    entry = {"value": "255", "color": MASK, "alpha": str(MASK_ALPHA), "label": "building"}
    ElementTree.SubElement(palette, "paletteEntry", entry)
    return renderer


def probability_renderer() -> ElementTree.Element:
    """Return QGIS's element for ``probability.tif``: the report's colours, from clear at 0 to solid at 1."""
    renderer = _raster_renderer(
        "singlebandpseudocolor", INTERNAL_MASK, band="1", classificationMin="0", classificationMax="1"
    )
    shader = ElementTree.SubElement(
        ElementTree.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue="0",
        maximumValue="1",
        labelPrecision="2",
    )
    last = len(INFERNO) - 1
    for step, (red, green, blue) in enumerate(INFERNO):
        item = {
            "value": f"{step / last:.6g}",
            "label": f"{step / last:.2f}",
            "color": f"#{red:02x}{green:02x}{blue:02x}",
            "alpha": str(min(255, 510 * step // last)),
        }
        ElementTree.SubElement(shader, "item", item)
    return renderer


def rgb_renderer(
    bands: tuple[int, int, int], stretch: tuple[float, float] | None, alpha: int | None = None
) -> ElementTree.Element:
    """Return QGIS's element for imagery.

    Args:
        bands: Red, green and blue, counted from 1.
        stretch: Values shown black and white; None shows bytes as they are.
        alpha: The band that holds the opacity.
    """
    red, green, blue = (str(band) for band in bands)
    renderer = _raster_renderer("multibandcolor", alpha or -1, redBand=red, greenBand=green, blueBand=blue)
    for colour in ("red", "green", "blue") if stretch is not None else ():
        enhancement = ElementTree.SubElement(renderer, f"{colour}ContrastEnhancement")
        for name, value in zip(("minValue", "maxValue"), stretch or (), strict=True):
            ElementTree.SubElement(enhancement, name).text = f"{value:.17g}"
        ElementTree.SubElement(enhancement, "algorithm").text = "StretchToMinimumMaximum"
    return renderer


def _raster_renderer(kind: str, alpha: int, **bands: str) -> ElementTree.Element:
    given = {"type": kind, "opacity": "1", "alphaBand": str(alpha), "nodataColor": "", **bands}
    renderer = ElementTree.Element("rasterrenderer", given)
    ElementTree.SubElement(renderer, "rasterTransparency")
    origin = ElementTree.SubElement(renderer, "minMaxOrigin")
    ElementTree.SubElement(origin, "limits").text = "None"
    return renderer


def embed_style(path: Path, layer: str, geometry: str, when: str) -> None:
    """Store the footprints' style in a GeoPackage as the default of one layer.

    Args:
        path: the GeoPackage; it has no ``layer_styles`` table yet.
        layer: name of the layer.
        geometry: name of its geometry column.
        when: time of the change, ISO 8601, UTC.
    """
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE {TABLE} ({_COLUMNS})")
        database.execute(
            f"INSERT INTO {TABLE} (f_table_catalog, f_table_schema, f_table_name,"  # noqa: S608 - a constant
            " f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner,"
            " ui, update_time)"
            " VALUES ('', '', ?, ?, ?, ?, '', 1, 'Building footprints', '', NULL, ?)",
            (layer, geometry, layer, footprint_qml(), when),
        )
        # Registered as a plain table, as the GeoPackage standard wants.
        database.execute(
            "INSERT INTO gpkg_contents"
            " (table_name, data_type, identifier, description, last_change)"
            " VALUES (?, 'attributes', ?, '', ?)",
            (TABLE, TABLE, when),
        )
