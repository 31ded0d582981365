"""The algorithms, one a file."""

from __future__ import annotations

from .evaluate import EvaluateFootprints
from .extract import ExtractFootprints
from .train import TrainOnLabels
from .vectorise import VectoriseRaster

ALGORITHMS = (ExtractFootprints, VectoriseRaster, EvaluateFootprints, TrainOnLabels)
