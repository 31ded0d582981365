"""How a finished block gets from a worker to the driver: left in a folder that both see, else over the network.

A record of a block has megabytes. Over the network it passes through the scheduler and through the driver, one process
each; a shared file system takes it from every worker at once. So a worker writes the record into the run's inbox
(:meth:`geoseg.journal.Journal.inbox`) and sends its name, and the driver, which alone decides what counts as
finished, moves it into the journal. A worker that does not find the inbox, or may not write there, sends the record
itself.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from geoseg.block import Computed, Job, run_block


@dataclass(frozen=True)
class Errand:
    """What workers are told: the job, and where results are waited for."""

    job: Job
    inbox: str
    """The folder as the driver sees it."""


@dataclass(frozen=True)
class Left:
    """A block that lies in the inbox."""

    name: str
    """Of the file in the inbox."""
    complete: bool
    """As in :class:`geoseg.block.Computed`."""
    pixels: int
    """As in :class:`geoseg.block.Computed`."""


def run_and_leave(errand: Errand, index: tuple[int, int]) -> Computed | Left:
    """Compute a block and leave it in the inbox, or return it when that is not possible."""
    done = run_block(errand.job, index)
    name = leave(errand.inbox, index, done.data)
    return done if name is None else Left(name, done.complete, done.pixels)


def leave(inbox: str, index: tuple[int, int], data: bytes) -> str | None:
    """Write a record into the inbox; return the file's name there, or None where there is no such folder."""
    # Two workers may have the same block when one of them was taken for dead.
    name = f"{index[0]}-{index[1]}-{uuid.uuid4().hex}.npz"
    path = Path(inbox) / name
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        return None
    return name
