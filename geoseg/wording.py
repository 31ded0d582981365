"""Values of ``run.json`` in words: one short line of printable text each, whatever the value is."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

MAX_TEXT = 400
"""Characters of a single value from outside."""

MISSING = "–"
"""What stands for a value that is not there."""

SPACE = "\N{NARROW NO-BREAK SPACE}"
"""Between figures and unit, and between thousands."""


def number(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """Return anything as one short line of printable text."""
    if value is None or value == "" or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return shortened("; ".join(f"{text(key)}: {text(item)}" for key, item in value.items()), limit)
    if isinstance(value, list | tuple):
        return shortened(", ".join(text(item) for item in value), limit)
    return shortened("".join(map(_harmless, str(value)[: limit + 1])), limit)


def _harmless(char: str) -> str:
    # Control characters, and the halves of characters that stand for undecodable bytes in file
    # names, cannot be in a page; direction marks would reorder what follows them. The two joiners
    # are part of how some scripts are written.
    if char in "\n\r\t":
        return " "
    if unicodedata.category(char).startswith("C") and char not in "\u200c\u200d":
        return "\N{REPLACEMENT CHARACTER}"
    return char


def shortened(line: str, limit: int) -> str:
    """Return a line of at most ``limit`` characters, the last an ellipsis where it was longer."""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def count(value: float | None) -> str:
    """Return a number rounded to a whole one, thousands apart."""
    return MISSING if value is None else f"{round(value):,}".replace(",", SPACE)


def size(value: float) -> str:
    """Return a number with about three figures, never in powers of ten."""
    if value >= 100 or value == round(value):
        return count(value)
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def sized(value: float | None, unit: str) -> str:
    """Return :func:`size` with a unit."""
    return MISSING if value is None else f"{size(value)}{SPACE}{unit}"


def percent(part: float | None, whole: float | None) -> str:
    """Return ``part`` of ``whole``; 100 % only when it is all."""
    if part is None or not whole:
        return MISSING
    share = 100 * part / whole
    return f"{share:.3g}{SPACE}%" if share < 99.95 or share == 100 else f"{share:.5g}{SPACE}%"


def area(value: float | None) -> str:
    """Return square metres in the unit that reads best."""
    if value is None:
        return MISSING
    for unit, least in (("km²", 1e6), ("ha", 1e4)):
        if value >= least:
            return f"{figures(value / least)}{SPACE}{unit}"
    return sized(value, "m²")


def figures(value: float) -> str:
    """Return a number with two decimals, without any from 100."""
    return f"{value:.2f}" if value < 100 else count(value)


def duration(seconds: float | None) -> str:
    """Return seconds in the units that read best."""
    if seconds is None or seconds < 0:
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{SPACE}h {minutes}{SPACE}min"
    return f"{minutes}{SPACE}min {rest}{SPACE}s"


def file_size(value: float | None) -> str:
    """Return bytes in the unit that reads best, in powers of 1000."""
    if value is None:
        return MISSING
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g}{SPACE}{unit}"
        value /= 1000
    return f"{figures(value)}{SPACE}TB"


def moment(value: Any) -> datetime | None:
    """Return what an ISO 8601 text says, None for anything else."""
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def when(value: Any) -> str:
    """Return date and time of an ISO 8601 text; anything else as it is."""
    then = moment(value)
    if then is None:
        return text(value)
    zone = f" {then.tzname()}" if then.tzname() else ""
    return f"{then.day} {then:%B %Y, %H:%M}{zone}"


def rate(value: Any) -> str:
    """Return pixels a second in the unit that reads best."""
    found = number(value)
    if found is None:
        return MISSING
    scaled, unit = (found / 1e6, "Mpx/s") if found >= 1e6 else (found / 1e3, "kpx/s")
    return f"{scaled:.3g}{SPACE}{unit}" if scaled < 1000 else f"{count(scaled)}{SPACE}{unit}"


def file_name(path: Any) -> str:
    """Return the last part of a path, of whatever system it comes from."""
    return text(str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or path)


def metres(value: float | None) -> str:
    """Return a length with three figures."""
    return MISSING if value is None else f"{value:.3g}{SPACE}m"


def pixels(value: Any) -> str:
    """Return a number of pixels; a text as it is."""
    return text(value) if number(value) is None else f"{text(value)}{SPACE}px"


def label(key: Any) -> str:
    """Return a key of ``run.json`` as people write it."""
    return text(str(key).replace("_", " "))
