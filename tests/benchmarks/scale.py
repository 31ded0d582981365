"""How far geoseg's driver and dask's scheduler carry: 10, 100 and 1000 workers that only sleep.

    python tests/benchmarks/scale.py [--workers 10,100,1000] [--seconds 0,1,10] [--way shared|driver] [--bytes 1300000]

The scheduler is dask's own, in a process of its own, and the driver is geoseg's own `Dask.map` and `Journal`. The
workers are dask's own `Worker` objects with one thread and a TCP server each, many in one process, since 1000 processes
do not fit into one machine's memory; a block is a sleep, and a record of as many bytes as a real one has. Everything
shares this machine's cores, so blocks/s and busy are lower bounds. Where scheduler, driver and workers have machines of
their own, read the CPU time of each per block: it says how many blocks a second one core of it carries.

--way says how results reach the driver: `driver`: over the network, through the scheduler; `shared`: workers leave
them in the output folder. Columns: blocks a second; the share of the workers' time spent in blocks, from the first
submission to the last result; CPU milliseconds per block of driver, scheduler and all workers together; memory of the
driver beyond what it had before the first block, and of the scheduler, in MB; failed blocks; and the seconds until
every worker has said whether it has geoseg and sees the files, and the first block is done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from geoseg.block import Computed
from geoseg.inbox import Left, leave

HOSTS = 4
"""Processes that the simulated workers share."""
QUIET = {
    # What every worker does beside its blocks some hundred times a second: 1000 of them would measure nothing else.
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "1h",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1h",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "1h",
}


@dataclass(frozen=True)
class Sleep:
    """What the simulated workers are told."""

    pause: float
    """Seconds that a block takes."""
    size: int
    """Bytes of a block's record."""
    inbox: str
    """Where to leave it; empty: send it."""
    ballast: bytes
    """As heavy as the job of a large mosaic."""


def block(job: Sleep, index: tuple[int, int]) -> Computed | Left:
    """Sleep instead of computing, and hand over as a real block does."""
    time.sleep(job.pause)
    data = bytes(job.size)
    name = leave(job.inbox, index, data) if job.inbox else None
    return Computed(data, True, 1) if name is None else Left(name, True, 1)


async def serve_scheduler() -> None:
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address=None) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()


async def serve_workers(address: str, count: int) -> None:
    from distributed import Worker

    options: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": None, "nthreads": 1, "memory_limit": 0}
    workers = [Worker(address, name=f"{os.getpid()}-{number}", **options) for number in range(count)]
    for start in range(0, count, 25):
        await asyncio.gather(*workers[start : start + 25])
    print("ready", flush=True)
    await asyncio.gather(*(worker.finished() for worker in workers))


def drive(given: argparse.Namespace) -> None:
    """Run blocks and print what they cost, as JSON."""
    import numpy as np

    from geoseg.journal import Journal
    from geoseg.workers import Dask

    def spent(pids: list[int]) -> float:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
        return sum(item.user + item.system for item in times)

    me = psutil.Process()
    blocks = given.blocks
    rng = np.random.default_rng(0)
    files = 10_000
    # As heavy as the job of a mosaic of 10 000 files.
    ballast = rng.bytes(177 * files)
    with (
        tempfile.TemporaryDirectory() as folder,
        Dask(scheduler=given.scheduler, needs=[__file__]) as workers,
        Journal(Path(folder)) as journal,
    ):
        journal.open({"job": 1})
        inbox = str(journal.inbox()) if given.way == "shared" else ""
        job = Sleep(given.pause, given.bytes, inbox, ballast)
        groups = {"scheduler": [given.scheduler_pid], "workers": given.worker_pids, "driver": [me.pid]}
        clock = time.perf_counter()
        next(workers.map(block, Sleep(0, 10, "", b""), [(0, 0)]))  # asks every worker
        asked = time.perf_counter() - clock
        list(workers.map(block, Sleep(0, 10, "", b""), ((0, i) for i in range(2 * given.count))))
        before = {name: spent(pids) for name, pids in groups.items()}
        memory = me.memory_info().rss
        peak, failed = memory, 0
        clock = time.perf_counter()
        for number, (index, outcome) in enumerate(workers.map(block, job, ((0, i) for i in range(blocks)))):
            if isinstance(outcome, Exception):
                failed += 1
                print(repr(outcome), file=sys.stderr)
            elif isinstance(outcome, Left):
                journal.take(index, outcome.name, outcome.complete)
            else:
                journal.put(index, outcome.data, outcome.complete)
            if number % 32 == 0:
                peak = max(peak, me.memory_info().rss)
        wall = time.perf_counter() - clock
        cost = {name: (spent(pids) - before[name]) / blocks * 1e3 for name, pids in groups.items()}
        print(
            json.dumps(
                {
                    "rate": blocks / wall,
                    "busy": blocks * given.pause / (given.count * wall),
                    **{f"{name}_ms": value for name, value in cost.items()},
                    "driver_mb": (peak - memory) / 1e6,
                    "scheduler_mb": psutil.Process(given.scheduler_pid).memory_info().rss / 1e6,
                    "failed": failed,
                    "asked_s": asked,
                }
            )
        )


