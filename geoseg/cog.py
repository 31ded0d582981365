"""A Cloud Optimized GeoTIFF of one 8-bit band and its validity, in one pass, tile by tile as the pixels come.

GDAL's COG driver copies a finished raster: every pixel is packed, unpacked, packed into temporary overviews, unpacked
and packed again, and the empty nine tenths of a sparse mosaic go the same way. That was a third of all that geoseg does
besides the network (tests/benchmarks/stages.py). Here a tile is packed once and halved for the next overview, mostly by
whoever computed the pixels (:mod:`geoseg.tiles`); packed tiles wait in temporary files, one for each level, and are put
together in the order of the format at the end (https://gdal.org/en/stable/drivers/raster/cog.html: directories first,
then overviews from the smallest, then the tiles row by row, each with the tile of its mask behind it). Nothing that is
held grows with the raster but the tiles' places, 16 bytes each.

Everything that describes the raster (georeference, band's name, scale) is taken from a tiny file that GDAL has written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from geoseg.tiles import TILE, Bools, Bytes, Piece, Tiles, cell_of, cells, level_shapes, pack, tiles_of
from geoseg.tiling import Rect, ceil_to

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _INTERPRETATION, _PREDICTOR, _OFFSETS, _SIZES = 254, 256, 257, 258, 262, 317, 324, 325
_STRUCTURE = (258, 259, 262, 277, 284, 317, 322, 323, 339)
"""Tags that overviews share with the raster; the others are the raster's own."""
_OVERVIEW, _MASK = 1, 4
_SHORT, _LONG, _LONG8 = 3, 4, 16
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_PLACE = 16 * 1024
"""Bytes that places of pieces are multiples of."""
_LARGEST = 2**32 - 2**20
"""Bytes from which a file is a BigTIFF."""


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


