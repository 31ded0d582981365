"""Outlines from one and the same probability raster: ours and other tools', against the exact truth.

    python tests/benchmarks/outlines.py [--seeds 11,12,13,14] [--size PX] [--model [NAME|PATH]] [--real FOLDER]
        [--peers FOLDER]

Scenes are synthetic cities (:mod:`geoseg.sample`), whose truth is exact, with three kinds of probability:

``fine``
    the truth as a good network gives it: walls displaced smoothly by a third of a pixel, blurred, a little noise.
``rough``
    as an average one does: walls displaced by 0.9 px, corners rounded by a blur of 2 px, more noise.
``network``
    what the model makes of the drawn imagery (``--model``).

``--real`` adds the model's answer to real imagery. Truth is there only as a raster, so its outlines are traced and
simplified by our own code: its vertices and angles favour our simplified outlines, and only PoLiS and IoU say much.

The settings of our own methods were chosen on the cities of seeds 1 to 4; that outlines begin at pixels' edges by
default, on those of seeds 11 to 14 and on the real scenes.

``--peers`` names a folder with buildingregulariser, geoai-py and what they import, installed by ``pip install --no-deps
--target``. samgeo's functions of the same names are copies of geoai's, or call Building Regulariser.

"tangent" is the published maximum per building, "wall" the mean along the outline (:mod:`geoseg.wall_angle`), which a
small displacement does not spoil. Times are those of one core, without waiting (``process_time``), from the mask to the
finished outline in pixels, the reading of the probability raster between pixels included. The peers' times include our
tracing, which is no slower than theirs (but for ``orthogonalize``, which traces by itself). A batch is one scene, of
some hundred buildings; a run's batches are of up to 4096, which is faster.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scipy import ndimage

from geoseg.field import Field
from geoseg.footprints import Rules, finish
from geoseg.outline import simplify
from geoseg.polygon_metrics import Buildings, PolygonScore, compare
from geoseg.polygonize import buildings_of
from geoseg.sample import City, buildings, draw
from geoseg.spool import Outlines
from geoseg.tiling import Rect
from geoseg.vectorise import outline_rules

Polygons = NDArray[np.object_]
MIN_AREA_M2 = 4.0
MIN_HOLE_M2 = 2.0
MARGIN = 3
FINER = 4
"""Samples along a pixel's side when the truth is drawn."""


@dataclass(frozen=True)
class Scene:
    """A probability and the truth beneath it."""

    name: str
    grey: NDArray[np.uint8]
    """Probability, 255 = 1.0."""
    threshold: float
    truth: Polygons
    """Pixels."""
    gsd: float
    """Metres a pixel."""
    raster: Path
    """The probability as a file, scaled as ours are."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """What is building."""
        return self.grey >= math.ceil(self.threshold * 255)


def array(polygons: list[shapely.Polygon]) -> Polygons:
    """Return a one-dimensional array of polygons."""
    result = np.empty(len(polygons), dtype=object)
    result[:] = polygons
    return result


def noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Return smooth noise with standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return field / field.std()


def synthetic(seed: int, size: int, move: float, blur: float, rough: float) -> NDArray[np.uint8]:
    """Return a probability made from the truth: walls displaced by ``move`` px, blurred, with noise."""
    rng = np.random.default_rng(seed)
    city, rect = City(seed), Rect(0, 0, size, size)
    shapes = [shapely.transform(one.polygon, lambda xy: xy * FINER) for one in buildings(rect, city)]
    fine = rasterize(shapes, out_shape=(size * FINER, size * FINER)).astype(np.float32)
    cover = fine.reshape(size, FINER, size, FINER).mean((1, 3))
    # A pixel's own blur hides displacements below it, so they are read from the finer drawing.
    rows, cols = np.mgrid[:size, :size].astype(np.float32)
    dy, dx = (move * noise(rng, cover.shape, 6.0) for _ in range(2))
    where = np.stack([(rows + dy + 0.5) * FINER - 0.5, (cols + dx + 0.5) * FINER - 0.5])
    moved = ndimage.map_coordinates(ndimage.gaussian_filter(fine, FINER / 2), where, order=1, mode="nearest")
    chance = np.clip(ndimage.gaussian_filter(moved, blur), 1e-3, 1 - 1e-3)
    logit = np.log(chance / (1 - chance)) + rough * noise(rng, cover.shape, 1.5)
    return np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)


def predicted(model: str | None, image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], float]:
    """Return the model's probability of an image, and its threshold."""
    from geoseg.checkpoint import load_model
    from geoseg.predict import Predictor, Scaling, whole_image

    loaded = load_model(model)
    chance = whole_image(Predictor.of(loaded), image, valid, Scaling.of(loaded.card, "uint8", None))
    return np.rint(np.where(valid, chance, 0) * 255).astype(np.uint8), loaded.card.threshold


