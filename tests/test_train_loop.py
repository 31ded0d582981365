"""Training: what a run leaves, that it goes on as if nothing had happened, and that it stops when it must."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import safetensors.torch
import shapely
import torch
from click.testing import CliRunner
from rasters import UTM, write
from sklearn.metrics import jaccard_score
from training import drawn, small, table, watched, write_pairs

from geoseg import load_model
from geoseg.card import DataSource
from geoseg.checkpoint import read_card
from geoseg.cli import main
from geoseg.curves import read_curve
from geoseg.errors import InputError, ModelError, SettingError, TrainingError
from geoseg.predict import Predictor, Scaling, whole_image
from geoseg.train import loop, train
from geoseg.train.average import Average
from geoseg.train.initial import initialise
from geoseg.train.loop import Trained, Trainer
from geoseg.train.parallel import _told
from geoseg.train.scenes import close_labels, open_scenes
from geoseg.train.state import FILE, load_state
from geoseg.train.validate import THRESHOLDS, centre
from geoseg.unet import UNet11

IMAGES = {"a1": (70, 90), "a2": (64, 64), "v1": (80, 75), "v2": (40, 64)}
PIPELINE = """
[train]
out = "{out}"
init = "imagenet"
weights = "vgg.safetensors"
num_filters = 1
decoder_norm = true
frozen = 4
encoder_rate = 0.5
average = 0.6
crop = 64
crops = 4
batch = 2
epochs = {epochs}
validation_crop = 64
learning_rate = 0.01
warmup = 3
clip = 1.0
device = "cpu"
threads = 1
licence = "CC0"
[train.augment]
turn = true
scale = [0.8, 1.3]
brightness = 0.2
noise = 0.02
[[train.data]]
name = "spots"
licence = "CC0"
source = "drawn"
images = "images"
masks = "gt"
only = "a*"
[[train.validate]]
name = "held"
images = "images"
masks = "gt"
only = "v*"
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Labelled images, one of them with pixels without data, and the weights of an encoder."""
    folder = tmp_path_factory.mktemp("ground")
    made = write_pairs(folder, IMAGES)
    valid = np.ones(IMAGES["v1"], bool)
    valid[20:60, 30:55] = False
    write(folder / "images" / "v1.tif", made["v1"][0], mask=valid)
    net = UNet11(1)
    initialise(net, "lecun", None, seed=11)
    encoder = {f"features.{key}": value for key, value in net.encoder.state_dict().items()}
    safetensors.torch.save_file(encoder, folder / "vgg.safetensors")
    yield folder
    shutil.rmtree(folder)


def pipeline(ground: Path, out: str, epochs: int = 3) -> Path:
    path = ground / f"{out}.toml"
    path.write_text(PIPELINE.format(out=out, epochs=epochs), "utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(ground: Path) -> Trained:
    """A run of three epochs, with everything that a recipe can have at once."""
    return train(pipeline(ground, "unbroken"), progress="none")


@pytest.fixture
def spots(tmp_path: Path) -> Iterator[Path]:
    """A folder of labelled images that goes away at the end, since what a run leaves is large."""
    write_pairs(tmp_path, IMAGES)
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the picture, which takes longer than a small epoch."""
    monkeypatch.setattr(loop, "draw_run", lambda *_: None)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_labels()


