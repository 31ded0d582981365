"""The plugin's files: they bring all they need, arrive whole, and go where QGIS looks for them."""

from __future__ import annotations

import ast
import configparser
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from geoseg import __version__
from geoseg.cli import main
from geoseg.errors import OutputError, SettingError
from geoseg.qgis import install as module
from geoseg.qgis.install import default_profiles_folder, install, package, plugin_files

PLUGIN = Path(module.__file__).with_name("plugin")
SOURCES = sorted(PLUGIN.rglob("*.py"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that QGIS was told to keep its profiles in."""
    monkeypatch.setenv("QGIS_CUSTOM_CONFIG_PATH", str(tmp_path / "config"))
    return tmp_path / "config"


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PLUGIN).as_posix())
def test_plugin_needs_nothing_but_qgis_and_the_standard_library(path: Path) -> None:
    # The oldest Python among those that QGIS 3.22 and later bring.
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    compile(tree, str(path), "exec")
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(path.relative_to(PLUGIN).parts), "leaves the plugin's own folder"
            if not node.level:
                named.add((node.module or "").partition(".")[0])
    assert named <= set(sys.stdlib_module_names) | {"qgis", "processing", "__future__"}


def test_plugin_says_what_qgis_asks_of_it() -> None:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read_string(plugin_files()["metadata.txt"].decode())
    general = metadata["general"]
    assert general["name"] == "geoseg"
    assert general["version"] == __version__
    assert general["qgisMinimumVersion"] == "3.22"
    # Without it qgis_process does not load the plugin.
    assert general["hasProcessingProvider"] == "yes"
    assert general["icon"] in plugin_files()
    for name in ("description", "about", "author", "email"):
        assert general[name]


def test_every_algorithm_has_its_help() -> None:
    names = {
        statement.value.value
        for path in (PLUGIN / "algorithms").glob("*.py")
        for statement in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and [target.id for target in statement.targets if isinstance(target, ast.Name)] == ["NAME"]
    }
    assert names == {"extractfootprints", "vectorise", "evaluate", "train"}
    assert {f"help/{name}.html" for name in names} == {name for name in plugin_files() if name.startswith("help/")}


def test_package_holds_the_plugin_and_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = package(tmp_path / "a.zip"), package(tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"geoseg/{name}": data for name, data in plugin_files().items()
        }
        assert all(entry.date_time == (1980, 1, 1, 0, 0, 0) for entry in archive.infolist())
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in plugin_files())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


def test_package_wants_a_zip_and_a_place(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"plugin\.tar: QGIS takes plugins as \.zip"):
        package(tmp_path / "plugin.tar")
    with pytest.raises(OutputError, match="cannot be written"):
        package(tmp_path / "nowhere" / "plugin.zip")


def test_installs_where_qgis_looks(config: Path) -> None:
    made = install()
    assert made.folder == config / "profiles" / "default" / "python" / "plugins" / "geoseg"
    assert content(made.folder) == plugin_files()
    assert made.replaced is None
    assert json.loads((made.profile / "geoseg.json").read_text())["python"] == sys.executable
    # Only what belongs there is left.
    assert {path.name for path in (made.profile / "python").iterdir()} == {"plugins"}
    assert {path.name for path in made.profile.iterdir()} == {"python", "geoseg.json"}


def test_replaces_an_older_version_whole(config: Path) -> None:
    folder = install().folder
    (folder / "metadata.txt").write_text("[general]\nname=geoseg\nversion=0.0.1\n")
    (folder / "gone.py").write_text("raise SystemExit")
    (folder.parents[1] / ".geoseg.new").mkdir()  # a crash in the middle
    assert install().replaced == "0.0.1"
    assert content(folder) == plugin_files()
    assert {path.name for path in folder.parent.iterdir()} == {"geoseg"}


def test_older_version_stays_when_the_new_one_cannot_come(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install().folder
    (folder / "old.py").write_text("")
    before = content(folder)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == ".geoseg.new":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match=r"geoseg: cannot be written \(Permission denied\)"):
        install()
    assert content(folder) == before


def test_leaves_what_is_something_else(config: Path) -> None:
    other = config / "profiles" / "default" / "python" / "plugins" / "geoseg"
    other.mkdir(parents=True)
    (other / "mine.py").write_text("x = 1")
    with pytest.raises(SettingError, match="something else is there"):
        install()
    assert content(other) == {"mine.py": b"x = 1"}


def test_replaces_a_link_and_not_what_it_points_to(config: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "metadata.txt").write_text("[general]\nname=geoseg\nversion=7\n")
    plugins = config / "profiles" / "default" / "python" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "geoseg").symlink_to(checkout)
    assert install().replaced == "7"
    assert not (plugins / "geoseg").is_symlink()
    assert [path.name for path in checkout.iterdir()] == ["metadata.txt"]


@pytest.mark.parametrize(
    ("ini", "expected"),
    [
        (None, "default"),
        ("[core]\ndefaultProfile=work\n", "work"),
        ("[core]\ndefaultProfile=default\nlastProfile=work\nselectionPolicy=1\n", "work"),
        ("[core]\nlastProfile=work\nselectionPolicy=0\n", "default"),
        ("[core]\ndefaultProfile=deleted\n", "default"),
        ("no ini at all", "default"),
    ],
)
def test_takes_the_profile_that_qgis_starts_with(config: Path, ini: str | None, expected: str) -> None:
    for name in ("default", "work"):
        (config / "profiles" / name).mkdir(parents=True)
    if ini is not None:
        (config / "profiles" / "profiles.ini").write_text(ini)
    assert install().profile.name == expected


def test_profile_by_name(config: Path, tmp_path: Path) -> None:
    (config / "profiles" / "work").mkdir(parents=True)
    assert install("work").profile == config / "profiles" / "work"
    with pytest.raises(SettingError, match=r"no profile 'wrok'; there are work"):
        install("wrok")
    # Both the folder of profiles and the one above, which QGIS's --profiles-path wants.
    for given in (config, config / "profiles"):
        assert install("work", given).profile == config / "profiles" / "work"
    with pytest.raises(SettingError, match="no name of a profile"):
        install("../elsewhere", tmp_path / "empty")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"HOME": "/home/a"}, "/home/a/.local/share/QGIS/QGIS3/profiles"),
        ("linux", {"HOME": "/home/a", "XDG_DATA_HOME": "/data"}, "/data/QGIS/QGIS3/profiles"),
        ("darwin", {"HOME": "/Users/a"}, "/Users/a/Library/Application Support/QGIS/QGIS3/profiles"),
        ("win32", {"APPDATA": "/C/Users/a/AppData/Roaming"}, "/C/Users/a/AppData/Roaming/QGIS/QGIS3/profiles"),
        ("linux", {"HOME": "/home/a", "QGIS_CUSTOM_CONFIG_PATH": "/etc/q"}, "/etc/q/profiles"),
    ],
)
def test_profiles_are_where_each_system_has_them(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QGIS_CUSTOM_CONFIG_PATH", "XDG_DATA_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    assert default_profiles_folder() == Path(expected)


def test_commands(config: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["qgis", "install"])
    assert result.exit_code == 0
    folder = config / "profiles" / "default" / "python" / "plugins" / "geoseg"
    assert result.stdout.strip() == str(folder)
    assert "Manage and Install Plugins" in result.stderr
    assert sys.executable in result.stderr
    result = CliRunner().invoke(main, ["qgis", "install"])
    assert f"(was {__version__})" in result.stderr
    result = CliRunner().invoke(main, ["qgis", "package", str(tmp_path / "plugin.zip")])
    assert result.exit_code == 0
    assert zipfile.is_zipfile(tmp_path / "plugin.zip")
    result = CliRunner().invoke(main, ["qgis", "install", "--profile", "none"])
    assert result.exit_code == 2
    assert "no profile 'none'" in result.stderr


def test_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "geoseg", "--version"], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"geoseg, version {__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="process groups are Unix's")
def test_tied_process_ends_when_its_stdin_closes() -> None:
    waits = "import time; from geoseg.qgis.tied import end_with_parent; end_with_parent(); print(1, flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", waits + "time.sleep(600)"],
        env={**os.environ, "GEOSEG_TIED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"1\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.stdout.close()


def test_process_is_not_tied_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from geoseg.qgis import tied

    def watchers() -> list[str]:
        watched: list[str] = []
        monkeypatch.setattr(tied, "_watch", lambda: watched.append("watches"))
        tied.end_with_parent()
        for thread in threading.enumerate():
            if thread.name == "tied to QGIS":
                thread.join()
        return watched

    monkeypatch.delenv(tied.VARIABLE, raising=False)
    assert watchers() == []
    monkeypatch.setenv(tied.VARIABLE, "1")
    assert watchers() == ["watches"]
    assert tied.VARIABLE not in os.environ
