"""Run geoseg as a process: its progress in the dialog, its messages in the log, an end at once when it is cancelled."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qgis.core import QgsProcessingException, QgsProcessingFeedback
from qgis.PyQt.QtCore import QCoreApplication, QThread

from .environment import Environment, EnvironmentMissingError, creation_flags, find

TIED = "GEOSEG_TIED"
"""Environment variable that asks geoseg to end when its stdin is closed."""
PARTLY = 1
"""geoseg's exit code when some inputs or blocks failed and the rest is written."""
_LOOK_S = 0.1
"""How often to look whether the run is cancelled."""
_TAIL = 60
"""Lines to keep of what geoseg says outside its events: an error and its list, or the end of a traceback."""


_ERRORS = ("geoseg: ", "Error: ")
"""How lines begin that say why geoseg gives up."""


@dataclass(frozen=True)
class Outcome:
    """What a run of geoseg left."""

    stdout: str
    complete: bool
    """False when something failed and the rest is written."""


def ready() -> Environment:
    """Return an environment that has answered.

    Raises:
        QgsProcessingException: There is none; the message says what to do.
    """
    try:
        environment = find()
        environment.check()
    except EnvironmentMissingError as error:
        raise QgsProcessingException(str(error)) from None
    return environment


def run(
    arguments: list[str],
    feedback: QgsProcessingFeedback,
    *,
    shares: dict[str, float] | None = None,
    names: dict[str, str] | None = None,
    folder: str | None = None,
    stopped: str = "",
) -> Outcome:
    """Run ``geoseg ARGUMENTS`` to its end.

    Args:
        arguments: Command and options; ``--progress json`` is added where there are ``shares``.
        feedback: Told of progress and messages, and asked whether to stop.
        shares: The command's stages in their order, and what part of the whole each takes.
        names: Paths that mean nothing to the user, and what to call them in messages.
        folder: Working folder.
        stopped: What to say when it was cancelled: how to go on.

    Raises:
        QgsProcessingException: geoseg cannot be run, was cancelled, or failed.
    """
    environment = ready()
    if shares:
        _compare(environment.check(), feedback)
    command = [*environment.command, *arguments, *(["--progress", "json"] if shares else [])]
    feedback.pushCommandInfo(" ".join(shlex.quote(part) for part in command))
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own environment, and no shell
            command,
            # Nothing is ever written to stdin: when QGIS is gone, it closes, and geoseg ends, too.
            env={**environment.variables(), TIED: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            # A group of its own, so that its workers end with it and nothing else does.
            start_new_session=True,
            creationflags=creation_flags(),
        )
    except OSError as error:
        raise QgsProcessingException(f"{command[0]} cannot be run: {error}") from None
    listener = _Listener(feedback, shares or {}, names or {})
    ended = False
    try:
        ended = _follow(process, listener, feedback)
    finally:
        if not ended or process.returncode < 0:
            end_group(process)
        if process.stdin is not None:
            process.stdin.close()
    if not ended:
        raise QgsProcessingException(f"Stopped. {stopped}".strip())
    return listener.outcome(process.returncode)


def _compare(version: str, feedback: QgsProcessingFeedback) -> None:
    """Say when plugin and geoseg are of different versions, which may be all right."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(Path(__file__).with_name("metadata.txt"), "utf-8")
    ours = metadata["general"]["version"]
    if version != ours:
        feedback.pushWarning(f"geoseg is {version}, this plugin {ours}; 'geoseg qgis install' makes them equal")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, at once; what geoseg has finished is on the disk already."""
    if os.name == "nt":
        subprocess.run(  # noqa: S603
            ["taskkill", "/F", "/T", "/PID", str(process.pid)],  # noqa: S607 - part of Windows
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            creationflags=creation_flags(),
            check=False,
        )
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _follow(process: subprocess.Popen[bytes], listener: _Listener, feedback: QgsProcessingFeedback) -> bool:
    """Pass on what the process says until it ends; return False when it was cancelled before."""
    lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
    streams = {"stdout": process.stdout, "stderr": process.stderr}
    for name, stream in streams.items():
        threading.Thread(target=_read, args=(name, stream, lines), daemon=True).start()
    reading = len(streams)
    while reading:
        if _cancelled(feedback):
            return False
        try:
            name, line = lines.get(timeout=_LOOK_S)
        except queue.Empty:
            # A worker that outlives its master still holds the streams.
            if process.poll() is not None:
                break
            continue
        if line is None:
            reading -= 1
        else:
            listener.hear(name, line)
    while True:
        try:
            process.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            if _cancelled(feedback):
                return False
        else:
            return True


