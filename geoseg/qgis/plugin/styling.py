"""Results with the style that geoseg gives them: footprints bring theirs, mask and probability find it in the project.

Processing loads layers without the style that their file has.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from qgis.core import (
    QgsMapLayer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsRasterLayer,
)
from qgis.PyQt.QtXml import QDomDocument

PROJECT, DOCUMENT = "project.qgz", "project.qgs"
"""The file in the output folder, and the one inside it."""


class _OwnStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives a layer the default style stored with it."""

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style one layer that has just come into the project."""
        layer.loadDefaultStyle()
        layer.triggerRepaint()


class _RasterStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives a raster the style that the project file beside it has for it, and hides it below the footprints."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Style one layer that has just come into the project."""
        if not isinstance(layer, QgsRasterLayer):
            return
        style = _style(Path(layer.source()).with_name(PROJECT), f"geoseg_{self._kind}")
        if style is not None:
            layer.importNamedStyle(style)
            layer.triggerRepaint()
        project = context.project()
        node = project.layerTreeRoot().findLayer(layer.id()) if project is not None else None
        if node is not None:
            # The footprints say it better over imagery; one click shows where they come from.
            node.setItemVisibilityChecked(False)
            node.setExpanded(False)


def _style(project: Path, layer: str) -> QDomDocument | None:
    """Return a layer's style out of a project file, None where there is none."""
    try:
        with zipfile.ZipFile(project) as archive:
            content = archive.read(DOCUMENT)
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    found = QDomDocument()
    found.setContent(content.decode("utf-8", "replace"))
    layers = found.elementsByTagName("maplayer")
    for number in range(layers.count()):
        element = layers.at(number).toElement()
        pipe = element.firstChildElement("pipe")
        if element.firstChildElement("id").text() == layer and not pipe.isNull():
            style = QDomDocument("qgis")
            root = style.createElement("qgis")
            style.appendChild(root)
            root.appendChild(style.importNode(pipe, True))
            return style
    return None


_held: dict[str, QgsProcessingLayerPostProcessorInterface] = {}


def styling(kind: str) -> QgsProcessingLayerPostProcessorInterface:
    """Return a post-processor for ``footprints``, ``mask`` or ``probability``, for one run: its context deletes it."""
    made = _OwnStyle() if kind == "footprints" else _RasterStyle(kind)
    # Until there is another one, so that Python does not take it away before QGIS calls it.
    _held[kind] = made
    return made
