"""A Cloud Optimized GeoTIFF of one 8-bit band and its validity, in one pass, tile by tile as the pixels come.

GDAL's COG driver copies a finished raster: every pixel is packed, unpacked, packed into temporary overviews, unpacked
and packed again, and the empty nine tenths of a sparse mosaic go the same way. That was a third of all that geoseg does
besides the network (tests/benchmarks/stages.py). Here a tile is packed once and halved for the next overview; packed
tiles wait in temporary files, one for each level, and are put together in the order of the format at the end
(https://gdal.org/en/stable/drivers/raster/cog.html: directories first, then overviews from the smallest, then the tiles
row by row, each with the tile of its mask behind it). Nothing that is held grows with the raster but the tiles' places,
16 bytes each.

Everything that describes the raster (georeference, band's name, scale) is taken from a tiny file that GDAL has written.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from geoseg.tiling import Rect, ceil_to

TILE = 512
"""Side of a tile in pixels."""

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _INTERPRETATION, _PREDICTOR, _OFFSETS, _SIZES = 254, 256, 257, 258, 262, 317, 324, 325
_STRUCTURE = (258, 259, 262, 277, 284, 317, 322, 323, 339)
"""Tags that overviews share with the raster; the others are the raster's own."""
_OVERVIEW, _MASK = 1, 4
_SHORT, _LONG, _LONG8 = 3, 4, 16
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_LARGEST = 2**32 - 2**20
"""Bytes from which a file is a BigTIFF."""


def packed(data: bytes | Bytes) -> bytes:
    """Return zlib's stream of a tile, the same for the same bytes.

    Masks and probabilities are runs of equal bytes with narrow borders between them: looking for runs alone takes a
    third of the time of zlib's usual level 6 and gives files 1 to 6 % larger.
    """
    stream = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return stream.compress(data) + stream.flush()  # type: ignore[arg-type]  # an array is a buffer


