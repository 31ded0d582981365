"""Image, truth and several predictions side by side, and each prediction laid over the image.

This is Figure 4 of Iglovikov and Shvets 2018 (arXiv 1801.05746). Everything is brought to the image's grid by the
readers of :mod:`geoseg.evaluate`: masks by nearest neighbour, probabilities bilinearly, polygons by the centres of
pixels. Every pixel is read, window by window, and counted at full resolution; what is too large for its panel is
shown as means over squares of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import InputError, SettingError
from geoseg.figure import check_out
from geoseg.metrics import Confusion, boundary_band, known, reaches
from geoseg.mosaic import Mosaic, Pixels, open_mosaic
from geoseg.overlay import NO_DATA, OUTLINE, classify, mask_picture, overlay, shrunk
from geoseg.panels import Column, draw_columns
from geoseg.polygon_side import Layer, is_vector
from geoseg.raster import gdal_env
from geoseg.raster_side import Raster
from geoseg.sides import ApartError, Side, projecting
from geoseg.tiling import Rect, ceil_to

if TYPE_CHECKING:
    from geoseg.progress import Progress

PANEL = 1600
"""Most pixels of a panel's longer side."""

_THRESHOLD = 0.5
_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class Compared:
    """One prediction, and how it does on the area that is shown."""

    label: str
    """As it is called in the figure."""
    path: str
    """The file."""
    confusion: Confusion
    """Pixels of the image's grid that are valid in image, truth and prediction, at full resolution."""

    def words(self) -> tuple[str, str]:
        """Return what stands below the panel: the IoU, and the rest."""
        counts = self.confusion
        return f"IoU {_ratio(counts.iou)}", f"precision {_ratio(counts.precision)} · recall {_ratio(counts.recall)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a figure shows."""

    predictions: tuple[Compared, ...]
    """In the order given."""
    rect: Rect
    """Pixels of the image's grid that are shown."""
    shrink: int
    """Pixels of the image for one of the panel, along a side."""
    notes: tuple[str, ...] = ()
    """What was assumed, in sentences."""


