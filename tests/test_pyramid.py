"""Tiles decoded again: what they show, where they are clear, and that they keep to their budget."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geoseg import pyramid
from geoseg.pyramid import TILE, Level, Plane, build, reduced

PLENTY = 10**8


def decoded(uri: str) -> np.ndarray:
    """``(rows, columns, bands)``."""
    kind, _, content = uri.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert kind == f"data:image/{str(image.format).lower()}"
        return np.array(image).reshape(image.height, image.width, -1)


def assembled(level: Level, bands: int) -> np.ndarray:
    """Put the tiles of a level together; what is not there is 0."""
    whole = np.zeros((level.height, level.width, bands), np.uint8)
    across = -(-level.width // TILE)
    for number, tile in enumerate(level.tiles):
        row, col = (TILE * part for part in divmod(number, across))
        if tile:
            pixels = decoded(tile)
            shown = np.full((*pixels.shape[:2], bands), 255, np.uint8)
            shown[..., : pixels.shape[2]] = pixels
            whole[row : row + TILE, col : col + TILE] = shown
    return whole


def slopes(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, cols * 255 // width, np.full_like(rows, 90)]).astype(np.uint8)


def everywhere(shape: tuple[int, int]) -> np.ndarray:
    return np.ones(shape, bool)


def test_levels_show_the_picture() -> None:
    shape = (TILE + 77, 2 * TILE + 5)
    levels = build(Plane(slopes(*shape), everywhere(shape)), PLENTY)
    assert [(one.height, one.width, one.factor) for one in levels] == [(148, 258, 4), (295, 515, 2), (589, 1029, 1)]
    assert [len(one.tiles) for one in levels] == [1, 2, 6]
    for level in levels:
        small = slopes(*shape)[:, :: level.factor, :: level.factor].astype(int)
        assert np.abs(assembled(level, 3) - np.moveaxis(small, 0, -1)).mean() < 3


def test_what_has_no_data_is_clear() -> None:
    shape = (2 * TILE, 2 * TILE)
    valid = everywhere(shape)
    valid[:TILE, :TILE] = valid[700:, :900] = False
    level = build(Plane(slopes(*shape), valid), PLENTY)[-1]
    assert level.tiles[0] == ""
    assert [tile[:15] for tile in level.tiles[1:]] == ["data:image/jpeg", "data:image/webp", "data:image/webp"]
    whole = assembled(level, 4)
    np.testing.assert_array_equal(whole[..., 3] == 255, valid)
    difference = np.abs(whole[..., :3].astype(int) - np.moveaxis(slopes(*shape), 0, -1))[valid]
    assert difference.mean() < 4


def test_without_webp_what_has_no_data_is_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_webp", lambda: False)
    valid = everywhere((64, 64))
    valid[:32] = False
    (level,) = build(Plane(slopes(64, 64), valid), PLENTY)
    (tile,) = level.tiles
    assert np.abs(decoded(tile)[:24].astype(int) - pyramid.NO_DATA).max() < 12


def test_grey_stays_grey_and_nothing_is_left_out() -> None:
    grey = np.zeros((100, 2 * TILE), np.uint8)
    grey[:, :TILE] = 140
    level = build(Plane(grey, everywhere(grey.shape)), PLENTY)[-1]
    assert level.tiles[1] == ""
    assert np.abs(decoded(level.tiles[0]).astype(int) - 140).max() <= 2
    assert decoded(level.tiles[0]).shape == (100, TILE, 1)


@pytest.mark.parametrize("budget", [60_000, 400_000, 900_000])
def test_noise_keeps_to_the_budget(budget: int) -> None:
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (3, 900, 1100), dtype=np.uint8)
    levels = build(Plane(noise, rng.random((900, 1100)) < 0.5), budget)
    taken = sum(len(tile) for level in levels for tile in level.tiles)
    assert taken <= budget or len(levels) == 1
    # The map must know what its pixels stand for, however many levels were left out.
    assert levels[0].factor == 4
    assert [level.factor for level in levels] == [4, 2, 1][: len(levels)]


def test_more_room_shows_more() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (3, 900, 1100), dtype=np.uint8)
    plane = Plane(noise, everywhere((900, 1100)))
    few, many = (build(plane, budget) for budget in (300_000, 3_000_000))
    assert len(few) < len(many)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_halves_are_means_of_what_is_there(height: int, width: int, seed: int, grey: bool) -> None:
    rng = np.random.default_rng(seed)
    valid = rng.random((height, width)) < 0.7
    pixels = rng.integers(0, 256, (height, width) if grey else (3, height, width), dtype=np.uint8)
    half = Plane(pixels, valid).halved()
    assert half.shape == (-(-height // 2), -(-width // 2))
    for row, col in np.ndindex(half.shape):
        square = np.s_[2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        assert half.valid[row, col] == valid[square].any()
        if valid[square].any():
            expected = pixels[..., *square][..., valid[square]].mean(axis=-1)
            assert np.abs(half.pixels[..., row, col] - expected).max() <= 0.5


def test_reduced_is_small_enough() -> None:
    plane = reduced(Plane(slopes(100, 1000), everywhere((100, 1000))), 300)
    assert plane.shape == (25, 250)
