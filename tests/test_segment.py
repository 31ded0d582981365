"""The whole job against one forward pass over the merged raster, and against itself done in other ways."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from conftest import CITY_SHAPE, blobs, city_arrays, write_tile
from rasterio.features import rasterize

import geoseg.segment as module
from geoseg.checkpoint import load_model
from geoseg.errors import InputError, ModelError, OutputError, SettingError, WorkerError
from geoseg.journal import FOLDER, Journal
from geoseg.mosaic import open_mosaic
from geoseg.predict import Predictor, Scaling, whole_image
from geoseg.progress import Progress
from geoseg.segment import segment
from geoseg.settings import Settings
from geoseg.sights import shrunk
from geoseg.square import reach_of
from geoseg.vectorise import SQUARE

ROOT = Path(__file__).resolve().parents[1]
PIXEL_EDGES = {"simplify": 0.0, "min_area": 0.0, "min_hole": 0.0}
CONTRACT = {
    "mask.tif", "probability.tif", "buildings.gpkg", "project.qgz", "item.json", "report.html", "run.json",
}  # fmt: skip


class Heard(Progress):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def small(**settings: Any) -> dict[str, Any]:
    """Settings that cut a tiny mosaic into several blocks of several windows, in this process."""
    return {"cell": 64, "core": 128, "workers": 0, "progress": "none", **PIXEL_EDGES, **settings}


def rasters(out: Path) -> dict[str, np.ndarray]:
    """Return mask and probability with the validity of both."""
    found = {}
    for name in ("mask", "probability"):
        with rasterio.open(out / f"{name}.tif") as dataset:
            found[name] = dataset.read(1)
            found[f"{name}_valid"] = dataset.dataset_mask() > 0
    return found


def content(out: Path) -> list[Any]:
    """Return all that must not depend on how the work was done, ready to be compared."""
    arrays = rasters(out)
    table = gpd.read_file(out / "buildings.gpkg", layer="buildings")
    rows = table.drop(columns="geometry").to_numpy().tolist()
    return [{name: array.tobytes() for name, array in arrays.items()}, rows, shapely.to_wkb(table.geometry).tolist()]


def burnt(out: Path) -> np.ndarray:
    """Return the buildings drawn onto the pixels of the mask."""
    shapes = gpd.read_file(out / "buildings.gpkg", layer="buildings").geometry
    with rasterio.open(out / "mask.tif") as dataset:
        return rasterize(shapes, dataset.shape, transform=dataset.transform, dtype="uint8") > 0


def blocks_in(out: Path) -> dict[str, int]:
    """Return the stored blocks with the time of their last change."""
    return {str(path): path.stat().st_mtime_ns for path in out.glob(f"{FOLDER}/blocks/*/*.npz")}


def whole(model: Path, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the network's answer to the whole image at once."""
    loaded = load_model(model)
    return whole_image(Predictor.of(loaded, threads=1), values, valid, Scaling.of(loaded.card, str(values.dtype)))


