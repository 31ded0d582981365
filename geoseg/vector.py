"""Write footprints as GeoPackage, FlatGeobuf, GeoParquet or GeoJSON, batch by batch.

All formats get one layer ``buildings`` with the attributes ``id``, ``area_m2``, ``perimeter_m`` and
``probability``. GDAL writes all but GeoParquet, which pyarrow writes (GDAL's own driver is missing
from common builds). Memory does not grow with the number of buildings, apart from FlatGeobuf's
spatial index (some hundred bytes a building in GDAL).

Files come out the same to the byte when written again from the same footprints by the same library
versions, so times inside GeoPackage are fixed.
"""

from __future__ import annotations

import json
import math
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from geoseg.errors import OutputError, SettingError
from geoseg.footprints import Footprints
from geoseg.formats import VectorFormat, check_format, format_of
from geoseg.style import embed_style
from geoseg.write import explain, replacing, scratch

LAYER = "buildings"
GEOMETRY = "geometry"

FIXED_TIME = "1970-01-01T00:00:00.000Z"
"""Time of change inside GeoPackage: the same on each run, so that equal content is equal files."""

ROW_GROUP = 65_536
"""Rows that a GeoParquet reader takes or skips at once."""

_WKB = {b"ARROW:extension:name": b"geoarrow.wkb", b"ARROW:extension:metadata": b"{}"}
_BOX = ("xmin", "ymin", "xmax", "ymax")

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("area_m2", pa.float64()),
        pa.field("perimeter_m", pa.float64()),
        pa.field("probability", pa.float64()),
        pa.field(GEOMETRY, pa.binary(), nullable=False, metadata=_WKB),
    ]
)
_BOX_TYPE = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in _BOX])
_PARQUET_SCHEMA = pa.schema(
    [
        *list(_SCHEMA)[:-1],
        pa.field("bbox", _BOX_TYPE, nullable=False),
        pa.field(GEOMETRY, pa.binary(), nullable=False),
    ]
)

_DRIVERS: dict[VectorFormat, tuple[str, dict[str, str]]] = {
    "gpkg": ("GPKG", {"SPATIAL_INDEX": "YES", "GEOMETRY_NAME": "geom"}),
    "fgb": ("FlatGeobuf", {"SPATIAL_INDEX": "YES"}),
    # GDAL reprojects to WGS 84, cuts at the antimeridian and turns rings as RFC 7946 wants.
    "geojson": ("GeoJSON", {"RFC7946": "YES", "COORDINATE_PRECISION": "7"}),
}

# GDAL's configuration, which fixes the time, is one for the whole process.
_GDAL_CONFIGURATION = Lock()


@dataclass(frozen=True, slots=True)
class Written:
    """What went into a vector file."""

    count: int
    """Buildings."""
    area_m2: float
    """Their total area, square metres."""


def write_buildings(
    path: Path | str, batches: Iterable[Footprints], crs: Any, format: VectorFormat | None = None
) -> Written:
    """Write footprints to one file, which appears when it is complete.

    Args:
        path: destination; replaced if it exists.
        batches: taken one at a time as the file grows. None at all gives a valid file without
            buildings.
        crs: of the footprints; anything :meth:`pyproj.CRS.from_user_input` takes, or None.
        format: None takes it from the path's ending.

    Raises:
        SettingError: the format is unknown or cannot hold the coordinates.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    format = check_format(format_of(path) if format is None else format, crs)
    known = None if crs is None else CRS.from_user_input(crs)
    tally = _Tally()
    with replacing(path) as temporary, _explained(path, tally):
        if format == "parquet":
            _write_parquet(temporary, tally.counted(batches), known)
        else:
            _write_gdal(temporary, tally.counted(batches), known, format)
            _check_complete(temporary, format, tally.result().count, path)
    return tally.result()


def write_formats(
    paths: Sequence[Path | str],
    batches: Iterable[Footprints],
    crs: Any,
    also: Callable[[Iterator[Footprints]], object] | None = None,
) -> Written:
    """Write the same footprints to several files, formats by their endings.

    ``batches`` is gone through once: between the files the footprints wait in a temporary file
    beside the first. When the files are there, ``also`` gets the same footprints.

    Raises:
        SettingError: no path is given, or see :func:`write_buildings`.
        OutputError: a file cannot be written.
    """
    if not paths:
        raise SettingError("at least one vector file must be named")
    for path in paths:
        check_format(format_of(path), crs)
    if len(paths) == 1 and also is None:
        return write_buildings(paths[0], batches, crs)
    first, *others = (Path(path) for path in paths)
    with scratch(first.with_name(f"{first.name}.spool")) as folder:
        spool = folder / "footprints.arrows"
        with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as stream:
            written = write_buildings(first, _copied(batches, stream), crs)
        for path in others:
            write_buildings(path, _spooled(spool), crs)
        if also is not None:
            also(_spooled(spool))
    return written


class _Tally:
    """Counts what passes, and remembers the error of whoever makes the batches.

    Arrow hands batches to GDAL through C, which keeps no more than the text of a Python error.
    """

    def __init__(self) -> None:
        self._count = 0
        self._areas: list[float] = []
        self.error: BaseException | None = None

    def counted(self, batches: Iterable[Footprints]) -> Iterator[Footprints]:
        try:
            for batch in batches:
                self._count += len(batch)
                self._areas.append(float(np.nansum(batch.area_m2)))
                yield batch
        except BaseException as error:
            self.error = error
            raise

    def result(self) -> Written:
        return Written(self._count, round(math.fsum(self._areas), 3))


def _record(batch: Footprints) -> pa.RecordBatch:
    # from_pandas: NaN, an area that cannot be known, becomes null.
    columns = [
        pa.array(batch.id),
        pa.array(batch.area_m2, from_pandas=True),
        pa.array(batch.perimeter_m, from_pandas=True),
        pa.array(batch.probability, from_pandas=True),
        pa.array(shapely.to_wkb(batch.polygons), pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _copied(batches: Iterable[Footprints], stream: pa.ipc.RecordBatchStreamWriter) -> Iterator[Footprints]:
    for batch in batches:
        stream.write_batch(_record(batch))
        yield batch


def _spooled(path: Path) -> Iterator[Footprints]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for record in stream:
            values = [record.column(index).to_numpy(zero_copy_only=False) for index in range(5)]
            ids, area, perimeter, probability, outlines = values
            yield Footprints(
                polygons=shapely.from_wkb(outlines),
                id=ids,
                area_m2=area,
                perimeter_m=perimeter,
                probability=probability,
            )


def _write_gdal(path: Path, batches: Iterable[Footprints], crs: CRS | None, format: VectorFormat) -> None:
    driver, options = _DRIVERS[format]
    reader = pa.RecordBatchReader.from_batches(_SCHEMA, map(_record, batches))
    with warnings.catch_warnings(), _fixed_time():
        # That there is no CRS was reported where the imagery was opened.
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
        pyogrio.write_arrow(
            reader,
            path,
            layer=LAYER,
            driver=driver,
            geometry_name=GEOMETRY,
            geometry_type="Polygon",
            crs=_gdal_crs(crs),
            # What GDAL of Debian 12 and Ubuntu 22.04 knows; 1.4, today's default, makes them warn.
            dataset_options={"VERSION": "1.2"} if format == "gpkg" else {},
            layer_options=options | ({"SRID": "-1"} if crs is None and format == "gpkg" else {}),  # undefined Cartesian
        )
    if format == "gpkg":
        embed_style(path, LAYER, options["GEOMETRY_NAME"], FIXED_TIME)


def _check_complete(temporary: Path, format: VectorFormat, count: int, path: Path) -> None:
    """Look at what came out: GDAL reports some failed writes at a file's end to its log only."""
    if format == "gpkg":
        index = f"rtree_{LAYER}_{_DRIVERS[format][1]['GEOMETRY_NAME']}"
        with closing(sqlite3.connect(temporary)) as database:
            found = [
                database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - constants
                for table in (LAYER, index)
            ]
        complete = found == [count, count]
    elif format == "fgb":
        features = pyogrio.read_info(temporary)["features"]
        complete = features == count or (count == 0 and features <= 0)
    else:
        with temporary.open("rb") as file:
            file.seek(max(0, temporary.stat().st_size - 16))
            complete = b"".join(file.read().split()).endswith(b"]}")
    if not complete:
        raise OutputError(f"{path}: not all buildings could be written; is the disk full?")


