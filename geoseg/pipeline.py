"""Pipeline files: a job written down in TOML, so that it can be kept, reviewed and run again.

    [segment]
    inputs = ["ortho"]
    out = "footprints"
    threshold = 0.4

The table's name is the job. The keys of ``[segment]`` are ``inputs``, ``out`` and the fields of
:class:`geoseg.settings.Settings`; those of ``[train]`` are the fields of :class:`geoseg.train.recipe.Recipe`. Relative
paths are relative to the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import InputError, SettingError

if TYPE_CHECKING:
    from geoseg.segment import Result
    from geoseg.train.loop import Trained
    from geoseg.train.recipe import Recipe

JOBS = ("segment", "train")
_GDAL_NAME = re.compile(r"/vsi|[A-Za-z][A-Za-z0-9_+]+:")
"""How names that are no paths begin, such as ``/vsis3/…``, ``https://…``, ``NETCDF:…`` (not ``C:/…``)."""


def read_pipeline(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the job's name and its keys, paths made relative to the working folder.

    Raises:
        InputError: The file cannot be read.
        SettingError: It is not TOML, has no job or more than one, or lacks what its job needs.
    """
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{file}: not a TOML file ({error})") from error
    if len(content) != 1 or next(iter(content)) not in JOBS:
        found = ", ".join(content) or "nothing"
        raise SettingError(f"{file}: expected one table named {' or '.join(JOBS)}, found {found}")
    name, table = next(iter(content.items()))
    if not isinstance(table, dict):
        raise SettingError(f"{file}: {name} must be a table: [{name}]")
    return name, _placed(file, "[segment]", table, _SEGMENT_PATHS) if name == "segment" else _train_table(file, table)


def read_recipe(path: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Return what a pipeline file with a ``[train]`` table says is to be trained.

    Args:
        path: The file.
        changes: ``key=value`` of the table's own keys, values as in TOML (text also without quotes), paths relative to
            the working folder.

    Raises:
        InputError: The file cannot be read.
        SettingError: It holds another job, or a key that is unknown, missing or wrong.
    """
    name, table = read_pipeline(path)
    if name != "train":
        raise SettingError(f"{path}: holds the job {name}; to train it needs a table [train]")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"{change!r} is no change; write key=value, such as seed=2")
        table[key.strip()] = _toml_value(value.strip())
    return _recipe(path, table)


def _recipe(path: str | Path, table: dict[str, Any]) -> Recipe:
    from geoseg.train.recipe import Recipe

    try:
        return Recipe.of(table)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def run_pipeline(path: str | Path, **overrides: Any) -> Result | Trained:
    """Run the job of a pipeline file; ``overrides`` take the place of its keys.

    ``progress`` and ``fresh`` may be given for every job.

    Raises:
        GeosegError: As :func:`read_pipeline`, :func:`geoseg.segment.segment` and :func:`geoseg.train.train`.
    """
    name, table = read_pipeline(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    if name == "train":
        from geoseg.train import train

        how = {key: given.pop(key) for key in ("progress", "fresh") if key in given}
        return train(_recipe(path, {**table, **given}), **how)
    from geoseg.segment import segment

    table.update(given)
    return segment(table.pop("inputs"), table.pop("out"), **table)


def _train_table(file: Path, table: dict[str, Any]) -> dict[str, Any]:
    placed = _placed(file, "[train]", table, {"out": True, "weights": False})
    for key in ("data", "validate"):
        items = placed.get(key, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise SettingError(f"{file}: {key} must be tables: [[train.{key}]]")
        placed[key] = [_placed(file, f"[[train.{key}]]", item, _DATA_PATHS) for item in items]
    return placed


_SEGMENT_PATHS = {"inputs": True, "out": True, "aoi": False, "model": False, "scheduler": False}
_DATA_PATHS = {"images": True, "masks": False, "buildings": False, "aoi": False}
_NAMES = ("model", "weights")
"""Keys that may hold the name of a shipped model instead of a path."""
_MODEL_FILE = re.compile(r"\.(safetensors|onnx|pth?|ts|torchscript)$")
"""How names of model files end; others are files when there are such."""


def _placed(file: Path, where: str, table: dict[str, Any], paths: dict[str, bool]) -> dict[str, Any]:
    """Return a table whose paths are relative to the working folder; ``paths`` says which must be there."""
    missing = [key for key, needed in paths.items() if needed and key not in table]
    if missing:
        raise SettingError(f"{file}: {where} lacks {' and '.join(missing)}")
    placed = dict(table)
    for key in paths:
        value = table.get(key)
        if key == "out":
            if not isinstance(value, str):
                raise SettingError(f"{file}: out must be text")
            placed[key] = str(file.parent / value)
        elif isinstance(value, str):
            named = key in _NAMES and "/" not in value and not _MODEL_FILE.search(value)
            named = named or (key == "scheduler" and not value.endswith(".json"))
            single = value if named and not (file.parent / value).is_file() else _beside(file, value)
            placed[key] = [single] if key == "inputs" else single
        elif isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                raise SettingError(f"{file}: {key} must be text")
            placed[key] = [_beside(file, item) for item in value]
        elif value is not None:
            raise SettingError(f"{file}: {key} must be text")
    return placed


def _beside(file: Path, item: str) -> str:
    path = file.parent / item
    return item if _GDAL_NAME.match(item) and not path.exists() else str(path)
