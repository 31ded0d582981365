"""Jobs written down in TOML."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from geoseg.errors import InputError, SettingError
from geoseg.pipeline import read_pipeline, read_recipe, run_pipeline
from geoseg.train.recipe import Augment


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
    path = write('[segment]\ninputs = "ortho"\nout = "o"\nmodel = "unet16-buildings"')
    _, table = read_pipeline(path)
    assert table["inputs"] == [str(path.parent / "ortho")]
    assert table["model"] == "unet16-buildings"
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
        ("[learn]\nx = 1", r"expected one table named segment or train, found learn"),
        ('[segment]\ninputs = "a"\nout = "b"\n[other]', r"found segment, other"),
        ("segment = 3", r"must be a table: \[segment\]"),
        ("[segment]", r"\[segment\] lacks inputs and out"),
        ('[segment]\ninputs = "a"', r"lacks out$"),
        ('[segment]\nout = "a"', r"lacks inputs$"),
        ('[segment]\ninputs = [1]\nout = "b"', r"inputs must be text"),
        ('[segment]\ninputs = ["a"]\nout = 3', r"out must be text"),
        ('[segment]\ninputs = 3\nout = "b"', r"inputs must be text"),
        ("[train]", r"\[train\] lacks out$"),
        ('[train]\nout = "o"\ndata = 3', r"data must be tables: \[\[train.data\]\]"),
        ('[train]\nout = "o"\n[train.data]\nimages = "i"', r"data must be tables: \[\[train.data\]\]"),
        ('[train]\nout = "o"\n[[train.validate]]\nmasks = "m"', r"\[\[train.validate\]\] lacks images"),
        ('[train]\nout = "o"\n[[train.data]]\nimages = 3', r"images must be text"),
        ('[train]\nout = "o"\nweights = 3', r"weights must be text"),
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


# --- what is to be trained

TRAIN = """
[train]
out = "../runs/mine"
init = "checkpoint"
weights = "unet16-buildings"
epochs = 3
augment = { turn = true, scale = [0.5, 2] }

[[train.data]]
images = ["tiles/*.tif", "/data/more"]
buildings = "roofs.gpkg"
aoi = "area.geojson"

