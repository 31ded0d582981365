"""Buildings in pixels, in batches, and kept on the disk until all are there.

Buildings come out of the join in an order that depends on how the mosaic was cut. :class:`Spool` gives them back in the
order of their first pixel, so numbers and files do not depend on the cut.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from geoseg.errors import OutputError, SettingError
from geoseg.processes import BATCH
from geoseg.settled import DONE, OPEN, Settled
from geoseg.wholes import Wholes

Polygons = NDArray[np.object_]
"""One-dimensional array of shapely polygons."""

BATCH_BYTES = 32 * 2**20
"""A batch ends before it has all its buildings when their outlines take more than this."""
LARGE = 4096
"""Pixels along a side. What is larger is no building but many in one, and not asked what stands beside it, which could
be all the others."""


class Building(Protocol):
    """What the join yields; see :mod:`geoseg.polygonize`."""

    @property
    def polygon(self) -> Polygon:
        """Outline in pixels, x = column, y = row."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""

    @property
    def probability_sum(self) -> int:
        """Sum of the pixels' 8-bit probabilities (255 = 1.0)."""

    @property
    def first(self) -> tuple[int, int]:
        """``(row, column)`` of the first pixel, row by row; no two buildings share it."""


def _nothing() -> Polygons:
    return np.empty(0, object)


