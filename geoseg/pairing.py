"""Which files of a prediction and a reference belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import InputError
from geoseg.inputs import SUFFIXES
from geoseg.polygon_side import VECTOR_SUFFIXES

_IMAGERY = re.compile(r"[_-](rgb|image|img)$", re.IGNORECASE)
_ROLE = re.compile(
    r"[_-](rgb|image|img|mask|gt|truth|reference|labels?|pred|predicted|prediction|prob|probability"
    r"|buildings?|footprints?)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Files that belong together."""

    name: str
    """What both are called, without ``_mask`` and its like."""
    predicted: Path
    """A raster or a vector file."""
    reference: Path
    """A raster or a vector file."""
    imagery: Path | None = None
    """The imagery beside the reference, whose validity counts as well."""


def pair_files(predicted: str | Path, reference: str | Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Return the pairs of files to compare, by name, and notes on files without a partner.

    Two files are a pair whatever they are called. In folders (directly inside) those are a pair whose stems agree once
    a last ``_rgb``, ``_mask``, ``_gt``, ``_pred``, ``_probability`` or the like is taken off. A single file goes with
    each file of a folder. Imagery (``_rgb``, ``_image``, ``_img``) beside a label of the same stem is no label.

    Raises:
        InputError: something is missing, nothing matches, or a stem is there twice.
    """
    ours, theirs = _candidates(predicted), _candidates(reference)
    if isinstance(ours, Path):
        if isinstance(theirs, Path):
            return (_pair(_key(theirs), ours, theirs),), ()
        return tuple(_pair(key, ours, _only(key, files)) for key, files in theirs.items()), ()
    if isinstance(theirs, Path):
        return tuple(_pair(key, _only(key, files), theirs) for key, files in ours.items()), ()
    common = [key for key in theirs if key in ours]
    if not common:
        raise InputError(
            f"{predicted} holds {some(ours)} and {reference} holds {some(theirs)}: no stem is in both. "
            "Name files alike (austin1.tif with austin1.tif or austin1_mask.tif), or give two files"
        )
    notes = []
    for lonely, folder, where in (
        (set(theirs) - set(ours), reference, predicted),
        (set(ours) - set(theirs), predicted, reference),
    ):
        if lonely:
            notes.append(f"{folder}: {some(sorted(lonely))} without a partner in {where}, left out")
    return tuple(_pair(key, _only(key, ours[key]), _only(key, theirs[key])) for key in common), tuple(notes)


def _candidates(where: str | Path) -> Path | dict[str, list[Path]]:
    """Return a file, or the files of a folder by stem."""
    path = Path(where)
    if str(where).startswith("/vsi") or path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{where}: no such file or folder")
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir(), key=lambda f: _natural(f.name)):
        known = file.suffix.lower() in SUFFIXES | VECTOR_SUFFIXES - {".json"}
        if known and file.is_file() and not file.name.startswith("."):
            found.setdefault(_key(file), []).append(file)
    if not found:
        raise InputError(f"{where}: no raster and no vector file in this folder")
    return found


def _only(key: str, files: list[Path]) -> Path:
    labels = [file for file in files if not _IMAGERY.search(file.stem)] or files
    if len(labels) > 1:
        names = " and ".join(file.name for file in labels)
        raise InputError(
            f"{labels[0].parent}: {names} all stand for {key!r}; name the one that is meant, or remove others"
        )
    return labels[0]


def _pair(name: str, predicted: Path, reference: Path) -> Pair:
    beside: list[Path] = []
    if _ROLE.search(reference.stem) and not _IMAGERY.search(reference.stem) and reference.parent.is_dir():
        beside = [
            file
            for file in sorted(reference.parent.glob(f"{_glob_safe(_key(reference))}[_-]*"))
            if file.suffix.lower() in SUFFIXES and _IMAGERY.search(file.stem) and _key(file) == _key(reference)
        ]
    return Pair(name, predicted, reference, beside[0] if beside else None)


def _glob_safe(text: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", text)


def _key(path: Path) -> str:
    return _ROLE.sub("", path.stem)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def some(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


# --- the two sides -----------------------------------------------------------------------------------------------
