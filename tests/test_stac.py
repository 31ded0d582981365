"""The STAC item of a run, held against pystac, the standard's own schema, and GDAL's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pystac.validation
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pystac.extensions.projection import ProjectionExtension
from rasterio.warp import transform_bounds
from rasters import noise, write

from geoseg.mosaic import Mosaic, open_mosaic
from geoseg.segment import segment
from geoseg.stac import EXTENSIONS, MAX_VERTICES, footprint, write_item

RUN: dict[str, Any] = {
    "geoseg": "1.2.3",
    "finished": "2026-03-01T10:00:00Z",
    "mosaic": {"ground_gsd_m": 0.5},
    "model": {"name": "narrow", "sha256": "ab" * 32},
    "settings": {"threshold": 0.4},
    "counts": {"buildings": 7, "building_area_m2": 123.4},
    "outputs": {
        "mask": "mask.tif",
        "probability": "probability.tif",
        **{f"buildings_{name}": f"buildings.{name}" for name in ("gpkg", "fgb", "parquet", "geojson")},
        "project": "project.qgz",
        "report": "report.html",
    },
}


def mosaic_of(folder: Path, crs: str | None, transform: Affine, shape: tuple[int, int] = (30, 40)) -> Mosaic:
    return open_mosaic([write(folder / "a.tif", noise((3, *shape)), crs=crs, transform=transform)])[0]


def validated(path: Path) -> pystac.Item:
    """Read an item and check it against the schema of the standard's core, which pystac brings."""
    content = json.loads(path.read_text("utf-8"))
    assert pystac.validation.validate_dict(content, extensions=[])
    found = pystac.Item.from_dict(content)
    assert isinstance(found, pystac.Item)
    return found


def test_a_run_writes_a_valid_item(city: Path, narrow_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"model": str(narrow_model), "cell": 64, "core": 128, "workers": 0, "progress": "none"}
    result = segment(city, out, format=("gpkg", "fgb", "parquet", "geojson"), **settings)
    assert result.run["outputs"]["item"] == "item.json"
    assert result.run["left_out"] == {}
    found = validated(out / "item.json")
    found.set_self_href(str(out / "item.json"))
    for name, asset in found.assets.items():
        assert not asset.href.startswith("/")
        assert Path(str(asset.get_absolute_href())).is_file(), name
        assert asset.media_type
        assert asset.roles
    assert found.assets.keys() == {"run", *result.run["outputs"]} - {"item"}
    assert found.assets["mask"].media_type == found.assets["probability"].media_type == pystac.MediaType.COG
    kinds = {
        "gpkg": pystac.MediaType.GEOPACKAGE,
        "fgb": pystac.MediaType.FLATGEOBUF,
        "parquet": pystac.MediaType.VND_APACHE_PARQUET,
        "geojson": pystac.MediaType.GEOJSON,
    }
    assert {name: found.assets[f"buildings_{name}"].media_type for name in kinds} == kinds
    placed = ProjectionExtension.ext(found)
    with rasterio.open(out / "mask.tif") as mask:
        assert placed.code == str(mask.crs) == "EPSG:32633"
        assert placed.shape == list(mask.shape)
        assert placed.transform == list(mask.transform)[:6]
        assert found.bbox == pytest.approx(
            transform_bounds(mask.crs, "OGC:CRS84", *mask.bounds), abs=2e-5
        )  # a corner has no tile
    with rasterio.open(out / "probability.tif") as probability:
        band = found.assets["probability"].to_dict()["bands"][0]
        assert (band["raster:scale"], band["raster:offset"]) == (probability.scales[0], probability.offsets[0])
    assert found.properties["geoseg:buildings"] == result.buildings
    assert found.properties["processing:software"] == {"geoseg": result.run["geoseg"]}
    assert found.datetime is not None
    assert found.stac_extensions == list(EXTENSIONS)
    # But for the time of the run, the same again.
    first = json.loads((out / "item.json").read_text())
    segment(city, tmp_path / "elsewhere", format=("gpkg", "fgb", "parquet", "geojson"), **settings)
    second = json.loads((tmp_path / "elsewhere" / "item.json").read_text())
    for content in (first, second):
        del content["properties"]["datetime"], content["properties"]["created"]
    assert first == second


