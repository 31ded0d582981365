"""Open project files as QGIS does and print what it says, as JSON; run by the Python that has PyQGIS.

Usage: open_project.py FILE X,Y [X,Y …]: the colours of the map at the points are printed, as it opens and with each of
the layers that are switched off at first.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from qgis.core import (
    QgsApplication,
    QgsLayerTreeGroup,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsPointXY,
    QgsProject,
)
from qgis.PyQt.QtCore import QSize


def tree(group: Any) -> list[Any]:
    """Return names and switches of a group, nested."""
    found = []
    for child in group.children():
        inside = tree(child) if isinstance(child, QgsLayerTreeGroup) else child.layerId()
        found.append([child.name(), child.itemVisibilityChecked(), inside])
    return found


def colours(project: Any, points: list[Any]) -> list[list[int]]:
    """Draw the map of what is switched on and return its colours at the points."""
    root = project.layerTreeRoot()
    settings = QgsMapSettings()
    settings.setLayers([layer for layer in root.layerOrder() if root.findLayer(layer.id()).isVisible()])
    settings.setDestinationCrs(project.crs())
    settings.setTransformContext(project.transformContext())
    settings.setExtent(project.viewSettings().defaultViewExtent())
    settings.setOutputSize(QSize(600, 600))
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    image, place = job.renderedImage(), settings.mapToPixel()
    pixels = [place.transform(point) for point in points]
    return [list(image.pixelColor(int(pixel.x()), int(pixel.y())).getRgb()) for pixel in pixels]


def layer_facts(layer: Any) -> dict[str, Any]:
    """Return what QGIS knows of a layer."""
    box = layer.extent()
    facts = {
        "valid": layer.isValid(),
        "crs": layer.crs().authid(),
        "source": layer.source(),
        "renderer": layer.renderer().type(),
        "extent": [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()],
    }
    if layer.type() == 0:
        symbol = layer.renderer().symbol()
        outline = list(symbol.symbolLayer(0).strokeColor().getRgb())
        facts |= {"count": layer.featureCount(), "fill": list(symbol.color().getRgb()), "outline": outline}
    else:
        facts["alpha_band"] = layer.renderer().alphaBand()
    return facts


def main() -> None:
    """Open the project."""
    points = [QgsPointXY(*(float(part) for part in text.split(","))) for text in sys.argv[2:]]
    application = QgsApplication([], False)
    application.initQgis()
    said: list[str] = []
    application.messageLog().messageReceived.connect(lambda text, tag, level: said.append(f"{tag}: {text}"))
    project = QgsProject.instance()
    read = project.read(sys.argv[1])
    root = project.layerTreeRoot()
    box = project.viewSettings().defaultViewExtent()
    found: dict[str, Any] = {
        "read": read,
        "error": project.error(),
        "title": project.title(),
        "crs": project.crs().authid(),
        "ellipsoid": project.ellipsoid(),
        "tree": tree(root),
        "order": [layer.id() for layer in root.layerOrder()],
        "extent": [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()],
        "layers": {name: layer_facts(layer) for name, layer in project.mapLayers().items()},
        "colours": colours(project, points),
    }
    for node in root.findLayers():
        if not node.itemVisibilityChecked():
            node.setItemVisibilityChecked(True)
            found[f"colours with {node.name()}"] = colours(project, points)
            node.setItemVisibilityChecked(False)
    found["said"] = said
    print(json.dumps(found))
    application.exitQgis()


if __name__ == "__main__":
    main()
