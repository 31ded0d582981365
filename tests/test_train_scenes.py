"""Labelled images, window by window, against the same pixels read and drawn in other ways."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasters import NORTH_UP, UTM, damage, noise, write
from training import drawn, table, write_pairs

from geoseg.aoi import apply_affine
from geoseg.errors import InputError
from geoseg.mosaic import Mosaic
from geoseg.tiling import Rect
from geoseg.train.recipe import Dataset
from geoseg.train.scenes import Scene, close_labels, open_scenes


@pytest.fixture(autouse=True)
def closed():
    yield
    close_labels()


def only_scene(dataset: Dataset) -> Scene:
    (scene,), problems = open_scenes(dataset)
    assert problems == []
    return scene


def pair(folder: Path, image: np.ndarray, labels: np.ndarray, **options: Any) -> None:
    for kind in ("images", "gt"):
        (folder / kind).mkdir(exist_ok=True)
    write(folder / "images" / "a.tif", image, **options)
    write(folder / "gt" / "a.tif", labels[None])


# --- windows


@pytest.mark.parametrize("rect", [Rect(0, 0, 70, 90), Rect(10, 20, 42, 52), Rect(69, 89, 70, 90)])
def test_a_window_is_what_rasterio_reads(tmp_path, rect):
    made = write_pairs(tmp_path, {"a": (70, 90)})
    image, mask = made["a"]
    window = only_scene(table(tmp_path)).read(rect)
    rows, cols = slice(rect.row0, rect.row1), slice(rect.col0, rect.col1)
    np.testing.assert_array_equal(window.image, image[:, rows, cols].astype(np.float32) / 255)
    np.testing.assert_array_equal(window.building, mask[rows, cols] > 0)
    assert window.known.all()
    assert window.counts.all()
    assert window.problems == ()


def test_beyond_the_edges_nothing_is_known(tmp_path):
    image, mask = write_pairs(tmp_path, {"a": (70, 90)})["a"]
    scene = only_scene(table(tmp_path))
    rect = Rect(-13, 60, 80, 101)
    window = scene.read(rect)
    inside = np.zeros(rect.shape, bool)
    inside[13:83, :30] = True
    np.testing.assert_array_equal(window.known, inside)
    np.testing.assert_array_equal(window.counts, inside)
    np.testing.assert_array_equal(window.image[:, 13:83, :30], image[:, :, 60:].astype(np.float32) / 255)
    np.testing.assert_array_equal(window.building[13:83, :30], mask[:, 60:] > 0)
    assert not window.building[~inside].any()
    assert (window.image[:, ~inside] == 0).all()
    outside = scene.read(Rect(200, 200, 210, 220))
    assert outside.image.shape == (3, 10, 20)
    assert not any(array.any() for array in outside[:4])


@pytest.mark.parametrize("kind", ["mask", "nodata", "alpha", "nan"])
def test_pixels_without_data_count_in_nothing(tmp_path, kind):
    image, mask = drawn((40, 50))
    valid = np.random.default_rng(1).random((40, 50)) < 0.7
    options: dict[str, Any] = {}
    ranged: dict[str, Any] = {}
    if kind == "mask":
        options["mask"] = valid
    elif kind == "nodata":
        image = np.where(valid, image, 0).astype(np.uint8)
        options["nodata"] = 0
    elif kind == "alpha":
        image = np.concatenate([image, valid[None].astype(np.uint8) * 255])
        C = rasterio.enums.ColorInterp
        options["interp"] = [C.red, C.green, C.blue, C.alpha]
    else:
        image = np.where(valid, image, [[[np.nan]], [[np.inf]], [[3]]]).astype(np.float32)
        ranged["range"] = (0.0, 255.0)
    pair(tmp_path, image, mask, **options)
    window = only_scene(table(tmp_path, **ranged)).read(Rect(0, 0, 40, 50))
    np.testing.assert_array_equal(window.known, valid)
    np.testing.assert_array_equal(window.counts, valid)
    np.testing.assert_array_equal(window.building, (mask > 0) & valid)
    np.testing.assert_array_equal(window.image, np.where(valid, image[:3], 0).astype(np.float32) / np.float32(255))


def test_values_and_bands_are_what_the_table_says(tmp_path):
    image, mask = noise((4, 30, 40), "uint16", low=0, high=12000), drawn((30, 40))[1]
    pair(tmp_path, image, mask)
    window = only_scene(table(tmp_path, range=(1000.0, 11000.0), bands=(4, 2, 1))).read(Rect(0, 0, 30, 40))
    wanted = np.clip((image[[3, 1, 0]].astype(float) - 1000) / 10000, 0, 1)
    np.testing.assert_allclose(window.image, wanted, atol=1e-6)


def test_classes_and_what_is_not_labelled(tmp_path):
    image = drawn((30, 40))[0]
    mask = np.random.default_rng(0).integers(0, 5, (30, 40)).astype(np.uint8)
    pair(tmp_path, image, mask)
    scene = only_scene(table(tmp_path, classes=(2, 4), ignore=(3,)))
    window = scene.read(Rect(0, 0, 30, 40))
    np.testing.assert_array_equal(window.building, np.isin(mask, (2, 4)))
    np.testing.assert_array_equal(window.counts, mask != 3)
    assert window.known.all()
    with pytest.raises(InputError, match=r"a.tif: holds 1 and 4, perhaps more.*classes"):
        only_scene(table(tmp_path)).read(Rect(0, 0, 30, 40))


# --- polygons

BUILDINGS = [
    shapely.box(500_005, 3_999_980, 500_015.3, 3_999_992.1),
    shapely.Point(500_030, 3_999_985).buffer(6.2),
    shapely.Polygon(
        [(500_003, 3_999_968), (500_024, 3_999_971), (500_020, 3_999_978), (500_001, 3_999_975)],
        [[(500_010, 3_999_971), (500_014, 3_999_972), (500_013, 3_999_974)]],
    ),
    shapely.box(500_013, 3_999_985, 500_060, 3_999_987),  # passes the image's edge, overlaps the first
]
AREA = shapely.Polygon([(500_002, 3_999_966), (500_038, 3_999_970), (500_033, 3_999_997), (500_004, 3_999_993)])
SUFFIX = {"GPKG": "gpkg", "GeoJSON": "geojson", "FlatGeobuf": "fgb"}


def vector(path: Path, shapes: list[Any], crs: str = UTM, driver: str = "GPKG") -> Path:
    gpd.GeoDataFrame(geometry=shapes, crs=UTM).to_crs(crs).to_file(path, driver=driver)
    return path


def centres_in(shapes: list[Any], rect: Rect) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixel centres of a rectangle lie in one of the shapes, and which are too close to an edge to say."""
    cols, rows = np.meshgrid(np.arange(rect.col0, rect.col1) + 0.5, np.arange(rect.row0, rect.row1) + 0.5)
    x, y = apply_affine(NORTH_UP, cols, rows)
    points, joined = shapely.points(x, y), shapely.union_all(shapes)
    return shapely.contains(joined, points), shapely.distance(joined.boundary, points) < 0.01