def test_the_outline_is_that_of_the_files(tmp_path: Path) -> None:
    grid = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    write(tmp_path / "a.tif", noise((3, 100, 100)), transform=grid)
    write(tmp_path / "b.tif", noise((3, 100, 100)), transform=grid @ Affine.translation(100, 100))
    mosaic, _ = open_mosaic([tmp_path / "a.tif", tmp_path / "b.tif"])
    found = footprint(mosaic)
    assert found is not None
    assert found.is_valid
    box = shapely.box(*transform_bounds("EPSG:32614", "OGC:CRS84", 500_000, 3_999_900, 500_100, 4_000_000))
    # Two of four quarters.
    assert found.area / box.area == pytest.approx(0.5, abs=0.01)
    for polygon in shapely.get_parts(found):
        assert shapely.is_ccw(polygon.exterior)
        assert len(polygon.exterior.coords) <= 9


def test_the_area_of_interest_bounds_the_outline(tmp_path: Path) -> None:
    grid = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    write(tmp_path / "a.tif", noise((3, 100, 100)), transform=grid)
    (tmp_path / "aoi.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[500000,4000000],[500010,4000000],[500010,3999990],[500000,3999990],'
        '[500000,4000000]]], "crs": {"type": "name", "properties": {"name": "EPSG:32614"}}}'
    )
    whole, _ = open_mosaic([tmp_path / "a.tif"])
    part, _ = open_mosaic([tmp_path / "a.tif"], aoi=tmp_path / "aoi.geojson")
    areas = [footprint(mosaic).area for mosaic in (whole, part)]  # type: ignore[union-attr]
    assert areas[1] / areas[0] == pytest.approx(100 / 2500, rel=1e-2)


def test_across_the_antimeridian(tmp_path: Path) -> None:
    # Fiji's grid runs over it.
    mosaic = mosaic_of(tmp_path, "EPSG:3460", Affine(500, 0, 2_000_000, 0, -500, 4_000_000), (200, 400))
    assert write_item(tmp_path / "item.json", RUN, mosaic, "one") is None
    found = validated(tmp_path / "item.json")
    assert found.geometry is not None
    assert found.geometry["type"] == "MultiPolygon"
    west, _south, east, _north = found.bbox or []
    assert 177 < west < 180
    assert -180 < east < -178
    shape = shapely.from_geojson(json.dumps(found.geometry))
    assert shape.is_valid
    assert shape.bounds[0] == -180
    assert shape.bounds[2] == 180
    assert shape.area < 10


@pytest.mark.parametrize(("crs", "code"), [("EPSG:4326", "EPSG:4326"), ("ESRI:54009", "ESRI:54009")])
def test_codes(tmp_path: Path, crs: str, code: str) -> None:
    scale = 1e-5 if crs != "ESRI:54009" else 1.0
    mosaic = mosaic_of(tmp_path, crs, Affine(scale, 0, 10 * scale, 0, -scale, 20 * scale))
    assert write_item(tmp_path / "item.json", RUN, mosaic, "one") is None
    assert ProjectionExtension.ext(validated(tmp_path / "item.json")).code == code


def test_a_crs_without_a_code_is_spelled_out(tmp_path: Path) -> None:
    own = "+proj=tmerc +lat_0=27.7 +lon_0=85.5 +k=1 +x_0=0 +y_0=0 +ellps=WGS84"
    mosaic = mosaic_of(tmp_path, own, Affine(0.5, 0, 0, 0, -0.5, 0))
    assert write_item(tmp_path / "item.json", RUN, mosaic, "one") is None
    placed = ProjectionExtension.ext(validated(tmp_path / "item.json"))
    assert placed.code is None
    assert placed.wkt2 is not None
    assert "85.5" in placed.wkt2


def test_no_item_without_a_place_on_earth(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text("of an earlier run")
    mosaic = mosaic_of(tmp_path, None, Affine(0.5, 0, 0, 0, -0.5, 0))
    assert write_item(tmp_path / "item.json", RUN, mosaic, "one") == "the imagery has no coordinate reference system"
    assert not (tmp_path / "item.json").exists()
    local = 'ENGCRS["site",EDATUM["peg"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    geobox = GeoBox((30, 40), Affine(0.5, 0, 0, 0, -0.5, 0), local)
    mosaic = Mosaic(geobox, mosaic.sources, mosaic.layers)
    reason = write_item(tmp_path / "item.json", RUN, mosaic, "one")
    assert reason is not None
    assert "(site) does not lead to longitude and latitude" in reason


def test_outlines_are_bounded(tmp_path: Path) -> None:
    mosaic = mosaic_of(tmp_path, "EPSG:32614", Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000), (2000, 2000))
    zigzag = np.array([(x, 10 + 20 * (x % 2)) for x in range(2000)] + [(2000, 0), (0, 0)])
    jagged = Mosaic(mosaic.geobox, mosaic.sources, mosaic.layers, aoi=(shapely.to_wkb(shapely.Polygon(zigzag)),))
    found = footprint(jagged)
    assert shapely.get_num_coordinates(found) <= MAX_VERTICES
