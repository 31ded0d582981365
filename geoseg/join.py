"""Parts of buildings joined across blocks, exactly; what is held does not grow with the mosaic's height."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import SettingError
from geoseg.polygonize import Building, Cuts, Ints, Parts, traced_buildings, whole_buildings
from geoseg.tiling import Rect


@dataclass(eq=False, slots=True)
class _Open:
    """A building, parts of which may still be to come."""

    corners: list[tuple[Ints, Ints, Ints]]
    """Rows, columns and values of the corners of its parts so far."""
    pixels: int
    probability_sum: int
    pending: int = 0
    """Sides of blocks at which it waits for the neighbour."""
    merged_into: _Open | None = field(default=None, repr=False)

    def root(self) -> _Open:
        """Return the building that this one has become a part of, shortening the way there."""
        root = self
        while root.merged_into is not None:
            root = root.merged_into
        node = self
        while node.merged_into is not None:
            node.merged_into, node = root, node.merged_into
        return root

    def absorb(self, other: _Open) -> _Open:
        """Make two buildings one and return it; the shorter list moves, so no chain is quadratic."""
        keep, give = (self, other) if len(self.corners) >= len(other.corners) else (other, self)
        keep.corners += give.corners
        keep.pixels += give.pixels
        keep.probability_sum += give.probability_sum
        keep.pending += give.pending
        give.corners, give.merged_into = [], keep
        return keep


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a block that waits for its neighbour."""

    owners: NDArray[np.int32]
    """Index into ``waiting`` for each pixel, -1 for none."""
    waiting: dict[int, _Open]


class Joiner:
    """Joins the parts of blocks into whole buildings and hands each out as soon as it is complete.

    Blocks come in row-major order. A building is complete once none of its pixels lies on the
    side of a block that is still to come; what is held is one row of blocks' lower sides and the
    buildings that reach them.
    """

    def __init__(self, cuts: Cuts) -> None:
        """Start with the first block of ``cuts``, usually a :class:`geoseg.tiling.Tiling`."""
        self._cuts = cuts
        self._next = 0
        self._above: dict[int, _Side] = {}
        self._left: _Side | None = None

    @property
    def open_parts(self) -> int:
        """Parts that are held because their building may go on in a block to come."""
        sides = [*self._above.values(), *([self._left] if self._left else [])]
        roots = {id(root): root for side in sides for root in _roots(side.waiting.values())}
        return sum(len(root.corners) for root in roots.values())

    def add(self, block_row: int, block_col: int, core: Rect, parts: Parts) -> list[Building]:
        """Take the parts of one block; return the buildings that are complete now.

        Blocks that are passed over count as empty. SettingError when the block comes out of
        order, or when the core or the parts are not those of this block.
        """
        rows, cols = self._cuts.grid
        index = block_row * cols + block_col
        if not (0 <= block_row < rows and 0 <= block_col < cols) or index < self._next:
            raise SettingError(
                f"block ({block_row}, {block_col}) cannot come after block "
                f"{divmod(self._next - 1, cols)} in a grid of {rows} × {cols}: "
                "blocks are joined row by row"
            )
        if core != self._cuts.core_of(block_row, block_col) or core != parts.core:
            raise SettingError(
                f"block ({block_row}, {block_col}) has the core "
                f"{self._cuts.core_of(block_row, block_col)}, not {core} with parts of {parts.core}"
            )
        done = self._skip_to(index)
        whole, closed = self._take(block_row, block_col, parts)
        self._next = index + 1
        return [*done, *whole_buildings(parts, whole), *_joined_buildings(closed)]

    def finish(self) -> list[Building]:
        """Return the buildings still open: the blocks that did not come are empty."""
        rows, cols = self._cuts.grid
        return self._skip_to(rows * cols)

    def _skip_to(self, index: int) -> list[Building]:
        """Let all blocks before ``index`` be empty."""
        cols = self._cuts.grid[1]
        closed: list[_Open] = []
        while self._next < index and (self._above or self._left):
            # An empty block joins nothing: it only ends the waiting of the sides that face it.
            closed += _settle([s for s in (self._above.pop(self._next % cols, None), self._left) if s])
            self._left = None
            self._next += 1
        self._next = max(self._next, index)
        return _joined_buildings(closed)

    def _take(self, row: int, col: int, parts: Parts) -> tuple[Ints, list[_Open]]:
        """Join a block to those before it; return its whole buildings, and what it completes."""
        rows, cols = self._cuts.grid
        facing: list[tuple[_Side, NDArray[np.int32]]] = []
        if (above := self._above.pop(col, None)) is not None:
            facing.append((above, parts.top))
        if self._left is not None:
            facing.append((self._left, parts.left))
        leaving = [parts.bottom] if row + 1 < rows else []
        leaving += [parts.right] if col + 1 < cols else []
        links = [_links(side.owners, own) for side, own in facing]
        touching = [pairs[:, 1] for pairs in links] + [side[side >= 0] for side in leaving]
        reaching = np.unique(np.concatenate(touching)) if touching else np.zeros(0, np.int64)
        mine = {int(part): _open(parts, int(part)) for part in reaching}
        for (side, _), pairs in zip(facing, links, strict=True):
            for theirs, own in pairs.tolist():
                one, other = side.waiting[theirs].root(), mine[own].root()
                if one is not other:
                    one.absorb(other)
        below = _wait(parts.bottom, mine) if row + 1 < rows else None
        if below is not None:
            self._above[col] = below
        self._left = _wait(parts.right, mine) if col + 1 < cols else None
        closed = _settle([side for side, _ in facing])
        return np.setdiff1d(np.arange(len(parts)), reaching, assume_unique=True), closed


