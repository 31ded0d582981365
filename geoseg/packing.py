"""Footprints packed for the report's map: any number comes in, a bounded number of bytes goes out.

A footprint is a run of whole numbers, each in base 128, lowest digit first, the high bit saying that more follow (as in
Protocol Buffers): id, area, probability, number of rings, then for each ring its number of corners, its first corner
and the steps to the others. Signed numbers are folded to 0, -1, 1, -2, … The page's script reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from geoseg.errors import SettingError
from geoseg.picture import SIMPLIFIED_CORNERS

UNITS = 8
"""Steps of a corner's coordinate in a pixel of the mosaic."""
AREA_STEPS = 10
"""Steps of an area in a square metre (square pixel without georeference)."""
CHANCE_STEPS = 1000
"""Steps of a probability."""

_TOLERANCE = 0.25
"""Pixels by which a packed outline may leave the one that is written to the vector files."""
_MOST_CORNERS = 20_000
"""An outline with more is many buildings in one, and would take the place of others: it loses its holes, and is drawn
coarsely."""


@dataclass(frozen=True)
class Packed:
    """Footprints as bytes."""

    data: bytes
    drawn: int
    """How many there are in ``data``: the largest."""
    total: int
    """How many there were."""
    smallest: float | None = None
    """Area in m² (px² without georeference) of the smallest one in ``data``; None where it is not known."""


@dataclass(frozen=True)
class _Batch:
    data: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    """Bytes of each footprint."""
    rank: NDArray[np.float64]
    """Area in square pixels, by which the largest are chosen; in order of ids."""
    area: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sizes)

    def kept(self, keep: NDArray[np.bool_]) -> _Batch:
        return _Batch(self.data[np.repeat(keep, self.sizes)], self.sizes[keep], self.rank[keep], self.area[keep])

    @classmethod
    def joined(cls, batches: list[_Batch]) -> _Batch:
        fields = zip(*((one.data, one.sizes, one.rank, one.area) for one in batches), strict=True)
        return cls(*(np.concatenate(field) for field in fields))


class Packer:
    """Takes footprints batch by batch and keeps the largest that fit into a number of bytes.

    Which ones are kept does not depend on the batches: the longest beginning of all footprints, ordered from the
    largest (in pixels) to the smallest and the earlier first among equals, that fits.
    """

    def __init__(self, budget: int) -> None:
        """Nothing is kept yet; ``budget`` is in bytes."""
        if budget < 0:
            raise SettingError(f"a budget of {budget} bytes; it must be 0 or more")
        self._budget = budget
        self._batches: list[_Batch] = []
        self._bytes = self._total = 0
        self._floor = -1.0
        """What is not larger, in square pixels, does not fit any more."""

    def add(
        self,
        polygons: NDArray[np.object_],
        ids: NDArray[np.int64],
        areas: NDArray[np.float64],
        probabilities: NDArray[np.float64],
    ) -> None:
        """Take more footprints, with higher ids than all before.

        Args:
            polygons: in pixels of the mosaic, x = column, y = row; pixel (r, c) covers [c, c + 1] × [r, r + 1].
            ids: 1 … N, rising.
            areas: m², or px² without georeference; NaN where they are not known.
            probabilities: 0 … 1.
        """
        self._total += len(polygons)
        rank = shapely.area(polygons)
        large = rank > self._floor
        if not large.any():
            return
        data, sizes = encode(polygons[large], ids[large], areas[large], probabilities[large])
        self._batches.append(_Batch(data, sizes, rank[large], areas[large]))
        self._bytes += len(data)
        if self._bytes > 2 * self._budget:
            self._trim()

    def _trim(self) -> None:
        if self._bytes <= self._budget:
            return
        every = _Batch.joined(self._batches)
        order = np.argsort(-every.rank, kind="stable")
        fits = np.cumsum(every.sizes[order]) <= self._budget
        keep = np.zeros(len(every), bool)
        keep[order[fits]] = True
        # Whatever comes later and is not larger than the first that did not fit would come behind it.
        self._floor = float(every.rank[order[np.argmin(fits)]])
        self._batches = [every.kept(keep)]
        self._bytes = len(self._batches[0].data)

    def packed(self) -> Packed:
        """Return what is kept."""
        self._trim()
        if not self._batches:
            return Packed(b"", 0, self._total)
        every = _Batch.joined(self._batches)
        known = every.area[np.isfinite(every.area)]
        return Packed(every.data.tobytes(), len(every), self._total, float(known.min()) if known.size else None)


