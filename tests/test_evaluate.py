"""Predictions and references in all combinations of files, against sums by hand and over arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import shapes as trace

from geoseg.errors import InputError, SettingError
from geoseg.evaluate import evaluate
from geoseg.evaluation import Evaluation
from geoseg.metrics import Boundary, Confusion, Score, ThresholdCurve

UTM = "EPSG:32614"
LEFT, TOP, GSD = 620_000, 3_350_000, 0.3
PLACE = Affine(GSD, 0, LEFT, 0, -GSD, TOP)
FINE = Affine(GSD / 3, 0, LEFT, 0, -GSD / 3, TOP)


def moved(col: float, row: float) -> Affine:
    """The grid from another corner."""
    return Affine(GSD, 0, LEFT + GSD * col, 0, -GSD, TOP - GSD * row)


def point(col: float, row: float) -> tuple[float, float]:
    return LEFT + GSD * col, TOP - GSD * row


def save(
    path: Path,
    values: np.ndarray,
    *,
    crs: str | None = UTM,
    transform: Affine = PLACE,
    valid: np.ndarray | None = None,
    scale: float | None = None,
    nodata: float | None = None,
) -> Path:
    bands = values if values.ndim == 3 else values[None]
    located: dict[str, Any] = {} if transform.is_identity else {"transform": transform, "crs": crs}
    with (
        pytest.warns() if transform.is_identity else _quiet(),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="PNG" if path.suffix == ".png" else "GTiff",
            height=bands.shape[1],
            width=bands.shape[2],
            count=len(bands),
            dtype=bands.dtype,
            nodata=nodata,
            **located,
        ) as dataset,
    ):
        dataset.write(bands)
        if scale is not None:
            dataset.scales = (scale,)
        if valid is not None:
            dataset.write_mask(valid)
    return path


class _quiet:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def blobs(shape: tuple[int, int], seed: int, share: float = 0.4) -> np.ndarray:
    """A mask of rectangles, so that contours are neither everywhere nor nowhere."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    while mask.mean() < share:
        row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        height, width = rng.integers(2, 14, 2)
        mask[row : row + height, col : col + width] = True
    return mask


def polygons_of(mask: np.ndarray, transform: Affine = PLACE) -> list[Any]:
    found = trace(mask.astype(np.uint8), mask=mask, transform=transform)
    return [shapely.geometry.shape(outline) for outline, _ in found]


def save_polygons(path: Path, polygons: list[Any], crs: str | None = UTM) -> Path:
    frame = geopandas.GeoDataFrame(geometry=polygons, crs=crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif crs is None:
        with pytest.warns(UserWarning, match="crs"):
            frame.to_file(path, engine="pyogrio", SRID=-1)
    else:
        frame.to_file(path, engine="pyogrio", geometry_type="Polygon")
    return path


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [16, 37, 64, 1000])
def test_windows_change_nothing(tmp_path: Path, window: int) -> None:
    rng = np.random.default_rng(8)
    truth, predicted = blobs((90, 110), 11), blobs((90, 110), 12)
    valid = rng.random(truth.shape) > 0.02
    p = save(tmp_path / "p.tif", predicted.astype(np.uint8) * 255, valid=valid)
    r = save(tmp_path / "r.tif", truth.astype(np.uint8))
    tile = evaluate(p, r, window=window, boundary_px=4).tiles[0]
    assert tile.score == Score(Confusion.of(predicted, truth, valid), Boundary.of(predicted, truth, valid, distance=4))
    assert (tile.boundary_px, tile.shape, tile.curve) == (4, (90, 110), None)


