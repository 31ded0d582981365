"""Rasters and whole buildings from finished blocks, in the order of the grid, while later blocks are computed.

All of it is done in threads of this process, which has little to do while workers compute. When the last block is
there, what remains is about the last one's share of the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import product
from threading import Condition, Thread
from types import TracebackType
from typing import TYPE_CHECKING

from geoseg.workers import cores

if TYPE_CHECKING:
    from geoseg.gallery import Tally
    from geoseg.journal import BlockRecord, Journal
    from geoseg.progress import Progress
    from geoseg.segment import Plan
    from geoseg.settled import Settled
    from geoseg.spool import Spool

Index = tuple[int, int]

AHEAD = 1 if cores() < 8 else 2
"""Blocks that are read while one is dealt with."""
SHOWN_S = 0.2
"""How often progress is shown when only this is left to do."""


class _Given(Exception):  # noqa: N818  it is no error
    """The run has ended before all blocks were there."""


@dataclass
class Followed:
    """What came of the blocks."""

    tally: Tally
    spool: Spool
    """All buildings, in pixels."""
    lost: list[dict[str, str]] = field(default_factory=list)
    """Blocks that were stored and cannot be read."""


class Following(AbstractContextManager["Following"]):
    """Writes ``mask.tif`` and ``probability.tif`` and joins the buildings; begins with the ``with``.

    The files appear when :meth:`result` returns; when the ``with`` ends before, there is nothing of them.
    """

    def __init__(self, planned: Plan, journal: Journal) -> None:
        self._planned, self._journal = planned, journal
        self._changed = Condition()
        self._settled: dict[Index, bool] = {}
        self._all = self._given_up = False
        self._done = 0
        self._pixels = 0
        self._spool: Spool | None = None
        self._error: BaseException | None = None
        self._followed: Followed | None = None
        self._thread = Thread(target=self._run, name="following", daemon=True)

    def __enter__(self) -> Following:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
        self._thread.join()
        if self._spool is not None:
            self._spool.close()

    def settle(self, index: Index, stored: bool = True) -> None:
        """Say that nothing more will come of a block: it is in the journal, or (not ``stored``) has no result.

        Raises:
            GeosegError: Results cannot be written.
        """
        with self._changed:
            self._settled[index] = stored
            self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def result(self, progress: Progress) -> Followed:
        """Wait for the last block's share, no further blocks being computed.

        Raises:
            GeosegError: Results cannot be written.
        """
        with self._changed:
            self._all = True
            self._changed.notify_all()
        done, pixels = self._done, self._pixels
        progress.stage("writing rasters", len(self._planned.tiling), done=done, pixels=True)
        while self._thread.is_alive():
            self._thread.join(SHOWN_S)
            now, area = self._done, self._pixels
            if now > done:
                progress.advance(now - done, area - pixels)
                done, pixels = now, area
        if self._error is not None:
            raise self._error
        assert self._followed is not None  # noqa: S101  the thread has ended well
        return self._followed

    def _run(self) -> None:
        try:
            self._followed = self._follow()
        except _Given:
            pass
        except BaseException as error:  # noqa: BLE001  raised where somebody waits
            self._error = error

    def _follow(self) -> Followed:
        from geoseg.gallery import Tally
        from geoseg.join import Joiner
        from geoseg.segment import block_name
        from geoseg.spool import Spool
        from geoseg.wholes import Found
        from geoseg.write import writing_cog

        planned, out = self._planned, self._journal.out
        tiling, geobox = planned.tiling, planned.mosaic.geobox
        spool = self._spool = Spool(self._journal.folder / "buildings.sqlite", planned.mosaic.shape[1])
        followed = Followed(Tally.of(tiling, planned.job.shrink), spool)
        joiner = Joiner(tiling)
        with (
            writing_cog(out / "mask.tif", geobox, "mask") as mask,
            writing_cog(out / "probability.tif", geobox, "probability") as probability,
            ThreadPoolExecutor(AHEAD, "following") as pool,
        ):
            for index, record in self._records(pool):
                core = tiling.core_of(*index)
                stored = self._settled.pop(index, True)
                if record is None:
                    if stored and not planned.mosaic.is_blank(core):
                        message = "its stored result does not read"
                        followed.lost.append({"block": block_name(tiling, index), "message": message})
                else:
                    followed.tally.add(core, record)
                if record is not None and not record.empty:
                    mask.add(record.mask)
                    probability.add(record.probability)
                    found = Found.from_bytes(record.parts)
                    spool.add_wholes(found.whole, self._settled_of(record))
                    spool.add(joiner.add(*index, core, found.parts))
                self._done += 1
                self._pixels += core.area
            spool.add(joiner.finish())
        return followed

    def _settled_of(self, record: BlockRecord) -> Settled | None:
        """Return a block's finished buildings, if they are such as this run wants."""
        from geoseg.settled import Settled

        wanted = self._planned.outlines
        if wanted is None or record.facts.get("outlines") != wanted.facts():
            return None
        return Settled.from_bytes(record.settled)

    def _records(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Index, BlockRecord | None]]:
        """Yield what the journal holds, row by row; the next block is unpacked while one is dealt with."""
        rows, cols = self._planned.tiling.grid
        held: deque[tuple[Index, Future[BlockRecord | None]]] = deque()
        for index in product(range(rows), range(cols)):
            while held and (len(held) > AHEAD or not self._is_settled(index)):
                before, coming = held.popleft()
                yield before, coming.result()
            self._wait(index)
            held.append((index, pool.submit(self._journal.get, index)))
        for before, coming in held:
            yield before, coming.result()

    def _is_settled(self, index: Index) -> bool:
        with self._changed:
            return self._all or index in self._settled

    def _wait(self, index: Index) -> None:
        """Wait until a block is settled."""
        with self._changed:
            while not (self._all or index in self._settled):
                if self._given_up:
                    raise _Given
                self._changed.wait()
            if self._given_up:
                raise _Given
