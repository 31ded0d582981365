"""Use the plugin as QGIS's window does, without one, and print what came of it as JSON; run by PyQGIS's Python.

Usage: use_qgis_plugin.py JOB ARGUMENT…, where JOB is the name of a function below.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsGeometry,
    QgsProcessingContext,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)

sys.path.append("/usr/share/qgis/python/plugins")


class Feedback(QgsProcessingFeedback):
    """Remembers what was said."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__(False)
        self.said: list[str] = []
        self.shares: list[float] = []
        self.progressChanged.connect(self.shares.append)

    def pushInfo(self, info: str) -> None:
        """Remember a line."""
        self.said.append(info)

    def pushWarning(self, warning: str) -> None:
        """Remember a line."""
        self.said.append(warning)

    def reportError(self, error: str, fatalError: bool = False) -> None:
        """Remember a line."""
        self.said.append(error)


def execute(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run an algorithm as the dialog does, and take its layers into the project."""
    from processing.gui.Postprocessing import handleAlgorithmResults

    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"geoseg:{name}")
    context, feedback = QgsProcessingContext(), Feedback()
    context.setProject(QgsProject.instance())
    context.setFeedback(feedback)
    fine, message = algorithm.checkParameterValues(parameters, context)
    results, done = algorithm.run(parameters, context, feedback) if fine else ({}, False)
    shares = list(feedback.shares)
    if done:
        handleAlgorithmResults(algorithm, context, feedback)
    return {
        "done": done,
        "message": message,
        "results": results,
        "said": feedback.said,
        "highest": max(shares, default=None),
        "rising": shares == sorted(shares),
    }


def described(layer: Any) -> dict[str, Any]:
    """Return what QGIS knows of a layer."""
    node = QgsProject.instance().layerTreeRoot().findLayer(layer.id())
    facts = {"valid": layer.isValid(), "crs": layer.crs().authid(), "shown": node.itemVisibilityChecked()}
    renderer = layer.renderer()
    if isinstance(layer, QgsRasterLayer):
        return {**facts, "renderer": renderer.type(), "alpha": renderer.alphaBand()}
    symbol = renderer.symbol()
    outline = list(symbol.symbolLayer(0).strokeColor().getRgb())
    return {**facts, "count": layer.featureCount(), "fill": list(symbol.color().getRgb()), "outline": outline}


def extract(folder: str, model: str, out: str) -> dict[str, Any]:
    """Extract footprints twice, as batch mode does: of everything, and inside the selected polygon of a layer."""
    whole = execute("extractfootprints", {"FOLDER": folder, "MODEL": model, "OUTPUT": f"{out}/whole"})
    layers = {layer.name(): described(layer) for layer in QgsProject.instance().mapLayers().values()}
    drawn = QgsVectorLayer("Polygon?crs=EPSG:32633", "drawn", "memory")
    shapes = []
    for box in ((400_000, 5_799_950, 400_050, 5_800_000), (400_060, 5_799_880, 400_110, 5_799_930)):
        shape = QgsFeature()
        shape.setGeometry(QgsGeometry.fromRect(QgsRectangle(*box)))
        shapes.append(shape)
    drawn.dataProvider().addFeatures(shapes[:1])
    # The second one is nowhere but in the edit buffer.
    drawn.startEditing()
    drawn.addFeature(shapes[1])
    drawn.selectByExpression("$id < 0")
    QgsProject.instance().addMapLayer(drawn)
    part = execute(
        "extractfootprints",
        {
            "FOLDER": folder,
            "MODEL": model,
            "AREA": QgsProcessingFeatureSourceDefinition(drawn.id(), selectedFeaturesOnly=True),
            "EXTENT": "400060,400110,5799880,5799905 [EPSG:32633]",
            "OUTPUT": f"{out}/part",
            "LOAD": False,
        },
    )
    after = len(QgsProject.instance().mapLayers())
    where = QgsProcessingOutputLayerDefinition(f"{out}/again.gpkg", QgsProject.instance())
    again = execute("vectorise", {"INPUT": f"{out}/whole/probability.tif", "OUTPUT": where})
    name = "Building footprints"
    loaded = {layer.source(): described(layer) for layer in QgsProject.instance().mapLayersByName(name)}
    again["layer"] = next(facts for source, facts in loaded.items() if "again.gpkg" in source)
    return {"whole": whole, "part": part, "again": again, "layers": layers, "after": after}


def labels(folder: str, model: str, out: str) -> dict[str, Any]:
    """Train on layers that are in no file: filtered, selected, in memory."""
    buildings = QgsVectorLayer(f"{folder}/labels.gpkg|layername=buildings", "buildings", "ogr")
    buildings.setSubsetString("use = 1")
    areas = {}
    for name, box in (
        ("AREA", (400_000, 5_799_925, 400_065, 5_800_000)),
        ("VALIDATION", (400_065, 5_799_925, 400_115, 5_800_000)),
    ):
        areas[name] = QgsVectorLayer("Polygon?crs=EPSG:32633", name, "memory")
        shape = QgsFeature()
        shape.setGeometry(QgsGeometry.fromRect(QgsRectangle(*box)))
        areas[name].dataProvider().addFeatures([shape])
    QgsProject.instance().addMapLayers([buildings, *areas.values()])
    images = [QgsRasterLayer(f"{folder}/{name}.tif", name) for name in "ab"]
    QgsProject.instance().addMapLayers(images)
    parameters = {
        "INPUT": [layer.id() for layer in images],
        "BUILDINGS": buildings.id(),
        "MODEL": model,
        **{name: layer.id() for name, layer in areas.items()},
        **{"EPOCHS": 1, "CROP": 32, "CROPS": 2, "BATCH": 2, "FROZEN": 5, "DEVICE": "cpu", "OUTPUT": out},
    }
    return execute("train", parameters)


def model(out: str) -> dict[str, Any]:
    """Write a model: footprints of a folder, then outlines of their probability at a higher threshold."""
    made = QgsProcessingModelAlgorithm("Strict footprints", "tests")
    source = QgsProcessingModelChildParameterSource
    for parameter in (
        QgsProcessingParameterFile("images", "Images", QgsProcessingParameterFile.Folder),
        QgsProcessingParameterFile("network", "Network", fileFilter="Any (*)"),
        QgsProcessingParameterFolderDestination("out", "Out"),
    ):
        made.addModelParameter(parameter, QgsProcessingModelParameter(parameter.name()))
    first = QgsProcessingModelChildAlgorithm("geoseg:extractfootprints")
    first.setChildId("first")
    first.addParameterSources("FOLDER", [source.fromModelParameter("images")])
    first.addParameterSources("MODEL", [source.fromModelParameter("network")])
    first.addParameterSources("OUTPUT", [source.fromModelParameter("out")])
    first.addParameterSources("LOAD", [source.fromStaticValue(False)])
    made.addChildAlgorithm(first)
    second = QgsProcessingModelChildAlgorithm("geoseg:vectorise")
    second.setChildId("second")
    second.addParameterSources("INPUT", [source.fromChildOutput("first", "PROBABILITY")])
    second.addParameterSources("THRESHOLD", [source.fromStaticValue(0.7)])
    result = QgsProcessingModelOutput("strict", "Strict")
    result.setChildId("second")
    result.setChildOutputName("OUTPUT")
    second.setModelOutputs({"strict": result})
    made.addChildAlgorithm(second)
    made.updateDestinationParameters()
    # How QGIS calls the parameter of a result depends on its version.
    names = [parameter.name() for parameter in made.destinationParameterDefinitions()]
    return {"written": made.toFile(out), "strict": next(name for name in names if "strict" in name)}


def main() -> None:
    """Start what QGIS starts, and do a job."""
    application = QgsApplication([], False)
    application.initQgis()
    from processing.core.Processing import Processing
    from qgis import utils

    Processing.initialize()
    utils.plugin_paths.append(f"{QgsApplication.qgisSettingsDirPath()}python/plugins")
    sys.path.insert(0, utils.plugin_paths[-1])
    utils.updateAvailablePlugins()
    assert utils.loadPlugin("geoseg")
    assert utils.startProcessingPlugin("geoseg")
    jobs = {"extract": extract, "labels": labels, "model": model}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:]), default=str))
    QgsProject.instance().clear()
    application.exitQgis()


if __name__ == "__main__":
    main()
