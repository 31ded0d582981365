"""Learning curves: the table that training writes, a run's own picture, and several runs in one.

:func:`draw_curves` is Figure 3 of Iglovikov and Shvets 2018 (arXiv 1801.05746), validation IoU against epoch.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg import wording as say
from geoseg.errors import InputError, SettingError
from geoseg.figure import FAINT, PALETTE, check_out, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES_NAME = "curves.csv"
"""Name of the table in a run's folder."""

Reference = tuple[float, str]
"""IoU of a horizontal line, and what is written beside it (may be empty)."""

_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_RING: dict[str, Any] = {"markersize": 7, "markerfacecolor": "white", "markeredgewidth": 1.6}
"""How the best epoch is marked."""
_WIDE = 10.0
"""A quantity that spans more than this factor is drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """One epoch; None where it was not measured (an epoch without validation, an IoU without any building)."""

    epoch: int
    """Counted from 1."""
    step: int
    """Optimiser steps up to its end."""
    seconds: float
    """Time of training up to its end, runs before a resume included."""
    learning_rate: float
    """At its end."""
    train_loss: float
    """Mean over the epoch's batches."""
    train_iou: float | None
    """Over the epoch's training crops."""
    val_loss: float | None = None
    """Mean over the validation images."""
    val_iou: float | None = None
    """Over all validation images, at ``threshold``."""
    threshold: float | None = None
    """The threshold at which that IoU is highest, in this epoch."""

    def __post_init__(self) -> None:
        for name, lowest in (("epoch", 1), ("step", 0), ("seconds", 0), ("learning_rate", 0)):
            value = getattr(self, name)
            if not value >= lowest:
                raise SettingError(f"{name} is {value}; it must be at least {lowest}")
        for name in ("train_iou", "val_iou", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingError(f"{name} is {value}; it must lie between 0 and 1")
        for name in ("seconds", "learning_rate", "train_loss", "val_loss"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise SettingError(f"{name} is {value}; it must be finite")


def _iou_of(point: Point) -> float:
    if point.val_iou is None:
        raise SettingError(f"epoch {point.epoch} was not validated")
    return point.val_iou


COLUMNS = tuple(field.name for field in fields(Point))
"""The header of the table."""

_WHOLE = frozenset(("epoch", "step"))
_MAY_BE_EMPTY = frozenset(("train_iou", "val_loss", "val_iou", "threshold"))


@dataclass(frozen=True)
class Curve:
    """The epochs of one run, in order."""

    name: str
    """What the run is called."""
    points: tuple[Point, ...]
    """Epochs in ascending order."""

    def __post_init__(self) -> None:
        for before, after in zip(self.points, self.points[1:], strict=False):
            if after.epoch <= before.epoch:
                raise SettingError(f"epoch {after.epoch} follows epoch {before.epoch}; epochs must ascend")

    @cached_property
    def validated(self) -> tuple[Point, ...]:
        """The epochs with a validation IoU."""
        return tuple(point for point in self.points if point.val_iou is not None)

    @property
    def best(self) -> Point | None:
        """The epoch of the highest validation IoU, the first of equals; None before any validation."""
        return max(self.validated, key=_iou_of, default=None)

    @property
    def last(self) -> Point | None:
        """The last epoch that was validated."""
        return self.validated[-1] if self.validated else None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the epochs at which a column has a value, and the values."""
        known = [(point.epoch, getattr(point, name)) for point in self.points if getattr(point, name) is not None]
        return [epoch for epoch, _ in known], [float(value) for _, value in known]


@dataclass(frozen=True, slots=True)
class Line:
    """What :func:`draw_curves` draws under one label: the mean over the runs of that label, and their range."""

    label: str
    """As given."""
    runs: int
    """How many runs there are."""
    epochs: tuple[int, ...]
    """Those in which every one of the runs was validated."""
    mean: tuple[float, ...]
    """Mean validation IoU by epoch."""
    low: tuple[float, ...]
    """Lowest by epoch."""
    high: tuple[float, ...]
    """Highest by epoch."""

    @classmethod
    def of(cls, label: str, curves: Sequence[Curve]) -> Line:
        """Combine runs that differ in their seed only.

        Epochs that not all of them have are left out: a mean over fewer runs would jump there.

        Raises:
            InputError: there is no epoch in which all of them were validated.
        """
        tables = [{point.epoch: _iou_of(point) for point in curve.validated} for curve in curves]
        epochs = sorted(set.intersection(*(set(table) for table in tables)))
        if not epochs:
            names = ", ".join(curve.name for curve in curves)
            which = "no epoch was validated yet" if len(curves) == 1 else "no epoch was validated in all of them"
            raise InputError(f"{names}: {which}, so there is no IoU to draw")
        values = [[table[epoch] for table in tables] for epoch in epochs]
        mean = tuple(math.fsum(row) / len(row) for row in values)
        return cls(label, len(curves), tuple(epochs), mean, tuple(map(min, values)), tuple(map(max, values)))

    @property
    def best(self) -> tuple[int, float]:
        """Epoch and IoU of the highest mean, the first of equals."""
        top = max(range(len(self.mean)), key=self.mean.__getitem__)
        return self.epochs[top], self.mean[top]

    @property
    def last(self) -> tuple[int, float]:
        """The last epoch and its mean IoU."""
        return self.epochs[-1], self.mean[-1]

    def summary(self) -> str:
        """Return the line's entry in the legend."""
        several = f" ({self.runs} runs)" if self.runs > 1 else ""
        (best, top), (last, end) = self.best, self.last
        return f"{say.text(self.label)}{several} · best {top:.3f} (epoch {best}) · last {end:.3f} (epoch {last})"


def read_curve(path: str | Path) -> Curve:
    """Read the table of a run.

    Args:
        path: the CSV that training writes, or the run's folder, in which it is called ``curves.csv``.

    Returns:
        The curve, called after the folder, or after the file where that has another name.

    Raises:
        InputError: the file is missing or holds something else; the message says in which line.
    """
    path = Path(path)
    file = path / CURVES_NAME if path.is_dir() else path
    name = file.resolve().parent.name if file.name == CURVES_NAME else file.stem
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return Curve(name, tuple(_points(file, csv.reader(stream, strict=True))))
    except FileNotFoundError:
        where = (
            f"{path}: holds no {CURVES_NAME}; is it the folder of a run?" if path.is_dir() else f"{path}: no such file"
        )
        raise InputError(where) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: cannot be read as a table: {error}") from error


def _points(file: Path, rows: Any) -> Iterator[Point]:
    header = next(rows, None)
    if header is None or tuple(header) != COLUMNS:
        found = "nothing" if header is None else repr(",".join(header))
        raise InputError(f"{file}: line 1 must be {','.join(COLUMNS)!r}, and is {found}")
    before = 0
    for row in rows:
        where = f"{file}: line {rows.line_num}"
        if len(row) != len(COLUMNS):
            raise InputError(f"{where} has {len(row)} cells, not {len(COLUMNS)}: {','.join(row)!r}")
        values = {name: _cell(where, name, text.strip()) for name, text in zip(COLUMNS, row, strict=True)}
        try:
            point = Point(**values)
        except SettingError as error:
            raise InputError(f"{where}: {error}") from None
        if point.epoch <= before:
            raise InputError(f"{where}: epoch {point.epoch} follows epoch {before}; epochs must ascend")
        before = point.epoch
        yield point


def _cell(where: str, name: str, text: str) -> Any:
    if not text and name in _MAY_BE_EMPTY:
        return None
    kind: type[int] | type[float] = int if name in _WHOLE else float
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{where}: {name} is {text!r}, not {wanted}") from None


def parse_reference(text: str) -> Reference:
    """Return value and words of ``V`` or ``V:TEXT``, such as ``0.687:paper``.

    Raises:
        SettingError: V is not a number from 0 to 1.
    """
    value, _, words = text.partition(":")
    try:
        iou = float(value)
    except ValueError:
        iou = math.nan
    if not 0 <= iou <= 1:
        raise SettingError(
            f"reference is {text!r}; it must be an IoU from 0 to 1, or one with words, such as 0.687:paper"
        )
    return iou, words.strip()


def draw_run(curve: Curve, out: str | Path) -> None:
    """Draw one run: losses, IoU, and threshold with learning rate, each against the epoch.

    Meant to be called after every epoch: it takes a fraction of a second, and ``out`` is replaced in one step.

    Args:
        curve: may have any number of epochs, none included.
        out: where the picture goes; its ending says what it is (see :data:`geoseg.figure.SUFFIXES`).

    Raises:
        SettingError: the ending is unknown.
        OutputError: ``out`` cannot be written.
    """
    with drawing(out, (12.0, 3.7), dpi=100) as figure:
        loss, iou, rest = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.055, right=0.945, bottom=0.13, top=0.82, wspace=0.24)
        figure.suptitle(_title(curve), x=0.055, y=0.965, ha="left", fontsize=11)
        for axes in (loss, iou, rest):
            _epoch_axis(axes, [point.epoch for point in curve.points])
            if not curve.points:
                axes.set_ylim(0, 1)
        _pair(loss, curve, "train_loss", "val_loss")
        loss.set_title("loss", loc="left")
        _log_if_wide(loss, curve.series("train_loss")[1] + curve.series("val_loss")[1])
        _pair(iou, curve, "train_iou", "val_iou")
        iou.set_title("IoU", loc="left")
        if curve.best is not None:
            iou.plot([curve.best.epoch], [_iou_of(curve.best)], "o", **_RING, markeredgecolor=PALETTE[1])
        _threshold_and_rate(rest, curve)


def _title(curve: Curve) -> str:
    if not curve.points:
        return f"{say.text(curve.name)} · no epoch yet"
    end = curve.points[-1]
    took = f"{end.seconds / 3600:.1f} h" if end.seconds >= 5400 else f"{end.seconds / 60:.1f} min"
    best = f" · best validation IoU {curve.best.val_iou:.4f} in epoch {curve.best.epoch}" if curve.best else ""
    return f"{say.text(curve.name)} · epoch {end.epoch}, step {end.step}, {took}{best}"


def _pair(axes: Axes, curve: Curve, train: str, val: str) -> None:
    for name, label, colour in ((train, "training", PALETTE[0]), (val, "validation", PALETTE[1])):
        _plot(axes, curve.series(name), color=colour, label=label)
    # A place of its own, since searching for the emptiest one takes longer than the drawing.
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=2, borderaxespad=0, handlelength=1.4)


