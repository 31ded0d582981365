"""Load a folder of results as QGIS does and print what it says, as JSON; run by the Python that has PyQGIS.

Usage: look_with_qgis.py FOLDER X,Y [X,Y …]: every raster is asked for its values at the points, and drawn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsPointXY,
    QgsRaster,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize, Qt


def vector(source: str) -> dict[str, Any]:
    """Return what QGIS knows of a vector layer and its features."""
    layer = QgsVectorLayer(source, "layer", "ogr")
    if not layer.isValid():
        return {"valid": False}
    features = list(layer.getFeatures())
    symbol = layer.renderer().symbol()
    return {
        "valid": True,
        "said": layer.featureCount(),
        "read": len(features),
        "crs": layer.crs().authid(),
        "geos_invalid": sum(not feature.geometry().isGeosValid() for feature in features),
        "area": sum(feature.geometry().area() for feature in features),
        "attributes": {name: [feature[name] for feature in features] for name in layer.fields().names()},
        "fill": list(symbol.color().getRgb()),
        "outline": list(symbol.symbolLayer(0).strokeColor().getRgb()),
    }


def raster(path: Path, points: list[QgsPointXY]) -> dict[str, Any]:
    """Return what QGIS knows of a raster, its values at points, and how opaque it draws them."""
    layer = QgsRasterLayer(str(path), "layer", "gdal")
    if not layer.isValid():
        return {"valid": False}
    provider = layer.dataProvider()
    answers = [provider.identify(point, QgsRaster.IdentifyFormatValue).results() for point in points]
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setDestinationCrs(layer.crs())
    settings.setExtent(layer.extent())
    settings.setOutputSize(QSize(layer.width(), layer.height()))
    settings.setBackgroundColor(Qt.transparent)
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    image, place = job.renderedImage(), settings.mapToPixel()
    pixels = [place.transform(point) for point in points]
    return {
        "valid": True,
        "crs": layer.crs().authid(),
        "size": [layer.width(), layer.height()],
        "pixel": [layer.rasterUnitsPerPixelX(), layer.rasterUnitsPerPixelY()],
        "corner": [layer.extent().xMinimum(), layer.extent().yMaximum()],
        "scale": provider.bandScale(1),
        "alpha_band": layer.renderer().alphaBand(),
        "values": [[answer[band] for band in sorted(answer)] for answer in answers],
        "opacity": [image.pixelColor(int(pixel.x()), int(pixel.y())).alpha() for pixel in pixels],
    }


def main() -> None:
    """Look at everything in the folder."""
    folder = Path(sys.argv[1])
    points = [QgsPointXY(*(float(part) for part in text.split(","))) for text in sys.argv[2:]]
    application = QgsApplication([], False)
    application.initQgis()
    said: list[str] = []
    application.messageLog().messageReceived.connect(lambda text, tag, level: said.append(f"{tag}: {text}"))
    # Beside what reaches stderr: a handler of QGIS would swallow it.
    gdal.SetErrorHandler(lambda level, number, text: said.append(f"GDAL {level} {number}: {text}"))
    found = {
        "gpkg": vector(f"{folder / 'buildings.gpkg'}|layername=buildings"),
        "fgb": vector(str(folder / "buildings.fgb")),
        "geojson": vector(str(folder / "buildings.geojson")),
        "mask": raster(folder / "mask.tif", points),
        "probability": raster(folder / "probability.tif", points),
        "said": said,
    }
    print(json.dumps(found, default=str))
    application.exitQgis()


if __name__ == "__main__":
    main()
