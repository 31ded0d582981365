"""One block, from the files to a record: the function that workers run, and the job that they are told.

:func:`run_block` is a pure function of the job and the block's index: read ─▶ predict ─▶ blend ─▶ mask ─▶ tiles, parts
and, unless that is left to the driver, finished buildings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoseg.allocator import give_back
from geoseg.crew import Arrays, Crew, crew_of, dismiss
from geoseg.journal import BlockRecord
from geoseg.tiles import AVERAGE, Tiles, tiles_of
from geoseg.tiling import ALIGN, Block, Rect, Tiling, Window, ceil_to
from geoseg.workers import tell, threads_of_worker

if TYPE_CHECKING:
    from torch import Tensor

    from geoseg.mosaic import Mosaic, Pixels
    from geoseg.predict import Predictor
    from geoseg.scaling import Scaling
    from geoseg.settings import OutlineSettings


@dataclass(frozen=True)
class Job:
    """All that a block depends on besides its index; travels to the workers."""

    mosaic: Mosaic
    """Paths and numbers of the inputs; workers open the files themselves."""
    tiling: Tiling
    """How the mosaic is cut."""
    model: str
    """Path or name of the model."""
    scaling: Scaling
    """From stored values to network input."""
    threshold: float
    """Probability from which a pixel is building."""
    device: str
    precision: str
    tta: bool
    engine: str
    """Who computes on the CPU; see :mod:`geoseg.engines`."""
    threads: int | None
    """CPU threads for the network; None to take what the worker has."""
    shrink: int
    """Pixels of the mosaic, along one side, for a pixel of the report's overview."""
    outlines: OutlineSettings | None = None
    """How workers straighten outlines; None where that is left to the driver."""
    tells: bool = False
    """Whether a block tells how far it has come (:func:`geoseg.workers.tell`): its index and its share done."""


_predictors: dict[tuple[Any, ...], Predictor] = {}
_building = threading.Lock()


def predictor_of(job: Job) -> Predictor:
    """Return the predictor of a job, built once a process."""
    key = (job.model, job.device, job.precision, job.tta, job.engine, job.threads)
    # The threads of one worker must end up with one predictor, whose lock they then share.
    with _building:
        if key not in _predictors:
            from geoseg.checkpoint import load_model
            from geoseg.predict import Predictor

            _predictors.clear()
            _predictors[key] = Predictor.of(
                load_model(job.model),
                device=job.device,
                precision=job.precision,
                tta=job.tta,
                engine=job.engine,
                threads=job.threads if job.threads is not None else threads_of_worker(),
            )
        return _predictors[key]


def _try_predictor(job: Job) -> None:
    with suppress(Exception):
        predictor_of(job)


@dataclass(frozen=True)
class Computed:
    """What a block yields, as it travels."""

    data: bytes
    """A packed :class:`geoseg.journal.BlockRecord`."""
    complete: bool
    """False when a piece of input could not be read."""
    pixels: int
    """Pixels with data that were answered for."""


def run_block(job: Job, index: tuple[int, int]) -> Computed:
    """Compute one block.

    Args:
        job: What to do.
        index: Row and column in the grid of blocks.
    """
    if not _predictors:
        # The first block is read while the model loads; what goes wrong there is told where it is asked for again.
        threading.Thread(target=_try_predictor, args=(job,), name="model", daemon=True).start()
    block = job.tiling.block(*index)
    crew = crew_of(job) if job.device != "cpu" else None
    if crew is not None:
        try:
            return _with_crew(crew, job, block)
        except (BrokenProcessPool, OSError):  # whatever else has a part in it happens again below
            dismiss(crew)
    clock = time.perf_counter()
    pixels, wanted, windows, problems = read(job, block)
    if pixels is None or not windows:
        return empty(block, problems)
    from geoseg.sights import shrunk

    inner = block.core.slices(pixels.rect)
    thumbnail = shrunk(pixels.values[:, *inner], pixels.valid[inner], job.scaling, job.shrink)
    seconds = time.perf_counter() - clock
    mask, grey, facts = _predicted(job, block, pixels.values, pixels.valid, wanted, windows)
    facts["seconds"]["read"], facts["problems"] = seconds, problems
    del pixels
    done = record(job, block.core, wanted, mask, grey, thumbnail, facts)
    del mask, grey, wanted, thumbnail
    give_back()
    return done


