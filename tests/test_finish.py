"""From finished blocks to files: rasters into polygons, counts, and the words at the end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import write_tile
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from scipy import ndimage

from geoseg.errors import InputError, SettingError
from geoseg.finish import area_text, summary, thousands
from geoseg.gallery import Tally, read_overview
from geoseg.journal import BlockRecord
from geoseg.segment import Result
from geoseg.sights import DETAIL, counted
from geoseg.tiles import Tiles
from geoseg.tiling import Rect, Tiling
from geoseg.vectorise import outline_rules, polygonize_file
from geoseg.write import writing_cog

EXACT: dict[str, Any] = {"min_area": 0.0, "min_hole": 0.0, "simplify": 0.0}


def one_band(path: Path, values: np.ndarray, valid: np.ndarray | None = None, scale: float | None = None) -> Path:
    write_tile(path, values[None], valid=valid)
    if scale is not None:
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = (scale,)
    return path


def drawn(path: Path, raster: Path) -> np.ndarray:
    shapes = gpd.read_file(path, layer="buildings").geometry
    with rasterio.open(raster) as dataset:
        if not len(shapes):
            return np.zeros(dataset.shape, dtype=bool)
        return rasterize(shapes, dataset.shape, transform=dataset.transform, dtype="uint8") > 0


# --- polygonize


def test_mask_becomes_its_connected_pixels(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((61, 83)) < 0.55
    raster = one_band(tmp_path / "m.tif", mask.astype(np.uint8))
    count = polygonize_file(raster, tmp_path / "b.gpkg", **EXACT)
    _, expected = ndimage.label(mask)
    assert count == expected
    np.testing.assert_array_equal(drawn(tmp_path / "b.gpkg", raster), mask)
    # Half a metre a pixel; UTM's scale near its middle line shortens lengths by a few parts in ten thousand.
    area = gpd.read_file(tmp_path / "b.gpkg", layer="buildings")["area_m2"].sum()
    assert area == pytest.approx(mask.sum() * 0.25, rel=2e-3)


def test_pixels_without_data_are_no_building(tmp_path: Path) -> None:
    mask = np.full((30, 40), 255, dtype=np.uint8)
    valid = np.ones((30, 40), dtype=bool)
    valid[10:20, 15:25] = False
    raster = one_band(tmp_path / "m.tif", mask, valid)
    assert polygonize_file(raster, tmp_path / "b.gpkg", **EXACT) == 1
    np.testing.assert_array_equal(drawn(tmp_path / "b.gpkg", raster), valid)


@pytest.mark.parametrize("threshold", [None, 0.25])
def test_probability_of_floats(tmp_path: Path, threshold: float | None) -> None:
    chance = ndimage.gaussian_filter(np.random.default_rng(2).random((50, 60)), 3).astype(np.float32)
    chance = (chance - chance.min()) / (chance.max() - chance.min())
    raster = one_band(tmp_path / "p.tif", chance)
    polygonize_file(raster, tmp_path / "b.gpkg", threshold=threshold, **EXACT)
    np.testing.assert_array_equal(drawn(tmp_path / "b.gpkg", raster), chance >= (threshold or 0.5))


def test_probability_with_a_scale(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    raster = one_band(tmp_path / "p.tif", grey, scale=1 / 255)
    polygonize_file(raster, tmp_path / "b.gpkg", threshold=102 / 255, **EXACT)
    np.testing.assert_array_equal(drawn(tmp_path / "b.gpkg", raster), grey >= 102)
    row = gpd.read_file(tmp_path / "b.gpkg", layer="buildings").iloc[0]
    assert row["probability"] == pytest.approx(np.arange(102, 256).mean() / 255, abs=1e-4)


def test_integers_are_a_probability_when_a_threshold_is_given(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    raster = one_band(tmp_path / "p.tif", values)
    polygonize_file(raster, tmp_path / "b.gpkg", threshold=0.75, **EXACT)
    np.testing.assert_array_equal(drawn(tmp_path / "b.gpkg", raster), values / 65535 >= 0.75)


def test_floats_that_are_no_number_are_no_building(tmp_path: Path) -> None:
    chance = np.full((20, 20), 0.9, dtype=np.float32)
    chance[3:9, 4:8] = np.nan
    raster = one_band(tmp_path / "p.tif", chance)
    assert polygonize_file(raster, tmp_path / "b.gpkg", **EXACT) == 1
    np.testing.assert_array_equal(drawn(tmp_path / "b.gpkg", raster), np.isfinite(chance))


def test_buildings_across_blocks_are_whole(tmp_path: Path) -> None:
    mask = np.zeros((2100, 2200), dtype=np.uint8)
    mask[2040:2060, 2030:2070] = 1  # over the corner where four blocks meet
    mask[10, :] = 1
    raster = one_band(tmp_path / "m.tif", mask, None)
    assert polygonize_file(raster, tmp_path / "b.gpkg", **EXACT) == 2
    boxes = sorted(gpd.read_file(tmp_path / "b.gpkg", layer="buildings").area)
    assert boxes == [20 * 40 * 0.25, 2200 * 0.25]


def test_small_buildings_and_holes(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:25, 5:25] = 1  # 100 m², with holes of 1 m² and 9 m²
    mask[8:10, 8:10] = 0
    mask[14:20, 14:20] = 0
    mask[30:33, 40:45] = 1  # 3.75 m²
    raster = one_band(tmp_path / "m.tif", mask)
    for options, buildings, holes in (
        ({}, 1, 1),
        ({"min_area": 3.0}, 2, 1),
        ({"min_hole": 0.5}, 1, 2),
        ({"min_hole": 20.0}, 1, 0),
        ({"min_area": 500.0}, 0, 0),
    ):
        count = polygonize_file(raster, tmp_path / "b.gpkg", **{"simplify": 0.0, **options})
        shapes = gpd.read_file(tmp_path / "b.gpkg", layer="buildings").geometry
        assert count == len(shapes) == buildings
        assert sum(len(shape.interiors) for shape in shapes) == holes


def test_outlines_are_simplified_in_metres(tmp_path: Path) -> None:
    rows, cols = np.ogrid[:200, :200]
    disc = ((rows - 100) ** 2 + (cols - 100) ** 2 < 80**2).astype(np.uint8)
    raster = one_band(tmp_path / "m.tif", disc)
    corners = []
    truth = None
    for tolerance in (0.0, 0.5, 3.0):
        polygonize_file(raster, tmp_path / "b.gpkg", simplify=tolerance)
        shape = gpd.read_file(tmp_path / "b.gpkg", layer="buildings").geometry[0]
        truth = truth or shape
        assert shape.is_valid
        assert shapely.hausdorff_distance(shape.exterior, truth.exterior, 0.1) <= 1.5 * tolerance + 1e-6
        corners.append(len(shape.exterior.coords))
    assert corners[0] > 3 * corners[1] > 3 * corners[2]
    polygonize_file(raster, tmp_path / "default.gpkg")  # one pixel, which is half a metre
    assert len(gpd.read_file(tmp_path / "default.gpkg", layer="buildings").geometry[0].exterior.coords) == corners[1]


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "parquet", "geojson"])
def test_the_ending_chooses_the_format(tmp_path: Path, ending: str) -> None:
    raster = one_band(tmp_path / "m.tif", np.ones((9, 9), dtype=np.uint8))
    out = tmp_path / f"b.{ending}"
    assert polygonize_file(raster, out) == 1
    read = gpd.read_parquet if ending == "parquet" else gpd.read_file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GeoPackage also has a layer of styles
        assert len(read(out)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"m.tif", out.name}


def test_wrong_use(tmp_path: Path) -> None:
    raster = one_band(tmp_path / "m.tif", np.ones((9, 9), dtype=np.uint8))
    with pytest.raises(SettingError, match=r"b\.shp: the ending must be one of"):
        polygonize_file(raster, tmp_path / "b.shp")
    with pytest.raises(SettingError, match="threshold is 2"):
        polygonize_file(raster, tmp_path / "b.gpkg", threshold=2.0)
    with pytest.raises(InputError, match=r"gone\.tif: no such file"):
        polygonize_file(tmp_path / "gone.tif", tmp_path / "b.gpkg")
    (tmp_path / "text.tif").write_text("text")
    with pytest.raises(InputError, match=r"text\.tif"):
        polygonize_file(tmp_path / "text.tif", tmp_path / "b.gpkg")
    assert {path.name for path in tmp_path.iterdir()} == {"m.tif", "text.tif"}


def test_a_raster_that_breaks_off_is_no_result(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (200, 200)).astype(np.uint8)
    raster = one_band(tmp_path / "m.tif", noise)
    with raster.open("r+b") as stream:
        stream.truncate(raster.stat().st_size // 2)
    with pytest.raises(InputError, match=r"m\.tif: .*unreadable"):
        polygonize_file(raster, tmp_path / "b.gpkg")
    assert {path.name for path in tmp_path.iterdir()} == {"m.tif"}


# --- counting blocks


def record(core: Rect, valid: np.ndarray, mask: np.ndarray, shrink: int, **facts: Any) -> BlockRecord:
    small = np.full((3, -(-core.height // shrink), -(-core.width // shrink)), 7, dtype=np.uint8)
    known = {
        "forward_pixels": 10,
        "device": "cpu",
        "precision": "fp32",
        "engine": "torch",
        "seconds": {"read": 0.5},
        "problems": [],
    }
    return BlockRecord(Tiles.none(), Tiles.none(), small, b"", b"", {**known, **counted(core, mask, valid), **facts})


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2, 8]), st.integers(0, 99))
def test_counts_add_up(height: int, width: int, shrink: int, seed: int) -> None:
    tiling = Tiling((height, width), 32, 0, 0, 32)
    rng = np.random.default_rng(seed)
    valid = rng.random((height, width)) < 0.7
    mask = valid & (rng.random((height, width)) < 0.5)
    tally = Tally.of(tiling, shrink)
    for block in tiling:
        at = block.core.slices(tiling.extent)
        tally.add(block.core, record(block.core, valid[at], mask[at], shrink))
    assert (tally.valid, tally.building) == (valid.sum(), mask.sum())
    assert tally.forward == 10 * len(tiling)
    assert tally.seconds == {"read": 0.5 * len(tiling)}
    assert (tally.overview == 7).all()


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_the_report_reads_the_probability_as_small_as_its_imagery(tmp_path: Path, shrink: int) -> None:
    shape = (1301, 1190)
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, shape, dtype=np.uint8)
    valid = np.ones(shape, bool)
    valid[300:700, 200:900] = False
    with writing_cog(tmp_path / "p.tif", GeoBox(shape, Affine.identity(), None), "probability") as raster:
        raster.write(Rect(0, 0, *shape), grey, valid)
    found, seen = read_overview(tmp_path / "p.tif", shrink)
    assert found.shape == seen.shape == tuple(-(-side // shrink) for side in shape)
    for row, col in [(0, 0), (40, 40), (found.shape[0] - 1, found.shape[1] - 1), (75, 50), (80, 100)]:
        square = np.s_[row * shrink : (row + 1) * shrink, col * shrink : (col + 1) * shrink]
        there = valid[square]
        assert seen[row, col] == there.any()
        mean = grey[square][there].mean() if there.any() else 0
        assert abs(int(found[row, col]) - mean) <= shrink.bit_length() - 0.5  # rounded at every halving


def test_a_block_from_before_with_another_overview_still_fits() -> None:
    tiling = Tiling((90, 70), 64, 0, 0, 64)
    tally = Tally.of(tiling, 2)
    for block in tiling:
        shape = block.core.shape
        before = record(block.core, np.ones(shape, bool), np.zeros(shape, bool), 8)
        before.thumbnail[:] = block.core.row0 + 1
        tally.add(block.core, before)
    assert (tally.overview[:, :32] == 1).all()
    assert (tally.overview[:, 32:] == 65).all()


def test_problems_are_told_once() -> None:
    tiling = Tiling((64, 64), 32, 0, 0, 32)
    tally = Tally.of(tiling, 1)
    problem = {"path": "a.tif", "block": [3, 4], "message": "broken"}
    nothing = np.zeros((32, 32), dtype=bool)
    for block in tiling:
        tally.add(block.core, record(block.core, nothing, nothing, 1, problems=[problem, {**problem, "block": None}]))
    assert sorted(item["message"] for item in tally.problems.values()) == [
        "block (3, 4) unreadable (broken)",
        "unreadable (broken)",
    ]
    assert {item["path"] for item in tally.problems.values()} == {"a.tif"}


def test_the_details_show_where_outlines_are() -> None:
    side = 4 * DETAIL
    core = Rect(0, 0, side, side)
    valid = np.ones((side, side), dtype=bool)
    mask = np.zeros((side, side), dtype=bool)
    mask[DETAIL : 2 * DETAIL, 3 * DETAIL :: 2] = True  # stripes: the most outline of all
    mask[3 * DETAIL + 5, 7] = True
    tally = Tally.of(Tiling((side, side), 512, 0, 0, side), 1)
    tally.add(core, record(core, valid, mask, 1))
    details = tally.details()
    assert details[0] == Rect(DETAIL, 3 * DETAIL, 2 * DETAIL, 4 * DETAIL)
    assert Rect(3 * DETAIL, 0, 4 * DETAIL, DETAIL) in details
    assert 1 < len(details) <= 4
    assert all(core.contains(rect) for rect in details)
    for i, one in enumerate(details):
        assert all(one & other is None for other in details[i + 1 :])


def test_no_details_without_data() -> None:
    tiling = Tiling((64, 64), 64, 0, 0, 64)
    tally = Tally.of(tiling, 1)
    nothing = np.zeros((64, 64), dtype=bool)
    tally.add(tiling.extent, record(tiling.extent, nothing, nothing, 1))
    assert tally.details() == []


def test_no_simplification_at_zero() -> None:
    assert outline_rules(1.0, 2.0, 0.0).simplify is None
    rules = outline_rules(1.0, 2.0, 1.5)
    assert (rules.min_area_m2, rules.min_hole_m2) == (1.0, 2.0)
    assert rules.simplify is not None


# --- the last words


def result_of(failures: list[dict[str, str]], **run: Any) -> Result:
    known = {
        "rate_px_s": 2_500_000,
        "counts": {"blocks_computed": 6},
        "timings": {"blocks": 12.3},
        "workers": "2 CPU workers",
        "mosaic": {"crs": "EPSG:32633"},
        "outputs": {"mask": "mask.tif", "buildings_gpkg": "buildings.gpkg", "buildings_fgb": "buildings.fgb"},
    }
    return Result(Path("out"), 12_431, 1_921_000.0, tuple(failures), {**known, **run})


def test_summary() -> None:
    first, second = summary(result_of([]))
    assert first == "6 blocks in 12 s, 2.5 Mpx/s on 2 CPU workers"
    assert second.startswith("12\u202f431 buildings, 1.92 km²")
    for name in ("buildings.gpkg", "buildings.fgb", "report.html"):
        assert str(Path("out") / name) in second


def test_summary_of_failures() -> None:
    few = [{"path": "a.tif", "message": "broken"}, {"path": "a.tif", "message": "more"}]
    lines = summary(result_of(few, rate_px_s=None))
    assert lines[1:3] == ["a.tif: broken", "a.tif: more"]
    assert lines[-1].startswith("1 input had errors: see ")
    assert "run.json" in lines[-1]
    many = [{"block": f"rows {i}", "message": "KilledWorker"} for i in range(7)]
    lines = summary(result_of(many))
    assert "… and 2 more" in lines
    assert lines[-1].startswith("7 inputs or blocks had errors")


def test_summary_of_deliveries() -> None:
    stored = {"server": "postgresql://me@db/gis", "table": "city.buildings", "rows": 1234}
    lines = summary(result_of([], postgis=stored, left_out={"item.json": "no reference system"}))
    assert lines[2:] == [
        "1\u202f234 rows in postgresql://me@db/gis, table city.buildings",
        "item.json: no reference system",
    ]
    refused = {"path": "PostGIS", "message": "no permission"}
    assert summary(result_of([refused]))[-1].startswith("PostGIS was not written: see ")
    both = summary(result_of([refused, {"path": "a.tif", "message": "broken"}]))
    assert both[-1].startswith("1 input had errors, and PostGIS was not written: see ")


def test_numbers_in_words() -> None:
    assert [thousands(n) for n in (0, 999, 1000, 1_234_567)] == ["0", "999", "1\u202f000", "1\u202f234\u202f567"]
    assert area_text(99_000, "EPSG:4326") == "99\u202f000 m²"
    assert area_text(123_456, "EPSG:4326") == "0.12 km²"
    assert area_text(1234, "no CRS") == "1\u202f234 px²"
