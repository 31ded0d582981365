"""A run that ends with the QGIS that started it, also when QGIS crashes or is killed.

The plugin holds the other end of this process's stdin and never writes; the system closes it when QGIS is gone.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "GEOSEG_TIED"
"""Environment variable by which the plugin asks for it."""


def end_with_parent() -> None:
    """Watch stdin from now on, if the environment asks for it, and end with its workers when it is closed."""
    # Not for processes that this one starts: they have another stdin.
    if os.environ.pop(VARIABLE, None):
        threading.Thread(target=_watch, name="tied to QGIS", daemon=True).start()


def _watch() -> None:
    while os.read(0, 1024):
        pass
    if os.name != "nt" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    # What is finished is on the disk, and workers end when their master does.
    os._exit(130)
