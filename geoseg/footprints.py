"""From buildings in pixels to footprints on the map: filter, transform, measure, number.

Batches come from :class:`geoseg.spool.Spool` in the order of the buildings' first pixels. Everything goes batch by
batch, and memory does not grow with the number of buildings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError
from shapely import Polygon

from geoseg.aoi import apply_affine
from geoseg.errors import SettingError
from geoseg.processes import Pool, side_by_side
from geoseg.spool import Outlines, Polygons


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
    beside_px: int | None = None
    """How near a building may be to have a say in how another is simplified; None where each stands for itself. What
    ``simplify`` takes then begins with a batch, and the buildings near it that belong to others follow."""

    def __post_init__(self) -> None:
        for name in ("min_area_m2", "min_hole_m2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{name} is {value}; it must be 0 or more square metres")


def finish(
    batches: Iterable[Outlines],
    affine: Affine,
    crs: str | None,
    rules: Rules | None = None,
    processes: int = 1,
    ready: Pool | None = None,
) -> Iterator[Footprints]:
    """Turn buildings in pixels into footprints on the map, batch by batch and in the same order.

    Small holes are filled, small buildings dropped, outlines simplified, then transformed, measured
    and numbered from 1. Batches that end up empty are not yielded.

    Args:
        batches: in the order in which ids are given.
        affine: from (column, row) to the map.
        crs: text that :meth:`pyproj.CRS.from_user_input` takes, or None.
        rules: None drops nothing and simplifies nothing. With more than one process they must travel to others.
        processes: how many deal with batches at once; the result does not depend on it.
        ready: processes that have been started already.

    Raises:
        SettingError: ``rules.simplify`` returned another number of polygons than it got, or ``crs`` is not understood.
        WorkerError: A process died.
    """
    ruler_of(crs)  # what is wrong with it is told before anything else
    finished = partial(_finished, affine=affine, crs=crs, rules=rules or Rules())
    count = 0
    for kept, area, perimeter in side_by_side(finished, batches, processes, ready):
        if not len(kept):
            continue
        yield Footprints(
            polygons=kept.polygons,
            id=np.arange(count + 1, count + 1 + len(kept), dtype=np.int64),
            area_m2=np.round(area, 3),
            perimeter_m=np.round(perimeter, 3),
            probability=np.round(kept.probability_sum / (255 * kept.pixels), 4),
        )
        count += len(kept)


def _finished(
    batch: Outlines, *, affine: Affine, crs: str | None, rules: Rules
) -> tuple[Outlines, NDArray[np.float64], NDArray[np.float64]]:
    """Return what is kept of a batch, its polygons on the map by then, their areas and perimeters."""
    polygons, area, perimeter = batch.finished.copy(), batch.area_m2.copy(), batch.perimeter_m.copy()
    todo = batch.open
    polygons[todo], area[todo], perimeter[todo] = on_map(batch.polygons[todo], batch.beside, affine, crs, rules)
    kept = ~shapely.is_empty(polygons)
    there = Outlines(polygons[kept], batch.pixels[kept], batch.probability_sum[kept])
    return there, area[kept], perimeter[kept]


def on_map(
    polygons: Polygons, beside: Polygons, affine: Affine, crs: str | None, rules: Rules
) -> tuple[Polygons, NDArray[np.float64], NDArray[np.float64]]:
    """Fill small holes, drop small buildings, simplify outlines, transform and measure them.

    Args:
        polygons: in pixels.
        beside: others that stand near these.
        affine: from (column, row) to the map.
        crs: of the map.
        rules: see :class:`Rules`.

    Returns:
        As many polygons on the map, those of dropped buildings empty; areas (m²) and perimeters (m).
    """
    ruler = ruler_of(crs)
    outlines = _straightened(polygons, beside, affine, ruler, rules)
    area, perimeter = np.full((2, len(outlines)), np.nan)
    kept = np.flatnonzero(~shapely.is_empty(outlines))
    outlines[kept] = _on_map(outlines[kept], affine)
    area[kept], perimeter[kept] = ruler.measure(outlines[kept])
    outlines[area < rules.min_area_m2] = Polygon()
    return outlines, area, perimeter


def _straightened(polygons: Polygons, beside: Polygons, affine: Affine, ruler: Ruler, rules: Rules) -> Polygons:
    """Do what :func:`on_map` does in pixels."""
    result: Polygons = np.full(len(polygons), Polygon(), dtype=object)
    if not len(polygons):
        return result
    if rules.min_area_m2 or rules.min_hole_m2:
        polygons, large = _large(polygons, affine, ruler, rules)
        beside, stands = _large(beside, affine, ruler, rules)
        beside = beside[stands]
    else:
        large = np.ones(len(polygons), bool)
    if not large.any():
        return result
    polygons = polygons[large]
    result[large] = _simplified(polygons, beside, rules)
    return result


def _large(polygons: Polygons, affine: Affine, ruler: Ruler, rules: Rules) -> tuple[Polygons, NDArray[np.bool_]]:
    """Return the polygons without small holes, and which are large enough."""
    if not len(polygons):
        return polygons, np.zeros(0, bool)
    pixel = _pixel_areas(polygons, affine, ruler)
    if rules.min_hole_m2:
        polygons = _without_small_holes(polygons, rules.min_hole_m2 / pixel)
    return polygons, ~(shapely.area(polygons) * pixel < rules.min_area_m2)


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


def _simplified(polygons: Polygons, beside: Polygons, rules: Rules) -> Polygons:
    if rules.simplify is None:
        return polygons
    given = np.concatenate([polygons, beside])
    simple = rules.simplify(given)
    if len(simple) != len(given):
        raise SettingError(f"simplifying {len(given)} outlines gave {len(simple)}")
    return simple[: len(polygons)]


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
            raise SettingError(f"coordinate reference system {crs!r} is not understood: {error}") from error
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
            areas[ring], lengths[ring] = self._geod.polygon_area_perimeter(lon[start:stop], lat[start:stop])
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


@lru_cache(maxsize=8)
def ruler_of(crs: str | None) -> Ruler:
    """Return the ruler of a CRS, made once."""
    return Ruler(crs)


def measure(polygons: Polygons, crs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return area (m²) and perimeter (m) of polygons in map coordinates; see :class:`Ruler`.

    Raises:
        SettingError: ``crs`` is not understood.
    """
    return Ruler(crs).measure(polygons)