@pytest.fixture
def one(tmp_path) -> Path:
    """A folder with one image of 60 × 80 pixels of half a metre."""
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.tif", drawn((60, 80))[0])
    return tmp_path


@pytest.mark.parametrize("driver", [*SUFFIX])
@pytest.mark.parametrize("crs", [UTM, "EPSG:4326", "EPSG:3857"])
def test_polygons_are_buildings_where_centres_lie_in_them(one, driver, crs):
    if driver == "GeoJSON" and crs == "EPSG:3857":
        crs = "OGC:CRS84"
    path = vector(one / f"roofs.{SUFFIX[driver]}", BUILDINGS, crs, driver)
    scene = only_scene(table(one, buildings=str(path)))
    for rect in (Rect(0, 0, 60, 80), Rect(5, 30, 37, 62), Rect(-8, 60, 24, 92)):
        window = scene.read(rect)
        wanted, unsure = centres_in(BUILDINGS, rect)
        sure = window.known & ~unsure
        np.testing.assert_array_equal(window.building[sure], wanted[sure])
        np.testing.assert_array_equal(window.counts, window.known)
    assert 300 < scene.read(Rect(0, 0, 60, 80)).building.sum() < 2000


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_only_inside_the_area_of_interest_pixels_count(one, crs):
    roofs, area = vector(one / "roofs.gpkg", BUILDINGS), vector(one / "area.gpkg", [AREA], crs)
    scene = only_scene(table(one, buildings=str(roofs), aoi=str(area)))
    rect = Rect(0, 0, 60, 80)
    window = scene.read(rect)
    wanted, unsure = centres_in([AREA], rect)
    np.testing.assert_array_equal(window.counts[~unsure], wanted[~unsure])
    inside, close = centres_in(BUILDINGS, rect)
    sure = ~(unsure | close)
    np.testing.assert_array_equal(window.building[sure], (wanted & inside)[sure])
    assert window.known.all()
    rows, cols = np.nonzero(wanted)
    box = scene.labelled
    assert abs(np.array([box.row0, box.col0, box.row1, box.col1]) - _ends(rows, cols)).max() <= 1


