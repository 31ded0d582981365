"""What a run depends on: checked when it is said, and recognised when it comes again."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest

from geoseg.errors import SettingError
from geoseg.train.recipe import Augment, Dataset, Recipe

DATA = Dataset(images=("images",), masks=("gt",))
PLAIN = {"out": "run", "data": [{"images": "i", "masks": "m"}], "validate": [{"images": ["v"], "masks": "m"}]}


def recipe(**changes: object) -> Recipe:
    return Recipe(**{"out": "run", "data": (DATA,), "validate": (DATA,), **changes})


def test_the_defaults_are_the_papers_protocol():
    plain = recipe()
    assert (plain.crop, plain.validation_crop, plain.epochs) == (768, 1440, 100)
    assert (plain.optimizer, plain.learning_rate, plain.schedule) == ("adam", 0.001, "constant")
    assert (plain.arch, plain.num_filters, plain.init) == ("unet11", 32, "lecun")
    assert (plain.jaccard, plain.jaccard_form) == (1, "batch")
    assert plain.augment == Augment()
    assert (plain.decoder_norm, plain.frozen, plain.average, plain.weight_decay) == (False, 0, 0, 0)


def test_of_a_table_as_toml_gives_it():
    made = Recipe.of(
        {
            **PLAIN,
            "augment": {"turn": True, "scale": [1, 2]},
            "learning_rate": 1,
            "data": [{"images": "i", "buildings": "b.gpkg", "only": "austin[1-5]", "range": [0, 10000], "gsd": 1}],
        }
    )
    assert made.data[0].images == ("i",)
    assert made.data[0].only == ("austin[1-5]",)
    assert made.data[0].range == (0.0, 10000.0)
    assert made.validate[0].images == ("v",)
    assert made.augment == Augment(turn=True, scale=(1.0, 2.0))
    assert type(made.learning_rate) is float
    # What a state file keeps of it is the same recipe.
    assert Recipe.of(json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": 3}, r"\[train\]: no such key: epoch; there are out, data"),
        ({"augment": {"flip": True}}, r"\[train.augment\]: no such key: flip; there are turn"),
        ({"augment": 3}, r"\[train.augment\] must be a table, not 3"),
        ({"data": [{"images": "i", "mask": "m"}]}, r"\[\[train.data\]\]: no such key: mask"),
        ({"validate": [{"masks": "m"}]}, r"\[\[train.validate\]\] lacks images"),
        ({"data": [3]}, r"\[\[train.data\]\] must be a table, not 3"),
        ({"data": []}, "nothing to learn from"),
        ({"validate": []}, "nothing to validate"),
        ({"data": [{"images": "i"}]}, "needs masks, or buildings"),
        ({"data": [{"images": "i", "masks": "m", "buildings": "b"}]}, "not both"),
        ({"data": [{"images": [], "masks": "m"}]}, "names no images"),
        ({"data": [{"images": "i", "masks": "m", "weight": 0}]}, r"\[\[train.data\]\]: weight is 0"),
        ({"data": [{"images": "i", "masks": "m", "range": [3, 3]}]}, "two rising numbers"),
        ({"data": [{"images": "i", "masks": "m", "range": [0, math.inf]}]}, "two rising numbers"),
        ({"data": [{"images": "i", "masks": "m", "classes": 1}]}, "classes is 1; it must be a list of whole numbers"),
        ({"data": [{"images": "i", "masks": "m", "bands": [1, 2]}]}, "three whole numbers"),
        ({"data": [{"images": "i", "masks": "m", "scale": [2, 1]}]}, "the smaller one first"),
        ({"out": 3}, "out is 3; it must be text"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 2.5}, "epochs is 2.5; it must be a whole number"),
        ({"epochs": True}, "epochs is True"),
        ({"crop": 100}, "multiple of 32"),
        ({"validation_crop": 1000}, "multiple of 32"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
        ({"arch": "unet12"}, "one of unet11, unet16"),
        ({"init": "random"}, "one of lecun, imagenet, checkpoint"),
        ({"init": "checkpoint"}, "needs weights"),
        ({"weights": "vgg.pth"}, "'lecun' takes nothing from"),
        ({"optimizer": "sgd"}, "one of adam, adamw"),
        ({"schedule": "step"}, "one of constant, cosine"),
        ({"precision": "fp8"}, "one of auto"),
        ({"jaccard_form": "image"}, "one of batch, pixel"),
        ({"is_deconv": True}, "is_deconv is a choice of unet16"),
        ({"frozen": 6}, "5 levels"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "below"),
        ({"batch": 3, "devices": 2}, "multiple of devices"),
        ({"average": 1}, "average is 1"),
        ({"decoder_norm": True, "crop": 32, "batch": 1}, "a single value to normalise"),
        ({"augment": {"hue": 0.7}}, "hue is at most 0.5"),
        ({"augment": {"noise": -1}}, r"\[train.augment\]: augment: noise is -1"),
        ({"augment": {"gamma": [0, 1]}}, "gamma"),
    ],
)
def test_what_makes_no_sense_is_refused(change, words):
    with pytest.raises(SettingError, match=words):
        Recipe.of({**PLAIN, **change})


@pytest.mark.parametrize(
    "change", [{"data": DATA}, {"data": (3,)}, {"data": [{"images": "i"}]}, {"augment": {"turn": True}}]
)
def test_in_python_tables_are_their_classes(change):
    with pytest.raises(SettingError, match=r"it must be (a table|tables)"):
        recipe(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"out": "elsewhere"},
        {"name": "other"},
        {"epochs": 200},
        {"device": "cuda"},
        {"threads": 3},
        {"workers": 2},
        {"halo": 64},
        {"licence": "CC0"},
        {"description": "words"},
        {"data": (dataclasses.replace(DATA, name="roofs", licence="CC0", source="drawn"),)},
        {"data": (Dataset(images=(os.path.abspath("images"),), masks=("./gt",)),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_no_weight_is_the_same_run(change):
    assert recipe(**change).fingerprint() == recipe().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 0.002},
        {"batch": 8},
        {"devices": 2},
        {"precision": "bf16"},
        {"augment": Augment(turn=True)},
        {"data": (dataclasses.replace(DATA, weight=2.0),)},
        {"data": (DATA, DATA)},
        {"validate": (dataclasses.replace(DATA, but=("a1",)),)},
        {"schedule": "cosine"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_weights_is_another_run(change):
    assert recipe(**change).fingerprint() != recipe().fingerprint()


def test_under_cosine_the_length_decides():
    assert recipe(schedule="cosine", epochs=5).fingerprint() != recipe(schedule="cosine", epochs=6).fingerprint()


def test_a_run_is_the_same_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "pipelines").mkdir()
    monkeypatch.chdir(tmp_path)
    data = (Dataset(images=("data/i",), masks=("data/m", "/vsizip/x.zip/m.tif")),)
    there = recipe(data=data, validate=data)
    first = there.fingerprint()
    monkeypatch.chdir(tmp_path / "pipelines")
    data = (Dataset(images=("../data/i",), masks=("../data/m", "/vsizip/x.zip/m.tif")),)
    here = recipe(data=data, validate=data)
    assert here.fingerprint() == first
    assert there.fingerprint() != first
