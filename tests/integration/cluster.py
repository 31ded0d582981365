"""A dask cluster for tests: `dask scheduler` and `dask worker` processes, as users start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    """Processes of one cluster, in a folder of their own."""

    folder: Path
    options: tuple[str, ...] = ()
    """Further options of both commands."""
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """What `dask scheduler --scheduler-file` writes."""
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(json.loads(self.file.read_text("utf-8"))["address"])

    def start(self, workers: int) -> Cluster:
        """Start the scheduler and some workers; wait for the scheduler's file."""
        self.file.unlink(missing_ok=True)
        self.scheduler = self._run("scheduler", "--port", "0", "--scheduler-file", str(self.file))
        while not self.file.is_file() or not self.file.read_text("utf-8").strip():
            assert self.scheduler.poll() is None, "the scheduler ended"
            time.sleep(0.05)
        for _ in range(workers):
            self.add_worker()
        return self

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker of one thread, without a nanny that would start it anew."""
        more = ("--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder))
        worker = self._run("worker", "--scheduler-file", str(self.file), *more)
        self.workers.append(worker)
        return worker

    def _run(self, kind: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen(
            [*command, *self.options, *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        """End what is left."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            process.kill()
            process.wait()
        self.workers.clear()
