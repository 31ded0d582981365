"""Pure integer geometry: a grid of pixels cut into blocks, and blocks covered by windows.

Everything here is arithmetic on ``(row, column)`` integers; no raster is opened and no array is touched.

* The **lattice** divides the mosaic into square *cells* of ``Tiling.cell`` pixels, counted from pixel (0, 0).
  One **window** belongs to each cell: the cell grown by the halo, cut where the raster ends. Windows therefore do not
  depend on how the mosaic is cut into blocks, which is why results do not either.
* A **block** is a rectangle of whole cells (its *core*): the unit of work, of retry and of resume. The cores
  partition the mosaic.
* With a **taper** neighbouring windows share a strip of that many pixels around the line between their cells,
  over which one fades into the other (see :mod:`geoseg.blend`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from geoseg.errors import SettingError

if TYPE_CHECKING:
    from rasterio.windows import Window as RasterioWindow

ALIGN = 32
"""Sides the network takes are multiples of this: five poolings by two."""


def ceil_to(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


@dataclass(frozen=True, slots=True, order=True)
class Rect:
    """A half-open rectangle of pixels, rows ``row0 … row1 - 1`` and columns ``col0 … col1 - 1``."""

    row0: int
    col0: int
    row1: int
    col1: int

    def __post_init__(self) -> None:
        if self.row1 <= self.row0 or self.col1 <= self.col0:
            raise SettingError(f"a rectangle of pixels needs at least one pixel, not {self!r}")

    @property
    def height(self) -> int:
        """Rows."""
        return self.row1 - self.row0

    @property
    def width(self) -> int:
        """Columns."""
        return self.col1 - self.col0

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def window(self) -> RasterioWindow:
        """The same rectangle as rasterio names it."""
        from rasterio.windows import Window as RasterioWindow

        return RasterioWindow(self.col0, self.row0, self.width, self.height)

    def __and__(self, other: Rect) -> Rect | None:
        """Return the common rectangle, or None when there is none."""
        row0, col0 = max(self.row0, other.row0), max(self.col0, other.col0)
        row1, col1 = min(self.row1, other.row1), min(self.col1, other.col1)
        return Rect(row0, col0, row1, col1) if row0 < row1 and col0 < col1 else None

    def contains(self, other: Rect) -> bool:
        """Say whether ``other`` lies inside, edges included."""
        return self & other == other

    def slices(self, origin: Rect) -> tuple[slice, slice]:
        """Index of this rectangle in an array whose first pixel is that of ``origin``."""
        return (
            slice(self.row0 - origin.row0, self.row1 - origin.row0),
            slice(self.col0 - origin.col0, self.col1 - origin.col0),
        )

    def grow(self, margin: int, within: Rect) -> Rect:
        """Return the rectangle grown by ``margin`` on every side, cut at ``within``."""
        grown = Rect(
            max(self.row0 - margin, within.row0),
            max(self.col0 - margin, within.col0),
            min(self.row1 + margin, within.row1),
            min(self.col1 + margin, within.col1),
        )
        return grown


@dataclass(frozen=True, slots=True)
class Window:
    """What the network sees at once, and where its answer counts."""

    pixels: Rect
    """Pixels read, 32-aligned; may pass the raster's right and bottom side by up to 31 (reflected there)."""
    cell: Rect
    """The lattice cell that the window answers for, cut where the raster ends."""
    support: Rect
    """Where its weight is above zero: the cell and half a taper around it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A unit of work: which pixels to answer for (core), and which windows that takes."""

    index: tuple[int, int]
    """Row and column in the grid of blocks."""
    core: Rect
    """The pixels that the block answers for; the cores of all blocks partition the mosaic."""
    windows: tuple[Window, ...]
    """All windows whose support meets the core, row by row."""

    @property
    def name(self) -> str:
        """A name for files and messages, such as ``r0003c0012``."""
        return f"r{self.index[0]:04d}c{self.index[1]:04d}"


