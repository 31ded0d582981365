"""Weights that sum to one, and blends that do not know where blocks end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiling import tilings

from geoseg.blend import axis_weights, blend, rising, weights
from geoseg.tiling import Tiling, Window


def noise(window: Window) -> np.ndarray:
    """Random values that depend on nothing but the window."""
    seed = window.pixels.row0 * 100_003 + window.pixels.col0
    return np.random.default_rng(seed).random(window.pixels.shape, dtype=np.float32)


def whole(tiling: Tiling, values=noise) -> np.ndarray:
    """Blend block by block and lay the blocks side by side."""
    total = np.full(tiling.shape, np.nan, dtype=np.float32)
    for block in tiling:
        total[block.core.slices(tiling.extent)] = blend(tiling, block.core, ((w, values(w)) for w in block.windows))
    return total


@given(tilings())
@settings(deadline=None)
def test_weights_sum_to_one_on_every_pixel_and_vanish_outside_the_support(tiling):
    total = np.zeros(tiling.shape, dtype=np.float32)
    for window in tiling.windows(tiling.extent):
        everywhere = weights(tiling, window, tiling.extent)
        assert everywhere.dtype == np.float32
        assert everywhere.min() >= 0
        inside = window.support.slices(tiling.extent)
        assert (everywhere[inside] > 0).all()
        assert np.count_nonzero(everywhere) == window.support.area
        total += everywhere
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)


@given(tilings(), st.floats(0, 1, width=32))
@settings(deadline=None)
def test_constant_in_constant_out(tiling, value):
    blended = whole(tiling, lambda w: np.full(w.pixels.shape, value, dtype=np.float32))
    np.testing.assert_allclose(blended, value, rtol=0, atol=1e-6)


@given(tilings(), st.integers(1, 4))
@settings(deadline=None)
def test_blocks_of_any_size_give_the_same_bits(tiling, times):
    other = Tiling(tiling.shape, tiling.cell, tiling.halo, tiling.taper, tiling.cell * times)
    np.testing.assert_array_equal(whole(tiling), whole(other))


@given(tilings())
@settings(deadline=None)
def test_the_blend_is_the_mean_of_the_windows_weighted_by_the_formula(tiling):
    """Oracle: float64, both axes from the raised cosine itself, divided by the sum of all weights."""
    half = tiling.taper / 2

    def axis(low: int, length: int) -> np.ndarray:
        at = np.arange(length) + 0.5

        def step(edge: int) -> np.ndarray:  # 0 left of the strip around the edge, 1 right of it
            if half == 0:
                return (at > edge).astype(float)
            return np.sin(np.pi / 2 * np.clip((at - edge + half) / (2 * half), 0, 1)) ** 2

        rise = step(low) if low > 0 else np.ones(length)
        high = low + tiling.cell
        return rise * (1 - step(high) if high < length else 1)

    top, bottom = np.zeros(tiling.shape), np.zeros(tiling.shape)
    for window in tiling.windows(tiling.extent):
        weight = np.outer(axis(window.cell.row0, tiling.shape[0]), axis(window.cell.col0, tiling.shape[1]))
        seen = window.pixels & tiling.extent
        values = np.zeros(tiling.shape)
        values[seen.slices(tiling.extent)] = noise(window)[seen.slices(window.pixels)]
        top += weight * values
        bottom += weight
    np.testing.assert_allclose(whole(tiling), top / bottom, rtol=0, atol=2e-6)


@given(tilings())
@settings(deadline=None)
def test_without_taper_windows_are_cropped_to_their_cells(tiling):
    tiling = Tiling(tiling.shape, tiling.cell, tiling.halo, 0, tiling.core)
    expected = np.full(tiling.shape, np.nan, dtype=np.float32)
    for window in tiling.windows(tiling.extent):
        expected[window.cell.slices(tiling.extent)] = noise(window)[window.cell.slices(window.pixels)]
    np.testing.assert_array_equal(whole(tiling), expected)


@given(tilings())
@settings(deadline=None)
def test_a_blend_stays_between_the_least_and_the_greatest_value(tiling):
    blended = whole(tiling)
    assert blended.min() >= 0
    assert blended.max() <= 1 + 1e-6


@given(st.integers(1, 200).map(lambda k: 2 * k))
def test_a_strip_rises_and_its_mirror_image_completes_it(taper):
    ramp = rising(taper)
    assert ramp.shape == (taper,)
    assert ramp.dtype == np.float32
    assert (np.diff(ramp) >= 0).all()
    np.testing.assert_allclose(ramp + ramp[::-1], 1, atol=1e-6)


def test_a_strip_of_two_pixels_by_hand():
    # sin²(π/8) and sin²(3π/8)
    np.testing.assert_allclose(rising(2), [0.146_446_6, 0.853_553_4], atol=1e-6)
    tiling = Tiling((1, 64), cell=32, halo=32, taper=2, core=32)
    left, right = (axis_weights(tiling, 1, 30, 34, index) for index in (0, 1))
    np.testing.assert_allclose(left, [1, 0.853_553_4, 0.146_446_6, 0], atol=1e-6)
    np.testing.assert_allclose(right, [0, 0.146_446_6, 0.853_553_4, 1], atol=1e-6)


def test_windows_that_do_not_meet_the_core_add_nothing():
    tiling = Tiling((32, 128), cell=32, halo=32, taper=0, core=32)
    core = tiling.core_of(0, 0)
    far = tiling.window(0, 3)
    assert not blend(tiling, core, [(far, np.ones(far.pixels.shape, np.float32))]).any()
    assert blend(tiling, core, []).tolist() == np.zeros((32, 32)).tolist()


@pytest.mark.parametrize("taper", [0, 32])
def test_the_windows_may_come_from_a_generator_and_are_not_changed(taper):
    tiling = Tiling((40, 70), cell=32, halo=32, taper=taper, core=64)
    block = tiling.block(0, 0)
    given_values = {w: noise(w) for w in block.windows}
    blend(tiling, block.core, ((w, given_values[w]) for w in block.windows))
    assert all((given_values[w] == noise(w)).all() for w in block.windows)
