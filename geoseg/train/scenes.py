"""Labelled images, read window by window: pixels, what they show, and which of them count."""

from __future__ import annotations

import fnmatch
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from geoseg.aoi import OutsideError
from geoseg.errors import GeosegError, InputError, SettingError
from geoseg.inputs import expand_inputs
from geoseg.mosaic import Mosaic, open_mosaic
from geoseg.polygon_side import Layer
from geoseg.raster import READ_ERRORS
from geoseg.raster_side import Raster
from geoseg.tiling import Rect

if TYPE_CHECKING:
    from geoseg.sides import Side
    from geoseg.train.recipe import Dataset

OPEN_LABELS = 24
"""Files of labels that a process keeps open."""


class Labelled(NamedTuple):
    """A window of a scene; all arrays have its rows and columns."""

    image: NDArray[np.float32]
    """(3, rows, columns) on the scale 0 … 1; 0 where unknown."""
    building: NDArray[np.bool_]
    known: NDArray[np.bool_]
    """True: the image has data."""
    counts: NDArray[np.bool_]
    """True: the image has data and the pixel is labelled; others count in no loss and no metric."""
    problems: tuple[str, ...]
    """What could not be read."""


@dataclass(frozen=True)
class Scene:
    """One image with its labels. Holds names and numbers only, so that it can be sent to other processes."""

    mosaic: Mosaic
    """The image; its area of interest is where labels are complete."""
    labels: Path
    """A mask of the image's size, or polygons."""
    polygons: bool
    classes: tuple[int, ...] | None
    ignore: tuple[int, ...]
    range: tuple[float, float]
    """Stored values that mean 0 and 1."""
    gsd: float | None
    """Metres on the ground a pixel spans; None where not known."""

    @property
    def name(self) -> str:
        """The image, as the user named it."""
        return self.mosaic.sources[0].name

    @cached_property
    def labelled(self) -> Rect:
        """The part of the image inside which labels may lie: all of it, or the box of the area of interest."""
        if self.mosaic.aoi is None:
            return self.mosaic.extent
        left, top, right, bottom = shapely.total_bounds(shapely.from_wkb(np.array(self.mosaic.aoi, object)))
        box = Rect(math.floor(top), math.floor(left), math.ceil(bottom), math.ceil(right)) & self.mosaic.extent
        return box or self.mosaic.extent

    def shares_ground(self, other: Scene) -> bool:
        """Say whether labelled parts of the same image overlap."""
        ours, theirs = (shapely.union_all(shapely.from_wkb(np.array(s._areas, object))) for s in (self, other))
        return bool(shapely.area(shapely.intersection(ours, theirs)) > 0)

    @property
    def _areas(self) -> tuple[bytes, ...]:
        box = self.mosaic.extent
        whole = shapely.to_wkb(shapely.box(box.col0, box.row0, box.col1, box.row1))
        return self.mosaic.aoi if self.mosaic.aoi is not None else (whole,)

    def read(self, rect: Rect) -> Labelled:
        """Read a window, which may pass the image's edges; there nothing is known.

        Where labels cannot be read (a damaged file) nothing counts.

        Raises:
            InputError: The labels do not say what is building.
        """
        inside = rect & self.mosaic.extent
        image = np.zeros((3, *rect.shape), np.float32)
        building, known, counts = (np.zeros(rect.shape, bool) for _ in range(3))
        if inside is None:
            return Labelled(image, building, known, counts, ())
        pixels = self.mosaic.read(inside)
        problems = [str(problem) for problem in pixels.problems]
        try:
            is_building, is_labelled = _side(self).read(inside)
        except InputError as error:
            if not isinstance(error.__cause__, _UNREADABLE):
                raise
            problems.append(str(error))
            is_building = is_labelled = np.zeros(inside.shape, bool)
        rows, cols = inside.slices(rect)
        low, high = self.range
        image[:, rows, cols] = np.clip((pixels.values.astype(np.float32) - low) / (high - low), 0, 1)
        image[:, rows, cols][:, ~pixels.valid] = 0
        known[rows, cols] = pixels.valid
        counts[rows, cols] = pixels.valid & is_labelled & self.mosaic.inside_aoi(inside)
        building[rows, cols] = is_building.astype(bool) & counts[rows, cols]
        return Labelled(image, building, known, counts, tuple(problems))


_UNREADABLE = (RasterioError, *READ_ERRORS)
"""Why reading a raster fails, as opposed to what is in it being wrong."""

_open: OrderedDict[tuple[object, ...], tuple[ExitStack, Side]] = OrderedDict()
_layers: dict[Path, Layer] = {}


