"""Bring the plugin to QGIS: into a user's profile, or as the zip that QGIS installs."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources.abc import Traversable
from pathlib import Path

from geoseg import __version__
from geoseg.errors import OutputError, SettingError

PLUGIN = "geoseg"
"""Name of the plugin's folder, which is its name to ``qgis_process plugins enable``."""
RECORD = "geoseg.json"
"""File in a profile that names this Python; the plugin looks for it there."""
CONFIG_VARIABLE = "QGIS_CUSTOM_CONFIG_PATH"
"""Environment variable by which QGIS is told another place for its profiles."""

_VERSION = re.compile(rb"^version=.*$", re.MULTILINE)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the zip, so that equal content gives equal bytes."""


@dataclass(frozen=True)
class Installed:
    """Where the plugin went."""

    folder: Path
    """The plugin's own folder."""
    profile: Path
    """The profile it is in."""
    python: str
    """The Python that was noted for it."""
    replaced: str | None
    """Version that was there before."""
    lasting: bool
    """False when this Python finds geoseg only because of the folder that the command ran in."""


def plugin_files() -> dict[str, bytes]:
    """Return the plugin's files: path below its folder, with slashes → content, in order of path."""
    found = dict(_walk(resources.files("geoseg.qgis") / "plugin", ""))
    found["metadata.txt"] = _VERSION.sub(f"version={__version__}".encode(), found["metadata.txt"])
    return dict(sorted(found.items()))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.is_dir():
            if item.name != "__pycache__":
                yield from _walk(item, f"{prefix}{item.name}/")
        elif not item.name.endswith((".pyc", ".pyo")):
            # As on any other system, whatever a checkout made of the line ends.
            yield prefix + item.name, item.read_bytes().replace(b"\r\n", b"\n")


def package(out: str | Path) -> Path:
    """Write the zip that QGIS's *Install from ZIP* takes; equal versions give equal bytes.

    Raises:
        SettingError: The name does not end in ``.zip``.
        OutputError: It cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() != ".zip":
        raise SettingError(f"{path}: QGIS takes plugins as .zip; give it that ending")
    part = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, content in plugin_files().items():
                entry = zipfile.ZipInfo(f"{PLUGIN}/{name}", _EPOCH)
                entry.create_system = 3  # Unix, on every system
                entry.external_attr = 0o644 << 16
                # Stored, as compressed bytes differ from one version of zlib to the next.
                archive.writestr(entry, content, zipfile.ZIP_STORED)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def default_profiles_folder() -> Path:
    """Return the folder in which QGIS keeps its users' profiles on this system."""
    custom = os.environ.get(CONFIG_VARIABLE)
    if custom:
        return Path(custom) / "profiles"
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "QGIS" / "QGIS3" / "profiles"


def install(profile: str | None = None, profiles_folder: str | Path | None = None) -> Installed:
    """Put the plugin into a profile of QGIS, in place of an older one, and note this Python there.

    Args:
        profile: Name of the profile; by default the one that QGIS starts with.
        profiles_folder: Where the profiles are; by default where QGIS keeps them on this system.

    Raises:
        SettingError: There is no such profile, or something else is in the plugin's place.
        OutputError: The profile cannot be written.
    """
    profiles = default_profiles_folder() if profiles_folder is None else Path(profiles_folder)
    if profiles_folder is not None and (profiles / "profiles").is_dir():
        # QGIS's own --profiles-path is the folder above.
        profiles = profiles / "profiles"
    home = profiles / _profile(profiles, profile)
    target = home / "python" / "plugins" / PLUGIN
    before = _version_of(target)
    try:
        _replace_folder(target, home / "python")
        record = home / RECORD
        part = record.with_name(f".{RECORD}.part")
        part.write_text(json.dumps({"python": sys.executable, "geoseg": __version__}) + "\n", "utf-8")
        part.replace(record)
    except OSError as error:
        raise OutputError(f"{error.filename or target}: cannot be written ({error.strerror or error})") from error
    return Installed(target, home, sys.executable, before, _is_installed())


def _is_installed() -> bool:
    try:
        distribution("geoseg")
    except PackageNotFoundError:
        return False
    return True


def _profile(profiles: Path, wanted: str | None) -> str:
    """Return the name of the profile to use."""
    there = sorted(path.name for path in profiles.iterdir() if path.is_dir()) if profiles.is_dir() else []
    if wanted is None:
        return _first_profile(profiles)
    if there and wanted not in there:
        raise SettingError(f"{profiles}: has no profile {wanted!r}; there are {', '.join(there)}")
    if not wanted or Path(wanted).name != wanted:
        raise SettingError(f"profile {wanted!r} is no name of a profile")
    return wanted


def _first_profile(profiles: Path) -> str:
    """Return the profile that QGIS starts with: the default, unless it is set to take the one used last."""
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        settings.read(profiles / "profiles.ini", "utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return "default"
    core = settings["core"] if settings.has_section("core") else {}
    last = core.get("lastProfile") if core.get("selectionPolicy") == "1" else None
    name = last or core.get("defaultProfile") or "default"
    return name if (profiles / name).is_dir() else "default"


def _version_of(folder: Path) -> str | None:
    """Return the version of the plugin in a folder, None where there is none.

    Raises:
        SettingError: Something else is there.
    """
    if not folder.exists():
        return None
    metadata = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        metadata.read(folder / "metadata.txt", "utf-8")
        general = metadata["general"]
    except (configparser.Error, UnicodeDecodeError, KeyError):
        general = None
    if general is None or general.get("name") != PLUGIN:
        raise SettingError(f"{folder}: something else is there than this plugin; move it away first")
    return general.get("version", "?")


def _replace_folder(target: Path, near: Path) -> None:
    """Put the plugin at ``target`` whole or not at all; ``near`` is on the same disk, and no folder of plugins."""
    fresh, old = near / f".{PLUGIN}.new", near / f".{PLUGIN}.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, content in plugin_files().items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    had = target.exists()
    if had:
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if had:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
