"""*Vectorise mask or probability*: ``geoseg polygonize`` on a layer of the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
    QgsVectorLayer,
)

from ..layers import raster_name
from ..runner import run
from ..styling import styling
from .base import Algorithm


class VectoriseRaster(Algorithm):
    """Mask or probability → footprints."""

    NAME = "vectorise"
    TITLE = "Vectorise mask or probability"
    SHORT = "Turns a mask or a probability raster into outlines of buildings."
    TAGS = ("polygonize", "polygonise", "vectorize", "outline", "simplify", "square", "regularize")

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Mask or probability"))
        self.add_number("THRESHOLD", "Building from this probability (not set: 0.5; not for masks)", high=1.0)
        self.add_outlines()
        self.addParameter(
            QgsProcessingParameterVectorDestination("OUTPUT", "Building footprints", QgsProcessing.TypeVectorPolygon)
        )
        self.addOutput(QgsProcessingOutputNumber("COUNT", "Number of buildings"))

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Look at the layer while its thread is this one."""
        layer = self.parameterAsRasterLayer(parameters, "INPUT", context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, "INPUT"))
        self._raster = raster_name(layer)
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run ``geoseg polygonize``."""
        out = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        arguments = ["polygonize", self._raster, out]
        arguments += self.options(parameters, context, THRESHOLD="--threshold")
        arguments += self.outlines(parameters, context)
        run(arguments, feedback, shares={"vectorising": 1.0}, folder=str(Path(out).parent))
        if context.willLoadLayerOnCompletion(out):
            context.layerToLoadOnCompletionDetails(out).setPostProcessor(styling("footprints"))
        # A QGIS that cannot read the format, as many cannot read Parquet, has nothing to count.
        layer = QgsVectorLayer(out, "buildings", "ogr")
        return {"OUTPUT": out, "COUNT": layer.featureCount() if layer.isValid() else None}