def _with_crew(crew: Crew, job: Job, block: Block) -> Computed:
    """Compute a block of which other processes do all but the network's part."""
    seen = around(block.windows)
    with crew.memory(Arrays.size(job, seen, block.core)) as (memory, mapped):
        found = crew.read(block.index, memory)
        if found.empty is not None:
            return found.empty
        there = Arrays.of(mapped, job, seen, block.core)
        mask, grey, facts = _predicted(job, block, there.values, there.valid, there.wanted, found.windows)
        there.mask[:], there.grey[:] = mask, grey
        facts["seconds"]["read"], facts["problems"] = found.seconds, found.problems
        return crew.record(block.index, memory, facts)


def read(job: Job, block: Block) -> tuple[Pixels | None, NDArray[np.bool_], list[Window], list[dict[str, Any]]]:
    """Return a block's pixels with halo, the pixels to answer for, the windows to run, and what could not be read."""
    from geoseg.raster import gdal_env

    with gdal_env():
        pixels, wanted, windows = _read(job, block)
    return pixels, wanted, windows, [asdict(problem) for problem in pixels.problems] if pixels is not None else []


def _predicted(
    job: Job,
    block: Block,
    values: NDArray[np.generic],
    valid: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
    windows: list[Window],
) -> tuple[NDArray[np.bool_], NDArray[np.uint8], dict[str, Any]]:
    """Return mask and 8-bit probability of a block's core, and the facts of its record."""
    clock = time.perf_counter()
    predictor = predictor_of(job)
    from geoseg.blend import blend
    from geoseg.lane import room

    forward = sum(window.pixels.area for window in windows) * predictor.views
    share = _Share(block.index, forward) if job.tells else None
    with room(predictor.device):
        results = predictor.windows(values, valid, around(block.windows), windows, job.scaling, share)
        chance = blend(job.tiling, block.core, results, predictor.device)
        mask, grey = judged(chance, wanted, job.threshold)
    facts = {
        "windows": len(windows),
        "forward_pixels": forward,
        "device": str(predictor.device),
        "precision": predictor.precision,
        "engine": predictor.engine,
        "seconds": {"predict": time.perf_counter() - clock},
    }
    return mask, grey, facts


def record(
    job: Job,
    core: Rect,
    wanted: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    grey: NDArray[np.uint8],
    thumbnail: NDArray[np.uint8],
    facts: dict[str, Any],
) -> Computed:
    """Return a block's result from what is known of its core."""
    clock = time.perf_counter()
    from geoseg.polygonize import block_parts
    from geoseg.sights import counted
    from geoseg.wholes import Found

    def tiles(kind: str, pixels: NDArray[np.uint8]) -> Tiles:
        return tiles_of(core, pixels, wanted, job.tiling.shape, average=AVERAGE[kind])

    # Packing leaves Python to other threads.
    with ThreadPoolExecutor(2, "packing") as pool:
        packing = [
            pool.submit(tiles, "mask", mask.view(np.uint8) * np.uint8(255)),
            pool.submit(tiles, "probability", grey),
        ]
        found = Found.of(block_parts(mask, grey, core))
        settled = b""
        if job.outlines is not None:
            from geoseg.settled import Settled

            on_map = job.mosaic.transform, job.mosaic.wkt
            settled = Settled.of(found, job.tiling.extent, job.outlines.rules(), *on_map).to_bytes()
            facts = facts | {"outlines": job.outlines.facts()}
        counts = counted(core, mask, wanted)
        rasters = [one.result() for one in packing]
    seconds = facts["seconds"] | {"vectorise": time.perf_counter() - clock}
    facts = facts | {"seconds": {name: round(value, 4) for name, value in seconds.items()}} | counts
    data = BlockRecord(rasters[0], rasters[1], thumbnail, found.to_bytes(), settled, facts).to_bytes()
    return Computed(data, not facts["problems"], counts["valid_pixels"])


