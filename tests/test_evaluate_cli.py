"""``geoseg evaluate``: tables on stdout, notes on stderr, JSON that any parser reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner, Result

from geoseg.cli import main


def save(path: Path, values: list[list[float]], dtype: str = "uint8") -> str:
    path.parent.mkdir(exist_ok=True)
    pixels = np.array(values, dtype)
    options: dict[str, Any] = {"crs": "EPSG:32614", "transform": Affine(1, 0, 600_000, 0, -1, 3_000_000)}
    height, width = pixels.shape
    with rasterio.open(path, "w", "GTiff", width=width, height=height, count=1, dtype=dtype, **options) as file:
        file.write(pixels, 1)
    return str(path)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--progress", "none"])


def test_one_pair(tmp_path: Path) -> None:
    predicted = save(tmp_path / "p.tif", [[1, 1, 0, 0]])
    reference = save(tmp_path / "r.tif", [[1, 0, 0, 0]])
    result = call(predicted, reference)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    # IoU, accuracy, precision, recall and F1 by hand.
    assert ["total", "0.5000", "0.7500", "0.5000", "1.0000", "0.6667", "0.5000"] in rows
    assert "1 tile · 4 pixels · boundary within 1 px" in result.stdout
    assert result.stderr == ""


def test_folders_have_tiles_cities_and_notes(tmp_path: Path) -> None:
    for name in ("austin1", "austin2", "vienna1"):
        save(tmp_path / f"p/{name}.tif", [[1, 1, 0, 0]])
        save(tmp_path / f"r/{name}_mask.tif", [[1, 1, 0, 0]])
    save(tmp_path / "p/lost.tif", [[0]])
    result = call(tmp_path / "p", tmp_path / "r")
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines() if "1.0000" in line]
    assert names == ["austin1", "austin2", "vienna1", "austin", "vienna", "total"]
    assert "lost without a partner" in result.stderr


def test_json_has_null_where_nothing_can_be_divided(tmp_path: Path) -> None:
    empty = save(tmp_path / "empty.tif", [[0, 0]])
    result = call(empty, empty, "--json")
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert found["total"]["iou"] is None
    assert found["total"]["accuracy"] == 1


def test_classes_and_those_not_labelled(tmp_path: Path) -> None:
    predicted = save(tmp_path / "p.tif", [[7, 7, 3, 0]])
    reference = save(tmp_path / "r.tif", [[2, 5, 9, 0]])
    options = ("--predicted-classes", "7", "--classes", "2,5", "--ignore", "9", "--boundary-px", "1", "--json")
    found = json.loads(call(predicted, reference, *options).stdout)["total"]
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (2, 0, 0, 1)
    assert "separated by commas" in call(predicted, reference, "--classes", "2,x").stderr


def test_threshold_and_curve(tmp_path: Path) -> None:
    predicted = save(tmp_path / "p.tif", [[0.9, 0.6, 0.2, 0]], "float32")
    reference = save(tmp_path / "r.tif", [[1, 0, 0, 0]])
    result = call(predicted, reference, "--threshold", "0.7", "--curve")
    assert "threshold 0.7 · best IoU from threshold" in result.stdout
    rows = [line.split()[:2] for line in result.stdout.splitlines() if line]
    assert ["0.50", "0.5000"] in rows
    assert ["0.65", "1.0000"] in rows
    assert "no curve" in call(reference, reference, "--curve").stderr


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    reference = save(tmp_path / "r.tif", [[1, 0]])
    for result in (call(tmp_path / "none.tif", reference), call(reference, reference, "--boundary-m", "-1")):
        assert result.exit_code == 2
        assert result.stderr.startswith("geoseg: ")
        assert result.stdout == ""
