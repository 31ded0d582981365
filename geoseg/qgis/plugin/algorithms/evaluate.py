"""*Evaluate footprints*: ``geoseg evaluate`` on two layers of the project."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterString,
    QgsRasterLayer,
    QgsVectorLayer,
)

from ..layers import export_polygons, raster_name
from ..runner import run
from .base import Algorithm, parsed

RATIOS = {
    "iou": "IoU",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "boundary_iou": "Boundary IoU",
}


OUTLINES = {
    "f1": "F1 of buildings, matched at IoU 0.5",
    "ap": "Average precision of buildings",
    "c_iou": "C-IoU of outlines",
    "polis_m": "PoLiS distance of outlines in metres",
    "tangent_angle_deg": "Maximum tangent angle error of outlines in degrees",
}
"""What there is besides for predicted polygons."""


class EvaluateFootprints(Algorithm):
    """Footprints, mask or probability against a reference → numbers."""

    NAME = "evaluate"
    TITLE = "Evaluate footprints"
    SHORT = "Measures footprints, a mask or a probability against a reference."
    TAGS = ("accuracy", "iou", "precision", "recall", "quality", "validation", "metrics")

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs."""
        kinds = [QgsProcessing.TypeRaster, QgsProcessing.TypeVectorPolygon]
        self.addParameter(
            QgsProcessingParameterMapLayer("PREDICTED", "Footprints, mask or probability", None, False, kinds)
        )
        self.addParameter(
            QgsProcessingParameterMapLayer("REFERENCE", "Reference: footprints or mask", None, False, kinds)
        )
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                "AREA", "Only inside these polygons", [QgsProcessing.TypeVectorPolygon], optional=True
            )
        )
        self.add_number("THRESHOLD", "Building from this probability (not set: 0.5)", high=1.0)
        self.add_number("GSD", "Pixel size in metres, for polygons on both sides")
        self.add_number("BOUNDARY_M", "Distance of the boundary IoU in metres (not set: 2 % of the diagonal)")
        self.advanced(
            QgsProcessingParameterString("CLASSES", "Values of the reference that mean building", optional=True)
        )
        self.advanced(
            QgsProcessingParameterString("IGNORE", "Values of the reference that mean 'not labelled'", optional=True)
        )
        self.addParameter(QgsProcessingParameterFileDestination("HTML", "Report", "HTML files (*.html)"))
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "JSON", "Numbers for programs", "JSON files (*.json)", optional=True, createByDefault=False
            )
        )
        for name, title in RATIOS.items():
            self.addOutput(QgsProcessingOutputNumber(name.upper(), title))
        for name, title in OUTLINES.items():
            self.addOutput(QgsProcessingOutputNumber(f"BUILDINGS_{name.upper()}", title))

    def wrong(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Complain when the grid of the comparison is not known."""
        layers = [self.parameterAsLayer(parameters, name, context) for name in ("PREDICTED", "REFERENCE")]
        both = all(isinstance(layer, QgsVectorLayer) for layer in layers)
        if both and self.number(parameters, "GSD", context) is None:
            return "Both sides are polygons: set Pixel size, on whose grid they are compared (0.25 m is fine for most)."
        return ""

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Look at the layers while their thread is this one."""
        self._rasters: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        for name in ("PREDICTED", "REFERENCE"):
            layer: QgsMapLayer | None = self.parameterAsLayer(parameters, name, context)
            if layer is None:
                raise QgsProcessingException(f"{parameters.get(name)}: is no layer that QGIS can open")
            self._titles[name] = layer.name()
            if isinstance(layer, QgsRasterLayer):
                self._rasters[name] = raster_name(layer)
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run ``geoseg evaluate``."""
        sides = [self._side(name, parameters, context, feedback) for name in self._titles]
        names = dict(zip(sides, self._titles.values()))
        arguments = ["evaluate", *sides, "--json"]
        arguments += self.options(
            parameters,
            context,
            THRESHOLD="--threshold",
            GSD="--gsd",
            BOUNDARY_M="--boundary-m",
            CLASSES="--classes",
            IGNORE="--ignore",
        )
        if parameters.get("AREA"):
            area = self._polygons("AREA", parameters, context, feedback)
            arguments.append(f"--aoi={area}")
            names[str(area)] = "The area"
        outcome = run(arguments, feedback, shares={"evaluating": 1.0}, names=names)
        found = parsed(outcome.stdout, "evaluate")
        for note in found.get("notes", []):
            feedback.pushInfo(str(note))
        pixels, polygons = found.get("total") or {}, (found.get("polygons") or {}).get("total") or {}
        results: dict[str, Any] = {}
        for prefix, numbers, titles in (("", pixels, RATIOS), ("BUILDINGS_", polygons, OUTLINES)):
            for name, words in titles.items():
                results[f"{prefix}{name.upper()}"] = numbers.get(name)
                if numbers.get(name) is not None:
                    feedback.pushInfo(f"{words}: {numbers[name]:.4f}")
        title = f"{self._titles['PREDICTED']} against {self._titles['REFERENCE']}"
        contents = {"HTML": page(title, found), "JSON": json.dumps(found, indent=1, ensure_ascii=False)}
        for name, content in contents.items():
            path = self.parameterAsFileOutput(parameters, name, context)
            if path:
                Path(path).write_text(content, "utf-8")
                results[name] = path
        return results

    def _side(
        self, name: str, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> str:
        return self._rasters.get(name) or str(self._polygons(name, parameters, context, feedback))

    def _polygons(
        self, name: str, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> Path:
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        path = self.scratch(f"{name.lower()}.gpkg")
        export_polygons(source, path, context.transformContext(), feedback)
        return path


def page(title: str, found: dict[str, Any]) -> str:
    """Return an evaluation as a page of tables: whatever numbers it has, under the names it gives them."""
    tables = []
    for name, value in found.items():
        rows = "".join(
            f"<tr><td>{html.escape(label)}</td><td>{html.escape(text)}</td></tr>" for label, text in _rows(value)
        )
        if rows and not isinstance(value, list):
            tables.append(f"<h2>{html.escape(_words(name))}</h2><table>{rows}</table>")
    notes = "".join(f"<p>{html.escape(str(note))}</p>" for note in found.get("notes", []))
    style = (
        "body{font-family:sans-serif;margin:2em}td{padding:.15em 1.5em .15em 0}td+td{text-align:right;"
        "font-variant-numeric:tabular-nums}h2{font-size:1.1em}"
    )
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{style}</style>"
    body = f"<h1>{html.escape(title)}</h1>{''.join(tables)}{notes}"
    return f"<!DOCTYPE html><html><head>{head}</head><body>{body}</body></html>\n"


def _rows(value: Any, label: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _rows(inner, f"{label} · {_words(name)}" if label else _words(name))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield label or "value", f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.4f}"
    elif isinstance(value, str) and label:
        yield label, value


def _words(name: str) -> str:
    return RATIOS.get(name, str(name).replace("_", " "))
