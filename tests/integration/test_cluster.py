"""Scaling out: processes of a real dask cluster, which see the files or do not, and die in the middle of the work."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import ROOT, Cluster
from conftest import blobs, write_tile
from parts import required

from geoseg.errors import WorkerError
from geoseg.journal import FOLDER, Journal
from geoseg.segment import segment
from geoseg.workers import Dask

CUT = {"cell": 64, "core": 64, "halo": 32, "simplify": 0.0, "square": False, "progress": "none"}
BLOCKS = 56
FILES = ("mask.tif", "probability.tif", "buildings.gpkg")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that a test starts; its processes end with the test."""
    (tmp_path / "cluster").mkdir()
    one = Cluster(tmp_path / "cluster")
    yield one
    one.stop()


@pytest.fixture(scope="module")
def ortho(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imagery of eight rows of seven blocks."""
    folder = tmp_path_factory.mktemp("ortho")
    write_tile(folder / "a.tif", blobs((500, 200)), (0, 0))
    write_tile(folder / "b.tif", blobs((500, 240), 6), (0, 200))
    return folder


@pytest.fixture(scope="module")
def calm(ortho: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it, without disturbance."""
    out = tmp_path_factory.mktemp("calm")
    result = segment(ortho, out, model=str(narrow_model), workers=0, **CUT)
    assert result.run["counts"]["blocks_computed"] == BLOCKS
    return out


def same(out: Path, calm: Path) -> None:
    for name in FILES:
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name


def stored(out: Path) -> int:
    return sum(1 for _ in out.glob(f"{FOLDER}/blocks/*/*.npz"))


def when_some_are_done(
    out: Path, act: Callable[[], Any], running: Callable[[], bool] = lambda: True
) -> threading.Thread:
    """Do something once some blocks are stored, and long before all are."""

    def wait() -> None:
        while stored(out) < 5 and running():
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


# --- the same results


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_cluster_leave_the_same_bytes(
    workers: int, cluster: Cluster, ortho: Path, calm: Path, narrow_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    cluster.start(workers)
    # All see the inbox, so nothing but names travels.
    monkeypatch.setattr(Journal, "put", lambda *_: pytest.fail("a record came over the network"))
    result = segment(ortho, tmp_path / "out", model=str(narrow_model), scheduler=str(cluster.file), **CUT)
    assert result.complete
    assert result.run["workers"].endswith(f"workers at {cluster.address}")
    same(tmp_path / "out", calm)
    assert not list((tmp_path / "out" / FOLDER).glob("inbox-*"))


def test_workers_that_do_not_see_the_output_folder_send_results(
    cluster: Cluster, ortho: Path, calm: Path, narrow_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    cluster.start(2)
    monkeypatch.setattr(Journal, "inbox", lambda _self: Path("/nowhere/inbox"))
    monkeypatch.setattr(Journal, "take", lambda *_: pytest.fail("nothing can have been left"))
    assert segment(ortho, tmp_path / "out", model=str(narrow_model), scheduler=cluster.address, **CUT).complete
    same(tmp_path / "out", calm)


def test_scheduler_over_tls(
    cluster: Cluster, ortho: Path, calm: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask.config

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=geoseg"]
    try:
        subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        required(False, "openssl")
    names = ("--tls-ca-file", str(certificate), "--tls-cert", str(certificate), "--tls-key", str(key))
    cluster.options = ("--protocol", "tls", *names)
    cluster.start(1)
    assert cluster.address.startswith("tls://")
    with pytest.raises(WorkerError, match=r"tls://.*no certificates for TLS; name them in its configuration"):
        Dask(scheduler=cluster.address).__enter__()
    known = {"ca-file": certificate, "client.cert": certificate, "client.key": key}
    with dask.config.set({f"distributed.comm.tls.{name}": str(path) for name, path in known.items()}):
        assert segment(ortho, tmp_path / "out", model=str(narrow_model), scheduler=cluster.address, **CUT).complete
    same(tmp_path / "out", calm)


# --- processes that die


def test_a_killed_worker_changes_nothing(
    cluster: Cluster, ortho: Path, calm: Path, narrow_model: Path, tmp_path: Path
) -> None:
    cluster.start(2)
    thread = when_some_are_done(tmp_path / "out", cluster.workers[0].kill)
    result = segment(ortho, tmp_path / "out", model=str(narrow_model), scheduler=cluster.address, **CUT)
    thread.join(timeout=1)
    assert cluster.workers[0].wait(timeout=10) == -signal.SIGKILL
    assert result.complete
    assert result.run["counts"]["blocks_computed"] == BLOCKS
    same(tmp_path / "out", calm)


def test_a_killed_scheduler_loses_nothing(
    cluster: Cluster, ortho: Path, calm: Path, narrow_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scheduler = cluster.start(2).scheduler
    assert scheduler is not None
    when_some_are_done(out, scheduler.kill)
    with pytest.raises(WorkerError, match="the scheduler was lost; run the same command again to go on"):
        segment(ortho, out, model=str(narrow_model), scheduler=cluster.address, **CUT)
    kept = stored(out)
    assert 5 <= kept < BLOCKS
    cluster.stop()
    cluster.start(1)
    result = segment(ortho, out, model=str(narrow_model), scheduler=cluster.address, **CUT)
    assert result.run["counts"]["blocks_resumed"] == kept
    same(out, calm)


def test_a_killed_driver_loses_nothing(
    cluster: Cluster, ortho: Path, calm: Path, narrow_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cluster.start(2)
    pipeline = tmp_path / "job.toml"
    pipeline.write_text(
        f'[segment]\ninputs = "{ortho}"\nout = "out"\nmodel = "{narrow_model}"\nscheduler = "cluster/scheduler.json"\n'
        "cell = 64\ncore = 64\nhalo = 32\nsimplify = 0.0\nsquare = false\n"
    )
    command = [sys.executable, "-m", "geoseg.cli", "run", str(pipeline)]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    when_some_are_done(out, driver.kill, lambda: driver.poll() is None)
    _, said = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, said
    kept = stored(out)
    assert 5 <= kept < BLOCKS
    assert list((out / FOLDER).glob("inbox-*"))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    counts = json.loads((out / "run.json").read_text("utf-8"))["counts"]
    assert counts["blocks_resumed"] == kept
    assert not list((out / FOLDER).glob("inbox-*"))
    same(out, calm)


# --- workers that are no good


def test_worker_that_does_not_see_a_file(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(1)
    missing = str(tmp_path / "ortho" / "a.tif")
    with (
        Dask(scheduler=cluster.address, needs=[__file__, missing]) as workers,
        pytest.raises(WorkerError, match=rf"worker tcp://127\.0\.0\.1:\d+ does not see {missing}: every worker needs"),
    ):
        list(workers.map(pow, 2, [1, 2]))


# --- recipes


def test_the_recipe_for_slurm_runs(
    ortho: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With commands in place of Slurm's that run the job here at once."""
    required(importlib.util.find_spec("dask_jobqueue") is not None, "dask-jobqueue")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "sbatch": f'cp "$1" {tmp_path}/job.sh; sh {tmp_path}/job.sh >/dev/null 2>&1 & echo $! >> {tmp_path}/pids; '
        'echo "Submitted batch job 7"',
        "scancel": "true",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(stat.S_IRWXU)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    words = [str(ortho), str(tmp_path / "out"), "--jobs", "1", "--cores", "1", "--interface", "lo"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "slurm.py"), *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "buildings in" in done.stderr
    assert (tmp_path / "out" / "buildings.gpkg").is_file()
    script = (tmp_path / "job.sh").read_text()
    assert "#SBATCH --cpus-per-task=1" in script
    assert "--lifetime 14100s" in script
