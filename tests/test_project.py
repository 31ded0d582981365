"""The QGIS project and the virtual raster, without QGIS: paths, order, bytes, and pixels as GDAL reads them."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import city_arrays, write_tile
from rasters import NORTH_UP, noise, write

from geoseg import project
from geoseg.mosaic import Mosaic, open_mosaic
from geoseg.project import write_project
from geoseg.vrt import relative

STRETCH = (0.0, 255.0)


def document(path: Path) -> ElementTree.Element:
    with zipfile.ZipFile(path) as packed:
        assert packed.namelist() == [f"{path.stem}.qgs"]
        return ElementTree.fromstring(packed.read(f"{path.stem}.qgs"))  # noqa: S314 - our own


def sources(root: ElementTree.Element) -> list[str]:
    return [layer.findtext("datasource", "") for layer in root.findall("projectlayers/maplayer")]


def made(folder: Path, mosaic: Mosaic, *formats: str, stretch: tuple[float, float] = STRETCH) -> ElementTree.Element:
    folder.mkdir(exist_ok=True)
    assert write_project(folder / "project.qgz", mosaic, formats or ("gpkg",), stretch, "title") is None
    return document(folder / "project.qgz")


def test_layers_are_in_order_and_relative(city: Path, tmp_path: Path) -> None:
    tiles = [
        write_tile(tmp_path / "ortho" / f"{name}.tif", noise((3, 9, 9)), (0, 9 * i)) for i, name in enumerate("ab")
    ]
    root = made(tmp_path / "out", open_mosaic(tiles)[0])
    results = ["./buildings.gpkg|layername=buildings", "./mask.tif", "./probability.tif"]
    assert sources(root) == [*results, "../ortho/a.tif", "../ortho/b.tif"]
    tree = root.find("layer-tree-group")
    assert tree is not None
    assert [group.get("name") for group in tree] == ["Buildings", "Imagery"]
    shown = {layer.get("name"): layer.get("checked") for layer in tree.iter("layer-tree-layer")}
    off, on = "Qt::Unchecked", "Qt::Checked"
    assert shown == {"Footprints": on, "Mask": off, "Probability": off, "a": on, "b": on}
    ids = [layer.findtext("id", "") for layer in root.findall("projectlayers/maplayer")]
    assert ids == [layer.get("id") for layer in tree.iter("layer-tree-layer")]
    assert ids == [layer.get("id") for layer in root.findall("layerorder/layer")]
    assert min(map(len, ids)) > 10
    assert root.findtext("properties/Paths/Absolute") == "false"


def test_the_same_results_give_the_same_bytes(city: Path, tmp_path: Path) -> None:
    mosaic, _ = open_mosaic([city])
    (tmp_path / "twin").mkdir()
    made(tmp_path / "out", mosaic)
    made(tmp_path / "twin", mosaic)
    contents = [(tmp_path / name / "project.qgz").read_bytes() for name in ("out", "twin")]
    assert contents[0] == contents[1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["project.qgz"]


@pytest.mark.parametrize(
    ("formats", "source"),
    [
        (("geojson", "fgb", "gpkg"), "./buildings.gpkg|layername=buildings"),
        (("parquet", "geojson", "fgb"), "./buildings.fgb"),
        (("geojson",), "./buildings.geojson"),
        (("parquet",), "./buildings.parquet"),
    ],
)
def test_the_format_that_serves_best_is_shown(
    city: Path, tmp_path: Path, formats: tuple[str, ...], source: str
) -> None:
    root = made(tmp_path / "out", open_mosaic([city])[0], *formats)
    assert sources(root)[0] == source
    code = root.findtext("projectlayers/maplayer/srs/spatialrefsys/authid")
    assert code == ("EPSG:4326" if formats == ("geojson",) else "EPSG:32633")


def test_imagery_of_more_bits_is_stretched_as_for_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((4, 9, 9), "uint16", high=4000))
    root = made(tmp_path / "out", open_mosaic([path], bands=(4, 3, 2))[0], stretch=(100.0, 3000.0))
    (renderer,) = (one for one in root.iter("rasterrenderer") if one.get("type") == "multibandcolor")
    assert [renderer.get(f"{colour}Band") for colour in ("red", "green", "blue")] == ["4", "3", "2"]
    assert renderer.findtext("blueContrastEnhancement/maxValue") == "3000"


def test_no_project_without_georeference(tmp_path: Path) -> None:
    (tmp_path / "project.qgz").write_text("of an earlier run")
    path = write(tmp_path / "a.png", noise((3, 9, 9)), transform=None, crs=None, driver="PNG")
    reason = write_project(tmp_path / "project.qgz", open_mosaic([path])[0], ("gpkg",), STRETCH, "title")
    assert reason is not None
    assert "no georeference" in reason
    assert not (tmp_path / "project.qgz").exists()


def test_a_place_without_crs_is_a_project_without_crs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((3, 9, 9)), crs=None)
    root = made(tmp_path / "out", open_mosaic([path])[0])
    assert root.find("projectCrs/spatialrefsys") is None
    assert float(root.findtext("mapcanvas/extent/xmin", "nan")) == pytest.approx(500_000 - 0.03 * 4.5)


def test_names_that_xml_cannot_hold_are_left_out(tmp_path: Path) -> None:
    good = write(tmp_path / "a & <b> 'ü'.tif", noise((3, 9, 9)))
    bad = write(tmp_path / "b\x01.tif", noise((3, 9, 9)), transform=NORTH_UP @ Affine.translation(9, 0))
    mosaic, problems = open_mosaic([good, bad])
    assert problems == []
    (tmp_path / "out").mkdir()
    reason = write_project(tmp_path / "out" / "project.qgz", mosaic, ("gpkg",), STRETCH, "title")
    assert reason == "1 file of imagery is not in it"
    assert sources(document(tmp_path / "out" / "project.qgz"))[3:] == ["../a & <b> 'ü'.tif"]


def test_relative_names(tmp_path: Path) -> None:
    for name in ("/vsicurl/http://host/a.tif", "https://host/a.tif"):
        assert relative(name, tmp_path) == name
    assert relative(str(tmp_path / "in" / "a.tif"), tmp_path / "out" / "x") == "../../in/a.tif"
    assert relative(str(tmp_path / "out" / "a.tif"), tmp_path / "out") == "./a.tif"


# --- many files


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file is as many as get layers of their own."""
    monkeypatch.setattr(project, "MAX_FILES", 1)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.dataset_mask() > 0


