"""What a plan says against what a run then does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CITY_SHAPE, blobs, write_tile

from geoseg.errors import InputError, ModelError, SettingError
from geoseg.planning import describe, estimate
from geoseg.segment import segment

KEYS = {
    "files", "width", "height", "crs", "ground_gsd_m", "model", "device", "precision", "workers", "blocks",
    "blocks_with_data", "core", "window", "halo", "taper", "forward_pixels_per_pixel", "pixels_per_second", "seconds",
    "memory_bytes", "headline", "notes", "problems",
}  # fmt: skip


def settings(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "cell": 64, "core": 64, "device": "cpu", **more}


def test_facts(city: Path, narrow_model: Path) -> None:
    facts = estimate(city, settings(narrow_model, workers=3))
    assert facts.keys() == KEYS
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["files"], facts["height"], facts["width"]) == (3, *CITY_SHAPE)
    assert (facts["crs"], facts["model"], facts["device"], facts["precision"]) == (
        "EPSG:32633",
        "narrow",
        "cpu",
        "fp32",
    )
    assert (facts["halo"], facts["taper"], facts["window"], facts["core"]) == (32, 0, 128, 64)
    assert facts["ground_gsd_m"] == pytest.approx(0.5, rel=2e-3)
    assert facts["workers"] == 3
    # 4 × 4 blocks; the corner without a tile covers the last one only.
    assert (facts["blocks"], facts["blocks_with_data"]) == (16, 15)
    assert facts["pixels_per_second"] > 0
    assert facts["memory_bytes"] > 50e6
    assert facts["notes"] == facts["problems"] == []


def test_forward_pixels_are_those_of_the_run(narrow_model: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", blobs((150, 170)))
    for more in ({}, {"taper": 32}, {"core": 128}):
        chosen = settings(narrow_model, **more)
        facts = estimate(tmp_path / "a.tif", chosen)
        done = segment(tmp_path / "a.tif", tmp_path / "out", workers=0, progress="none", **chosen)
        forward = done.run["counts"]["forward_pixels"]
        assert facts["forward_pixels_per_pixel"] == pytest.approx(forward / (150 * 170), abs=1e-3)


def test_eight_views_are_eight_times_the_work(narrow_model: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", blobs((64, 64)))
    one, eight = (estimate(tmp_path / "a.tif", settings(narrow_model, tta=tta)) for tta in (False, True))
    assert eight["forward_pixels_per_pixel"] == pytest.approx(8 * one["forward_pixels_per_pixel"])


def test_nothing_is_written(city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(city.iterdir())
    estimate(city, settings(narrow_model))
    assert list(tmp_path.iterdir()) == []
    assert sorted(city.iterdir()) == before


def test_in_words(city: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_text("text")
    facts = estimate([city, tmp_path / "bad.tif"], settings(make_model("coarse", gsd_m=2.0)))
    words = describe(facts)
    assert words.splitlines()[0] == facts["headline"]
    assert facts["headline"].startswith("3 files, one 231 × 247 grid, EPSG:32633, 0.5 m · model coarse (2.00 m,")
    assert "16 of 64 px, about 15 with data" in words
    assert "--gsd 2 may find more" in words
    assert "bad.tif" in words.splitlines()[-1]
    spans = {5.0: "about 5 s", 600.0: "about 10 min", 9000.0: "about 2.5 h"}
    for seconds, span in spans.items():
        assert span in describe({**facts, "seconds": seconds})


def test_wrong_use(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        estimate(tmp_path / "gone.tif", settings(narrow_model))
    with pytest.raises(ModelError, match="no such model"):
        estimate(city, {"model": "gone"})
    with pytest.raises(SettingError, match="unknown setting spam"):
        estimate(city, settings(narrow_model, spam=1))
    write_tile(tmp_path / "deep.tif", blobs((40, 40)).astype(np.uint16))
    with pytest.raises(SettingError, match="--range"):
        estimate(tmp_path / "deep.tif", settings(narrow_model))
