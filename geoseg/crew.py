"""Processes that read and vectorise for a worker with a GPU.

A GPU computes a block in a tenth of a second, while a core takes a second to read it and to find its buildings. Threads
do not help: most of that is Python's, which runs one thread at a time, and the thread that feeds the GPU would wait for
its turn hundreds of times a block. So a worker with a GPU has as many processes as it has threads; they and it share
the pixels of the blocks under way (anonymous memory, which is gone with the worker whatever happens), and the worker's
threads have nothing to do but to wait and to feed the GPU.

On Linux only; elsewhere, and where processes may not be started or may not see the worker's memory, the worker does it
all by itself.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import GeosegError
from geoseg.gpus import may_have_gpu
from geoseg.processes import Pool
from geoseg.tiling import Block, Rect, Window
from geoseg.workers import OVERLAP, threads_of_worker

if TYPE_CHECKING:
    from geoseg.block import Computed, Job

MODULES = ("geoseg.block", "geoseg.mosaic", "geoseg.raster", "geoseg.vectorise")
_PAGE = 4096


@dataclass(frozen=True)
class Shared:
    """Memory that processes share."""

    owner: int
    """Process that made it."""
    handle: int
    """Its number there."""
    size: int
    """Bytes."""

    def map(self) -> mmap.mmap:
        """Return it, also in a process other than the owner."""
        if os.getpid() == self.owner:
            return mmap.mmap(self.handle, self.size)
        handle = os.open(f"/proc/{self.owner}/fd/{self.handle}", os.O_RDWR)
        try:
            return mmap.mmap(handle, self.size)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Arrays:
    """A block's arrays, in shared memory."""

    values: NDArray[Any]
    """``(3, rows, columns)`` stored values with halo."""
    valid: NDArray[np.bool_]
    """``(rows, columns)``."""
    wanted: NDArray[np.bool_]
    """Of the core's shape, like the next two: pixels to answer for."""
    mask: NDArray[np.bool_]
    grey: NDArray[np.uint8]

    @classmethod
    def parts(cls, job: Job, seen: Rect, core: Rect) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return type and shape of each array."""
        dtype, flag = np.dtype(job.mosaic.dtype), np.dtype(bool)
        return {
            "values": (dtype, (3, *seen.shape)),
            "valid": (flag, seen.shape),
            "wanted": (flag, core.shape),
            "mask": (flag, core.shape),
            "grey": (np.dtype(np.uint8), core.shape),
        }

    @classmethod
    def size(cls, job: Job, seen: Rect, core: Rect) -> int:
        """Return the bytes of all of them."""
        return sum(_rounded(kind, shape) for kind, shape in cls.parts(job, seen, core).values())

    @classmethod
    def of(cls, memory: mmap.mmap, job: Job, seen: Rect, core: Rect) -> Arrays:
        """Return the arrays as they lie in memory."""
        found, at = {}, 0
        for name, (kind, shape) in cls.parts(job, seen, core).items():
            count = int(np.prod(shape, dtype=np.int64))
            found[name] = np.frombuffer(memory, kind, count, at).reshape(shape)
            at += _rounded(kind, shape)
        return cls(**found)


def _rounded(kind: np.dtype[Any], shape: tuple[int, ...]) -> int:
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    return -(-size // _PAGE) * _PAGE


@dataclass(frozen=True)
class Seen:
    """What a process found when it read a block."""

    windows: list[Window]
    """What to run; the pixels are in shared memory."""
    problems: list[dict[str, Any]]
    seconds: float
    """Spent reading."""
    empty: Computed | None
    """The result, when there is nothing to compute."""


class Crew:
    """The processes, and the memory that they share with this one."""

    def __init__(self, job: Job, count: int) -> None:
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(MODULES))
        self._job = job  # held, so that no other job gets its id, by which the crew is found
        self._pool = Pool(count, _begin, (job,))
        self._free: list[tuple[Shared, mmap.mmap]] = []
        self._lock = threading.Lock()

    @contextmanager
    def memory(self, size: int) -> Iterator[tuple[Shared, mmap.mmap]]:
        """Yield memory for a block; it is used again for the next one."""
        with self._lock:
            found = next((item for item in self._free if item[0].size >= size), None)
            if found is not None:
                self._free.remove(found)
            elif self._free:  # too small for the blocks to come, too
                os.close(self._free.pop()[0].handle)
        if found is None:
            handle = os.memfd_create("geoseg")
            os.ftruncate(handle, size)
            shared = Shared(os.getpid(), handle, size)
            found = shared, shared.map()
        try:
            yield found
        finally:
            with self._lock:
                self._free.append(found)

    def read(self, index: tuple[int, int], memory: Shared) -> Seen:
        """Let a process read a block into memory."""
        return self._pool.submit(_read, index, memory).result()

    def record(self, index: tuple[int, int], memory: Shared, facts: dict[str, Any]) -> Computed:
        """Let a process make the record of a block whose mask and probability are in memory."""
        return self._pool.submit(_record, index, memory, facts).result()

    def close(self) -> None:
        """End the processes, and give back the memory that no block uses."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for shared, _ in self._free:
                os.close(shared.handle)
            self._free.clear()


