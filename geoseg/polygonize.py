"""Buildings from a mask that comes in blocks: exactly, and without ever holding the mosaic.

A *building* is a 4-connected component of mask pixels over the whole mosaic. Its outline runs
along pixel edges, in integer pixel coordinates of the mosaic (x = column, y = row; pixel (r, c)
covers [c, c+1] × [r, r+1]).

A shape is carried not as rings but as its **corners**: the mixed second difference of its
indicator I,

    value(y, x) = I(y, x) - I(y, x-1) - I(y-1, x) + I(y-1, x-1),

which is zero wherever an outline goes straight on, ±1 at a corner and ±2 where the shape touches
itself diagonally. The double running sum gives the shape back, so nothing is lost; and it is
linear: the corners of a building cut into parts are the *sum* of the corners of its parts.
Joining (:mod:`geoseg.join`) is integer addition, seams cancel by themselves, and the result cannot depend on where the
cuts were.

Rings come last (:func:`trace`). Corners sorted along a row pair up into the horizontal edges,
along a column into the vertical ones. Where a shape touches itself diagonally both edges turn
round the *background* pixel; then, the shape being 4-connected, each ring bounds one 4-connected
piece of the background, so no ring meets itself, and two rings meet at single points only. That
is what GEOS and the OGC call valid.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.errors import GeosegError, InputError, SettingError
from geoseg.tiling import Rect

Ints = NDArray[np.integer[Any]]

MAGIC = b"geoseg-parts-1\n"
"""First bytes of serialised parts; the number changes with the layout."""
HEADER = struct.Struct("<6q")
_BAND = 512
"""Rows looked at at once, so that what is made of them on the way is small."""
"""Core (row0, col0, row1, col1), number of parts, number of corners."""


class Cuts(Protocol):
    """How a mosaic is cut into a regular grid of blocks, such as :class:`geoseg.tiling.Tiling`."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)`` of the mosaic in pixels."""

    @property
    def grid(self) -> tuple[int, int]:
        """``(rows, columns)`` of blocks."""

    def core_of(self, row: int, col: int) -> Rect:
        """Pixels of one block."""


@dataclass(frozen=True)
class Building:
    """One building, whole."""

    polygon: shapely.Polygon
    """Outline with holes: integer pixel coordinates of the mosaic (x = column, y = row), valid,
    normalised."""
    pixels: int
    """Number of mask pixels, which is the polygon's area."""
    probability_sum: int
    """Sum over those pixels of the probability as stored (0 … 255, 255 = 1.0)."""
    first: tuple[int, int]
    """``(row, column)`` of its topmost, then leftmost pixel; no two buildings share it."""

    @property
    def probability(self) -> float:
        """Mean probability over its pixels, 0 … 1."""
        return self.probability_sum / self.pixels / 255

    def key(self, width: int) -> int:
        """Return a unique number, ordered as ``first``, for a mosaic ``width`` pixels wide."""
        return self.first[0] * width + self.first[1]


