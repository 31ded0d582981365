"""Freed memory goes back to the system, so that a worker does not grow with the number of its blocks.

Arrays of a block are of all sizes up to some ten megabytes. glibc keeps what was freed, in a heap for each thread, and
finds ever less of it fit for the next array: a worker of two threads went from 0.7 to 3 GB within 80 blocks. Having
every large array mapped afresh (``MALLOC_MMAP_THRESHOLD_``) cures that, but clearing the pages costs half as much again
as all of a block besides the network. Giving back now and then cures it as well, and costs a twentieth.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

GROWTH = 256 * 2**20
"""Bytes by which a process may grow before it gives back what it does not use."""
EVERY_S = 10.0
"""Seconds after which it does so in any case: where blocks take long, giving back is nothing beside them."""

_lock = threading.Lock()
_least: int | None = None
_last = 0.0


def give_back() -> None:
    """Give freed memory back to the system if that was long ago, or the process has grown since; only with glibc."""
    global _least, _last
    trim = _trim()
    if trim is None:
        return
    with _lock:
        long_ago = time.monotonic() - _last > EVERY_S
        if _least is None or long_ago or resident() > _least + GROWTH:
            trim(0)
            _last = time.monotonic()
            now = resident()
            _least = now if _least is None else min(_least, now)


def resident() -> int:
    """Return the resident memory of this process in bytes, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return trim