def stored(path: Path, grey: NDArray[np.uint8]) -> Path:
    """Write a probability as ours are written: tiles of 512, deflate."""
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    facts = {"height": grey.shape[0], "width": grey.shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", transform=from_origin(0, 0, 1, 1), **facts, **layout) as file:
        file.write(grey, 1)
    return path


def scenes(given: argparse.Namespace, folder: Path) -> Iterator[Scene]:
    """Yield the scenes that are asked for; their rasters go into a folder."""
    for seed in [int(text) for text in given.seeds.split(",") if text]:
        city, rect = City(seed), Rect(0, 0, given.size, given.size)
        truth = array([one.polygon for one in buildings(rect, city)])
        for name, roughness in (("fine", (0.35, 1.0, 0.3)), ("rough", (0.9, 2.0, 0.5))):
            grey = synthetic(seed, given.size, *roughness)
            yield Scene(name, grey, 0.5, truth, city.gsd, stored(folder / f"{name}.tif", grey))
        if given.model is not None:
            image, _ = draw(rect, city)
            grey, threshold = cached(given.cache, f"city{seed}_{given.size}", given.model, image)
            yield Scene("network", grey, threshold, truth, city.gsd, stored(folder / "network.tif", grey))
    for name in ("val/suburb_west_0p32", "train/banepa_z19") if given.real else ():
        with rasterio.open(Path(given.real) / "buildings" / f"{name}_rgb.tif") as file:
            image = file.read()
        with rasterio.open(Path(given.real) / "buildings" / f"{name}_mask.tif") as file:
            mask = file.read(1) > 0
        grey, threshold = cached(given.cache, name.replace("/", "_"), given.model, image)
        yield Scene(
            name.split("/")[1], grey, threshold, simplify(traced(mask), 1.0), 0.3, stored(folder / "real.tif", grey)
        )


def cached(
    folder: str | None, name: str, model: str | None, image: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], float]:
    """Return a prediction, kept in a folder between runs if there is one."""
    path = Path(folder) / f"{name}.npz" if folder else None
    if path is None or not path.exists():
        grey, threshold = predicted(model or None, image, np.ones(image.shape[1:], bool))
        if path is None:
            return grey, threshold
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, grey=grey, threshold=threshold)
    with np.load(path) as kept:
        return kept["grey"], float(kept["threshold"])


# --- methods: from a scene to outlines in pixels ------------------------------------------------------------------


def traced(mask: NDArray[np.bool_]) -> Polygons:
    """Return pixel edges."""
    return array([one.polygon for one in buildings_of(mask, mask.astype(np.uint8))])


def pixel_edges(scene: Scene) -> Polygons:
    """Trace, close small holes and leave out small buildings: where all other methods start."""
    batch = Outlines.of(buildings_of(scene.mask, scene.grey))
    rules = Rules(MIN_AREA_M2 / scene.gsd**2, MIN_HOLE_M2 / scene.gsd**2)
    return array([one for done in finish([batch], Affine.identity(), None, rules) for one in done.polygons])


def ours(simplify_px: float, square: bool = True, finer: bool = False) -> Callable[[Scene], Polygons]:
    """Return what ``geoseg polygonize`` does, up to the map."""

    def method(scene: Scene) -> Polygons:
        with Field.open(scene.raster, 255 * scene.threshold) as field:
            shape = outline_rules(0, 0, simplify_px, square, field if finer else None).simplify
            assert shape is not None
            return shape(pixel_edges(scene))

    return method