def rows_of(path: Path) -> list[dict[str, str]]:
    with (path / "curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row.pop("seconds")
    return rows


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same_runs(one: Path, other: Path) -> None:
    assert rows_of(one) == rows_of(other)
    for name in ("best.safetensors", "last.safetensors", FILE):
        with safetensors.safe_open(one / name, "pt") as ours, safetensors.safe_open(other / name, "pt") as theirs:
            assert sorted(ours.keys()) == sorted(theirs.keys())
            assert [k for k in ours.keys() if not torch.equal(ours.get_tensor(k), theirs.get_tensor(k))] == []  # noqa: SIM118


def geoseg_(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- what a run leaves


def test_files_and_curve(unbroken):
    out = unbroken.out
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors",
        "curves.csv",
        "curves.png",
        "last.safetensors",
        FILE,
    ]
    assert (unbroken.best, unbroken.last) == (out / "best.safetensors", out / "last.safetensors")
    assert unbroken.problems == ()
    points = unbroken.curve.points
    assert [point.epoch for point in points] == [1, 2, 3]
    assert [point.step for point in points] == [2, 4, 6]
    # Warmed up over three steps, then constant.
    assert [point.learning_rate for point in points] == pytest.approx([0.02 / 3, 0.01, 0.01])
    assert all(point.val_iou is not None and point.threshold in THRESHOLDS for point in points)
    assert points[-1].seconds > points[0].seconds
    assert len({point.train_loss for point in points}) == 3
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_best_is_the_epoch_of_the_highest_iou(unbroken):
    points = unbroken.curve.points
    best = max(points, key=lambda point: point.val_iou)
    for path, point in ((unbroken.best, best), (unbroken.last, points[-1])):
        card = read_card(path)
        assert card.metrics["epoch"] == point.epoch
        assert card.metrics["iou"] == pytest.approx(point.val_iou, abs=1e-8)
        assert card.metrics["iou held"] == card.metrics["iou"]
        assert card.threshold == point.threshold


def test_the_card_says_where_the_weights_come_from(unbroken):
    card = read_card(unbroken.last)
    assert (card.name, card.arch, card.num_filters) == ("unbroken", "unet11", 1)
    assert card.gsd_m == pytest.approx(0.5, rel=1e-3)
    assert card.value_range == {"uint8": (0, 255)}
    assert card.licence == "CC0"
    roofs, imagenet = card.training_data
    assert roofs == DataSource("spots", "CC0", "drawn")
    assert imagenet.name == "ImageNet, encoder only"
    assert imagenet.source == "vgg.safetensors"


def test_the_iou_is_that_of_the_saved_model_on_whole_images(unbroken, ground):
    model = load_model(unbroken.last)
    predictor = Predictor.of(model, device="cpu", precision="fp32", threads=1)
    chances, truths = [], []
    for stem in ("v1", "v2"):
        with (
            rasterio.open(ground / "images" / f"{stem}.tif") as image,
            rasterio.open(ground / f"gt/{stem}.tif") as mask,
        ):
            values, valid, truth = image.read(), image.dataset_mask() > 0, mask.read(1) > 0
        # The centre crop of 64: all of what is smaller.
        height, width = truth.shape
        tall, wide = min(height, 64), min(width, 64)
        row, col = (height - tall) // 2, (width - wide) // 2
        part = (slice(row, row + tall), slice(col, col + wide))
        values, valid, truth = values[:, part[0], part[1]], valid[part], truth[part]
        chance = whole_image(predictor, values, valid, Scaling.of(model.card, "uint8"))
        chances.append(chance[valid])
        truths.append(truth[valid])
    chance, truth = np.concatenate(chances), np.concatenate(truths)
    assert len(truth) < 64 * 64 + 40 * 64
    last = unbroken.curve.points[-1]
    # Probabilities are told apart in 255 steps.
    ious = {t: jaccard_score(truth, chance >= math.ceil(255 * t - 1e-6) / 255) for t in THRESHOLDS}
    assert last.val_iou == pytest.approx(ious[last.threshold], abs=1e-3)
    assert last.val_iou == pytest.approx(max(ious.values()), abs=1e-3)


class Blue(torch.nn.Module):
    """Answers with the blue that it is shown."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 2:] * 0.225 + 0.406


@pytest.mark.parametrize(
    ("area", "wanted"),
    [
        (None, (28, 43, 64, 64)),  # rows, columns, height and width
        ((0, 0, 32, 40), (0, 0, 32, 40)),
        ((10, 20, 110, 60), (28, 20, 64, 40)),
        ((40, 30, 120, 150), (48, 58, 64, 64)),
    ],
)
def test_validation_looks_at_the_middle_of_what_is_labelled(tmp_path, area, wanted):
    image = drawn((120, 150))[0]
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.tif", image)
    row0, col0, row1, col1 = area or (0, 0, 4, 4)
    box = shapely.box(500_000 + col0 / 2, 4_000_000 - row1 / 2, 500_000 + col1 / 2, 4_000_000 - row0 / 2)
    gpd.GeoDataFrame(geometry=[box], crs=UTM).to_file(tmp_path / "area.gpkg")
    path = str(tmp_path / "area.gpkg")
    (scene,), _ = open_scenes(table(tmp_path, buildings=path, aoi=path if area else None))
    cpu = torch.device("cpu")
    seen, _, counts, problems = centre(Blue(), scene, crop=64, gsd=None, device=cpu, dtype=torch.float32)
    row, col, height, width = wanted
    np.testing.assert_allclose(seen * 255, image[2, row : row + height, col : col + width], atol=1e-3)
    assert counts.all()
    assert problems == ()


@pytest.mark.parametrize(("gsd", "size", "step"), [(1.0, 32, 2), (0.25, 64, 0.5)])
def test_validation_resamples_to_the_recipes_ground(tmp_path, gsd, size, step):
    write_pairs(tmp_path, {"a": (64, 64)})
    rows, cols = np.mgrid[:64, :64] + 0.5
    ramp = np.stack([rows, cols, 2 * rows + cols]).astype(np.uint8)
    write(tmp_path / "images" / "a.tif", ramp)
    write(tmp_path / "gt" / "a.tif", ((rows < 20) & (cols > 30))[None].astype(np.uint8))
    (scene,), _ = open_scenes(table(tmp_path))
    cpu = torch.device("cpu")
    seen, building, _, _ = centre(Blue(), scene, crop=64, gsd=gsd, device=cpu, dtype=torch.float32)
    assert seen.shape == building.shape == (size, size)
    first = (64 - size * step) / 2
    y, x = np.mgrid[:size, :size] * step + first + step / 2
    inner = (slice(4, -4), slice(4, -4))
    # Stored as whole numbers: half a level lower on average.
    np.testing.assert_allclose((seen * 255)[inner], (2 * y + x - 0.5)[inner], atol=1.0)
    np.testing.assert_array_equal(building[inner], ((y < 20) & (x > 30))[inner])


def test_it_learns(spots, undrawn):
    recipe = small(spots, num_filters=4, decoder_norm=True, crop=64, crops=8, epochs=3, learning_rate=0.003)
    first, *_, last = train(recipe, progress="none").curve.points
    assert last.train_loss < first.train_loss
    assert last.train_iou > first.train_iou


# --- going on


def test_interrupted_and_gone_on_is_as_unbroken(unbroken, ground, monkeypatch, undrawn):
    path = pipeline(ground, "interrupted")
    inner = Trainer._step

    def step(self: Trainer, *arguments: Any) -> None:
        if self.position.step == 5:
            raise KeyboardInterrupt
        inner(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", step)
        stopped = geoseg_("train", path, "--progress", "json")
    assert stopped.exit_code == 130
    assert "geoseg: stopped; what is finished is kept, the same command goes on" in stopped.stderr
    out = ground / "interrupted"
    assert [row["epoch"] for row in rows_of(out)] == ["1", "2"]
    on = geoseg_("run", path, "--progress", "json")
    assert on.exit_code == 0
    assert f"best: epoch {unbroken.curve.best.epoch}, IoU {unbroken.curve.best.val_iou:.4f}" in on.stderr
    events = [json.loads(line) for line in on.stderr.splitlines() if line.startswith("{")]
    assert next(event["done"] for event in events if event["event"] == "progress") == 4
    same_runs(out, unbroken.out)


def test_killed_and_gone_on_is_as_unbroken(unbroken, ground):
    path, out = pipeline(ground, "killed"), ground / "killed"
    code = "import sys; from geoseg.cli import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, "train", str(path), "--progress", "none"], cwd=Path(__file__).parents[1]
    ) as running:
        while running.poll() is None and not (out / FILE).is_file():
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert 1 <= len(rows_of(out)) < 3
    train(path, progress="none")
    same_runs(out, unbroken.out)


def test_more_epochs_go_on_and_fewer_are_done(spots, undrawn):
    recipe = small(spots, epochs=1, learning_rate=0.01)
    train(recipe, progress="none")
    train(dataclasses.replace(recipe, epochs=3), progress="none")
    whole = train(dataclasses.replace(recipe, epochs=3, out=str(spots / "whole")), progress="none")
    same_runs(spots / "run", whole.out)
    before = whole.last.stat().st_mtime_ns
    again = train(dataclasses.replace(recipe, epochs=2, out=str(whole.out)), progress="none")
    assert len(again.curve.points) == 3
    assert again.last.stat().st_mtime_ns == before


def test_another_recipe_does_not_go_on(spots, undrawn):
    recipe = small(spots, epochs=1)
    train(recipe, progress="none")
    other = dataclasses.replace(recipe, learning_rate=0.5, seed=3, epochs=9, licence="CC0")
    with pytest.raises(
        SettingError, match=r"holds a run with other settings \(learning_rate, seed\); give another out"
    ):
        train(other, progress="none")
    assert len(rows_of(spots / "run")) == 1
    train(dataclasses.replace(other, epochs=1), fresh=True, progress="none")
    assert read_curve(spots / "run").points[0].learning_rate == 0.5


@pytest.mark.parametrize("damage", ["cut", "nonsense", "foreign"])
def test_a_damaged_state_is_told(spots, damage):
    recipe = small(spots)
    state = spots / "run" / FILE
    state.parent.mkdir()
    if damage == "foreign":
        safetensors.torch.save_file({"a": torch.zeros(3)}, state)
    else:
        safetensors.torch.save_file({"a": torch.zeros(300)}, state, metadata={"geoseg-training": "{}"})
        content = state.read_bytes()
        state.write_bytes(content[:-100] if damage == "cut" else b"nonsense" * 50)
    with pytest.raises(InputError, match=r"state\.safetensors: is damaged .*--fresh"):
        train(recipe, progress="none")
    assert sorted(path.name for path in state.parent.iterdir()) == [FILE]


# --- stopping


def test_a_loss_that_is_not_finite_stops_with_an_explanation(spots, undrawn, monkeypatch):
    recipe = small(spots, epochs=3)
    inner = Trainer._rate
    monkeypatch.setattr(Trainer, "_rate", lambda self: 1e30 if self.position.step >= 2 else inner(self))
    with pytest.raises(TrainingError, match="loss is not finite at step 4") as caught:
        train(recipe, progress="none")
    message = str(caught.value)
    assert "learning rate 1e+30, float32" in message
    assert "last.safetensors holds epoch 1" in message
    assert "Lower learning_rate" in message
    # What the first epoch left is whole, and can be gone on from.
    assert len(rows_of(spots / "run")) == 1
    load_model(spots / "run" / "last.safetensors")
    position, _ = load_state(spots / "run" / FILE, recipe)
    assert (position.epoch, position.step) == (1, 2)


def test_weights_that_break_in_the_last_step_are_seen_in_validation(spots, undrawn):
    with pytest.raises(TrainingError, match=r"v1\.tif: the network's answer .* not finite.*lower learning_rate"):
        train(small(spots, learning_rate=1e30, crops=2, epochs=1), progress="none")
    assert list((spots / "run").iterdir()) == []
    result = CliRunner().invoke(main, ["train", str(spots / "gone.toml")])
    assert result.exit_code == 2
    assert "gone.toml: cannot be read" in result.stderr


def test_learning_and_validating_on_the_same_image_is_refused(spots):
    data = (table(spots),)
    with pytest.raises(SettingError, match=r"v1\.tif: in data and in validate"):
        train(small(spots, data=data), progress="none")
    # Two areas of interest in one image lie apart.
    left, right = (
        shapely.box(500_000, 3_999_950, 500_015, 4_000_000),
        shapely.box(500_016, 3_999_950, 500_040, 4_000_000),
    )
    roofs = shapely.union_all([shapely.box(500_005, 3_999_980, 500_010, 3_999_990).buffer(d) for d in (0, 1)])
    for name, shape in (("left", left), ("right", right), ("roofs", roofs), ("both", left.union(right))):
        gpd.GeoDataFrame(geometry=[shape], crs=UTM).to_file(spots / f"{name}.gpkg")
    known = {"buildings": str(spots / "roofs.gpkg"), "only": ("a1",)}
    parts = {name: table(spots, aoi=str(spots / f"{name}.gpkg"), **known) for name in ("left", "right", "both")}
    progress, team = import_module("geoseg.progress").Progress(), import_module("geoseg.train.parallel").Team()
    cpu = torch.device("cpu")
    Trainer(small(spots, data=(parts["left"],), validate=(parts["right"],)), team, cpu, progress)
    with pytest.raises(SettingError, match=r"a1\.tif: in data and in validate"):
        Trainer(small(spots, data=(parts["left"],), validate=(parts["both"],)), team, cpu, progress)


@pytest.mark.parametrize(("change", "words"), [({"name": "no spaces"}, "no spaces"), ({"halo": 50}, "halo is 50")])
def test_a_card_that_cannot_be_is_told_before_training(spots, change, words):
    with pytest.raises(ModelError, match=words):
        train(small(spots, **change), progress="none")
    assert list((spots / "run").iterdir()) == []


# --- what else a recipe may say


def test_what_is_left_out_is_told_and_the_rest_goes_on(spots, undrawn):
    write(spots / "images" / "a3.tif", drawn((30, 30))[0])
    (spots / "images" / "v3.tif").write_bytes(b"II*\0nonsense")
    write(spots / "gt" / "v3.tif", drawn((30, 30))[1][None])
    text = (
        PIPELINE.format(out="my run", epochs=1).replace('init = "imagenet"', "").replace("crop = 64\n", "crop = 32\n")
    )
    path = spots / "x.toml"
    path.write_text(text.replace('weights = "vgg.safetensors"', "").replace("frozen = 4", "frozen = 5"), "utf-8")
    result = geoseg_("train", path, "--set", "validate_every=2", "--set", "name=", "--progress", "none")
    assert result.exit_code == 1
    assert "a3.tif: no mask is called a3" in result.stderr
    assert "v3.tif: cannot be opened as a raster" in result.stderr
    assert "learning curves · " in result.stderr
    assert read_card(spots / "my run" / "last.safetensors").name == "my-run"
    fresh = geoseg_("run", path, "--fresh", "--progress", "none")
    assert fresh.exit_code == 1
    assert len(rows_of(spots / "my run")) == 1


def test_epochs_without_validation_and_validation_without_buildings(spots, undrawn):
    for stem in ("v1", "v2"):
        write(spots / "gt" / f"{stem}.tif", np.zeros((1, *IMAGES[stem]), np.uint8))
    result = train(small(spots, epochs=3, validate_every=2), progress="none")
    one, two, three = result.curve.points
    assert (one.val_loss, one.val_iou, one.threshold) == (None, None, None)
    assert None not in (two.val_loss, three.val_loss)
    # Nothing to find, and everything found: an IoU of 0, or none at all where nothing was found either.
    assert all(point.val_iou in (0, None) for point in (two, three))
    assert result.curve.best is None or result.curve.best.val_iou == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(spots, undrawn, precision):
    recipe = small(spots, precision=precision, epochs=1)
    result = train(recipe, progress="none")
    assert math.isfinite(result.curve.points[0].train_loss)
    position, kept = load_state(spots / "run" / FILE, recipe)
    assert kept["net.final.weight"].dtype == torch.float32
    assert bool(position.scaler) == (precision == "fp16")
    longer = train(dataclasses.replace(recipe, epochs=2), progress="none")
    assert len(longer.curve.points) == 2


def test_the_average_is_saved_and_validated(spots, undrawn, monkeypatch):
    key = "dec1.conv.weight"
    seen: list[torch.Tensor] = []
    inner = Average.update

    def update(self: Average, net: torch.nn.Module) -> None:
        if not seen:
            seen.append(self.values[key].clone())
        inner(self, net)
        seen.append(net.state_dict()[key].clone())

    monkeypatch.setattr(Average, "update", update)
    result = train(small(spots, average=0.1, epochs=2, learning_rate=0.01), progress="none")
    wanted, *steps = seen
    assert len(steps) == 4
    for number, weights in enumerate(steps, start=1):
        # So that the start is soon forgotten.
        decay = min(0.1, number / (number + 20))
        wanted = decay * wanted + (1 - decay) * weights
    saved = tensors(result.last)[key]
    torch.testing.assert_close(saved, wanted)
    assert (saved - steps[-1]).abs().max() > 1e-4


def test_two_processes_share_a_batch(spots, monkeypatch):
    run = import_module("geoseg.train.run")
    inner, digests = run.launch, []

    def launch(processes: int, _work: Any, *arguments: Any) -> list[Any]:
        found = inner(processes, watched, *arguments)
        digests.extend(digest for digest, _ in found)
        return [problems for _, problems in found]

    monkeypatch.setattr(run, "launch", launch)
    write(spots / "images" / "a3.tif", drawn((30, 30))[0])
    recipe = small(spots, devices=2, decoder_norm=True, crop=64, epochs=1, threads=1)
    result = train(recipe, progress="none")
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert len(result.curve.points) == 1
    assert result.curve.points[0].step == 2
    assert sorted(path.name for path in result.out.iterdir()) == [
        "best.safetensors",
        "curves.csv",
        "curves.png",
        "last.safetensors",
        FILE,
    ]
    assert ["a3.tif" in problem for problem in result.problems] == [True]
    load_model(result.best)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"message": "ModelError: x.pth: gone", "extraInfo": {"py_callstack": "Traceback …"}}, "x.pth: gone"),
        (
            {"message": "KeyError: 3", "extraInfo": {"py_callstack": "Traceback …\nKeyError: 3\n"}},
            "Traceback …\nKeyError: 3",
        ),
        ("Signal 9 (SIGKILL) received", "what the launcher says"),
    ],
)
def test_what_a_process_says_when_it_fails(said, wanted):
    failure = SimpleNamespace(error_file_data={"message": said}, message="what the launcher says")
    assert _told(failure) == wanted
