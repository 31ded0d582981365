"""COG rasters and atomic files, read back with rasterio and checked by rio-cogeo."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from geoseg.errors import GeosegError, OutputError, SettingError
from geoseg.tiling import Rect, Tiling
from geoseg.write import replacing, writing_cog

UTM = Affine(0.3, 0, 500_000, 0, -0.3, 3_300_000)


def scene(shape: tuple[int, int], kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    values = rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "mask":
        values = np.where(values > 127, 255, 0).astype(np.uint8)
    valid = rng.random(shape) > 0.2
    valid[: shape[0] // 3, : shape[1] // 3] = False
    return values, valid


def write(path: Path, geobox: GeoBox, kind: str, core: int) -> tuple[np.ndarray, np.ndarray]:
    values, valid = scene(geobox.shape, kind)
    tiling = Tiling(geobox.shape, cell=32, halo=0, core=core)
    with writing_cog(path, geobox, kind) as writer:
        for block in tiling:
            inside = block.core.slices(tiling.extent)
            writer.write(block.core, values[inside], valid[inside])
    return values, valid


@pytest.mark.parametrize("kind", ["mask", "probability"])
def test_comes_back_pixel_for_pixel_and_is_a_cog(tmp_path: Path, kind: str) -> None:
    geobox = GeoBox((1301, 1799), UTM, "EPSG:32614")
    path = tmp_path / f"{kind}.tif"
    values, valid = write(path, geobox, kind, core=512)
    is_cog, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert (is_cog, errors, warnings) == (True, [], [])
    with rasterio.open(path) as result:
        assert result.transform == UTM
        assert result.crs.to_epsg() == 32614
        assert result.dtypes == ("uint8",)
        assert result.nodata is None
        assert result.colorinterp == (ColorInterp.gray,)
        assert result.block_shapes == [(512, 512)]
        assert result.mask_flag_enums == ([MaskFlags.per_dataset],)
        assert result.descriptions == (kind,)
        np.testing.assert_array_equal(result.read(1), np.where(valid, values, 0))
        np.testing.assert_array_equal(result.read_masks(1), valid * np.uint8(255))
        for _, window in result.block_windows(1):
            rows, cols = window.toslices()
            np.testing.assert_array_equal(result.read_masks(1, window=window) > 0, valid[rows, cols])
        assert result.scales == (1.0 if kind == "mask" else pytest.approx(1 / 255),)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_overviews_average_valid_pixels_only(tmp_path: Path) -> None:
    path = tmp_path / "probability.tif"
    values, valid = write(path, GeoBox((1280, 1792), UTM, "EPSG:32614"), "probability", core=512)
    with rasterio.open(path) as result:
        assert result.overviews(1) == [2, 4]
    with rasterio.open(path, OVERVIEW_LEVEL=0) as half:
        mean, mask = half.read(1), half.read_masks(1) > 0
    quads = [(values[i::2, j::2], valid[i::2, j::2]) for i in (0, 1) for j in (0, 1)]
    count = sum(good.astype(int) for _, good in quads)
    total = sum(np.where(good, value, 0).astype(float) for value, good in quads)
    assert (count[mask] > 0).all()
    assert not mask[:213, :298].any()  # the third without data
    assert np.abs(mean[mask] - total[mask] / count[mask]).max() <= 0.5


def test_mask_overviews_hold_only_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    write(path, GeoBox((1100, 1100), UTM, "EPSG:32614"), "mask", core=512)
    with rasterio.open(path, OVERVIEW_LEVEL=0) as half:
        assert set(np.unique(half.read(1))) == {0, 255}
        assert set(np.unique(half.read_masks(1))) == {0, 255}


def test_bytes_do_not_depend_on_the_blocks(tmp_path: Path) -> None:
    geobox = GeoBox((700, 900), UTM, "EPSG:32614")
    files = []
    for core in (160, 512, 1024):
        path = tmp_path / f"core{core}" / "mask.tif"
        path.parent.mkdir()
        write(path, geobox, "mask", core)
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 600), width=st.integers(1, 600))
def test_any_size(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "probability.tif"
    values, valid = write(path, GeoBox((height, width), UTM, "EPSG:32614"), "probability", 256)
    with rasterio.open(path) as result:
        np.testing.assert_array_equal(result.read(1), np.where(valid, values, 0))
        np.testing.assert_array_equal(result.read_masks(1) > 0, valid)
        assert result.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


@pytest.mark.parametrize(
    "affine",
    [
        Affine(0.433, 0.25, 1000, 0.25, -0.433, 2000),
        Affine(0.5, 0, 1000, 0, 0.5, 2000),
    ],
    ids=["rotated", "south-up"],
)
def test_any_affine(tmp_path: Path, affine: Affine) -> None:
    path = tmp_path / "mask.tif"
    values, valid = write(path, GeoBox((70, 50), affine, "EPSG:2263"), "mask", 32)
    with rasterio.open(path) as result:
        assert result.transform.almost_equals(affine, 1e-9)
        assert result.crs.to_epsg() == 2263
        np.testing.assert_array_equal(result.read(1), np.where(valid, values, 0))


def test_without_georeference(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    values, valid = write(path, GeoBox((70, 50), Affine.identity(), None), "mask", 32)
    with pytest.warns(NotGeoreferencedWarning):
        result = rasterio.open(path)
    with result:
        assert result.crs is None
        np.testing.assert_array_equal(result.read(1), np.where(valid, values, 0))


def test_what_is_never_written_is_invalid_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    with writing_cog(path, GeoBox((20_000, 20_000), UTM, "EPSG:32614"), "mask") as writer:
        writer.write(Rect(5000, 5000, 5010, 5010), np.ones((10, 10), bool), np.ones((10, 10), bool))
    assert path.stat().st_size < 200_000
    with rasterio.open(path) as result:
        assert (result.read(1, window=Rect(4990, 4990, 5020, 5020).window) > 0).sum() == 100
        assert (result.read_masks(1, window=Rect(4990, 4990, 5020, 5020).window) > 0).sum() == 100
        assert not result.read_masks(1, window=Rect(15_000, 0, 15_600, 600).window).any()


def test_a_raster_without_any_valid_pixel(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    with writing_cog(path, GeoBox((600, 600), UTM, "EPSG:32614"), "mask"):
        pass
    with rasterio.open(path) as result:
        assert result.mask_flag_enums == ([MaskFlags.per_dataset],)
        assert not result.read_masks(1).any()
        assert not result.read(1).any()


@pytest.mark.parametrize(
    ("rect", "values", "valid", "words"),
    [
        (
            Rect(0, 0, 9, 11),
            np.zeros((9, 11), np.uint8),
            np.ones((9, 11), bool),
            "leaves the raster",
        ),
        (Rect(0, 0, 2, 3), np.zeros((3, 2), np.uint8), np.ones((2, 3), bool), r"not \(3, 2\)"),
        (Rect(0, 0, 2, 3), np.zeros((2, 3), np.float32), np.ones((2, 3), bool), "float32"),
        (Rect(0, 0, 2, 3), np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8), "must be bool"),
        (Rect(0, 0, 2, 3), np.full((2, 3), 7, np.uint8), np.ones((2, 3), bool), "not 7"),
    ],
)
def test_wrong_arrays_are_refused_and_leave_nothing(
    tmp_path: Path, rect: Rect, values: np.ndarray, valid: np.ndarray, words: str
) -> None:
    geobox = GeoBox((10, 10), UTM, "EPSG:32614")
    with (
        pytest.raises(SettingError, match=words),
        writing_cog(tmp_path / "mask.tif", geobox, "mask") as writer,
    ):
        writer.write(rect, values, valid)
    assert not list(tmp_path.iterdir())


def test_replacing_shows_nothing_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.name == path.name
        temporary.write_text("new")
        temporary.with_name("run.json-journal").write_text("left by a library")
        assert path.read_text() == "old"
        assert [one.name for one in tmp_path.iterdir() if not one.name.startswith(".")] == [path.name]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_keeps_the_old_file_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        print(temporary.write_text("half") // 0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    script = (
        "import os, sys; from geoseg.write import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert run.returncode == -9
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(path) as temporary:
        assert list(temporary.parent.iterdir()) == []
        temporary.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_bad_destinations_have_clear_words(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"), replacing(tmp_path / "no" / "x.tif"):
        pass
    with pytest.raises(OutputError, match="is a folder"), replacing(tmp_path):
        pass
    with pytest.raises(OutputError, match="nothing was written"), replacing(tmp_path / "x.tif"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_locked_folder_has_clear_words(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"), replacing(tmp_path / "x.tif"):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(("code", "words"), [("ENOSPC", "no space left"), ("EROFS", "no permission")])
def test_errors_of_the_disk_have_clear_words(tmp_path: Path, code: str, words: str) -> None:
    path = tmp_path / "x.tif"
    number = getattr(errno, code)
    with pytest.raises(OutputError, match=words), replacing(path) as temporary:
        raise OSError(number, os.strerror(number), str(temporary))
    assert not list(tmp_path.iterdir())


def test_errors_of_inputs_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "x.tif"):
        (tmp_path / "input.tif").read_bytes()
    assert not isinstance(caught.value, GeosegError)


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_full_disk_never_leaves_a_broken_raster(tmp_path: Path) -> None:
    """Noise of 1 MB, written where no file may grow beyond a limit."""
    script = """
import resource, sys, numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from geoseg.errors import OutputError
from geoseg.tiling import Rect
from geoseg.write import writing_cog
noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), dtype=np.uint8)
geobox = GeoBox(noise.shape, Affine.identity(), None)
for limit in (300_000, 1_000_000, 1_130_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with writing_cog(sys.argv[1], geobox, "probability") as writer:
            writer.write(Rect(0, 0, 1000, 1000), noise, np.ones(noise.shape, bool))
    except OutputError:
        print(limit)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.tif")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.split() == ["300000", "1000000", "1130000"]
    assert not list(tmp_path.iterdir())
