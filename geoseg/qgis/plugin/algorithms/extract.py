"""*Extract building footprints*: ``geoseg segment`` on layers of the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputHtml,
    QgsProcessingOutputNumber,
    QgsProcessingOutputRasterLayer,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterString,
)

from ..layers import export_polygons, write_polygons
from ..runner import run
from ..styling import styling
from .base import MODEL_FILES, Algorithm

SHARES = {"segmenting": 0.93, "writing rasters": 0.04, "writing footprints": 0.03}
TITLES = {"PROBABILITY": "Building probability", "MASK": "Building mask", "FOOTPRINTS": "Building footprints"}


class ExtractFootprints(Algorithm):
    """Imagery → footprints, mask, probability."""

    NAME = "extractfootprints"
    TITLE = "Extract building footprints"
    SHORT = "Finds the buildings in orthophotos and draws their outlines."
    TAGS = ("extract", "orthophoto", "aerial", "u-net", "deep learning", "roofs")

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_rasters("Imagery: raster layers")
        self.addParameter(QgsProcessingParameterExtent("EXTENT", "Only in this extent", optional=True))
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                "AREA", "Only inside these polygons", [QgsProcessing.TypeVectorPolygon], optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterFile(
                "MODEL", "Model: a file or a name (empty: geoseg's own)", optional=True, fileFilter=MODEL_FILES
            )
        )
        self.add_number("THRESHOLD", "Building from this probability (not set: the model's)", high=1.0)
        self.add_number("GSD", "Ground resolution in metres a pixel (not set: the imagery's)")
        self.add_outlines()
        self.advanced(
            QgsProcessingParameterString("BANDS", "Bands that are red, green, blue (such as 4,3,2)", optional=True)
        )
        self.advanced(
            QgsProcessingParameterString(
                "RANGE", "Values that are black and white, for more than 8 bits (such as 0,10000)", optional=True
            )
        )
        self.advanced(QgsProcessingParameterBoolean("TTA", "Average over eight turns: eight times the work", False))
        self.advanced(QgsProcessingParameterString("DEVICE", "Device: auto, cpu, cuda or cuda:N", "auto"))
        self.add_number("WORKERS", "Worker processes (not set: geoseg chooses)", whole=True, advanced=True)
        self.advanced(QgsProcessingParameterBoolean("FRESH", "Start afresh: forget what an earlier run left", False))
        self.addParameter(QgsProcessingParameterBoolean("LOAD", "Add the results to the project", True))
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", "Output folder"))
        self.addOutput(
            QgsProcessingOutputVectorLayer("FOOTPRINTS", TITLES["FOOTPRINTS"], QgsProcessing.TypeVectorPolygon)
        )
        self.addOutput(QgsProcessingOutputRasterLayer("MASK", TITLES["MASK"]))
        self.addOutput(QgsProcessingOutputRasterLayer("PROBABILITY", TITLES["PROBABILITY"]))
        self.addOutput(QgsProcessingOutputHtml("REPORT", "Report"))
        self.addOutput(QgsProcessingOutputFile("RUN", "Facts of the run (JSON)"))
        self.addOutput(QgsProcessingOutputNumber("COUNT", "Number of buildings"))
        self.addOutput(QgsProcessingOutputNumber("AREA_M2", "Area of the buildings in square metres"))
        self.addOutput(QgsProcessingOutputNumber("FAILURES", "Inputs and blocks that failed"))

    def wrong(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Complain when there is no imagery."""
        return self.wrong_rasters(parameters, context)

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Look at the layers while their thread is this one."""
        self._images = self.rasters(parameters, context)
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run ``geoseg segment``."""
        out = self.out_folder(parameters, "OUTPUT", context)
        arguments = ["segment", *self._images, f"--out={out}", "--format=gpkg"]
        arguments += self.options(
            parameters,
            context,
            MODEL="--model",
            THRESHOLD="--threshold",
            GSD="--gsd",
            BANDS="--bands",
            RANGE="--range",
            DEVICE="--device",
            WORKERS="--workers",
        )
        arguments += self.outlines(parameters, context)
        for name, option in (("TTA", "--tta"), ("FRESH", "--fresh")):
            if self.parameterAsBool(parameters, name, context):
                arguments.append(option)
        area = self._area(parameters, context, feedback)
        if area is not None:
            arguments.append(f"--aoi={area}")
        run(
            arguments,
            feedback,
            shares=SHARES,
            names={} if area is None else {str(area): "The area of interest"},
            folder=str(out),
            stopped=f"What is finished is kept: run again with the same folder ({out}) and settings to go on.",
        )
        return self._results(out, self.parameterAsBool(parameters, "LOAD", context), context)

    def _area(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Path | None:
        """Write extent and polygons, or what they have in common, to a file."""
        path = self.scratch("area_of_interest.gpkg")
        rectangle = self.parameterAsExtent(parameters, "EXTENT", context)
        bounded = not rectangle.isNull() and not rectangle.isEmpty()
        source = self.parameterAsSource(parameters, "AREA", context) if parameters.get("AREA") else None
        if source is not None:
            within: QgsGeometry | None = None
            if bounded:
                within = self.parameterAsExtentGeometry(parameters, "EXTENT", context, source.sourceCrs())
            export_polygons(source, path, context.transformContext(), feedback, within)
            return path
        if not bounded:
            return None
        # Without a CRS of its own the extent is in that of the images, as an area of interest without one is.
        crs: QgsCoordinateReferenceSystem = self.parameterAsExtentCrs(parameters, "EXTENT", context)
        write_polygons(path, [(QgsGeometry.fromRect(rectangle), [])], crs, context.transformContext(), feedback)
        return path

    def _results(self, out: Path, load: bool, context: QgsProcessingContext) -> dict[str, Any]:
        try:
            facts = json.loads((out / "run.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise QgsProcessingException(f"{out / 'run.json'}: cannot be read ({error})") from None
        counts = facts["counts"]
        layers = {
            "PROBABILITY": str(out / "probability.tif"),
            "MASK": str(out / "mask.tif"),
            "FOOTPRINTS": f"{out / 'buildings.gpkg'}|layername=buildings",
        }
        if load and context.project() is not None:
            for name, source in layers.items():
                details = QgsProcessingContext.LayerDetails(TITLES[name], context.project(), name)
                details.setPostProcessor(styling(name.lower()))
                if hasattr(details, "layerSortKey"):  # from QGIS 3.32 on; the highest comes on top
                    details.layerSortKey = list(layers).index(name)
                context.addLayerToLoadOnCompletion(source, details)
        return {
            **layers,
            "OUTPUT": str(out),
            "REPORT": str(out / "report.html"),
            "RUN": str(out / "run.json"),
            "COUNT": counts["buildings"],
            "AREA_M2": counts["building_area_m2"],
            "FAILURES": len(facts.get("failures", [])),
        }