def encode(
    polygons: NDArray[np.object_],
    ids: NDArray[np.int64],
    areas: NDArray[np.float64],
    probabilities: NDArray[np.float64],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return footprints as bytes, one after the other, and how many bytes each has; see :meth:`Packer.add`."""
    rings, owner = shapely.get_rings(_simplified(polygons), return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    first = np.diff(ring, prepend=-1) != 0
    # The last corner of a ring is the first again.
    last = np.diff(ring, append=len(rings)) != 0
    points, ring, first = points[~last], ring[~last], first[~last]
    whole = np.rint(points * UNITS).astype(np.int64)
    steps = np.where(first[:, None], whole, np.diff(whole, axis=0, prepend=0))
    corners = np.bincount(ring, minlength=len(rings))
    head = np.column_stack(
        [
            ids,
            np.where(np.isfinite(areas), np.rint(np.nan_to_num(areas) * AREA_STEPS) + 1, 0).astype(np.int64),
            np.rint(np.nan_to_num(probabilities) * CHANCE_STEPS).astype(np.int64),
            np.bincount(owner, minlength=len(polygons)),
        ]
    )
    # Where each number goes: heads of footprints, heads of rings, corners.
    lengths = 1 + 2 * corners
    counts = head.shape[1] + np.bincount(owner, lengths, minlength=len(polygons)).astype(np.int64)
    starts = np.cumsum(counts) - counts
    ring_starts = np.cumsum(lengths) - lengths + head.shape[1] * (owner + 1)
    number_in_ring = np.arange(len(ring)) - np.flatnonzero(first)[ring] if len(ring) else ring
    values = np.empty(int(counts.sum()), np.uint64)
    values[starts[:, None] + np.arange(head.shape[1])] = head
    values[ring_starts] = corners
    at = ring_starts[ring] + 1 + 2 * number_in_ring
    values[at[:, None] + np.arange(2)] = (steps << 1) ^ (steps >> 63)
    data, sizes = _base_128(values)
    return data, np.add.reduceat(sizes, starts) if len(starts) else sizes


def _simplified(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    simple: NDArray[np.object_] = polygons.copy()
    corners = shapely.get_num_coordinates(polygons)
    usual = corners <= SIMPLIFIED_CORNERS
    simple[usual] = shapely.simplify(polygons[usual], _TOLERANCE)
    for index in np.flatnonzero(corners > _MOST_CORNERS):
        simple[index] = _coarse(polygons[index])
    return simple


def _coarse(polygon: Polygon) -> Polygon:
    """Return the shell with corners moved to a grid, as fine as leaves few enough of them."""
    corners = shapely.get_coordinates(polygon.exterior)
    step = 1.0
    while len(corners) > _MOST_CORNERS:
        moved = np.rint(corners / step) * step
        corners = np.concatenate([moved[:1], moved[1:][(np.diff(moved, axis=0) != 0).any(axis=1)]])
        step *= 2
    return Polygon(corners) if len(corners) > 3 else shapely.box(*polygon.bounds)


def _base_128(values: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return numbers in base 128, and how many digits each has."""
    digits = np.ones(len(values), np.int64)
    for power in range(7, 64, 7):
        more = values >> np.uint64(power) > 0
        if not more.any():
            break
        digits += more
    ends = np.cumsum(digits)
    data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    for digit in range(int(digits.max(initial=0))):
        there = digits > digit
        low = (values[there] >> np.uint64(7 * digit)) & np.uint64(127)
        data[(ends - digits)[there] + digit] = low + np.uint64(128) * (digits[there] > digit + 1)
    return data, digits
