"""The report in a real browser: it is drawn, it complains of nothing and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from parts import required, run
from rasterio.errors import NotGeoreferencedWarning

BROWSER = shutil.which("chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
SIZE = (1000, 1600)
"""Columns and rows of the window."""
ELSEWHERE = "http://127.0.0.1:9/"
"""An address on this machine where nothing listens."""


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    picture: np.ndarray
    """``(rows, columns, 3)``."""
    console: list[str]
    """What the page or the browser wrote to its console."""
    asked: set[str]
    """Addresses that the page asked the network for, in vain or not."""


def visit(page: Path, folder: Path) -> Visit:
    """Open a page in a browser without a past."""
    required(BROWSER is not None, "chromium")
    log, shot = folder / "net.json", folder / "shot.png"
    options = [
        # Its own services are not to be looked for.
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        "--enable-logging=stderr",
        f"--window-size={SIZE[0]},{SIZE[1]}",
        f"--screenshot={shot}",
    ]
    done = subprocess.run(
        [str(BROWSER), *QUIET, *options, page.as_uri()], capture_output=True, text=True, timeout=120, errors="replace"
    )
    assert shot.is_file(), done.stderr
    events = [event.get("params", {}) for event in json.loads(log.read_text("utf-8"))["events"]]
    # What the browser asks for by itself has no origin.
    asked = {e["url"] for e in events if "url" in e and e.get("initiator", "not an origin") != "not an origin"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(shot) as dataset:
            picture = np.moveaxis(dataset.read([1, 2, 3]), 0, -1)
    return Visit(picture, re.findall(r"CONSOLE.*", done.stderr), {url for url in asked if url.startswith("http")})


@pytest.fixture(scope="module")
def report(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run."""
    out = tmp_path_factory.mktemp("results") / "out"
    run(city, out, narrow_model)
    return out / "report.html"


def test_report_is_drawn_in_peace(report: Path, tmp_path: Path) -> None:
    seen = visit(report, tmp_path)
    assert seen.console == []
    assert seen.asked == set()
    assert seen.picture.shape == (SIZE[1], SIZE[0], 3)
    # Text alone has a few shades; the imagery thousands.
    assert len(np.unique(seen.picture.reshape(-1, 3), axis=0)) > 5000
    assert (seen.picture != seen.picture[0, 0]).any(axis=-1).mean() > 0.2


def test_report_would_load_nothing_even_if_asked_to(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    injected = f'<img src="{ELSEWHERE}x.png"><script>console.log("ran")</script></body>'
    page.write_text(report.read_text("utf-8").replace("</body>", injected), "utf-8")
    assert injected in page.read_text("utf-8")
    seen = visit(page, tmp_path)
    assert seen.asked == set()
    assert not any("ran" in line and "violates" not in line for line in seen.console)
    assert sum("Content Security Policy" in line for line in seen.console) == 2


def test_requests_and_errors_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(f'<!doctype html><img src="{ELSEWHERE}x.png"><script>throw new Error("thrown")</script>', "utf-8")
    seen = visit(page, tmp_path)
    assert seen.asked == {f"{ELSEWHERE}x.png"}
    assert any("thrown" in line for line in seen.console)
    assert len(np.unique(seen.picture.reshape(-1, 3), axis=0)) < 5000