def test_boundary_distance_in_metres_and_as_published(tmp_path: Path) -> None:
    mask = save(tmp_path / "a.tif", blobs((300, 400), 1).astype(np.uint8))
    assert evaluate(mask, mask).tiles[0].boundary_px == 10
    # UTM's metre is within 0.1 % of the ground's: 1.5 m at 0.3 m are 5 pixels.
    assert evaluate(mask, mask, boundary_m=1.5).tiles[0].boundary_px == 5
    # Web Mercator at 60° north: pixels of 0.3 are 0.15 m on the ground.
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(10, 60)
    far = save(
        tmp_path / "b.tif", np.ones((40, 40), np.uint8), crs="EPSG:3857", transform=Affine(0.3, 0, x, 0, -0.3, y)
    )
    assert evaluate(far, far, boundary_m=1.5).tiles[0].boundary_px == 10
    bare = save(tmp_path / "c.tif", np.ones((40, 40), np.uint8), transform=Affine.identity())
    with pytest.raises(SettingError, match="no CRS"):
        evaluate(bare, bare, boundary_m=1.5)


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_probability_has_a_curve(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(5)
    truth = blobs((40, 50), 3)
    stored = np.clip(truth * 90 + rng.integers(0, 166, truth.shape), 0, 255).astype(np.uint8)
    values = stored if form == "uint8" else (stored / 255).astype(np.float32)
    p = save(tmp_path / "p.tif", values, scale=1 / 255 if form == "uint8" else None)
    r = save(tmp_path / "r.tif", truth.astype(np.uint8))
    result = evaluate(p, r, threshold=0.4, thresholds=(0.2, 0.4, 0.6), window=17, boundary_px=2)
    assert result.threshold == 0.4
    assert result.total == Score(Confusion.of(stored >= 102, truth), Boundary.of(stored >= 102, truth, distance=2))
    assert result.curve == ThresholdCurve.of(stored, truth)
    assert result.curve is not None
    assert result.curve.at(0.4) == result.total.confusion
    found = {point["threshold"]: point["iou"] for point in result.as_dict()["curve"]}
    assert found == {t: Confusion.of(stored / 255 >= t - 1e-9, truth).iou for t in (0.2, 0.4, 0.6)}
    assert result.best_threshold == max(found, key=found.__getitem__)
    assert [len(rows) for rows in result.curve_table()] == [1, 3]
    # The same numbers without a scale are probabilities only if one says so.
    bare = save(tmp_path / "bare.tif", stored)
    with pytest.raises(InputError, match="more, where a mask has one value"):
        evaluate(bare, r)
    assert evaluate(bare, r, predicted_as="probability", threshold=0.4, boundary_px=2).total == result.total


def test_values_that_are_neither_mask_nor_probability(tmp_path: Path) -> None:
    r = save(tmp_path / "r.tif", np.eye(8, dtype=np.uint8))
    wild = save(tmp_path / "w.tif", np.full((8, 8), 7, np.float32))
    with pytest.raises(InputError, match=r"w.tif: probabilities lie between 0 and 1; these reach from 7 to 7"):
        evaluate(wild, r)
    land = save(tmp_path / "l.tif", np.array([[0, 1, 2, 255]] * 4, np.uint8))
    found = save(tmp_path / "f.tif", np.array([[0, 255, 255, 255]] * 4, np.uint8))
    with pytest.raises(InputError, match="Say which values mean building"):
        evaluate(found, land)
    total = evaluate(found, land, classes=(1,), ignore=(255,)).total
    assert total.confusion == Confusion(tp=4, fp=4, fn=0, tn=4)
    assert evaluate(land, found, predicted_classes=[1, 2], ignore=[0]).total.confusion == Confusion(8, 0, 4, 0)


def test_nan_and_nodata_count_in_nothing(tmp_path: Path) -> None:
    values = np.array([[0.9, np.nan], [0.1, 0.9]], np.float32)
    p = save(tmp_path / "p.tif", values)
    r = save(tmp_path / "r.tif", np.array([[1, 1], [1, 9]], np.uint8), nodata=9)
    assert evaluate(p, r).total.confusion == Confusion(tp=1, fp=0, fn=1, tn=0)


def test_zero_declared_as_nodata_is_background(tmp_path: Path) -> None:
    p = save(tmp_path / "p.tif", np.array([[1, 1, 0, 0]], np.uint8), nodata=0)
    r = save(tmp_path / "r.tif", np.array([[1, 0, 1, 0]], np.uint8), nodata=0)
    result = evaluate(p, r)
    assert result.total.confusion == Confusion(1, 1, 1, 1)
    assert any("read as background" in note for note in result.notes)


def test_validity_of_the_imagery_beside_the_reference(tmp_path: Path) -> None:
    valid = np.array([[True, True, False, False]])
    save(tmp_path / "t_rgb.tif", np.zeros((3, 1, 4), np.uint8), valid=valid)
    r = save(tmp_path / "t_mask.tif", np.array([[1, 0, 1, 0]], np.uint8))
    p = save(tmp_path / "p.tif", np.ones((1, 4), np.uint8))
    result = evaluate(p, r)
    assert result.total.confusion == Confusion(1, 1, 0, 0)
    assert result.notes == ("t_rgb.tif: imagery beside the reference; where it is invalid, nothing counts",)


def test_area_of_interest(tmp_path: Path) -> None:
    truth, predicted = blobs((40, 50), 1), blobs((40, 50), 2)
    p = save(tmp_path / "p.tif", predicted.astype(np.uint8))
    r = save(tmp_path / "r.tif", truth.astype(np.uint8))
    x, y = point(10, 30)
    area = save_polygons(tmp_path / "area.gpkg", [shapely.box(x, y, x + 6, y + 6)])
    got = evaluate(p, r, aoi=area, window=13).total.confusion
    assert got == Confusion.of(predicted[10:30, 10:30], truth[10:30, 10:30])


# --- polygons ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "parquet"])
@pytest.mark.parametrize("window", [23, 2048])
def test_polygons_are_the_mask_they_were_traced_from(tmp_path: Path, ending: str, window: int) -> None:
    truth, predicted = blobs((70, 80), 21), blobs((70, 80), 22)
    valid = np.random.default_rng(1).random(truth.shape) > 0.1
    raster = save(tmp_path / "p.tif", predicted.astype(np.uint8), valid=valid)
    vector = save_polygons(tmp_path / f"r.{ending}", polygons_of(truth))
    expected = Score(Confusion.of(predicted, truth, valid), Boundary.of(predicted, truth, valid, distance=3))
    assert evaluate(raster, vector, window=window, boundary_px=3).total == expected
    other = evaluate(vector, raster, window=window, boundary_px=3).total.confusion
    assert (other.tp, other.fp, other.fn) == (expected.confusion.tp, expected.confusion.fn, expected.confusion.fp)


def test_polygons_in_another_crs(tmp_path: Path) -> None:
    truth = blobs((70, 80), 21)
    raster = save(tmp_path / "r.tif", truth.astype(np.uint8))
    # A centimetre, far below half a pixel, and far above what projecting to and fro loses.
    shrunk = [shapely.buffer(p, -0.01, join_style="mitre") for p in polygons_of(truth)]
    frame = geopandas.GeoDataFrame(geometry=shrunk, crs=UTM).to_crs(4326)
    frame.to_file(tmp_path / "p.geojson", engine="pyogrio")
    assert evaluate(tmp_path / "p.geojson", raster, window=31).total.iou == 1


def test_centre_rule_and_overlapping_parts(tmp_path: Path) -> None:
    raster = save(tmp_path / "r.tif", np.zeros((10, 10), np.uint8))

    def square(col0: float, row0: float, col1: float, row1: float) -> Any:
        (left, top), (right, bottom) = point(col0, row0), point(col1, row1)
        return shapely.box(left, bottom, right, top)

    # Centres at 2.5 … 4.5 in columns, 1.5 … 2.5 in rows: 3 × 2; the parts of the second share 2 × 2 pixels.
    one = square(2.4, 1.4, 4.6, 2.9)
    two = shapely.MultiPolygon([square(5, 5, 8, 8), square(6, 6, 9, 9)])
    path = tmp_path / "p.gpkg"
    geopandas.GeoDataFrame(geometry=[one, two], crs=UTM).to_file(path, engine="pyogrio")
    assert evaluate(path, raster).total.confusion.fp == 6 + 9 + 9 - 4


def test_two_layers_of_polygons_need_a_pixel_size(tmp_path: Path) -> None:
    x, y = point(0, 0)
    one = save_polygons(tmp_path / "a.gpkg", [shapely.box(x, y, x + 20, y + 10)])
    two = save_polygons(tmp_path / "b.fgb", [shapely.box(x + 5, y, x + 25, y + 10)])
    with pytest.raises(SettingError, match="gsd"):
        evaluate(one, two)
    result = evaluate(one, two, gsd=0.25)
    assert result.total.iou == pytest.approx(15 / 25, abs=0.01)
    assert result.total.precision == pytest.approx(15 / 20, abs=0.01)
    # In degrees a metric grid is found; the result is the same to a pixel's width.
    geopandas.read_file(two).to_crs(4326).to_file(tmp_path / "b.geojson", engine="pyogrio")
    assert evaluate(one, tmp_path / "b.geojson", gsd=0.25).total.iou == pytest.approx(15 / 25, abs=0.01)
    far = save_polygons(tmp_path / "far.gpkg", [shapely.box(x + 500, y, x + 510, y + 10)])
    with pytest.raises(InputError, match="does not overlap"):
        evaluate(one, far, gsd=0.25)


def test_pixel_size_means_ground_in_web_mercator(tmp_path: Path) -> None:
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(10, 60)
    # 40 × 40 Mercator metres at 60° north are about 20 × 20 on the ground.
    path = save_polygons(tmp_path / "a.gpkg", [shapely.box(x, y, x + 40, y + 40)], "EPSG:3857")
    assert evaluate(path, path, gsd=0.5).total.confusion.tp == pytest.approx(40 * 40, rel=0.03)


def test_no_polygon_predicted_is_a_result(tmp_path: Path) -> None:
    truth = blobs((30, 30), 1)
    raster = save(tmp_path / "r.tif", truth.astype(np.uint8))
    empty = save_polygons(tmp_path / "p.gpkg", [])
    assert evaluate(empty, raster).total.confusion == Confusion(0, 0, int(truth.sum()), int((~truth).sum()))


def test_pixel_coordinates_without_georeference(tmp_path: Path) -> None:
    truth = blobs((30, 40), 4)
    raster = save(tmp_path / "r.tif", truth.astype(np.uint8), transform=Affine.identity())
    path = save_polygons(tmp_path / "p.gpkg", polygons_of(truth, Affine.identity()), None)
    assert evaluate(path, raster).total.iou == 1
    placed = save_polygons(tmp_path / "q.gpkg", polygons_of(truth))
    with pytest.raises(InputError, match="no CRS to place it in"):
        evaluate(placed, raster)


def test_which_layer_and_what_geometry(tmp_path: Path) -> None:
    truth = blobs((30, 40), 4)
    raster = save(tmp_path / "r.tif", truth.astype(np.uint8))
    path = tmp_path / "p.gpkg"
    frame = geopandas.GeoDataFrame(geometry=polygons_of(truth), crs=UTM)
    for layer in ("streets", "roofs"):
        frame.to_file(path, layer=layer, engine="pyogrio")
    with pytest.raises(InputError, match="streets, roofs"):
        evaluate(path, raster)
    frame.to_file(path, layer="buildings", engine="pyogrio")
    assert evaluate(path, raster).total.iou == 1
    points = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.Point(point(3, 3))], crs=UTM).to_file(points, engine="pyogrio")
    with pytest.raises(InputError, match="holds Point; buildings are polygons"):
        evaluate(points, raster)