@pytest.fixture(scope="module")
def reference(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the plainest run: what others are compared with."""
    out = tmp_path_factory.mktemp("reference")
    segment(city, out, model=str(narrow_model), **small())
    return out


# --- against the whole image


def test_everything_equals_one_pass_over_the_whole_image(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = segment(city, out, model=str(narrow_model), **small(halo="exact"))
    assert {path.name for path in out.iterdir()} - {FOLDER} == CONTRACT
    assert result.complete
    values, valid = city_arrays()
    chance = whole(narrow_model, values, valid)
    found = rasters(out)
    assert found["mask"].dtype == found["probability"].dtype == np.uint8

    np.testing.assert_array_equal(found["mask_valid"], valid)
    np.testing.assert_array_equal(found["probability_valid"], valid)
    assert not found["mask"][~valid].any()
    assert not found["probability"][~valid].any()

    # Float noise may move what lies within it of a rounding border, and nothing else.
    noise = 1e-4
    sure = valid & (np.abs(chance - 0.5) > noise)
    np.testing.assert_array_equal(found["mask"][sure], np.where(chance >= 0.5, 255, 0)[sure])
    sure_grey = valid & (np.abs(chance * 255 % 1 - 0.5) > 255 * noise)
    np.testing.assert_array_equal(found["probability"][sure_grey], np.rint(255 * chance)[sure_grey])
    assert sure.sum() > 0.99 * valid.sum()
    assert sure_grey.sum() > 0.9 * valid.sum()
    # The fixture is worth its name: both kinds of pixel are there, in buildings that pass seams and borders.
    assert 0.2 < (found["mask"][valid] > 0).mean() < 0.8

    np.testing.assert_array_equal(burnt(out), found["mask"] > 0)
    table = gpd.read_file(out / "buildings.gpkg", layer="buildings")
    assert len(table) == result.buildings > 100
    assert table.geometry.is_valid.all()
    assert table["id"].tolist() == list(range(1, len(table) + 1))
    assert result.area_m2 == pytest.approx(table["area_m2"].sum())

    run = json.loads((out / "run.json").read_text("utf-8"))
    assert run == json.loads(json.dumps(result.run))
    assert run["halo"] >= 184
    counts = run["counts"]
    assert (counts["blocks"], counts["blocks_computed"], counts["blocks_resumed"]) == (4, 4, 0)
    assert counts["valid_pixels"] == valid.sum()
    assert counts["building_pixels"] == (found["mask"] > 0).sum()
    assert run["model"]["sha256"] == hashlib.sha256(narrow_model.read_bytes()).hexdigest()
    assert run["failures"] == []


def test_probability_of_a_building_is_the_mean_of_its_pixels(reference: Path) -> None:
    with rasterio.open(reference / "probability.tif") as dataset:
        grey, transform = dataset.read(1), dataset.transform
    table = gpd.read_file(reference / "buildings.gpkg", layer="buildings")
    rows = list(zip(table.geometry, table["id"], strict=True))
    owner = rasterize(rows, grey.shape, transform=transform, dtype="int32")
    mean = np.bincount(owner.ravel(), grey.ravel() / 255.0)[1:] / np.bincount(owner.ravel())[1:]
    np.testing.assert_allclose(table["probability"], mean, rtol=0, atol=0.5001e-4)  # four decimals are written


def test_block_without_data_is_not_predicted(narrow_model: Path, tmp_path: Path) -> None:
    values = blobs((192, 192))
    valid = np.zeros((192, 192), dtype=bool)
    valid[5:60, 5:60] = True
    write_tile(tmp_path / "a.tif", values, valid=valid)
    out = tmp_path / "out"
    result = segment(tmp_path / "a.tif", out, model=str(narrow_model), **small(core=64))
    # One window, at the top left corner: 64 pixels and the halo of 32 on two sides.
    assert result.run["counts"]["forward_pixels"] == 96 * 96
    assert result.run["counts"]["valid_pixels"] == 55 * 55
    found = rasters(out)
    np.testing.assert_array_equal(found["mask_valid"], valid)
    assert not found["mask"][~valid].any()
    assert not burnt(out)[~valid].any()


def test_raster_with_no_valid_pixel_at_all(narrow_model: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", blobs((40, 50)), valid=np.zeros((40, 50), dtype=bool))
    out = tmp_path / "out"
    result = segment(tmp_path / "a.tif", out, model=str(narrow_model), **small())
    assert result.complete
    assert result.buildings == 0
    assert not rasters(out)["mask_valid"].any()
    assert {path.name for path in out.iterdir()} - {FOLDER} == CONTRACT


def test_one_pixel(narrow_model: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", np.full((3, 1, 1), 99, dtype=np.uint8))
    segment(tmp_path / "a.tif", tmp_path / "out", model=str(narrow_model), **small())
    assert rasters(tmp_path / "out")["mask"].shape == (1, 1)


# --- however the work is done, the result is the same


@pytest.mark.parametrize("core", [64, 256])
def test_block_size_changes_nothing(reference: Path, city: Path, narrow_model: Path, tmp_path: Path, core: int) -> None:
    segment(city, tmp_path, model=str(narrow_model), **small(core=core))
    assert content(tmp_path) == content(reference)


def test_block_size_changes_nothing_where_windows_fade(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    for core in (64, 256):
        segment(city, tmp_path / str(core), model=str(narrow_model), **small(core=core, taper=32))
    assert content(tmp_path / "64") == content(tmp_path / "256")


def test_taper_does_fade(reference: Path, city: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    # With no halo at all windows differ where they meet, so that fading must show.
    model = str(make_model("fading", halo=0))
    for taper in (0, 32):
        segment(city, tmp_path / str(taper), model=model, **small(halo=32, taper=taper))
    one, other = (rasters(tmp_path / name)["probability"] for name in ("0", "32"))
    far = np.ones(CITY_SHAPE, dtype=bool)
    for seam in (64, 128, 192):
        far[seam - 16 : seam + 16] = False
        far[:, seam - 16 : seam + 16] = False
    np.testing.assert_array_equal(one[far], other[far])
    assert np.abs(one.astype(int) - other).max() < 60


def test_two_worker_processes_change_nothing(reference: Path, city: Path, narrow_model: Path, tmp_path: Path) -> None:
    result = segment(city, tmp_path, model=str(narrow_model), **small(core=64, workers=2))
    assert content(tmp_path) == content(reference)
    assert result.run["workers"].startswith("2 CPU workers")
    assert result.run["counts"]["blocks_computed"] == 16 - result.run["counts"]["blocks_blank"]


def test_how_files_are_cut_changes_nothing(reference: Path, narrow_model: Path, tmp_path: Path) -> None:
    values, valid = city_arrays()
    write_tile(tmp_path / "merged.tif", values, valid=valid)
    segment(tmp_path / "merged.tif", tmp_path / "one", model=str(narrow_model), **small())
    assert content(tmp_path / "one") == content(reference)
    # Strips of 37 rows, given in no good order; the first one named is not the top left one.
    names = []
    for row in (74, 0, 222, 37, 148, 111, 185):
        part = slice(row, row + 37)
        names.append(write_tile(tmp_path / f"strip{row}.tif", values[:, part], (row, 0), valid[part]))
    segment(names, tmp_path / "many", model=str(narrow_model), **small())
    assert content(tmp_path / "many") == content(reference)


def test_a_run_that_broke_off_goes_on(
    reference: Path, city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.put
    stored = 0

    def full_disk(self: Journal, *args: Any) -> None:
        nonlocal stored
        if stored == 3:
            raise OutputError("the disk is full")
        stored += 1
        real(self, *args)

    monkeypatch.setattr(Journal, "put", full_disk)
    with pytest.raises(OutputError, match="full"):
        segment(city, tmp_path, model=str(narrow_model), **small())
    assert not CONTRACT & {path.name for path in tmp_path.iterdir()}
    before = blocks_in(tmp_path)
    assert len(before) == 3
    monkeypatch.undo()
    result = segment(city, tmp_path, model=str(narrow_model), **small())
    assert result.run["counts"]["blocks_resumed"] == 3
    assert result.run["counts"]["blocks_computed"] == 1
    assert blocks_in(tmp_path).items() >= before.items()
    assert content(tmp_path) == content(reference)


def test_a_stored_block_that_does_not_read_is_told_and_made_again(
    reference: Path, city: Path, narrow_model: Path, tmp_path: Path
) -> None:
    segment(city, tmp_path, model=str(narrow_model), **small())
    path = Path(sorted(blocks_in(tmp_path))[0])
    path.write_bytes(path.read_bytes()[:100])
    result = segment(city, tmp_path, model=str(narrow_model), **small())
    assert [failure["message"] for failure in result.failures] == ["its stored result does not read"]
    result = segment(city, tmp_path, model=str(narrow_model), **small())
    assert (result.complete, result.run["counts"]["blocks_computed"]) == (True, 1)
    assert content(tmp_path) == content(reference)


def test_a_killed_run_goes_on_to_the_same_bytes(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    def pipeline(out: str) -> list[str]:
        file = tmp_path / f"{out}.toml"
        file.write_text(
            f'[segment]\ninputs = "{city}"\nout = "{out}"\nmodel = "{narrow_model}"\n'
            'cell = 64\ncore = 64\nhalo = "exact"\nworkers = 0\n'
        )
        return [sys.executable, "-m", "geoseg.cli", "run", str(file)]

    options: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    victim = subprocess.Popen(pipeline("killed"), **options)
    while len(blocks_in(tmp_path / "killed")) < 3:
        assert victim.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    before = blocks_in(tmp_path / "killed")
    assert 3 <= len(before) < 16

    done = subprocess.run(pipeline("killed"), **options, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert blocks_in(tmp_path / "killed").items() >= before.items()
    counts = json.loads((tmp_path / "killed" / "run.json").read_text("utf-8"))["counts"]
    assert counts["blocks_resumed"] == len(before)
    assert counts["blocks_computed"] == 16 - counts["blocks_blank"] - len(before)

    result = segment(
        city, tmp_path / "calm", model=str(narrow_model), cell=64, core=64, halo="exact", workers=0, progress="none"
    )
    assert result.run["counts"]["blocks_computed"] == 16 - result.run["counts"]["blocks_blank"]
    for name in ("mask.tif", "probability.tif", "buildings.gpkg"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left - {FOLDER} == CONTRACT


# --- what starts afresh, and what does not


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    """A copy of a finished run's folder."""
    return Path(shutil.copytree(reference, tmp_path / "finished"))


def test_nothing_is_computed_twice(finished: Path, city: Path, narrow_model: Path) -> None:
    before = content(finished)
    heard = Heard()
    result = segment(city, finished, model=str(narrow_model), **{**small(), "progress": heard})
    assert result.run["counts"]["blocks_computed"] == 0
    assert "all 4 blocks are there" in heard.said[-1]
    assert content(finished) == before


def test_outlines_change_without_the_network(finished: Path, city: Path, narrow_model: Path) -> None:
    all_of_them = gpd.read_file(finished / "buildings.gpkg", layer="buildings")
    result = segment(city, finished, model=str(narrow_model), **small(min_area=20.0))
    assert result.run["counts"]["blocks_resumed"] == 4
    assert result.buildings == (all_of_them["area_m2"] >= 20.0).sum()
    assert 0 < result.buildings < len(all_of_them)


def test_simplified_outlines_stay_near_the_pixels(finished: Path, city: Path, narrow_model: Path) -> None:
    edges = gpd.read_file(finished / "buildings.gpkg", layer="buildings")
    segment(city, finished, model=str(narrow_model), **small(simplify=0.5))
    plain = gpd.read_file(finished / "buildings.gpkg", layer="buildings")
    assert plain.geometry.is_valid.all()
    assert len(plain) == len(edges)
    moved = shapely.hausdorff_distance(plain.geometry.to_numpy(), edges.geometry.to_numpy())
    # In metres: what squaring may do with a tolerance of one pixel of 0.5 m.
    assert 0 < moved.max() <= 0.5 * (reach_of(SQUARE) + 1.0)
    assert plain["area_m2"].sum() == pytest.approx(edges["area_m2"].sum(), rel=0.1)


def test_options_of_outlines_compute_no_block_again(finished: Path, city: Path, narrow_model: Path) -> None:
    made = []
    for options in (
        {"outline": "pixel"},
        {"outline": "subpixel"},
        {"square": False},
        {"outline": "subpixel", "simplify": 0.0},
    ):
        result = segment(city, finished, model=str(narrow_model), **small(**{"simplify": 0.5, **options}))
        assert result.run["counts"]["blocks_computed"] == 0
        assert result.run["settings"]["outline"] == options.get("outline", "pixel")
        layer = gpd.read_file(finished / "buildings.gpkg", layer="buildings")
        assert layer.geometry.is_valid.all()
        made.append(layer.geometry.to_wkb().tolist())
    assert all(one != other for one, other in itertools.combinations(made, 2))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"threshold": 0.625}, r"threshold was 0\.5, is 0\.625"),
        ({"core": 64}, r"tiling\.core was 128, is 64"),
        ({"range": (0.0, 200.0)}, r"scaling\.high was 255\.0, is 200\.0"),
        ({"fresh": True}, "--fresh was given"),
    ],
)
def test_what_blocks_depend_on_starts_afresh(
    finished: Path, city: Path, narrow_model: Path, change: dict[str, Any], why: str
) -> None:
    heard = Heard()
    result = segment(city, finished, model=str(narrow_model), **{**small(**change), "progress": heard})
    assert result.run["counts"]["blocks_resumed"] == 0
    assert len(blocks_in(finished)) == result.run["counts"]["blocks"] - result.run["counts"]["blocks_blank"]
    assert any(line.startswith("starting afresh: ") and re.search(why, line) for line in heard.said), heard.said


