"""Outlines straightened block by block: the same, to the last bit, as those straightened when all is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st

import geoseg.segment
from geoseg import settled as module
from geoseg.block import Job
from geoseg.errors import InputError
from geoseg.footprints import Footprints, finish
from geoseg.join import Joiner
from geoseg.journal import Journal
from geoseg.polygonize import block_parts
from geoseg.segment import segment
from geoseg.settings import OutlineSettings
from geoseg.settled import ASKED, DONE, OPEN, Settled
from geoseg.spool import Spool
from geoseg.tiling import Rect, Tiling
from geoseg.vectorise import outline_rules
from geoseg.wholes import Found

GRID = Affine(0.3, 0, 400_000, 0, -0.3, 5_800_000)
CRS = "EPSG:32633"


def crowded(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Turned houses that stand close to each other, and some noise."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(shape[0] * shape[1] // 700):
        cy, cx, angle = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        tall, wide = rng.uniform(3, 11, 2)
        around = (abs(u) < wide + 1.2) & (abs(v) < tall + 1.2)
        if not mask[around].any() or rng.random() < 0.1:
            mask |= (abs(u) < wide) & (abs(v) < tall)
    return mask ^ (rng.random(shape) < 0.01)


def finished(
    path: Path, mask: np.ndarray, tiling: Tiling, how: OutlineSettings, here: bool
) -> tuple[list[Footprints], list[int], int]:
    """Return the footprints, the roles of whole buildings, and how many were left for the end."""
    rules = outline_rules(how.min_area, how.min_hole, how.simplify_px, how.square)
    grey = np.where(mask, 200, 10).astype(np.uint8)
    joiner, roles = Joiner(tiling), []
    with Spool(path, mask.shape[1]) as spool:
        for block in tiling:
            part = block.core.slices(tiling.extent)
            found = Found.of(block_parts(mask[part], grey[part], block.core))
            made = None
            if here:
                made = Settled.from_bytes(Settled.of(found, tiling.extent, rules, GRID, CRS).to_bytes())
                roles += made.roles.tolist()
            spool.add_wholes(found.whole, made)
            spool.add(joiner.add(*block.index, block.core, found.parts))
        spool.add(joiner.finish())
        batches = list(finish(spool.batches(rules.beside_px, 16), GRID, CRS, rules))
        return batches, roles, spool.open()


def assert_same(one: list[Footprints], other: list[Footprints]) -> None:
    assert [len(batch) for batch in one] == [len(batch) for batch in other]
    for mine, theirs in zip(one, other, strict=True):
        assert shapely.to_wkb(mine.polygons).tolist() == shapely.to_wkb(theirs.polygons).tolist()
        for name in ("id", "area_m2", "perimeter_m", "probability"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


@given(st.integers(0, 10_000), st.sampled_from([96, 128, 256]), st.sampled_from([0.5, 1.0, 2.0]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_footprints_do_not_depend_on_where_outlines_are_straightened(
    tmp_path_factory: pytest.TempPathFactory, seed: int, core: int, simplify: float, square: bool
) -> None:
    shape = (250, 290)
    mask, tiling = crowded(seed, shape), Tiling(shape, 32, 0, 0, core)
    how = OutlineSettings(1.5, 0.5, simplify, square)
    path = tmp_path_factory.mktemp("spool") / "s.sqlite"
    there, _, everything = finished(path, mask, tiling, how, False)
    here, roles, left = finished(path, mask, tiling, how, True)
    assert_same(here, there)
    assert 0 < left < everything
    assert OPEN in roles
    assert {DONE, ASKED} <= set(roles) or core < 256


def test_of_a_block_that_is_the_mosaic_nearly_all_is_settled(tmp_path: Path) -> None:
    shape = (400, 400)
    tiling = Tiling(shape, 32, 0, 0, 416)
    there, _, _ = finished(tmp_path / "a", crowded(1, shape), tiling, OutlineSettings(1.0, 0.5, 1.0, True), False)
    here, roles, left = finished(tmp_path / "a", crowded(1, shape), tiling, OutlineSettings(1.0, 0.5, 1.0, True), True)
    assert_same(here, there)
    assert roles.count(OPEN) < 0.15 * len(roles)
    assert left < 0.25 * len(roles)


def test_what_is_larger_than_buildings_are_is_left_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.spool.LARGE", 12)
    mask = crowded(2, (250, 250))
    found = Found.of(block_parts(mask, np.full(mask.shape, 9, np.uint8), Rect(0, 0, 250, 250)))
    made = Settled.of(found, Rect(0, 0, 250, 250), outline_rules(1.0, 0.5, 1.0), GRID, CRS)
    large = (found.whole.boxes[:, 2:] - found.whole.boxes[:, :2] > 12).any(axis=1)
    assert large.any()
    assert (made.roles[large] == OPEN).all()


@pytest.mark.parametrize("damage", [b"", b"geoseg", "cut", "other"])
def test_other_bytes_are_refused(damage: bytes | str) -> None:
    mask = crowded(3, (120, 120))
    found = Found.of(block_parts(mask, np.full(mask.shape, 9, np.uint8), Rect(0, 0, 120, 120)))
    data = Settled.of(found, Rect(0, 0, 120, 120), outline_rules(1.0, 0.5, 1.0), GRID, CRS).to_bytes()
    if isinstance(damage, str):
        content = module.zlib.decompress(data[len(module.MAGIC) :])
        content = content[:-3] if damage == "cut" else content + b"more"
        damage = module.MAGIC + module.zlib.compress(content)
    with pytest.raises(InputError, match="outlines of a block"):
        Settled.from_bytes(damage)


# ------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Let workers straighten outlines, as where a GPU computes; return the jobs that they get."""
    jobs: list[Job] = []
    run_block = geoseg.segment.run_block

    def heard(job: Job, index: tuple[int, int]) -> Any:
        jobs.append(job)
        return run_block(job, index)

    monkeypatch.setattr(geoseg.segment, "may_have_gpu", lambda: True)
    monkeypatch.setattr(geoseg.segment, "run_block", heard)
    return jobs


