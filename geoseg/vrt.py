"""A GDAL virtual raster over files that share pixels: three bands and a mask, each file opened only when it is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from geoseg.write import replacing

if TYPE_CHECKING:
    from geoseg.layout import Layer
    from geoseg.raster import Source

_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}
"""GDAL's names of numpy's types."""


def relative(path: str, folder: Path) -> str:
    """Return a path as seen from a folder, with ``/``; names that are no paths, and other drives, as they are."""
    if path.startswith("/vsi") or "://" in path or not os.path.isabs(path):
        return path
    try:
        seen = os.path.relpath(path, folder.resolve()).replace(os.sep, "/")
    except ValueError:  # another drive of Windows
        return path
    return seen if seen.startswith("../") else f"./{seen}"


def write_vrt(path: Path, layer: Layer, sources: Sequence[Source]) -> None:
    """Write files of one layer of a mosaic as a virtual raster with relative paths.

    Args:
        path: The file, ``.vrt``.
        layer: The pixels that the files share.
        sources: The files; earlier ones lie above later ones where they have data.

    Raises:
        OutputError: The file cannot be written.
    """
    height, width = layer.shape
    root = Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if layer.crs is not None:
        SubElement(root, "SRS", dataAxisToSRSAxisMapping="1,2").text = layer.crs
    a, b, c, d, e, f = layer.transform
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in (c, a, b, f, d, e))
    kind = _TYPES[sources[0].dtype]
    # GDAL draws what comes later above.
    placed = [(source, relative(source.path, path.parent)) for source in reversed(sources)]
    for number, colour in enumerate(("Red", "Green", "Blue")):
        band = SubElement(root, "VRTRasterBand", dataType=kind, band=str(number + 1))
        SubElement(band, "ColorInterp").text = colour
        for source, name in placed:
            palette = ("ColorTableComponent", str(number + 1)) if source.palette else None
            stored = "1" if source.palette else str(source.bands[number])
            _part(band, source, name, stored, palette, ("UseMaskBand", "true"))
    mask = SubElement(SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    for source, name in placed:
        valid = str(source.alpha) if source.alpha else f"mask,{source.bands[0]}"
        # Where a file has no data it must not hide what lies below.
        _part(mask, source, name, valid, ("NODATA", "0"))
    indent(root, " ")
    with replacing(path) as temporary:
        temporary.write_bytes(tostring(root, encoding="utf-8") + b"\n")


def _part(band: Element, source: Source, name: str, stored: str, *more: tuple[str, str] | None) -> None:
    part = SubElement(band, "ComplexSource")
    SubElement(part, "SourceFilename", relativeToVRT=str(int(name != source.path))).text = name.removeprefix("./")
    SubElement(part, "SourceBand").text = stored
    rect = source.native
    kind = "Byte" if "," in stored else _TYPES[source.dtype]
    # With these GDAL need not open the file to learn them.
    facts = {"RasterXSize": str(rect.width), "RasterYSize": str(rect.height), "DataType": kind}
    SubElement(part, "SourceProperties", facts | {"BlockXSize": "256", "BlockYSize": "256"})
    size = {"xSize": str(rect.width), "ySize": str(rect.height)}
    SubElement(part, "SrcRect", {"xOff": "0", "yOff": "0", **size})
    SubElement(part, "DstRect", {"xOff": str(rect.col0), "yOff": str(rect.row0), **size})
    for entry in more:
        if entry is not None:
            SubElement(part, entry[0]).text = entry[1]