def iso_lines(tolerance: float) -> Callable[[Scene], Polygons]:
    """Return marching squares at the threshold (contourpy), then Douglas and Peucker's simplification (GEOS)."""

    def method(scene: Scene) -> Polygons:
        from contourpy import FillType, contour_generator

        chance = np.pad(scene.grey.astype(np.float64), 1)
        made = contour_generator(z=chance, fill_type=FillType.OuterOffset)
        level = math.ceil(scene.threshold * 255) - 0.5
        found = []
        for points, offsets in zip(*made.filled(level, np.inf), strict=True):
            rings = [points[a:b] - 0.5 for a, b in pairwise(offsets)]
            found.append(shapely.Polygon(rings[0], rings[1:]))
        polygons = array(found)
        polygons = polygons[shapely.area(polygons) * scene.gsd**2 >= MIN_AREA_M2]
        return shapely.simplify(polygons, tolerance) if tolerance else polygons

    return method


def douglas_peucker(scene: Scene) -> Polygons:
    """Simplify as GEOS does, by one pixel."""
    return np.asarray(shapely.simplify(pixel_edges(scene), 1.0), dtype=object)


def building_regulariser(scene: Scene) -> Polygons:
    """Call Building Regulariser with its defaults, in metres."""
    import geopandas
    from buildingregulariser import regularize_geodataframe

    metres = shapely.transform(pixel_edges(scene), lambda xy: xy * scene.gsd)
    frame = geopandas.GeoDataFrame(geometry=metres, crs="EPSG:32633")
    done = regularize_geodataframe(frame, num_cores=1).geometry.to_numpy()
    return np.asarray(shapely.transform(shapely.get_parts(done), lambda xy: xy / scene.gsd), dtype=object)


def geoai(name: str) -> Callable[[Scene], Polygons]:
    """Return one of geoai's functions, with its defaults."""

    def method(scene: Scene) -> Polygons:
        module = geoai_geometry()
        if name == "orthogonalize":
            # Its tolerance is in map units, its default made for pixels of a metre: as there, a fifth of a pixel …
            # but with a pixel's size of 1 there is nothing to convert.
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "mask.tif"
                grid = from_origin(0, 0, 1, 1)
                shape = {"height": scene.mask.shape[0], "width": scene.mask.shape[1], "count": 1, "dtype": "uint8"}
                with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=grid, **shape) as file:
                    file.write(scene.mask.astype(np.uint8), 1)
                done = module.orthogonalize(str(path), epsilon=2.0).geometry.to_numpy()
            polygons = shapely.get_parts(shapely.transform(done, lambda xy: xy * [1, -1]))
            return polygons[shapely.area(polygons) * scene.gsd**2 >= MIN_AREA_M2]
        metres = shapely.transform(pixel_edges(scene), lambda xy: xy * scene.gsd)
        done = array(list(getattr(module, name)(list(metres))))
        return np.asarray(shapely.transform(shapely.get_parts(done), lambda xy: xy / scene.gsd), dtype=object)

    return method


