"""Footprints in a real PostgreSQL with PostGIS: one transaction, readers undisturbed, faults in one line."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from click.testing import CliRunner
from parts import required, run
from shapely import Polygon, box
from test_qgis import PYTHON, qgis

from geoseg.cli import main
from geoseg.database import Destination
from geoseg.errors import GeosegError, InputError, OutputError, SettingError
from geoseg.footprints import Footprints, finish
from geoseg.postgis import check_postgis, write_postgis
from geoseg.spool import Outlines, polygons_array

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
PASSWORD = "s3cret/p@ss"  # noqa: S105 - of a server that lives as long as the tests
ENCODED = "s3cret%2Fp%40ss"
CRS = "EPSG:32633"
GRID = Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL."""

    port: int

    def url(self, database: str = "gis", user: str = "owner", password: str = ENCODED) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "gis", user: str = "owner") -> Any:
        import psycopg

        # A reader who has to wait would otherwise wait for ever, for a writer in this same thread.
        return psycopg.connect(self.url(database, user), autocommit=True, options="-c statement_timeout=20000")

    def ask(self, query: str, *values: Any, **who: str) -> list[Any]:
        with closing(self.connect(**who)) as connection:
            cursor = connection.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An own cluster of databases: ``gis`` with PostGIS, ``plain`` without; users ``owner`` and ``reader``."""
    here = bool(PROGRAMS) and list(Path("/usr/share/postgresql").glob("*/extension/postgis.control"))
    required(bool(here), "PostgreSQL with PostGIS")
    pytest.importorskip("psycopg")
    # Not pytest's own folder, which only its user can enter; and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        # The server refuses to run as root.
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

        def call(program: str, *arguments: str) -> None:
            command = [str(PROGRAMS[-1] / program), *arguments]
            clean = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
            # Not into a pipe, which the server would keep open.
            with (folder / "said").open("w") as said:
                done = subprocess.run(command, env=clean, stdout=said, stderr=said, timeout=120, cwd=folder, **as_user)
            assert done.returncode == 0, (folder / "said").read_text()

        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = str(folder / "data")
        call("initdb", "-D", data, "-U", "admin", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "-N")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off -c shared_buffers=32MB"
        call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            found = Server(port)
            for database in ("plain", "gis"):
                found.ask(f"CREATE DATABASE {database}", database="postgres", user="admin")
            found.ask(
                f"CREATE USER owner PASSWORD '{PASSWORD}'; CREATE USER reader PASSWORD '{PASSWORD}'", user="admin"
            )
            # PostGIS where many have it, outside the users' search path.
            found.ask("CREATE SCHEMA postgis; GRANT USAGE ON SCHEMA postgis TO PUBLIC", user="admin")
            found.ask("CREATE EXTENSION postgis SCHEMA postgis", user="admin")
            found.ask("CREATE SCHEMA city AUTHORIZATION owner; GRANT USAGE ON SCHEMA city TO reader", user="admin")
            yield found
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def table(server: Server) -> Iterator[str]:
    """A name for a table in schema ``city``; gone after the test, with all that hangs on it."""
    yield "city.buildings"
    server.ask("DROP SCHEMA city CASCADE; CREATE SCHEMA city AUTHORIZATION owner", user="admin")
    server.ask("GRANT USAGE ON SCHEMA city TO reader", user="admin")


def footprints(count: int = 10, size: int = 4, shift: int = 0) -> list[Footprints]:
    """Squares of 8 × 8 pixels in a row, each third with a courtyard."""
    polygons = [
        Polygon(
            box(20 * i, shift, 20 * i + 8, shift + 8).exterior,
            [box(20 * i + 2, shift + 2, 20 * i + 6, shift + 6).exterior] if i % 3 == 0 else [],
        )
        for i in range(count)
    ]
    pieces = [polygons_array(polygons[start : start + size]) for start in range(0, count, size)]
    pixels = [shapely.area(part).astype(np.int64) for part in pieces]
    outlines = [Outlines(part, number, number * 102) for part, number in zip(pieces, pixels, strict=True)]
    return list(finish(outlines, GRID, CRS))


def write(server: Server, table: str, batches: Any, mode: str = "replace", run: str = "one", crs: str = CRS) -> Any:
    return write_postgis(Destination.of(server.url(), table, mode), batches, crs, run)


def test_rows_are_the_footprints(server: Server, table: str) -> None:
    batches = footprints()
    stored = write(server, table, batches)
    assert (stored.table, stored.srid, stored.count, stored.replaced) == ("city.buildings", 32633, 10, 0)
    rows = server.ask(
        "SELECT id, area_m2, perimeter_m, probability, postgis.ST_AsBinary(geom), postgis.ST_SRID(geom),"
        " postgis.ST_IsValid(geom), postgis.ST_Area(geom), run, created < now() FROM city.buildings ORDER BY id"
    )
    columns = [np.concatenate([getattr(batch, name) for batch in batches]).tolist() for name in ("id", "area_m2")]
    assert [row[0] for row in rows] == columns[0]
    assert [row[1] for row in rows] == columns[1]
    polygons = np.concatenate([batch.polygons for batch in batches])
    assert shapely.equals_exact(shapely.from_wkb([row[4] for row in rows]), polygons, 0).all()
    assert {row[5:7] + row[8:] for row in rows} == {(32633, True, "one", True)}
    assert [row[7] for row in rows] == pytest.approx(shapely.area(polygons).tolist())
    indices = " ".join(row[0] for row in server.ask("SELECT indexdef FROM pg_indexes WHERE schemaname = 'city'"))
    assert "USING gist (geom)" in indices
    assert "UNIQUE INDEX buildings_pkey ON city.buildings USING btree (id)" in indices
    assert server.ask("SELECT type, srid, coord_dimension FROM postgis.geometry_columns") == [("POLYGON", 32633, 2)]
    # A GIS finds the number for a building that is drawn by hand.
    drawn = server.ask(
        "INSERT INTO city.buildings (run, geom) SELECT 'hand', geom FROM city.buildings WHERE id = 1 RETURNING id"
    )
    assert drawn == [(11,)]


def test_no_buildings(server: Server, table: str) -> None:
    assert write(server, table, []).count == 0
    assert server.ask("SELECT count(*) FROM city.buildings") == [(0,)]
    assert write(server, table, footprints()).count == 10
    assert write(server, table, []).replaced == 10


def test_an_area_that_cannot_be_known_is_null(server: Server, table: str) -> None:
    (batch,) = footprints(1)
    unknown = Footprints(batch.polygons, batch.id, np.array([np.nan]), np.array([np.nan]), batch.probability)
    write(server, table, [unknown])
    assert server.ask("SELECT area_m2, perimeter_m, probability FROM city.buildings") == [(None, None, 0.4)]


def test_replacing_keeps_grants_views_and_columns_of_others(server: Server, table: str) -> None:
    write(server, table, footprints(3))
    server.ask("GRANT SELECT ON city.buildings TO reader; CREATE VIEW city.large AS SELECT * FROM city.buildings")
    server.ask("ALTER TABLE city.buildings ADD COLUMN checked boolean DEFAULT false")
    before = server.ask("SELECT 'city.buildings'::regclass::oid")
    stored = write(server, table, footprints(7, shift=40), run="two")
    assert (stored.count, stored.replaced) == (7, 3)
    assert server.ask("SELECT 'city.buildings'::regclass::oid") == before
    found = server.ask("SELECT id, run, checked FROM city.buildings ORDER BY id", user="reader")
    assert found == [(number, "two", False) for number in range(1, 8)]
    assert server.ask("SELECT count(*) FROM city.large") == [(7,)]
    assert server.ask("SELECT count(*) FROM pg_indexes WHERE schemaname = 'city'") == [(2,)]


def test_readers_see_the_old_rows_until_the_new_ones_are_all_there(server: Server, table: str) -> None:
    write(server, table, footprints(3))
    seen = []
    with closing(server.connect()) as early:
        early.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert early.execute("SELECT count(*) FROM city.buildings").fetchone() == (3,)

        def watched() -> Iterator[Footprints]:
            for batch in footprints(40):
                seen.append(server.ask("SELECT count(*) FROM city.buildings")[0][0])
                yield batch

        write(server, table, watched())
        assert set(seen) == {3}
        assert len(seen) == 10
        assert server.ask("SELECT count(*) FROM city.buildings") == [(40,)]
        # Neither does a longer piece of work, such as a backup, find the table changed or empty.
        assert early.execute("SELECT count(*) FROM city.buildings").fetchone() == (3,)


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_failure_on_the_way_leaves_the_table_as_it_was(server: Server, table: str, mode: str) -> None:
    def broken() -> Iterator[Footprints]:
        yield from footprints(8)
        raise InputError("block r0001c0002 is unreadable")

    with pytest.raises(InputError, match="r0001c0002"):
        write(server, table, broken(), mode)
    assert server.ask("SELECT to_regclass('city.buildings')") == [(None,)]
    write(server, table, footprints(3))
    with pytest.raises(InputError, match="r0001c0002"):
        write(server, table, broken(), mode, run="two")
    assert server.ask("SELECT count(*), min(run) FROM city.buildings") == [(3, "one")]


def test_a_connection_that_breaks_is_an_error_of_ours(server: Server, table: str) -> None:
    write(server, table, footprints(3))

    def cut() -> Iterator[Footprints]:
        for number, batch in enumerate(footprints(60_000, size=4096)):
            if number == 1:
                server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'geoseg'")
            yield batch

    with pytest.raises(OutputError) as caught:
        write(server, table, cut())
    assert_clear(caught.value)
    assert server.ask("SELECT count(*) FROM city.buildings") == [(3,)]


def test_appending(server: Server, table: str) -> None:
    assert write(server, table, footprints(3), "append").count == 3  # which makes the table
    assert write(server, table, footprints(5), "append", run="two").replaced == 0
    found = server.ask("SELECT run, min(id), max(id), count(DISTINCT id) FROM city.buildings GROUP BY run ORDER BY 1")
    assert found == [("one", 1, 3, 3), ("two", 4, 8, 5)]
    # The same run again takes the place of its own rows, and ids are not used twice.
    again = write(server, table, footprints(4), "append", run="two")
    assert (again.count, again.replaced) == (4, 5)
    found = server.ask("SELECT run, min(id), max(id), count(DISTINCT id) FROM city.buildings GROUP BY run ORDER BY 1")
    assert found == [("one", 1, 3, 3), ("two", 9, 12, 4)]
    assert len(server.ask("SELECT DISTINCT created FROM city.buildings")) == 2


def test_two_writers_wait_for_each_other(server: Server, table: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    write(server, table, footprints(1), "append", run="first")
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(write, server, table, footprints(50), "append", f"run {i}") for i in range(4)]
        assert [one.result().count for one in runs] == [50] * 4
    assert server.ask("SELECT count(*), count(DISTINCT id), count(DISTINCT run) FROM city.buildings") == [(201, 201, 5)]


def test_another_crs(server: Server, table: str) -> None:
    write(server, table, footprints(3))
    server.ask("GRANT SELECT ON city.buildings TO reader")
    with pytest.raises(SettingError, match=r"city\.buildings has SRID 32633, the footprints are polygons of SRID 3857"):
        write(server, table, footprints(2), "append", crs="EPSG:3857")
    write(server, table, footprints(2), crs="EPSG:3857")
    assert server.ask("SELECT DISTINCT postgis.ST_SRID(geom) FROM city.buildings", user="admin") == [(3857,)]
    assert server.ask("SELECT count(*) FROM city.buildings", user="reader") == [(2,)]
    server.ask("CREATE VIEW city.large AS SELECT * FROM city.buildings")
    with pytest.raises(OutputError) as caught:  # the view stands in the way, and says so
        write(server, table, footprints(3))
    assert "view" in assert_clear(caught.value)
    assert server.ask("SELECT count(*) FROM city.buildings") == [(2,)]


def test_names_as_in_sql(server: Server, table: str) -> None:
    write(server, 'CITY."Gebäude 2026; DROP TABLE x"', footprints(2))
    assert server.ask('SELECT count(*) FROM city."Gebäude 2026; DROP TABLE x"') == [(2,)]


def test_memory_does_not_grow_with_the_rows(server: Server, table: str) -> None:
    alive: weakref.WeakSet[Footprints] = weakref.WeakSet()
    most = 0

    def source() -> Iterator[Footprints]:
        nonlocal most
        for number in range(200):
            batch = Footprints(*(getattr(one, name) for name in NAMES))
            alive.add(batch)
            most = max(most, len(alive))
            yield batch
            del batch, number

    (one,) = footprints(4)
    assert write(server, table, source()).count == 800
    assert most <= 2


NAMES = ("polygons", "id", "area_m2", "perimeter_m", "probability")


LOOK = """
import sys
from qgis.core import QgsApplication, QgsDataSourceUri, QgsVectorLayer
application = QgsApplication([], False)
application.initQgis()
uri = QgsDataSourceUri()
uri.setConnection("127.0.0.1", sys.argv[1], "gis", "owner", sys.argv[2])
uri.setDataSource("city", "buildings", "geom", "", "id")
layer = QgsVectorLayer(uri.uri(False), "layer", "postgres")
ids = sorted(feature.id() for feature in layer.getFeatures())
print(layer.isValid(), layer.crs().authid(), layer.featureCount(), len(ids), sep=";")
del layer
application.exitQgis()
"""


def test_qgis_opens_the_table(server: Server, table: str, tmp_path: Path) -> None:
    here = Path(PYTHON).exists() and qgis(tmp_path / "home", "-c", "import qgis.core").returncode == 0
    required(here, f"PyQGIS ({PYTHON} with qgis.core)")
    write(server, table, footprints(), "append")
    server.ask("ALTER USER owner SET search_path = public, postgis", user="admin")  # QGIS needs it
    done = qgis(tmp_path / "home", "-c", LOOK, str(server.port), PASSWORD)
    server.ask("ALTER USER owner RESET search_path", user="admin")
    assert done.stdout.splitlines()[-1:] == ["True;EPSG:32633;10;10"], done.stderr


# --- faults, each in one line


def assert_clear(error: BaseException | str) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 700
    for part in (PASSWORD, ENCODED, "s3cret", "p@ss", "p%40ss"):
        assert part not in text
    return text


def prepare_others(server: Server) -> None:
    server.ask(
        "CREATE TABLE city.parcels (id bigint PRIMARY KEY, owner text); INSERT INTO city.parcels VALUES (1, 'me')"
    )
    server.ask("CREATE VIEW city.seen AS SELECT * FROM city.parcels; GRANT SELECT ON city.parcels TO reader")


FAULTS: dict[str, tuple[Callable[[Server], str], str, str, str]] = {
    "no server": (lambda _: f"postgresql://owner:{ENCODED}@127.0.0.1:1/gis", "city.b", CRS, "Connection refused"),
    "no host": (lambda _: f"postgresql://owner:{ENCODED}@no.such.host.invalid/gis", "city.b", CRS, "no.such.host"),
    "password": (lambda s: s.url("gis", "owner", "wrong"), "city.b", CRS, "password authentication failed for user"),
    "user": (lambda s: s.url(user="nobody"), "city.b", CRS, 'user "nobody"'),
    "database": (lambda s: s.url("nowhere"), "city.b", CRS, 'database "nowhere" does not exist'),
    "no PostGIS": (lambda s: s.url("plain"), "public.b", CRS, "has no PostGIS"),
    "schema": (lambda s: s.url(), "nowhere.b", CRS, "no schema nowhere"),
    "create": (lambda s: s.url(user="reader"), "city.b", CRS, "no permission to create a table in schema city"),
    "foreign": (lambda s: s.url(), "city.parcels", CRS, "no table of geoseg's"),
    "view": (lambda s: s.url(), "city.seen", CRS, "city.seen is no table"),
    "no CRS": (lambda s: s.url(), "city.b", "", "no coordinate reference system"),
    "own CRS": (lambda s: s.url(), "city.b", "+proj=tmerc +lat_0=27.7 +lon_0=85.5 +ellps=WGS84", "has a number"),
    "name": (lambda s: s.url(), "a.b.c", CRS, "must be TABLE or SCHEMA.TABLE"),
    "@": (lambda s: f"postgresql://owner:s3cret@p@ss@127.0.0.1:{s.port}/gis", "city.b", CRS, "@ is %40"),
    "/": (lambda s: f"postgresql://owner:s3cret/p@127.0.0.1:{s.port}/gis", "city.b", CRS, "/ is %2F"),
    "%": (lambda s: f"postgresql://owner:s3cret%zz@127.0.0.1:{s.port}/gis", "city.b", CRS, "as %XX"),
    "no URL": (lambda _: "s3cret", "city.b", CRS, "must be postgresql://"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(server: Server, table: str, fault: str) -> None:
    url, name, crs, words = FAULTS[fault]
    prepare_others(server)
    for attempt in (check_postgis, lambda *args: write_postgis(args[0], footprints(), args[1], "one")):
        with pytest.raises(GeosegError) as caught:
            attempt(Destination.of(url(server), name), crs or None)
        assert words in assert_clear(caught.value)
    assert server.ask("SELECT * FROM city.parcels") == [(1, "me")]


def test_privileges_are_asked_for_before_the_work(server: Server, table: str) -> None:
    write(server, table, footprints(3))
    server.ask("GRANT SELECT, INSERT ON city.buildings TO reader")
    destination = Destination.of(server.url(user="reader"), table)
    with pytest.raises(OutputError, match=r"no permission: DELETE on table city\.buildings is not granted"):
        check_postgis(destination, CRS)
    server.ask("GRANT DELETE ON city.buildings TO reader")
    # With these a user can do all, without owning the table.
    assert write_postgis(destination, footprints(5), CRS, "two").replaced == 3
    with pytest.raises(OutputError, match="only the owner"):
        check_postgis(destination, "EPSG:3857")


def test_checking_changes_nothing(server: Server, table: str) -> None:
    check_postgis(Destination.of(server.url(), table), CRS)
    assert server.ask("SELECT to_regclass('city.buildings')") == [(None,)]


# --- the whole job


def geoseg_(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def assert_no_password(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"s3cret" not in content, path


def test_segment(
    server: Server, table: str, city: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["segment", city, "--out", out, "--model", narrow_model, "--workers", 0, "--progress", "none"]
    arguments += ["--postgis", server.url(), "--postgis-table", table]
    monkeypatch.setattr("sys.argv", ["geoseg", *map(str, arguments)])
    done = geoseg_(*arguments)
    assert done.exit_code == 0, done.output
    rows = server.ask("SELECT count(*), min(run) FROM city.buildings")
    count = pyogrio.read_info(out / "buildings.gpkg", layer="buildings")["features"]
    assert count >= 5
    facts = json.loads((out / "run.json").read_text())
    shown = f"postgresql://owner@127.0.0.1:{server.port}/gis"
    assert facts["postgis"] == {
        "server": shown, "table": table, "run": rows[0][1], "mode": "replace", "srid": 32633, "rows": count,
        "rows_replaced": 0,
    }  # fmt: skip
    assert rows == [(count, json.loads((out / "item.json").read_text())["id"])]
    assert facts["settings"]["postgis"] == shown
    assert f"--postgis {shown} --postgis-table" in facts["command"]
    assert f"{shown}, table {table}" in done.stderr
    assert shown in (out / "report.html").read_text()
    assert_no_password(out)
    assert "s3cret" not in done.output
    # The same again leaves the rows as they are.
    geoms = server.ask("SELECT id, geom::text FROM city.buildings ORDER BY id")
    assert geoseg_(*arguments, "--postgis-mode", "append").exit_code == 0
    again = server.ask("SELECT id, geom::text FROM city.buildings ORDER BY id")
    assert [row[1] for row in again] == [row[1] for row in geoms]
    # Another threshold is another run.
    assert geoseg_(*arguments, "--postgis-mode", "append", "--threshold", "0.7").exit_code == 0
    assert server.ask("SELECT count(DISTINCT run) FROM city.buildings") == [(2,)]


def test_a_database_that_fails_at_the_end_costs_no_file(
    server: Server, table: str, city: Path, narrow_model: Path, tmp_path: Path
) -> None:
    write(server, table, footprints(3))
    server.ask(
        "CREATE FUNCTION city.no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'the disk of the database is full'; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON city.buildings FOR EACH STATEMENT EXECUTE FUNCTION city.no()"
    )
    out = tmp_path / "out"
    arguments = ["segment", city, "--out", out, "--model", narrow_model, "--workers", 0, "--progress", "none"]
    arguments += ["--postgis", server.url(), "--postgis-table", table]
    done = geoseg_(*arguments)
    assert done.exit_code == 1, done.output
    assert "the disk of the database is full" in done.stderr
    assert "PostGIS was not written: see " in done.stderr
    assert {"buildings.gpkg", "report.html", "run.json"} < {path.name for path in out.iterdir()}
    (failure,) = json.loads((out / "run.json").read_text())["failures"]
    assert failure["path"] == "PostGIS"
    assert_clear(failure["message"])
    assert_no_password(out)
    assert server.ask("SELECT count(*) FROM city.buildings") == [(3,)]
    server.ask("DROP TRIGGER no ON city.buildings")
    assert geoseg_(*arguments).exit_code == 0
    assert server.ask("SELECT count(*) > 3 FROM city.buildings") == [(True,)]


def test_a_wrong_database_is_told_before_the_work(
    server: Server, table: str, city: Path, narrow_model: Path, tmp_path: Path
) -> None:
    done = geoseg_(
        "segment",
        city,
        "--out",
        tmp_path / "out",
        "--model",
        narrow_model,
        "--postgis",
        server.url("gis", "owner", "no"),
    )
    assert done.exit_code == 2
    assert done.stderr.startswith("geoseg: postgresql://owner@127.0.0.1")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_polygonize(server: Server, table: str, city: Path, narrow_model: Path, tmp_path: Path) -> None:
    run(city, tmp_path / "out", narrow_model)
    out = tmp_path / "b.fgb"
    done = geoseg_(
        "polygonize", tmp_path / "out" / "mask.tif", out, "--postgis", server.url(), "--postgis-table", table
    )
    assert done.exit_code == 0, done.output
    count = len(pyogrio.read_dataframe(out))
    assert server.ask("SELECT count(*), min(run) LIKE 'mask-%%' FROM city.buildings") == [(count, True)]
    assert table in done.stderr