def _gdal_crs(crs: CRS | None) -> str | None:
    if crs is None:
        return None
    code = crs.to_authority(min_confidence=100)
    return ":".join(code) if code else crs.to_wkt()


@contextmanager
def _fixed_time() -> Iterator[None]:
    name = "OGR_CURRENT_DATE"
    with _GDAL_CONFIGURATION:
        before = pyogrio.get_gdal_config_option(name)
        pyogrio.set_gdal_config_options({name: FIXED_TIME})
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({name: before})


def _write_parquet(path: Path, batches: Iterable[Footprints], crs: CRS | None) -> None:
    """GeoParquet 1.1: WKB, and a box per row as covering, by which readers skip row groups."""
    extent = np.array([np.inf, np.inf, -np.inf, -np.inf])
    with pq.ParquetWriter(path, _PARQUET_SCHEMA, compression="zstd") as writer:
        for group in _grouped(map(_covered, batches)):
            boxes = np.stack([group.column("bbox").combine_chunks().field(n) for n in _BOX])
            extent[:2] = np.minimum(extent[:2], boxes[:2].min(axis=1))
            extent[2:] = np.maximum(extent[2:], boxes[2:].max(axis=1))
            writer.write_table(group)
        writer.add_key_value_metadata({"geo": json.dumps(_geo(crs, extent))})


def _covered(batch: Footprints) -> pa.RecordBatch:
    *attributes, geometry = _record(batch).columns
    boxes = list(shapely.bounds(batch.polygons).T)
    covering = pa.StructArray.from_arrays(boxes, fields=list(_BOX_TYPE))
    return pa.RecordBatch.from_arrays([*attributes, covering, geometry], schema=_PARQUET_SCHEMA)


def _grouped(records: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    group: list[pa.RecordBatch] = []
    for record in records:
        if record.num_rows:
            group.append(record)
        if sum(one.num_rows for one in group) >= ROW_GROUP:
            yield pa.Table.from_batches(group)
            group = []
    if group:
        yield pa.Table.from_batches(group)


def _geo(crs: CRS | None, extent: NDArray[np.float64]) -> dict[str, Any]:
    """Return the file's metadata as https://geoparquet.org/releases/v1.1.0 wants them."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None if crs is None else crs.to_json_dict(),
        "edges": "planar",
        "orientation": "counterclockwise",
        "covering": {"bbox": {name: ["bbox", name] for name in _BOX}},
    }
    if np.isfinite(extent).all():
        column["bbox"] = extent.tolist()
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


@contextmanager
def _explained(path: Path, tally: _Tally) -> Iterator[None]:
    """Raise the error of whoever makes the batches as it is, and others as ours."""
    try:
        yield
    except (RuntimeError, pa.ArrowException, sqlite3.Error, OSError) as error:
        if tally.error is not None:
            raise tally.error from None
        if isinstance(error, OSError):
            raise OutputError(explain(error, path)) from error
        raise OutputError(f"{path}: cannot be written: {error}") from error
    if tally.error is not None:
        raise tally.error
