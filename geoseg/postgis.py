"""Write footprints to a table of a PostGIS database, in one transaction.

The rows go through ``COPY`` in PostgreSQL's binary format, batch by batch, so memory does not grow with their number.
Everything happens in one transaction: whoever reads the table sees the old rows until the new ones are all there, and a
failure leaves the old ones. An existing table is emptied by ``DELETE``, not ``TRUNCATE``: that blocks no reader, and
transactions that began earlier go on seeing the old rows. Grants, views, indices and triggers on it stay.

A table has the columns ``id`` (primary key), ``run``, ``created``, ``area_m2``, ``perimeter_m``, ``probability`` and
``geom`` (spatial index), whatever the mode, so that one can go on with the other; more columns may have been added by
others. *replace* takes the place of all rows, and ids are those of the files. *append* goes on counting, and takes the
place of rows of the very same run only, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from geoseg.database import Destination, Mode, transaction
from geoseg.errors import OutputError, SettingError
from geoseg.footprints import Footprints

if TYPE_CHECKING:
    from psycopg import Cursor

_COLUMNS = {
    "id": ("int8",),
    "run": ("text", "varchar"),
    "created": ("timestamptz",),
    "area_m2": ("float8",),
    "perimeter_m": ("float8",),
    "probability": ("float8",),
    "geom": ("geometry",),
}
"""Columns and the types, in PostgreSQL's short names, whose binary form is the one that is sent."""
_SENT = ("int8", "text", "timestamptz", "float8", "float8", "float8", "bytea")
"""How values are packed; the bytes of ``geom`` are what the type takes as its binary form, EWKB."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What went into the database."""

    table: str
    """With its schema."""
    srid: int
    """Number of the CRS in the database."""
    count: int
    """Rows written."""
    replaced: int
    """Rows whose place they took."""
    run: str
    """Value of the column ``run``."""


def check_postgis(destination: Destination, crs: Any) -> None:
    """Find out before long work whether the footprints can be written; nothing is changed.

    Raises:
        SettingError: the CRS or the table does not fit.
        OutputError: no server, no access, no PostGIS, no permission.
    """
    with transaction(destination) as connection, connection.cursor() as cursor:
        _look(cursor, destination, crs)
        connection.rollback()


def write_postgis(destination: Destination, batches: Iterable[Footprints], crs: Any, run: str) -> Stored:
    """Write footprints to a table; it changes when all are there, or not at all.

    Args:
        destination: where.
        batches: taken one at a time.
        crs: of the footprints; anything :meth:`pyproj.CRS.from_user_input` takes.
        run: what tells this run from others in the same table.

    Raises:
        SettingError: the CRS or the table does not fit.
        OutputError: the database cannot be reached, or refuses.
    """
    from psycopg import sql

    with transaction(destination) as connection, connection.cursor() as cursor:
        found = _look(cursor, destination, crs)
        # Other writers wait here, so that ids do not clash; readers do not.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"geoseg {found.name}",))
        found = _look(cursor, destination, crs)
        replaced = _make_room(cursor, found, destination.mode, run)
        first = 1 if destination.mode == "replace" else _next_id(cursor, found)
        created = datetime.now(UTC)
        count = 0
        columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(found.identifier, columns)) as copy:
            copy.set_types(_SENT)
            for batch in batches:
                for row in _rows(batch, found.srid, first + count, run, created):
                    copy.write_row(row)
                count += len(batch)
        _finish(cursor, found, first + count - 1)
    return Stored(found.name, found.srid, count, replaced, run)


def _rows(batch: Footprints, srid: int, first: int, run: str, created: datetime) -> Iterator[tuple[Any, ...]]:
    outlines = shapely.to_wkb(shapely.set_srid(batch.polygons, srid), include_srid=True)
    measures = [
        # An area that cannot be known is NULL.
        [None if np.isnan(value) else value for value in column.tolist()]
        for column in (batch.area_m2, batch.perimeter_m, batch.probability)
    ]
    for number, (*values, outline) in enumerate(zip(*measures, outlines, strict=True), first):
        yield number, run, created, *values, outline