def _no_numbers() -> NDArray[np.float64]:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class Outlines:
    """A batch of buildings in pixels; arrays of one length, and what stands beside them."""

    polygons: Polygons
    """x = column, y = row; pixel (r, c) covers [c, c + 1] × [r, r + 1]."""
    pixels: NDArray[np.int64]
    """Number of pixels of each."""
    probability_sum: NDArray[np.int64]
    """Sum of the pixels' 8-bit probabilities (255 = 1.0)."""
    beside: Polygons = field(default_factory=_nothing)
    """Other buildings, of this batch or of others, that stand near those that are not finished; of any number."""
    finished: Polygons = field(default_factory=_nothing)
    """What :func:`geoseg.footprints.on_map` has made of them, None where it has not yet; an empty array where it has of
    none. The ``polygons`` of finished ones may be None."""
    area_m2: NDArray[np.float64] = field(default_factory=_no_numbers)
    """Of finished ones, like the next; NaN for others."""
    perimeter_m: NDArray[np.float64] = field(default_factory=_no_numbers)

    def __post_init__(self) -> None:
        if not len(self.finished) and len(self.polygons):
            object.__setattr__(self, "finished", np.full(len(self.polygons), None, object))
            for name in ("area_m2", "perimeter_m"):
                object.__setattr__(self, name, np.full(len(self.polygons), np.nan))
        arrays = (self.polygons, self.pixels, self.probability_sum, self.finished, self.area_m2, self.perimeter_m)
        sizes = set(map(len, arrays))
        if len(sizes) > 1:
            raise SettingError(f"arrays of one batch differ in length: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def open(self) -> NDArray[np.bool_]:
        """True for those that are not finished."""
        return np.array([outline is None for outline in self.finished], bool)

    def __getstate__(self) -> dict[str, Any]:
        # One by one, polygons take as long to travel as to be straightened.
        outlines = {name: shapely.to_wkb(getattr(self, name)) for name in _TRAVELLING}
        return {**self.__dict__, **outlines}

    def __setstate__(self, state: dict[str, Any]) -> None:
        outlines = {name: shapely.from_wkb(state[name]) for name in _TRAVELLING}
        self.__dict__.update({**state, **outlines})

    @classmethod
    def of(cls, buildings: Iterable[Building]) -> Outlines:
        """Gather buildings into one batch."""
        rows = list(buildings)
        return cls(
            polygons_array([row.polygon for row in rows]),
            np.array([row.pixels for row in rows], np.int64),
            np.array([row.probability_sum for row in rows], np.int64),
        )


_TRAVELLING = ("polygons", "beside", "finished")


def polygons_array(polygons: Iterable[Polygon]) -> Polygons:
    """Return polygons as a one-dimensional object array, also when there are none."""
    rows = list(polygons)
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


class Spool:
    """Buildings kept in a temporary SQLite file, given back in the order of their first pixels.

    Args:
        path: the temporary file; one that is left from a killed process is replaced.
        width: columns of the mosaic.

    Raises (all methods):
        OutputError: the disk is full or not writable.
    """

    def __init__(self, path: Path | str, width: int) -> None:
        if width < 1:
            raise SettingError(f"a mosaic needs at least one column, not {width}")
        self._path = Path(path)
        self._width = width
        with self._explained():
            self._path.unlink(missing_ok=True)
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database.executescript(
                # Nothing of it survives a crash, so nothing is spent on surviving one.
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                "PRAGMA cache_size=-32768;"
                "CREATE TABLE building"
                "(key INTEGER PRIMARY KEY, outline BLOB, pixels INTEGER, probability_sum INTEGER,"
                " x0 INTEGER, y0 INTEGER, x1 INTEGER, y1 INTEGER, finished BLOB,"
                " area REAL, perimeter REAL);"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file."""
        self._database.close()
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM building").fetchone()[0])

    def add(self, buildings: Iterable[Building]) -> None:
        """Keep buildings, in any order and any number.

        Raises:
            SettingError: two buildings have the same first pixel.
        """
        remaining = iter(buildings)
        while chunk := list(islice(remaining, BATCH)):
            self._insert(self._rows(chunk))

    def open(self) -> int:
        """Return how many buildings are not finished."""
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM building WHERE finished IS NULL").fetchone()[0])

    def add_wholes(self, wholes: Wholes, settled: Settled | None = None) -> None:
        """Keep the whole buildings of a block, and what has been made of them where they were computed."""
        if not len(wholes):
            return
        keys = self._keys(wholes.first).tolist()
        facts = wholes.pixels.tolist(), wholes.probability_sums.tolist(), wholes.boxes.tolist()
        roles = [OPEN] * len(wholes) if settled is None else settled.roles.tolist()
        nothing = [None] * len(wholes)
        made = (nothing, nothing, nothing) if settled is None else settled.rows()
        rows = zip(keys, wholes.wkb(), *facts, roles, *made, strict=True)
        self._insert(
            (key, None if role == DONE else outline, pixels, total, *box, *finished)
            for key, outline, pixels, total, box, role, *finished in rows
        )

    def _keys(self, first: NDArray[np.int64]) -> NDArray[np.int64]:
        rows, cols = first.T
        outside = (rows < 0) | (cols < 0) | (cols >= self._width)
        if outside.any():
            pixel = tuple(first[np.argmax(outside)].tolist())
            raise SettingError(f"pixel {pixel} is not in a mosaic of {self._width} columns")
        keys: NDArray[np.int64] = rows * self._width + cols
        return keys

    def _insert(self, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._explained():
            self._database.execute("BEGIN")
            try:
                self._database.executemany("INSERT INTO building VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError as error:
                raise SettingError("two buildings have the same first pixel") from error
            self._database.execute("COMMIT")

    def _rows(self, buildings: list[Building]) -> Iterator[tuple[Any, ...]]:
        polygons = polygons_array([one.polygon for one in buildings])
        outlines, boxes = shapely.to_wkb(polygons), shapely.bounds(polygons)
        boxes[:, 2:] = np.ceil(boxes[:, 2:])
        keys = self._keys(np.array([one.first for one in buildings], np.int64)).tolist()
        for one, key, outline, box in zip(buildings, keys, outlines, boxes.tolist(), strict=True):
            x0, y0, x1, y1 = map(math.floor, box)
            yield key, outline, int(one.pixels), int(one.probability_sum), x0, y0, x1, y1, None, None, None

    def batches(self, beside: int | None = None, size: int | None = None) -> Iterator[Outlines]:
        """Yield all buildings in the order of their first pixels; may be called again.

        Args:
            size: of a batch, in buildings; None for :data:`BATCH`.
            beside: also give each batch the buildings whose boxes come within so many pixels of the box of one of its
                own that is not finished (but see :data:`LARGE`) and that are not such themselves; None for no such
                buildings.
        """
        with self._explained():
            if beside is not None:
                self._database.executescript(
                    "DROP TABLE IF EXISTS box; CREATE VIRTUAL TABLE box USING rtree_i32(key, x0, x1, y0, y1);"
                    "INSERT INTO box SELECT key, x0, x1, y0, y1 FROM building WHERE outline IS NOT NULL;"
                )
            cursor = self._database.execute(
                "SELECT key, outline, pixels, probability_sum, finished, area, perimeter FROM building ORDER BY key"
            )
        rows: list[_Row] = []
        held = 0
        while True:
            with self._explained():
                row = cursor.fetchone()
            if row is None:
                break
            rows.append(row)
            held += len(row[1] or row[4])
            if len(rows) == (size or BATCH) or held > BATCH_BYTES:
                yield self._batch(rows, beside)
                rows, held = [], 0
        if rows:
            yield self._batch(rows, beside)

    def _batch(self, rows: list[_Row], beside: int | None) -> Outlines:
        keys, outlines, pixels, sums, finished, *measures = zip(*rows, strict=True)
        others: list[tuple[bytes]] = []
        if beside is not None:
            near = {"first": keys[0], "last": keys[-1], "reach": beside, "large": LARGE}
            with self._explained():
                others = self._database.execute(_BESIDE, near).fetchall()
        return Outlines(
            shapely.from_wkb(np.array(outlines, object)),
            np.array(pixels, np.int64),
            np.array(sums, np.int64),
            polygons_array(shapely.from_wkb([outline for (outline,) in others])),
            shapely.from_wkb(np.array(finished, object)),
            *(np.array(values, np.float64) for values in measures),
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise OutputError(f"{self._path}: temporary file cannot be written: {error}") from error


_Row = tuple[int, bytes | None, int, int, bytes | None, float | None, float | None]

_BESIDE = """
SELECT outline FROM building WHERE key IN (
    SELECT box.key FROM building AS own CROSS JOIN box
    ON box.x0 <= own.x1 + :reach AND box.x1 >= own.x0 - :reach
    AND box.y0 <= own.y1 + :reach AND box.y1 >= own.y0 - :reach
    WHERE own.key BETWEEN :first AND :last AND own.finished IS NULL
    AND own.x1 - own.x0 <= :large AND own.y1 - own.y0 <= :large
) AND NOT (key BETWEEN :first AND :last AND finished IS NULL) ORDER BY key
"""
"""The outlines near the open ones of a batch; CROSS JOIN keeps SQLite from going through all boxes first."""
