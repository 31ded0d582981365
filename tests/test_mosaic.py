"""The mosaic against rasterio's own merging and numpy's padding: overlaps, edges, areas of interest, identity."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.merge import merge
from rasterio.warp import transform as transform_points
from rasters import NORTH_UP, UTM, noise, only, write

from geoseg.errors import InputError, SettingError
from geoseg.mosaic import Mosaic, open_mosaic, reflect
from geoseg.raster import gdal_env
from geoseg.tiling import Rect


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"bands": (0, 1, 2)}, "bands"),
        ({"gsd": -1.0}, "gsd"),
        ({"gsd": float("nan")}, "gsd"),
        ({"resampling": "magic"}, "resampling"),
    ],
)
def test_wrong_options(tmp_path: Path, option: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        open_mosaic([write(tmp_path / "a.tif", noise((3, 4, 4)))], **option)


def grid_of_files(folder: Path, rng: np.random.Generator, n: int = 5) -> list[Path]:
    """Overlapping files on one grid, some with holes, some reaching to negative offsets."""
    paths = []
    for number in range(n):
        row, col = (int(v) for v in rng.integers(-40, 40, 2))
        shape = tuple(int(v) for v in rng.integers(5, 60, 2))
        paths.append(
            write(
                folder / f"t{number}.tif",
                rng.integers(1, 255, (3, *shape)).astype("uint8"),
                transform=NORTH_UP @ Affine.translation(col, row),
                mask=rng.random(shape) > 0.3 if number % 2 else None,
            )
        )
    return paths


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_equal_rasterio_merge(tmp_path: Path, seed: int) -> None:
    paths = grid_of_files(tmp_path, np.random.default_rng(seed))
    mosaic, problems = open_mosaic(paths)
    assert problems == []
    expected, transform = merge([str(path) for path in paths], masked=True, method="first")
    assert mosaic.shape == expected.shape[1:]
    assert mosaic.transform.almost_equals(transform)
    whole = mosaic.read(mosaic.extent)
    mask = np.ma.getmaskarray(expected)
    assert np.array_equal(whole.valid, ~mask[0])
    assert np.array_equal(whole.values, expected.filled(0))
    height, width = mosaic.shape
    rng = np.random.default_rng(seed)
    for _ in range(5):
        row, col = int(rng.integers(height)), int(rng.integers(width))
        rect = Rect(row, col, int(rng.integers(row, height)) + 1, int(rng.integers(col, width)) + 1)
        rows, cols = rect.slices(mosaic.extent)
        part = mosaic.read(rect)
        assert np.array_equal(part.values, whole.values[:, rows, cols])
        assert np.array_equal(part.valid, whole.valid[rows, cols])
        assert mosaic.has_data(rect) == part.valid.any()


def test_read_outside_is_wrong_use(tmp_path: Path) -> None:
    mosaic = only(write(tmp_path / "a.tif", noise((3, 9, 8))))
    with pytest.raises(SettingError, match="outside"):
        mosaic.read(Rect(0, 0, 10, 8))


def test_many_files_are_found_by_an_index(tmp_path: Path) -> None:
    mosaic = only(write(tmp_path / "a.tif", noise((3, 9, 8))))
    places = [Rect(r * 9, c * 8, r * 9 + 9, c * 8 + 8) for r in range(100) for c in range(100)]
    sources = tuple(replace(mosaic.sources[0], rect=place, native=place) for place in places)
    many = replace(mosaic, sources=sources)
    found = list(many.members_in(0, Rect(8, 7, 10, 9)))
    assert [(s.rect.row0, s.rect.col0) for s, _ in found] == [(0, 0), (0, 8), (9, 0), (9, 8)]
    assert [part.area for _, part in found] == [1, 1, 1, 1]
    assert len(list(many.members_in(0, Rect(0, 0, 9, 8)))) == 1


def test_real_town_equals_rasterio_merge(shared_data: Path) -> None:
    folder = shared_data / "scenes" / "banepa"
    with gdal_env():
        mosaic, problems = open_mosaic([folder])
        assert problems == []
        assert len(mosaic.sources) == 6
        assert sorted(mosaic.shape) == [8704, 11264]
        assert [layer.aligned for layer in mosaic.layers] == [True]
        assert mosaic.ground_gsd == pytest.approx(0.132, abs=0.001)
        # Across the corner where four files meet.
        corner = mosaic.sources[0].rect
        rect = Rect(corner.row1 - 333, corner.col1 - 411, corner.row1 + 222, corner.col1 + 517)
        got = mosaic.read(rect)
        x0, y0 = mosaic.transform @ (rect.col0, rect.row0)
        x1, y1 = mosaic.transform @ (rect.col1, rect.row1)
        paths = [source.path for source in mosaic.sources]
        expected, _ = merge(paths, bounds=(x0, y1, x1, y0))
        valid = np.zeros(rect.shape, bool)
        for path in paths:  # rasterio.merge takes black for nodata, so the masks are laid out by hand
            with rasterio.open(path) as dataset:
                col, row = (round(v) for v in ~mosaic.transform @ (dataset.transform.c, dataset.transform.f))
                part = rect & Rect(row, col, row + dataset.height, col + dataset.width)
                if part:
                    window = Rect(part.row0 - row, part.col0 - col, part.row1 - row, part.col1 - col).window
                    valid[part.slices(rect)] = dataset.dataset_mask(window=window) > 0
    assert np.array_equal(got.valid, valid)
    assert np.array_equal(got.values, expected * valid)


@given(length=st.integers(1, 12), before=st.integers(0, 30), after=st.integers(0, 30))
def test_reflect_is_numpys(length: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    assert np.array_equal(reflect(np.arange(-before, length + after), length), expected)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40))
def test_padded_equals_numpy_pad(tmp_path: Path, data: st.DataObject, height: int, width: int) -> None:
    values = noise((3, height, width), seed=height * 100 + width)
    mask = noise((height, width), seed=3) > 60
    path = write(tmp_path / f"{height}x{width}.tif", values, mask=mask)
    mosaic = only(path)
    pad = ((0, 70), (0, 70))
    whole = np.pad(values * mask, ((0, 0), *pad), mode="reflect")
    row0, col0 = data.draw(st.integers(0, height + 30)), data.draw(st.integers(0, width + 30))
    rect = Rect(
        row0,
        col0,
        data.draw(st.integers(row0 + 1, height + 70)),
        data.draw(st.integers(col0 + 1, width + 70)),
    )
    got = mosaic.read_padded(rect)
    rows, cols = rect.slices(Rect(0, 0, 1, 1))
    assert got.rect == rect
    assert np.array_equal(got.values, whole[:, rows, cols])
    assert np.array_equal(got.valid, np.pad(mask, pad, mode="reflect")[rows, cols])


AREA = shapely.Polygon(
    [(500003.03, 3999990.11), (500030.17, 3999998.05), (500028.02, 3999975.13), (500010.08, 3999972.01)],
    [[(500014.07, 3999985.06), (500020.03, 3999985.02), (500017.09, 3999980.04)]],
)


def centres_inside(mosaic: Mosaic, area: shapely.Geometry) -> np.ndarray:
    height, width = mosaic.shape
    y, x = np.mgrid[:height, :width] + 0.5
    gx, gy = mosaic.transform @ (x.ravel(), y.ravel())
    return shapely.contains_xy(area, gx, gy).reshape(height, width)


@pytest.mark.parametrize(
    ("crs", "suffix"),
    [(UTM, "gpkg"), ("EPSG:4326", "geojson"), ("EPSG:3857", "shp"), (None, "gpkg")],
)
def test_area_of_interest(tmp_path: Path, crs: str | None, suffix: str) -> None:
    frame = gpd.GeoDataFrame(geometry=[AREA], crs=UTM)
    frame = frame.to_crs(crs) if crs else frame.set_crs(None, allow_override=True)
    frame.to_file(tmp_path / f"area.{suffix}", engine="pyogrio")
    path = write(tmp_path / "a.tif", noise((3, 80, 90)))
    mosaic = only(path, aoi=tmp_path / f"area.{suffix}")
    expected = centres_inside(mosaic, AREA)
    got = mosaic.inside_aoi(mosaic.extent)
    # Reprojected and stored coordinates move by less than a hundredth of a pixel.
    assert (got != expected).sum() <= (0 if crs in (UTM, None) else 2)
    for rect in (Rect(0, 0, 20, 20), Rect(20, 20, 33, 47), Rect(25, 25, 26, 26)):
        rows, cols = rect.slices(mosaic.extent)
        assert np.array_equal(mosaic.inside_aoi(rect), got[rows, cols])
        assert mosaic.has_data(rect) == got[rows, cols].any()
    assert only(path).inside_aoi(Rect(0, 0, 3, 3)).all()


def test_area_edges_are_densified(tmp_path: Path) -> None:
    # A triangle over half a continent: its long straight edge in degrees is a curve in the images' CRS.
    area = shapely.Polygon([(-110, 30.0), (-88, 42.27), (-88, 30)])
    gpd.GeoDataFrame(geometry=[area], crs="EPSG:4326").to_file(tmp_path / "area.gpkg")
    values = noise((3, 50, 50))
    path = write(tmp_path / "a.tif", values, transform=Affine(20, 0, 499500, 0, -20, 4_000_500))
    lon, lat = -99.0, 30 + 11 * 12.27 / 22
    x, y = transform_points("EPSG:4326", UTM, [lon], [lat])
    path = write(tmp_path / "a.tif", values, transform=Affine(20, 0, x[0] - 500, 0, -20, y[0] + 500))
    mosaic = only(path, aoi=tmp_path / "area.gpkg")
    rows, cols = np.mgrid[:50, :50] + 0.5
    gx, gy = mosaic.transform @ (cols.ravel(), rows.ravel())
    lon_, lat_ = transform_points(UTM, "EPSG:4326", gx.tolist(), gy.tolist())
    expected = shapely.contains_xy(area, lon_, lat_).reshape(50, 50)
    assert 0.3 < expected.mean() < 0.7
    assert (mosaic.inside_aoi(mosaic.extent) != expected).sum() <= 2


def test_area_of_interest_complaints(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((3, 80, 90)))
    pixels = write(tmp_path / "p.tif", noise((3, 80, 90)), crs=None, transform=None)
    (tmp_path / "text.geojson").write_text("hello")
    gpd.GeoDataFrame(geometry=[shapely.Point(500003, 3999990)], crs=UTM).to_file(tmp_path / "pt.gpkg")
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_file(tmp_path / "far.gpkg")
    for image, area, words in (
        (path, "gone.gpkg", "no such file"),
        (path, "text.geojson", "cannot be read"),
        (path, "pt.gpkg", "no polygons"),
        (path, "far.gpkg", "outside the images"),
        (pixels, "far.gpkg", "have no CRS"),
    ):
        with pytest.raises(InputError, match=words):
            open_mosaic([image], aoi=tmp_path / area)


def test_area_in_pixels_without_georeference(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tif", noise((3, 30, 40)), crs=None, transform=None)
    frame = gpd.GeoDataFrame(geometry=[shapely.box(10, 5, 20, 15)], crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame.to_file(tmp_path / "area.gpkg")
    expected = np.zeros((30, 40), bool)
    expected[5:15, 10:20] = True
    mosaic = only(path, aoi=tmp_path / "area.gpkg")
    assert np.array_equal(mosaic.inside_aoi(mosaic.extent), expected)


def test_pickle_round_trip(tmp_path: Path) -> None:
    paths = grid_of_files(tmp_path, np.random.default_rng(0))
    mosaic, _ = open_mosaic(paths)
    before = mosaic.read(mosaic.extent)
    text = pickle.dumps(mosaic)
    again = pickle.loads(text)
    assert again == mosaic
    assert b"STRtree" not in text
    assert np.array_equal(again.read(again.extent).values, before.values)
    assert again.fingerprint() == mosaic.fingerprint()


def test_fingerprint_changes_with_what_matters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((5, 20, 20)))
    gpd.GeoDataFrame(geometry=[AREA], crs=UTM).to_file(tmp_path / "area.gpkg")
    first = only(path)
    assert json.loads(json.dumps(first.identity())) == first.identity()
    prints = {
        first.fingerprint(),
        only(path, bands=(3, 2, 1)).fingerprint(),
        only(path, gsd=1.0).fingerprint(),
        only(path, aoi=tmp_path / "area.gpkg").fingerprint(),
        only(path, resampling="cubic").fingerprint(),
    }
    os.utime(path, ns=(1, 1))
    prints.add(only(path).fingerprint())
    assert len(prints) == 6
