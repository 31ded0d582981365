"""A rectangle of a raster as the packed tiles that a Cloud Optimized GeoTIFF and its overviews are made of.

Whoever has the pixels packs the tiles that lie wholly inside them, those of the overviews included; what is left are
pieces of tiles that reach beyond. So many can pack a raster at once, and the one who writes the file
(:class:`geoseg.cog.Cog`) has only to append what they send, and to put together the tiles that they share.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.tiling import Rect, ceil_to

TILE = 512
"""Side of a tile in pixels."""

AVERAGE = {"mask": False, "probability": True}
"""Whether a pixel of an overview is the mean of four, or the first of them."""

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]

_HEAD = struct.Struct("<3q")
"""Tiles, pieces, and bytes of the packed pieces."""


def packed(data: bytes | Bytes) -> bytes:
    """Return zlib's stream of a tile, the same for the same bytes.

    Masks and probabilities are runs of equal bytes with narrow borders between them: looking for runs alone takes a
    third of the time of zlib's usual level 6 and gives files 1 to 6 % larger.
    """
    stream = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return stream.compress(data) + stream.flush()  # type: ignore[arg-type]  # an array is a buffer


_ALL_VALID = packed(bytes([255]) * (TILE * TILE // 8))


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return rows and columns of a raster and of its overviews, each half as large, down to one that fits a tile."""
    shapes = [shape]
    while max(shapes[-1]) > TILE:
        height, width = shapes[-1]
        shapes.append((-(-height // 2), -(-width // 2)))
    return shapes


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A rectangle of a level's pixels."""

    level: int
    """0 for the raster itself."""
    rect: Rect
    """In pixels of the level."""
    values: Bytes
    valid: Bools

    def cut(self, rect: Rect) -> Piece:
        """Return a part of it."""
        inside = rect.slices(self.rect)
        return replace(self, rect=rect, values=self.values[inside], valid=self.valid[inside])


PackedTile = tuple[bytes, bytes, Piece | None]
"""A packed tile, its mask, and the piece of the next overview that comes from it."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Packed tiles, and pieces of others."""

    places: NDArray[np.int64]
    """``(n, 2)``: level of a tile, and its number there, row by row; ascending."""
    sizes: NDArray[np.uint32]
    """``(n, 2)``: bytes of a packed tile, and of its mask."""
    data: bytes
    """Each tile with its mask behind it."""
    pieces: tuple[Piece, ...]
    """Pixels of tiles that are not among these, at the finest levels that are not whole."""

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, the same for the same tiles."""
        rects = [
            (one.level, one.rect.row0, one.rect.col0, one.rect.row1, one.rect.col1, bool(one.valid.all()))
            for one in self.pieces
        ]
        content = packed(b"".join(_bytes_of(one) for one in self.pieces))
        head = _HEAD.pack(len(self.places), len(self.pieces), len(content))
        arrays = self.places.astype("<i8"), self.sizes.astype("<u4"), np.array(rects, "<i8").reshape(-1, 6)
        return b"".join([head, *(array.tobytes() for array in arrays), content, self.data])

    @classmethod
    def from_bytes(cls, data: bytes) -> Tiles:
        """Return what :meth:`to_bytes` wrote.

        Raises:
            ValueError: The bytes are not such.
        """
        try:
            count, pieces, length = _HEAD.unpack_from(data)
            at = _HEAD.size
            arrays: list[NDArray[Any]] = []
            for kind, rows, width in (("<i8", count, 2), ("<u4", count, 2), ("<i8", pieces, 6)):
                arrays.append(np.frombuffer(data, kind, rows * width, at).reshape(rows, width))
                at += arrays[-1].nbytes
            places, sizes, rects = arrays
            areas = [(row1 - row0) * (col1 - col0) for _, row0, col0, row1, col1, _ in rects.tolist()]
            sides = [
                area + (0 if whole else ceil_to(area, 8) // 8) for area, whole in zip(areas, rects[:, 5], strict=True)
            ]
            pixels = _unpacked(data[at : at + length], sum(sides))
            at += length
        except (struct.error, zlib.error, TypeError) as error:
            raise ValueError(f"no tiles: {error}") from error
        if len(data) - at != int(sizes.sum(dtype=np.int64)):
            raise ValueError(f"no tiles: {len(data) - at} bytes of them")
        return cls(places, sizes, data[at:], tuple(_pieces(rects.tolist(), pixels)))

    @classmethod
    def none(cls) -> Tiles:
        """Return no tile and no piece."""
        return cls(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.uint32), b"", ())


def _bytes_of(piece: Piece) -> bytes:
    """Return a byte for each pixel, and a bit for each where some are not valid."""
    values = np.ascontiguousarray(piece.values).tobytes()
    return values if piece.valid.all() else values + np.packbits(piece.valid).tobytes()


def _pieces(rects: list[list[int]], pixels: Bytes) -> Iterator[Piece]:
    at = 0
    for level, row0, col0, row1, col1, whole in rects:
        rect = Rect(row0, col0, row1, col1)
        values = pixels[at : at + rect.area].reshape(rect.shape)
        at += rect.area
        if whole:
            valid = np.ones(rect.shape, bool)
        else:
            bits = ceil_to(rect.area, 8) // 8
            valid = np.unpackbits(pixels[at : at + bits], count=rect.area).reshape(rect.shape).view(bool)
            at += bits
        yield Piece(level, rect, values, valid)


def _unpacked(stream: bytes, size: int) -> Bytes:
    """Return the bytes of a zlib stream; ValueError unless they are ``size``."""
    found = zlib.decompressobj()
    data = found.decompress(stream, size + 1)
    if len(data) != size or not found.eof:
        raise ValueError(f"{len(data)} bytes where {size} are wanted")
    return np.frombuffer(data, np.uint8)


def tiles_of(
    rect: Rect,
    values: Bytes,
    valid: Bools,
    shape: tuple[int, int],
    *,
    average: bool,
    mapped: Callable[..., Iterable[PackedTile]] = map,
) -> Tiles:
    """Pack all that can be packed of a rectangle of a raster.

    Args:
        rect: Where the pixels lie.
        values: ``(rect.height, rect.width)``; those without data do not matter.
        valid: As large, True where there is data.
        shape: Rows and columns of the whole raster.
        average: An overview's pixel is the mean of four, as far as they have data; otherwise it is the first.
        mapped: Packs tiles, as :func:`map` does, or several at once.
    """
    places: list[tuple[int, int]] = []
    found: list[tuple[bytes, bytes]] = []
    pieces: list[Piece] = []
    shapes = level_shapes(shape)
    piece = Piece(0, rect, values, valid)
    for level, extent in enumerate(shapes):
        inner = _whole(piece.rect, extent)
        outside = [piece.rect] if inner is None else list(_around(piece.rect, inner))
        pieces.extend(part for part in map(piece.cut, outside) if part.valid.any())
        if inner is None:
            break
        numbers, tiles = [], []
        for number, place in cells(inner, extent):
            part = piece.cut(place)
            if part.valid.any():
                numbers.append(number)
                tiles.append(part)
        last = level == len(shapes) - 1
        small = halved(inner)
        following = Piece(level + 1, small, np.zeros(small.shape, np.uint8), np.zeros(small.shape, bool))
        for number, (tile, mask, half) in zip(
            numbers, mapped(partial(pack, average=None if last else average), tiles), strict=True
        ):
            places.append((level, number))
            found.append((tile, mask))
            if half is not None:
                inside = half.rect.slices(small)
                following.values[inside], following.valid[inside] = half.values, half.valid
        if last or not tiles:
            break
        piece = following
    sizes = np.array([(len(tile), len(mask)) for tile, mask in found], np.uint32).reshape(-1, 2)
    data = b"".join(part for both in found for part in both)
    return Tiles(np.array(places, np.int64).reshape(-1, 2), sizes, data, tuple(pieces))


def _whole(rect: Rect, extent: tuple[int, int]) -> Rect | None:
    """Return the part of a rectangle that is whole tiles of a level of ``extent``, None where there is none."""
    row0, col0 = ceil_to(rect.row0, TILE), ceil_to(rect.col0, TILE)
    row1, col1 = (
        end if end == side else end // TILE * TILE for end, side in zip((rect.row1, rect.col1), extent, strict=True)
    )
    return Rect(row0, col0, row1, col1) if row0 < row1 and col0 < col1 else None


def _around(rect: Rect, inner: Rect) -> Iterator[Rect]:
    """Yield what is left of a rectangle round another one inside it: above, below, left, right."""
    for row0, col0, row1, col1 in (
        (rect.row0, rect.col0, inner.row0, rect.col1),
        (inner.row1, rect.col0, rect.row1, rect.col1),
        (inner.row0, rect.col0, inner.row1, inner.col0),
        (inner.row0, inner.col1, inner.row1, rect.col1),
    ):
        if row0 < row1 and col0 < col1:
            yield Rect(row0, col0, row1, col1)


def cells(rect: Rect, extent: tuple[int, int]) -> Iterator[tuple[int, Rect]]:
    """Yield number and place of each tile of a level that has a part in a rectangle; at the sides they are smaller."""
    across = -(-extent[1] // TILE)
    for row in range(rect.row0 // TILE, -(-rect.row1 // TILE)):
        for col in range(rect.col0 // TILE, -(-rect.col1 // TILE)):
            yield row * across + col, cell_of(row * across + col, extent)


def cell_of(number: int, extent: tuple[int, int]) -> Rect:
    """Return the place of a tile of a level."""
    row, col = divmod(number, -(-extent[1] // TILE))
    return Rect(row * TILE, col * TILE, min((row + 1) * TILE, extent[0]), min((col + 1) * TILE, extent[1]))


def pack(tile: Piece, average: bool | None) -> PackedTile:
    """Return a tile and its mask as they are stored, and the piece of the next overview; None asks for none."""
    values = tile.values if tile.valid.all() else np.where(tile.valid, tile.values, np.uint8(0))
    half = None if average is None else _half(replace(tile, values=values), average)
    if tile.rect.shape != (TILE, TILE):
        missing = [(0, TILE - side) for side in tile.rect.shape]
        values, valid = np.pad(values, missing), np.pad(tile.valid, missing)
    else:
        valid = tile.valid
    mask = _ALL_VALID if valid.all() else packed(np.packbits(valid))
    return packed(np.ascontiguousarray(values)), mask, half


def halved(rect: Rect) -> Rect:
    """Return the place of a rectangle, which begins at an even row and column, on the next overview."""
    return Rect(rect.row0 // 2, rect.col0 // 2, -(-rect.row1 // 2), -(-rect.col1 // 2))


def _half(piece: Piece, average: bool) -> Piece:
    """Return a piece at half the resolution."""
    small, level = halved(piece.rect), piece.level + 1
    if not average:
        return Piece(level, small, piece.values[::2, ::2], piece.valid[::2, ::2])
    even = [(0, ceil_to(side, 2) - side) for side in piece.rect.shape]
    if piece.valid.all():
        mean = (_fours(np.pad(piece.values, even, "edge")) + np.uint16(2)) >> 2
        return Piece(level, small, mean.astype(np.uint8), np.ones(small.shape, bool))
    total, count = _fours(np.pad(piece.values, even)), _fours(np.pad(piece.valid, even))
    mean = (total + (count >> 1)) // np.maximum(count, 1)
    return Piece(level, small, mean.astype(np.uint8), count > 0)


def _fours(pixels: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Return the sums of two by two pixels."""
    wide = pixels.astype(np.uint16)
    return wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2]
