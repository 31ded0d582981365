"""The command line: what it prints, where, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result
from conftest import blobs, city_arrays, narrow_net, write_tile

import geoseg
from geoseg.cli import main
from geoseg.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "dask", "distributed", "rasterio", "geopandas", "pyogrio", "numpy", "matplotlib")
EDGES = ("--simplify", "0", "--min-area", "0", "--min-hole", "0")


def geoseg_(*arguments: object) -> Result:
    """Run a command in this process; what is no SystemExit is raised."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def outlines(path: Path) -> list[bytes]:
    shapes = gpd.read_file(path, layer="buildings").geometry.to_numpy()
    return sorted(shapely.to_wkb(shapely.normalize(shapes)).tolist())


# --- help and start


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        result = geoseg_(*command, option)
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: ")
        assert result.stderr == ""


def test_version() -> None:
    assert geoseg_("--version").stdout.strip().endswith(geoseg.__version__)


def test_start_is_light() -> None:
    code = (
        "import sys, geoseg, geoseg.cli\n"
        "try:\n    geoseg.cli.main(['segment', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_options_are_the_settings() -> None:
    # A setting that no command offers, or an option that is none, is a mistake; the lattice is not for users.
    for name in ("segment", "plan"):
        given = {parameter.name for parameter in main.commands[name].params}
        known = set(Settings.__dataclass_fields__)
        assert given - known <= {"inputs", "out", "as_json", "help"}
        outcome = {"format", "fresh", "progress", "min_area", "min_hole", "simplify", "square", "outline"}
        outcome |= {"postgis", "postgis_table", "postgis_mode"}
        assert known - given == (set() if name == "segment" else set(outcome))


def test_defaults_are_the_settings() -> None:
    plain = Settings()
    for parameter in main.commands["segment"].params:
        if parameter.name in Settings.__dataclass_fields__ and isinstance(parameter.default, str | int | float | tuple):
            assert parameter.default == getattr(plain, parameter.name), parameter.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("segment",), "Missing argument"),
        (("segment", "a.tif"), "--out"),
        (("segment", "a.tif", "--out", "o", "--bands", "1,2"), "not 3 numbers"),
        (("segment", "a.tif", "--out", "o", "--bands", "r,g,b"), "not 3 numbers"),
        (("segment", "a.tif", "--out", "o", "--precision", "fp8"), "fp8"),
        (("segment", "a.tif", "--out", "o", "--format", "shp"), "shp"),
        (("segment", "a.tif", "--out", "o", "--threshold", "2"), "threshold is 2"),
        (("segment", "a.tif", "--out", "o", "--halo", "wide"), "halo is 'wide'"),
        (("segment", "a.tif", "--out", "o", "--spam"), "--spam"),
        (("sample", "o", "--grid", "2by2"), "rows x columns"),
        (("sample", "o", "--size", "1"), "32 pixels"),
        (("polygonize", "gone.tif", "b.gpkg"), "gone.tif: no such file"),
        (("model", "info", "gone"), "no such model"),
        (("model", "import", "gone.pt", "o.safetensors", "--arch", "unet11"), "gone.pt"),
        (("run", "gone.toml"), "gone.toml"),
        (("spam",), "spam"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = geoseg_(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


# --- segment


def test_segment(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("segment", city, "--out", out, "--model", narrow_model, "--workers", 0, "--format", "gpkg")
    result = geoseg_(*arguments, "--format", "geojson", "--threshold", "0.6")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("3 files, one 231 × 247 grid, EPSG:32633, 0.5 m · model narrow (0.50 m, threshold 0.6)")
    assert " buildings, " in lines[-1]
    assert str(out / "buildings.gpkg") in lines[-1]
    assert str(out / "report.html") in lines[-1]
    assert {path.name for path in out.iterdir()} == {
        ".geoseg", "mask.tif", "probability.tif", "buildings.gpkg", "buildings.geojson", "project.qgz", "item.json",
        "report.html", "run.json",
    }  # fmt: skip
    again = geoseg_(*arguments, "--format", "geojson", "--threshold", "0.6", "--progress", "json")
    assert again.exit_code == 0
    events = [json.loads(line) for line in again.stderr.splitlines() if line.startswith("{")]
    assert any(event["event"] == "info" and "there from an earlier run" in event["text"] for event in events)
    fresh = geoseg_(*arguments, "--format", "geojson", "--threshold", "0.6", "--fresh")
    assert "starting afresh: --fresh was given" in fresh.stderr
    other = geoseg_(*arguments, "--threshold", "0.7")
    assert "starting afresh: threshold was 0.6, is 0.7" in other.stderr


def test_some_inputs_fail(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(city, tmp_path / "in"))
    tile = write_tile(folder / "b.tif", city_arrays()[0][:, :150, 130:], (0, 130))
    with tile.open("r+b") as stream:
        stream.truncate(tile.stat().st_size // 2)
    (folder / "notes.tif").write_text("not a raster")
    out = tmp_path / "out"
    result = geoseg_("segment", folder, "--out", out, "--model", narrow_model, "--workers", 0)
    assert result.exit_code == 1
    assert f"{folder / 'b.tif'}: " in result.stderr
    assert f"{folder / 'notes.tif'}: " in result.stderr
    assert "2 inputs or blocks had errors: see " in result.stderr.splitlines()[-1]
    run = json.loads((out / "run.json").read_text("utf-8"))
    assert {failure["path"] for failure in run["failures"]} == {str(folder / "b.tif"), str(folder / "notes.tif")}
    assert run["counts"]["buildings"] > 0


def test_all_inputs_fail(narrow_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        (folder / name).write_text("not a raster")
    result = geoseg_("segment", folder, "--out", tmp_path / "out", "--model", narrow_model, "--workers", 0)
    assert result.exit_code == 2
    assert result.stderr.startswith("geoseg: none of the 2 inputs can be used:")
    assert all(name in result.stderr for name in ("a.tif", "b.tif"))
    assert not (tmp_path / "out" / "mask.tif").exists()


def test_deep_imagery_names_the_option(narrow_model: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", blobs((40, 40)).astype(np.uint16))
    arguments = ("segment", tmp_path / "a.tif", "--out", tmp_path / "o", "--model", narrow_model, "--workers", 0)
    result = geoseg_(*arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "uint16" in result.stderr
    assert "--range" in result.stderr
    assert geoseg_(*arguments, "--range", "0,300").exit_code == 0


def test_interruption(monkeypatch: pytest.MonkeyPatch, city: Path, narrow_model: Path, tmp_path: Path) -> None:
    import geoseg.segment as module

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_block", stop)
    result = geoseg_("segment", city, "--out", tmp_path, "--model", narrow_model, "--workers", 0)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


# --- plan


def test_plan(city: Path, narrow_model: Path) -> None:
    shown = geoseg_("plan", city, "--model", narrow_model)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("3 files, one 231 × 247 grid")
    result = geoseg_("plan", city, "--model", narrow_model, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert {"blocks", "forward_pixels_per_pixel", "memory_bytes", "seconds", "pixels_per_second"} <= facts.keys()
    assert (facts["files"], facts["blocks"], facts["halo"]) == (3, 1, 32)


# --- polygonize


def test_polygonize_gives_the_buildings_of_segment(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    # Between two of the 256 grey levels, where rounding to them cannot change on which side a pixel lies.
    threshold = 140.5 / 255
    out = tmp_path / "out"
    more = ("--model", narrow_model, "--workers", 0, "--threshold", threshold)
    assert geoseg_("segment", city, "--out", out, *more, *EDGES).exit_code == 0
    expected = outlines(out / "buildings.gpkg")
    assert len(expected) > 100
    for name, options in (("mask", ()), ("probability", ("--threshold", threshold))):
        target = tmp_path / f"{name}.gpkg"
        result = geoseg_("polygonize", out / f"{name}.tif", target, *options, *EDGES)
        assert result.exit_code == 0
        assert result.stdout == ""
        assert result.stderr.splitlines()[-1] == f"{len(expected)} buildings · {target}"
        assert outlines(target) == expected
    # With the defaults, too, and between pixels.
    geoseg_("segment", city, "--out", out, *more)
    geoseg_("polygonize", out / "mask.tif", tmp_path / "plain.gpkg")
    assert outlines(tmp_path / "plain.gpkg") == outlines(out / "buildings.gpkg")
    finer = ("--outline", "subpixel")
    geoseg_("segment", city, "--out", out, *more, *finer)
    geoseg_("polygonize", out / "probability.tif", tmp_path / "finer.gpkg", "--threshold", threshold, *finer)
    assert outlines(tmp_path / "finer.gpkg") == outlines(out / "buildings.gpkg") != outlines(tmp_path / "plain.gpkg")


# --- sample


def test_sample_then_segment(narrow_model: Path, tmp_path: Path) -> None:
    made = geoseg_("sample", tmp_path / "s", "--size", 64, "--grid", "1x2", "--seed", 3, "--progress", "none")
    assert made.exit_code == 0
    assert made.stdout == ""
    tiles = tmp_path / "s" / "images"
    assert sorted(path.name for path in tiles.iterdir()) == ["tile_0_0.tif", "tile_0_1.tif"]
    out = tmp_path / "out"
    pattern = tmp_path / "s" / "images" / "*.tif"
    assert geoseg_("segment", pattern, "--out", out, "--model", narrow_model, "--workers", 0).exit_code == 0
    with rasterio.open(out / "mask.tif") as dataset:
        assert dataset.shape == (64, 128)


# --- run


def pipeline(folder: Path, city: Path, model: Path, extra: str = "") -> Path:
    path = folder / "job.toml"
    path.write_text(
        f'[segment]\ninputs = ["{os.path.relpath(city, folder)}"]\nout = "here"\n'
        f'model = "{os.path.relpath(model, folder)}"\nworkers = 0\ncore = 128\ncell = 64\n{extra}'
    )
    return path


def test_run(city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    result = geoseg_("run", pipeline(folder, city, narrow_model, 'progress = "json"\nthreshold = 0.6\n'))
    assert result.exit_code == 0, result.output
    # Paths are relative to the file; its progress holds unless the command names another.
    run = json.loads((folder / "here" / "run.json").read_text("utf-8"))
    assert run["settings"]["threshold"] == 0.6
    assert run["counts"]["blocks"] == 4
    assert json.loads(result.stderr.splitlines()[0])["event"] == "info"
    quiet = geoseg_("run", pipeline(folder, city, narrow_model, "threshold = 0.6\n"), "--progress", "none")
    assert len(quiet.stderr.splitlines()) == 1
    fresh = geoseg_("run", pipeline(folder, city, narrow_model, "threshold = 0.6\nfresh = true\n"))
    assert "--fresh was given" in fresh.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[segment]\ninputs = "a.tif"\nout = "o"\ntresh = 1\n', "unknown setting tresh"),
        ('[segment]\ninputs = "a.tif"\nout = "o"\nthreshold = "high"\n', "must be a number"),
        ('[segment]\ninputs = "a.tif"\nout = "o"\n[train]\n', "found segment, train"),
        ('[segment]\ninputs = "a.tif"\n', "lacks out"),
        ('[segment]\ninputs = [1]\nout = "o"\n', "must be text"),
        ('segment = "a.tif"\n', "must be a table"),
        ("[cook]\n", "expected one table named segment"),
        ("", "found nothing"),
        ("[segment\n", "not a TOML file"),
    ],
)
def test_wrong_pipelines(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(text)
    result = geoseg_("run", tmp_path / "job.toml")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert words in result.stderr


# --- models


def test_model_list() -> None:
    names = json.loads(geoseg_("model", "list", "--json").stdout)
    lines = geoseg_("model", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == list(names)


def test_model_info(make_model: Callable[..., Path]) -> None:
    path = make_model("known", licence="CC0-1.0", gsd_m=0.3)
    facts = json.loads(geoseg_("model", "info", path).stdout)
    assert (facts["name"], facts["arch"], facts["licence"], facts["gsd_m"]) == ("known", "unet11", "CC0-1.0", 0.3)
    assert facts["parameters"] == sum(p.numel() for p in narrow_net().parameters())
    assert facts["reach_px"] == [153, 184]
    assert len(facts["sha256"]) == 64


def test_model_import(tmp_path: Path) -> None:
    import torch

    torch.save(narrow_net().state_dict(), tmp_path / "published.pt")
    made = tmp_path / "mine.safetensors"
    card = ("--gsd", 0.5, "--threshold", 0.5, "--licence", "MIT", "--name", "mine")
    result = geoseg_("model", "import", tmp_path / "published.pt", made, "--arch", "unet11", *card)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("mine: unet11, 4 filters, 1 class(es)")
    facts = json.loads(geoseg_("model", "info", made).stdout)
    assert (facts["threshold"], facts["gsd_m"], facts["licence"], facts["halo"]) == (0.5, 0.5, "MIT", None)
    wrong = geoseg_("model", "import", tmp_path / "published.pt", tmp_path / "x.safetensors", "--arch", "unet16")
    assert wrong.exit_code == 2
    assert not (tmp_path / "x.safetensors").exists()


def test_import_names_classes(tmp_path: Path) -> None:
    import torch

    torch.save(narrow_net(2).state_dict(), tmp_path / "two.pt")
    made = tmp_path / "two.safetensors"
    arguments = ("model", "import", tmp_path / "two.pt", made, "--arch", "unet11")
    assert geoseg_(*arguments, "--classes", "other,building").exit_code == 0
    assert json.loads(geoseg_("model", "info", made).stdout)["classes"] == ["other", "building"]
    assert geoseg_(*arguments, "--classes", "a,b,c").exit_code == 2