def same_as(mosaic: Mosaic, path: Path) -> None:
    """Compare a virtual raster with the mosaic, pixel by pixel, in its values and in what has data."""
    whole = mosaic.read(mosaic.extent)
    values, valid = read(path)
    np.testing.assert_array_equal(valid, whole.valid)
    np.testing.assert_array_equal(np.where(valid, values[:3], 0), whole.values)
    with rasterio.open(path) as dataset:
        assert dataset.transform == mosaic.transform
        assert dataset.crs == rasterio.crs.CRS.from_wkt(mosaic.wkt) if mosaic.wkt else True
        assert [interpretation.name for interpretation in dataset.colorinterp] == ["red", "green", "blue"]


@pytest.mark.usefixtures("few")
def test_many_files_become_one_virtual_raster(city: Path, tmp_path: Path) -> None:
    mosaic, _ = open_mosaic([city])
    root = made(tmp_path / "out", mosaic)
    assert sources(root)[3:] == ["./imagery.vrt"]
    same_as(mosaic, tmp_path / "out" / "imagery.vrt")
    np.testing.assert_array_equal(read(tmp_path / "out" / "imagery.vrt")[1], city_arrays()[1])
    assert str(tmp_path) not in (tmp_path / "out" / "imagery.vrt").read_text()
    # A later run of few files leaves none behind.
    made(tmp_path / "out", open_mosaic([city / "a.tif"])[0])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["project.qgz"]