@dataclass(frozen=True)
class Parts:
    """What one block's core holds of buildings: all that the join needs, compact and serialisable.

    Part ``i`` owns corners ``offsets[i]:offsets[i + 1]``, sorted by row, then column.
    """

    core: Rect
    """The block's core in mosaic pixels."""
    offsets: NDArray[np.int64]
    """Where the corners of each part begin, and their total: one entry more than parts."""
    rows: NDArray[np.int32]
    """Row (y) of each corner in the mosaic."""
    cols: NDArray[np.int32]
    """Column (x) of each corner in the mosaic."""
    values: NDArray[np.int8]
    """Value of each corner: ±1, or ±2 where the part touches itself diagonally."""
    pixels: NDArray[np.int64]
    """Mask pixels of each part."""
    probability_sums: NDArray[np.int64]
    """Sum of the stored probability (255 = 1.0) over the pixels of each part."""
    top: NDArray[np.int32]
    """Part that owns each pixel of the core's first row, -1 for none."""
    bottom: NDArray[np.int32]
    """The same along the last row."""
    left: NDArray[np.int32]
    """The same along the first column, from the top."""
    right: NDArray[np.int32]
    """The same along the last column, from the top."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def first(self) -> NDArray[np.int64]:
        """``(parts, 2)``: row and column of the topmost, then leftmost pixel of each part."""
        # That pixel's upper left corner is the first corner there is.
        starts = self.offsets[:-1]
        return np.stack([self.rows[starts], self.cols[starts]], axis=1).astype(np.int64)

    @classmethod
    def empty(cls, core: Rect) -> Parts:
        """Return the parts of a block without buildings."""
        none = np.zeros(0, np.int64)
        across, down = np.full(core.width, -1, np.int32), np.full(core.height, -1, np.int32)
        where = none.astype(np.int32)
        start = np.zeros(1, np.int64)
        return cls(core, start, where, where, none.astype(np.int8), none, none, across, across, down, down)

    def to_bytes(self) -> bytes:
        """Return the parts as compressed bytes, the same bytes for the same parts."""
        core = self.core
        header = HEADER.pack(core.row0, core.col0, core.row1, core.col1, len(self), len(self.values))
        arrays = (getattr(self, name).astype(kind).tobytes() for name, kind in _LAYOUT.items())
        # The fastest level: higher ones take longer than finding the parts did and gain a fifth.
        return MAGIC + zlib.compress(header + b"".join(arrays), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Parts:
        """Return the parts that :meth:`to_bytes` wrote; InputError for any other bytes."""
        if not data.startswith(MAGIC):
            raise InputError(f"not parts of buildings: starts with {data[: len(MAGIC)]!r}")
        try:
            payload = zlib.decompress(data[len(MAGIC) :])
            row0, col0, row1, col1, parts, corners = HEADER.unpack_from(payload)
            core = Rect(row0, col0, row1, col1)
            lengths = (
                parts + 1,
                *[corners] * 3,
                *[parts] * 2,
                *[core.width] * 2,
                *[core.height] * 2,
            )
            position, arrays = HEADER.size, {}
            for (name, kind), length in zip(_LAYOUT.items(), lengths, strict=True):
                arrays[name] = np.frombuffer(payload, kind, length, position)
                position += arrays[name].nbytes
        except (zlib.error, struct.error, ValueError) as error:
            raise InputError(f"parts of buildings are damaged ({error}); compute the block again") from error
        return cls(core=core, **arrays)


_LAYOUT = {
    "offsets": "<i8",
    "rows": "<i4",
    "cols": "<i4",
    "values": "|i1",
    "pixels": "<i8",
    "probability_sums": "<i8",
    "top": "<i4",
    "bottom": "<i4",
    "left": "<i4",
    "right": "<i4",
}


def block_parts(mask: NDArray[np.bool_], probability: NDArray[np.uint8], core: Rect) -> Parts:
    """Find the 4-connected parts of buildings in one block's core.

    Args:
        mask: ``(rows, columns)`` of the core, True = building.
        probability: the same shape, uint8, 255 = 1.0.
        core: where the core lies in the mosaic.

    Raises:
        SettingError: the three do not have the same shape, or the probability is not uint8.
    """
    mask, probability = np.asarray(mask, bool), np.asarray(probability)
    if mask.shape != core.shape or probability.shape != core.shape:
        raise SettingError(
            f"mask {mask.shape} and probability {probability.shape} must have the core's shape {core.shape}"
        )
    if probability.dtype != np.uint8:
        raise SettingError(f"probability must be uint8 (255 = 1.0), not {probability.dtype}")
    if not mask.any():
        return Parts.empty(core)
    padded = np.pad(mask, 1)
    runs = _Runs.of(padded)
    owner, rows, cols, values = _labelled_corners(padded, runs)
    run_sums = np.add.reduceat(probability[mask], np.cumsum(runs.lengths) - runs.lengths, dtype=np.int64)
    # bincount adds in float64, exact up to 2**53: more than 255 times the pixels of any block.
    pixels, sums = (np.bincount(runs.part, of_each, runs.count) for of_each in (runs.lengths, run_sums))
    height, width = padded.shape
    down, across = np.arange(1, height - 1), np.arange(1, width - 1)
    sides = {
        "top": width + across,
        "bottom": (height - 2) * width + across,
        "left": down * width + 1,
        "right": down * width + width - 2,
    }
    return Parts(
        core=core,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=runs.count))]),
        rows=(rows + core.row0).astype(np.int32),
        cols=(cols + core.col0).astype(np.int32),
        values=values,
        pixels=pixels.astype(np.int64),
        probability_sums=sums.astype(np.int64),
        **{name: runs.label(places) - np.int32(1) for name, places in sides.items()},
    )


@dataclass(frozen=True, eq=False)
class _Runs:
    """The runs of building pixels along the rows of a mask, and to which part each belongs.

    Two runs belong together when they have a column in common in neighbouring rows. Which parts that makes is a
    question about a graph (scipy's connected_components), and takes a third of the time of labelling pixel by pixel.
    """

    turns: Ints
    """Where runs begin and end by turns, as places in the mask row by row."""
    part: Ints
    """Part of each run, counted from 0 in the order of the parts' first pixels."""
    count: int
    """Number of parts."""

    @property
    def lengths(self) -> Ints:
        """Pixels of each run."""
        return self.turns[1::2] - self.turns[::2]

    def label(self, places: Ints) -> NDArray[np.int32]:
        """Return for places in the mask, ascending ones being found soonest: 0 for background, else the part + 1."""
        labels = np.zeros(len(self.turns) + 1, np.int32)
        labels[1::2] = self.part + 1
        return labels[np.searchsorted(self.turns, places, "right")]

    @classmethod
    def of(cls, padded: NDArray[np.bool_]) -> _Runs:
        """Find the runs of a mask with a frame of one background pixel, so that none passes the end of a row."""
        width, flat = padded.shape[1], padded.ravel()
        step = _BAND * width
        found = []
        for begin in range(0, flat.size - 1, step):
            end = min(begin + step, flat.size - 1)
            found.append(np.flatnonzero(flat[begin + 1 : end + 1] != flat[begin:end]) + begin + 1)
        turns = np.concatenate(found)
        starts, ends = turns[::2], turns[1::2]
        # Of the runs in the next row those from ``first`` to before ``last`` lie below.
        first, last = np.searchsorted(ends, starts + width, "right"), np.searchsorted(starts, ends + width, "left")
        below = np.maximum(last - first, 0)
        upper = np.repeat(np.arange(len(starts)), below)
        lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(below) + below, below)
        links = coo_array((np.ones(len(upper), bool), (upper, lower)), shape=(len(starts), len(starts)))
        count, part = connected_components(links, directed=False)
        return cls(turns, part, count)