# --- grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probable", [False, True])
def test_mosaic_against_a_tile_of_it(tmp_path: Path, probable: bool) -> None:
    rng = np.random.default_rng(2)
    stored = rng.integers(0, 256, (120, 150)).astype(np.uint8) if probable else blobs((120, 150), 7) * np.uint8(255)
    valid = blobs((120, 150), 9, 0.8)
    mosaic = save(tmp_path / "mosaic.tif", stored, valid=valid, scale=1 / 255 if probable else None)
    truth = blobs((40, 50), 3)
    tile = save(tmp_path / "tile.tif", truth.astype(np.uint8), transform=moved(60, 30))
    part = (slice(30, 70), slice(60, 110))
    expected = Confusion.of(stored[part] >= 128, truth, valid[part])
    for window in (19, 2048):
        assert evaluate(mosaic, tile, window=window).total.confusion == expected
    # The other way round only the tile's extent is compared, on the mosaic's grid.
    if not probable:
        back = evaluate(tile, mosaic)
        assert back.tiles[0].shape == (40, 50)
        assert back.total.confusion == Confusion.of(truth, stored[part] > 0, valid[part])


def test_mask_of_another_resolution_and_crs(tmp_path: Path) -> None:
    truth = np.zeros((100, 100), bool)
    truth[20:80, 30:70] = True
    r = save(tmp_path / "r.tif", truth.astype(np.uint8))
    fine = save(
        tmp_path / "fine.tif",
        np.kron(truth, np.ones((3, 3))).astype(np.uint8),
        transform=FINE,
    )
    assert evaluate(fine, r).total.iou == 1
    probability = np.kron(truth, np.ones((3, 3))).astype(np.float32)
    soft = save(tmp_path / "soft.tif", probability, transform=FINE)
    assert evaluate(soft, r, window=33).total.iou == 1
    # Rotated by the meridian convergence, up to a pixel along the edges may differ.
    polygons = geopandas.GeoDataFrame(geometry=polygons_of(truth), crs=UTM).to_crs(32615)
    left, bottom, right, top = polygons.total_bounds
    other = Affine(0.1, 0, left - 20, 0, -0.1, top + 20)
    size = round((top - bottom + 40) / 0.1), round((right - left + 40) / 0.1)
    mask = rasterio.features.rasterize(polygons.geometry, out_shape=size, transform=other)
    rotated = save(tmp_path / "rotated.tif", mask.astype(np.uint8), crs="EPSG:32615", transform=other)
    scores = [evaluate(rotated, r, window=window).total for window in (27, 2048)]
    assert scores[0].iou > 0.97
    assert scores[0].confusion == scores[1].confusion
    assert scores[0].confusion.pixels == 100 * 100


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_nodata_of_a_warped_raster_counts_in_nothing(tmp_path: Path, dtype: type) -> None:
    truth = np.ones((40, 40), np.uint8)
    found = np.ones((120, 120), dtype)
    found[:, 60:] = 7
    r = save(tmp_path / "r.tif", truth)
    fine = save(tmp_path / "fine.tif", found, transform=FINE, nodata=7)
    assert evaluate(fine, r).total.confusion == Confusion(tp=40 * 20, fp=0, fn=0, tn=0)


