"""Work shared out among processes of this machine, its results in order."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from geoseg.errors import WorkerError
from geoseg.warm import is_warm, method
from geoseg.workers import cores

Item = TypeVar("Item")
Out = TypeVar("Out")

BATCH = 4096
"""Buildings handled at once."""
AHEAD = 2
"""Items in the hands of each process, so that none waits for this one."""
FEWEST = 1024
"""Buildings in a batch: with fewer, what stands beside them is more than what is in them."""
SHARES = 32
"""Batches, unless they would have fewer or more buildings than that."""
WORTH, WORTH_COLD = 2048, 8192
"""Buildings that processes are started for, which takes seconds where they have to import everything first."""
WORTH_BLOCKS = 4
"""Blocks that are likely to have so many."""


class Pool(ProcessPoolExecutor):
    """Processes that end with this one, however it ends; each begins with ``begin(*given)``."""

    def __init__(self, count: int, begin: Callable[..., None] | None = None, given: tuple[Any, ...] = ()) -> None:
        context = multiprocessing.get_context(method())
        # Nothing is ever sent: the other end closes when this process is gone.
        alive, self._end = context.Pipe(duplex=False)
        super().__init__(count, context, _begin, (alive, begin, given))
        self.count = count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # What they are at is of no use any more; and waiting for processes whose tasks have been taken back may
            # take for ever (Python 3.11.2).
            self._end.close()
        super().__exit__(kind, error, trace)

    def warm_up(self) -> None:
        """Start all processes and let them import what straightening outlines takes, without waiting for that."""
        for _ in range(self.count):
            self.submit(import_module, "geoseg.vectorise")


def _begin(alive: Connection, begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of a terminal; what it means is up to the one that the user started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), name="end", daemon=True).start()
    if begin is not None:
        begin(*given)


def _end_with(alive: Connection) -> None:
    with suppress(EOFError, OSError):
        alive.recv()
    os._exit(1)


def how_many(started: bool = False) -> int:
    """Return how many processes may share work: one for each core, or one where new processes must not start.

    Args:
        started: Whether processes have been started from here before.
    """
    if multiprocessing.parent_process() is not None:
        return 1
    main = sys.modules.get("__main__")
    # A new process imports the main module, and not every program bears that; that of geoseg's command does.
    ours = (
        getattr(main, "__package__", None) == "geoseg" or Path(getattr(main, "__file__", None) or "").stem == "geoseg"
    )
    return cores() if ours or started else 1


@contextmanager
def pool_for(processes: int, blocks: int) -> Iterator[Pool | None]:
    """Yield processes that are getting ready while something else is done, or None where they would not be worth it."""
    if processes < 2 or blocks < WORTH_BLOCKS:
        yield None
        return
    with Pool(processes) as pool:
        pool.warm_up()
        yield pool


def shares(buildings: int, processes: int, work: int | None = None) -> tuple[int, int]:
    """Return how many processes to use for so many buildings, and how many buildings a batch should have.

    Batches do not depend on the number of processes, as the bytes of a file may on the batches.

    Args:
        buildings: How many there are.
        processes: How many there may be.
        work: How many buildings have something left to be done; None for all.
    """
    size = min(max(math.ceil(buildings / SHARES), FEWEST), BATCH)
    if processes < 2 or (buildings if work is None else work) < (WORTH if is_warm() else WORTH_COLD):
        return 1, size
    return min(processes, math.ceil(buildings / size)), size


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items so many at a time (``itertools.batched`` from Python 3.12 on)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def side_by_side(
    work: Callable[[Item], Out], items: Iterable[Item], processes: int, ready: Pool | None = None
) -> Iterator[Out]:
    """Yield ``work(item)`` for each item in their order, computed by several processes; few items are held at a time.

    Args:
        work: What is done; it must travel to other processes.
        items: What it is done to.
        processes: How many.
        ready: Processes that have been started already.

    Raises:
        WorkerError: A process died.
    """
    if processes < 2:
        yield from map(work, items)
        return
    items = iter(items)
    first = list(islice(items, 2))
    if len(first) < 2:
        yield from map(work, first)
        return
    with nullcontext(ready) if ready is not None else Pool(processes) as pool:
        running: deque[Future[Out]] = deque()
        try:
            for item in chain(first, items):
                running.append(pool.submit(work, item))
                if len(running) >= AHEAD * processes:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a process that was started to share the work has ended, perhaps for want of memory; what was computed "
                "before is kept, run the same command again to go on"
            ) from error
        finally:
            for future in running:
                future.cancel()