def draw_comparison(
    image: str | Path,
    truth: str | Path,
    predictions: Sequence[str | Path],
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    threshold: float | None = None,
    window: tuple[int, int, int, int] | None = None,
    columns: int = 5,
    panel: int = PANEL,
    bands: tuple[int, int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    classes: Sequence[int] | None = None,
    predicted_classes: Sequence[int] | None = None,
    ignore: Sequence[int] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Draw an image, the truth and predictions; below each of these the IoU of the area that is shown.

    On the whole image the IoU is that of :func:`geoseg.evaluate.evaluate` where the truth has the image's grid or is
    polygons, and the image has data wherever the other two have.

    Args:
        image: a raster, or a folder or glob of rasters that make one mosaic.
        truth: a mask, or polygons.
        predictions: masks, probabilities or polygons, or folders that ``geoseg segment`` wrote, of which ``mask.tif``
            is taken, with a ``threshold`` ``probability.tif``.
        out: where the picture goes; its ending says what it is (see :data:`geoseg.figure.SUFFIXES`).
        labels: one for each prediction; by default the files' or folders' names.
        threshold: probability from which a pixel is building; 0.5 unless given. Masks have none.
        window: row, column, height and width of the part to show, in pixels of the image; by default all of it that
            the truth covers.
        columns: panels side by side before the next ones go below.
        panel: most pixels of a panel's longer side; larger areas are shown as means over squares of pixels.
        bands: see :func:`geoseg.mosaic.open_mosaic`.
        value_range: stored values that are shown black and white; by default all there are of bytes, else what holds
            the middle 96 % of a sample.
        classes: values of a truth mask that mean building; by default the only value there is besides 0.
        predicted_classes: likewise of predicted masks.
        ignore: values of a truth mask that mean "not labelled"; those pixels count in nothing.
        progress: told of each window.

    Raises:
        InputError: a file is missing, unreadable, or does not overlap the image; nothing can be compared in the area.
        SettingError: an option is out of range, or the labels are not as many as the predictions.
        OutputError: ``out`` cannot be written.
    """
    check_out(out)
    _check(predictions, labels, threshold, columns, panel, value_range)
    mosaic, problems = open_mosaic([image], bands=bands)
    with gdal_env(), ExitStack() as stack:
        files = [_chosen(Path(path), threshold) for path in predictions]
        names = _names(predictions) if labels is None else list(labels)
        opened = _Opened(mosaic, Path(image), stack)
        reference, covered = opened.side(Path(truth), classes, ignore)
        sides = [opened.side(file, predicted_classes, ())[0] for file in files]
        rect = _shown(mosaic, covered, window)
        shrink = -(-max(rect.shape) // panel)
        sheet = _Sheet.of(rect, shrink, len(sides))
        tone = _tone(mosaic, rect, value_range)
        windows = list(_windows(rect, shrink))
        if progress is not None:
            progress.stage("comparing", len(windows))
        lost: dict[str, None] = {}
        for part in windows:
            pixels = mosaic.read(part)
            lost.update(dict.fromkeys(str(problem) for problem in pixels.problems))
            sheet.add(pixels, tone(pixels.values), reference, sides, _THRESHOLD if threshold is None else threshold)
            if progress is not None:
                progress.advance()
        notes = [f"{name}: {remark}" for name, remark in opened.notes]
    compared = tuple(
        Compared(name, str(file), counts) for name, file, counts in zip(names, files, sheet.counts, strict=True)
    )
    for one in compared:
        if not one.confusion.pixels:
            raise InputError(
                f"{one.path}: no pixel of rows {rect.row0} to {rect.row1 - 1}, columns {rect.col0} to "
                f"{rect.col1 - 1} of {image} is valid in image, truth and prediction, so there is nothing to compare"
            )
    notes += [*map(str, problems), *lost]
    result = Comparison(compared, rect, shrink, tuple(dict.fromkeys(notes)))
    draw_columns(
        [Column(Path(image).stem, sheet.rgb, None), *sheet.columns(compared)],
        out,
        across=columns,
        about=_about(result, mosaic.ground_gsd),
        no_data=sheet.has_no_data(),
    )
    return result


def _check(
    predictions: Sequence[str | Path],
    labels: Sequence[str] | None,
    threshold: float | None,
    columns: int,
    panel: int,
    value_range: tuple[float, float] | None,
) -> None:
    if not predictions:
        raise SettingError("no predictions; name at least one")
    if labels is not None and len(labels) != len(predictions):
        raise SettingError(
            f"{len(labels)} labels for {len(predictions)} predictions; give one for each, in their order"
        )
    if threshold is not None and not 0 < threshold <= 1:
        raise SettingError(f"a threshold lies above 0 and at most at 1, not at {threshold}")
    if columns < 3:
        raise SettingError(f"columns is {columns}; image, truth and a prediction need 3")
    if panel < 16:
        raise SettingError(f"panel is {panel} px; it must be at least 16")
    if value_range is not None and not value_range[0] < value_range[1]:
        raise SettingError(f"value range {value_range[0]:g} … {value_range[1]:g}: the second must be the larger")


def _chosen(path: Path, threshold: float | None) -> Path:
    """Return the file that is meant by a folder of results."""
    if not path.is_dir():
        return path
    file = path / ("mask.tif" if threshold is None else "probability.tif")
    if not file.is_file():
        raise InputError(f"{path}: holds no {file.name}; name a raster or a vector file, or what geoseg segment wrote")
    return file


def _names(predictions: Sequence[str | Path]) -> list[str]:
    """Return stems, or folders' names; with the folder before where several would be called alike."""
    paths = [Path(path).resolve() for path in predictions]
    stems = [path.name if path.is_dir() else path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}"
        for path, stem in zip(paths, stems, strict=True)
    ]


class _Within:
    """A side that has no data outside a part of the grid."""

    def __init__(self, side: Side, part: Rect) -> None:
        self.probability = side.probability
        self._side, self._part = side, part

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`geoseg.sides.Side`."""
        values, valid = self._side.read(rect)
        common = self._part & rect
        inside = np.zeros(rect.shape, bool)
        if common is not None:
            inside[common.slices(rect)] = True
        return values, valid & inside


class _Opened:
    """Opens sides on the image's grid, and gathers their notes."""

    def __init__(self, mosaic: Mosaic, image: Path, stack: ExitStack) -> None:
        self._mosaic, self._image, self._stack = mosaic, image, stack
        self._opened: list[Raster | Layer] = []

    @property
    def notes(self) -> Iterator[tuple[str, str]]:
        for one in self._opened:
            yield from one.notes

    def side(self, path: Path, classes: Sequence[int] | None, ignore: Sequence[int]) -> tuple[Side, Rect]:
        """Return values on the grid, and the part of it of which they say something."""
        grid = self._mosaic.geobox
        if is_vector(path):
            layer = Layer(path)
            self._opened.append(layer)
            placed = layer.on(grid)
            if not placed.touches_grid():
                raise ApartError(path, self._image)
            return placed, self._mosaic.extent
        raster = Raster(path, self._stack)
        self._opened.append(raster)
        with projecting(path):
            footprint = raster.footprint(grid, self._image)
        if footprint is None:
            raise ApartError(path, self._image)
        side = raster.on(grid, "auto", None if classes is None else tuple(classes), tuple(ignore))
        return _Within(side, footprint), footprint


def _shown(mosaic: Mosaic, covered: Rect, window: tuple[int, int, int, int] | None) -> Rect:
    if window is None:
        return covered
    row, col, height, width = window
    rows, cols = mosaic.shape
    if height < 1 or width < 1 or row < 0 or col < 0 or row + height > rows or col + width > cols:
        raise SettingError(
            f"window is row {row}, column {col}, height {height}, width {width}; it must lie inside the image of "
            f"{rows} rows and {cols} columns"
        )
    return Rect(row, col, row + height, col + width)


def _windows(rect: Rect, shrink: int) -> Iterator[Rect]:
    """Yield windows row by row; all but the last ones are made of whole squares."""
    side = ceil_to(_WINDOW, shrink)
    for row in range(rect.row0, rect.row1, side):
        for col in range(rect.col0, rect.col1, side):
            yield Rect(row, col, min(row + side, rect.row1), min(col + side, rect.col1))


_Tone = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Turns stored values into 0 … 255."""


def _tone(mosaic: Mosaic, rect: Rect, value_range: tuple[float, float] | None) -> _Tone:
    if value_range is None:
        value_range = (0.0, 255.0) if mosaic.dtype == np.uint8 else _middle_range(mosaic, rect)
    low, high = value_range

    def tone(values: NDArray[Any]) -> NDArray[np.float32]:
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.clip(scaled, 0, 255, out=scaled)

    return tone


def _middle_range(mosaic: Mosaic, rect: Rect, side: int = 128, per_axis: int = 5) -> tuple[float, float]:
    """Return the 2nd and 98th percentile of some windows spread evenly over ``rect``."""
    samples = []
    for row in np.linspace(rect.row0, max(rect.row0, rect.row1 - side), per_axis).astype(int).tolist():
        for col in np.linspace(rect.col0, max(rect.col0, rect.col1 - side), per_axis).astype(int).tolist():
            part = Rect(row, col, min(row + side, rect.row1), min(col + side, rect.col1))
            pixels = mosaic.read(part)
            samples.append(pixels.values[:, pixels.valid].ravel())
    values = np.concatenate(samples)
    low, high = np.percentile(values, (2, 98)).tolist() if values.size else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1)


@dataclass
class _Sheet:
    """What the panels show, at their own resolution, filled window by window."""

    rect: Rect
    shrink: int
    rgb: NDArray[np.uint8]
    """``(3, h, w)``."""
    truth: NDArray[np.uint8]
    """``(3, h, w)``: shares of building, background, no data; 255 = all."""
    masks: list[NDArray[np.uint8]]
    """The same of each prediction."""
    shares: list[NDArray[np.uint8]]
    """``(5, h, w)`` of each prediction: shares of the classes of :func:`classify`."""
    counts: list[Confusion]

    @classmethod
    def of(cls, rect: Rect, shrink: int, predictions: int) -> _Sheet:
        size = -(-rect.height // shrink), -(-rect.width // shrink)

        def empty(bands: int) -> NDArray[np.uint8]:
            return np.zeros((bands, *size), np.uint8)

        several = range(predictions)
        return cls(
            rect,
            shrink,
            empty(3),
            empty(3),
            [empty(3) for _ in several],
            [empty(5) for _ in several],
            [Confusion() for _ in several],
        )

    def add(
        self, pixels: Pixels, toned: NDArray[np.float32], reference: Side, sides: Sequence[Side], threshold: float
    ) -> None:
        """Read, count and draw one window."""
        part = pixels.rect
        row, col = (part.row0 - self.rect.row0) // self.shrink, (part.col0 - self.rect.col0) // self.shrink
        here = (
            slice(None),
            slice(row, row - (-part.height // self.shrink)),
            slice(col, col - (-part.width // self.shrink)),
        )
        self.rgb[here] = self._image(toned, pixels.valid)
        true, labelled = reference.read(part)
        if reference.probability:
            true = reaches(true, _THRESHOLD)
        self.truth[here] = self._shares(np.where(labelled, np.where(true, 0, 1), 2), 3)
        for number, side in enumerate(sides):
            found, valid = side.read(part)
            if side.probability:
                found = reaches(found, threshold)
            self.masks[number][here] = self._shares(np.where(valid, np.where(found, 0, 1), 2), 3)
            valid = valid & labelled & pixels.valid
            self.shares[number][here] = self._shares(classify(found, true, valid), 5)
            self.counts[number] += Confusion.of(found, true, valid)

    def _image(self, toned: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        colour = np.where(valid, toned, np.array(NO_DATA, np.float32)[:, None, None])
        means: NDArray[np.uint8] = np.rint(shrunk(colour, self.shrink)).astype(np.uint8)
        return means

    def _shares(self, classes: NDArray[Any], number: int) -> NDArray[np.uint8]:
        return np.stack([np.rint(255 * shrunk(classes == k, self.shrink)) for k in range(number)]).astype(np.uint8)

    def has_no_data(self) -> bool:
        """Say whether there is something to explain."""
        return any(shares[4].any() for shares in self.shares)

    def columns(self, predictions: Sequence[Compared]) -> Iterator[Column]:
        """Yield the truth's column, and one for each prediction."""
        yield Column("truth", mask_picture(self.truth), self.outlined(), ("truth, outlined", ""))
        for one, mask, shares in zip(predictions, self.masks, self.shares, strict=True):
            laid = overlay(self.rgb, shares.astype(np.float32) / np.float32(255))
            yield Column(one.label, mask_picture(mask), laid, one.words())

    def outlined(self) -> NDArray[np.uint8]:
        """Return the image with the contours of the truth, ``(3, h, w)``."""
        band = boundary_band(self.truth[0] > 127, max(1, round(max(self.rgb.shape) / 450)))
        return np.where(band, np.array(OUTLINE, np.uint8)[:, None, None], self.rgb)


def _about(result: Comparison, gsd: float | None) -> list[str]:
    rect = result.rect
    lines = [f"rows {rect.row0} to {rect.row1 - 1}, columns {rect.col0} to {rect.col1 - 1}"]
    if gsd is not None:
        lines.append(f"{rect.width * gsd:.0f} m × {rect.height * gsd:.0f} m, {gsd:.2g} m a pixel")
    if result.shrink > 1:
        lines.append(f"shown at 1 : {result.shrink}, counted at full resolution")
    return lines


def _ratio(value: float) -> str:
    return "–" if known(value) is None else f"{value:.3f}"
