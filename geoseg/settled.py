"""Buildings finished where a block was computed: those that nothing outside the block has a say in.

How a building's outline is straightened depends on itself and on what stands beside it (:mod:`geoseg.neighbours`). Of a
block of thousands of pixels nearly all buildings, with all that stands beside them, lie inside. Every worker can finish
its own then, and the one process that joins the blocks does the few along the sides. A footprint does not depend on
where it was finished, so neither do the files.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import InputError
from geoseg.tiling import Rect

if TYPE_CHECKING:
    from affine import Affine

    from geoseg.footprints import Rules
    from geoseg.polygonize import Parts
    from geoseg.wholes import Found

Boxes = NDArray[np.int64]

DONE, ASKED, OPEN = 0, 1, 2
"""Roles of a building: finished; finished, and beside one that is not; not finished."""

MAGIC = b"geoseg-settled-1\n"
_LAYOUT = {"roles": "|u1", "areas": "<f8", "perimeters": "<f8", "ends": "<i8"}
_HEADER = struct.Struct("<2q")
"""Buildings, and bytes of their outlines."""


@dataclass(frozen=True)
class Settled:
    """What became of the whole buildings of a block; arrays with an entry for each."""

    roles: NDArray[np.uint8]
    """:data:`DONE`, :data:`ASKED` or :data:`OPEN`."""
    areas: NDArray[np.float64]
    """Square metres, NaN for open buildings."""
    perimeters: NDArray[np.float64]
    """Metres."""
    ends: NDArray[np.int64]
    """Where each outline ends in ``outlines``."""
    outlines: bytes
    """Polygons on the map as WKB, one after the other; empty ones are those left out. Open buildings have no bytes."""

    def rows(self) -> tuple[list[bytes | None], list[float], list[float]]:
        """Return outlines, None for open buildings, areas and perimeters."""
        wkb = [self.outlines[begin:end] or None for begin, end in pairwise([0, *self.ends.tolist()])]
        return wkb, self.areas.tolist(), self.perimeters.tolist()

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, the same for the same outlines."""
        arrays = (getattr(self, name).astype(kind).tobytes() for name, kind in _LAYOUT.items())
        head = _HEADER.pack(len(self.roles), len(self.outlines))
        return MAGIC + zlib.compress(head + b"".join(arrays) + self.outlines, 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Settled:
        """Return what :meth:`to_bytes` wrote; InputError for any other bytes."""
        if not data.startswith(MAGIC):
            raise InputError(f"not outlines of a block: starts with {data[: len(MAGIC)]!r}")
        try:
            content = zlib.decompress(data[len(MAGIC) :])
            count, length = _HEADER.unpack_from(content)
            at, arrays = _HEADER.size, {}
            for name, kind in _LAYOUT.items():
                arrays[name] = np.frombuffer(content, kind, count, at)
                at += arrays[name].nbytes
        except (zlib.error, struct.error, ValueError) as error:
            raise InputError(f"outlines of a block are damaged ({error}); compute the block again") from error
        outlines = content[at:]
        if len(outlines) != length or (count and arrays["ends"][-1] != length):
            raise InputError("outlines of a block are damaged (some are missing); compute the block again")
        return cls(**arrays, outlines=outlines)

    @classmethod
    def of(cls, found: Found, extent: Rect, rules: Rules, affine: Affine, crs: str | None) -> Settled:
        """Finish what can be finished here.

        Args:
            found: The buildings of a block.
            extent: The mosaic, beyond whose sides there is nothing.
            rules: As for :func:`geoseg.footprints.finish`; ``beside_px`` says how far from the block's sides, and from
                parts of buildings that touch them, a building is on its own.
            affine: From (column, row) to the map.
            crs: Of the map.
        """
        from geoseg.footprints import on_map
        from geoseg.spool import LARGE

        whole = found.whole
        boxes = whole.boxes.astype(np.int64)
        reach = rules.beside_px or 0
        roles = np.full(len(whole), DONE, np.uint8)
        roles[~_inside(boxes, found.parts.core, extent, reach) | _near(boxes, _boxes(found.parts), reach)] = OPEN
        # Larger ones are not asked what stands beside them, which the spool sees to.
        roles[(boxes[:, 2:] - boxes[:, :2] > LARGE).any(axis=1)] = OPEN
        is_open = roles == OPEN
        roles[~is_open & _near(boxes, boxes[is_open], reach)] = ASKED
        polygons = np.array(shapely.from_wkb(list(whole.wkb())), dtype=object).reshape(-1)
        beside = polygons[is_open][_near(boxes[is_open], boxes[~is_open], reach)]
        made, *measures = on_map(polygons[~is_open], beside, affine, crs, rules)
        areas, perimeters = np.full((2, len(whole)), np.nan)
        areas[~is_open], perimeters[~is_open] = measures
        outlines = np.full(len(whole), b"", dtype=object)
        outlines[~is_open] = shapely.to_wkb(made)
        ends = np.cumsum([len(outline) for outline in outlines], dtype=np.int64)
        return cls(roles, areas, perimeters, ends, b"".join(outlines))


def _inside(boxes: Boxes, core: Rect, extent: Rect, reach: int) -> NDArray[np.bool_]:
    """Say which boxes nothing beyond the block's sides can reach."""
    x0, y0, x1, y1 = boxes.T
    inside: NDArray[np.bool_] = (x0 - core.col0 > reach) | np.full(len(boxes), core.col0 == extent.col0)
    inside &= (y0 - core.row0 > reach) | (core.row0 == extent.row0)
    inside &= (core.col1 - x1 > reach) | (core.col1 == extent.col1)
    inside &= (core.row1 - y1 > reach) | (core.row1 == extent.row1)
    return inside


def _boxes(parts: Parts) -> Boxes:
    """Return the boxes of parts."""
    if not len(parts):
        return np.zeros((0, 4), np.int64)
    begin = parts.offsets[:-1]
    sides = [fold.reduceat(of, begin) for fold in (np.minimum, np.maximum) for of in (parts.cols, parts.rows)]
    return np.stack(sides, axis=1).astype(np.int64)


def _near(boxes: Boxes, others: Boxes, reach: int) -> NDArray[np.bool_]:
    """Say which boxes come within ``reach`` pixels of one of the others, as the spool sees it."""
    near = np.zeros(len(boxes), bool)
    if len(boxes) and len(others):
        tree = shapely.STRtree(shapely.box(*others.T))
        grown = boxes + np.array([-reach, -reach, reach, reach])
        near[tree.query(shapely.box(*grown.T), predicate="intersects")[0]] = True
    return near
