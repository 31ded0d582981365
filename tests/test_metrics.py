"""Metrics against scikit-learn, a slow second implementation and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import SettingError
from geoseg.metrics import Boundary, Confusion, Score, ThresholdCurve, boundary_band, boundary_distance


def speckled(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A mask with holes few enough for bands to have an inside."""
    mask: np.ndarray = np.random.default_rng(seed).random(shape) < 0.97
    return mask


def slow_boundary(one: np.ndarray, two: np.ndarray, valid: np.ndarray, distance: int) -> tuple[int, int]:
    """Look around every pixel for something that is not the mask, the surroundings of the image included."""

    def band(mask: np.ndarray) -> set[tuple[int, int]]:
        inside = {(int(r), int(c)) for r, c in zip(*np.nonzero(mask & valid), strict=True)}
        reach = range(-distance, distance + 1)
        return {(r, c) for r, c in inside if any((r + i, c + j) not in inside for i in reach for j in reach)}

    a, b = band(one), band(two)
    return len(a & b), len(a | b)


# --- metrics -----------------------------------------------------------------------------------------------------


def test_confusion_by_hand() -> None:
    predicted = np.array([[1, 1, 0, 0], [1, 0, 0, 1]])
    truth = np.array([[1, 0, 0, 1], [1, 0, 0, 1]])
    valid = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    counts = Confusion.of(predicted, truth, valid)
    assert counts == Confusion(tp=2, fp=1, fn=1, tn=3)
    assert counts.pixels == 7
    assert (counts.iou, counts.accuracy, counts.precision) == (2 / 4, 5 / 7, 2 / 3)
    assert (counts.recall, counts.f1) == (2 / 3, 4 / 6)


def test_agrees_with_scikit_learn_on_valid_pixels() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    truth, predicted = speckled((60, 71), 1), speckled((60, 71), 2)
    valid = rng.random(truth.shape) > 0.3
    counts = Confusion.of(predicted, truth, valid)
    t, p = truth[valid], predicted[valid]
    assert counts.iou == pytest.approx(metrics.jaccard_score(t, p), abs=1e-12)
    assert counts.f1 == pytest.approx(metrics.f1_score(t, p), abs=1e-12)
    assert counts.precision == pytest.approx(metrics.precision_score(t, p), abs=1e-12)
    assert counts.recall == pytest.approx(metrics.recall_score(t, p), abs=1e-12)
    assert counts.accuracy == pytest.approx(metrics.accuracy_score(t, p), abs=1e-12)


def test_ratios_without_anything_are_nan_and_null_in_json() -> None:
    score = Score(Confusion.of(np.zeros((3, 3)), np.zeros((3, 3))))
    assert math.isnan(score.iou)
    assert math.isnan(score.boundary_iou)
    assert score.as_dict()["iou"] is None
    assert score.accuracy == 1


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 8), min_size=1, max_size=5))
def test_counts_add_as_pixels_do(counts: list[tuple[int, ...]]) -> None:
    scores = [Score(Confusion(*c[:4]), Boundary(*c[4:6])) for c in counts]
    total = sum(scores, Score())
    assert total.confusion.pixels == sum(sum(c[:4]) for c in counts)
    assert total.boundary == Boundary(sum(c[4] for c in counts), sum(c[5] for c in counts))


def test_wrong_use_is_said() -> None:
    with pytest.raises(SettingError, match="one shape"):
        Confusion.of(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(SettingError, match="negative"):
        Confusion(tp=-1)
    with pytest.raises(SettingError, match=r"reach from 0 to 7"):
        ThresholdCurve.of(np.array([0.0, 7.0]), np.array([0, 1]))
    with pytest.raises(SettingError, match="at least 1"):
        boundary_band(np.ones((2, 2)), 0)
    with pytest.raises(SettingError, match="lies between"):
        ThresholdCurve().at(1.5)


# --- boundary ----------------------------------------------------------------------------------------------------


def test_boundary_of_two_squares_by_hand() -> None:
    one, two = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    one[4:14, 4:14] = True
    two[4:14, 6:16] = True
    # Distance 1: rings of 36 pixels; in common rows 4 and 13 from column 6 to 13 (2 · 8) and nothing else.
    assert Boundary.of(one, two, distance=1) == Boundary(16, 36 + 36 - 16)
    # Distance 2: rings of 100 - 36 = 64. In common: rows 4, 5, 12, 13 from 6 to 13 (4 · 8); the vertical strips
    # are columns 4-5 and 12-13 against 6-7 and 14-15, which do not meet.
    assert Boundary.of(one, two, distance=2) == Boundary(32, 64 + 64 - 32)
    # Distance 5 and more: nothing is left of the 10 × 10 core, boundary IoU is IoU.
    assert Boundary.of(one, two, distance=5) == Boundary(80, 120)


def test_edge_of_image_is_contour() -> None:
    full = np.ones((6, 8), bool)
    assert boundary_band(full, 1).sum() == 6 * 8 - 4 * 6
    assert boundary_band(full, 3).all()


def test_published_distance() -> None:
    assert boundary_distance((5000, 5000)) == 141  # 0.02 · 7071.07
    assert boundary_distance((300, 400)) == 10
    assert boundary_distance((4, 4)) == 1


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 14), st.integers(1, 14))
def test_boundary_against_a_slow_second_implementation(seed: int, distance: int, rows: int, cols: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.random((2, rows, cols)) < rng.uniform(0.3, 1)
    valid = rng.random((rows, cols)) < 0.95
    got = Boundary.of(one, two, valid, distance=distance)
    assert (got.intersection, got.union) == slow_boundary(one, two, valid, distance)


def test_frame_of_invalid_pixels_changes_nothing() -> None:
    one, two = speckled((30, 33), 5), speckled((30, 33), 6)
    noise = np.random.default_rng(0).random((50, 50)) < 0.5
    framed = []
    for mask in (one, two):
        framed.append(noise.copy())
        framed[-1][7:37, 9:42] = mask
    valid = np.zeros((50, 50), bool)
    valid[7:37, 9:42] = True
    assert Boundary.of(*framed, valid, distance=3) == Boundary.of(one, two, distance=3)
    assert Confusion.of(*framed, valid) == Confusion.of(one, two)


# --- curve -------------------------------------------------------------------------------------------------------


def test_curve_is_exact_at_eight_bits() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 256, 5000).astype(np.uint8)
    truth = rng.random(5000) < stored / 255
    valid = rng.random(5000) < 0.8
    curve = ThresholdCurve.of(stored, truth, valid)
    assert curve == ThresholdCurve.of((stored / 255).astype(np.float32), truth, valid)
    for level in range(1, 256):
        assert curve.at(level / 255) == Confusion.of(stored >= level, truth, valid)
    for hundredth in range(1, 100):
        # In whole numbers: v / 255 ≥ h / 100.
        assert curve.at(hundredth / 100) == Confusion.of(100 * stored.astype(int) >= 255 * hundredth, truth, valid)


def test_best_threshold_by_hand() -> None:
    probability = np.array([0.1, 0.3, 0.4, 0.7, 0.9])
    truth = np.array([0, 0, 1, 1, 1])
    curve = ThresholdCurve.of(probability, truth) + ThresholdCurve()
    assert curve.best((0.2, 0.35, 0.6)) == (0.35, Confusion(3, 0, 0, 2))
    assert curve.best((0.32, 0.34, 0.38))[0] == 0.38
    assert [t for t, _ in curve.points()][:2] == [0.05, 0.1]
    with pytest.raises(SettingError, match="no thresholds"):
        curve.best(())