[[train.validate]]
images = "val/images"
masks = "val/gt"
only = "austin[1-5]"
"""


@pytest.fixture
def trained(monkeypatch) -> list[tuple[Any, dict[str, Any]]]:
    """Instead of training, remember what would be."""
    called: list[tuple[Any, dict[str, Any]]] = []
    module = import_module("geoseg.train")
    monkeypatch.setattr(module, "train", lambda recipe, **how: called.append((recipe, how)))
    return called


def test_a_recipe_with_paths_beside_the_file(write):
    path = write(TRAIN)
    here, recipe = path.parent, read_recipe(path)
    assert recipe.out == str(here / "../runs/mine")
    assert recipe.weights == "unet16-buildings"
    assert recipe.augment == Augment(turn=True, scale=(0.5, 2.0))
    (learnt,), (held,) = recipe.data, recipe.validate
    assert learnt.images == (str(here / "tiles/*.tif"), "/data/more")
    assert (learnt.buildings, learnt.aoi) == (str(here / "roofs.gpkg"), str(here / "area.geojson"))
    assert (held.images, held.masks) == ((str(here / "val/images"),), (str(here / "val/gt"),))
    assert held.only == ("austin[1-5]",)


@pytest.mark.parametrize("weights", ["mine.safetensors", "vgg11.pth", "folder/vgg11", "vgg11-0.3"])
def test_weights_are_a_shipped_name_or_a_file_beside(write, weights):
    path = write(TRAIN.replace("unet16-buildings", weights))
    if weights == "vgg11-0.3":
        # A dot does not make a file of a name.
        assert read_recipe(path).weights == weights
        (path.parent / weights).touch()
    assert read_recipe(path).weights == str(path.parent / weights)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs = 3", "epoch = 3", r"\[train\]: no such key: epoch"),
        ("turn = true", "turns = true", r"\[train.augment\]: no such key: turns"),
        ('aoi = "area.geojson"', 'area = "area.geojson"', r"\[\[train.data\]\]: no such key: area"),
        ('masks = "val/gt"', 'mask = "val/gt"', r"\[\[train.validate\]\]: no such key: mask"),
        ("epochs = 3", 'epochs = "many"', r"epochs is 'many'; it must be a whole number"),
        ('masks = "val/gt"', "", "needs masks, or buildings"),
    ],
)
def test_recipes_that_make_no_sense_are_refused_with_the_files_name(write, trained, old, new, words):
    path = write(TRAIN.replace(old, new))
    for call in (read_recipe, run_pipeline):
        with pytest.raises(SettingError, match=words) as caught:
            call(path)
        assert str(caught.value).startswith(str(path))
    assert trained == []
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_running_a_recipe_and_changing_its_keys(write, trained):
    path = write(TRAIN)
    run_pipeline(path)
    run_pipeline(path, fresh=True, progress="json", epochs=7, out="elsewhere", seed=None)
    (plain, how), (changed, how_else) = trained
    assert plain == read_recipe(path)
    assert how == {}
    assert (changed.epochs, changed.out, changed.seed) == (7, "elsewhere", 0)
    assert how_else == {"fresh": True, "progress": "json"}
    with pytest.raises(SettingError, match=r"\[train\]: no such key: epohcs"):
        run_pipeline(path, epohcs=3)


def test_changes_are_written_as_in_toml(write):
    path = write(TRAIN)
    recipe = read_recipe(
        path, ["epochs=9", "learning_rate = 1e-2", "out=runs/two", 'licence="CC0"', "decoder_norm=true"]
    )
    assert (recipe.epochs, recipe.learning_rate, recipe.out) == (9, 0.01, "runs/two")
    assert (recipe.licence, recipe.decoder_norm) == ("CC0", True)
    for change, words in (("epochs", "write key=value"), ("epohcs=3", "no such key: epohcs"), ("epochs=x", "'x'")):
        with pytest.raises(SettingError, match=words):
            read_recipe(path, [change])


def test_what_is_to_be_segmented_cannot_be_trained(write):
    with pytest.raises(SettingError, match=r"holds the job segment; to train it needs a table \[train\]"):
        read_recipe(write(FULL))


def test_pipelines_are_read_without_torch(write):
    code = (
        "import sys, geoseg, geoseg.train, geoseg.cli\n"
        "from geoseg.pipeline import read_pipeline\n"
        "read_pipeline(sys.argv[1])\n"
        "try:\n    geoseg.cli.main(['train', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = ('torch', 'torchvision', 'rasterio', 'numpy', 'matplotlib', 'dask', 'geopandas')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code, str(write(TRAIN))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("address", ["tcp://host:8786", "host:8786", "tls://10.0.0.1:8786"])
def test_a_scheduler_is_an_address_or_a_file_beside_the_pipeline(write, address):
    text = '[segment]\ninputs = "ortho"\nout = "out"\nscheduler = "{}"\n'
    assert read_pipeline(write(text.format(address)))[1]["scheduler"] == address
    file = write(text.format("cluster/scheduler.json"))
    assert read_pipeline(file)[1]["scheduler"] == str(file.parent / "cluster" / "scheduler.json")


def test_the_pipeline_for_kubernetes_fits_together():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((Path(__file__).resolve().parents[1] / "pipelines" / "kubernetes.yaml").read_text("utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("kubernetes.dask.org/v1", "DaskJob")
    parts = [found["spec"]["job"]["spec"]] + [
        found["spec"]["cluster"]["spec"][n]["spec"] for n in ("worker", "scheduler")
    ]
    job, worker, scheduler = (part["containers"][0] for part in parts)
    assert len({container["image"] for container in (job, worker, scheduler)}) == 1
    assert job["volumeMounts"] == worker["volumeMounts"]
    assert parts[0]["volumes"] == parts[1]["volumes"]
    service = found["spec"]["cluster"]["spec"]["scheduler"]["service"]
    assert service["selector"]["dask.org/cluster-name"] == found["metadata"]["name"]
    assert {port["targetPort"] for port in service["ports"]} == {port["name"] for port in scheduler["ports"]}
    # What the pod runs is a command that geoseg takes.
    import click

    from geoseg.cli import main

    words = ["tcp://host:8786" if word == "$(DASK_SCHEDULER_ADDRESS)" else word for word in job["args"]]
    assert words[:2] == ["geoseg", "segment"]
    command = main.commands["segment"]
    # With its parent: click remembers the options for help that it learns from there.
    context = command.make_context("segment", words[2:], parent=click.Context(main, **main.context_settings))
    assert context.params["scheduler"] == "tcp://host:8786"


def test_the_pipelines_that_come_along_can_be_read():
    folder = Path(__file__).resolve().parents[1] / "pipelines"
    found = sorted(folder.glob("*.toml"))
    assert found
    for path in found:
        name, _ = read_pipeline(path)
        if name == "train":
            read_recipe(path)