def _links(theirs: Ints, own: Ints) -> NDArray[np.int64]:
    """Return the distinct pairs of owners on the two sides of a seam, shape (pairs, 2)."""
    both = (theirs >= 0) & (own >= 0)
    pairs = np.stack([theirs[both], own[both]], axis=1).astype(np.int64)
    if len(pairs) > 1:
        changes = np.ones(len(pairs), bool)
        changes[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        pairs = pairs[changes]
    return pairs


def _open(parts: Parts, part: int) -> _Open:
    begin, end = parts.offsets[part], parts.offsets[part + 1]
    # Copies, so that one building does not keep a whole block's arrays alive.
    corners = (
        parts.rows[begin:end].copy(),
        parts.cols[begin:end].copy(),
        parts.values[begin:end].copy(),
    )
    return _Open([corners], int(parts.pixels[part]), int(parts.probability_sums[part]))


def _wait(owners: NDArray[np.int32], mine: dict[int, _Open]) -> _Side | None:
    """Register that the owners along a side wait for the block beyond it."""
    present = np.unique(owners[owners >= 0]).tolist()
    waiting = {part: mine[part] for part in present}
    for node in waiting.values():
        node.root().pending += 1
    # A copy, so that a side does not keep the bytes that a whole block was read from alive.
    return _Side(owners.copy(), waiting) if waiting else None


def _roots(nodes: Iterable[_Open]) -> list[_Open]:
    """Return the distinct buildings of the nodes, in the order in which they come."""
    return list({id(root): root for root in (node.root() for node in nodes)}.values())


def _settle(sides: list[_Side]) -> list[_Open]:
    """End the waiting at these sides; return the buildings that wait nowhere any more."""
    nodes = [node for side in sides for node in side.waiting.values()]
    for node in nodes:
        node.root().pending -= 1
    return [root for root in _roots(nodes) if root.pending == 0]


def _joined_buildings(closed: list[_Open]) -> list[Building]:
    """Return the completed buildings; the corners on seams cancel here."""
    if not closed:
        return []
    pieces = [piece for building in closed for piece in building.corners]
    counts = [sum(len(piece[0]) for piece in building.corners) for building in closed]
    owner = np.repeat(np.arange(len(closed)), counts)
    rows, cols, values = (np.concatenate([piece[i] for piece in pieces]) for i in range(3))
    order = np.lexsort((cols, rows, owner))
    owner, rows, cols = owner[order], rows[order], cols[order]
    new = np.ones(len(owner), bool)
    new[1:] = (owner[1:] != owner[:-1]) | (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])
    starts = np.flatnonzero(new)
    sums = np.add.reduceat(values[order].astype(np.int64), starts)
    keep = starts[sums != 0]
    pixels = np.array([building.pixels for building in closed], np.int64)
    probability = np.array([building.probability_sum for building in closed], np.int64)
    return traced_buildings(owner[keep], rows[keep], cols[keep], sums[sums != 0], pixels, probability)