@dataclass(frozen=True)
class _Found:
    """What the database says about the table that is to be written."""

    schema: str
    table: str
    postgis: str
    """Schema of PostGIS, which need not be in the search path."""
    srid: int
    oid: int | None
    """None: the table does not exist."""
    recast: bool = False
    """True: its geometry column is of another CRS or type."""
    owner: bool = True
    indexed: bool = False

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> Any:
        from psycopg import sql

        return sql.Identifier(self.schema, self.table)

    @property
    def geometry(self) -> Any:
        """The type of the geometry column."""
        from psycopg import sql

        return sql.SQL("{}.geometry(Polygon, {})").format(sql.Identifier(self.postgis), sql.Literal(self.srid))


def _one(cursor: Cursor[Any], query: Any, *values: Any) -> Any:
    row = cursor.execute(query, values or None).fetchone()
    return row if row is None or len(row) > 1 else row[0]


def _look(cursor: Cursor[Any], destination: Destination, crs: Any) -> _Found:
    """Ask for everything that could be in the way, and raise if it is."""
    server, mode = destination.server, destination.mode
    postgis = _one(
        cursor,
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'postgis'",
    )
    if postgis is None:
        raise OutputError(f"{server}: this database has no PostGIS; its owner can add it: CREATE EXTENSION postgis")
    schema = destination.schema or _one(cursor, "SELECT current_schema()")
    if schema is None or not _one(cursor, "SELECT count(*) FROM pg_namespace WHERE nspname = %s", schema):
        missing = f"no schema {schema}" if schema else "no schema in your search path"
        raise OutputError(f"{server}: {missing}; create it, or name another one with --postgis-table")
    found = _Found(schema, destination.table, postgis, _srid(cursor, postgis, crs, server), None)
    row = _one(
        cursor,
        "SELECT c.oid, relkind::text, pg_has_role(relowner, 'USAGE') FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relname = %s",
        schema,
        destination.table,
    )
    if row is None:
        if not _one(cursor, "SELECT has_schema_privilege(%s, 'CREATE')", schema):
            raise OutputError(f"{server}: no permission to create a table in schema {schema}")
        return found
    oid, kind, owner = row
    if kind not in ("r", "p"):
        raise SettingError(f"{server}: {found.name} is no table; choose another name with --postgis-table")
    srid = _check_columns(cursor, found, oid, server)
    recast = srid != found.srid
    if recast and mode == "append":
        there = "geometries of another type" if srid is None else f"SRID {srid}"
        raise SettingError(f"{server}: {found.name} has {there}, the footprints are polygons of SRID {found.srid}")
    for privilege in ("SELECT", "INSERT", "DELETE"):
        if not _one(cursor, "SELECT has_table_privilege(%s::oid, %s)", oid, privilege):
            raise OutputError(f"{server}: no permission: {privilege} on table {found.name} is not granted")
    if recast and not owner:
        raise OutputError(f"{server}: no permission: only the owner of {found.name} can change its CRS")
    return _Found(schema, destination.table, postgis, found.srid, oid, recast, owner, _is_indexed(cursor, oid))


def _srid(cursor: Cursor[Any], postgis: str, crs: Any, server: str) -> int:
    """Return the database's number of a CRS."""
    from psycopg import sql

    if crs is None:
        raise SettingError("PostGIS: the imagery has no coordinate reference system, so its footprints have no place")
    known = CRS.from_user_input(crs)
    code = known.to_authority(min_confidence=70)
    try:
        same = code is not None and CRS.from_authority(*code).equals(known, ignore_axis_order=True)
    except CRSError:
        same = False
    if code is None or not same:
        raise SettingError(
            f"PostGIS: the CRS of the imagery ({known.name}) is none that has a number (EPSG or other); reproject the "
            "imagery, or load buildings.gpkg with a tool that can"
        )
    table = sql.Identifier(postgis, "spatial_ref_sys")
    query = sql.SQL("SELECT srid FROM {} WHERE upper(auth_name) = upper(%s) AND auth_srid::text = %s").format(table)
    srid = _one(cursor, query, *code)
    if srid is None:
        raise SettingError(f"{server}: its PostGIS does not know {':'.join(code)} ({known.name}); add it to {postgis}"
                           ".spatial_ref_sys")  # fmt: skip
    return int(srid)


