"""Layout of a comparison: columns of two panels each, words below them, and the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geoseg import wording as say
from geoseg.figure import FAINT, INK, drawing
from geoseg.overlay import FALSE, HIT, MISSED, NO_DATA, OUTLINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL = 640
"""Panels of at most half as many pixels are enlarged, pixel by pixel, so that there is room for words."""

_INCHES = 3.2
_GAP, _HEAD, _FOOT = 0.1, 0.3, 0.46
"""Between panels, above the upper and below the lower one of a column, in inches."""
_TITLE = 44
"""Characters that fit above a panel."""


@dataclass(frozen=True, slots=True)
class Column:
    """Two panels, one below the other, and words."""

    title: str
    """Above the upper panel."""
    upper: NDArray[np.uint8]
    """``(3, h, w)``."""
    lower: NDArray[np.uint8] | None
    """``(3, h, w)``; None: the key stands here."""
    below: tuple[str, str] = ("", "")
    """Two lines below the lower panel."""


def draw_columns(
    columns: Sequence[Column], out: str | Path, *, across: int, about: Sequence[str], no_data: bool
) -> None:
    """Draw columns side by side, ``across`` of them before the next ones go below.

    Panels have exactly the pixels of what they show, or squares of pixels for each, so that nothing is resampled.

    Args:
        columns: all of one height and width.
        out: where the picture goes.
        across: most columns side by side.
        about: lines above the key.
        no_data: whether the key explains the colour of no data.
    """
    height, width = columns[0].upper.shape[1:]
    enlarge = max(1, SMALL // max(height, width))
    height, width = height * enlarge, width * enlarge
    dpi = max(width, height / 2) / _INCHES
    gap, head, foot = (round(inches * dpi) for inches in (_GAP, _HEAD, _FOOT))
    across = min(across, len(columns))
    pair = head + height + gap + height + foot
    wide, high = gap + across * (width + gap), -(-len(columns) // across) * pair
    with drawing(out, (wide / dpi, high / dpi), dpi) as figure:
        for number, column in enumerate(columns):
            left = gap + number % across * (width + gap)
            top = high - number // across * pair - head
            upper, lower = (
                _panel(figure, (left / wide, (top - down) / high, width / wide, height / high), pixels, enlarge)
                for down, pixels in ((height, column.upper), (2 * height + gap, column.lower))
            )
            upper.set_title(say.text(column.title, _TITLE), fontsize=10, pad=4)
            _words(lower, column.below)
            if column.lower is None:
                _key(lower, about, no_data)


def _panel(
    figure: Figure, box: tuple[float, float, float, float], pixels: NDArray[np.uint8] | None, enlarge: int
) -> Axes:
    axes = figure.add_axes(box)
    axes.set_axis_off()
    if pixels is not None:
        large = pixels.transpose(1, 2, 0).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        axes.imshow(large, interpolation="nearest", aspect="auto")
    return axes


def _words(axes: Axes, below: tuple[str, str]) -> None:
    for place, words, weight, colour in zip((-4, -16), below, ("bold", "normal"), (INK, FAINT), strict=True):
        axes.annotate(
            words,
            (0.5, 0),
            xytext=(0, place),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontweight=weight,
            color=colour,
            annotation_clip=False,
        )


def _key(axes: Axes, about: Sequence[str], no_data: bool) -> None:
    from matplotlib.patches import Patch

    entries = [
        (HIT, "found (hit)"),
        (FALSE, "false: predicted, not building"),
        (MISSED, "missed: building, not predicted"),
        (OUTLINE, "outline of the truth"),
    ]
    if no_data:
        entries.append((NO_DATA, "no data, not counted"))
    handles = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colour), edgecolor=FAINT, linewidth=0.5, label=words)
        for colour, words in entries
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        borderaxespad=0,
        borderpad=0,
        labelspacing=0.7,
        title="\n".join(about) + "\n",
        alignment="left",
    )