def test_another_model_starts_afresh(finished: Path, city: Path, make_model: Callable[..., Path]) -> None:
    heard = Heard()
    other = make_model("other", scale=0.5)
    result = segment(city, finished, model=str(other), **{**small(), "progress": heard})
    assert result.run["counts"]["blocks_resumed"] == 0
    assert any("starting afresh: model was" in line for line in heard.said)


def test_a_changed_input_starts_afresh(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(city, tmp_path / "city"))
    out = tmp_path / "out"
    segment(copy, out, model=str(narrow_model), **small())
    stat = (copy / "b.tif").stat()
    os.utime(copy / "b.tif", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    heard = Heard()
    result = segment(copy, out, model=str(narrow_model), **{**small(), "progress": heard})
    assert result.run["counts"]["blocks_resumed"] == 0
    assert any("b.tif has changed" in line for line in heard.said), heard.said
    (copy / "c.tif").unlink()
    heard = Heard()
    segment(copy, out, model=str(narrow_model), **{**small(), "progress": heard})
    assert any("c.tif is gone" in line for line in heard.said), heard.said


def test_one_run_at_a_time_in_a_folder(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(OutputError, match="another geoseg run"):
        segment(city, tmp_path, model=str(narrow_model), **small())


# --- what fails is told, the rest is written


@pytest.fixture
def broken(city: Path, tmp_path: Path) -> Path:
    """The city with its second tile cut off in the middle and a text that calls itself a raster."""
    folder = Path(shutil.copytree(city, tmp_path / "broken"))
    values, _ = city_arrays()
    tile = write_tile(folder / "b.tif", values[:, :150, 130:], (0, 130))
    with tile.open("r+b") as stream:
        stream.truncate(tile.stat().st_size * 2 // 3)
    (folder / "d.tif").write_text("this is no raster")
    return folder


def test_broken_inputs_are_told_and_the_rest_is_written(
    broken: Path, reference: Path, narrow_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    heard = Heard()
    result = segment(broken, out, model=str(narrow_model), **{**small(core=64), "progress": heard})
    assert not result.complete
    run = json.loads((out / "run.json").read_text("utf-8"))
    told = {Path(failure["path"]).name for failure in run["failures"]}
    assert told == {"b.tif", "d.tif"}
    assert any("d.tif" in line for line in heard.warned)
    assert {path.name for path in out.iterdir()} - {FOLDER} == CONTRACT

    found, whole_city = rasters(out), rasters(reference)
    lost = ~found["mask_valid"] & whole_city["mask_valid"]
    # Only the broken tile loses pixels, and not all of them; far from it nothing changes.
    assert lost[:150, 130:].any()
    assert not lost[:, :130].any()
    assert found["mask_valid"][:150, 130:].any()
    np.testing.assert_array_equal(found["probability"][:, :64], whole_city["probability"][:, :64])
    assert not found["mask"][lost].any()

    # Once more: only the blocks that lack something are tried again.
    lacking = sum(path.endswith(".partial.npz") for path in blocks_in(out))
    again = segment(broken, out, model=str(narrow_model), **small(core=64))
    assert 0 < lacking < 16
    assert again.run["counts"]["blocks_computed"] == lacking
    assert again.run["counts"]["blocks_resumed"] == 16 - again.run["counts"]["blocks_blank"] - lacking
    assert again.failures == result.failures


def test_failed_blocks_are_told_and_tried_again(
    reference: Path, city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.run_block

    def unlucky(job: Any, index: tuple[int, int]) -> Any:
        if index == (0, 1):
            raise RuntimeError("out of luck\nand more lines")
        return real(job, index)

    monkeypatch.setattr(module, "run_block", unlucky)
    result = segment(city, tmp_path, model=str(narrow_model), **small())
    assert result.failures == ({"block": "rows 0–127, columns 128–230", "message": "RuntimeError: out of luck"},)
    found = rasters(tmp_path)
    assert not found["mask_valid"][:128, 128:].any()
    ours, whole_city = found["mask"].copy(), rasters(reference)["mask"]
    ours[:128, 128:] = whole_city[:128, 128:]
    np.testing.assert_array_equal(ours, whole_city)
    np.testing.assert_array_equal(burnt(tmp_path), found["mask"] > 0)
    # It fails again: what is there from before is still written.
    again = segment(city, tmp_path, model=str(narrow_model), **small())
    assert (again.failures, again.buildings) == (result.failures, result.buildings)
    monkeypatch.undo()
    last = segment(city, tmp_path, model=str(narrow_model), **small())
    assert (last.complete, last.run["counts"]["blocks_computed"]) == (True, 1)
    assert content(tmp_path) == content(reference)


def test_a_run_without_hope_stops(
    city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def hopeless(_job: Any, index: tuple[int, int]) -> Any:
        calls.append(index)
        raise RuntimeError("no driver")

    monkeypatch.setattr(module, "run_block", hopeless)
    with pytest.raises(WorkerError, match=r"none of the first 8 blocks.*no driver"):
        segment(city, tmp_path, model=str(narrow_model), **small(core=64))
    assert len(calls) == module.HOPELESS


def test_errors_that_every_block_would_meet_are_raised(
    city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(_job: Any, _index: tuple[int, int]) -> Any:
        raise ModelError("not there")

    monkeypatch.setattr(module, "run_block", no_model)
    with pytest.raises(ModelError, match="not there"):
        segment(city, tmp_path, model=str(narrow_model), **small())


def test_no_usable_input(tmp_path: Path, narrow_model: Path) -> None:
    (tmp_path / "a.tif").write_text("text")
    with pytest.raises(InputError, match=r"a\.tif"):
        segment(tmp_path / "a.tif", tmp_path / "out", model=str(narrow_model), **small())
    with pytest.raises(InputError, match="no such file"):
        segment(tmp_path / "b.tif", tmp_path / "out", model=str(narrow_model), **small())


# --- settings


def test_area_of_interest(reference: Path, city: Path, narrow_model: Path, tmp_path: Path) -> None:
    with rasterio.open(reference / "mask.tif") as dataset:
        affine = dataset.transform
    triangle = shapely.Polygon([affine * corner for corner in ((10.2, 20.1), (90.7, 30.3), (40.1, 120.9))])
    # In another CRS, as a user would have it.
    gpd.GeoSeries([triangle], crs="EPSG:32633").to_crs("EPSG:4326").to_file(tmp_path / "aoi.gpkg")
    out = tmp_path / "out"
    result = segment(city, out, model=str(narrow_model), **small(core=64, aoi=str(tmp_path / "aoi.gpkg")))
    found, everything = rasters(out), rasters(reference)
    inside = rasterize([triangle], CITY_SHAPE, transform=affine, dtype="uint8") > 0
    expected = inside & everything["mask_valid"]
    assert (found["mask_valid"] != expected).sum() <= 2  # a centre on the line itself may fall on either side
    both = found["mask_valid"] & expected
    np.testing.assert_array_equal(found["probability"][both], everything["probability"][both])
    assert not found["mask"][~found["mask_valid"]].any()
    np.testing.assert_array_equal(burnt(out), found["mask"] > 0)
    assert result.run["counts"]["forward_pixels"] < 12 * 128 * 128


def test_gsd(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    # At 1.3 m: not the model's own, which is worth a warning.
    heard = Heard()
    result = segment(city, tmp_path, model=str(narrow_model), **{**small(gsd=1.3), "progress": heard})
    assert result.run["mosaic"]["ground_gsd_m"] == pytest.approx(1.3, rel=1e-3)
    found = rasters(tmp_path)
    assert found["mask"].shape == pytest.approx(np.array(CITY_SHAPE) * 0.5 / 1.3, abs=2)
    np.testing.assert_array_equal(burnt(tmp_path), found["mask"] > 0)
    assert sum("--gsd 0.5" in line for line in heard.warned) == 1


def test_sixteen_bits_need_a_range(narrow_model: Path, tmp_path: Path) -> None:
    eight = blobs((100, 90))
    write_tile(tmp_path / "eight.tif", eight)
    write_tile(tmp_path / "sixteen.tif", eight.astype(np.uint16) * 40)
    with pytest.raises(SettingError, match=r"uint16.*--range"):
        segment(tmp_path / "sixteen.tif", tmp_path / "out", model=str(narrow_model), **small())
    both = []
    for name, bounds in (("eight", None), ("sixteen", (0.0, 10200.0))):
        out = tmp_path / name
        segment(tmp_path / f"{name}.tif", out, model=str(narrow_model), **small(range=bounds))
        both.append(rasters(out)["probability"].astype(int))
    assert np.abs(both[0] - both[1]).max() <= 1


def test_bands(narrow_model: Path, tmp_path: Path) -> None:
    rgb = blobs((70, 80))
    write_tile(tmp_path / "rgb.tif", rgb)
    write_tile(tmp_path / "bgr.tif", np.concatenate([rgb[::-1], rgb[:1] // 2]), photometric="minisblack")
    segment(tmp_path / "rgb.tif", tmp_path / "one", model=str(narrow_model), **small())
    segment(tmp_path / "bgr.tif", tmp_path / "other", model=str(narrow_model), **small(bands=[3, 2, 1]))
    one, other = (rasters(tmp_path / name)["probability"] for name in ("one", "other"))
    np.testing.assert_array_equal(one, other)


def test_without_georeference(narrow_model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    from PIL import Image

    image = blobs((90, 110))
    Image.fromarray(np.moveaxis(image, 0, 2)).save(tmp_path / "a.png")
    heard = Heard()
    out = tmp_path / "out"
    result = segment(tmp_path / "a.png", out, model=str(narrow_model), **{**small(), "progress": heard})
    assert [line for line in heard.warned if "georeference" in line] == heard.warned
    assert len(heard.warned) == 1
    assert not [warning for warning in recwarn if "georef" in str(warning.message).lower()]
    with rasterio.open(tmp_path / "out" / "mask.tif", sharing=False) as dataset:
        mask = dataset.read(1)
    shapes = gpd.read_file(out / "buildings.gpkg", layer="buildings")
    assert pyogrio.read_info(out / "buildings.gpkg", layer="buildings")["crs"] is None or shapes.crs.is_engineering
    assert shapes["area_m2"].sum() == (mask > 0).sum() == result.area_m2
    # Rows count downwards in pixels and upwards on maps: either is fine, the outlines must fit the mask.
    flipped = shapes.geometry.scale(1, -1, origin=(0, 0)) if shapes.total_bounds[1] < 0 else shapes.geometry
    np.testing.assert_array_equal(rasterize(flipped, mask.shape, dtype="uint8"), mask > 0)


def test_geojson_without_crs_is_refused_before_the_work(narrow_model: Path, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", blobs((40, 40)), crs=None)
    out = tmp_path / "out"
    with pytest.raises(SettingError, match="GeoJSON"):
        segment(tmp_path / "a.tif", out, model=str(narrow_model), **small(format=("geojson",)))
    assert not blocks_in(out)


def test_every_vector_format(reference: Path, city: Path, narrow_model: Path, finished: Path) -> None:
    names = ("gpkg", "fgb", "parquet", "geojson")
    result = segment(city, finished, model=str(narrow_model), **small(format=names))
    assert [result.run["outputs"][f"buildings_{name}"] for name in names] == [f"buildings.{name}" for name in names]
    for name in names:
        read = gpd.read_parquet if name == "parquet" else gpd.read_file
        assert len(read(finished / f"buildings.{name}")) == result.buildings


def test_several_classes(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model("three", num_classes=3, classes=("ground", "building", "road"), threshold=0.4)
    values = blobs((90, 110))
    write_tile(tmp_path / "a.tif", values)
    segment(tmp_path / "a.tif", tmp_path / "out", model=str(model), **small(halo="exact"))
    chance = whole(model, values, np.ones((90, 110), dtype=bool))
    mask = rasters(tmp_path / "out")["mask"] > 0
    sure = np.abs(chance - 0.4) > 1e-4
    np.testing.assert_array_equal(mask[sure], (chance >= 0.4)[sure])
    assert 0.05 < mask.mean() < 0.95


def test_several_classes_without_a_building(city: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model("nameless", num_classes=2, classes=("sea", "land"))
    with pytest.raises(ModelError, match="none is called 'building'"):
        segment(city, tmp_path, model=str(model), **small())


def test_test_time_augmentation_equals_the_mean_of_eight_views(narrow_model: Path, tmp_path: Path) -> None:
    values = blobs((96, 96))
    write_tile(tmp_path / "a.tif", values)
    segment(tmp_path / "a.tif", tmp_path / "out", model=str(narrow_model), **small(cell=96, core=96, tta=True))
    valid = np.ones((96, 96), dtype=bool)
    mean = np.zeros((96, 96))
    for turns in range(4):
        for mirrored in (False, True):
            seen = np.rot90(values[..., ::-1] if mirrored else values, turns, (1, 2))
            answer = np.rot90(whole(narrow_model, seen, valid), -turns)
            mean += (answer[:, ::-1] if mirrored else answer) / 8
    assert np.abs(rasters(tmp_path / "out")["probability"] - 255 * mean).max() < 0.51


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "much"}, "must be a number"),
        ({"bands": (1, 2)}, "three band numbers"),
        ({"bands": (0, 1, 2)}, "from 1"),
        ({"range": (5.0, 5.0)}, "smaller first"),
        ({"halo": "wide"}, "halo is 'wide'"),
        ({"core": 0}, "core is 0"),
        ({"format": ("shp",)}, "shp: choose from gpkg"),
        ({"format": ()}, "choose from gpkg"),
        ({"progress": "loud"}, "loud"),
        ({"gsd": 0.0}, "gsd is 0"),
        ({"min_area": -1.0}, "min_area is -1"),
        ({"tresh": 0.5}, "unknown setting tresh"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Settings.of(wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"halo": 33}, "halo is 33 px"),
        ({"taper": 3}, "taper is 3 px"),
        ({"taper": 640}, "twice the halo"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"precision": "int3"}, "precision 'int3'"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one"),
    ],
)
def test_wrong_settings_that_a_run_notices(
    city: Path, narrow_model: Path, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        segment(city, tmp_path, model=str(narrow_model), **small(**wrong))


# --- the overview


def slow_average(unit: np.ndarray, valid: np.ndarray, factor: int) -> Iterator[tuple[int, int, int, float]]:
    """Yield band, row, column and mean of each square, one at a time."""
    for band in range(3):
        for row in range(0, unit.shape[1], factor):
            for col in range(0, unit.shape[2], factor):
                there = valid[row : row + factor, col : col + factor]
                known = unit[band, row : row + factor, col : col + factor][there]
                yield band, row // factor, col // factor, known.mean() if known.size else 0.0


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_overview_is_the_mean_of_valid_pixels(factor: int) -> None:
    rng = np.random.default_rng(3)
    unit = rng.random((3, 21, 16), dtype=np.float32)
    valid = rng.random((21, 16)) < 0.6
    valid[:8, :8] = False
    for dtype, low, high in (("float32", 0.0, 1.0), ("uint8", 0, 255), ("uint8", 20, 200), ("int16", -500, 9000)):
        values = (low + (high - low) * (1.2 * unit - 0.1)).clip(0 if dtype == "uint8" else -1000, 10000).astype(dtype)
        scaling = Scaling(low, high, (0, 0, 0), (1, 1, 1))
        small_image = shrunk(values, valid, scaling, factor)
        assert small_image.shape == (3, -(-21 // factor), -(-16 // factor))
        for band, row, col, mean in slow_average(scaling.unit(values), valid, factor):
            assert abs(small_image[band, row, col] - 255 * mean) <= 0.501


def test_overview_of_blocks_fits_together(city: Path, narrow_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERVIEW", 40 * 40)
    made = module.plan(city, Settings.of({"model": str(narrow_model), "cell": 64, "core": 64}))
    assert made.job.shrink == 8
    assert replace(made.job, threshold=0.1).shrink == 8
    assert open_mosaic([city])[0].shape == CITY_SHAPE


def test_what_workers_of_a_cluster_must_see(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "d.tif"
    other.parent.mkdir()
    shutil.copy(city / "a.tif", other)
    planned = module.plan([city, other], Settings(model=str(narrow_model)))
    assert module.files_needed(planned) == (str(narrow_model), str(city / "a.tif"), str(other))
    # A shipped model goes by its name: geoseg may lie somewhere else on the workers.
    planned = module.plan(city, Settings())
    assert not os.path.isabs(planned.job.model)
    assert module.files_needed(planned) == (str(city / "a.tif"),)
