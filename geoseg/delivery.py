"""What a run hands to other programs beside its files: rows in PostGIS, a STAC item, a QGIS project."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import OutputError, SettingError
from geoseg.settings import Settings

if TYPE_CHECKING:
    from geoseg.database import Destination
    from geoseg.footprints import Footprints
    from geoseg.segment import Plan

POSTGIS = "PostGIS"
"""What failures call the database."""

_NOT_OUTLINES = frozenset(
    # What the identity of the pixels covers, as far as it changes anything …
    ("model", "threshold", "bands", "gsd", "range", "aoi", "halo", "taper", "core", "cell", "tta", "precision")
) | frozenset(
    # … and where and how the work is done, and what becomes of the footprints.
    ("device", "workers", "scheduler", "format", "fresh", "progress", "postgis", "postgis_table", "postgis_mode")
)
"""Settings that have no part in how pixels become outlines."""


def run_name(label: str, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return a name that runs share when they make the same footprints from the same files, and no others.

    Args:
        label: The first part of the name, for people.
        identity: What the pixels depend on, as JSON values.
        settings: How they become outlines.
    """
    chosen = {name: value for name, value in settings.items() if name not in _NOT_OUTLINES}
    text = json.dumps([identity, chosen], sort_keys=True, default=str)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def name_of(planned: Plan, settings: Settings) -> str:
    """Return :func:`run_name` of a run of ``geoseg segment``."""
    tiling = {name: value for name, value in planned.identity["tiling"].items() if name != "core"}
    return run_name(planned.card.name, {**planned.identity, "tiling": tiling}, asdict(settings))


def destination_of(settings: Settings) -> Destination | None:
    """Return the table that the footprints go to; None where there is none.

    Raises:
        SettingError: A setting of it is wrong.
    """
    if settings.postgis is None:
        return None
    from geoseg.database import Destination

    return Destination.of(settings.postgis, settings.postgis_table, settings.postgis_mode)


def check_database(settings: Settings, crs: Any) -> None:
    """Ask the database, where there is one, before long work whether it will take the footprints.

    Raises:
        SettingError: A setting, the table or the CRS does not fit.
        OutputError: The database cannot be reached or does not permit it.
    """
    destination = destination_of(settings)
    if destination is not None:
        from geoseg.postgis import check_postgis

        check_postgis(destination, crs)


def database_writer(settings: Settings, crs: Any, run: str) -> Callable[[Iterator[Footprints]], object] | None:
    """Return what writes footprints to the database, raising where it cannot; None where there is none.

    Raises:
        SettingError: A setting is wrong.
    """
    destination = destination_of(settings)
    if destination is None:
        return None
    from geoseg.postgis import write_postgis

    return lambda batches: write_postgis(destination, batches, crs, run)


class Database:
    """Takes the footprints to PostGIS when the files are there.

    What goes wrong there is one of the run's failures: the files stay, and the same command tries again.
    """

    def __init__(self, destination: Destination, crs: Any, run: str) -> None:
        """Nothing is done before the call."""
        self._destination, self._crs, self._run = destination, crs, run
        self.facts: dict[str, Any] = {"server": destination.server, "table": destination.name, "run": run}
        """For ``run.json``."""
        self.failures: list[dict[str, str]] = []

    def __call__(self, batches: Iterator[Footprints]) -> None:
        """Write the footprints."""
        from geoseg.postgis import write_postgis

        try:
            stored = write_postgis(self._destination, batches, self._crs, self._run)
        except (OutputError, SettingError) as error:
            self.failures.append({"path": POSTGIS, "message": str(error)})
            return
        self.facts |= {
            "table": stored.table,
            "mode": self._destination.mode,
            "srid": stored.srid,
            "rows": stored.count,
            "rows_replaced": stored.replaced,
        }


def without_password(text: str, settings: Settings) -> str:
    """Return a command line with the database as it may be shown."""
    destination = destination_of(settings)
    if destination is None or settings.postgis is None:
        return text
    return text.replace(settings.postgis, destination.server)


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON values, without a password."""
    destination = destination_of(settings)
    return asdict(settings) | {"postgis": None if destination is None else destination.server}


def write_companions(out: Path, planned: Plan, settings: Settings, run: dict[str, Any]) -> None:
    """Write the QGIS project and the STAC item, and note in ``run`` which of them there are, and why one is not.

    Raises:
        OutputError: A file cannot be written.
    """
    from geoseg.project import write_project
    from geoseg.stac import write_item

    scaling = planned.job.scaling
    title = f"Building footprints: {Path(planned.mosaic.sources[0].name).parent.name or out.resolve().name}"
    missing = {
        "project.qgz": write_project(
            out / "project.qgz", planned.mosaic, settings.format, (scaling.low, scaling.high), title
        )
    }
    if (out / "project.qgz").exists():
        run["outputs"]["project"] = "project.qgz"
    missing["item.json"] = write_item(out / "item.json", run, planned.mosaic, name_of(planned, settings))
    if missing["item.json"] is None:
        run["outputs"]["item"] = "item.json"
    run["left_out"] = {name: reason for name, reason in missing.items() if reason}
