"""Results in the real QGIS: it opens everything, without a warning, where it belongs, and styled."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from conftest import CITY_SHAPE
from parts import required, run

from geoseg.style import FILL, OUTLINE

PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).with_name("look_with_qgis.py")
LEFT, TOP, PIXEL = 400_000, 5_800_000, 0.5
HOLE, NO_TILE = (70, 128), (200, 200)
"""Row and column of a pixel in the hole without data, and of one in the corner that no tile covers."""


def qgis(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the Python that has PyQGIS, without a screen and with a home of its own."""
    folder.mkdir(mode=0o700, exist_ok=True)
    own = {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    # Without the paths to GDAL's and PROJ's data that this process may have set for its own GDAL.
    inherited = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return subprocess.run([PYTHON, *args], env=inherited | own, capture_output=True, text=True, timeout=120)


def ground(row: int, col: int) -> str:
    """Return the coordinates of a pixel's centre."""
    return f"{LEFT + PIXEL * (col + 0.5)},{TOP - PIXEL * (row + 0.5)}"


@pytest.fixture(scope="module")
def out(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a small run."""
    folder = tmp_path_factory.mktemp("results") / "out"
    run(city, folder, narrow_model, format=("gpkg", "fgb", "geojson"))
    return folder


@pytest.fixture(scope="module")
def values(out: Path) -> dict[str, np.ndarray]:
    """The rasters as rasterio reads them."""
    found = {}
    for name in ("mask", "probability"):
        with rasterio.open(out / f"{name}.tif") as dataset:
            found[name] = dataset.read(1)
    return found


@pytest.fixture(scope="module")
def points(values: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Pixels to ask for: both without data, one building, one not, and one of a middling probability."""
    chosen = [HOLE, NO_TILE]
    with_data = values["probability"] > 0
    for wanted in (values["mask"] == 255, with_data & (values["mask"] == 0), np.abs(values["probability"] - 100.0) < 9):
        rows, cols = np.nonzero(wanted)
        chosen.append((int(rows[len(rows) // 2]), int(cols[len(cols) // 2])))
    return chosen


@pytest.fixture(scope="module")
def seen(out: Path, points: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What QGIS says of the results."""
    home = tmp_path_factory.mktemp("qgis") / "home"
    here = Path(PYTHON).exists() and qgis(home, "-c", "import qgis.core").returncode == 0
    required(here, f"PyQGIS ({PYTHON} with qgis.core)")
    # QGIS itself leaves statistics of rasters beside them; a copy is not needed, as it computes none here.
    done = qgis(home, str(SCRIPT), str(out), *(ground(*point) for point in points))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["stderr"] = done.stderr
    return found


def test_nothing_is_complained_about(seen: dict[str, Any]) -> None:
    assert seen["stderr"] == ""
    assert seen["said"] == []


@pytest.mark.parametrize(("form", "crs"), [("gpkg", "EPSG:32633"), ("fgb", "EPSG:32633"), ("geojson", "EPSG:4326")])
def test_footprints_open_where_they_belong(seen: dict[str, Any], out: Path, form: str, crs: str) -> None:
    layer = seen[form]
    table = pyogrio.read_dataframe(out / "buildings.gpkg", layer="buildings")
    assert len(table) >= 5
    assert layer["valid"]
    assert layer["said"] == layer["read"] == len(table)
    assert layer["crs"] == crs
    assert layer["geos_invalid"] == 0
    for name in ("id", "area_m2", "perimeter_m", "probability"):
        # FlatGeobuf orders by place.
        assert sorted(layer["attributes"][name]) == sorted(table[name])
    if form != "geojson":
        assert layer["area"] == pytest.approx(table.geometry.area.sum(), rel=1e-9)


def test_geopackage_brings_its_style(seen: dict[str, Any]) -> None:
    assert seen["gpkg"]["fill"] == [int(part) for part in FILL.split(",")]
    assert seen["gpkg"]["outline"] == [int(part) for part in OUTLINE.split(",")]
    # QGIS chooses a colour at random for what brings none: the colours above are not its own.
    assert seen["fgb"]["fill"] != seen["gpkg"]["fill"]


@pytest.mark.parametrize(("name", "scale"), [("mask", 1.0), ("probability", 1 / 255)])
def test_rasters_open_where_they_belong(seen: dict[str, Any], name: str, scale: float) -> None:
    layer = seen[name]
    assert layer["valid"]
    assert layer["crs"] == "EPSG:32633"
    assert layer["size"] == [CITY_SHAPE[1], CITY_SHAPE[0]]
    assert layer["pixel"] == pytest.approx([PIXEL, PIXEL])
    assert layer["corner"] == pytest.approx([LEFT, TOP])
    assert layer["scale"] == pytest.approx(scale)


@pytest.mark.parametrize("name", ["mask", "probability"])
def test_pixels_without_data_are_transparent(
    seen: dict[str, Any], values: dict[str, np.ndarray], points: list[tuple[int, int]], name: str
) -> None:
    layer = seen[name]
    # QGIS shows the internal mask as a second band, and takes that for the opacity of the first.
    assert layer["alpha_band"] == 2
    for point, (value, alpha), opacity in zip(points, layer["values"], layer["opacity"], strict=True):
        has_data = point not in (HOLE, NO_TILE)
        assert alpha == 255 * has_data, point
        assert opacity == 255 * has_data, point
        if has_data:
            assert value == pytest.approx(values[name][point] * layer["scale"], rel=1e-6), point
