"""Neighbours never overlap, and what a building gets depends on what stands round it, not on how batches were cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy import ndimage
from shapely import affinity

from geoseg import spool
from geoseg.footprints import finish
from geoseg.neighbours import kept_apart
from geoseg.outline import simplify
from geoseg.polygonize import Building, buildings_of
from geoseg.spool import Spool
from geoseg.square import square_up
from geoseg.vectorise import outline_rules

Polygons = NDArray[np.object_]


def array(*polygons: shapely.Polygon) -> Polygons:
    result = np.empty(len(polygons), dtype=object)
    result[:] = polygons
    return result


def straightened(polygons: Polygons) -> Polygons:
    return simplify(polygons, 1.0)


def overlap(polygons: Polygons) -> float:
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    pair = one < other
    return float(shapely.area(shapely.intersection(polygons[one[pair]], polygons[other[pair]])).sum())


def town(seed: int, shape: tuple[int, int] = (120, 160)) -> list[Building]:
    """Return buildings that stand close: boxes at angles, some a pixel apart, a few corners touching."""
    rng = np.random.default_rng(seed)
    boxes = [
        affinity.rotate(shapely.box(x, y, x + rng.uniform(4, 25), y + rng.uniform(4, 25)), rng.uniform(0, 90))
        for x, y in rng.uniform(0, shape[1], (60, 2))
    ]
    mask = rasterize(boxes, out_shape=shape).astype(bool)
    lines = ndimage.gaussian_filter(rng.random(shape), 3)
    mask &= np.abs(lines - np.median(lines)) > 0.006
    return buildings_of(mask, mask.astype(np.uint8) * 200)


def test_who_yields_by_hand() -> None:
    safe = array(*(shapely.box(x, 0, x + 8, 8) for x in (0, 10, 20, 30)))
    wide = shapely.box(0, 0, 11, 8)  # into the second's best and safe outlines
    to_the_safe_only = shapely.box(17, 0, 28, 8)  # the second's best is smaller than its safe outline
    best = array(wide, shapely.box(10.5, 0, 16, 8), to_the_safe_only, shapely.box(29, 0, 38, 8))
    done = kept_apart(safe, best, lambda some: some)
    assert [one is two for one, two in zip(done, best, strict=True)] == [False, False, False, True]
    assert [one is two for one, two in zip(done, safe, strict=True)] == [True, True, True, False]


def test_touching_is_no_overlap() -> None:
    best = array(shapely.box(0, 0, 5, 5), shapely.box(5, 0, 9, 5), shapely.box(9, 5, 12, 9))
    assert all(one is two for one, two in zip(kept_apart(best, best, straightened), best, strict=True))


def test_a_building_in_a_courtyard() -> None:
    outer = shapely.Polygon(shapely.box(0, 0, 40, 40).exterior, [shapely.box(10, 10, 30, 30).exterior])
    inner = shapely.box(12, 12, 28, 28)
    apart = array(outer, inner)
    assert all(one is two for one, two in zip(kept_apart(apart, apart, straightened), apart, strict=True))
    too_wide = array(outer, shapely.box(9, 12, 28, 28))
    assert list(kept_apart(apart, too_wide, lambda some: some)) == [outer, inner]


def test_none_and_one() -> None:
    assert kept_apart(np.zeros(0, object), np.zeros(0, object), straightened).shape == (0,)
    alone = array(shapely.box(0, 0, 3, 3))
    assert kept_apart(alone, alone, straightened)[0] is alone[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 2.0, 4.0]))
def test_squared_towns_never_overlap(seed: int, tolerance: float) -> None:
    plain = array(*(one.polygon for one in town(seed)))
    best = square_up(plain, tolerance)
    done = kept_apart(plain, best, straightened)
    assert shapely.is_valid(done).all()
    assert overlap(done) < 1e-9
    # What yields is the safe outline itself, and not without a reason.
    safe = straightened(plain)
    for number in np.flatnonzero([one is not two for one, two in zip(done, best, strict=True)]):
        assert done[number] == safe[number]
        others = np.delete(np.arange(len(plain)), number)
        assert shapely.intersects(best[number], np.concatenate([best[others], safe[others]])).any()


@pytest.mark.parametrize("name", ["val/suburb_west_0p32", "train/banepa_z19"])
def test_neighbours_in_real_towns_do_not_overlap(shared_data: Path, name: str) -> None:
    with rasterio.open(shared_data / "buildings" / f"{name}_mask.tif") as file:
        mask = file.read(1)[:800, :800] > 0
    plain = array(*(one.polygon for one in buildings_of(mask, mask.astype(np.uint8))))
    rules = outline_rules(0, 0, 1.0)
    assert rules.simplify is not None
    done = rules.simplify(plain)
    assert shapely.is_valid(done).all()
    assert overlap(done) < 1e-9


def written(buildings: list[Building], path: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    monkeypatch.setattr(spool, "BATCH", batch)
    rules = outline_rules(6.0, 2.0, 1.0)
    with Spool(path, 160) as kept:
        kept.add(buildings)
        batches = finish(kept.batches(rules.beside_px), Affine.identity(), None, rules)
        return [outline for done in batches for outline in shapely.to_wkb(done.polygons)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_batches_do_not_matter(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buildings = town(seed)
    whole = written(buildings, tmp_path / "spool", 10_000, monkeypatch)
    assert len(whole) > 30
    for batch in (1, 3, 20):
        assert written(buildings[::-1], tmp_path / "spool", batch, monkeypatch) == whole


def test_a_batch_comes_with_what_stands_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((40, 100), bool)
    mask[2:6, 2:6] = mask[2:6, 9:12] = mask[2:6, 60:64] = mask[9:12, 2:6] = mask[30:33, 2:6] = True
    monkeypatch.setattr(spool, "BATCH", 1)
    with Spool(tmp_path / "spool", 100) as kept:
        kept.add(buildings_of(mask, mask.astype(np.uint8)))
        counts = {reach: [len(one.beside) for one in kept.batches(reach)] for reach in (None, 2, 3, 50)}
        monkeypatch.setattr(spool, "LARGE", 3)
        tall = [len(one.beside) for one in kept.batches(3)]
    # In order: the first, the one 3 pixels to its right, the one far off, the one 3 pixels below, the last.
    assert counts == {None: [0] * 5, 2: [0] * 5, 3: [2, 2, 0, 2, 0], 50: [3, 4, 1, 3, 3]}
    assert tall == [0] * 5