def start(role: list[str], **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Start this file in another role; return its process and the first line it prints."""
    here = Path(__file__).resolve()
    paths = [str(here.parents[2]), str(here.parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        # As a module and not as __main__, so that workers find what the driver sends them.
        [sys.executable, "-c", "import scale; scale.main()", *role],
        stdout=subprocess.PIPE,
        stderr=None if role[1] == "drive" else subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def measure(count: int, pauses: list[float], given: argparse.Namespace) -> None:
    """Print a row for each duration of a block."""
    started = []
    try:
        scheduler, address = start(["--role", "scheduler"])
        started.append(scheduler)
        hosts = min(HOSTS, count)
        shares = [count // hosts + (number < count % hosts) for number in range(hosts)]
        for share in shares:
            host, _ready = start(["--role", "workers", "--scheduler", address, "--count", str(share)], **QUIET)
            started.append(host)
        for pause in pauses:
            blocks = given.blocks or max(given.rounds * count, 200 if pause < 1 else 0, 2000 if pause == 0 else 0)
            row = ["--role", "drive", "--scheduler", address, "--scheduler-pid", str(scheduler.pid)]
            row += ["--worker-pids", ",".join(str(host.pid) for host in started[1:]), "--count", str(count)]
            row += ["--pause", str(pause), "--bytes", str(given.bytes), "--blocks", str(blocks), "--way", given.way]
            driver, line = start(row)
            driver.wait()
            found = json.loads(line)
            print(
                f"{count:7d} | {pause:7.2f} | {given.way:6s} | {blocks:6d} | {found['rate']:8.1f} | "
                f"{found['busy']:4.0%} | {found['driver_ms']:9.2f} | {found['scheduler_ms']:12.2f} | "
                f"{found['workers_ms']:10.2f} | {found['driver_mb']:9.0f} | {found['scheduler_mb']:12.0f} | "
                f"{found['failed']:6d} | {found['asked_s']:5.2f}",
                flush=True,
            )
    finally:
        for process in reversed(started):
            process.kill()
            process.communicate()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["table", "scheduler", "workers", "drive"], default="table")
    parser.add_argument("--workers", default="10,100,1000")
    parser.add_argument("--seconds", default="0,0.1,1")
    parser.add_argument("--bytes", type=int, default=1_300_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--way", choices=["driver", "shared"], default="shared", help="how results reach the driver")
    for name in ("--scheduler", "--worker-pids"):
        parser.add_argument(name)
    for name in ("--count", "--scheduler-pid"):
        parser.add_argument(name, type=int)
    parser.add_argument("--pause", type=float)
    given = parser.parse_args()
    if given.role == "scheduler":
        asyncio.run(serve_scheduler())
    elif given.role == "workers":
        asyncio.run(serve_workers(given.scheduler, given.count))
    elif given.role == "drive":
        given.worker_pids = [int(pid) for pid in given.worker_pids.split(",")]
        drive(given)
    else:
        print(
            "workers | seconds | way    | blocks | blocks/s | busy | driver ms | scheduler ms | workers ms | "
            "driver MB | scheduler MB | failed | asked s"
        )
        for count in map(int, given.workers.split(",")):
            measure(count, [float(value) for value in given.seconds.split(",")], given)


if __name__ == "__main__":
    main()
