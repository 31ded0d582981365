"""Figures by matplotlib, drawn without a display and written complete or not at all.

matplotlib is imported where something is drawn, never with the package; its settings are its own defaults and those
here, whatever a user's ``matplotlibrc`` says, so that the same data give the same picture everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import SettingError
from geoseg.write import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf", ".jpg")
"""What a picture can be written as."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
"""Colours of Okabe and Ito (2008), which people of any colour vision tell apart; the strong ones first."""

INK, FAINT, GRID = "#222222", "#6b6b6b", "#e3e3e3"
"""Text, lesser text, and lines behind the data."""

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "text.color": INK,
    # Names of runs and files are no formulas, whatever dollars there are in them.
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    # Text stays text, and names inside the file do not change from one drawing to the next.
    "svg.fonttype": "none",
    "svg.hashsalt": "geoseg",
}

_NOTHING_OF_TODAY: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".jpg": {},
}


def check_out(out: str | Path) -> Path:
    """Return where a picture goes.

    Raises:
        SettingError: its ending is none of ``SUFFIXES``.
    """
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"{path}: a picture ends in {', '.join(SUFFIXES)}, not in {path.suffix or 'nothing'!r}")
    return path


@contextmanager
def drawing(out: str | Path, size: tuple[float, float], dpi: float = 150) -> Iterator[Figure]:
    """Yield an empty figure; what is on it when the block ends well is written to ``out``, by its ending.

    Args:
        out: PNG, SVG, PDF or JPEG; replaced in one step if it exists.
        size: width and height in inches.
        dpi: pixels per inch.

    Raises:
        SettingError: the ending is unknown.
        OutputError: ``out`` cannot be written (see :func:`geoseg.write.replacing`).
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = check_out(out)
    suffix = path.suffix.lower()
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=size, dpi=dpi)
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=_NOTHING_OF_TODAY[suffix] or None)