def _ends(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.array([rows.min(), cols.min(), rows.max() + 1, cols.max() + 1])


def test_images_outside_the_area_are_passed_over(one):
    write(one / "images" / "far.tif", drawn((30, 30))[0], transform=NORTH_UP.translation(600_000, 4_000_000))
    roofs, area = vector(one / "roofs.gpkg", BUILDINGS), vector(one / "area.gpkg", [AREA])
    scenes, problems = open_scenes(table(one, buildings=str(roofs), aoi=str(area)))
    assert [Path(scene.name).name for scene in scenes] == ["a.tif"]
    assert problems == []
    far = table(one, buildings=str(roofs), aoi=str(area), only=("far",))
    with pytest.raises(InputError, match="outside the images"):
        open_scenes(far)


def test_polygons_that_cannot_be_used_are_told_at_once(one):
    with pytest.raises(InputError, match=r"gone\.gpkg"):
        open_scenes(table(one, buildings=str(one / "gone.gpkg")))
    far = vector(one / "far.gpkg", [shapely.box(700_000, 3_000_000, 700_010, 3_000_010)])
    with pytest.raises(InputError, match=r"far\.gpkg: none of its polygons lies in an image.*CRS"):
        open_scenes(table(one, buildings=str(far)))
    lines = one / "lines.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.LineString([(0, 0), (1, 1)])], crs=UTM).to_file(lines)
    with pytest.raises(InputError, match=r"lines\.gpkg.*polygons"):
        open_scenes(table(one, buildings=str(lines)))


# --- which images, and which masks with them


def test_inria_as_it_is_laid_out(tmp_path):
    write_pairs(tmp_path / "train", {f"{city}{n}": (8, 8) for city in ("austin", "vienna") for n in (1, 5, 6, 12, 36)})
    held = ("austin[1-5]", "vienna[1-5]")
    learnt, _ = open_scenes(table(tmp_path / "train", but=held))
    kept, _ = open_scenes(table(tmp_path / "train", only=held))
    assert [Path(scene.name).stem for scene in kept] == ["austin1", "austin5", "vienna1", "vienna5"]
    cities = ("austin", "vienna")
    assert [Path(scene.name).stem for scene in learnt] == [f"{city}{n}" for city in cities for n in (6, 12, 36)]
    for scene in (*learnt, *kept):
        assert scene.labels == tmp_path / "train" / "gt" / Path(scene.name).name


def test_endings_tell_images_from_masks(tmp_path):
    image, mask = drawn((8, 8))
    for stem in ("a", "b"):
        write(tmp_path / f"{stem}_rgb.tif", image)
        write(tmp_path / f"{stem}_mask.png", mask[None], driver="PNG", crs=None, transform=None)
    write(tmp_path / "c_rgb.tif", image)
    folder = (str(tmp_path),)
    scenes, problems = open_scenes(
        Dataset(images=folder, masks=folder, image_ending="_rgb", mask_ending="_mask", only=("a", "c"))
    )
    assert [scene.labels.name for scene in scenes] == ["a_mask.png"]
    (problem,) = problems
    assert "c_rgb.tif: no mask is called c_mask in" in problem
    np.testing.assert_array_equal(scenes[0].read(Rect(0, 0, 8, 8)).building, mask > 0)


def test_what_cannot_be_used_is_left_out_and_told(tmp_path):
    write_pairs(tmp_path, {"good": (20, 20), "small": (20, 20), "deep": (20, 20), "broken": (20, 20)})
    write(tmp_path / "gt" / "small.tif", np.zeros((1, 10, 12), np.uint8))
    write(tmp_path / "images" / "deep.tif", noise((3, 20, 20), "uint16"))
    write(tmp_path / "images" / "lonely.tif", drawn((20, 20))[0])
    (tmp_path / "images" / "broken.tif").write_bytes(b"II*\0nonsense")
    scenes, problems = open_scenes(table(tmp_path))
    assert [Path(scene.name).stem for scene in scenes] == ["good"]
    broken, deep, lonely, small = problems
    assert "broken.tif" in broken
    assert "cannot be opened as a raster" in broken
    assert "deep.tif: its values are uint16; say which mean black and white, for example range" in deep
    assert "lonely.tif: no mask is called lonely" in lonely
    assert "small.tif has 12 × 10 px, its image" in small
    with pytest.raises(InputError, match=r"none of 1 images can be learnt from:\n.*uint16"):
        open_scenes(table(tmp_path, only=("deep",)))
    with pytest.raises(InputError, match="no image in there has a name that is wanted"):
        open_scenes(table(tmp_path, only=("nothing*",)))


def test_two_masks_of_one_name_are_told(tmp_path):
    _, mask = write_pairs(tmp_path, {"a": (8, 8)})["a"]
    write(tmp_path / "gt" / "a.png", mask[None], driver="PNG", crs=None, transform=None)
    with pytest.raises(InputError, match="2 masks are called a"):
        open_scenes(table(tmp_path))


@pytest.mark.parametrize("which", ["images", "gt"])
def test_where_a_file_is_damaged_nothing_counts(tmp_path, which):
    image, mask = drawn((256, 256))
    pair(tmp_path, image, mask)
    damage(tmp_path / which / "a.tif", image if which == "images" else noise((1, 256, 256)) % 2, keep=0.5)
    scene = only_scene(table(tmp_path))
    first, last = scene.read(Rect(0, 0, 40, 40)), scene.read(Rect(200, 200, 240, 240))
    assert first.counts.all()
    assert first.problems == ()
    assert not last.counts.any()
    assert not last.building.any()
    assert last.known.all() == (which == "gt")
    assert "a.tif" in last.problems[0]


# --- how it is read


def test_a_window_does_not_read_the_whole_image(tmp_path, monkeypatch):
    image, mask = np.zeros((3, 2000, 2000), np.uint8) + 9, np.zeros((2000, 2000), np.uint8)
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    for kind, values in (("images", image), ("gt", mask[None])):
        (tmp_path / kind).mkdir()
        write(tmp_path / kind / "a.tif", values, **options)
    asked: list[int] = []

    class Watched:
        """An open raster that notes how many pixels it is asked for."""

        def __init__(self, dataset: Any) -> None:
            self._dataset = dataset

        def __getattr__(self, name: str) -> Any:
            value = getattr(self._dataset, name)
            if name not in ("read", "read_masks", "dataset_mask"):
                return value

            def read(*args: Any, **kwargs: Any) -> Any:
                asked.append(kwargs["window"].width * kwargs["window"].height)
                return value(*args, **kwargs)

            return read

    scene = only_scene(table(tmp_path))
    inner = Mosaic.read
    rects: list[Rect] = []
    monkeypatch.setattr(Mosaic, "read", lambda self, rect: rects.append(rect) or inner(self, rect))
    monkeypatch.setattr("geoseg.raster.open_dataset", lambda path: Watched(rasterio.open(path)))
    scene.read(Rect(700, 900, 764, 964))
    assert rects == [Rect(700, 900, 764, 964)]
    assert asked
    assert max(asked) == 64 * 64


def test_scenes_travel(tmp_path):
    write_pairs(tmp_path, {"a": (20, 20)})
    scene = only_scene(table(tmp_path))
    scene.read(Rect(0, 0, 20, 20))
    copy = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(copy.read(Rect(0, 0, 9, 9)).image, scene.read(Rect(0, 0, 9, 9)).image)
    assert len(pickle.dumps(scene)) < 10_000


def test_the_ground_that_a_pixel_spans(tmp_path):
    write_pairs(tmp_path, {"a": (20, 20)})
    assert only_scene(table(tmp_path)).gsd == pytest.approx(0.5, rel=1e-3)
    assert only_scene(table(tmp_path, gsd=0.3)).gsd == 0.3
