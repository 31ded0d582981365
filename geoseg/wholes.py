"""Buildings that lie inside one block, traced where the block was computed.

Most buildings of a block touch none of its sides. Tracing them is work that every worker can do for itself, and what is
left for the one process that joins the blocks is little: the parts along the sides.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.errors import InputError
from geoseg.polygonize import Parts, whole_buildings

MAGIC = b"geoseg-found-1\n"
_HEADER = struct.Struct("<2q")
"""Buildings, and bytes of their outlines."""


@dataclass(frozen=True)
class Wholes:
    """Whole buildings as they are spooled; arrays of one length."""

    first: NDArray[np.int64]
    """``(n, 2)``: row and column of the topmost, then leftmost pixel."""
    pixels: NDArray[np.int64]
    """Mask pixels."""
    probability_sums: NDArray[np.int64]
    """Sum of the stored probability (255 = 1.0) over the pixels."""
    boxes: NDArray[np.int32]
    """``(n, 4)``: x0, y0, x1, y1 in pixels of the mosaic."""
    ends: NDArray[np.int64]
    """Where each outline ends in ``outlines``."""
    outlines: bytes
    """Normalised polygons in pixels of the mosaic as WKB, one after the other."""

    def __len__(self) -> int:
        return len(self.pixels)

    def wkb(self) -> Iterator[bytes]:
        """Yield each outline."""
        begin = 0
        for end in self.ends.tolist():
            yield self.outlines[begin:end]
            begin = end


@dataclass(frozen=True)
class Found:
    """What a block's core holds of buildings."""

    whole: Wholes
    """Those that touch none of its sides."""
    parts: Parts
    """The rest, parts of buildings that may go on in the blocks around."""

    @classmethod
    def of(cls, parts: Parts) -> Found:
        """Sort the parts of a block into whole buildings and others."""
        touches = np.zeros(len(parts), bool)
        for side in (parts.top, parts.bottom, parts.left, parts.right):
            touches[side[side >= 0]] = True
        buildings = whole_buildings(parts, np.flatnonzero(~touches))
        polygons = np.array([building.polygon for building in buildings], dtype=object)
        outlines = shapely.to_wkb(polygons) if len(buildings) else []
        whole = Wholes(
            np.array([building.first for building in buildings], np.int64).reshape(-1, 2),
            np.array([building.pixels for building in buildings], np.int64),
            np.array([building.probability_sum for building in buildings], np.int64),
            shapely.bounds(polygons).astype(np.int32).reshape(-1, 4),
            np.cumsum([len(outline) for outline in outlines], dtype=np.int64),
            b"".join(outlines),
        )
        return cls(whole, _some(parts, touches))

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, the same for the same buildings."""
        whole = self.whole
        arrays: list[NDArray[Any]] = [whole.first, whole.pixels, whole.probability_sums, whole.boxes, whole.ends]
        kinds = ("<i8", "<i8", "<i8", "<i4", "<i8")
        content = b"".join(array.astype(kind).tobytes() for array, kind in zip(arrays, kinds, strict=True))
        # The fastest level, as for the parts.
        packed = zlib.compress(_HEADER.pack(len(whole), len(whole.outlines)) + content + whole.outlines, 1)
        return MAGIC + struct.pack("<q", len(packed)) + packed + self.parts.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Found:
        """Return what :meth:`to_bytes` wrote; InputError for any other bytes."""
        if not data.startswith(MAGIC):
            raise InputError(f"not buildings of a block: starts with {data[: len(MAGIC)]!r}")
        try:
            (size,) = struct.unpack_from("<q", data, len(MAGIC))
            begin = len(MAGIC) + 8
            content = zlib.decompress(data[begin : begin + size])
            count, length = _HEADER.unpack_from(content)
            at = _HEADER.size
            arrays: list[NDArray[Any]] = []
            for kind, width in (("<i8", 2), ("<i8", 1), ("<i8", 1), ("<i4", 4), ("<i8", 1)):
                arrays.append(np.frombuffer(content, kind, count * width, at))
                at += arrays[-1].nbytes
            first, pixels, sums, boxes, ends = arrays
            outlines = content[at:]
        except (zlib.error, struct.error, ValueError) as error:
            raise InputError(f"buildings of a block are damaged ({error}); compute the block again") from error
        if len(outlines) != length or (count and ends[-1] != length):
            raise InputError("buildings of a block are damaged (outlines are missing); compute the block again")
        whole = Wholes(first.reshape(-1, 2), pixels, sums, boxes.reshape(-1, 4), ends, outlines)
        return cls(whole, Parts.from_bytes(data[begin + size :]))


def _some(parts: Parts, keep: NDArray[np.bool_]) -> Parts:
    """Return some of the parts of a block, all that touch its sides among them."""
    sizes = np.diff(parts.offsets)
    corners = np.repeat(keep, sizes)
    number = np.cumsum(keep, dtype=np.int32) - np.int32(1)
    number = np.append(number, np.int32(-1))  # for what belongs to none
    return Parts(
        parts.core,
        np.concatenate([[0], np.cumsum(sizes[keep])]).astype(np.int64),
        parts.rows[corners],
        parts.cols[corners],
        parts.values[corners],
        parts.pixels[keep],
        parts.probability_sums[keep],
        number[parts.top],
        number[parts.bottom],
        number[parts.left],
        number[parts.right],
    )
