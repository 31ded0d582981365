"""The synthetic city: one drawing however it is cut, and a truth that is exact."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from geoseg.errors import OutputError, SettingError
from geoseg.sample import City, SamplePaths, buildings, draw, write_sample
from geoseg.sample.plans import layout
from geoseg.tiling import Rect

WHOLE = Rect(-90, -150, 560, 600)
"""Passes the origin of the lattice and, with it, negative rows and columns; more than one chunk."""


@lru_cache(maxsize=1)
def whole() -> tuple[np.ndarray, np.ndarray]:
    return draw(WHOLE, City(3))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SamplePaths:
    return write_sample(tmp_path_factory.mktemp("sample"), size=330, grid=(2, 2), seed=7)


def stitched(paths: tuple[Path, ...], columns: int = 2) -> np.ndarray:
    tiles = []
    for path in paths:
        with rasterio.open(path) as file:
            tiles.append(file.read())
    rows = [np.concatenate(tiles[k : k + columns], 2) for k in range(0, len(tiles), columns)]
    return np.concatenate(rows, 1)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_window_equals_the_crop_of_the_whole(data: st.DataObject) -> None:
    row0 = data.draw(st.integers(WHOLE.row0, WHOLE.row1 - 1))
    col0 = data.draw(st.integers(WHOLE.col0, WHOLE.col1 - 1))
    row1 = data.draw(st.integers(row0 + 1, min(row0 + 200, WHOLE.row1)))
    col1 = data.draw(st.integers(col0 + 1, min(col0 + 200, WHOLE.col1)))
    rect = Rect(row0, col0, row1, col1)
    rgb, mask = draw(rect, City(3))
    all_rgb, all_mask = whole()
    np.testing.assert_array_equal(rgb, all_rgb[(slice(None), *rect.slices(WHOLE))])
    np.testing.assert_array_equal(mask, all_mask[rect.slices(WHOLE)])


def test_a_drawing_has_the_promised_types() -> None:
    rgb, mask = whole()
    assert (rgb.dtype, rgb.shape) == (np.uint8, (3, *WHOLE.shape))
    assert (mask.dtype, mask.shape) == (bool, WHOLE.shape)


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib; from geoseg.sample import City, draw; from geoseg.tiling import Rect;"
        "a, m = draw(Rect(5, 7, 105, 167), City(12));"
        "print(hashlib.sha256(a.tobytes() + m.tobytes()).hexdigest())"
    )
    rgb, mask = draw(Rect(5, 7, 105, 167), City(12))
    here = hashlib.sha256(rgb.tobytes() + mask.tobytes()).hexdigest()
    root = Path(__file__).resolve().parents[1]
    env = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(root)}
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert there.stdout.decode().strip() == here


def test_a_layout_does_not_depend_on_what_was_laid_out_before() -> None:
    first = [b.polygon.wkb for b in layout(City(5), 2, -3).buildings]
    layout.cache_clear()
    for row in range(-1, 2):
        layout(City(6), row, row)
    assert [b.polygon.wkb for b in layout(City(5), 2, -3).buildings] == first


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_mask_is_the_rasterised_outlines(seed: int) -> None:
    rect, city = Rect(40, 60, 440, 460), City(seed)
    _, mask = draw(rect, city)
    outlines = [b.polygon for b in buildings(rect, city)]
    x, y = np.meshgrid(np.arange(60, 460) + 0.5, np.arange(40, 440) + 0.5)
    expected = np.zeros(rect.shape, bool)
    for outline in outlines:
        expected |= shapely.contains_xy(outline, x, y)
    np.testing.assert_array_equal(mask, expected)
    assert all(outline.intersects(shapely.box(60, 40, 460, 440)) for outline in outlines)


def test_the_tiles_on_disk_match_the_outlines_on_disk(sample: SamplePaths) -> None:
    outlines = gpd.read_file(sample.buildings, layer="buildings").geometry
    for path in sample.masks:
        with rasterio.open(path) as file:
            truth = file.read(1)
            burnt = rasterize(outlines, out_shape=file.shape, transform=file.transform, default_value=255)
        np.testing.assert_array_equal(truth, burnt)


def test_the_tiles_are_adjacent_and_make_one_drawing(sample: SamplePaths) -> None:
    rgb, mask = draw(Rect(0, 0, 660, 660), City(7))
    np.testing.assert_array_equal(stitched(sample.masks)[0], mask * np.uint8(255))
    lossy = np.abs(stitched(sample.images).astype(int) - rgb)
    assert lossy.mean() < 8
    assert [p.name for p in sample.images] == [
        "tile_0_0.tif",
        "tile_0_1.tif",
        "tile_1_0.tif",
        "tile_1_1.tif",
    ]
    with rasterio.open(sample.images[0]) as file:
        first = file.transform
    for k, (image, mask_path) in enumerate(zip(sample.images, sample.masks, strict=True)):
        row, col = divmod(k, 2)
        with rasterio.open(image) as file, rasterio.open(mask_path) as truth:
            assert file.crs.to_epsg() == truth.crs.to_epsg() == 32633
            assert file.transform == truth.transform
            assert (file.count, file.dtypes[0], file.shape) == (3, "uint8", (330, 330))
            assert (truth.count, truth.dtypes[0]) == (1, "uint8")
            t = file.transform
            assert (t.a, t.b, t.d, t.e) == (0.3, 0.0, 0.0, -0.3)
            assert t.c == pytest.approx(first.c + col * 99, abs=1e-6)
            assert t.f == pytest.approx(first.f - row * 99, abs=1e-6)


def test_the_outlines_are_a_clean_layer(sample: SamplePaths) -> None:
    frame = gpd.read_file(sample.buildings, layer="buildings")
    assert pyogrio.list_layers(sample.buildings)[:, 0].tolist() == ["buildings"]
    assert frame.crs.to_epsg() == 32633
    assert frame["id"].tolist() == list(range(1, len(frame) + 1))
    assert frame.geometry.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"}
    np.testing.assert_allclose(frame["area_m2"], frame.area, rtol=1e-6)
    assert frame["area_m2"].min() > 1
    together = shapely.union_all(frame.geometry.values).area
    assert together == pytest.approx(frame.area.sum(), rel=1e-9)
    pairs = shapely.STRtree(frame.geometry).query(frame.geometry, predicate="intersects")
    assert (pairs[0] == pairs[1]).all()
    with rasterio.open(sample.images[0]) as file:
        seam = file.bounds.right
    bounds = frame.bounds
    assert ((bounds.minx < seam) & (bounds.maxx > seam)).any()


def test_buildings_come_in_many_shapes() -> None:
    rect = Rect(0, 0, 2000, 2000)
    found = [b for seed in (0, 1, 2) for b in buildings(rect, City(seed))]
    corners = [len(b.polygon.exterior.coords) - 1 for b in found]
    assert any(b.polygon.interiors for b in found)
    assert {4, 6, 8} <= set(corners)
    assert 32 in corners
    assert {"house", "row", "hall", "court", "small", "flats", "round"} <= {b.kind for b in found}
    assert {"gable", "hip", "flat", "shed", "round"} <= {p.roof for b in found for p in b.parts}


@pytest.mark.parametrize("seed", range(3))
def test_a_plausible_share_is_built_up(seed: int) -> None:
    rect = Rect(0, 0, 2000, 2000)
    frame = shapely.box(0, 0, 2000, 2000)
    area = sum(b.polygon.intersection(frame).area for b in buildings(rect, City(seed)))
    assert 0.08 < area / frame.area < 0.45


def test_image_and_truth_are_aligned() -> None:
    """The image changes most exactly where the truth does."""
    rgb, mask = whole()
    light = rgb.astype(float).mean(0)
    change = np.abs(light[:, 1:] - light[:, :-1])[:, 8:-8]
    border = mask[:, 1:] != mask[:, :-1]
    width = border.shape[1]
    strength = {k: change[border[:, 8 + k : width - 8 + k]].mean() for k in range(-6, 7)}
    assert max(strength, key=strength.__getitem__) == 0
    assert strength[0] > 1.5 * change.mean()


def test_other_seeds_and_pixel_sizes_give_other_cities() -> None:
    rect = Rect(0, 0, 64, 64)
    drawings = [draw(rect, city)[0] for city in (City(0), City(1), City(0, 0.5))]
    assert not any((drawings[a] == drawings[b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    def digest(root: Path) -> dict[str, str]:
        files = sorted(p for p in root.rglob("*") if p.is_file())
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    for folder in ("a", "b", "a"):
        write_sample(tmp_path / folder, size=64, grid=(1, 2), seed=4)
    first = digest(tmp_path / "a")
    assert first == digest(tmp_path / "b")
    assert set(first) == {
        "README.md",
        "buildings.gpkg",
        *(f"{kind}/tile_0_{c}.tif" for kind in ("images", "truth") for c in (0, 1)),
    }
    assert "CC0" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


def test_progress_rises_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_sample(tmp_path, size=33, grid=(2, 1), progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]


def test_a_city_without_buildings_in_view_is_still_complete(tmp_path: Path) -> None:
    paths = write_sample(tmp_path, size=32, grid=(1, 1), seed=0)
    frame = gpd.read_file(paths.buildings, layer="buildings")
    assert {"id", "area_m2", "kind"} <= set(frame.columns)
    with rasterio.open(paths.masks[0]) as file:
        assert bool(file.read(1).any()) == bool(len(frame))


def test_an_interrupted_sample_leaves_no_half_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(rect: Rect, city: City) -> tuple[np.ndarray, np.ndarray]:
        if rect.row0 > 0:
            raise KeyboardInterrupt
        return draw(rect, city)

    monkeypatch.setattr("geoseg.sample.files.draw", stop)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path, size=600, grid=(1, 1))  # the second strip is never drawn
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("settings", "quoted"),
    [
        ({"size": 31}, "31"),
        ({"size": 0}, "not 0"),
        ({"grid": (0, 2)}, "0x2"),
        ({"grid": (2, -1)}, "2x-1"),
        ({"seed": -1}, "-1"),
        ({"gsd": 0.0}, "0.0"),
        ({"gsd": float("nan")}, "nan"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, object], quoted: str) -> None:
    with pytest.raises(SettingError, match=quoted):
        write_sample(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_tiles_of_another_grid_are_not_mixed_in(tmp_path: Path) -> None:
    write_sample(tmp_path, size=32, grid=(1, 2))
    with pytest.raises(OutputError, match=r"tile_0_1\.tif"):
        write_sample(tmp_path, size=32, grid=(1, 1))


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(OutputError, match="out"):
        write_sample(tmp_path / "out", size=32, grid=(1, 1))