@dataclass(frozen=True)
class Tiling:
    """How a mosaic of ``shape`` pixels is cut; see the module's text for the words."""

    shape: tuple[int, int]
    """``(rows, columns)`` of the mosaic."""
    cell: int = 512
    """Side of a lattice cell, a multiple of 32."""
    halo: int = 64
    """Pixels that a window sees beyond its cell on every side, a multiple of 32."""
    taper: int = 0
    """Width of the strip over which neighbouring windows fade into each other, even, at most twice the halo."""
    core: int = 2048
    """Side of a block's core, a multiple of the cell."""

    def __post_init__(self) -> None:
        rows, cols = self.shape
        if rows < 1 or cols < 1:
            raise SettingError(f"a mosaic needs at least one pixel, not {rows} × {cols}")
        if self.cell < ALIGN or self.cell % ALIGN:
            raise SettingError(f"cell is {self.cell} px; it must be a positive multiple of {ALIGN}")
        if self.halo < 0 or self.halo % ALIGN:
            raise SettingError(f"halo is {self.halo} px; it must be a multiple of {ALIGN}, or 0")
        if self.taper < 0 or self.taper % 2 or self.taper > min(2 * self.halo, self.cell):
            raise SettingError(
                f"taper is {self.taper} px; it must be even and at most twice the halo ({self.halo}) "
                f"and the cell ({self.cell})"
            )
        if self.core < self.cell or self.core % self.cell:
            raise SettingError(f"core is {self.core} px; it must be a positive multiple of the cell ({self.cell} px)")

    @cached_property
    def extent(self) -> Rect:
        """The whole mosaic."""
        return Rect(0, 0, *self.shape)

    @cached_property
    def padded(self) -> Rect:
        """The mosaic with its right and bottom side moved out to the next multiple of 32."""
        rows, cols = self.shape
        return Rect(0, 0, ceil_to(rows, ALIGN), ceil_to(cols, ALIGN))

    @property
    def grid(self) -> tuple[int, int]:
        """Number of blocks, ``(rows, columns)``."""
        rows, cols = self.shape
        return -(-rows // self.core), -(-cols // self.core)

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    def __iter__(self) -> Iterator[Block]:
        """Yield all blocks, row by row, without holding them."""
        rows, cols = self.grid
        for row in range(rows):
            for col in range(cols):
                yield self.block(row, col)

    def block(self, row: int, col: int) -> Block:
        """Return the block at ``(row, col)`` in the grid of blocks."""
        core = self.core_of(row, col)
        return Block((row, col), core, tuple(self.windows(core)))

    def core_of(self, row: int, col: int) -> Rect:
        """Return the core of a block without listing its windows."""
        rows, cols = self.grid
        if not (0 <= row < rows and 0 <= col < cols):
            raise SettingError(f"no block ({row}, {col}) in a grid of {rows} × {cols}")
        size, (height, width) = self.core, self.shape
        return Rect(row * size, col * size, min((row + 1) * size, height), min((col + 1) * size, width))

    def window(self, row: int, col: int) -> Window:
        """Return the window of the lattice cell ``(row, col)``."""
        size = self.cell
        full = Rect(row * size, col * size, (row + 1) * size, (col + 1) * size)
        cell = full & self.extent
        if cell is None:
            raise SettingError(f"cell ({row}, {col}) lies outside the mosaic of {self.shape} px")
        return Window(
            pixels=full.grow(self.halo, self.padded),
            cell=cell,
            support=cell.grow(self.taper // 2, self.extent),
        )

    def windows(self, rect: Rect) -> Iterator[Window]:
        """Yield the windows whose support meets ``rect``, row by row."""
        reach = rect.grow(self.taper // 2, self.extent)
        size = self.cell
        for row in range(reach.row0 // size, -(-reach.row1 // size)):
            for col in range(reach.col0 // size, -(-reach.col1 // size)):
                window = self.window(row, col)
                if window.support & rect is not None:
                    yield window

    def forward_ratio(self) -> float:
        """Pixels that pass through the network for each pixel of the mosaic (all of it valid)."""
        # Rows and columns cost alike and independently: count one axis at a time.
        return self._axis_cost(0) * self._axis_cost(1) / self.extent.area

    def _axis_cost(self, axis: int) -> int:
        length, half, size = self.shape[axis], self.taper // 2, self.cell
        padded = ceil_to(length, ALIGN)
        total = 0
        for start in range(0, length, self.core):
            stop = min(start + self.core, length)
            first = max(start - half, 0) // size
            last = -(-min(stop + half, length) // size)
            for index in range(first, last):
                total += min((index + 1) * size + self.halo, padded) - max(index * size - self.halo, 0)
        return total