OVERLAPS: dict[str, dict[str, Any]] = {
    "mask": {"mask": True},
    "nodata": {"nodata": 0},
    "none": {},
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", OVERLAPS)
def test_the_earlier_file_lies_above_where_it_has_data(tmp_path: Path, kind: str) -> None:
    paths = []
    for number in range(3):
        values = noise((3, 40, 40), seed=number)
        valid = np.random.default_rng(number).random((40, 40)) < 0.5
        options: dict[str, Any] = dict(OVERLAPS[kind])
        if kind == "nodata":
            values[:, ~valid] = 0
        if options.pop("mask", False):
            options["mask"] = valid
        place = NORTH_UP @ Affine.translation(15 * number, 10 * number)
        paths.append(write(tmp_path / f"{number}.tif", values, transform=place, **options))
    mosaic, _ = open_mosaic(paths)
    made(tmp_path / "out", mosaic)
    same_as(mosaic, tmp_path / "out" / "imagery.vrt")


@pytest.mark.usefixtures("few")
def test_bands_and_types_are_those_of_the_mosaic(tmp_path: Path) -> None:
    paths = [
        write(
            tmp_path / f"{number}.tif",
            noise((5, 20, 20), "uint16", seed=number, high=4000),
            transform=NORTH_UP @ Affine.translation(20 * number, 0),
        )
        for number in range(2)
    ]
    mosaic, _ = open_mosaic(paths, bands=(5, 3, 1))
    root = made(tmp_path / "out", mosaic, stretch=(0.0, 3000.0))
    same_as(mosaic, tmp_path / "out" / "imagery.vrt")
    assert any(one.findtext("maxValue") == "3000" for one in root.iter("redContrastEnhancement"))


@pytest.mark.usefixtures("few")
def test_colours_of_a_palette(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        place = NORTH_UP @ Affine.translation(20 * number, 0)
        path = write(tmp_path / f"{number}.tif", noise((1, 20, 20), high=4), transform=place, photometric="palette")
        with rasterio.open(path, "r+") as dataset:
            dataset.write_colormap(1, {i: (60 * i, 255 - i, 7 * i, 255) for i in range(256) if 60 * i < 256})
        paths.append(path)
    mosaic, _ = open_mosaic(paths)
    assert mosaic.sources[0].palette
    made(tmp_path / "out", mosaic)
    same_as(mosaic, tmp_path / "out" / "imagery.vrt")


def test_files_on_several_grids_become_several_virtual_rasters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "MAX_FILES", 2)
    paths = [
        write(tmp_path / f"{number}.tif", noise((3, 20, 20)), transform=NORTH_UP @ Affine.translation(*shift))
        for number, shift in enumerate([(0, 0), (20, 0), (40.3, 0.3), (60.6, 0.6)])
    ]
    mosaic, _ = open_mosaic(paths)
    assert len(mosaic.layers) == 3
    (tmp_path / "out").mkdir()
    reason = write_project(tmp_path / "out" / "project.qgz", mosaic, ("gpkg",), STRETCH, "title")
    assert reason == "1 file of imagery is not in it"
    assert sources(document(tmp_path / "out" / "project.qgz"))[3:] == ["./imagery_1.vrt", "./imagery_2.vrt"]
    with rasterio.open(paths[2]) as tile, rasterio.open(tmp_path / "out" / "imagery_2.vrt") as virtual:
        np.testing.assert_array_equal(tile.read(), virtual.read())
        assert np.allclose(tuple(tile.transform), tuple(virtual.transform))


@pytest.mark.usefixtures("few")
def test_files_are_opened_when_they_are_read(city: Path, tmp_path: Path) -> None:
    """GDAL learns all it needs from the virtual raster: it opens although the files are gone."""
    mosaic, _ = open_mosaic([city])
    gone = tuple(replace(source, path=source.path + ".gone") for source in mosaic.sources)
    made(tmp_path / "out", replace(mosaic, sources=gone))
    with rasterio.open(tmp_path / "out" / "imagery.vrt") as dataset:
        assert dataset.shape == mosaic.shape