def _cancelled(feedback: QgsProcessingFeedback) -> bool:
    application = QCoreApplication.instance()
    # qgis_process runs algorithms in the thread in which it also learns of Ctrl-C.
    if application is not None and QThread.currentThread() == application.thread():
        QCoreApplication.processEvents()
    return bool(feedback.isCanceled())


def _read(name: str, stream: IO[bytes], lines: queue.Queue[tuple[str, str | None]]) -> None:
    with stream:
        for line in stream:
            lines.put((name, line.decode("utf-8", "replace").rstrip("\r\n")))
    lines.put((name, None))


class _Listener:
    """Understands the lines that geoseg writes; see ``geoseg/progress.py``."""

    def __init__(self, feedback: QgsProcessingFeedback, shares: dict[str, float], names: dict[str, str]) -> None:
        self._feedback, self._shares, self._names = feedback, shares, names
        self._stage = ""
        self._stdout: list[str] = []
        self._said: deque[str] = deque(maxlen=_TAIL)
        self._failing = False

    def hear(self, stream: str, line: str) -> None:
        """Take one line."""
        if stream == "stdout":
            self._stdout.append(line)
            return
        event = _event(line)
        kind = event.get("event")
        if kind == "progress":
            self._progress(event)
        elif kind == "info":
            self._feedback.pushInfo(self._named(str(event.get("text", ""))))
        elif kind == "warning":
            self._feedback.pushWarning(self._named(str(event.get("text", ""))))
        elif line.strip():
            # An error is shown once, at the end.
            self._failing = self._failing or line.startswith(_ERRORS)
            self._said.append(line)
            if not self._failing:
                self._feedback.pushConsoleInfo(self._named(line))

    def _progress(self, event: dict[str, Any]) -> None:
        stage, done, total = str(event.get("stage", "")), event.get("done"), event.get("total")
        if stage != self._stage:
            self._stage = stage
            self._feedback.setProgressText(f"{stage[:1].upper()}{stage[1:]} …")
        if stage not in self._shares or not total or done is None:
            return
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(stage)])
        share = before + self._shares[stage] * min(1.0, done / total)
        self._feedback.setProgress(100 * share / sum(self._shares.values()))

    def outcome(self, code: int) -> Outcome:
        """Return what a run that ended with an exit code left, or raise what it failed with."""
        if code in (0, PARTLY) and not self._crashed():
            if code == PARTLY:
                self._feedback.pushWarning("Some inputs or parts failed, as listed above; the rest is done.")
            return Outcome("\n".join(self._stdout), code == 0)
        if code < 0:
            name = f"signal {-code}"
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
            raise QgsProcessingException(
                f"geoseg was ended by the system ({name}); when there was too little memory, try fewer workers or, "
                "in training, a smaller batch"
            )
        raise QgsProcessingException(self._reason(code))

    def _named(self, text: str) -> str:
        for path, name in self._names.items():
            text = text.replace(path, name)
        return text

    def _crashed(self) -> bool:
        # An exception that nobody caught ends Python with 1, too.
        return any(line.startswith("Traceback (most recent call last)") for line in self._said)

    def _reason(self, code: int) -> str:
        """Return the error that geoseg ended with, in its own words."""
        said = list(self._said)
        begins = [number for number, line in enumerate(said) if line.startswith(_ERRORS)]
        if begins and not self._crashed():
            return self._named("\n".join([said[begins[-1]].split(": ", 1)[1], *said[begins[-1] + 1 :]]))
        last = said[-1] if said else "it said nothing"
        return f"geoseg failed (exit code {code}): {last}. The log above has all that it said."


def _event(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
