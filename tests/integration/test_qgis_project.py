"""The project of a run in the real QGIS: it opens whole, in order, styled, where it belongs, and after it was moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from conftest import CITY_SHAPE, city_arrays, write_tile
from parts import required, run
from test_qgis import HOLE, LEFT, NO_TILE, PIXEL, PYTHON, TOP, ground, qgis

from geoseg import project
from geoseg.style import FILL, OUTLINE

SCRIPT = Path(__file__).with_name("open_project.py")
BOX = [LEFT, TOP - PIXEL * CITY_SHAPE[0], LEFT + PIXEL * CITY_SHAPE[1], TOP]
"""West, south, east, north of the mosaic."""


def opened(file: Path, home: Path, *points: tuple[int, int]) -> dict[str, Any]:
    """Return what QGIS says of a project."""
    here = Path(PYTHON).exists() and qgis(home, "-c", "import qgis.core").returncode == 0
    required(here, f"PyQGIS ({PYTHON} with qgis.core)")
    done = qgis(home, str(SCRIPT), str(file), *(ground(*point) for point in points))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["read"]
    assert found["error"] == ""
    assert found["said"] == []
    assert all(layer["valid"] for layer in found["layers"].values()), found["layers"]
    return found


def around(point: tuple[int, int]) -> list[list[int]]:
    """Return the imagery's colours at a pixel and its neighbours: QGIS draws to within one of them."""
    row, col = point
    square = city_arrays()[0][:, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
    colours: list[list[int]] = square.reshape(3, -1).T.tolist()
    return colours


@pytest.fixture(scope="module")
def moved(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imagery and results of a run, moved to another place together since."""
    first = tmp_path_factory.mktemp("first") / "work"
    shutil.copytree(city, first / "ortho")
    run(first / "ortho", first / "out", narrow_model, simplify=0.0)
    second = tmp_path_factory.mktemp("second") / "archive"
    shutil.move(first, second)
    return second


@pytest.fixture(scope="module")
def points(moved: Path) -> list[tuple[int, int]]:
    """Pixels to ask for: both without data; deep inside a building; far from any."""
    from scipy import ndimage

    with rasterio.open(moved / "out" / "mask.tif") as dataset:
        mask, valid = dataset.read(1) > 0, dataset.dataset_mask() > 0
    chosen = [HOLE, NO_TILE]
    for wanted in (mask, valid & ~mask):
        depth = ndimage.distance_transform_edt(wanted)
        row, col = np.unravel_index(np.argmax(depth), depth.shape)
        chosen.append((int(row), int(col)))
    return chosen


@pytest.fixture(scope="module")
def seen(moved: Path, points: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What QGIS says of the moved project."""
    return opened(moved / "out" / "project.qgz", tmp_path_factory.mktemp("qgis") / "home", *points)


def test_layers_and_their_order(seen: dict[str, Any], moved: Path) -> None:
    results = ["geoseg_footprints", "geoseg_mask", "geoseg_probability"]
    imagery = [f"geoseg_imagery_{number}" for number in (1, 2, 3)]
    assert seen["tree"] == [
        ["Buildings", True, [
            ["Footprints", True, results[0]], ["Mask", False, results[1]], ["Probability", False, results[2]],
        ]],
        ["Imagery", True, [[name, True, layer] for name, layer in zip("abc", imagery, strict=True)]],
    ]  # fmt: skip
    assert seen["order"] == results + imagery
    assert seen["title"] == "Building footprints: ortho"
    for layer in seen["layers"].values():
        assert Path(layer["source"].partition("|")[0]).resolve().is_relative_to(moved.resolve())


def test_everything_is_where_it_belongs(seen: dict[str, Any], moved: Path) -> None:
    assert seen["crs"] == "EPSG:32633"
    assert seen["ellipsoid"] == "EPSG:7030"
    assert {layer["crs"] for layer in seen["layers"].values()} == {"EPSG:32633"}
    for name in ("geoseg_mask", "geoseg_probability"):
        assert seen["layers"][name]["extent"] == pytest.approx(BOX)
    west, south, east, north = seen["extent"]
    assert west < BOX[0] < BOX[2] < east < BOX[2] + 10
    assert south < BOX[1] < BOX[3] < north < BOX[3] + 10
    count = pyogrio.read_info(moved / "out" / "buildings.gpkg", layer="buildings")["features"]
    assert seen["layers"]["geoseg_footprints"]["count"] == count


def test_styles(seen: dict[str, Any], moved: Path, points: list[tuple[int, int]]) -> None:
    layers = seen["layers"]
    assert layers["geoseg_footprints"]["fill"] == [int(part) for part in FILL.split(",")]
    assert layers["geoseg_footprints"]["outline"] == [int(part) for part in OUTLINE.split(",")]
    assert layers["geoseg_mask"]["renderer"] == "paletted"
    assert layers["geoseg_probability"]["renderer"] == "singlebandpseudocolor"
    assert layers["geoseg_mask"]["alpha_band"] == layers["geoseg_probability"]["alpha_band"] == 2
    hole, nothing, building, ground_ = seen["colours"]
    # The map's paper, not black, where there is no data.
    assert hole == nothing == [255, 255, 255, 255]
    assert ground_[:3] in around(points[3])
    assert building[:3] not in around(points[2])
    masked, probable = seen["colours with Mask"], seen["colours with Probability"]
    # Mask and probability colour the building and leave what has no data alone.
    assert masked[:2] == probable[:2] == [hole, nothing]
    assert masked[3] == ground_
    assert masked[2] not in (building, probable[2])
    assert probable[2] != building


def test_many_files(
    city: Path, narrow_model: Path, tmp_path: Path, points: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "MAX_FILES", 2)
    run(city, tmp_path / "out", narrow_model, simplify=0.0)
    found = opened(tmp_path / "out" / "project.qgz", tmp_path / "home", *points)
    assert [name for name in found["order"] if "imagery" in name] == ["geoseg_imagery_1"]
    assert found["layers"]["geoseg_imagery_1"]["extent"] == pytest.approx(BOX)
    hole, nothing, _building, ground_ = found["colours"]
    assert hole == nothing == [255, 255, 255, 255]
    assert ground_[:3] in around(points[3])


def test_imagery_of_more_bits_on_another_grid(narrow_model: Path, tmp_path: Path) -> None:
    values = city_arrays()[0].astype(np.uint16) * 10
    write_tile(tmp_path / "in" / "a.tif", values[:, :100, :100])
    write_tile(tmp_path / "in" / "b.tif", values[:, :100, 100:200], (0, 100), crs="EPSG:25833")
    run(tmp_path / "in", tmp_path / "out", narrow_model, range=(0, 2550), format=("geojson",))
    point = (5, 5)
    found = opened(tmp_path / "out" / "project.qgz", tmp_path / "home", point)
    assert found["layers"]["geoseg_footprints"]["crs"] == "EPSG:4326"
    assert [found["layers"][f"geoseg_imagery_{i}"]["crs"] for i in (1, 2)] == ["EPSG:32633", "EPSG:25833"]
    assert found["layers"]["geoseg_imagery_1"]["renderer"] == "multibandcolor"
    with rasterio.open(tmp_path / "out" / "mask.tif") as dataset:
        if dataset.read(1)[point] == 0:
            assert found["colours"][0][:3] == pytest.approx(values[:, *point] / 10, abs=1)


def test_a_crs_without_a_code(narrow_model: Path, tmp_path: Path) -> None:
    own = "+proj=tmerc +lat_0=52 +lon_0=13.5 +k=1 +x_0=0 +y_0=0 +ellps=GRS80 +units=m"
    write_tile(tmp_path / "in" / "a.tif", city_arrays()[0][:, :100, :100], crs=own)
    run(tmp_path / "in", tmp_path / "out", narrow_model)
    found = opened(tmp_path / "out" / "project.qgz", tmp_path / "home", (5, 5))
    assert found["ellipsoid"] == "EPSG:7019"
    west, _south, east, _north = found["extent"]
    assert west < LEFT < LEFT + 50 < east
