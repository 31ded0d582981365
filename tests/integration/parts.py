"""What the integration tests share: real programs from outside, which the gate must have and others may lack."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from geoseg.segment import Result, segment

CUT = {"cell": 64, "core": 128, "workers": 0, "progress": "none"}
"""Settings that cut the tiny mosaic of the fixture ``city`` into four blocks, in this process."""


def required(here: bool, what: str) -> None:
    """Skip without ``what``; fail where the gate runs, which installs it."""
    if here:
        return
    if os.environ.get("GEOSEG_CI") == "1":
        pytest.fail(f"{what} is not here, and GEOSEG_CI=1 says that it must be")
    pytest.skip(f"{what} is not here")


def run(inputs: Any, out: Path, model: Path, **settings: Any) -> Result:
    """Run the main job on tiny imagery."""
    return segment(inputs, out, model=str(model), **{**CUT, **settings})


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that a test has started."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answer(url: str, timeout: float = 5) -> bytes:
    """Return what a server on this machine answers, past any proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout) as reply:
        body: bytes = reply.read()
    return body


def content(out: Path) -> dict[str, Any]:
    """Return all that two runs on the same pixels must have in common, ready to be compared."""
    found: dict[str, Any] = {}
    for name in ("mask", "probability"):
        with rasterio.open(out / f"{name}.tif") as dataset:
            found[name] = dataset.read(1)
            found[f"{name} validity"] = dataset.dataset_mask()
            found[f"{name} place"] = np.array(dataset.transform)
    table = pyogrio.read_dataframe(out / "buildings.gpkg", layer="buildings")
    found["outlines"] = np.array(shapely.to_wkb(table.geometry.to_numpy()), dtype=object)
    for column in table.columns.drop("geometry"):
        found[column] = table[column].to_numpy()
    return found


def assert_equal_content(out: Path, other: Path) -> None:
    """Compare two output folders to the byte of every pixel, attribute and outline."""
    found, expected = content(out), content(other)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