@pytest.fixture
def large_city(tmp_path: Path) -> Path:
    from conftest import write_tile

    write_tile(tmp_path / "city" / "a.tif", blobs((330, 420), 5))
    return tmp_path / "city"


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "workers": 0, "progress": "none", "cell": 64, "core": 192, "min_area": 1.0, **more}


def test_a_run_writes_the_same_files(
    large_city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: list[Job]
) -> None:
    segment(large_city, tmp_path / "here", **options(narrow_model))
    assert elsewhere[0].outlines is not None
    with monkeypatch.context() as patch:
        patch.setattr(geoseg.segment, "may_have_gpu", lambda: False)
        segment(large_city, tmp_path / "there", **options(narrow_model))
    assert elsewhere[-1].outlines is None
    for name in ("buildings.gpkg", "mask.tif", "probability.tif"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert json.loads((tmp_path / "here" / "run.json").read_text())["counts"]["buildings"] > 20


def test_outlines_that_another_run_straightened_otherwise_are_not_taken(
    large_city: Path, narrow_model: Path, tmp_path: Path, elsewhere: list[Job]
) -> None:
    segment(large_city, tmp_path / "out", **options(narrow_model))
    with Journal(tmp_path / "out") as journal:
        assert any(record.settled for index in journal.blocks() if (record := journal.get(index)) is not None)
    computed = len(elsewhere)
    segment(large_city, tmp_path / "out", **options(narrow_model, simplify=1.5))
    assert len(elsewhere) == computed, "blocks are taken as they are"
    segment(large_city, tmp_path / "afresh", **options(narrow_model, simplify=1.5))
    one, other = ((tmp_path / name / "buildings.gpkg").read_bytes() for name in ("out", "afresh"))
    assert one == other


@pytest.mark.parametrize("how", [{"simplify": 0.0}, {"outline": "subpixel"}])
def test_other_outlines_are_made_at_the_end(
    large_city: Path, narrow_model: Path, tmp_path: Path, elsewhere: list[Job], how: dict[str, Any]
) -> None:
    segment(large_city, tmp_path / "out", **options(narrow_model, **how))
    assert elsewhere[0].outlines is None