_ALL_VALID = packed(bytes([255]) * (TILE * TILE // 8))


@dataclass(frozen=True, slots=True)
class Tag:
    """An entry of a TIFF directory."""

    kind: int
    count: int
    data: bytes
    """The values, little-endian."""

    @classmethod
    def numbers(cls, kind: int, *values: int) -> Tag:
        """Return a tag of whole numbers."""
        letter = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}[kind]
        return cls(kind, len(values), struct.pack(f"<{len(values)}{letter}", *values))


@dataclass(frozen=True, slots=True)
class Template:
    """What a small classic COG with a mask says about itself."""

    ghost: bytes
    """GDAL's description of the layout, which stands between the header and the first directory."""
    image: dict[int, Tag]
    """Tags of the raster."""
    mask: dict[int, Tag]
    """Tags of its mask."""

    @classmethod
    def of(cls, content: bytes) -> Template:
        """Take a file apart."""
        (first,) = struct.unpack_from("<4xI", content)
        image, second = _directory(content, first)
        mask, _ = _directory(content, second)
        return cls(content[8:first], image, mask)


def _directory(content: bytes, at: int) -> tuple[dict[int, Tag], int]:
    """Return the tags of a classic TIFF's directory, and where the next one is."""
    (count,) = struct.unpack_from("<H", content, at)
    tags = {}
    for number in range(count):
        place = at + 2 + 12 * number
        code, kind, length = struct.unpack_from("<HHI", content, place)
        size = _WIDTHS[kind] * length
        start = place + 8 if size <= 4 else struct.unpack_from("<I", content, place + 8)[0]
        tags[code] = Tag(kind, length, content[start : start + size])
    return tags, struct.unpack_from("<I", content, at + 2 + 12 * count)[0]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A rectangle of a level's pixels."""

    rect: Rect
    values: Bytes
    valid: Bools


Packed = tuple[bytes, bytes, _Piece | None]
"""A packed tile, its mask, and the piece of the next overview that comes from it."""


class _Level:
    """The raster or one of its overviews: packed tiles in a file, and pieces of tiles that are not whole yet."""

    def __init__(self, shape: tuple[int, int], tiles: BinaryIO, pieces: BinaryIO, largest: int) -> None:
        self.extent = Rect(0, 0, *shape)
        self.grid = (-(-shape[0] // TILE), -(-shape[1] // TILE))
        count = self.grid[0] * self.grid[1]
        self.places = np.zeros(count, np.int64)
        """Where the packed tile begins in ``tiles``; its mask follows."""
        self.sizes = np.zeros((2, count), np.uint32)
        """Bytes of the packed tile, and of its mask; 0 where there is none."""
        self.tiles, self._pieces = tiles, pieces
        self._waiting: dict[int, list[tuple[Rect, int]]] = {}
        self._free: list[int] = []
        self._slot = largest + ceil_to(largest, 8) // 8
        """Bytes of a piece: a byte and a bit for each pixel."""
        self._end = 0

    def _rect(self, number: int) -> Rect:
        row, col = divmod(number, self.grid[1])
        height, width = self.extent.shape
        return Rect(row * TILE, col * TILE, min((row + 1) * TILE, height), min((col + 1) * TILE, width))

    def take(self, piece: _Piece) -> Iterator[tuple[int, _Piece]]:
        """Yield the tiles that are whole with this piece, and keep the rest of it."""
        rect = piece.rect
        for row in range(rect.row0 // TILE, -(-rect.row1 // TILE)):
            for col in range(rect.col0 // TILE, -(-rect.col1 // TILE)):
                number = row * self.grid[1] + col
                tile = self._rect(number)
                part = tile & rect
                if part is None:
                    continue
                inside = part.slices(rect)
                own = _Piece(part, piece.values[inside], piece.valid[inside])
                if part == tile:
                    yield number, own
                    continue
                self._keep(number, own)
                if sum(kept.area for kept, _ in self._waiting[number]) >= tile.area:
                    yield number, self._whole(number)

    def _keep(self, number: int, piece: _Piece) -> None:
        # As they are, in places that are used again: what waits at a time is a row of tiles.
        place = self._free.pop() if self._free else self._pieces.seek(0, os.SEEK_END)
        data = np.ascontiguousarray(piece.values).tobytes() + np.packbits(piece.valid).tobytes()
        self._pieces.seek(place)
        self._pieces.write(data.ljust(self._slot, b"\0"))
        self._waiting.setdefault(number, []).append((piece.rect, place))

    def _whole(self, number: int) -> _Piece:
        """Put the pieces of a tile together; what did not come has no data."""
        tile = self._rect(number)
        values, valid = np.zeros(tile.shape, np.uint8), np.zeros(tile.shape, bool)
        for rect, place in self._waiting.pop(number):
            self._pieces.seek(place)
            data = np.frombuffer(self._pieces.read(self._slot), np.uint8)
            self._free.append(place)
            inside = rect.slices(tile)
            values[inside] = data[: rect.area].reshape(rect.shape)
            valid[inside] = np.unpackbits(data[rect.area :], count=rect.area).reshape(rect.shape).astype(bool)
        return _Piece(tile, values, valid)

    def rest(self) -> Iterator[tuple[int, _Piece]]:
        """Yield the tiles that have not become whole."""
        for number in sorted(self._waiting):
            yield number, self._whole(number)

    def store(self, number: int, tile: bytes, mask: bytes) -> None:
        """Keep a packed tile."""
        self.tiles.write(tile + mask)
        self.places[number] = self._end
        self.sizes[:, number] = len(tile), len(mask)
        self._end += len(tile) + len(mask)


class Cog:
    """Takes the pixels of a raster, each once; the file is there after :meth:`finish`.

    A context manager that closes its temporary files, which lie in the folder of ``path``; to remove them is up to the
    caller.
    """

    def __init__(self, path: Path, shape: tuple[int, int], template: Template, *, average: bool, threads: int) -> None:
        """Start with nothing but pixels without data.

        Args:
            path: Where the file is to be.
            shape: Rows and columns.
            template: Tags, from a file with the same georeference.
            average: An overview's pixel is the mean of four, as far as they have data; otherwise it is the first.
            threads: Tiles packed at once.
        """
        self._path, self._template, self._average = path, template, average
        self._levels: list[_Level] = []
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, "tiles"))
            self._map = map if threads == 1 else pool.map
            number, (height, width) = 0, shape
            while True:
                tiles, pieces = (
                    stack.enter_context(path.with_name(f"{kind}{number}").open("w+b")) for kind in ("tiles", "pieces")
                )
                self._levels.append(_Level((height, width), tiles, pieces, (TILE // 2) ** 2 if number else TILE**2))
                if height <= TILE and width <= TILE:
                    break
                number, height, width = number + 1, -(-height // 2), -(-width // 2)
            self._packing: tuple[int, list[int], Iterable[Packed]] = 0, [], ()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def write(self, rect: Rect, values: Bytes, valid: Bools) -> None:
        """Take a rectangle of pixels; values without data do not matter.

        Threads pack its tiles while the caller goes on, so the arrays must stay as they are until the next call.
        """
        self._settle()
        self._begin(0, list(self._levels[0].take(_Piece(rect, values, valid))))

    def _begin(self, level: int, tiles: list[tuple[int, _Piece]]) -> None:
        """Let threads pack whole tiles of a level."""
        average = None if level == len(self._levels) - 1 else self._average
        whole = [(number, tile) for number, tile in tiles if tile.valid.any()]
        packing = self._map(partial(_pack, average=average), [tile for _, tile in whole])
        self._packing = level, [number for number, _ in whole], packing

    def _settle(self) -> None:
        """Keep what is packed, and pack those tiles of overviews that become whole thereby."""
        level, numbers, packing = self._packing
        while numbers:
            tiles: list[tuple[int, _Piece]] = []
            for number, (tile, mask, half) in zip(numbers, packing, strict=True):
                self._levels[level].store(number, tile, mask)
                if half is not None:
                    tiles.extend(self._levels[level + 1].take(half))
            self._begin(level + 1, tiles)
            level, numbers, packing = self._packing

    def finish(self) -> None:
        """Write the file."""
        self._settle()
        for number, level in enumerate(self._levels):
            self._begin(number, list(level.rest()))
            self._settle()
        head, places = _head(self._levels, self._template)
        with self._path.open("wb") as out:
            out.write(head)
            for level in reversed(self._levels):
                _copy(level, out)
            if out.tell() != places:
                raise OSError(f"{out.tell()} bytes were written instead of {places}")


def _pack(piece: _Piece, average: bool | None) -> Packed:
    """Return a tile and its mask as they are stored, and the piece of the next overview; None asks for none."""
    values = piece.values if piece.valid.all() else np.where(piece.valid, piece.values, np.uint8(0))
    half = None if average is None else _halved(replace(piece, values=values), average)
    if piece.rect.shape != (TILE, TILE):
        missing = [(0, TILE - side) for side in piece.rect.shape]
        values, valid = np.pad(values, missing), np.pad(piece.valid, missing)
    else:
        valid = piece.valid
    mask = _ALL_VALID if valid.all() else packed(np.packbits(valid))
    return packed(np.ascontiguousarray(values)), mask, half


def _halved(piece: _Piece, average: bool) -> _Piece:
    """Return a piece, which begins at an even row and column, at half the resolution."""
    rect = piece.rect
    small = Rect(rect.row0 // 2, rect.col0 // 2, -(-rect.row1 // 2), -(-rect.col1 // 2))
    if not average:
        return _Piece(small, piece.values[::2, ::2], piece.valid[::2, ::2])
    even = [(0, ceil_to(side, 2) - side) for side in rect.shape]
    if piece.valid.all():
        mean = (_fours(np.pad(piece.values, even, "edge")) + np.uint16(2)) >> 2
        return _Piece(small, mean.astype(np.uint8), np.ones(small.shape, bool))
    total, count = _fours(np.pad(piece.values, even)), _fours(np.pad(piece.valid, even))
    mean = (total + (count >> 1)) // np.maximum(count, 1)
    return _Piece(small, mean.astype(np.uint8), count > 0)


def _fours(pixels: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Return the sums of two by two pixels."""
    wide = pixels.astype(np.uint16)
    return wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2]


def _copy(level: _Level, out: BinaryIO) -> None:
    """Write a level's tiles row by row, each between its size and its last four bytes, as the layout wants."""
    for number in np.flatnonzero(level.sizes[0]):
        level.tiles.seek(level.places[number])
        for size in level.sizes[:, number].tolist():
            data = level.tiles.read(size)
            out.write(struct.pack("<I", size) + data + data[-4:])


def _head(levels: list[_Level], template: Template) -> tuple[bytes, int]:
    """Return all that stands before the tiles, and the length of the file."""
    directories: list[tuple[dict[int, Tag], int, int]] = []
    for kind in (0, 1):
        common = (template.image, template.mask)[kind]
        for number, level in enumerate(levels):
            tags = dict(common) if number == 0 else {code: common[code] for code in _STRUCTURE}
            flags = (_OVERVIEW if number else 0) | (_MASK if kind else 0)
            if flags:
                tags[_SUBFILE] = Tag.numbers(_LONG, flags)
            tags[_WIDTH] = Tag.numbers(_LONG, level.extent.width)
            tags[_HEIGHT] = Tag.numbers(_LONG, level.extent.height)
            directories.append((tags, number, kind))
    # As GDAL has it: the raster, its mask, overviews, their masks.
    directories.sort(key=lambda one: (one[1] > 0, one[2], one[1]))
    tiles = sum(int(level.sizes.sum()) + 16 * int(np.count_nonzero(level.sizes[0])) for level in levels)
    for big in (False, True):
        begin = len(_laid_out(directories, template.ghost, None, levels, big))
        if big or begin + tiles < _LARGEST:
            break
    offsets, end = _offsets(levels, begin)
    return _laid_out(directories, template.ghost, offsets, levels, big), end


def _offsets(levels: list[_Level], begin: int) -> tuple[list[NDArray[np.int64]], int]:
    """Return for each level where the tiles and their masks will be, shape (2, tiles), and where the last one ends."""
    offsets: list[NDArray[np.int64]] = [np.zeros((2, len(level.places)), np.int64) for level in levels]
    for level, found in zip(reversed(levels), reversed(offsets), strict=True):
        there = np.flatnonzero(level.sizes[0])
        sizes = level.sizes[:, there].astype(np.int64)
        ends = begin + np.cumsum(sizes.sum(axis=0) + 16)
        found[1, there] = ends - 4 - sizes[1]
        found[0, there] = found[1, there] - 8 - sizes[0]
        begin = int(ends[-1]) if len(ends) else begin
    return offsets, begin


def _laid_out(
    directories: list[tuple[dict[int, Tag], int, int]],
    ghost: bytes,
    offsets: list[NDArray[np.int64]] | None,
    levels: list[_Level],
    big: bool,
) -> bytes:
    """Return header, ghost area, directories and then the tiles' places; ``offsets`` of None are zeros."""
    kind = _LONG8 if big else _LONG
    entry, inline, number, pointer = (20, 8, "<Q", "<Q") if big else (12, 4, "<H", "<I")
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0)
    content = bytearray(head + ghost)
    link = len(head) - struct.calcsize(pointer)
    late: list[tuple[int, bytes]] = []
    for tags, level, part in directories:
        places = np.zeros(len(levels[level].places), np.int64) if offsets is None else offsets[level][part]
        tags = {
            **tags,
            _OFFSETS: Tag(kind, len(places), places.astype("<i8" if big else "<u4").tobytes()),
            _SIZES: Tag(_LONG, len(places), levels[level].sizes[part].astype("<u4").tobytes()),
        }
        content += bytes(len(content) % 2)  # directories begin at even places
        start = len(content)
        struct.pack_into(pointer, content, link, start)
        content += struct.pack(number, len(tags)) + bytes(entry * len(tags) + struct.calcsize(pointer))
        link = len(content) - struct.calcsize(pointer)
        for index, (code, tag) in enumerate(sorted(tags.items())):
            place = start + struct.calcsize(number) + entry * index
            struct.pack_into("<HHQ" if big else "<HHI", content, place, code, tag.kind, tag.count)
            place += entry - inline
            if len(tag.data) <= inline:
                content[place : place + len(tag.data)] = tag.data
            elif code in (_OFFSETS, _SIZES):
                late.append((place, tag.data))
            else:
                content += bytes(len(content) % 2)
                struct.pack_into(pointer, content, place, len(content))
                content += tag.data
    for place, data in late:
        content += bytes(-len(content) % 8)
        struct.pack_into(pointer, content, place, len(content))
        content += data
    return bytes(content)