class _Share:
    """Tells the share of a block's pixels that have been through the network, at most every second."""

    def __init__(self, index: tuple[int, int], total: int) -> None:
        self._index, self._total, self._done, self._last = index, total, 0, time.monotonic()

    def __call__(self, pixels: int) -> None:
        self._done += pixels
        if time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            tell((self._index, self._done / self._total))


def judged(chance: Tensor, wanted: NDArray[np.bool_], threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Return mask and 8-bit probability of a block, computed where the probabilities lie: a quarter of them travels.

    Args:
        chance: Probabilities, float32.
        wanted: Pixels to answer for; all others are no building of probability zero.
        threshold: Probability from which a pixel is building.
    """
    import torch

    from geoseg.lane import down, up

    asked = up(wanted, chance.device)
    mask = (chance >= threshold) & asked
    grey = chance.mul(255).round_().to(torch.uint8).mul_(asked)
    return down(mask), down(grey)  # type: ignore[return-value]


def _read(job: Job, block: Block) -> tuple[Pixels | None, NDArray[np.bool_], list[Window]]:
    """Read what a block needs: pixels with halo, the wanted pixels of the core, the windows to run."""
    nothing = np.zeros(block.core.shape, dtype=bool)
    # Whether there is any data in it shows when it is read, which looking at masks first would make half as long again.
    if job.mosaic.is_blank(block.core):
        return None, nothing, []
    asked = job.mosaic.inside_aoi(block.core)
    if not asked.any():
        return None, nothing, []
    pixels = job.mosaic.read_padded(around(block.windows))
    wanted = asked & pixels.valid[block.core.slices(pixels.rect)]
    # A window without a wanted pixel under its weight adds nothing to any pixel that is written.
    windows = [window for window in block.windows if _touches(window, block.core, wanted)]
    if job.tiling.taper == 0:
        windows = [_narrowed(job.tiling, window, block.core, wanted) for window in windows]
    return pixels, wanted, windows


def _narrowed(tiling: Tiling, window: Window, core: Rect, wanted: NDArray[np.bool_]) -> Window:
    """Return the window cut down to the halo around what is wanted of its cell, whose corners stay 32-aligned."""
    inside = wanted[window.cell.slices(core)]
    rows, cols = (np.flatnonzero(inside.any(axis)).tolist() for axis in (1, 0))
    row, col = window.cell.row0, window.cell.col0
    around = Rect(
        row + rows[0] // ALIGN * ALIGN,
        col + cols[0] // ALIGN * ALIGN,
        row + ceil_to(rows[-1] + 1, ALIGN),
        col + ceil_to(cols[-1] + 1, ALIGN),
    )
    seen = around.grow(tiling.halo, window.pixels)
    cell = around & window.cell
    return window if cell is None else Window(seen, cell, cell)


def _touches(window: Window, core: Rect, wanted: NDArray[np.bool_]) -> bool:
    part = window.support & core
    return part is not None and bool(wanted[part.slices(core)].any())


def around(windows: Iterable[Window]) -> Rect:
    """Return the rectangle that all windows lie in."""
    rects = [window.pixels for window in windows]
    return Rect(
        min(rect.row0 for rect in rects),
        min(rect.col0 for rect in rects),
        max(rect.row1 for rect in rects),
        max(rect.col1 for rect in rects),
    )


def empty(block: Block, problems: list[dict[str, Any]]) -> Computed:
    """Return a block without data: nobody looks at more than the facts."""
    from geoseg.polygonize import Parts
    from geoseg.wholes import Found

    facts: dict[str, Any] = {"empty": True, "windows": 0, "forward_pixels": 0, "problems": problems}
    small = np.zeros((3, 0, 0), np.uint8)
    record = BlockRecord(Tiles.none(), Tiles.none(), small, Found.of(Parts.empty(block.core)).to_bytes(), b"", facts)
    return Computed(record.to_bytes(), not problems, 0)
