"""*Train on drawn labels*: a pipeline file for ``geoseg train``, from layers of the project."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
)

from ..layers import export_polygons
from ..runner import run
from .base import MODEL_FILES, Algorithm, parsed

LAYERS = {"BUILDINGS": "buildings", "AREA": "areas_to_learn", "VALIDATION": "areas_to_check"}
PIPELINE = "pipeline.toml"
AUGMENT = """
[train.augment]
turn = true
scale = [0.8, 1.25]
brightness = 0.2
contrast = 0.2
saturation = 0.3
gamma = [0.8, 1.25]
"""


class TrainOnLabels(Algorithm):
    """Outlines drawn by hand → a model for them."""

    NAME = "train"
    TITLE = "Train on drawn labels"
    SHORT = "Teaches a model your own imagery, from buildings that you have drawn."
    TAGS = ("train", "fine-tune", "learning", "labels", "model")

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        self.add_rasters("Imagery: raster layers")
        for name, words in (
            ("BUILDINGS", "Buildings"),
            ("AREA", "Areas to learn from: every building inside is drawn"),
            ("VALIDATION", "Areas to check on: likewise, and elsewhere"),
        ):
            self.addParameter(QgsProcessingParameterFeatureSource(name, words, [QgsProcessing.TypeVectorPolygon]))
        self.addParameter(
            QgsProcessingParameterFile(
                "MODEL",
                "Model to start from: a file or a name (empty: geoseg's own)",
                optional=True,
                fileFilter=MODEL_FILES,
            )
        )
        number = QgsProcessingParameterNumber
        self.addParameter(number("EPOCHS", "Epochs", number.Integer, 20, False, 1))
        self.add_number("GSD", "Ground resolution in metres a pixel (not set: the model's)")
        self.advanced(number("CROP", "Side of a crop in pixels, a multiple of 32", number.Integer, 256, False, 32))
        self.advanced(number("BATCH", "Crops a step", number.Integer, 8, False, 1))
        self.advanced(number("CROPS", "Crops an epoch", number.Integer, 400, False, 1))
        self.advanced(number("LEARNING_RATE", "Learning rate", number.Double, 0.00002, False, 0))
        self.advanced(number("FROZEN", "Levels of the encoder that keep their weights", number.Integer, 2, False, 0, 5))
        self.advanced(number("SEED", "Seed of the random numbers", number.Integer, 0, False, 0))
        self.advanced(QgsProcessingParameterString("DEVICE", "Device: auto, cpu, cuda or cuda:N", "auto"))
        self.advanced(
            QgsProcessingParameterString("BANDS", "Bands that are red, green, blue (such as 4,3,2)", optional=True)
        )
        self.advanced(
            QgsProcessingParameterString(
                "RANGE", "Values that are black and white, for more than 8 bits (such as 0,10000)", optional=True
            )
        )
        self.advanced(QgsProcessingParameterBoolean("FRESH", "Start afresh: forget what an earlier run left", False))
        self.addParameter(QgsProcessingParameterFolderDestination("OUTPUT", "Output folder"))
        self.addOutput(QgsProcessingOutputFile("TRAINED", "Model"))
        self.addOutput(QgsProcessingOutputFile("CURVES", "Learning curves"))
        self.addOutput(QgsProcessingOutputFile("PIPELINE", "Pipeline file"))
        self.addOutput(QgsProcessingOutputNumber("IOU", "IoU of the best epoch in the areas to check on"))
        self.addOutput(QgsProcessingOutputNumber("THRESHOLD", "Its threshold"))

    def wrong(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Complain about imagery and numbers that cannot be."""
        if self.parameterAsInt(parameters, "CROP", context) % 32:
            return "The side of a crop must be a multiple of 32."
        for name in ("BANDS", "RANGE"):
            try:
                self._numbers(parameters, name, context)
            except ValueError:
                return f"{parameters[name]} is no list of numbers separated by commas."
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
        """Run ``geoseg train``."""
        out = self.out_folder(parameters, "OUTPUT", context)
        name = self.text(parameters, "MODEL", context)
        card = parsed(run(["model", "info", *([name] if name else [])], feedback).stdout, "model info")
        labels = {key: self._labels(key, out, parameters, context, feedback) for key in LAYERS}
        pipeline = out / PIPELINE
        pipeline.write_text(self._pipeline(out, card, labels, parameters, context), "utf-8")
        fresh = ["--fresh"] if self.parameterAsBool(parameters, "FRESH", context) else []
        run(
            ["train", str(pipeline), *fresh],
            feedback,
            shares={"training": 1.0},
            folder=str(out),
            stopped=f"Whole epochs are kept: run again with the same folder ({out}), layers and settings to go on.",
        )
        best = _best(out / "curves.csv")
        # Without a single building to check on, no epoch is the best.
        model = out / ("best.safetensors" if best else "last.safetensors")
        results = {
            "OUTPUT": str(out),
            "TRAINED": str(model),
            "CURVES": str(out / "curves.png"),
            "PIPELINE": str(pipeline),
            "IOU": best.get("val_iou"),
            "THRESHOLD": best.get("threshold"),
        }
        feedback.pushInfo(f"Model for 'Extract building footprints': {model}")
        return results

    def _labels(
        self,
        name: str,
        out: Path,
        parameters: dict[str, Any],
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,
    ) -> str:
        """Write a layer beside the pipeline and return its path, which has another name when the layer is another."""
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        made = self.scratch(f"{LAYERS[name]}.gpkg")
        digest = export_polygons(source, made, context.transformContext(), feedback)
        path = out / "labels" / f"{LAYERS[name]}_{digest[:8]}.gpkg"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(made.read_bytes())
        return str(path)

    def _numbers(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> list[float]:
        text = self.text(parameters, name, context)
        kind = int if name == "BANDS" else float
        return [kind(part) for part in text.split(",")] if text else []

    def _pipeline(
        self,
        out: Path,
        card: dict[str, Any],
        labels: dict[str, str],
        parameters: dict[str, Any],
        context: QgsProcessingContext,
    ) -> str:
        """Return the pipeline file: fine-tuning as in geoseg's own example, pipelines/fine_tune.toml."""

        def whole(name: str) -> int:
            return int(self.parameterAsInt(parameters, name, context))

        gsd = self.number(parameters, "GSD", context) or card.get("gsd_m")
        train = {
            "out": str(out),
            "name": out.name,
            "arch": card["arch"],
            "num_filters": card["num_filters"],
            "is_deconv": card.get("is_deconv", False),
            "init": "checkpoint",
            "weights": card["file"],
            "frozen": whole("FROZEN"),
            "encoder_rate": 0.1,
            "gsd": gsd,
            "crop": whole("CROP"),
            "batch": whole("BATCH"),
            "crops": whole("CROPS"),
            "epochs": whole("EPOCHS"),
            "learning_rate": self.parameterAsDouble(parameters, "LEARNING_RATE", context),
            "clip": 1.0,
            "schedule": "cosine",
            "warmup": 20,
            "average": 0.99,
            "seed": whole("SEED"),
            "device": self.text(parameters, "DEVICE", context) or "auto",
        }
        common = {
            "images": self._images,
            "buildings": labels["BUILDINGS"],
            "bands": self._numbers(parameters, "BANDS", context),
            "range": self._numbers(parameters, "RANGE", context),
        }
        return (
            "# Written by QGIS; to repeat:  geoseg train "
            + PIPELINE
            + "\n\n[train]\n"
            + _toml(train)
            + AUGMENT
            + "\n[[train.data]]\n"
            + _toml({"name": "drawn in QGIS", **common, "aoi": labels["AREA"]})
            + "\n[[train.validate]]\n"
            + _toml({"name": "drawn in QGIS, held out", **common, "aoi": labels["VALIDATION"]})
        )


def _toml(table: dict[str, Any]) -> str:
    """Return lines of TOML, without the keys that hold nothing; JSON's texts, numbers and lists are also TOML's."""
    given = {key: value for key, value in table.items() if value not in (None, [])}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in given.items())


def _best(path: Path) -> dict[str, float]:
    """Return the epoch of the learning curve with the highest IoU."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("val_iou")]
    except OSError as error:
        raise QgsProcessingException(f"{path}: cannot be read ({error.strerror})") from None
    best = max(rows, key=lambda row: float(row["val_iou"]), default={})
    return {key: float(value) for key, value in best.items() if value}