_crews: dict[int, Crew] = {}
_lock = threading.Lock()
_refused = False


def crew_of(job: Job) -> Crew | None:
    """Return the crew of this worker, started with its first block; None where there is none."""
    with _lock:
        if _refused or not wants_crew(job):
            return None
        crew = _crews.get(id(job))
        if crew is None:
            for other in _crews.values():
                other.close()
            _crews.clear()
            crew = _crews[id(job)] = Crew(job, threads_of_worker() or OVERLAP)
        return crew


def wants_crew(job: Job) -> bool:
    """Say whether this worker has a GPU, threads to spare, and may start processes."""
    able = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if not able or job.device == "cpu" or not may_have_gpu():
        return False
    import torch  # which takes seconds, during which a block could be read

    return torch.cuda.is_available() and (threads_of_worker() or 1) > OVERLAP


def dismiss(crew: Crew) -> None:
    """Do without a crew from now on: one of it has died, or memory cannot be shared."""
    global _refused
    with _lock:
        _refused = True
        _crews.clear()
    crew.close()


# ------------------------------------------------------------------------------------------------- in the processes

_job: Job | None = None


def _begin(job: Job) -> None:
    global _job
    _job = job


def _here(index: tuple[int, int], memory: Shared) -> tuple[Job, Block, Rect, Arrays]:
    from geoseg.block import around

    job = _job
    if job is None:
        raise GeosegError("a process without a job")
    block = job.tiling.block(*index)
    seen = around(block.windows)
    return job, block, seen, Arrays.of(memory.map(), job, seen, block.core)


def _read(index: tuple[int, int], memory: Shared) -> Seen:
    from geoseg.block import empty, read

    clock = time.perf_counter()
    job, block, _, arrays = _here(index, memory)
    pixels, wanted, windows, problems = read(job, block)
    if pixels is None or not windows:
        return Seen([], problems, 0.0, empty(block, problems))
    arrays.values[:], arrays.valid[:], arrays.wanted[:] = pixels.values, pixels.valid, wanted
    return Seen(windows, problems, time.perf_counter() - clock, None)


def _record(index: tuple[int, int], memory: Shared, facts: dict[str, Any]) -> Computed:
    from geoseg.block import record
    from geoseg.sights import shrunk

    job, block, seen, arrays = _here(index, memory)
    inner = block.core.slices(seen)
    thumbnail = shrunk(arrays.values[:, *inner], arrays.valid[inner], job.scaling, job.shrink)
    return record(job, block.core, arrays.wanted, arrays.mask, arrays.grey, thumbnail, facts)
