"""The plugin in the real QGIS: its zip in a fresh profile, its algorithms in qgis_process and as the window runs them.

``qgis_process.bin`` and not ``qgis_process``: Debian's wrapper passes an option that the program refuses.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from conftest import blobs, write_tile
from parts import assert_equal_content, content, required, run

import geoseg
from geoseg.qgis.install import install, package
from geoseg.style import FILL, OUTLINE

PYTHON, PROCESS = "/usr/bin/python3", "/usr/bin/qgis_process.bin"
SCRIPT = Path(__file__).with_name("use_qgis_plugin.py")
PATIENCE = 600
"""Seconds that a run may take on a machine that is busy with something else."""
LEFT, TOP, PIXEL = 400_000, 5_800_000, 0.5
WITHOUT = ("PYTHONPATH", "PYTHONHOME", "GDAL_DATA", "PROJ_LIB", "PROJ_DATA", "GEOSEG_PYTHON", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Qgis:
    """A QGIS with a profile of its own."""

    config: Path
    python: Path
    """Of geoseg."""

    @property
    def profile(self) -> Path:
        return self.config / "profiles" / "default"

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment of a process, without what this process has set for its own GDAL."""
        inherited = {name: value for name, value in os.environ.items() if name not in WITHOUT}
        home = self.config / "home"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = {
            "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(home),
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "QGIS_CUSTOM_CONFIG_PATH": str(self.config),
            "GEOSEG_PYTHON": str(self.python),
            # Of other versions than geoseg's own, as QGIS has them on Windows and macOS: not to be passed on.
            "PYTHONHOME": "/usr",
            "GDAL_DATA": "/usr/share/gdal",
            "PROJ_LIB": "/usr/share/proj",
        }
        return {**inherited, **own, **changes}

    def start(self, *args: str, **changes: str) -> subprocess.Popen[str]:
        """Start qgis_process."""
        return subprocess.Popen(
            [PROCESS, *args],
            env=self.environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def process(self, *args: str, **changes: str) -> tuple[int, str]:
        """Run qgis_process; return its exit code and all that it printed."""
        started = self.start(*args, **changes)
        said, _ = started.communicate(timeout=PATIENCE)
        return started.returncode, said

    def algorithm(self, name: str, **parameters: Any) -> str:
        """Run an algorithm that must succeed; return what was printed."""
        values = [f"--{key}={value}" for key, value in parameters.items()]
        code, said = self.process("run", name if name.endswith(".model3") else f"geoseg:{name}", *values)
        assert code == 0, said
        return said

    def script(self, *args: str) -> dict[str, Any]:
        """Run a job of ``use_qgis_plugin.py``; return what it printed."""
        done = subprocess.run(
            [PYTHON, str(SCRIPT), *args], env=self.environment(), capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def results(said: str) -> dict[str, str]:
    """Return the results that qgis_process lists at its end."""
    lines = said.rpartition("Results\n")[2].splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This Python, as one in which geoseg is installed."""
    clean = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    if subprocess.run([sys.executable, "-c", "import geoseg"], cwd="/", env=clean, capture_output=True).returncode == 0:
        return Path(sys.executable)
    # geoseg is only found because the tests run in its folder: stand in for an installation.
    made = tmp_path_factory.mktemp("environment") / "python"
    home = Path(geoseg.__file__).parents[1]
    made.write_text(f'#!/bin/sh\nPYTHONPATH="{home}" exec "{sys.executable}" "$@"\n')
    made.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def qgis(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Qgis:
    """A fresh profile with the packaged plugin in it, as *Install from ZIP* leaves it, and enabled."""
    made = Qgis(tmp_path_factory.mktemp("qgis"), python)
    required(
        Path(PROCESS).exists()
        and subprocess.run([PYTHON, "-c", "import qgis.core"], capture_output=True).returncode == 0,
        f"QGIS ({PROCESS}, and {PYTHON} with qgis.core)",
    )
    plugins = made.profile / "python" / "plugins"
    with zipfile.ZipFile(package(made.config / "plugin.zip")) as archive:
        archive.extractall(plugins)
    code, said = made.process("plugins", "enable", "geoseg")
    assert code == 0, said
    code, said = made.process("list")
    listed = {line.split("\t")[1] for line in said.splitlines() if line.startswith("\tgeoseg:")}
    assert listed == {"geoseg:extractfootprints", "geoseg:vectorise", "geoseg:evaluate", "geoseg:train"}, said
    return made


@pytest.fixture(scope="module")
def window(qgis: Qgis, city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of extracting footprints twice in one session, with layers in a project."""
    out = tmp_path_factory.mktemp("window")
    found = qgis.script("extract", str(city), str(narrow_model), str(out))
    assert found["whole"]["done"], found["whole"]
    assert found["part"]["done"], found["part"]
    return {**found, "out": out}


def test_plugin_gives_what_the_command_gives(
    window: dict[str, Any], city: Path, narrow_model: Path, tmp_path: Path
) -> None:
    expected = run(city, tmp_path / "out", narrow_model, cell=1536, core=1536)
    assert_equal_content(window["out"] / "whole", tmp_path / "out")
    outcome = window["whole"]
    assert outcome["results"]["COUNT"] == expected.buildings > 3
    assert outcome["results"]["AREA_M2"] == pytest.approx(expected.area_m2, abs=0.01)
    assert outcome["results"]["FAILURES"] == 0
    assert outcome["highest"] == 100
    assert outcome["rising"]
    assert any("model narrow" in line for line in outcome["said"])


def test_results_come_into_the_project_styled(window: dict[str, Any]) -> None:
    layers = window["layers"]
    assert layers.keys() == {"Building footprints", "Building mask", "Building probability"}
    assert all(layer["valid"] and layer["crs"] == "EPSG:32633" for layer in layers.values())
    footprints = layers["Building footprints"]
    assert footprints["count"] == window["whole"]["results"]["COUNT"]
    assert footprints["fill"] == [int(part) for part in FILL.split(",")]
    assert footprints["outline"] == [int(part) for part in OUTLINE.split(",")]
    assert footprints["shown"]
    for name, renderer in (("mask", "paletted"), ("probability", "singlebandpseudocolor")):
        layer = layers[f"Building {name}"]
        assert (layer["renderer"], layer["alpha"], layer["shown"]) == (renderer, 2, False)
    again = window["again"]
    assert again["done"], again
    assert again["layer"]["count"] == again["results"]["COUNT"]
    assert again["layer"]["fill"] == footprints["fill"]
    # Three results of the first run and the drawn layer; the second run was told to add nothing.
    assert window["after"] == 4


def test_selection_edits_and_extent_bound_the_area(window: dict[str, Any]) -> None:
    with rasterio.open(window["out"] / "part" / "mask.tif") as dataset:
        valid = dataset.dataset_mask() > 0
    with rasterio.open(window["out"] / "whole" / "mask.tif") as dataset:
        everything = dataset.dataset_mask() > 0
    # The selected polygon (x 60 … 110 m, y -120 … -70 m) within the extent (y -120 … -95 m), in pixels of half a metre.
    expected = np.zeros_like(everything)
    expected[190:240, 120:220] = True
    np.testing.assert_array_equal(valid, everything & expected)


@pytest.mark.parametrize(("edges", "outline"), [(0, "pixel"), (1, "subpixel"), (2, "pixel")])
def test_what_outlines_are_made_from(
    qgis: Qgis, window: dict[str, Any], tmp_path: Path, edges: int, outline: str
) -> None:
    from geoseg.vectorise import polygonize_file

    raster = window["out"] / "whole" / "probability.tif"
    qgis.algorithm("vectorise", INPUT=raster, THRESHOLD=0.5, EDGES=edges, OUTPUT=tmp_path / "theirs.gpkg")
    polygonize_file(raster, tmp_path / "ours.gpkg", threshold=0.5, outline=outline)
    found, expected = (
        pyogrio.read_dataframe(tmp_path / f"{name}.gpkg", layer="buildings").geometry for name in ("theirs", "ours")
    )
    assert len(expected) > 3
    assert found.to_wkb().tolist() == expected.to_wkb().tolist()
    other = tmp_path / "other.gpkg"
    polygonize_file(raster, other, threshold=0.5, outline="pixel" if outline == "subpixel" else "subpixel")
    assert found.to_wkb().tolist() != pyogrio.read_dataframe(other, layer="buildings").geometry.to_wkb().tolist()


def test_vectorise_and_evaluate(qgis: Qgis, window: dict[str, Any], tmp_path: Path) -> None:
    whole = window["out"] / "whole"
    all_of_it = {"CORNERS": 2, "SIMPLIFY": 0, "MIN_AREA": 0, "MIN_HOLE": 0}
    found = results(qgis.algorithm("vectorise", INPUT=whole / "mask.tif", OUTPUT=tmp_path / "again.gpkg", **all_of_it))
    assert int(found["COUNT"]) == pyogrio.read_info(tmp_path / "again.gpkg", layer="buildings")["features"]
    # Outlines along the pixels' edges cover the mask to the pixel.
    found = results(
        qgis.algorithm(
            "evaluate",
            PREDICTED=tmp_path / "again.gpkg",
            REFERENCE=whole / "mask.tif",
            HTML=tmp_path / "report.html",
            JSON=tmp_path / "report.json",
        )
    )
    report = json.loads((tmp_path / "report.json").read_text())
    numbers = report["total"]
    assert float(found["BUILDINGS_F1"]) == report["polygons"]["total"]["f1"] > 0
    assert float(found["IOU"]) == pytest.approx(numbers["iou"])
    assert numbers["iou"] == pytest.approx(1)
    assert f"{numbers['iou']:.4f}" in (tmp_path / "report.html").read_text()
    code, said = qgis.process(
        "run",
        "geoseg:evaluate",
        f"--PREDICTED={tmp_path / 'again.gpkg'}",
        f"--REFERENCE={tmp_path / 'again.gpkg'}",
        f"--HTML={tmp_path / 'none.html'}",
    )
    assert code == 1
    assert "set Pixel size" in said


def test_works_in_a_model(qgis: Qgis, window: dict[str, Any], city: Path, narrow_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "strict.model3"
    made = qgis.script("model", str(model))
    assert made["written"]
    places = {
        "images": city,
        "network": narrow_model,
        "out": tmp_path / "out",
        made["strict"]: tmp_path / "strict.gpkg",
    }
    said = qgis.algorithm(str(model), **places)
    table = pyogrio.read_dataframe(tmp_path / "strict.gpkg", layer="buildings")
    assert 0 < table.area.sum() < window["whole"]["results"]["AREA_M2"], said


def test_trains_on_layers_in_no_file(qgis: Qgis, city: Path, narrow_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    folder.mkdir()
    for name in "ab":
        shutil.copy(city / f"{name}.tif", folder)
    boxes = [
        shapely.box(x, y, x + 7, y + 8) for x in range(LEFT, LEFT + 110, 12) for y in range(TOP - 70, TOP - 10, 14)
    ]
    table = geopandas.GeoDataFrame({"use": [0] + [1] * (len(boxes) - 1)}, geometry=boxes, crs=32633)
    table.to_file(folder / "labels.gpkg", layer="buildings")
    outcome = qgis.script("labels", str(folder), str(narrow_model), str(tmp_path / "run"))
    assert outcome["done"], outcome
    model = Path(outcome["results"]["TRAINED"])
    assert geoseg.load_model(model).card.num_filters == 4
    assert 0 <= outcome["results"]["IOU"] <= 1
    assert outcome["highest"] == 100
    (drawn,) = (tmp_path / "run" / "labels").glob("buildings_*.gpkg")
    # The filter of the layer holds for what is learnt from.
    assert len(pyogrio.read_dataframe(drawn)) == len(boxes) - 1


@pytest.fixture
def strip(tmp_path: Path) -> Path:
    """Imagery that is cut into three blocks, each of little work."""
    image = blobs((96, 1536), 3)
    for number in range(8):
        write_tile(tmp_path / "strip" / f"{number}.tif", image, (0, 1536 * number))
    return tmp_path / "strip"


def geoseg_processes(out: Path) -> list[int]:
    """Return the processes that work for an output folder, and their groups' other members."""
    groups, found = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z":
            continue
        groups[int(folder.name)] = int(fields[2])
        if f"--out={out}".encode() in command:
            found.add(int(fields[2]))
    return [number for number, group in groups.items() if group in found]


def waited(condition: Callable[[], bool]) -> bool:
    """Wait until something is true; return whether it came true in time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def extracting(qgis: Qgis, strip: Path, narrow_model: Path, tmp_path: Path) -> Iterator[tuple[Any, Path, list[int]]]:
    """A run with finished blocks and others to come: QGIS's process, the output folder, geoseg's processes."""
    out = tmp_path / "out"
    parameters = [f"--FOLDER={strip}", f"--MODEL={narrow_model}", f"--OUTPUT={out}", "--WORKERS=1", "--DEVICE=cpu"]
    process = qgis.start("run", "geoseg:extractfootprints", *parameters)
    try:
        begun = waited(lambda: process.poll() is not None or any((out / ".geoseg" / "blocks").rglob("*.npz")))
        assert begun
        assert process.poll() is None, process.communicate()[0]
        yield process, out, geoseg_processes(out)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_cancelling_stops_at_once_and_is_resumable(
    extracting: tuple[Any, Path, list[int]], strip: Path, narrow_model: Path, qgis: Qgis, tmp_path: Path
) -> None:
    process, out, working = extracting
    assert len(working) > 1, "the command and its worker"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f"run again with the same folder ({out})" in said
    assert "Traceback" not in said
    assert not [number for number in working if number in geoseg_processes(out) or _runs(number)]
    assert not (out / "run.json").exists()
    qgis.algorithm("extractfootprints", FOLDER=strip, MODEL=narrow_model, OUTPUT=out, WORKERS=0, DEVICE="cpu")
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["blocks"] == 3
    assert 1 <= counts["blocks_resumed"] < 3
    run(strip, tmp_path / "whole", narrow_model, cell=5120, core=5120)
    assert content(out).keys() == content(tmp_path / "whole").keys()
    assert_equal_content(out, tmp_path / "whole")


def test_geoseg_ends_when_qgis_is_killed(extracting: tuple[Any, Path, list[int]]) -> None:
    process, _out, working = extracting
    assert len(working) > 1, "the command and its worker"
    process.kill()
    process.wait()
    assert waited(lambda: not any(_runs(number) for number in working))


def _runs(number: int) -> bool:
    try:
        state = (Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("{folder}/gone/bin/python", "is not at {folder}/gone/bin/python"),
        (PYTHON, "No module named geoseg"),
        ("/bin/false", "cannot run geoseg: it ended with 1"),
        ("", "geoseg itself is not here yet"),
    ],
)
def test_wrong_environment_is_said_clearly(qgis: Qgis, city: Path, tmp_path: Path, named: str, words: str) -> None:
    parameters = [f"--FOLDER={city}", f"--OUTPUT={tmp_path / 'out'}"]
    named, words = named.format(folder=tmp_path), words.format(folder=tmp_path)
    code, said = qgis.process("run", "geoseg:extractfootprints", *parameters, GEOSEG_PYTHON=named, PATH="/usr/bin:/bin")
    assert code == 1
    assert words in said
    assert "Settings ▸ Options ▸ Processing ▸ Providers ▸ geoseg" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_setting_and_note_come_before_the_variable(qgis: Qgis, city: Path, tmp_path: Path) -> None:
    profiles = tmp_path / "config" / "profiles"
    made = install(profiles_folder=profiles)
    other = Qgis(tmp_path / "config", Path("/named/by/variable"))
    assert other.process("plugins", "enable", "geoseg")[0] == 0
    (made.profile / "geoseg.json").write_text('{"python": "/noted/by/install"}')
    parameters = [f"--FOLDER={city}", f"--OUTPUT={tmp_path / 'out'}"]
    assert "is not at /noted/by/install" in other.process("run", "geoseg:extractfootprints", *parameters)[1]
    settings = made.profile / "QGIS" / "QGIS3.ini"
    settings.write_text(settings.read_text() + "\n[Processing]\nConfiguration\\geoseg\\python=/chosen/in/options\n")
    assert "is not at /chosen/in/options" in other.process("run", "geoseg:extractfootprints", *parameters)[1]


def test_errors_of_geoseg_are_shown_in_its_words(qgis: Qgis, city: Path, tmp_path: Path) -> None:
    code, said = qgis.process(
        "run",
        "geoseg:extractfootprints",
        f"--FOLDER={city}",
        "--EXTENT=0,10,0,10 [EPSG:32633]",
        f"--OUTPUT={tmp_path / 'out'}",
    )
    assert code == 1
    assert "The area of interest: its polygons lie outside the images" in said
    assert "Traceback" not in said


def test_real_imagery(qgis: Qgis, shared_data: Path, narrow_model: Path, tmp_path: Path) -> None:
    image = shared_data / "buildings" / "train" / "banepa_z19_rgb.tif"
    with rasterio.open(image) as dataset:
        left, top = dataset.transform * (400, 400)
        right, bottom = dataset.transform * (700, 656)
        crs = f"EPSG:{dataset.crs.to_epsg()}"
    found = results(
        qgis.algorithm(
            "extractfootprints",
            INPUT=image,
            MODEL=narrow_model,
            EXTENT=f"{left},{right},{bottom},{top} [{crs}]",
            OUTPUT=tmp_path / "out",
            CORNERS=1,
        )
    )
    assert int(found["COUNT"]) == pyogrio.read_info(tmp_path / "out" / "buildings.gpkg", layer="buildings")["features"]
    with rasterio.open(tmp_path / "out" / "mask.tif") as dataset:
        assert str(dataset.crs) == crs
        assert (dataset.dataset_mask() > 0).sum() == pytest.approx(300 * 256, rel=0.02)
