"""From buildings in pixels to footprints on the map: spool, filter, transform, measure, number.

Buildings come out of the join in an order that depends on how the mosaic was cut. :class:`Spool`
keeps them on the disk and gives them back in the order of their first pixel, so numbers and files
do not depend on the cut. From there on everything goes batch by batch, and memory does not grow
with the number of buildings.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError
from shapely import Polygon

from geoseg.aoi import apply_affine
from geoseg.errors import OutputError, SettingError

Polygons = NDArray[np.object_]
"""One-dimensional array of shapely polygons."""

BATCH = 4096
"""Buildings handled at once, unless …"""
BATCH_BYTES = 32 * 2**20
"""… their outlines take more than this before."""


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


@dataclass(frozen=True, eq=False)
class Outlines:
    """A batch of buildings in pixels; three arrays of one length."""

    polygons: Polygons
    """x = column, y = row; pixel (r, c) covers [c, c + 1] × [r, r + 1]."""
    pixels: NDArray[np.int64]
    """Number of pixels of each."""
    probability_sum: NDArray[np.int64]
    """Sum of the pixels' 8-bit probabilities (255 = 1.0)."""

    def __post_init__(self) -> None:
        sizes = {len(self.polygons), len(self.pixels), len(self.probability_sum)}
        if len(sizes) > 1:
            raise SettingError(f"arrays of one batch differ in length: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, index: NDArray[np.bool_]) -> Outlines:
        return Outlines(self.polygons[index], self.pixels[index], self.probability_sum[index])

    @classmethod
    def of(cls, buildings: Iterable[Building]) -> Outlines:
        """Gather buildings into one batch."""
        rows = list(buildings)
        return cls(
            polygons_array([row.polygon for row in rows]),
            np.array([row.pixels for row in rows], np.int64),
            np.array([row.probability_sum for row in rows], np.int64),
        )


@dataclass(frozen=True, eq=False)
class Footprints:
    """A batch of finished buildings on the map; five arrays of one length."""

    polygons: Polygons
    """In the units of the CRS; shells counter-clockwise, holes clockwise."""
    id: NDArray[np.int64]
    """1 … N in the order of the buildings' first pixels."""
    area_m2: NDArray[np.float64]
    """Square metres (square units of the map without CRS), holes not counted.

    NaN outside the domain of the CRS.
    """
    perimeter_m: NDArray[np.float64]
    """Metres (units of the map without CRS), holes counted; NaN outside the domain of the CRS."""
    probability: NDArray[np.float64]
    """Mean over the building's pixels, 0 … 1."""

    def __len__(self) -> int:
        return len(self.polygons)


@dataclass(frozen=True)
class Rules:
    """What is left out, and how outlines are simplified."""

    min_area_m2: float = 0.0
    """Smaller buildings are dropped, be it by the area of their pixels or by the one written."""
    min_hole_m2: float = 0.0
    """Smaller holes are filled."""
    simplify: Callable[[Polygons], Polygons] | None = field(default=None, compare=False)
    """Takes and returns polygons in pixels, one for one; an empty one drops the building."""

    def __post_init__(self) -> None:
        for name in ("min_area_m2", "min_hole_m2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{name} is {value}; it must be 0 or more square metres")


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
            self._database = sqlite3.connect(self._path, isolation_level=None)
            self._database.executescript(
                # Nothing of it survives a crash, so nothing is spent on surviving one.
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                "PRAGMA cache_size=-32768;"
                "CREATE TABLE building"
                "(key INTEGER PRIMARY KEY, outline BLOB, pixels INTEGER, probability_sum INTEGER);"
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
            rows = self._rows(chunk)
            with self._explained():
                self._database.execute("BEGIN")
                try:
                    self._database.executemany("INSERT INTO building VALUES (?, ?, ?, ?)", rows)
                except sqlite3.IntegrityError as error:
                    raise SettingError("two buildings have the same first pixel") from error
                self._database.execute("COMMIT")

    def _rows(self, buildings: list[Building]) -> Iterator[tuple[int, bytes, int, int]]:
        outlines = shapely.to_wkb(polygons_array([one.polygon for one in buildings]))
        for one, outline in zip(buildings, outlines, strict=True):
            row, col = one.first
            if row < 0 or not 0 <= col < self._width:
                raise SettingError(f"pixel {one.first} is not in a mosaic of {self._width} columns")
            key = int(row) * self._width + int(col)
            yield key, outline, int(one.pixels), int(one.probability_sum)

    def batches(self) -> Iterator[Outlines]:
        """Yield all buildings in the order of their first pixels; may be called again."""
        with self._explained():
            cursor = self._database.execute(
                "SELECT outline, pixels, probability_sum FROM building ORDER BY key"
            )
        rows: list[tuple[bytes, int, int]] = []
        size = 0
        while True:
            with self._explained():
                row = cursor.fetchone()
            if row is None:
                break
            rows.append(row)
            size += len(row[0])
            if len(rows) == BATCH or size > BATCH_BYTES:
                yield _unpacked(rows)
                rows, size = [], 0
        if rows:
            yield _unpacked(rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise OutputError(f"{self._path}: temporary file cannot be written: {error}") from error


def _unpacked(rows: list[tuple[bytes, int, int]]) -> Outlines:
    outlines, pixels, sums = zip(*rows, strict=True)
    return Outlines(
        shapely.from_wkb(np.array(outlines, object)),
        np.array(pixels, np.int64),
        np.array(sums, np.int64),
    )


def finish(
    batches: Iterable[Outlines], affine: Affine, crs: Any, rules: Rules | None = None
) -> Iterator[Footprints]:
    """Turn buildings in pixels into footprints on the map, batch by batch and in the same order.

    Small holes are filled, small buildings dropped, outlines simplified, then transformed, measured
    and numbered from 1. Batches that end up empty are not yielded.

    Args:
        batches: in the order in which ids are given.
        affine: from (column, row) to the map.
        crs: anything :meth:`pyproj.CRS.from_user_input` takes, or None.
        rules: None drops nothing and simplifies nothing.

    Raises:
        SettingError: ``rules.simplify`` returned another number of polygons than it got.
    """
    rules = rules or Rules()
    ruler = Ruler(crs)
    count = 0
    for batch in batches:
        kept = _simplified(_filtered(batch, affine, ruler, rules), rules)
        polygons = _on_map(kept.polygons, affine)
        area, perimeter = ruler.measure(polygons)
        large = ~(area < rules.min_area_m2)
        kept, polygons, area, perimeter = (
            kept[large],
            polygons[large],
            area[large],
            perimeter[large],
        )
        if not len(kept):
            continue
        yield Footprints(
            polygons=polygons,
            id=np.arange(count + 1, count + 1 + len(kept), dtype=np.int64),
            area_m2=np.round(area, 3),
            perimeter_m=np.round(perimeter, 3),
            probability=np.round(kept.probability_sum / (255 * kept.pixels), 4),
        )
        count += len(kept)


def _filtered(batch: Outlines, affine: Affine, ruler: Ruler, rules: Rules) -> Outlines:
    """Fill small holes and drop small buildings, by the area of their pixels."""
    if not len(batch) or not (rules.min_area_m2 or rules.min_hole_m2):
        return batch
    pixel = _pixel_areas(batch.polygons, affine, ruler)
    polygons = batch.polygons
    if rules.min_hole_m2:
        polygons = _without_small_holes(polygons, rules.min_hole_m2 / pixel)
    large = ~(shapely.area(polygons) * pixel < rules.min_area_m2)
    return Outlines(polygons, batch.pixels, batch.probability_sum)[large]


def _pixel_areas(polygons: Polygons, affine: Affine, ruler: Ruler) -> NDArray[np.float64]:
    """Area in m² of one pixel where each polygon lies.

    The scale of a CRS hardly changes within a building, and a square of pixels at its centre costs
    four vertices instead of hundreds. The square has 64 pixels a side, which keeps rounding noise
    out.
    """
    west, south, east, north = shapely.bounds(polygons).T
    x, y = (west + east) / 2, (south + north) / 2
    squares = shapely.box(x - 32, y - 32, x + 32, y + 32)
    area: NDArray[np.float64] = ruler.measure(_on_map(squares, affine))[0] / 64**2
    return area


def _without_small_holes(polygons: Polygons, smallest: NDArray[np.float64]) -> Polygons:
    result = polygons.copy()
    for index in np.flatnonzero(shapely.get_num_interior_rings(polygons)):
        polygon = polygons[index]
        holes = shapely.get_rings(polygon)[1:]
        keep = ~(shapely.area(shapely.polygons(holes)) < smallest[index])
        if not keep.all():
            result[index] = Polygon(polygon.exterior, holes[keep])
    return result


def _simplified(batch: Outlines, rules: Rules) -> Outlines:
    if rules.simplify is None or not len(batch):
        return batch
    polygons = rules.simplify(batch.polygons)
    if len(polygons) != len(batch):
        raise SettingError(f"simplifying {len(batch)} outlines gave {len(polygons)}")
    simple = Outlines(polygons, batch.pixels, batch.probability_sum)
    return simple[~shapely.is_empty(polygons)]


def _on_map(polygons: Polygons, affine: Affine) -> Polygons:
    def project(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(apply_affine(affine, xy[:, 0], xy[:, 1]))

    # An affine with south down turns rings over; the formats that care want shells
    # counter-clockwise.
    turned: Polygons = shapely.orient_polygons(shapely.transform(polygons, project))
    return turned


class Ruler:
    """Measures polygons of one CRS in metres.

    Areas and lengths are geodesic, on the CRS's own ellipsoid (Karney 2013,
    https://doi.org/10.1007/s00190-012-0578-z), so they are right in degrees, feet and Web Mercator
    alike, and the same as QGIS's ``$area``. Where a CRS has no ellipsoid (a local engineering CRS)
    they are planar, converted to metres; without CRS they are in the units of the coordinates,
    usually pixels.

    Raises:
        SettingError: ``crs`` is not understood.
    """

    def __init__(self, crs: Any) -> None:
        self._geod: Geod | None = None
        self._metres_per_unit = 1.0
        if crs is None:
            return
        try:
            known = CRS.from_user_input(crs)
        except ProjError as error:
            raise SettingError(
                f"coordinate reference system {crs!r} is not understood: {error}"
            ) from error
        geodetic = known.geodetic_crs
        if geodetic is None or known.get_geod() is None:
            self._metres_per_unit = known.axis_info[0].unit_conversion_factor
            return
        self._geod = known.get_geod()
        self._to_geodetic = Transformer.from_crs(known, geodetic, always_xy=True)
        # Some geodetic CRS count in grads; pyproj.Geod in degrees.
        self._degrees = math.degrees(geodetic.axis_info[0].unit_conversion_factor)

    def measure(self, polygons: Polygons) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return area (m², without holes) and perimeter (m, with holes); NaN outside the domain."""
        if not len(polygons):
            return np.zeros(0), np.zeros(0)
        if self._geod is None:
            factor = self._metres_per_unit
            return shapely.area(polygons) * factor**2, shapely.length(polygons) * factor
        _, points, (ring_starts, polygon_starts) = shapely.to_ragged_array(polygons)
        lon, lat = self._lonlat(points)
        areas = np.empty(len(ring_starts) - 1)
        lengths = np.empty_like(areas)
        for ring, (start, stop) in enumerate(pairwise(ring_starts)):
            areas[ring], lengths[ring] = self._geod.polygon_area_perimeter(
                lon[start:stop], lat[start:stop]
            )
        areas = -np.abs(areas)  # holes; the first ring of each polygon is its shell
        areas[polygon_starts[:-1]] *= -1
        return (
            np.add.reduceat(areas, polygon_starts[:-1]),
            np.add.reduceat(lengths, polygon_starts[:-1]),
        )

    def _lonlat(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        lonlat = np.array(self._to_geodetic.transform(points[:, 0], points[:, 1]))
        lonlat[~np.isfinite(lonlat)] = np.nan
        return lonlat * self._degrees


def measure(polygons: Polygons, crs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return area (m²) and perimeter (m) of polygons in map coordinates; see :class:`Ruler`.

    Raises:
        SettingError: ``crs`` is not understood.
    """
    return Ruler(crs).measure(polygons)
