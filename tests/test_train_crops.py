"""Random crops: the same whoever draws them, and image and masks always together."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasters import write
from scipy import stats
from torch.utils.data import DataLoader
from training import drawn, small, table, write_pairs

from geoseg.errors import SettingError
from geoseg.tiling import Rect
from geoseg.train.crops import Crop, Crops, Order, collate, resized
from geoseg.train.recipe import Augment, Recipe
from geoseg.train.scenes import close_labels, open_scenes

EVERYTHING = Augment(
    turn=True,
    scale=(0.7, 1.5),
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
    gamma=(0.7, 1.4),
    tint=0.1,
    blur=1.0,
    noise=0.05,
)


@pytest.fixture(autouse=True)
def closed():
    yield
    close_labels()


def crops_of(recipe: Recipe) -> Crops:
    return Crops(recipe, [(dataset, open_scenes(dataset)[0]) for dataset in recipe.data])


def same(one: Crop, other: Crop) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


# --- the same crop every time


def test_a_crop_depends_on_seed_epoch_and_index_only(tmp_path):
    write_pairs(tmp_path, {"a1": (70, 90), "a2": (64, 64), "v": (9, 9)})
    recipe = small(tmp_path, augment=EVERYTHING, seed=4)
    crops, again = crops_of(recipe), crops_of(recipe)
    keys = [(epoch, index) for epoch in (1, 2) for index in range(3)]
    first = {key: crops[key] for key in keys}
    torch.rand(7)
    np.random.rand(3)  # noqa: NPY002 - the old generator is what must not matter
    kept = torch.get_rng_state()
    for key in reversed(keys):
        assert same(again[key], first[key])
    assert torch.equal(torch.get_rng_state(), kept)
    assert not any(same(first[one], first[two]) for one, two in itertools.combinations(keys, 2))
    other = crops_of(dataclasses.replace(recipe, seed=5))
    assert not any(same(other[key], first[key]) for key in keys)


def test_processes_that_read_give_the_same_crops(tmp_path):
    write_pairs(tmp_path, {"a1": (70, 90), "a2": (64, 64), "v": (9, 9)})
    recipe = small(tmp_path, augment=EVERYTHING, crops=6)
    crops, order = crops_of(recipe), Order(6, 2)
    order.epoch = 3
    loader: Any = DataLoader(
        crops, batch_size=2, sampler=order, collate_fn=collate, num_workers=2, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert [len(batch.image) for batch in batches] == [2, 2, 2]
    for number, batch in enumerate(batches):
        wanted = collate([crops[3, 2 * number], crops[3, 2 * number + 1]])
        assert same(batch, wanted)
        assert batch.problems == []


@pytest.mark.parametrize(("crops", "batch", "world"), [(12, 4, 2), (12, 4, 4), (10, 4, 2), (3, 8, 2), (9, 3, 3)])
def test_processes_share_each_batch(crops, batch, world):
    alone = Order(crops, batch)
    shares = [Order(crops, batch, rank, world) for rank in range(world)]
    for epoch in (1, 5):
        for order in (alone, *shares):
            order.epoch = epoch
        every, parts = list(alone), [list(order) for order in shares]
        assert [len(order) for order in shares] == [len(part) for part in parts] == [len(every) // world] * world
        assert len(alone) == len(every) >= batch
        each = batch // world
        for step in range(len(every) // batch):
            together = [key for part in parts for key in part[step * each : (step + 1) * each]]
            assert together == every[step * batch : (step + 1) * batch]
        assert every == [(epoch, index) for index in range(len(every))]


# --- image and masks together


def red_is_building(folder: Path, shape: tuple[int, int] = (120, 140)) -> None:
    """Write an image whose red says building, whose green says labelled, and whose mask is that."""
    mask = drawn(shape, 3)[1] > 0
    labelled = np.ones(shape, bool)
    labelled[20:50, 70:100] = False
    image = np.stack([np.where(mask & labelled, 255, 0), np.where(labelled, 255, 0), np.full(shape, 128)])
    for kind in ("images", "gt"):
        (folder / kind).mkdir()
    write(folder / "images" / "a.tif", image.astype(np.uint8))
    write(folder / "gt" / "a.tif", np.where(labelled, mask, 9)[None].astype(np.uint8))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.45, 0.6), (1.7, 2.3), (0.6, 1.6)])
def test_image_and_masks_change_together(tmp_path, scale):
    red_is_building(tmp_path)
    data = (table(tmp_path, ignore=(9,)),)
    crops = crops_of(small(tmp_path, crop=64, data=data, augment=Augment(turn=True, scale=scale)))
    for index in range(12):
        crop = crops[1, index]
        assert crop.image.shape == (3, 64, 64)
        assert crop.image.dtype == torch.float32
        assert {mask.dtype for mask in crop[1:4]} == {torch.bool}
        red, green = (crop.image[band].numpy() for band in (0, 1))
        if scale == (1.0, 1.0):
            np.testing.assert_array_equal(crop.building.numpy(), red > 0.5)
            np.testing.assert_array_equal(crop.counts.numpy(), green > 0.5)
            continue
        # Resampling blurs edges: there the mask may be either.
        sure = crop.known.numpy() & ((red < 0.25) | (red > 0.75)) & ((green < 0.25) | (green > 0.75))
        np.testing.assert_array_equal(crop.building.numpy()[sure], red[sure] > 0.5)
        np.testing.assert_array_equal(crop.counts.numpy()[sure], green[sure] > 0.5)


@pytest.mark.parametrize("size", [(45, 45), (64, 64), (100, 100), (230, 230)])
def test_resized_masks_stay_in_place(size):
    # A disc's centre and area, in units of the image, are what they were: to a quarter of a pixel of the result.
    rows, cols = np.mgrid[:100, :100] + 0.5
    disc = torch.from_numpy((rows - 43) ** 2 + (cols - 61) ** 2 < 25**2)[None]
    out = resized(disc, size)[0].numpy()
    y, x = (np.nonzero(out)[axis].mean() + 0.5 for axis in (0, 1))
    assert y / size[0] * 100 == pytest.approx(43, abs=25 / size[0])
    assert x / size[1] * 100 == pytest.approx(61, abs=25 / size[1])
    assert out.mean() == pytest.approx(float(disc.float().mean()), rel=0.02)


def test_all_eight_turns_come_and_are_exact(tmp_path):
    image, mask = write_pairs(tmp_path, {"a": (32, 32)})["a"]
    crops = crops_of(small(tmp_path, data=(table(tmp_path),), augment=Augment(turn=True)))
    views = [
        (np.rot90(i, turns, (-2, -1)), np.rot90(m, turns, (-2, -1)))
        for turns in range(4)
        for i, m in ((image, mask), (image[:, :, ::-1], mask[:, ::-1]))
    ]
    seen = [0] * 8
    for index in range(160):
        crop = crops[1, index]
        (which,) = [k for k, (i, _) in enumerate(views) if np.array_equal((crop.image * 255).round().numpy(), i)]
        np.testing.assert_array_equal(crop.building.numpy(), views[which][1] > 0)
        seen[which] += 1
    assert stats.chisquare(seen).pvalue > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.9},
        {"hue": 0.5},
        {"gamma": (0.5, 2.0)},
        {"tint": 0.3},
        {"blur": 2.0},
        {"noise": 0.2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_colours_change_the_image_only(tmp_path, change):
    write_pairs(tmp_path, {"a": (50, 60)})
    plain = crops_of(small(tmp_path, data=(table(tmp_path),)))
    changed = crops_of(small(tmp_path, data=(table(tmp_path),), augment=Augment(**change)))
    differ = 0
    for index in range(12):
        one, other = plain[1, index], changed[1, index]
        assert all(torch.equal(a, b) for a, b in zip(one[1:4], other[1:4], strict=True))
        assert float(other.image.min()) >= 0
        assert float(other.image.max()) <= 1
        differ += not torch.equal(one.image, other.image)
    assert differ >= (1 if set(change) <= {"blur", "noise"} else 11)


# --- size on the ground


@pytest.mark.parametrize(("gsd", "enlarge"), [(None, 1), (0.5, 1), (0.25, 2), (1.0, 0.5)])
def test_pixels_become_as_large_as_the_recipe_says(tmp_path, gsd, enlarge, monkeypatch):
    write_pairs(tmp_path, {"a": (200, 180)})
    crops = crops_of(small(tmp_path, crop=64, data=(table(tmp_path),), gsd=gsd))
    ((_, scene),) = crops._scenes
    asked: list[Rect] = []
    inner = type(scene).read
    monkeypatch.setattr(type(scene), "read", lambda self, rect: asked.append(rect) or inner(self, rect))
    for index in range(4):
        assert crops[1, index].image.shape == (3, 64, 64)
    assert {rect.shape for rect in asked} == {(round(64 / enlarge), round(64 / enlarge))}
    assert all(rect & Rect(0, 0, 200, 180) == rect for rect in asked)
    assert crops.covering == -(-200 * 180 * enlarge**2 // 64**2)


def test_the_tables_scale_takes_the_place_of_the_recipes(tmp_path):
    write_pairs(tmp_path, {"a": (200, 180)})
    data = (table(tmp_path, scale=(0.5, 0.5)),)
    crop = crops_of(small(tmp_path, data=data, augment=Augment(scale=(2, 2))))[1, 0]
    wanted = crops_of(small(tmp_path, data=(table(tmp_path),), augment=Augment(scale=(0.5, 0.5))))[1, 0]
    assert same(crop, wanted)


def test_crops_larger_than_the_image_hold_all_of_it(tmp_path):
    _, mask = write_pairs(tmp_path, {"a": (40, 50)})["a"]
    crops = crops_of(small(tmp_path, crop=96, data=(table(tmp_path),)))
    places = set()
    for index in range(8):
        crop = crops[1, index]
        assert int(crop.counts.sum()) == 40 * 50
        assert int(crop.building.sum()) == int((mask > 0).sum())
        assert float(crop.image[:, ~crop.known].abs().sum()) == 0
        places.add(tuple(np.argwhere(crop.counts.numpy())[0].tolist()))
    assert len(places) > 5


def test_crops_with_little_to_learn_are_drawn_again(tmp_path):
    image, mask = drawn((64, 640))
    valid = np.zeros((64, 640), bool)
    valid[:, :80] = True
    for kind in ("images", "gt"):
        (tmp_path / kind).mkdir()
    write(tmp_path / "images" / "a.tif", image, mask=valid)
    write(tmp_path / "gt" / "a.tif", mask[None])
    crops = crops_of(small(tmp_path, data=(table(tmp_path),)))
    shares = [float(crops[1, index].counts.float().mean()) for index in range(40)]
    # A crop at any place has 0.25 with a chance of 1 in 8, eight of them with one of 2 in 3.
    assert np.mean(np.array(shares) >= 0.25) > 0.45


# --- how often which image


@pytest.mark.parametrize(("weights", "expected"), [((None, None), (4, 1, 3)), ((1.0, 3.0), (0.8, 0.2, 3))])
def test_tables_have_their_weights(tmp_path, weights, expected, monkeypatch):
    write_pairs(tmp_path / "one", {"a": (40, 80), "b": (40, 20)})
    write_pairs(tmp_path / "two", {"c": (40, 60)})
    data = tuple(table(tmp_path / name, weight=w) for name, w in zip(("one", "two"), weights, strict=True))
    crops = crops_of(small(tmp_path, data=data))
    drawn_from: list[str] = []
    scene_type = type(crops._scenes[0][1])
    inner = scene_type.read
    monkeypatch.setattr(scene_type, "read", lambda s, rect: drawn_from.append(Path(s.name).stem) or inner(s, rect))
    for index in range(300):
        crops[1, index]
    assert len(drawn_from) == 300
    seen = [drawn_from.count(stem) for stem in "abc"]
    wanted = np.array(expected) / sum(expected) * 300
    assert stats.chisquare(seen, wanted).pvalue > 1e-3


def test_weights_for_all_tables_or_none(tmp_path):
    write_pairs(tmp_path, {"a": (40, 40)})
    with pytest.raises(SettingError, match="a weight, or none"):
        crops_of(small(tmp_path, data=(table(tmp_path, weight=1.0), table(tmp_path))))
