"""What the algorithms share: parameters that several have, and how they become options of geoseg."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qgis.core import (
    NULL,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingUtils,
)
from qgis.PyQt.QtGui import QIcon

from ..environment import EnvironmentMissingError, find
from ..layers import raster_name

ICON = str(Path(__file__).parents[1] / "icon.svg")
HELP = Path(__file__).parents[1] / "help"
"""Folder of the texts beside the parameters, one an algorithm."""
MODEL_FILES = "Models, or any name (*)"
"""Filter of files; without one, QGIS wants a dot in the name, which names of shipped models have not."""
CORNERS = ("As geoseg does by default", "Right angles where walls are nearly so", "As they were found")
_CORNER_OPTIONS = ("", "--square", "--no-square")
EDGES = ("As geoseg does by default", "Where the probability passes the threshold, between pixels", "Edges of pixels")
_EDGE_OPTIONS = ("", "--outline=subpixel", "--outline=pixel")


class Algorithm(QgsProcessingAlgorithm):
    """An algorithm of geoseg; subclasses say which."""

    NAME = TITLE = SHORT = ""
    TAGS: tuple[str, ...] = ()

    def name(self) -> str:
        """Return the part of the id after the colon; never to change."""
        return self.NAME

    def displayName(self) -> str:
        """Return the name in the toolbox."""
        return self.TITLE

    def shortDescription(self) -> str:
        """Return the line shown when the mouse is over the name."""
        return self.SHORT

    def shortHelpString(self) -> str:
        """Return the text beside the parameters."""
        return (HELP / f"{self.NAME}.html").read_text("utf-8")

    def tags(self) -> list[str]:
        """Return what it is also found by."""
        return ["buildings", "footprints", "segmentation", *self.TAGS]

    def icon(self) -> QIcon:
        """Return the icon."""
        return QIcon(ICON)

    def createInstance(self) -> Algorithm:
        """Return a new one of this kind."""
        return type(self)()

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[bool, str]:
        """Say before the run when geoseg cannot be found or does not work."""
        fine, message = super().checkParameterValues(parameters, context)
        if fine:
            try:
                find().check()
            except EnvironmentMissingError as error:
                return False, str(error)
            message = self.wrong(parameters, context)
        return not message, message

    def wrong(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Return what is wrong with the parameters together, or nothing."""
        return ""

    def advanced(self, parameter: QgsProcessingParameterDefinition) -> None:
        """Add a parameter to those that are folded away."""
        parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(parameter)

    def add_rasters(self, what: str) -> None:
        """Add the two ways of naming imagery."""
        self.addParameter(QgsProcessingParameterMultipleLayers("INPUT", what, QgsProcessing.TypeRaster, optional=True))
        self.addParameter(
            QgsProcessingParameterFile(
                "FOLDER", "… and all images of a folder", QgsProcessingParameterFile.Folder, optional=True
            )
        )

    def wrong_rasters(self, parameters: dict[str, Any], context: QgsProcessingContext) -> str:
        """Return a complaint when no imagery is named."""
        if self.parameterAsLayerList(parameters, "INPUT", context) or self.text(parameters, "FOLDER", context):
            return ""
        if parameters.get("INPUT"):
            return f"The raster layers cannot be opened: {parameters['INPUT']}"
        return "Choose raster layers, or a folder of images."

    def rasters(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[str]:
        """Return the names of all images."""
        layers = self.parameterAsLayerList(parameters, "INPUT", context)
        folder = self.text(parameters, "FOLDER", context)
        names = [raster_name(layer) for layer in layers] + ([folder] if folder else [])
        complaint = self.wrong_rasters(parameters, context) if not names else ""
        if complaint:
            raise QgsProcessingException(complaint)
        return names

    def add_number(
        self,
        name: str,
        words: str,
        *,
        whole: bool = False,
        low: float = 0.0,
        high: float | None = None,
        default: float | None = None,
        advanced: bool = False,
    ) -> None:
        """Add a number that may be left out, for geoseg to choose."""
        kind = QgsProcessingParameterNumber.Integer if whole else QgsProcessingParameterNumber.Double
        bounds = {"minValue": low, **({} if high is None else {"maxValue": high})}
        parameter = QgsProcessingParameterNumber(name, words, kind, default, True, **bounds)
        if not whole:
            parameter.setMetadata({"widget_wrapper": {"decimals": 3}})
        (self.advanced if advanced else self.addParameter)(parameter)

    def number(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> float | None:
        """Return a number, None where it was left out."""
        # A model passes what is not set as a null of Qt's.
        if parameters.get(name) in (None, "", NULL):
            return None
        if self.parameterDefinition(name).dataType() == QgsProcessingParameterNumber.Integer:
            return int(self.parameterAsInt(parameters, name, context))
        return float(self.parameterAsDouble(parameters, name, context))

    def text(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> str:
        """Return a text without blanks around it, empty where it was left out."""
        return str(self.parameterAsString(parameters, name, context) or "").strip()

    def options(self, parameters: dict[str, Any], context: QgsProcessingContext, **names: str) -> list[str]:
        """Return options for those of the parameters that were given: ``THRESHOLD="--threshold"``."""
        chosen: list[str] = []
        for name, option in names.items():
            if isinstance(self.parameterDefinition(name), QgsProcessingParameterNumber):
                value = self.number(parameters, name, context)
                given = "" if value is None else f"{value:.12g}"
            else:
                given = self.text(parameters, name, context)
            if given:
                chosen.append(f"{option}={given}")
        return chosen

    def add_outlines(self) -> None:
        """Add what shapes outlines."""
        self.addParameter(QgsProcessingParameterEnum("CORNERS", "Corners", list(CORNERS), defaultValue=0))
        self.add_number("MIN_AREA", "Leave out buildings smaller than (m²)")
        self.add_number("MIN_HOLE", "Close holes smaller than (m²)")
        self.add_number("SIMPLIFY", "Outlines may move by (m; 0 keeps pixel edges)", advanced=True)
        self.advanced(QgsProcessingParameterEnum("EDGES", "Outlines are made from", list(EDGES), defaultValue=0))

    def outlines(self, parameters: dict[str, Any], context: QgsProcessingContext) -> list[str]:
        """Return the options that shape outlines."""
        corners = _CORNER_OPTIONS[self.parameterAsEnum(parameters, "CORNERS", context)]
        edges = _EDGE_OPTIONS[self.parameterAsEnum(parameters, "EDGES", context)]
        return [
            *self.options(parameters, context, MIN_AREA="--min-area", MIN_HOLE="--min-hole", SIMPLIFY="--simplify"),
            *([corners] if corners else []),
            *([edges] if edges else []),
        ]

    def out_folder(self, parameters: dict[str, Any], name: str, context: QgsProcessingContext) -> Path:
        """Return a folder for results, made where it is not there.

        Raises:
            QgsProcessingException: It cannot be made.
        """
        folder = Path(self.parameterAsString(parameters, name, context))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QgsProcessingException(f"{folder}: cannot be made a folder ({error.strerror})") from None
        return folder

    def scratch(self, name: str) -> Path:
        """Return a path for a file that goes when QGIS ends."""
        return Path(QgsProcessingUtils.generateTempFilename(name))


def parsed(text: str, command: str) -> dict[str, Any]:
    """Return the JSON object that a command has printed.

    Raises:
        QgsProcessingException: It printed something else.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise QgsProcessingException(f"geoseg {command} answered with something that is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise QgsProcessingException(f"geoseg {command} answered with something else than facts: {text[:100]}")
    return content


def close(feedback: QgsProcessingFeedback, *lines: str) -> None:
    """Say what came out."""
    for line in lines:
        feedback.pushInfo(line)
