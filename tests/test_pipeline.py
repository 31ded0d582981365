"""Jobs written down in TOML."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from geoseg.errors import InputError, SettingError
from geoseg.pipeline import read_pipeline, run_pipeline


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "jobs" / "city.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def calls(monkeypatch) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Instead of segmenting, remember what would be."""
    called: list[tuple[Any, Any, dict[str, Any]]] = []
    # By module name: as an attribute of the package, "segment" is the function.
    module = import_module("geoseg.segment")
    monkeypatch.setattr(module, "segment", lambda inputs, out, **rest: called.append((inputs, out, rest)))
    return called


FULL = """
[segment]
inputs = ["ortho", "/data/t_*.tif", "/vsis3/bucket/a.tif", "https://example.org/a.tif", "NETCDF:cube.nc:red"]
out = "../footprints"
threshold = 0.4
bands = [3, 2, 1]
aoi = "district.gpkg"
model = "models/mine.safetensors"
fresh = true
"""


def test_paths_are_relative_to_the_file_and_names_stay(write):
    path = write(FULL)
    name, table = read_pipeline(path)
    here = path.parent
    assert name == "segment"
    assert table == {
        "inputs": [
            str(here / "ortho"),
            "/data/t_*.tif",
            "/vsis3/bucket/a.tif",
            "https://example.org/a.tif",
            "NETCDF:cube.nc:red",
        ],
        "out": str(here / "../footprints"),
        "threshold": 0.4,
        "bands": [3, 2, 1],
        "aoi": str(here / "district.gpkg"),
        "model": str(here / "models/mine.safetensors"),
        "fresh": True,
    }


def test_relative_means_the_file_not_the_working_folder(write, monkeypatch, tmp_path):
    path = write(FULL)
    monkeypatch.chdir(tmp_path)
    _, table = read_pipeline(path.relative_to(tmp_path))
    assert Path(table["inputs"][0]).resolve() == path.parent / "ortho"
    assert Path(table["out"]).resolve() == tmp_path / "footprints"


def test_one_input_may_stand_alone_and_shipped_models_have_names(write):
    path = write('[segment]\ninputs = "ortho"\nout = "o"\nmodel = "unet11-buildings"')
    _, table = read_pipeline(path)
    assert table["inputs"] == [str(path.parent / "ortho")]
    assert table["model"] == "unet11-buildings"
    path.write_text('[segment]\ninputs = "ortho"\nout = "o"\nmodel = "mine.safetensors"')
    assert read_pipeline(path)[1]["model"] == str(path.parent / "mine.safetensors")


def test_a_file_whose_name_looks_like_a_gdal_name_is_that_file(write):
    path = write('[segment]\ninputs = "map:1.tif"\nout = "run:2"')
    assert read_pipeline(path)[1]["inputs"] == ["map:1.tif"]
    (path.parent / "map:1.tif").touch()
    assert read_pipeline(path)[1]["inputs"] == [str(path.parent / "map:1.tif")]
    assert read_pipeline(path)[1]["out"] == str(path.parent / "run:2")


def test_running_passes_every_key_on_and_overrides_win(write, calls):
    path = write(FULL)
    run_pipeline(path)
    run_pipeline(str(path), threshold=0.7, fresh=None, progress="json", out="elsewhere")
    (inputs, out, first), (_, other, second) = calls
    assert inputs[0] == str(path.parent / "ortho")
    assert out == str(path.parent / "../footprints")
    assert first["threshold"] == 0.4
    assert first["bands"] == [3, 2, 1]
    assert other == "elsewhere"
    assert (second["threshold"], second["fresh"], second["progress"]) == (0.7, True, "json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"found nothing"),
        ("[train]\nx = 1", r"expected one table named segment, found train"),
        ('[segment]\ninputs = "a"\nout = "b"\n[other]', r"found segment, other"),
        ("segment = 3", r"must be a table: \[segment\]"),
        ("[segment]", r"\[segment\] lacks inputs and out"),
        ('[segment]\ninputs = "a"', r"lacks out$"),
        ('[segment]\nout = "a"', r"lacks inputs$"),
        ('[segment]\ninputs = [1]\nout = "b"', r"inputs and out must be text"),
        ('[segment]\ninputs = ["a"]\nout = 3', r"inputs and out must be text"),
        ("[segment", r"not a TOML file \("),
        ("[segment]\nx = 1\nx = 2", r"not a TOML file \("),
    ],
)
def test_what_is_no_pipeline_is_refused_with_the_files_name(write, text, words):
    path = write(text)
    with pytest.raises(SettingError, match=words) as caught:
        read_pipeline(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="not a TOML file"):
        read_pipeline(path)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_is_not_there_is_told(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be read \("):
        read_pipeline(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("treshold = 0.4", r"unknown setting treshold; known are .*threshold"),
        ("threshold = 4", "threshold is 4"),
        ('threshold = "high"', "must be a number"),
        ('format = "shp"', "format shp"),
        ('progress = "loud"', "'loud' is not one of"),
        ('halo = "big"', "halo is 'big'"),
    ],
)
def test_unknown_keys_and_wrong_values_are_refused_before_anything_is_written(write, line, words):
    path = write(f'[segment]\ninputs = "ortho"\nout = "out"\n{line}')
    with pytest.raises(SettingError, match=words):
        run_pipeline(path)
    assert sorted(path.parent.iterdir()) == [path]