def _check_columns(cursor: Cursor[Any], found: _Found, oid: int, server: str) -> int | None:
    """Return the SRID of the geometry column, that asked for where it takes any, None where it takes no polygons."""
    from psycopg import sql

    function = {name: sql.Identifier(found.postgis, f"postgis_typmod_{name}") for name in ("srid", "type", "dims")}
    query = sql.SQL(
        "SELECT attname, typname, attnotnull AND NOT atthasdef AND attidentity = '' AND attgenerated = '', atttypmod,"
        " CASE WHEN typname = 'geometry'"
        " THEN ARRAY[{srid}(atttypmod)::text, {type}(atttypmod), {dims}(atttypmod)::text]"
        " END FROM pg_attribute JOIN pg_type t ON t.oid = atttypid"
        " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
    ).format(**function)
    columns = {row[0]: row[1:] for row in cursor.execute(query, (oid,)).fetchall()}
    wrong = [name for name, types in _COLUMNS.items() if name not in columns or columns[name][0] not in types]
    wrong += [name for name, (_type, needed, *_rest) in columns.items() if needed and name not in _COLUMNS]
    if wrong:
        raise SettingError(
            f"{server}: {found.name} is no table of geoseg's, or was changed (columns: {', '.join(sorted(wrong))}); "
            "choose another name with --postgis-table, or drop the table"
        )
    modifier, (srid, kind, dimensions) = columns["geom"][2:]
    if modifier == -1:
        return found.srid
    return int(srid) if kind in ("Polygon", "Geometry") and dimensions == "2" else None


def _is_indexed(cursor: Cursor[Any], oid: int) -> bool:
    return bool(
        _one(
            cursor,
            "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid JOIN pg_am m ON m.oid = relam"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
            " WHERE i.indrelid = %s AND attname = 'geom' AND amname IN ('gist', 'spgist', 'brin')",
            oid,
        )
    )


def _make_room(cursor: Cursor[Any], found: _Found, mode: Mode, run: str) -> int:
    """Create the table, or take away the rows whose place is taken; return how many."""
    from psycopg import sql

    if found.oid is None:
        cursor.execute(
            sql.SQL(
                "CREATE TABLE {} (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, run text NOT NULL,"
                " created timestamptz NOT NULL DEFAULT now(), area_m2 double precision, perimeter_m double precision,"
                " probability double precision, geom {} NOT NULL)"
            ).format(found.identifier, found.geometry)
        )
        comment = "Building footprints. run: which run of geoseg; area_m2, perimeter_m: on the ellipsoid"
        cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(found.identifier, comment))
        return 0
    where = sql.SQL("") if mode == "replace" else sql.SQL(" WHERE run = {}").format(run)
    removed = cursor.execute(sql.SQL("DELETE FROM {}{}").format(found.identifier, where)).rowcount
    if found.recast:
        # No row is left that would have to be converted.
        cursor.execute(
            sql.SQL("ALTER TABLE {} ALTER COLUMN geom TYPE {} USING NULL").format(found.identifier, found.geometry)
        )
    return removed


def _sequence(cursor: Cursor[Any], found: _Found) -> str | None:
    """Return the sequence behind ``id`` where there is one that this user may set."""
    name = _one(cursor, "SELECT pg_get_serial_sequence(%s, 'id')", found.identifier.as_string(cursor))
    usable = name and _one(cursor, "SELECT has_sequence_privilege(%s, 'SELECT, UPDATE')", name)
    return str(name) if usable else None


def _next_id(cursor: Cursor[Any], found: _Found) -> int:
    """Return an id above all that are, or (where the sequence tells) ever were."""
    from psycopg import sql

    highest = _one(cursor, sql.SQL("SELECT coalesce(max(id), 0) FROM {}").format(found.identifier))
    sequence = _sequence(cursor, found)
    last = _one(cursor, "SELECT coalesce(pg_sequence_last_value(%s::regclass), 0)", sequence) if sequence else 0
    return max(int(highest), int(last)) + 1


def _finish(cursor: Cursor[Any], found: _Found, last: int) -> None:
    """Bring up what belongs to the rows: the sequence for rows drawn by hand, the index, the planner's figures."""
    from psycopg import sql

    sequence = _sequence(cursor, found)
    if sequence and last > 0:
        # Not undone by a rollback, so never set back.
        cursor.execute(
            "SELECT setval(%s::regclass, greatest(%s, coalesce(pg_sequence_last_value(%s::regclass), 0)))",
            (sequence, last, sequence),
        )
    if found.oid is None or (found.owner and not found.indexed):
        cursor.execute(sql.SQL("CREATE INDEX ON {} USING gist (geom)").format(found.identifier))
    if found.owner:
        cursor.execute(sql.SQL("ANALYZE {}").format(found.identifier))
