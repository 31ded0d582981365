"""Workers: the same answers here, on local processes and on a cluster, also when processes die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import geoseg.workers as module
from geoseg.errors import SettingError, WorkerError
from geoseg.segment import segment
from geoseg.workers import OVERLAP, OVERLAP_GPU, QUEUED, Dask, Here, blocks_at_once, cores, memory, open_workers

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


def slow_worker_name(seconds: float, item: int) -> str:
    time.sleep(seconds)
    return worker_name(None, item)


def surroundings(_job: None, _item: int) -> tuple[str | None, int | None]:
    from distributed import get_worker

    return os.environ.get("OMP_NUM_THREADS"), get_worker().state.nthreads


def slow(seconds: float, item: int) -> int:
    time.sleep(seconds)
    return item


class Counted:
    """A job that counts in each process how often it was unpacked there."""

    times = 0

    def __setstate__(self, state: object) -> None:
        Counted.times += 1

    def __getstate__(self) -> str:
        return "something"


def unpacked(_job: Counted, _item: int) -> tuple[int, int]:
    time.sleep(0.01)
    return os.getpid(), Counted.times


@pytest.fixture(scope="module")
def pair() -> Iterator[Dask]:
    """Two local worker processes."""
    with Dask(workers=2, device="cpu") as workers:
        yield workers


@pytest.fixture
def cluster() -> Iterator[Callable[..., str]]:
    """Start a dask scheduler with workers in another process, one for each mapping of resources given.

    ``before`` is run in that process first; ``late`` workers start when there is something to do for them.
    """
    script = textwrap.dedent(
        """
        import asyncio, json, sys
        from distributed import Scheduler, Worker

        exec(sys.argv[2])

        async def main():
            options = {"host": "127.0.0.1", "dashboard_address": None}
            async with Scheduler(port=0, dashboard=False, **options) as scheduler:
                for number, resources in enumerate(json.loads(sys.argv[1])):
                    await Worker(scheduler.address, name=f"w{number}", nthreads=2, resources=resources, **options)
                print(scheduler.address, flush=True)
                if sys.argv[3]:
                    while not scheduler.tasks:
                        await asyncio.sleep(0.01)
                    exec(sys.argv[3])
                    await Worker(scheduler.address, name="late", nthreads=2, **options)
                await scheduler.finished()

        asyncio.run(main())
        """
    )
    started: list[subprocess.Popen[str]] = []

    def start(resources: str, before: str = "", late: str = "") -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", script, resources, before, late],
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


def test_settings_of_dask_survive() -> None:
    """In a process in which nothing has imported distributed before."""
    code = textwrap.dedent(
        """
        import dask
        from geoseg.workers import Dask

        class Nothing:
            def close(self):
                pass

        Dask._connect = lambda self: Nothing()
        with Dask(scheduler="tcp://127.0.0.1:1"):
            pass
        print(dask.config.get("distributed.client.heartbeat", "lost"))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip()[-1] == "s"


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


def test_scheduler_file(cluster: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    address = cluster("[{}]")
    file.write_text(json.dumps({"type": "Scheduler", "address": address, "workers": {}}), "utf-8")
    with Dask(scheduler=str(file)) as workers:
        assert workers.description == f"1 workers at {address}"
        assert dict(workers.map(double, 3, [1, 2])) == {1: 3, 2: 6}


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"id": 1}'])
def test_no_scheduler_file(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(WorkerError, match=rf"{file}: cannot be read as a scheduler file \(.+'dask scheduler --sched"):
        Dask(scheduler=str(file)).__enter__()


def test_first_worker_comes_when_there_is_work(cluster: Callable[..., str]) -> None:
    with Dask(scheduler=cluster("[]", late="pass")) as workers:
        assert workers.description.startswith("0 workers at")
        assert dict(workers.map(double, 3, range(9))) == {item: 3 * item for item in range(9)}


def test_no_worker_ever(cluster: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    with (
        Dask(scheduler=cluster("[]")) as workers,
        pytest.raises(WorkerError, match=r"no worker came to tcp://.* in 0 minutes; start some with 'dask worker'"),
    ):
        list(workers.map(double, 3, [1]))


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (
            "sys.modules['geoseg'] = None",
            r"worker tcp://127\.0\.0\.1:\d+ \(w[01]\) \(and 1 more\) cannot import geoseg \(",
        ),
        ("import geoseg; geoseg.__version__ = '0.0.9'", r"\(w[01]\) \(and 1 more\) has geoseg 0\.0\.9; this is geoseg"),
    ],
)
def test_workers_with_another_geoseg_or_none(spoiled: str, words: str, cluster: Callable[..., str]) -> None:
    with Dask(scheduler=cluster("[{}, {}]", spoiled)) as workers, pytest.raises(WorkerError, match=words):
        list(workers.map(double, 1, range(4)))