class _Level:
    """The raster or one of its overviews: packed tiles in a file, and pieces of tiles that are not whole yet."""

    def __init__(self, shape: tuple[int, int], tiles: BinaryIO, pieces: BinaryIO) -> None:
        self.shape = shape
        count = -(-shape[0] // TILE) * -(-shape[1] // TILE)
        self.places = np.zeros(count, np.int64)
        """Where the packed tile begins in ``tiles``; its mask follows."""
        self.sizes = np.zeros((2, count), np.uint32)
        """Bytes of the packed tile, and of its mask; 0 where there is none."""
        self.tiles, self._pieces = tiles, pieces
        self._waiting: dict[int, list[tuple[Rect, int]]] = {}
        self._free: dict[int, list[int]] = {}
        """Places that nothing waits in any more, by their bytes."""
        self._end = 0

    def take(self, piece: Piece) -> Iterator[tuple[int, Piece]]:
        """Yield the tiles that are whole with this piece, and keep the rest of it."""
        for number, tile in cells(piece.rect, self.shape):
            part = tile & piece.rect
            if part is None:
                continue
            if part == tile:
                yield number, piece.cut(part)
                continue
            self._keep(number, piece.cut(part))
            if sum(kept.area for kept, _ in self._waiting[number]) >= tile.area:
                yield number, self._whole(number, piece.level)

    def _keep(self, number: int, piece: Piece) -> None:
        # As they are, in places that are used again: what waits at a time is a row of tiles.
        size = _room(piece.rect)
        free = self._free.get(size)
        place = free.pop() if free else self._pieces.seek(0, os.SEEK_END)
        data = np.ascontiguousarray(piece.values).tobytes() + np.packbits(piece.valid).tobytes()
        self._pieces.seek(place)
        self._pieces.write(data.ljust(size, b"\0"))
        self._waiting.setdefault(number, []).append((piece.rect, place))

    def _whole(self, number: int, level: int) -> Piece:
        """Put the pieces of a tile together; what did not come has no data."""
        tile = cell_of(number, self.shape)
        values, valid = np.zeros(tile.shape, np.uint8), np.zeros(tile.shape, bool)
        for rect, place in self._waiting.pop(number):
            self._pieces.seek(place)
            size = _room(rect)
            data = np.frombuffer(self._pieces.read(size), np.uint8)
            self._free.setdefault(size, []).append(place)
            inside = rect.slices(tile)
            values[inside] = data[: rect.area].reshape(rect.shape)
            valid[inside] = np.unpackbits(data[rect.area :], count=rect.area).reshape(rect.shape).astype(bool)
        return Piece(level, tile, values, valid)

    def rest(self, level: int) -> Iterator[tuple[int, Piece]]:
        """Yield the tiles that have not become whole."""
        for number in sorted(self._waiting):
            yield number, self._whole(number, level)

    def store(self, numbers: NDArray[np.int64], sizes: NDArray[np.uint32], data: bytes | memoryview) -> None:
        """Keep packed tiles.

        Args:
            numbers: Of each.
            sizes: ``(n, 2)``: bytes of each, and of its mask.
            data: Each with its mask behind it.
        """
        self.tiles.write(data)
        both = sizes.sum(axis=1, dtype=np.int64)
        self.places[numbers] = self._end + np.cumsum(both) - both
        self.sizes[:, numbers] = sizes.T
        self._end += int(both.sum())


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
            average: As for :func:`geoseg.tiles.tiles_of`.
            threads: Tiles packed at once.
        """
        self._path, self._template, self._average, self._shape = path, template, average, shape
        self._levels: list[_Level] = []
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, "tiles"))
            self._map = map if threads == 1 else pool.map
            for number, one in enumerate(level_shapes(shape)):
                tiles, pieces = (
                    stack.enter_context(path.with_name(f"{kind}{number}").open("w+b")) for kind in ("tiles", "pieces")
                )
                self._levels.append(_Level(one, tiles, pieces))
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
        """Take a rectangle of pixels; values without data do not matter."""
        self.add(tiles_of(rect, values, valid, self._shape, average=self._average, mapped=self._map))

    def add(self, tiles: Tiles) -> None:
        """Take what :func:`geoseg.tiles.tiles_of` made of a rectangle.

        Raises:
            ValueError: There are no such tiles in this raster.
        """
        counts = np.array([len(level.places) for level in self._levels])
        levels, numbers = tiles.places.T
        if ((levels < 0) | (levels >= len(counts))).any() or ((numbers < 0) | (numbers >= counts[levels])).any():
            raise ValueError("tiles of another raster")
        ends = np.cumsum(tiles.sizes.sum(axis=1, dtype=np.int64))
        data = memoryview(tiles.data)
        for level in np.unique(levels).tolist():
            mine = np.flatnonzero(levels == level)
            begin = int(ends[mine[0] - 1]) if mine[0] else 0
            self._levels[level].store(numbers[mine], tiles.sizes[mine], data[begin : int(ends[mine[-1]])])
        for piece in tiles.pieces:
            if piece.level >= len(counts) or not Rect(0, 0, *self._levels[piece.level].shape).contains(piece.rect):
                raise ValueError("a piece of another raster")
            self._put(piece.level, list(self._levels[piece.level].take(piece)))

    def _put(self, level: int, tiles: list[tuple[int, Piece]]) -> None:
        """Pack whole tiles of a level, and those of overviews that become whole thereby."""
        while tiles:
            average = None if level == len(self._levels) - 1 else self._average
            whole = [(number, tile) for number, tile in tiles if tile.valid.any()]
            tiles = []
            packing = self._map(partial(pack, average=average), [tile for _, tile in whole])
            for (number, _), (tile, mask, half) in zip(whole, packing, strict=True):
                sizes = np.array([[len(tile), len(mask)]], np.uint32)
                self._levels[level].store(np.array([number]), sizes, tile + mask)
                if half is not None:
                    tiles.extend(self._levels[level + 1].take(half))
            level += 1

    def finish(self) -> None:
        """Write the file."""
        for number, level in enumerate(self._levels):
            self._put(number, list(level.rest(number)))
        head, places = _head(self._levels, self._template)
        with self._path.open("wb") as out:
            out.write(head)
            for level in reversed(self._levels):
                _copy(level, out)
            if out.tell() != places:
                raise OSError(f"{out.tell()} bytes were written instead of {places}")


def _room(rect: Rect) -> int:
    """Return the bytes of a place for a piece: a byte and a bit for each pixel, rounded up."""
    return ceil_to(rect.area + -(-rect.area // 8), _PLACE)


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
            tags[_WIDTH] = Tag.numbers(_LONG, level.shape[1])
            tags[_HEIGHT] = Tag.numbers(_LONG, level.shape[0])
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
