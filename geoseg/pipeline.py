"""Pipeline files: a job written down in TOML, so that it can be kept, reviewed and run again.

    [segment]
    inputs = ["ortho"]
    out = "footprints"
    threshold = 0.4

The table's name is the job; its keys are ``inputs``, ``out`` and the fields of
:class:`geoseg.segment.Settings`. Relative paths are relative to the file.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import InputError, SettingError

if TYPE_CHECKING:
    from geoseg.segment import Result

JOBS = ("segment",)
_GDAL_NAME = re.compile(r"/vsi|[A-Za-z][A-Za-z0-9_+]+:")
"""How names that are no paths begin, such as ``/vsis3/…``, ``https://…``, ``NETCDF:…`` (not ``C:/…``)."""


def read_pipeline(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the job's name and its keys, paths made relative to the working folder.

    Raises:
        InputError: The file cannot be read.
        SettingError: It is not TOML, has no job or more than one, or lacks ``inputs`` or ``out``.
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
    missing = [key for key in ("inputs", "out") if key not in table]
    if missing:
        raise SettingError(f"{file}: [{name}] lacks {' and '.join(missing)}")
    inputs = table["inputs"] if isinstance(table["inputs"], list) else [table["inputs"]]
    if not all(isinstance(item, str) for item in [*inputs, table["out"]]):
        raise SettingError(f"{file}: inputs and out must be text")
    resolved = {
        **table,
        "inputs": [_beside(file, item) for item in inputs],
        "out": str(file.parent / table["out"]),
    }
    if isinstance(table.get("aoi"), str):
        resolved["aoi"] = _beside(file, table["aoi"])
    model = table.get("model")
    if isinstance(model, str) and ("/" in model or model.endswith(".safetensors")):
        resolved["model"] = _beside(file, model)
    return name, resolved


def run_pipeline(path: str | Path, **overrides: Any) -> Result:
    """Run the job of a pipeline file; ``overrides`` take the place of its keys.

    Raises:
        GeosegError: As :func:`read_pipeline` and :func:`geoseg.segment.segment`.
    """
    from geoseg.segment import segment

    _, table = read_pipeline(path)
    table.update({key: value for key, value in overrides.items() if value is not None})
    return segment(table.pop("inputs"), table.pop("out"), **table)


def _beside(file: Path, item: str) -> str:
    path = file.parent / item
    return item if _GDAL_NAME.match(item) and not path.exists() else str(path)