def _side(scene: Scene) -> Side:
    """Return the labels of a scene on the grid of its image, from the files that this process keeps open."""
    key = (scene.name, scene.labels, scene.classes, scene.ignore)
    if key in _open:
        _open.move_to_end(key)
        return _open[key][1]
    stack = ExitStack()
    side: Side
    if scene.polygons:
        side = _layer(scene.labels).on(scene.mosaic.geobox)
    else:
        # An open file ends the GDAL settings that it had to make for itself, which may be long after others were made.
        with rasterio.Env():
            side = Raster(scene.labels, stack).on(scene.mosaic.geobox, "mask", scene.classes, scene.ignore)
    _open[key] = stack, side
    while len(_open) > OPEN_LABELS:
        _open.popitem(last=False)[1][0].close()
    return side


def _layer(path: Path) -> Layer:
    """Return the polygons of a file, which all images share: some formats are read whole."""
    if path not in _layers:
        _layers[path] = Layer(path)
    return _layers[path]


def close_labels() -> None:
    """Close the files of labels that this process keeps open."""
    while _open:
        _open.popitem()[1][0].close()
    _layers.clear()


def open_scenes(dataset: Dataset) -> tuple[list[Scene], list[str]]:
    """Find the images of a data set and their labels, reading headers only.

    Returns:
        The scenes, in order of name, and a line for each image that cannot be used. Images outside the area of
        interest are passed over.

    Raises:
        InputError: Something named does not exist, or no image can be used.
    """
    images = [
        name for name in expand_inputs(dataset.images) if _wanted(name, dataset.image_ending, dataset.only, dataset.but)
    ]
    if not images:
        raise InputError(f"{', '.join(dataset.images)}: no image in there has a name that is wanted")
    masks = _by_stem(expand_inputs(dataset.masks), dataset.mask_ending) if dataset.masks else {}
    scenes: list[Scene] = []
    problems: list[str] = []
    outside: list[str] = []
    for name in images:
        try:
            labels = _mask_of(name, dataset, masks) if dataset.buildings is None else Path(dataset.buildings)
            scenes.append(_open_scene(name, labels, dataset))
        except OutsideError as error:
            # Of a folder of images only some are labelled.
            outside.append(str(error))
        except GeosegError as error:
            problems.append(str(error))
    if not scenes:
        problems += outside
        listed = "\n".join(f"  {problem}" for problem in problems[:20])
        raise InputError(f"none of {len(images)} images can be learnt from:\n{listed}")
    if dataset.buildings is not None:
        layer = _layer(Path(dataset.buildings))
        if not any(layer.on(scene.mosaic.geobox).touches_grid() for scene in scenes):
            raise InputError(
                f"{dataset.buildings}: none of its polygons lies in an image of {', '.join(dataset.images)}; check "
                "that both are in the CRS they say they are"
            )
    return scenes, problems


def _open_scene(name: str, labels: Path, dataset: Dataset) -> Scene:
    mosaic, problems = open_mosaic([name], bands=dataset.bands, aoi=dataset.aoi)
    if problems:
        raise InputError(str(problems[0]))
    kind = str(mosaic.dtype)
    if dataset.range is None and kind != "uint8":
        raise SettingError(
            f"{name}: its values are {kind}; say which mean black and white, for example range = [0, 10000]"
        )
    scene = Scene(
        mosaic=mosaic,
        labels=labels,
        polygons=dataset.buildings is not None,
        classes=dataset.classes,
        ignore=dataset.ignore,
        range=dataset.range or (0.0, 255.0),
        gsd=dataset.gsd or mosaic.ground_gsd,
    )
    if not scene.polygons:
        with ExitStack() as stack:
            mask = Raster(labels, stack)
            if tuple(mask.grid.shape) != mosaic.shape:
                (rows, cols), (height, width) = mask.grid.shape, mosaic.shape
                raise InputError(f"{labels} has {cols} × {rows} px, its image {name} {width} × {height} px")
    return scene


def _stem(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _wanted(name: str, ending: str, only: Sequence[str], but: Sequence[str]) -> bool:
    stem = _stem(name)
    if not stem.endswith(ending):
        return False
    stem = stem[: len(stem) - len(ending)]
    chosen = not only or any(fnmatch.fnmatchcase(stem, pattern) for pattern in only)
    return chosen and not any(fnmatch.fnmatchcase(stem, pattern) for pattern in but)


def _by_stem(names: Iterable[str], ending: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        stem = _stem(name)
        if stem.endswith(ending):
            found.setdefault(stem[: len(stem) - len(ending)], []).append(name)
    return found


def _mask_of(name: str, dataset: Dataset, masks: dict[str, list[str]]) -> Path:
    stem = _stem(name)
    stem = stem[: len(stem) - len(dataset.image_ending)]
    found = masks.get(stem, [])
    if len(found) != 1:
        wanted = f"{stem}{dataset.mask_ending}"
        what = f"{len(found)} masks are" if found else "no mask is"
        raise InputError(
            f"{name}: {what} called {wanted} in {', '.join(dataset.masks)} (see image_ending, mask_ending)"
        )
    return Path(found[0])
