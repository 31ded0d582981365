"""Progress on stderr: a bar for people, JSON lines for programs, or nothing."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from geoseg.errors import SettingError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

KINDS = ("auto", "bar", "json", "none")


class Progress(AbstractContextManager["Progress"]):
    """Says how far one stage after the other has come. This one says nothing; see :func:`open_progress`."""

    def stage(self, name: str, total: int, *, done: int = 0, pixels: bool = False) -> None:
        """Begin a stage of ``total`` steps, ``done`` of which are done already.

        ``pixels`` says that :meth:`advance` will be told pixels, so that a rate can be shown.
        """

    def advance(self, steps: int = 1, pixels: int = 0) -> None:
        """Count ``steps`` more as done, and the pixels they had."""

    def within(self, share: float) -> None:
        """Say how much of the steps under way is done, in steps; the next :meth:`advance` takes the place of that."""

    def say(self, text: str) -> None:
        """Give one line of information that is no error."""

    def warn(self, text: str) -> None:
        """Give one line about something that went wrong or looks wrong."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End whatever is shown."""


class Lines(Progress):
    """JSON lines, one an event: ``{"event": "progress", "stage": …, "done": …, "total": …, …}``."""

    def __init__(self, stream: IO[str], every: float = 0.5) -> None:
        """Write to ``stream``, progress at most every ``every`` seconds."""
        self._stream, self._every = stream, every
        self._stage, self._total, self._done, self._pixels = "", 0, 0, 0
        self._resumed, self._share = 0, 0.0
        self._start = self._last = time.monotonic()

    def stage(self, name: str, total: int, *, done: int = 0, pixels: bool = False) -> None:
        """Begin a stage."""
        self._stage, self._total, self._done, self._pixels = name, total, done, 0
        self._resumed, self._share = done, 0.0
        self._start = time.monotonic()
        self._event()

    def advance(self, steps: int = 1, pixels: int = 0) -> None:
        """Count steps; write a line when the last is old enough or the stage is complete."""
        self._done += steps
        self._pixels += pixels
        self._share = 0.0
        if self._done >= self._total or time.monotonic() - self._last >= self._every:
            self._event()

    def within(self, share: float) -> None:
        """Write a line when the last is old enough."""
        self._share = share
        if time.monotonic() - self._last >= self._every:
            self._event()

    def say(self, text: str) -> None:
        """Write an ``info`` event."""
        self._write({"event": "info", "text": text})

    def warn(self, text: str) -> None:
        """Write a ``warning`` event."""
        self._write({"event": "warning", "text": text})

    def _event(self) -> None:
        now = time.monotonic()
        self._last = now
        seconds = now - self._start
        fresh = self._done - self._resumed + self._share
        left = seconds / fresh * (self._total - self._done - self._share) if fresh else None
        self._write(
            {
                "event": "progress",
                "stage": self._stage,
                "done": self._done + round(self._share, 2) if self._share else self._done,
                "total": self._total,
                "pixels_per_second": round(self._pixels / seconds) if seconds and self._pixels else None,
                "seconds_left": None if left is None else round(left, 1),
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._stream.flush()


class Bars(Progress):
    """A rich progress bar with blocks, rate and time left; plain lines where there is no terminal."""

    def __init__(self, stream: IO[str]) -> None:
        """Draw on ``stream``."""
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, emoji=False, soft_wrap=True)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._pixels = 0
        self._start = time.monotonic()
        self._total = self._done = 0
        self._told = 0.0

    def stage(self, name: str, total: int, *, done: int = 0, pixels: bool = False) -> None:
        """Begin a stage, ending the one before."""
        self._close()
        self._pixels, self._total, self._done = 0, total, done
        self._start = self._told = time.monotonic()
        if self._console.is_terminal:
            self._open(name, total, done, "blocks" if pixels else "")
        elif total > 1:
            resumed = f", {done} of them done before" if done else ""
            self._console.print(f"{name}: {total} blocks{resumed}" if pixels else name, markup=False)

    def advance(self, steps: int = 1, pixels: int = 0) -> None:
        """Move the bar; without a terminal, a line every half minute."""
        self._done += steps
        self._pixels += pixels
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = f"{self._pixels / seconds / 1e6:.2g} Mpx/s" if self._pixels else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=rate)
        elif time.monotonic() - self._told > 30:
            self._told = time.monotonic()
            self._console.print(f"  {self._done}/{self._total} {rate}", markup=False)

    def within(self, share: float) -> None:
        """Move the bar a little."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done + share)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a line above the bar, in yellow."""
        self._console.print(text, style="yellow", markup=False)

    def _open(self, name: str, total: int, done: int, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} · {task.fields[rate]}" if unit else ""),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            speed_estimate_period=600,
        )
        bar.start()
        self._bar = bar
        self._task = bar.add_task(name, total=total, completed=done, unit=unit, rate="")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self._close()


def open_progress(kind: str = "auto", stream: IO[str] | None = None) -> Progress:
    """Return progress of a kind: ``bar`` (also ``auto``), ``json`` or ``none``, on stderr unless told otherwise.

    Raises:
        SettingError: An unknown kind.
    """
    if kind not in KINDS:
        raise SettingError(f"progress {kind!r} is not one of {', '.join(KINDS)}")
    where = stream or sys.stderr
    if kind == "none":
        return Progress()
    return Lines(where) if kind == "json" else Bars(where)