def geoai_geometry() -> types.ModuleType:
    """Import geoai's geometry alone: the package would import networks and notebooks."""
    os.environ["TQDM_DISABLE"] = "1"
    for name in ("geoai", "geoai.utils"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(name)
            module = types.ModuleType(name)
            module.__path__ = list(spec.submodule_search_locations or [])
            sys.modules[name] = module
    return importlib.import_module("geoai.utils.geometry")


METHODS: dict[str, Callable[[Scene], Polygons]] = {
    "pixel edges": pixel_edges,
    "sub-pixel": ours(0.0, finer=True),
    "pixel, simplified": ours(1.0, square=False),
    "sub-pixel, simplified": ours(1.0, square=False, finer=True),
    "pixel, squared (default)": ours(1.0),
    "sub-pixel, squared": ours(1.0, finer=True),
    "Douglas-Peucker 1 px": douglas_peucker,
    "contourpy": iso_lines(0.0),
    "contourpy, D-P 1 px": iso_lines(1.0),
}
PEERS: dict[str, Callable[[Scene], Polygons]] = {
    "Building Regulariser": building_regulariser,
    "geoai orthogonalize": geoai("orthogonalize"),
    "geoai regularization": geoai("regularization"),
    "geoai adaptive": geoai("adaptive_regularization"),
    "geoai hybrid": geoai("hybrid_regularization"),
}


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one method made of scenes of one kind; two can be added."""

    score: PolygonScore
    buildings: int
    seconds: float
    overlapping: int
    """Buildings that overlap another by more than a hundredth of a pixel."""
    invalid: int
    vertices: int

    def __add__(self, other: Row) -> Row:
        names = ("score", "buildings", "seconds", "overlapping", "invalid", "vertices")
        return Row(*(getattr(self, name) + getattr(other, name) for name in names))


def overlapping(polygons: Polygons) -> int:
    """Return how many polygons overlap another one by more than a hundredth of a pixel."""
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    pair = one < other
    common = shapely.area(shapely.intersection(polygons[one[pair]], polygons[other[pair]]))
    return len(np.unique(np.concatenate([one[pair][common > 0.01], other[pair][common > 0.01]])))


def measured(scene: Scene, method: Callable[[Scene], Polygons]) -> Row:
    """Run a method on a scene and compare with the truth."""
    clock = time.process_time()
    made = method(scene)
    seconds = time.process_time() - clock
    invalid = ~shapely.is_valid(made)
    sound = made.copy()
    sound[invalid] = shapely.make_valid(made[invalid])
    sound = sound[(shapely.area(sound) > 0)]
    rows, cols = scene.mask.shape
    frame = shapely.box(MARGIN, MARGIN, cols - MARGIN, rows - MARGIN)
    sides = [np.asarray(shapely.transform(side, lambda xy: xy * scene.gsd)) for side in (sound, scene.truth)]
    score = compare(
        Buildings(sides[0]),
        Buildings(sides[1]),
        predicted_inside=shapely.within(sound, frame),
        reference_inside=shapely.within(scene.truth, frame),
    )
    vertices = int(shapely.get_num_coordinates(made).sum() - len(made))
    return Row(score, len(made), seconds, overlapping(sound), int(invalid.sum()), vertices)


def main() -> None:
    """Print a table for each kind of scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="11,12,13,14", help="cities")
    parser.add_argument("--size", type=int, default=1536, help="side of a city in pixels")
    parser.add_argument("--model", nargs="?", const="", help="add the network's own probability")
    parser.add_argument("--real", help="folder of real data; needs imagery and masks of suburb_west and banepa_z19")
    parser.add_argument("--peers", help="folder in which other tools are installed")
    parser.add_argument("--only", default="", help="methods whose name contains one of these, comma-separated")
    parser.add_argument("--cache", help="folder that keeps the network's answers between runs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    methods = dict(METHODS)
    if given.peers:
        sys.path.append(given.peers)
        methods |= PEERS
    wanted = [part for part in given.only.split(",") if part]
    rows: dict[tuple[str, str], Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scene in scenes(given, Path(folder)):
            for name, method in methods.items():
                if wanted and not any(part in name for part in wanted):
                    continue
                row = measured(scene, method)
                rows[scene.name, name] = rows[scene.name, name] + row if (scene.name, name) in rows else row
    shown = ""
    for (kind, name), row in rows.items():
        if kind != shown:
            print(f"\n{kind}\n| method | matched | PoLiS m | tangent ° | wall ° | C-IoU | N-ratio | IoU | AP |", end="")
            print(" overlapping | invalid | vertices | s / 10 000 | per s |\n" + "|---" * 14 + "|")
            shown = kind
        figures = row.score.summary()
        print(
            f"| {name} | {row.score.tp} / {row.score.reference} | {figures['polis_m']:.3f} | "
            f"{figures['tangent_angle_deg']:.1f} | {figures['wall_angle_deg']:.1f} | "
            f"{figures['c_iou']:.3f} | {figures['n_ratio']:.2f} | "
            f"{figures['iou']:.3f} | {figures['ap']:.3f} | {row.overlapping} | {row.invalid} | "
            f"{row.vertices / row.buildings:.1f} | {1e4 * row.seconds / row.buildings:.1f} | "
            f"{row.buildings / row.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
