"""A table of a PostgreSQL database as a user names it: where it is, how to connect, and errors in plain words.

The password may be in the URL, but better in PostgreSQL's own places (``PGPASSWORD``, ``~/.pgpass``, a service file);
it is in no message and in no file that geoseg writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from geoseg.errors import OutputError, SettingError

if TYPE_CHECKING:
    from types import ModuleType

    from psycopg import Connection

Mode = Literal["replace", "append"]
MODES: tuple[Mode, ...] = get_args(Mode)
TABLE = "buildings"
"""Name of the table unless another is asked for."""

_NAME = r'(?:"([^"\0]+)"|([^\W\d][\w$]*))'
_TABLE_NAME = re.compile(rf"(?:{_NAME}\.)?{_NAME}")
_NAME_BYTES = 63
_CONNECT_SECONDS = "15"
_LOCK_TIMEOUT = "10min"
"""How long to wait for a program that holds the table locked."""
_MAX_REASON = 400


@dataclass(frozen=True)
class Destination:
    """A table of a database; made by :meth:`of`."""

    parameters: Mapping[str, str] = field(repr=False)
    """How to connect, in libpq's names; may hold a password."""
    schema: str | None
    """None: the first of the user's search path."""
    table: str
    mode: Mode

    @classmethod
    def of(cls, url: str, table: str = TABLE, mode: str = "replace") -> Destination:
        """Take apart what a user gave.

        Args:
            url: ``postgresql://USER@HOST:PORT/DATABASE``, or libpq's ``host=… dbname=…`` or ``service=…``.
            table: ``TABLE`` or ``SCHEMA.TABLE``, in lower case unless quoted, as in SQL.
            mode: ``replace`` or ``append``.

        Raises:
            SettingError: one of them makes no sense, or psycopg is not installed.
        """
        if mode not in MODES:
            raise SettingError(f"--postgis-mode is {mode!r}; it must be one of {', '.join(MODES)}")
        match = _TABLE_NAME.fullmatch(table)
        names = [quoted or (plain or "").lower() for quoted, plain in _pairs(match.groups())] if match else []
        if not match or any(len(name.encode()) > _NAME_BYTES for name in names):
            raise SettingError(
                f"--postgis-table is {table!r}; it must be TABLE or SCHEMA.TABLE (letters, digits, _; other names in "
                f"double quotes, as in SQL), each of at most {_NAME_BYTES} bytes"
            )
        return cls(_parameters(url), names[0] or None, names[1], mode)

    @property
    def server(self) -> str:
        """User, host and database as a URL, never a password."""
        given = self.parameters
        if "service" in given:
            return f"service={given['service']}"
        user = f"{given['user']}@" if given.get("user") else ""
        hosts = (given.get("host") or given.get("hostaddr") or "").split(",")
        ports = given.get("port", "").split(",")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        places = [
            (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
            for host, port in zip(hosts, ports, strict=False)
        ]
        return f"postgresql://{user}{','.join(places)}/{given.get('dbname', '')}"

    @property
    def name(self) -> str:
        """The table as a user would write it."""
        return f"{self.schema}.{self.table}" if self.schema else self.table


def _pairs(groups: tuple[str | None, ...]) -> Iterator[tuple[str | None, str | None]]:
    return iter(zip(groups[::2], groups[1::2], strict=True))


def _psycopg() -> ModuleType:
    try:
        import psycopg
    except ImportError as error:
        raise SettingError(
            f"PostGIS needs the package psycopg, which cannot be loaded ({error}): pip install 'geoseg[postgis]'"
        ) from error
    return psycopg


def _parameters(url: str) -> dict[str, str]:
    psycopg = _psycopg()
    from psycopg.conninfo import conninfo_to_dict

    # libpq's own words would quote the text, password and all, so neither they nor their cause are passed on.
    wrong = SettingError(
        "--postgis is not understood; it must be postgresql://USER@HOST:PORT/DATABASE (other characters than letters "
        "and digits in a password as %XX: @ is %40, / is %2F), or text such as 'host=… dbname=… user=…'"
    )
    try:
        found = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.Error:
        raise wrong from None
    # What an unencoded @ or / makes of a URL: pieces of the password in other places, from where they would be shown.
    ports = found.get("port", "").split(",")
    misread = "@" in found.get("host", "") or not all(port == "" or port.isdigit() for port in ports)
    if misread or ("://" in url and "@" in found.get("dbname", "")):
        raise wrong
    return found


@contextmanager
def transaction(destination: Destination) -> Iterator[Connection[Any]]:
    """Connect; commit when the block ends well, roll back when it raises.

    Raises:
        OutputError: The server cannot be reached, or refuses anything in the block.
    """
    psycopg = _psycopg()
    usual = {"connect_timeout": _CONNECT_SECONDS, "application_name": "geoseg"}
    try:
        with psycopg.connect(**{**usual, **destination.parameters, "client_encoding": "utf8"}) as connection:
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
            yield connection
    except psycopg.Error as error:
        raise OutputError(f"{destination.server}, table {destination.name}: {_reason(error, psycopg)}") from error


def _reason(error: Any, psycopg: ModuleType) -> str:
    """Return the server's words, or libpq's, as one line."""
    said = " ".join(filter(None, (error.diag.message_primary, error.diag.message_detail))) or str(error)
    line = " ".join(said.split()).removeprefix("connection failed: ")
    # One after the other for each address of a host: the last is as good as any.
    line = line.rpartition(" - host: ")[2] if " - host: " in line else line
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        line = f"no permission: {line}"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        line = f"another program holds the table locked for more than {_LOCK_TIMEOUT}"
    return line[:_MAX_REASON] or type(error).__name__