def test_workers_without_a_gpu_need_nothing_when_others_have_one(
    cluster: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    muster = module.muster
    monkeypatch.setattr(module, "muster", lambda client, new, needs: asked.extend(new) or muster(client, new, needs))
    with Dask(scheduler=cluster('[{}, {"GPU": 1}]')) as workers:
        assert dict(workers.map(double, 2, range(4))) == {item: 2 * item for item in range(4)}
        assert dict(workers.map(double, 3, range(4))) == {item: 3 * item for item in range(4)}
    assert len(asked) == 1  # and once only


def test_worker_that_comes_later_is_asked_too(cluster: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    spoil = "import geoseg; geoseg.__version__ = '0.0.9'"
    with (
        Dask(scheduler=cluster("[{}]", late=spoil)) as workers,
        pytest.raises(WorkerError, match=r"\(late\) has geoseg 0\.0\.9"),
    ):
        list(workers.map(slow, 0.02, range(2000)))


def test_files_that_workers_do_not_see(cluster: Callable[..., str], tmp_path: Path) -> None:
    there, gone = tmp_path / "a.tif", tmp_path / "b.tif"
    there.touch()
    address = cluster("[{}]")
    with Dask(scheduler=address, needs=[str(there)]) as workers:
        assert dict(workers.map(double, 2, [1])) == {1: 2}
    with (
        Dask(scheduler=address, needs=[str(there), str(gone)]) as workers,
        pytest.raises(WorkerError, match=rf"\(w0\) does not see {gone}: every worker needs the same files"),
    ):
        list(workers.map(double, 2, [1]))


def test_a_job_travels_to_a_worker_once(pair: Dask) -> None:
    """However many blocks there are, and whatever the job weighs."""
    found = dict(pair.map(unpacked, Counted(), range(60)))
    assert len(found) == 60
    most = {}
    for process, times in found.values():
        most[process] = max(most.get(process, 0), times)
    assert len(most) == 2
    # Once from the driver to the worker that holds it, once from there to the other.
    assert max(most.values()) <= 2


@pytest.mark.parametrize("resources", ["[{}, {}, {}, {}]", '[{"GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}]'])
@pytest.mark.parametrize("items", [8, 40])
def test_work_is_shared_evenly(resources: str, items: int, cluster: Callable[..., str]) -> None:
    """Left to itself, the scheduler gives all to the one worker that has the job."""
    with Dask(scheduler=cluster(resources)) as workers:
        assert len(dict(workers.map(worker_name, None, range(4)))) == 4
        names = list(dict(workers.map(slow_worker_name, 0.1, range(items))).values())
    shares = [names.count(f"w{number}") for number in range(4)]
    assert sum(shares) == items
    assert max(shares) <= items / 4 + 3


def test_results_come_together_up_to_a_limit() -> None:
    class Record:
        data = bytes(10_000_000)

    assert module._how_many([1, Record(), ValueError()]) == 3
    assert module._how_many([1, 2]) == module.MANY
    Record.data = bytes(2 * module.TOGETHER_BYTES)
    assert module._how_many([Record()]) == 1


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


def test_blocks_in_the_hands_of_a_worker_with_a_gpu() -> None:
    gib = 2**30
    assert blocks_at_once(64, 512 * gib) == OVERLAP_GPU
    assert blocks_at_once(6, 512 * gib) == 6
    assert blocks_at_once(16, 16 * gib) == 8
    assert blocks_at_once(1, gib) == OVERLAP
    assert memory() > gib // 2