def _plot(axes: Axes, series: tuple[Sequence[float], Sequence[float]], **options: Any) -> None:
    # Few points are seen as points; a single one would not be seen as a line at all.
    marker = "o" if len(series[0]) <= 30 else None
    axes.plot(*series, marker=marker, markersize=3, **options)


def _threshold_and_rate(axes: Axes, curve: Curve) -> None:
    _plot(axes, curve.series("threshold"), color=PALETTE[2], label="threshold")
    axes.set_ylim(0, 1)
    axes.set_title("threshold of the best IoU", loc="left", color=PALETTE[2])
    rate = axes.twinx()
    rate.grid(False)
    rate.spines["right"].set_visible(True)
    epochs, values = curve.series("learning_rate")
    rate.plot(epochs, values, color=PALETTE[3], drawstyle="steps-mid", label="learning rate")
    rate.set_title("learning rate", loc="right", color=PALETTE[3])
    _log_if_wide(rate, values)
    if rate.get_yscale() == "linear":
        rate.set_ylim(0, 1.06 * max([*values, 1e-12]))
        rate.yaxis.set_major_formatter(_plainly)


def _epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    first, last = (min(epochs), max(epochs)) if epochs else (0, 1)
    room = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - room, last + room)


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """Choose a logarithmic axis for positive values that span more than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if not values or min(values) <= 0 or max(values) <= _WIDE * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) < 1e3 * min(values) else (1.0,)))
    axes.yaxis.set_major_formatter(_plainly)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plainly(value: float, _position: float | None = None) -> str:
    return f"{value:g}"


def draw_curves(
    runs: Iterable[Curve | str | Path],
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    reference: Iterable[Reference] | None = None,
) -> tuple[Line, ...]:
    """Draw validation IoU against epoch for several runs.

    Runs of the same label, which differ in their seed, become one line: their mean, in a band from the lowest to the
    highest of them.

    Args:
        runs: curves, or what :func:`read_curve` takes.
        out: where the picture goes; its ending says what it is.
        labels: one for each run; by default the runs' names.
        reference: IoUs to draw as horizontal lines, with words for them.

    Returns:
        What was drawn, in the order of the legend, which is that of the runs.

    Raises:
        InputError: a run cannot be read, or has no validated epoch.
        SettingError: there are no runs, or not as many labels, or the ending of ``out`` is unknown.
        OutputError: ``out`` cannot be written.
    """
    check_out(out)
    curves = [run if isinstance(run, Curve) else read_curve(run) for run in runs]
    if not curves:
        raise SettingError("no runs; name at least one")
    names = [curve.name for curve in curves] if labels is None else list(labels)
    if len(names) != len(curves):
        raise SettingError(f"{len(names)} labels for {len(curves)} runs; give one for each, in their order")
    lines = tuple(
        Line.of(label, [curve for curve, name in zip(curves, names, strict=True) if name == label])
        for label in dict.fromkeys(names)
    )
    marks = sorted(reference or ())
    for value, _words in marks:
        if not 0 <= value <= 1:
            raise SettingError(f"reference is {value}; an IoU lies between 0 and 1")
    with drawing(out, (7.2, 4.6 + 0.19 * len(lines))) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for number, line in enumerate(lines):
            _draw_line(axes, line, number)
        axes.set_ylabel("validation IoU, at each epoch's best threshold")
        _epoch_axis(axes, [epoch for line in lines for epoch in line.epochs])
        _fit_iou(axes, lines, [value for value, _ in marks])
        _draw_references(axes, marks)
        figure.legend(loc="outside lower left", ncols=1, handlelength=2.6)
    return lines


def _draw_line(axes: Axes, line: Line, number: int) -> None:
    colour, dashes = PALETTE[number % len(PALETTE)], _DASHES[number // len(PALETTE) % len(_DASHES)]
    if line.runs > 1:
        axes.fill_between(line.epochs, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    # A label that begins with an underscore would not be in the legend.
    label = line.summary() if not line.label.startswith("_") else f" {line.summary()}"
    _plot(axes, (line.epochs, line.mean), color=colour, linestyle=dashes, label=label)
    epoch, top = line.best
    axes.plot([epoch], [top], "o", **_RING, markeredgecolor=colour)


def _fit_iou(axes: Axes, lines: Sequence[Line], marks: Sequence[float]) -> None:
    low = min([*marks, *(min(line.low) for line in lines)])
    high = max([*marks, *(max(line.high) for line in lines)])
    room = max(0.05 * (high - low), 0.005)
    # An IoU stays between 0 and 1, so that nothing is cut off and no room left beyond.
    axes.set_ylim(max(low - room, -0.01), min(high + room, 1.01))


def _draw_references(axes: Axes, marks: Sequence[Reference]) -> None:
    low, high = axes.get_ylim()
    places = _spread([value for value, _ in marks], 0.045 * (high - low))
    for (value, words), place in zip(marks, places, strict=True):
        axes.axhline(value, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
        axes.annotate(
            f"{value:.3f} {words}".rstrip(),
            (1, value),
            xytext=(1.03, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            va="center",
            color=FAINT,
            fontsize=8,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": FAINT,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Return ascending places near ascending values, no two closer than ``gap``: close ones are centred together."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        # A group of n stands on its mean; where two groups would overlap they become one.
        while len(groups) > 1 and _middle(groups[-1]) - _middle(groups[-2]) < gap * (sum(map(len, groups[-2:])) / 2):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_middle(group) + (k - (len(group) - 1) / 2) * gap for group in groups for k in range(len(group))]


def _middle(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
