"""How footprints look in QGIS: a QML style, and the GeoPackage table where QGIS finds it.

QGIS looks for a table ``layer_styles`` in a GeoPackage and applies the row that is marked as
default. The table's columns are those that QGIS itself writes (QgsOgrProvider, *Save style in
database*).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

TABLE = "layer_styles"

OUTLINE = "227,26,28,255"
"""Red, green, blue, opacity: strong enough to be seen on imagery of any colour."""
FILL = "255,191,0,70"
"""Faint enough to leave the roof visible below."""

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


def footprint_qml() -> str:
    """Return the QML of a single fill symbol with an outline, for QGIS 3."""
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
    root = ElementTree.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        root,
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
    ElementTree.SubElement(root, "layerGeometryType").text = "2"
    ElementTree.indent(root, " ")
    body = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{body}\n"


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
