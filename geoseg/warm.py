"""What workers need, loaded while the inputs are still being looked at.

Importing torch and GDAL takes a worker about as long as planning takes the driver. On Linux workers are thus forked
from a process that starts first and has imported it all by then (the *forkserver* of :mod:`multiprocessing`).
Elsewhere they start from nothing, as dask has them by default.
"""

from __future__ import annotations

import multiprocessing
import sys
from contextlib import suppress

MODULES = (
    *("torch", "distributed.nanny"),
    *("geoseg.block", "geoseg.mosaic", "geoseg.predict", "geoseg.unet", "geoseg.vectorise"),
)
"""None of them starts a thread or touches a GPU when imported, so a process that has them can be forked."""


_warm = False


def method() -> str:
    """Return how worker processes start: ``forkserver`` or ``spawn``."""
    # On macOS system libraries that have been used do not survive a fork.
    return "forkserver" if sys.platform == "linux" else "spawn"


def warm_up() -> None:
    """Start importing, in another process and without waiting; does nothing when that process is running."""
    if method() != "forkserver" or multiprocessing.parent_process() is not None:
        return
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(list(MODULES))
    # Refused where a program without ``if __name__ == "__main__"`` is imported by a worker, which is told so later.
    with suppress(RuntimeError):
        forkserver.ensure_running()
        global _warm
        _warm = True


def is_warm() -> bool:
    """Say whether new processes have what they need as soon as they start, or soon after."""
    return _warm
