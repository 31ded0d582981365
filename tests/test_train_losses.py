"""The paper's loss, against the same written with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from geoseg.errors import SettingError
from geoseg.train.losses import FORMS, JaccardLoss, Parts

SHAPE = (2, 5, 7)


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, SHAPE), rng.random(SHAPE) < 0.3, rng.random(SHAPE) < 0.8


def by_hand(
    logits: np.ndarray, building: np.ndarray, valid: np.ndarray, form: str, weight: float = 1.0, smooth: float = 1.0
) -> tuple[float, float, float]:
    """Loss, H and J in double precision, pixel by pixel as the paper writes them."""
    entropy = both = either = shares = 0.0
    count = 0
    for z, y, counts in zip(logits.ravel(), building.ravel(), valid.ravel(), strict=True):
        if not counts:
            continue
        p = 1 / (1 + math.exp(-z))
        entropy -= math.log(p if y else 1 - p)
        both += p * y
        either += p + y - p * y
        shares += p * y / (p + y - p * y)
        count += 1
    entropy /= count
    jaccard = (both + smooth) / (either + smooth) if form == "batch" else (shares + smooth) / (count + smooth)
    return entropy - weight * math.log(jaccard), entropy, jaccard


def run(logits: np.ndarray, building: np.ndarray, valid: np.ndarray, **options: object) -> tuple[Parts, np.ndarray]:
    """Return what the loss says, and its gradient."""
    given = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    parts = JaccardLoss(**options)(given, torch.from_numpy(building), torch.from_numpy(valid))
    parts.loss.backward()
    assert given.grad is not None
    return parts, given.grad.numpy()


def numbers(parts: Parts) -> list[float]:
    """Return loss, H and J."""
    return [float(part.detach()) for part in parts[:3]]


def test_a_case_in_the_head():
    # p = 1/2 everywhere; buildings are the first and the last of three pixels.
    logits, building = torch.zeros(1, 1, 3), torch.tensor([[[1, 0, 1]]])
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    batch = JaccardLoss()(logits, building, valid)
    assert float(batch.entropy) == pytest.approx(math.log(2))
    assert float(batch.jaccard) == pytest.approx((0.5 + 0.5 + 1) / (1 + 0.5 + 1 + 1))
    assert float(batch.loss) == pytest.approx(math.log(2) - math.log(2 / 3.5))
    pixel = JaccardLoss(form="pixel")(logits, building, valid)
    assert float(pixel.jaccard) == pytest.approx((0.5 + 0 + 0.5 + 1) / (3 + 1))
    # What a learning curve shows is the Jaccard index all the same.
    assert float(pixel.iou) == float(batch.iou) == float(batch.jaccard)
    assert float(JaccardLoss(form="pixel", smooth=0)(logits, building, valid).jaccard) == pytest.approx(1 / 3)
    assert float(JaccardLoss(0.25)(logits, building, valid).loss) == pytest.approx(math.log(2) - math.log(2 / 3.5) / 4)


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10**6), weight=st.floats(0, 3), smooth=st.floats(0.01, 100))
def test_it_is_what_the_paper_writes(form, seed, weight, smooth):
    logits, building, valid = case(seed)
    parts, _ = run(logits, building, valid, form=form, weight=weight, smooth=smooth)
    wanted = by_hand(logits, building, valid, form, weight, smooth)
    assert numbers(parts) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_formula(form):
    logits, building, valid = case(3)
    _, gradient = run(logits, building, valid, form=form)
    step = 1e-6
    for index in np.ndindex(SHAPE):
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        slope = (by_hand(up, building, valid, form)[0] - by_hand(down, building, valid, form)[0]) / (2 * step)
        assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strange", [0.0, 1e4, -1e4, math.inf, -math.inf, math.nan])
def test_what_stands_in_invalid_pixels_does_not_matter(form, strange):
    logits, building, valid = case(1)
    parts, gradient = run(logits, building, valid, form=form)
    parts2, gradient2 = run(np.where(valid, logits, strange), building ^ ~valid, valid, form=form)
    assert numbers(parts2) == numbers(parts)
    np.testing.assert_array_equal(gradient2, gradient)
    assert (gradient2[~valid] == 0).all()
    assert (gradient2[valid] != 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_valid_says_nothing(form):
    logits, building, _ = case()
    parts, gradient = run(logits, building, np.zeros(SHAPE, bool), form=form)
    assert numbers(parts) == [0, 0, 1]
    assert (gradient == 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("answer", [-200.0, -88.0, -20.0, 0.0, 20.0, 200.0])
@pytest.mark.parametrize("building", [False, True])
def test_sure_answers_and_batches_of_one_kind_stay_finite(form, answer, building):
    full = np.full(SHAPE, answer)
    parts, gradient = run(full, np.full(SHAPE, building), np.ones(SHAPE, bool), form=form)
    assert np.isfinite(numbers(parts)).all()
    assert np.isfinite(gradient).all()


def test_half_precision_comes_in_and_sums_stay_exact():
    # 600 000 pixels of bfloat16 logits, whose sums bfloat16 could not hold.
    logits = torch.full((1, 600, 1000), -1.0, dtype=torch.bfloat16)
    building = torch.zeros(logits.shape, dtype=torch.bool)
    building[:, :100] = True
    parts = JaccardLoss()(logits, building, torch.ones_like(building))
    p = 1 / (1 + math.exp(1))
    assert parts.loss.dtype == torch.float32
    assert float(parts.jaccard) == pytest.approx((p + 1e-5) / (1 + 5 * p + 1e-5), rel=1e-4)


def test_for_sure_answers_j_is_the_jaccard_index():
    rng = np.random.default_rng(5)
    found, building, valid = (rng.random(SHAPE) < share for share in (0.4, 0.3, 0.7))
    parts, _ = run(np.where(found, 60.0, -60.0), building, valid, smooth=0)
    assert float(parts.jaccard) == pytest.approx(jaccard_score(building[valid], found[valid]), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "image"}, "'image' is not one of batch, pixel"),
        ({"weight": -1}, "weight is -1"),
        ({"weight": math.nan}, "weight is nan"),
        ({"smooth": math.inf}, "smooth is inf"),
    ],
)
def test_wrong_settings(options, words):
    with pytest.raises(SettingError, match=words):
        JaccardLoss(**options)