def _labelled_corners(padded: NDArray[np.bool_], runs: _Runs) -> tuple[Ints, Ints, Ints, NDArray[np.int8]]:
    """Return part, row, column and value of every corner, sorted by the three.

    ``padded`` has a frame of one background pixel around the core.
    """
    pixels, width = padded.view(np.int8), padded.shape[1]
    places, found = [], []
    for top in range(0, len(padded) - 1, _BAND):
        band = pixels[top : top + _BAND + 1]
        down = band[1:] - band[:-1]
        corners = down[:, 1:] - down[:, :-1]
        # Much quicker than nonzero, which looks at numbers one by one.
        there = np.flatnonzero(corners != 0)
        found.append(corners.ravel()[there])
        places.append(there + top * (width - 1))
    values = np.concatenate(found)
    rows, cols = np.divmod(np.concatenate(places), width - 1)
    place = rows * width + cols
    upper_left, upper_right, lower_left, lower_right = (runs.label(place + step) for step in (0, 1, width, width + 1))
    # Mask pixels around a corner share edges, hence their label, but for two that touch diagonally.
    one = np.where(values == 2, upper_left, np.maximum(upper_right, lower_right))
    other = np.where(values == 2, lower_right, np.maximum(upper_left, lower_left))
    apart = (np.abs(values) == 2) & (one != other)
    owner = np.where(apart, one, np.maximum(one, other))
    if apart.any():
        values[apart] //= 2
        owner = np.concatenate([owner, other[apart]])
        rows, cols = np.concatenate([rows, rows[apart]]), np.concatenate([cols, cols[apart]])
        values = np.concatenate([values, values[apart]])
        order = np.lexsort((rows * width + cols, owner))
    else:
        order = np.argsort(owner, kind="stable")
    return owner[order] - 1, rows[order], cols[order], values[order]