def test_grids_that_cannot_be_related(tmp_path: Path) -> None:
    r = save(tmp_path / "r.tif", np.ones((10, 12), np.uint8))
    bare = save(tmp_path / "bare.tif", np.ones((10, 11), np.uint8), transform=Affine.identity())
    with pytest.raises(InputError, match=r"bare.tif has 11 × 10 px, .*r.tif 12 × 10 px, and they lack"):
        evaluate(bare, r)
    same = save(tmp_path / "same.png", np.ones((10, 12), np.uint8), transform=Affine.identity())
    result = evaluate(same, r)
    assert result.total.iou == 1
    assert "pixel by pixel" in result.notes[0]
    far = save(tmp_path / "far.tif", np.ones((10, 12), np.uint8), transform=moved(9990, 0))
    with pytest.raises(InputError, match=r"far.tif does not overlap .*r.tif"):
        evaluate(far, r)
    nowhere = save(tmp_path / "nowhere.tif", np.ones((9, 9), np.uint8), crs=None)
    with pytest.raises(InputError, match=r"nowhere.tif has no CRS"):
        evaluate(nowhere, r)
    void = save(tmp_path / "void.tif", np.ones((10, 12), np.uint8), valid=np.zeros((10, 12), bool))
    with pytest.raises(InputError, match="no pixel is valid"):
        evaluate(void, r)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    r = save(tmp_path / "r.tif", np.ones((10, 12), np.uint8))
    for name in ("broken.tif", "broken.gpkg", "broken.geojson", "broken.parquet"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 30)
        with pytest.raises(InputError, match=rf"{name}: cannot be read"):
            evaluate(tmp_path / name, r)
    with pytest.raises(InputError, match="no such file"):
        evaluate(tmp_path / "missing.tif", r)
    cut = tmp_path / "cut.tif"
    noise = np.random.default_rng(0).integers(0, 2, (300, 300)).astype(np.uint8)
    cut.write_bytes(save(tmp_path / "whole.tif", noise).read_bytes()[:40_000])
    reference = save(tmp_path / "big.tif", noise)
    with pytest.raises(InputError, match=r"cut.tif: cannot be read"):
        evaluate(cut, reference)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"thresholds": ()}, "at least one"),
        ({"thresholds": (1.2,)}, "1.2"),
        ({"boundary_px": 0}, "boundary_px is 0"),
        ({"boundary_m": -1.0}, "boundary_m is -1.0"),
        ({"boundary_px": 2, "boundary_m": 1.0}, "one of the two"),
        ({"gsd": math.nan}, "gsd is nan"),
        ({"window": 0}, "window is 0"),
        ({"predicted_as": "image"}, "'image'"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    r = save(tmp_path / "r.tif", np.ones((4, 4), np.uint8))
    with pytest.raises(SettingError, match=words):
        evaluate(r, r, **options)


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def inria(tmp_path: Path) -> tuple[Path, Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Folders named and filled as Inria's."""
    ours, theirs = tmp_path / "pred", tmp_path / "gt"
    ours.mkdir()
    theirs.mkdir()
    masks = {}
    for index, name in enumerate(("austin1", "austin10", "austin2", "tyrol-w3", "mytown_north")):
        predicted, truth = blobs((50, 60), 2 * index, 0.1 * index + 0.1), blobs((50, 60), 2 * index + 1, 0.3)
        masks[name] = predicted, truth
        save(ours / f"{name}_mask.tif", predicted.astype(np.uint8) * 255)
        save(theirs / f"{name}.tif", truth.astype(np.uint8) * 255)
    save(ours / "austin_rgb.tif", np.zeros((3, 5, 5), np.uint8))
    (ours / "run.json").write_text("{}")
    return ours, theirs, masks


def test_inria_folders(inria: tuple[Path, Path, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    ours, theirs, masks = inria
    result = evaluate(ours, theirs)
    assert list(result.per_tile) == ["austin1", "austin2", "austin10", "mytown_north", "tyrol-w3"]
    assert list(result.per_city) == ["austin", "tyrol-w"]

    def summed(names: list[str]) -> Confusion:
        pairs = [masks[name] for name in names]
        flat = [np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)]
        return Confusion.of(*flat)

    assert result.per_city["austin"].confusion == summed(["austin1", "austin2", "austin10"])
    assert result.per_city["tyrol-w"].confusion == summed(["tyrol-w3"])
    assert result.total.confusion == summed(list(masks))
    # Sums of counts, not means of ratios.
    assert result.total.iou != pytest.approx(np.mean([score.iou for score in result.per_tile.values()]), abs=1e-4)
    near = [Boundary.of(*pair, distance=2) for pair in masks.values()]
    assert result.total.boundary == sum(near, Boundary())
    assert result.notes == (f"{ours}: austin without a partner in {theirs}, left out",)
    assert result.threshold is None
    assert result.curve is None
    header, tiles, cities, (total,) = result.table()
    assert [row[0] for row in tiles] == list(result.per_tile)
    assert [row[0] for row in cities] == ["austin", "tyrol-w"]
    assert total[:2] == ("total", f"{result.total.iou:.4f}")
    assert {len(row) for row in (*header, *tiles, *cities, total)} == {7}
    text = json.dumps(result.as_dict(), allow_nan=False)
    assert json.loads(text)["per_tile"]["tyrol-w3"]["city"] == "tyrol-w"


def test_totals_by_hand(tmp_path: Path) -> None:
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "p/x1.tif", np.array([[1, 1, 0, 0]], np.uint8))
    save(tmp_path / "r/x1.tif", np.array([[1, 0, 0, 0]], np.uint8))
    save(tmp_path / "p/x2.tif", np.array([[1, 1, 1, 1, 0, 0]], np.uint8))
    save(tmp_path / "r/x2.tif", np.array([[1, 1, 1, 1, 1, 0]], np.uint8))
    result = evaluate(tmp_path / "p", tmp_path / "r")
    assert result.per_tile["x1"].iou == 1 / 2
    assert result.per_tile["x2"].iou == 4 / 5
    assert result.total.iou == 5 / 7
    assert result.total.accuracy == 8 / 10
    assert result.total.confusion == Confusion(5, 1, 1, 3)


def test_one_file_against_a_folder_of_tiles(tmp_path: Path) -> None:
    predicted = blobs((80, 90), 5)
    mosaic = save(tmp_path / "mask.tif", predicted.astype(np.uint8) * 255)
    polygons = save_polygons(tmp_path / "buildings.gpkg", polygons_of(predicted))
    tiles = tmp_path / "gt"
    tiles.mkdir()
    expected = Confusion()
    for number, (row, col) in enumerate([(0, 0), (40, 0), (0, 45), (40, 45)], 1):
        truth = blobs((40, 45), 30 + number)
        save(tiles / f"city{number}.tif", truth.astype(np.uint8), transform=moved(col, row))
        expected += Confusion.of(predicted[row : row + 40, col : col + 45], truth)
    save(tiles / "city5.tif", np.ones((9, 9), np.uint8), transform=moved(0, 500))
    for one in (mosaic, polygons):
        result = evaluate(one, tiles)
        assert result.total.confusion == expected
        assert result.per_city["city"].confusion == expected
        assert "city5: left out, since the two sides do not overlap" in result.notes
    away = save(tmp_path / "away.tif", np.ones((9, 9), np.uint8), transform=moved(0, 900))
    with pytest.raises(InputError, match="none of 5 pairs overlap"):
        evaluate(away, tiles)


def test_mixed_folder_has_no_common_curve(tmp_path: Path) -> None:
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "p/x1.tif", np.array([[1, 1, 0, 0]], np.uint8))
    save(tmp_path / "p/x2.tif", np.array([[0.9, 0.6, 0.2, 0]], np.float32))
    for name in ("x1", "x2"):
        save(tmp_path / f"r/{name}.tif", np.array([[1, 0, 0, 0]], np.uint8))
    result: Evaluation = evaluate(tmp_path / "p", tmp_path / "r")
    assert result.curve is None
    assert result.as_dict()["curve"] is None
    assert result.threshold == 0.5
    assert result.total.confusion == Confusion(2, 2, 0, 4)


def test_real_tiles(shared_data: Path) -> None:
    """Labels beside their imagery, in one folder, against themselves."""
    folder = shared_data / "buildings" / "val"
    result = evaluate(folder, folder)
    assert result.total.iou == 1
    assert result.total.boundary_iou == 1
    assert len(result.tiles) == 17
