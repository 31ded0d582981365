"""Workers: the same answers here, on local processes and on a cluster, also when processes die."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from geoseg.errors import SettingError, WorkerError
from geoseg.segment import segment
from geoseg.workers import OVERLAP, QUEUED, Dask, Here, cores, open_workers

TESTS = Path(__file__).resolve().parent


# --- what the tests have done by workers; module-level, so that other processes find it


def double(job: int, item: int) -> int:
    return job * item


def picky(job: str, item: int) -> int:
    if item == 2:
        raise ValueError(f"{job} does not like {item}")
    return item


def fatal_once(marker: str, item: int) -> tuple[int, int]:
    """Kill the worker on item 3, the first time."""
    if item == 3 and not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return item, os.getpid()


def always_fatal(_job: None, item: int) -> int:
    if item == 1:
        os._exit(1)
    return item


def worker_name(_job: None, item: int) -> str:
    from distributed import get_worker

    return str(get_worker().name)


def surroundings(_job: None, _item: int) -> tuple[str | None, int | None]:
    from distributed import get_worker

    return os.environ.get("OMP_NUM_THREADS"), get_worker().state.nthreads


@pytest.fixture(scope="module")
def pair() -> Iterator[Dask]:
    """Two local worker processes."""
    with Dask(workers=2, device="cpu") as workers:
        yield workers


@pytest.fixture
def cluster() -> Iterator[Callable[..., str]]:
    """Start a dask scheduler with workers in another process, one for each mapping of resources given."""
    script = textwrap.dedent(
        """
        import asyncio, json, sys
        from distributed import Scheduler, Worker

        async def main():
            options = {"host": "127.0.0.1", "dashboard_address": None}
            async with Scheduler(port=0, dashboard=False, **options) as scheduler:
                for number, resources in enumerate(json.loads(sys.argv[1])):
                    await Worker(scheduler.address, name=f"w{number}", nthreads=2, resources=resources, **options)
                print(scheduler.address, flush=True)
                await scheduler.finished()

        asyncio.run(main())
        """
    )
    started: list[subprocess.Popen[str]] = []

    def start(resources: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", script, resources],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
            cwd="/",
        )
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


# --- in this process


def test_here_keeps_the_order() -> None:
    assert list(Here().map(double, 3, iter([1, 2, 5]))) == [(1, 3), (2, 6), (5, 15)]


def test_here_is_lazy() -> None:
    consumed = []

    def items() -> Iterator[int]:
        for item in range(100):
            consumed.append(item)
            yield item

    results = Here().map(double, 1, items())
    assert next(results) == (0, 0)
    assert consumed == [0]


def test_here_errors_are_results() -> None:
    found = dict(Here().map(picky, "job", range(4)))
    assert [found[i] for i in (0, 1, 3)] == [0, 1, 3]
    assert isinstance(found[2], ValueError)
    assert str(found[2]) == "job does not like 2"


def test_here_does_not_swallow_an_interruption() -> None:
    def stop(_job: None, _item: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Here().map(stop, None, [1]))


def test_choice_of_workers() -> None:
    with open_workers(workers=0) as workers:
        assert isinstance(workers, Here)
    assert isinstance(open_workers(workers=1), Dask)
    assert isinstance(open_workers(), Dask)
    assert cores() >= 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"scheduler": "tcp://h:1", "workers": 1}, "give one"), ({"workers": 0}, "at least 1"), ({"workers": -1}, "-1")],
)
def test_wrong_workers(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Dask(**wrong)


def test_not_started() -> None:
    with pytest.raises(WorkerError, match="with Dask"):
        list(Dask(workers=1).map(double, 1, [1]))


# --- local processes


def test_local_processes(pair: Dask) -> None:
    assert pair.description == "2 CPU workers"
    assert dict(pair.map(double, 7, range(40))) == {item: 7 * item for item in range(40)}


def test_local_processes_share_the_cores(pair: Dask) -> None:
    expected = max(1, cores() // 2)
    assert pair.threads == expected
    assert set(dict(pair.map(surroundings, None, range(6))).values()) == {(str(expected), OVERLAP)}


def test_errors_are_results(pair: Dask) -> None:
    found = dict(pair.map(picky, "job", range(8)))
    assert len(found) == 8
    assert isinstance(found[2], ValueError)
    assert str(found[2]) == "job does not like 2"
    assert [found[i] for i in range(8) if i != 2] == [0, 1, 3, 4, 5, 6, 7]


def test_no_items(pair: Dask) -> None:
    assert list(pair.map(double, 1, [])) == []


def test_few_tasks_are_in_flight(pair: Dask) -> None:
    bound = 2 * OVERLAP * QUEUED
    consumed = done = 0

    def items() -> Iterator[int]:
        nonlocal consumed
        for item in range(100):
            consumed += 1
            yield item

    most = 0
    for _ in pair.map(double, 1, items()):
        done += 1
        most = max(most, consumed - done)
    assert done == 100
    assert most <= bound


def test_equal_items_are_all_done(pair: Dask) -> None:
    assert sorted(result for _, result in pair.map(double, 2, [5, 5, 5])) == [10, 10, 10]


def test_stopping_early_is_fine(pair: Dask) -> None:
    for _ in pair.map(double, 1, range(50)):
        break
    assert dict(pair.map(double, 3, range(3))) == {0: 0, 1: 3, 2: 6}


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    marker = tmp_path / "died"
    with Dask(workers=1, device="cpu") as workers:
        found = dict(workers.map(fatal_once, str(marker), range(12)))
    assert marker.exists()
    assert [found[item][0] for item in range(12)] == list(range(12))
    # The worker that died is not the one that did item 3.
    assert found[3][1] != os.getpid()


def test_a_task_that_always_kills_its_worker_is_given_up() -> None:
    with Dask(workers=1, device="cpu") as workers:
        found = dict(workers.map(always_fatal, None, [0, 1]))
        later = dict(workers.map(double, 1, [4]))
    assert type(found[1]).__name__ == "KilledWorker"
    # An innocent neighbour on the same worker may be suspected with it, but the workers go on.
    assert found[0] == 0 or type(found[0]).__name__ == "KilledWorker"
    assert later == {4: 4}


# --- a running cluster


def test_no_scheduler_at_the_address() -> None:
    with pytest.raises(WorkerError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:1: start one"):
        Dask(scheduler="tcp://127.0.0.1:1").__enter__()


def test_address_that_is_none() -> None:
    with pytest.raises(WorkerError, match="no dask scheduler answers at nonsense://host"):
        Dask(scheduler="nonsense://host").__enter__()


def test_tasks_go_to_workers_with_a_gpu(cluster: Callable[..., str]) -> None:
    address = cluster('[{}, {"GPU": 1}]')
    with Dask(scheduler=address) as workers:
        assert workers.description == f"2 workers at {address}, 1 with a GPU"
        assert workers.threads is None
        assert set(dict(workers.map(worker_name, None, range(12))).values()) == {"w1"}


def test_running_cluster_gives_the_same_result(
    cluster: Callable[..., str], city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_segment import content, small  # here: workers import this module, and should not need all that

    address = cluster("[{}]")
    # Paths relative to here mean nothing to workers that stand elsewhere.
    monkeypatch.chdir(narrow_model.parent)
    far = segment(
        os.path.relpath(city),
        tmp_path / "far",
        model=f"./{narrow_model.name}",
        **small(scheduler=address, workers=None),
    )
    segment(city, tmp_path / "here", model=str(narrow_model), **small())
    assert far.run["workers"] == f"1 workers at {address}"
    assert far.run["counts"]["blocks_computed"] == 4
    assert content(tmp_path / "far") == content(tmp_path / "here")


def test_lost_scheduler(cluster: Callable[..., str]) -> None:
    address = cluster("[{}]")
    with Dask(scheduler=address) as workers, pytest.raises(WorkerError, match="scheduler was lost"):
        list(workers.map(scheduler_ends, None, range(30)))


def scheduler_ends(_job: None, item: int) -> int:
    """End the process that holds scheduler and worker alike."""
    if item == 5:
        os._exit(1)
    return item
