"""Rasters and buildings that follow the blocks as these are settled, in whatever order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geoseg.block import run_block
from geoseg.errors import OutputError
from geoseg.following import Following
from geoseg.journal import Journal
from geoseg.progress import Progress
from geoseg.segment import Plan, plan
from geoseg.settings import Settings


class Heard(Progress):
    """Keeps what is said of stages."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []
        self.done = 0

    def stage(self, name: str, total: int, *, done: int = 0, pixels: bool = False) -> None:
        self.stages.append((name, total, done))
        self.done = done

    def advance(self, steps: int = 1, pixels: int = 0) -> None:
        self.done += steps


@pytest.fixture(scope="module")
def planned(city: Path, narrow_model: Path) -> Plan:
    return plan(city, Settings(model=str(narrow_model), cell=64, core=64))


@pytest.fixture(scope="module")
def blocks(planned: Plan) -> dict[tuple[int, int], bytes]:
    return {block.index: run_block(planned.job, block.index).data for block in planned.tiling}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "out") as opened:
        yield opened


def mask(out: Path) -> np.ndarray:
    with rasterio.open(out / "mask.tif") as dataset:
        return dataset.read(1)


def until(condition) -> None:
    patience = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_it_follows_in_the_order_of_the_grid(planned: Plan, blocks: dict, journal: Journal) -> None:
    order = sorted(blocks)
    with Following(planned, journal) as following:
        for index in reversed(order[1:]):
            journal.put(index, blocks[index])
            following.settle(index)
        time.sleep(0.3)
        assert following._done == 0  # the first is not there
        journal.put(order[0], blocks[order[0]])
        following.settle(order[0])
        until(lambda: following._done == len(order))
        heard = Heard()
        followed = following.result(heard)
        assert heard.stages == [("writing rasters", len(order), len(order))]
        assert heard.done == len(order)
        assert followed.lost == []
        assert len(followed.spool) > 5
        assert (mask(journal.out) > 0).sum() == followed.tally.building > 1000


def test_what_comes_after_waits_for_nothing_more(planned: Plan, blocks: dict, journal: Journal) -> None:
    """Blocks that failed are left out; one that is said to be stored and is not is lost."""
    order = sorted(blocks)
    failed, lost = order[1], order[2]
    with Following(planned, journal) as following:
        for index in order:
            if index in (failed, lost):
                following.settle(index, index == lost)
            else:
                journal.put(index, blocks[index])
                following.settle(index)
        heard = Heard()
        followed = following.result(heard)
        assert [item["message"] for item in followed.lost] == ["its stored result does not read"]
        assert heard.done == len(order)
        core = planned.tiling.core_of(*failed)
        assert not mask(journal.out)[core.slices(planned.tiling.extent)].any()


def test_a_run_that_ends_early_leaves_nothing(planned: Plan, blocks: dict, journal: Journal) -> None:
    with Following(planned, journal) as following:
        journal.put((0, 0), blocks[0, 0])
        following.settle((0, 0))
        until(lambda: following._done == 1)
    assert {path.name for path in journal.out.iterdir()} == {".geoseg"}
    assert not (journal.folder / "buildings.sqlite").exists()


def test_what_cannot_be_written_is_told(planned: Plan, blocks: dict, journal: Journal) -> None:
    (journal.out / "mask.tif").mkdir()
    with Following(planned, journal) as following:
        until(lambda: not following._thread.is_alive())
        journal.put((0, 0), blocks[0, 0])
        with pytest.raises(OutputError, match=r"mask\.tif"):
            following.settle((0, 0))
        with pytest.raises(OutputError, match=r"mask\.tif"):
            following.result(Heard())