def trace(owner: Ints, rows: Ints, cols: Ints, values: Ints, pixels: Ints) -> NDArray[np.object_]:
    """Return the normalised polygons of shapes that are given by their corners.

    Args:
        owner: one entry per corner, as of the three below; sorted by owner (0, 1, 2, …), row and column, no two alike.
        rows: y of each corner.
        cols: x of each corner.
        values: of each corner; none is zero.
        pixels: the area that each shape must have.

    Raises:
        GeosegError: the corners are not those of 4-connected shapes with these areas: parts were lost, doubled or
            damaged.
    """
    # A corner with value ±2 takes two turns: first the one that owns the edge to the left, then
    # the one to the right.
    turn = np.repeat(np.arange(len(values)), np.abs(values))
    right = np.zeros(len(turn), bool)
    right[1:] = turn[1:] == turn[:-1]
    owner, rows, cols = owner[turn], rows[turn].astype(np.int64), cols[turn].astype(np.int64)
    # Seen along the column, the turn that owns the edge upwards comes first.
    order = np.lexsort((right ^ (values[turn] > 0), rows, cols, owner))
    if len(turn) % 2:
        raise _misfit("an edge without an end")
    upper, lower = order[0::2], order[1::2]
    across = np.stack([owner, rows])
    along = np.stack([owner, cols])
    if (across[:, 0::2] != across[:, 1::2]).any() or (along[:, upper] != along[:, lower]).any():
        raise _misfit("an edge without an end")
    other_end = np.empty(len(turn), np.int64)
    other_end[upper], other_end[lower] = lower, upper
    path, starts = _rings(other_end[np.arange(len(turn)) ^ 1])
    ring_owner = owner[path[starts]]
    is_shell = np.ones(len(starts), bool)
    is_shell[1:] = ring_owner[1:] != ring_owner[:-1]
    # Rings run right along the top, so y·(x0 - x1) over the horizontal edges is a positive area,
    # in whole numbers.
    areas = np.add.reduceat(rows[path] * (cols[path] - cols[path ^ 1]), starts)
    found = np.add.reduceat(np.where(is_shell, areas, -areas), np.flatnonzero(is_shell))
    if len(found) != len(pixels) or (found != pixels).any():
        raise _misfit(f"outlines enclose {found.sum()} pixels of {np.sum(pixels)}")
    nodes = np.stack([path, path ^ 1], axis=1).ravel()
    ring_of = np.repeat(np.arange(len(starts)), 2 * np.diff(np.append(starts, len(path))))
    rings = shapely.linearrings(cols[nodes], rows[nodes], indices=ring_of)
    polygons = shapely.polygons(rings, indices=ring_owner)
    return np.asarray(shapely.normalize(polygons), dtype=object)


def _rings(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Follow the edges; return the turns where horizontal edges begin, and where rings start.

    Turns ``2k`` and ``2k + 1`` are the ends of a horizontal edge. Rings stand in the order of their first
    turn, so the shell of a shape comes before its holes, and every ring sets out to the right.

    All rings are followed at once, in steps that double in length (Wyllie's list ranking), which takes as many rounds
    as the longest ring's length has binary digits.
    """
    own = np.arange(len(following))
    first, jump = own, following
    while True:
        lower = np.minimum(first, first[jump])
        # Windows as long as the jump that all begin with their least turn hold the whole ring's least.
        if (lower == first).all():
            break
        first, jump = lower, jump[jump]
    # Each ring is there twice, once in each direction; the one that sets out to the right begins with an even turn.
    is_first = first == own
    left = np.where(is_first, 0, 1)
    jump = np.where(is_first, own, following)
    while (jump != first).any():
        left = left + left[jump]
        jump = jump[jump]
    path = np.flatnonzero(first % 2 == 0)
    # The first turn stands before the one from which the way back to it is longest.
    path = path[np.lexsort((-left[path], ~is_first[path], first[path]))]
    return path, np.flatnonzero(is_first[path])


def _misfit(what: str) -> GeosegError:
    return GeosegError(
        f"the parts of buildings do not fit together ({what}): a block's result "
        "is damaged or is from another run; start afresh"
    )


def whole_buildings(parts: Parts, whole: Ints) -> list[Building]:
    """Return those parts of a block that are buildings by themselves."""
    if not len(whole):
        return []
    sizes = np.diff(parts.offsets)
    owner = np.repeat(np.arange(len(parts)), sizes)
    if len(whole) < len(parts):
        number = np.full(len(parts), -1)
        number[whole] = np.arange(len(whole))
        owner = number[owner]
    keep = owner >= 0
    corners = parts.rows[keep], parts.cols[keep], parts.values[keep]
    return traced_buildings(owner[keep], *corners, parts.pixels[whole], parts.probability_sums[whole])


def traced_buildings(
    owner: Ints, rows: Ints, cols: Ints, values: Ints, pixels: Ints, probability_sums: Ints
) -> list[Building]:
    """Return the buildings whose corners these are, one for each owner; see :func:`trace`."""
    polygons = trace(owner, rows, cols, values, pixels)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    first = zip(rows[starts].tolist(), cols[starts].tolist(), strict=True)
    facts = zip(polygons, pixels.tolist(), probability_sums.tolist(), first, strict=True)
    return [Building(*fact) for fact in facts]


def buildings_of(mask: NDArray[np.bool_], probability: NDArray[np.uint8]) -> list[Building]:
    """Return the buildings of a mask that is held whole, sorted by their first pixel.

    ``mask`` and ``probability`` are as in :func:`block_parts`.
    """
    parts = block_parts(mask, probability, Rect(0, 0, *mask.shape))
    found = whole_buildings(parts, np.arange(len(parts)))
    return sorted(found, key=lambda building: building.first)
