"""Vector files, read back by GDAL, geopandas, pyarrow, DuckDB, SQLite and a JSON parser."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from affine import Affine
from pyproj import CRS, Transformer
from shapely import Polygon, box
from shapely.geometry import shape

from geoseg.errors import InputError, OutputError, SettingError
from geoseg.footprints import Footprints, finish
from geoseg.formats import FORMATS, check_format, format_of
from geoseg.spool import Outlines, polygons_array
from geoseg.style import footprint_qml
from geoseg.vector import write_buildings, write_formats

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_300_000)
CRS_NAME = "EPSG:32614"
ATTRIBUTES = ["id", "area_m2", "perimeter_m", "probability"]


def outlines(count: int = 10, size: int = 4) -> Iterator[Outlines]:
    """Squares of 8 × 8 pixels in a row, each third with a courtyard."""
    polygons = [
        Polygon(
            box(20 * i, 0, 20 * i + 8, 8).exterior,
            [box(20 * i + 2, 2, 20 * i + 6, 6).exterior] if i % 3 == 0 else [],
        )
        for i in range(count)
    ]
    for start in range(0, count, size):
        part = polygons_array(polygons[start : start + size])
        pixels = shapely.area(part).astype(np.int64)
        yield Outlines(part, pixels, pixels * 102)


def footprints(count: int = 10) -> list[Footprints]:
    return list(finish(outlines(count), UTM, CRS_NAME))


def joined(batches: list[Footprints]) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(
        {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in ATTRIBUTES},
        geometry=np.concatenate([batch.polygons for batch in batches]),
        crs=CRS_NAME,
    )


def read(path: Path) -> geopandas.GeoDataFrame:
    frame = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path, layer="buildings")
    return frame.sort_values("id", ignore_index=True)  # FlatGeobuf sorts by place


@pytest.mark.parametrize("format", FORMATS)
def test_comes_back_as_it_was(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"buildings.{format}"
    batches = footprints()
    written = write_buildings(path, iter(batches), CRS_NAME)
    expected = joined(batches)
    assert written.count == 10
    assert written.area_m2 == pytest.approx(expected.area_m2.sum())
    found = read(path)
    assert set(ATTRIBUTES) < set(found.columns)
    assert found.id.tolist() == list(range(1, 11))
    for name in ATTRIBUTES:
        np.testing.assert_array_equal(found[name], expected[name])
    assert set(found.geom_type) == {"Polygon"}
    assert found.is_valid.all()
    if format == "geojson":
        assert found.crs == CRS.from_epsg(4326)
        offset = found.to_crs(CRS_NAME).geometry.hausdorff_distance(expected.geometry)
        assert offset.max() < 0.01  # half of 1e-7 degrees, and the corner's diagonal
    else:
        assert found.crs == CRS.from_user_input(CRS_NAME)
        assert found.geometry.geom_equals_exact(expected.geometry, 0).all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("format", FORMATS)
def test_no_buildings_still_make_a_valid_file(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"buildings.{format}"
    written = write_buildings(path, iter(()), CRS_NAME)
    assert (written.count, written.area_m2) == (0, 0.0)
    if format == "geojson":  # carries no schema
        assert json.loads(path.read_text())["features"] == []
        return
    found = read(path)
    assert len(found) == 0
    assert set(ATTRIBUTES) < set(found.columns)
    assert found.crs == CRS.from_user_input(CRS_NAME)


@pytest.mark.parametrize("format", FORMATS)
def test_writing_again_gives_the_same_bytes(tmp_path: Path, format: str) -> None:
    contents = []
    for folder in ("a", "b"):
        path = tmp_path / folder / f"buildings.{format}"
        path.parent.mkdir()
        write_buildings(path, iter(footprints(500)), CRS_NAME)
        write_buildings(path, iter(footprints(500)), CRS_NAME)  # also over an older file
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("format", FORMATS)
def test_batches_are_taken_as_the_file_grows(tmp_path: Path, format: str) -> None:
    """No batch is made while more than a few earlier ones are still alive."""
    import weakref

    alive: weakref.WeakSet[Footprints] = weakref.WeakSet()
    most = 0

    def source() -> Iterator[Footprints]:
        nonlocal most
        for batch in finish(outlines(400, size=2), UTM, CRS_NAME):
            alive.add(batch)
            most = max(most, len(alive))
            yield batch
            del batch

    assert write_buildings(tmp_path / f"x.{format}", source(), CRS_NAME).count == 400
    assert most <= 3 or format == "parquet"  # which gathers a row group


def test_parquet_gathers_no_more_than_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.vector.ROW_GROUP", 100)
    path = tmp_path / "x.parquet"
    write_buildings(path, finish(outlines(450), UTM, CRS_NAME), CRS_NAME)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(5)] == [100] * 4 + [50]
    # By these DuckDB and others pass over the groups that a query cannot need.
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    west = [metadata.row_group(i).column(names.index("bbox.xmin")).statistics for i in range(5)]
    assert [(one.min, one.max) for one in west] == [
        (500_000 + 10 * first, 500_000 + 10 * last)
        for first, last in ((0, 99), (100, 199), (200, 299), (300, 399), (400, 449))
    ]


def test_all_formats_in_one_go(tmp_path: Path) -> None:
    paths = [tmp_path / f"buildings.{format}" for format in FORMATS]
    written = write_formats(paths, iter(footprints()), CRS_NAME)
    assert written.count == 10
    for path in paths:
        alone = tmp_path / f"alone{path.suffix}" / path.name
        alone.parent.mkdir()
        write_buildings(alone, iter(footprints()), CRS_NAME)
        assert path.read_bytes() == alone.read_bytes()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    assert write_formats(paths[:1], iter(footprints(3)), CRS_NAME).count == 3
    assert write_formats(paths, iter(()), CRS_NAME).count == 0


@pytest.mark.parametrize("count", [1, 2])
def test_another_taker_gets_the_same_when_the_files_are_there(tmp_path: Path, count: int) -> None:
    paths = [tmp_path / f"buildings.{format}" for format in FORMATS[:count]]
    taken: list[Footprints] = []

    def take(batches: Iterator[Footprints]) -> None:
        assert all(path.exists() for path in paths)
        taken.extend(batches)

    assert write_formats(paths, iter(footprints()), CRS_NAME, also=take).count == 10
    found, expected = joined(taken), joined(footprints())
    assert found.geometry.geom_equals_exact(expected.geometry, 0).all()
    assert found[ATTRIBUTES].equals(expected[ATTRIBUTES])
    write_formats(paths, iter(()), CRS_NAME, also=lambda batches: taken.extend(batches))
    assert len(joined(taken)) == 10
    assert sorted(tmp_path.iterdir()) == sorted(paths)


# --- GeoPackage ---


def test_geopackage_has_an_index_and_a_style(tmp_path: Path) -> None:
    path = tmp_path / "buildings.gpkg"
    write_buildings(path, iter(footprints()), CRS_NAME)
    assert dict(pyogrio.list_layers(path))["buildings"] == "Polygon"
    near = pyogrio.read_dataframe(path, layer="buildings", bbox=(500_000, 3_299_990, 500_015, 3_300_000))
    assert near.id.tolist() == [1, 2]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert database.execute("SELECT count(*) FROM rtree_buildings_geom").fetchone() == (10,)
        contents = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents"))
        assert contents == {"buildings": "features", "layer_styles": "attributes"}
        (row,) = database.execute("SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles")
        column = database.execute("SELECT column_name FROM gpkg_geometry_columns").fetchone()
    assert row[:3] == ("buildings", *column, 1)
    assert row[3] == footprint_qml()


def test_style_is_a_fill_that_lets_the_roof_through() -> None:
    root = ElementTree.fromstring(footprint_qml())  # noqa: S314 - our own text
    symbol = root.find("renderer-v2/symbols/symbol")
    assert symbol is not None
    assert symbol.get("type") == "fill"
    options = {one.get("name"): one.get("value", "") for one in symbol.iter("Option")}
    assert int(options["color"].split(",")[3]) < 128
    assert int(options["outline_color"].split(",")[3]) == 255


def test_geopackage_without_crs_is_undefined_cartesian(tmp_path: Path) -> None:
    path = tmp_path / "buildings.gpkg"
    batches = list(finish(outlines(), Affine.identity(), None))
    write_buildings(path, iter(batches), None)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT srs_id FROM gpkg_geometry_columns").fetchone() == (-1,)
    assert read(path).area_m2.tolist()[:2] == [48, 64]


@pytest.mark.parametrize("format", ["fgb", "parquet"])
def test_without_crs(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"buildings.{format}"
    write_buildings(path, finish(outlines(), Affine.identity(), None), None)
    assert read(path).crs is None


def test_a_crs_without_a_code_survives(tmp_path: Path) -> None:
    local = CRS.from_proj4("+proj=tmerc +lat_0=27.7 +lon_0=85.5 +k=1 +x_0=0 +y_0=0 +ellps=WGS84")
    for format in ("gpkg", "fgb", "parquet"):
        path = tmp_path / f"buildings.{format}"
        write_buildings(path, finish(outlines(), UTM, local), local)
        assert read(path).crs.to_dict()["lon_0"] == 85.5


# --- GeoParquet ---


def test_geoparquet_metadata(tmp_path: Path) -> None:
    path = tmp_path / "buildings.parquet"
    batches = footprints()
    write_buildings(path, iter(batches), CRS_NAME)
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0"
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert CRS.from_json_dict(column["crs"]) == CRS.from_user_input(CRS_NAME)
    assert column["bbox"] == pytest.approx(joined(batches).total_bounds.tolist())
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    table = pq.read_table(path)
    boxes = np.array([list(one.values()) for one in table["bbox"].to_pylist()])
    np.testing.assert_array_equal(boxes, joined(batches).bounds.to_numpy())
    # geopandas uses the covering to read a part.
    near = geopandas.read_parquet(path, bbox=(500_000, 3_299_990, 500_015, 3_300_000))
    assert near.id.tolist() == [1, 2]


def test_duckdb_reads_geoparquet(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "buildings.parquet"
    write_buildings(path, iter(footprints()), CRS_NAME)
    query = f"SELECT id, area_m2 FROM '{path}' WHERE bbox.xmin < 500015 ORDER BY id"  # noqa: S608 - our own path
    assert [row[0] for row in duckdb.sql(query).fetchall()] == [1, 2]


# --- GeoJSON ---


def test_geojson_keeps_to_rfc_7946(tmp_path: Path) -> None:
    path = tmp_path / "buildings.geojson"
    batches = footprints()
    write_buildings(path, iter(batches), CRS_NAME)
    collection = json.loads(path.read_text())
    assert "crs" not in collection
    to_degrees = Transformer.from_crs(CRS_NAME, "OGC:CRS84", always_xy=True)
    for feature, polygon in zip(collection["features"], joined(batches).geometry, strict=True):
        found = shape(feature["geometry"])
        assert found.exterior.is_ccw
        assert not any(hole.is_ccw for hole in found.interiors)
        expected = np.column_stack(to_degrees.transform(*np.array(polygon.exterior.coords).T))
        found_box, expected_box = found.bounds, (*expected.min(axis=0), *expected.max(axis=0))
        assert found_box == pytest.approx(expected_box, abs=5.1e-8)
        numbers = np.array(feature["geometry"]["coordinates"][0])
        np.testing.assert_array_equal(numbers, np.round(numbers, 7))


def test_geojson_needs_a_crs() -> None:
    with pytest.raises(SettingError, match="--format gpkg"):
        check_format("geojson", None)


# --- wrong use and bad disks ---


def test_formats_are_named_by_endings(tmp_path: Path) -> None:
    assert [format_of(f"x.{format}") for format in FORMATS] == list(FORMATS)
    assert format_of("X.GPKG") == "gpkg"
    with pytest.raises(SettingError, match=r"x\.shp"):
        format_of("x.shp")
    with pytest.raises(SettingError, match="'shp'"):
        check_format("shp", CRS_NAME)
    with pytest.raises(SettingError, match="at least one"):
        write_formats([], iter(()), CRS_NAME)
    odd = tmp_path / "buildings.data"
    assert write_buildings(odd, iter(footprints(1)), CRS_NAME, "gpkg").count == 1


@pytest.mark.parametrize("format", FORMATS)
def test_errors_of_the_source_pass_unchanged_and_leave_the_old_file(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"buildings.{format}"
    path.write_text("old")

    def source() -> Iterator[Footprints]:
        yield from footprints()
        raise InputError("block r0001c0002 is unreadable")

    with pytest.raises(InputError, match="r0001c0002"):
        write_buildings(path, source(), CRS_NAME)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_folder_has_clear_words(tmp_path: Path, format: str) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_buildings(tmp_path / "no" / f"x.{format}", iter(footprints(1)), CRS_NAME)


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_never_leaves_a_broken_file(tmp_path: Path, format: str) -> None:
    """Write once freely, then where no file may grow beyond a share of that size."""
    script = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_vector import CRS_NAME, UTM, finish, outlines, write_buildings
from geoseg.errors import OutputError
path = Path(sys.argv[1])
batches = list(finish(outlines(3000, size=500), UTM, CRS_NAME))
write_buildings(path, batches, CRS_NAME)
size = path.stat().st_size
path.unlink()
for share in (0.3, 0.65, 0.97):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), resource.RLIM_INFINITY))
    try:
        write_buildings(path, batches, CRS_NAME)
    except OutputError:
        print(share)
"""
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / f"x.{format}"), here],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.split() == ["0.3", "0.65", "0.97"]
    assert not list(tmp_path.iterdir())
