"""Blocks whose reading and vectorising is done by processes of the worker's, as for a GPU; here the network's part is
done by the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from geoseg import crew as module
from geoseg.block import Computed, Job, run_block
from geoseg.crew import Arrays, Crew, Shared
from geoseg.journal import BlockRecord
from geoseg.segment import plan
from geoseg.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")


@pytest.fixture(scope="module")
def job(city: Path, narrow_model: Path) -> Job:
    return plan(city, Settings(model=str(narrow_model), cell=64, core=64)).job


@pytest.fixture
def with_crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "wants_crew", lambda job: True)
    monkeypatch.setattr(module, "_refused", False)
    yield
    for one in module._crews.values():
        one.close()
    module._crews.clear()


def same(one: Computed, other: Computed) -> None:
    """Check that two results differ in nothing but times."""
    assert (one.complete, one.pixels) == (other.complete, other.pixels)
    found, wanted = (BlockRecord.from_bytes(result.data) for result in (one, other))
    assert found.facts.keys() == wanted.facts.keys()
    for name in found.facts.keys() - {"seconds"}:
        assert found.facts[name] == wanted.facts[name]
    assert found.mask.to_bytes() == wanted.mask.to_bytes()
    assert found.probability.to_bytes() == wanted.probability.to_bytes()
    np.testing.assert_array_equal(found.thumbnail, wanted.thumbnail)
    assert (found.parts, found.settled) == (wanted.parts, wanted.settled)


def test_blocks_are_the_same(job: Job, with_crew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = [(row, col) for row in range(job.tiling.grid[0]) for col in range(job.tiling.grid[1])]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda index: run_block(job, index), indices))
    assert len(module._crews) == 1
    monkeypatch.setattr(module, "wants_crew", lambda job: False)
    for index, one in zip(indices, found, strict=True):
        same(one, run_block(job, index))
    assert sum(one.pixels for one in found) > 40_000
    assert any(BlockRecord.from_bytes(one.data).empty for one in found)


def test_a_dead_process_is_done_without(job: Job, with_crew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_block(job, (0, 0))
    (crew,) = module._crews.values()
    for process in list(crew._pool._processes.values()):
        os.kill(process.pid, signal.SIGKILL)
    same(run_block(job, (0, 0)), before)
    assert module.crew_of(job) is None  # and it is not tried again


def test_memory_that_cannot_be_shared_is_done_without(
    job: Job, with_crew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the kernel lets no process look at another."""
    wanted = run_block(job, (0, 0))
    (crew,) = module._crews.values()
    taken = crew.read

    def refused(index: tuple[int, int], memory: Shared) -> object:
        return taken(index, Shared(memory.owner, 10_000, memory.size))

    monkeypatch.setattr(crew, "read", refused)
    same(run_block(job, (0, 0)), wanted)
    assert module.crew_of(job) is None


def test_errors_come_as_they_are(job: Job, with_crew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from geoseg.errors import SettingError

    with pytest.raises(SettingError, match="no block"):
        run_block(job, (99, 0))
    run_block(job, (0, 0))  # still there
    assert module._crews


def test_memory_is_used_again_and_not_kept(job: Job) -> None:
    crew = Crew.__new__(Crew)
    crew._free, crew._lock = [], threading.Lock()
    with crew.memory(4096) as (small, _), crew.memory(8192) as (large, _):
        assert small != large
    with crew.memory(5000) as (again, _):
        assert again == large
    with crew.memory(4000) as (one, _), crew.memory(3000) as (other, _):
        assert {one, other} == {small, large}
    with crew.memory(10_000):
        pass
    # A larger one took the place of one that was too small.
    assert sorted(shared.size for shared, _ in crew._free) in ([4096, 10_000], [8192, 10_000])
    for shared, _ in crew._free:
        os.close(shared.handle)


def test_arrays_lie_apart(job: Job) -> None:
    from geoseg.block import around

    block = job.tiling.block(0, 1)
    seen = around(block.windows)
    size = Arrays.size(job, seen, block.core)
    handle = os.memfd_create("test")
    os.ftruncate(handle, size)
    shared = Shared(os.getpid(), handle, size)
    arrays = Arrays.of(shared.map(), job, seen, block.core)
    for number, name in enumerate(("values", "valid", "wanted", "mask", "grey")):
        getattr(arrays, name)[...] = number % 2 if name != "grey" else 9
    other = Arrays.of(shared.map(), job, seen, block.core)
    assert not other.values.any()
    assert other.valid.all()
    assert not other.wanted.any()
    assert other.mask.all()
    assert (other.grey == 9).all()
    os.close(handle)


def test_processes_end_with_their_worker_however_that_ends(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(f"""
        import time
        from geoseg import crew
        from geoseg.block import run_block
        from geoseg.segment import plan
        from geoseg.settings import Settings

        if __name__ == "__main__":
            crew.wants_crew = lambda job: True
            job = plan({str(city)!r}, Settings(model={str(narrow_model)!r}, cell=64, core=64)).job
            run_block(job, (0, 0))
            print("ready", flush=True)
            time.sleep(600)
        """)
    )
    worker = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    family = psutil.Process(worker.pid).children(recursive=True)
    assert len(family) > 2
    worker.kill()
    worker.wait()
    patience = time.monotonic() + 20
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
        assert time.monotonic() < patience
        time.sleep(0.1)


def test_no_crew_without_a_gpu(job: Job) -> None:
    assert module.crew_of(job) is None
