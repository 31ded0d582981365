"""Where a table is, as a user names it: what is understood, what is refused, and that no password is shown."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.database import Destination
from geoseg.delivery import Database, check_database, run_name, shown_settings, without_password
from geoseg.errors import SettingError
from geoseg.settings import Settings

pytest.importorskip("psycopg")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@db.example.org:5433/gis", "postgresql://me@db.example.org:5433/gis"),
        ("postgres://me:p%40w@[::1]/gis?sslmode=require", "postgresql://me@[::1]/gis"),
        ("postgresql:///gis", "postgresql:///gis"),
        ("host=db dbname=gis user=me password='p w'", "postgresql://me@db/gis"),
        ("postgresql:///gis?host=/var/run/postgresql&user=me&password=pw", "postgresql://me@%2Fvar%2Frun%2Fpostgresql/gis"),
        ("service=city password=pw", "service=city"),
        ("postgresql://me:pw@a:1,b:2/gis", "postgresql://me@a:1,b:2/gis"),
    ],
)  # fmt: skip
def test_a_server_is_shown_without_its_password(url: str, shown: str) -> None:
    destination = Destination.of(url)
    assert destination.server == shown
    assert "pw" not in repr(destination)
    assert "p w" not in repr(destination)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:se@cret@db/gis",
        "postgresql://me:se/cret@db/gis",
        "postgresql://me:12/cret@db/gis",
        "postgresql://me:se%zzcret@db/gis",
        "http://me:secret@db/gis",
        "me:secret@db",
        "postgresql://me@name:secret@db/gis",
    ],
)
def test_what_is_misread_is_refused_without_a_word_of_it(url: str) -> None:
    with pytest.raises(SettingError, match="--postgis is not understood") as caught:
        Destination.of(url)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=4, max_size=20))
def test_any_password_can_be_given_encoded(password: str) -> None:
    from urllib.parse import quote

    destination = Destination.of(f"postgresql://me:{quote(password, safe='')}@db/gis")
    assert destination.parameters["password"] == password
    assert destination.server == "postgresql://me@db/gis"


@pytest.mark.parametrize(
    ("text", "schema", "table"),
    [
        ("buildings", None, "buildings"),
        ("City.Buildings", "city", "buildings"),
        ('city."Buildings 2026"', "city", "Buildings 2026"),
        ('"a.b"."c""d"'.replace('""', "'"), "a.b", "c'd"),
        ("gebäude_2", None, "gebäude_2"),
    ],
)
def test_table_names(text: str, schema: str | None, table: str) -> None:
    destination = Destination.of("postgresql:///gis", text)
    assert (destination.schema, destination.table) == (schema, table)


@pytest.mark.parametrize("text", ["", ".", "a.", ".b", "a.b.c", "a b", "1a", "a;b", '"a', 'a"b', "x" * 64, '""'])
def test_what_is_no_table_name(text: str) -> None:
    with pytest.raises(SettingError, match=r"must be TABLE or SCHEMA\.TABLE"):
        Destination.of("postgresql:///gis", text)


def test_modes() -> None:
    with pytest.raises(SettingError, match="must be one of replace, append"):
        Destination.of("postgresql:///gis", mode="upsert")


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingError, match=r"pip install 'geoseg\[postgis\]'"):
        check_database(Settings(postgis="postgresql:///gis"), "EPSG:32633")
    check_database(Settings(), "EPSG:32633")  # which asks for nothing


def test_settings_do_not_show_the_password() -> None:
    settings = Settings(postgis="postgresql://me:secret@db/gis")
    assert "secret" not in repr(settings)
    assert shown_settings(settings)["postgis"] == "postgresql://me@db/gis"
    assert shown_settings(Settings()) == asdict(Settings())
    for command in ("--postgis postgresql://me:secret@db/gis --tta", "--postgis=postgresql://me:secret@db/gis"):
        assert "secret" not in without_password(f"geoseg segment a {command}", settings)
    with pytest.raises(SettingError, match="postgis must be text"):
        Settings(postgis=7)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="postgis_table is 3"):
        Settings(postgis_table=3)  # type: ignore[arg-type]


def test_a_refusal_becomes_a_failure_of_the_run() -> None:
    database = Database(Destination.of("postgresql://me:secret@127.0.0.1:1/gis"), "EPSG:32633", "one")
    database(iter(()))
    (failure,) = database.failures
    assert failure["path"] == "PostGIS"
    assert "secret" not in failure["message"]
    assert database.facts == {"server": "postgresql://me@127.0.0.1:1/gis", "table": "buildings", "run": "one"}


def test_runs_have_names_by_what_they_make() -> None:
    identity: dict[str, Any] = {"files": [["a.tif", 3, "7"]], "model": "abc"}

    def name(**settings: Any) -> str:
        return run_name("model", identity, asdict(Settings(**settings)))

    assert name().startswith("model-")
    assert name() == name(workers=3, format=("fgb",), core=512, progress="json", postgis="postgresql:///gis")
    assert len({name(), name(min_area=9.0), name(square=False), name(simplify=0.0)}) == 4
    assert run_name("model", identity | {"model": "abd"}, {}) != run_name("model", identity, {})
