"""Cutting rings into walls: the sums against numpy, the cheapest cut against trying all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geoseg import fitting
from geoseg.cut_kernel import kernel
from geoseg.fitting import ACROSS, ALONG, FREE, FREE_PRICE, JOG_PRICE, UNIT, Sums, cheapest, squares, weight

Floats = NDArray[np.float64]


def closed(points: Floats) -> NDArray[np.int64]:
    whole = np.rint(points * UNIT).astype(np.int64)
    return np.concatenate([whole, whole[:1]])


def sums_of(*rings: NDArray[np.int64]) -> Sums:
    return Sums.of(np.concatenate(rings), np.concatenate([np.arange(len(ring)) for ring in rings]))


@pytest.mark.parametrize("far", [0, 3_000])
def test_moments_are_numpy_s(far: int) -> None:
    points = np.random.default_rng(1).random((60, 2)) * 40 + far
    ring = closed(points)
    begin, end = np.array([0, 5, 20, 59]), np.array([1, 11, 55, 60])
    number, x, y, xx, xy, yy = sums_of(ring).moments(begin, end)
    for k, (a, b) in enumerate(zip(begin, end, strict=True)):
        trim = min(max((b - a) // 6, int(b - a > 1)), fitting.TRIM)
        inner = ring[a + trim : b - trim + 1] / UNIT
        assert number[k] == len(inner)
        np.testing.assert_allclose([x[k], y[k]], inner.mean(axis=0), atol=1e-9)
        spread = np.cov(inner.T, bias=True) * len(inner)
        np.testing.assert_allclose([xx[k], xy[k], yy[k]], spread[[0, 0, 1], [0, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 20, 75])
def test_squares_by_hand(degrees: float) -> None:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = np.array([(-2.0, 0.5), (-1.0, -0.5), (1.0, -0.5), (2.0, 0.5)]) @ np.array([[c, s], [-s, c]])
    (xx, xy), (_, yy) = points.T @ points
    found = squares(*(np.array([value]) for value in (xx, xy, yy)), np.array([[c, s]]))
    # Across the wall every sample is off by half; along it by 2, 1, 1, 2.
    np.testing.assert_allclose(np.concatenate(found), [1.0, 10.0, 1.0], atol=1e-9)


def by_trial(
    ring: NDArray[np.int64], corner: list[int], direction: Floats, price: float, only_free: bool, must: list[bool]
) -> float:
    """Return the cost of the cheapest cut, all being tried."""
    sums = sums_of(ring)
    cost: dict[tuple[int, int], list[float]] = {}
    for a, b in itertools.combinations(range(len(corner)), 2):
        number, _, _, xx, xy, yy = sums.moments(np.array([corner[a]]), np.array([corner[b]]))
        found = [float(value[0] * weight(number)[0]) for value in squares(xx, xy, yy, direction[None])]
        prices = [math.inf, math.inf, price] if only_free else [price, price, FREE_PRICE * price]
        cost[a, b] = [one + other for one, other in zip(found, prices, strict=True)]
    best = math.inf
    inner = range(1, len(corner) - 1)
    for many in range(len(corner) - 1):
        for cuts in itertools.combinations(inner, many):
            if any(must[k] and k not in cuts for k in inner):
                continue
            walls = list(itertools.pairwise((0, *cuts, len(corner) - 1)))
            for kinds in itertools.product((ALONG, ACROSS, FREE), repeat=len(walls)):
                jogs = sum(one == other != FREE for one, other in itertools.pairwise(kinds))
                total = sum(cost[wall][kind] for wall, kind in zip(walls, kinds, strict=True))
                best = min(best, total + jogs * JOG_PRICE * price)
    return best


def cost_of(cut: fitting.Cut, sums: Sums, ring: int, direction: Floats, price: float, only_free: bool) -> float:
    mine = cut.ring == ring
    number, _, _, xx, xy, yy = sums.moments(cut.begin[mine], cut.end[mine])
    kind = cut.kind[mine]
    apart = np.choose(kind, squares(xx, xy, yy, np.tile(direction, (len(kind), 1)))) * weight(number)
    prices = np.where((kind == FREE) & (not only_free), FREE_PRICE * price, price)
    jogs = int(((kind[1:] == kind[:-1]) & (kind[1:] != FREE)).sum())
    return float(apart.sum() + prices.sum() + jogs * JOG_PRICE * price)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([cheapest, fitting._step_by_step]))
def test_no_cut_is_cheaper(seed: int, cheapest: Callable[..., fitting.Cut]) -> None:
    rng = np.random.default_rng(seed)
    rings, corners, musts, frames, prices, frees = [], [], [], [], [], []
    for many in sorted(rng.integers(3, 7, 4), reverse=True):
        length = int(rng.integers(many + 1, 40))
        angle = np.sort(rng.random(length)) * 2 * np.pi
        radius = rng.uniform(2, 12) * (1 + 0.2 * rng.standard_normal(length))
        rings.append(closed(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)))
        corners.append([0, *sorted(rng.choice(np.arange(1, length), many - 2, replace=False).tolist()), length])
        musts.append([False, *(rng.random(many - 2) < 0.3).tolist(), False])
        turn = rng.random() * np.pi / 2
        frames.append((math.cos(turn), math.sin(turn)))
        prices.append(rng.uniform(0.5, 20))
        frees.append(bool(rng.random() < 0.3))
    begin = np.cumsum([0, *(len(ring) for ring in rings)])
    sums = sums_of(*rings)
    cut = cheapest(
        sums,
        np.concatenate([np.array(corner) + start for corner, start in zip(corners, begin[:-1], strict=True)]),
        np.array([len(corner) for corner in corners]),
        np.array(frames),
        np.array(prices),
        np.array(frees),
        np.concatenate([np.array(must) for must in musts]),
    )
    for k, ring in enumerate(rings):
        mine = cut.ring == k
        # Walls follow each other all the way round, and end where they have to.
        np.testing.assert_array_equal(cut.begin[mine][1:], cut.end[mine][:-1])
        assert (cut.begin[mine][0], cut.end[mine][-1]) == (begin[k], begin[k + 1] - 1)
        assert all(
            corner + begin[k] in cut.end[mine] for corner, must in zip(corners[k], musts[k], strict=True) if must
        )
        frame = np.array(frames[k])
        least = by_trial(ring, corners[k], frame, prices[k], frees[k], musts[k])
        assert cost_of(cut, sums, k, frame, prices[k], frees[k]) == pytest.approx(least, rel=1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([60, 6_000]))
def test_compiled_and_step_by_step_are_the_same_to_the_last_bit(seed: int, bunch: int) -> None:
    """Also with more candidates than a wall may span, whole numbers for coordinates, and equal costs."""
    assert fitting.compiled() is not None, "nothing is compiled here"
    rng = np.random.default_rng(seed)
    rings, corners, sizes = [], [], []
    for many in rng.integers(3, 90, 12).tolist():
        length = many + int(rng.integers(0, 200))
        angle = np.arange(length) / length * 2 * np.pi
        points = rng.uniform(2, 40) * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0, 0.4, (length, 2))
        corners.append([0, *sorted(rng.choice(np.arange(1, length), many - 2, replace=False).tolist()), length])
        rings.append(closed(np.rint(points) if rng.random() < 0.5 else points))
        sizes.append(many)
    begin = np.cumsum([0, *(len(ring) for ring in rings)])
    turn = rng.choice([0.0, 0.3, np.pi / 4], len(rings))
    given_ = (
        sums_of(*rings),
        np.concatenate([np.array(corner) + start for corner, start in zip(corners, begin[:-1], strict=True)]),
        np.array(sizes),
        np.stack([np.cos(turn), np.sin(turn)], axis=1),
        rng.choice([0.5, 3.24, 20.0], len(rings)),
        rng.random(len(rings)) < 0.3,
        rng.random(sum(sizes)) < rng.choice([0.0, 0.1]),
    )
    one = cheapest(*given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "BUNCH", bunch)
        other = fitting._step_by_step(*given_)
    for name in ("ring", "begin", "end", "kind"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_where_nothing_can_be_compiled_it_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no memory may be executed")

    monkeypatch.setattr("geoseg.codegen.compiled", refuse)
    assert kernel.__wrapped__(window=1, unit=1.0, enough=1.0, trim=1, free_price=1.0, jog_price=1.0) is None
    monkeypatch.setattr(fitting, "kernel", lambda **_: None)
    square = np.array([(i, 0) for i in range(9)] + [(9, i) for i in range(9)] + [(9 - i, 9) for i in range(9)]
                      + [(0, 9 - i) for i in range(9)], float)  # fmt: skip
    cut = cheapest(
        sums_of(closed(square)), np.array([0, 4, 9, 18, 27, 36]), np.array([6]), np.array([[1.0, 0.0]]),
        np.array([1.0]), np.array([False]), np.zeros(6, bool),
    )  # fmt: skip
    assert cut.end.tolist() == [9, 18, 27, 36]
