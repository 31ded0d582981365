"""Where geoseg is: the Python of its own environment, and the variables that it is run with.

In order: the setting of this plugin, what ``geoseg qgis install`` wrote down, the variable ``GEOSEG_PYTHON``, the
program ``geoseg`` on the search path. The first that is named is taken; when it does not work, that is said.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from qgis.core import QgsApplication, QgsSettings

SETTING = "geoseg/python"
"""Name of the setting among QGIS's Processing options."""
VARIABLE = "GEOSEG_PYTHON"
RECORD = "geoseg.json"
"""File in the user's profile in which ``geoseg qgis install`` notes its Python."""
OPTION = "Settings ▸ Options ▸ Processing ▸ Providers ▸ geoseg"

_WINDOWS = os.name == "nt"
_PATIENCE_S = 120
"""A cold start from a slow disk may take long; a program that waits for something would never end."""

_NOT_PASSED_ON = re.compile(
    # Of QGIS's own Python, libraries and their data, which are of other versions than those geoseg brings.
    r"PYTHON\w*|__PYVENV_LAUNCHER__|VIRTUAL_ENV|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_\w+|GDAL_DATA|GDAL_DRIVER_PATH"
    r"|OGR_DRIVER_PATH|GEOTIFF_CSV|PROJ_LIB|PROJ_DATA|QT_\w+|QML2?_\w+|GI_TYPELIB_PATH",
    re.IGNORECASE,
)

_works: dict[tuple[str, ...], str] = {}
"""Command → version, for those that have answered since QGIS started."""


class EnvironmentMissingError(Exception):
    """geoseg cannot be run; the message says what to do."""


@dataclass(frozen=True)
class Environment:
    """A way to run geoseg."""

    command: tuple[str, ...]
    """Program and first arguments."""
    origin: str
    """Who named it, in words."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables for geoseg: those of QGIS without what would break another Python."""
        kept = {name: value for name, value in os.environ.items() if not _NOT_PASSED_ON.fullmatch(name)}
        if _WINDOWS:
            kept["PATH"] = _windows_path(Path(self.command[0]).parent, kept.get("PATH", ""))
        # Whatever lies in the working folder is not imported, and text is UTF-8 whatever the system's habit.
        return {**kept, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}

    def check(self) -> str:
        """Return geoseg's version.

        Raises:
            EnvironmentMissingError: It does not run; the message says what to do.
        """
        if self.command not in _works:
            _works[self.command] = self._ask()
        return _works[self.command]

    def _ask(self) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - chosen by the user
                [*self.command, "--version"],
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE_S,
                creationflags=creation_flags(),
                cwd=QgsApplication.qgisSettingsDirPath() or None,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentMissingError(_broken(self, str(error))) from None
        said = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode or not said.startswith("geoseg"):
            lines = (done.stderr.decode("utf-8", "replace").strip() or said).splitlines()
            raise EnvironmentMissingError(_broken(self, lines[-1] if lines else f"it ended with {done.returncode}"))
        return said.rsplit(" ", 1)[-1]


def creation_flags() -> int:
    """Return what keeps Windows from opening a console window, and gives the process a group of its own."""
    if not _WINDOWS:
        return 0
    flags: int = getattr(subprocess, "CREATE_NO_WINDOW", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    return flags


def find() -> Environment:
    """Return the environment to use, without trying it.

    Raises:
        EnvironmentMissingError: None is named anywhere, or the one that is does not exist.
    """
    setting = str(QgsSettings().value(f"Processing/Configuration/{SETTING}", "") or "").strip()
    record = Path(QgsApplication.qgisSettingsDirPath()) / RECORD
    named = (
        (setting, f"the setting in {OPTION}"),
        (_recorded(record), f"{record}, where 'geoseg qgis install' noted it"),
        (os.environ.get(VARIABLE, "").strip(), f"the environment variable {VARIABLE}"),
    )
    for text, origin in named:
        if text:
            return Environment(_command(text, origin), origin)
    program = shutil.which("geoseg")
    if program:
        return Environment((program,), "the search path")
    raise EnvironmentMissingError(
        "geoseg itself is not here yet: this plugin runs it in a Python environment of its own, and none is known. "
        "Install it in a terminal (python3 -m venv geoseg-env, then pip install geoseg in it), and either run "
        f"'geoseg qgis install' there, or choose that environment's Python under {OPTION}."
    )


def _recorded(record: Path) -> str:
    try:
        content = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    python = content.get("python") if isinstance(content, dict) else None
    return python if isinstance(python, str) else ""


def _command(text: str, origin: str) -> tuple[str, ...]:
    """Return how geoseg is run with a Python, an environment's folder, or the program ``geoseg`` itself."""
    given = Path(text).expanduser()
    found = shutil.which(text) if given.name == text and not given.exists() else None
    path = Path(found) if found else given
    if path.is_dir():
        inside = [path / name for name in ("bin/python3", "bin/python", "Scripts/python.exe", "python.exe")]
        path = next((candidate for candidate in inside if candidate.is_file()), path)
    if not path.is_file():
        raise EnvironmentMissingError(
            f"The Python of geoseg is not at {text} (named by {origin}). If its environment has moved or is gone, run "
            f"'geoseg qgis install' in the one that has geoseg now, or choose its Python under {OPTION}."
        )
    return (str(path),) if path.stem == "geoseg" else (str(path), "-m", "geoseg")


def _broken(environment: Environment, reason: str) -> str:
    program = environment.command[0]
    return (
        f"{program} (named by {environment.origin}) cannot run geoseg: {reason}. Install geoseg with that Python "
        f'("{program}" -m pip install geoseg), or choose the Python that has it under {OPTION}.'
    )


def _windows_path(home: Path, path: str) -> str:
    """Put the folders of an environment first, as activating it does, and take QGIS's own away."""
    root = home.parent if home.name.lower() == "scripts" else home
    own = [str(folder) for folder in (home, root / "Library" / "bin", root / "Scripts") if folder.is_dir()]
    of_qgis = [os.environ.get("OSGEO4W_ROOT", ""), os.path.normpath(QgsApplication.prefixPath())]
    others = [
        folder
        for folder in path.split(os.pathsep)
        if not any(part and os.path.normcase(folder).startswith(os.path.normcase(part)) for part in of_qgis)
    ]
    return os.pathsep.join(own + others)
