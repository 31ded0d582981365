"""The main job, and the only place that composes the stages: rasters in, masks and footprints out.

    mosaic ─▶ tiling ─▶ blocks on workers (read ─▶ predict ─▶ blend ─▶ mask ─▶ tiles, parts) ─▶ journal
                                                                                                   │
                 report, run.json ◀─ footprints ◀─ join across blocks ◀─ mask.tif, probability.tif ◀┘

A block is computed by :func:`geoseg.block.run_block`, a pure function of the job and the block's index; everything
after the journal is in :mod:`geoseg.finish`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field, replace
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from geoseg.block import Computed, Job, run_block
from geoseg.errors import GeosegError, InputError, ModelError, SettingError, WorkerError
from geoseg.following import Following
from geoseg.gpus import may_have_gpu
from geoseg.inbox import Errand, Left, run_and_leave
from geoseg.journal import RECORDS, Journal
from geoseg.progress import Progress, open_progress
from geoseg.settings import CELL, CELL_WHOLE, OutlineSettings, Settings
from geoseg.tiling import ALIGN, Tiling, ceil_to
from geoseg.warm import warm_up

if TYPE_CHECKING:
    from geoseg.card import ModelCard
    from geoseg.checkpoint import ModelFile
    from geoseg.mosaic import Mosaic

OVERVIEW = 25_000_000
"""Most pixels of the overview in the report: a tile of 5000 × 5000 is shown whole, and the driver holds 125 MB."""
HOPELESS = 8
"""When so many blocks fail in a row and none has succeeded, the run stops: it is not the blocks."""
STREAMED = ("unet11", "unet16")
"""Architectures whose windows pass through in strips, so that large ones cost no memory."""
IMPORTS_AFTER_S = 4.0
"""Seconds after which the network surely computes, and leaves time to import something."""
FOLDERS_CHECKED = 32
"""Folders of imagery that every worker of a cluster is asked for before the work begins."""
GSD_TOLERANCE = 1.5
"""Imagery coarser or finer than the model's by more than this factor is worth a warning."""


Settle = Callable[[tuple[int, int], bool], None]


@dataclass(frozen=True)
class Plan:
    """What a run would do, before it does it."""

    mosaic: Mosaic
    tiling: Tiling
    card: ModelCard
    job: Job
    identity: dict[str, Any]
    """What finished blocks depend on; see :mod:`geoseg.journal`."""
    simplify_px: float
    """Tolerance of simplification in pixels."""
    outlines: OutlineSettings | None = None
    """How outlines are straightened; None where they are not, or where that takes more than the outlines."""
    notes: tuple[str, ...] = ()
    """What a user should know before the run."""
    problems: tuple[dict[str, str], ...] = ()
    """Inputs that cannot be used: ``path`` and ``message``."""

    @property
    def headline(self) -> str:
        """One line: files, grid, CRS, ground sampling distance, model."""
        mosaic, card = self.mosaic, self.card
        files = len(mosaic.sources)
        where = crs_name(mosaic) if mosaic.georeferenced else "no georeference: in pixels"
        ground = f", {mosaic.ground_gsd:.3g} m" if mosaic.ground_gsd else ""
        model = ", ".join([*([f"{card.gsd_m:.2f} m"] if card.gsd_m else []), f"threshold {self.job.threshold:g}"])
        rows, cols = mosaic.shape
        return (
            f"{files} file{'s' if files != 1 else ''}, one {cols} × {rows} grid, {where}{ground} · "
            f"model {card.name} ({model})"
        )


def crs_name(mosaic: Mosaic) -> str:
    """Return ``EPSG:N`` where there is one, else the CRS's own name, else ``no CRS``."""
    crs = mosaic.crs
    if crs is None:
        return "no CRS"
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)


def plan(inputs: str | Path | Iterable[str | Path], settings: Settings) -> Plan:
    """Look at the headers of all inputs and decide how the work is cut; nothing is read or written.

    Raises:
        InputError: No input can be used.
        ModelError: The model cannot be used.
        SettingError: Settings that do not fit the inputs or the model.
    """
    from geoseg.checkpoint import look_at_model, shipped_name
    from geoseg.mosaic import open_mosaic
    from geoseg.scaling import Scaling, building_class

    # Not loaded: torch takes seconds and hundreds of megabytes, and only workers need it.
    model = look_at_model(settings.model)
    card = model.card
    building_class(card)
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    mosaic, bad = open_mosaic(names, bands=settings.bands or _card_bands(card), gsd=settings.gsd, aoi=settings.aoi)
    tiling = _tiling(mosaic.shape, settings, model)
    threshold = card.threshold if settings.threshold is None else settings.threshold
    job = Job(
        mosaic=mosaic,
        tiling=tiling,
        model=shipped_name(model.path) or str(model.path.absolute()),  # workers may stand, and Python lie, elsewhere
        scaling=Scaling.of(card, str(mosaic.dtype), settings.range),
        threshold=threshold,
        device=settings.device,
        precision=settings.precision,
        tta=settings.tta,
        engine=settings.engine,
        threads=None,
        shrink=_shrink(mosaic.shape, tiling.core),
    )
    pixel = mosaic.ground_gsd or 1.0
    simplify_px = 1.0 if settings.simplify is None else settings.simplify / pixel
    return Plan(
        mosaic,
        tiling,
        card,
        job,
        _identity(mosaic, model, job),
        simplify_px,
        _outlines(settings, simplify_px),
        (*model.notes, *_notes(mosaic, card, settings, tiling)),
        tuple({"path": str(problem.path), "message": problem.message} for problem in bad),
    )


def _outlines(settings: Settings, simplify_px: float) -> OutlineSettings | None:
    if simplify_px <= 0 or settings.outline != "pixel":
        return None
    return OutlineSettings(settings.min_area, settings.min_hole, simplify_px, settings.square)


def _card_bands(card: ModelCard) -> tuple[int, int, int] | None:
    # The usual order is left to the reader, which also knows palettes and single grey bands.
    return None if tuple(card.bands) == (1, 2, 3) else tuple(card.bands)  # type: ignore[return-value]


def _tiling(shape: tuple[int, int], settings: Settings, model: ModelFile) -> Tiling:
    card = model.card
    taper = settings.taper or 0
    if isinstance(settings.halo, int):
        halo = settings.halo
    elif settings.halo == "auto" and card.halo is not None:
        halo = card.halo
        taper = card.taper if settings.taper is None else taper
    else:
        halo = ceil_to(model.reach.halo, max(model.align, ALIGN))
    cell = settings.cell or (CELL if card.arch in STREAMED else CELL_WHOLE)
    tiling = Tiling(shape, cell, halo, taper, ceil_to(settings.core or cell, cell))
    if halo % model.align or cell % model.align:
        raise SettingError(
            f"model {card.name} takes sides that are multiples of {model.align} px: halo ({halo}) and cell "
            f"({cell}) must be such, too"
        )
    return tiling


def _shrink(shape: tuple[int, int], core: int) -> int:
    """Return the power of two, a divisor of the core, that brings the mosaic down to the overview's size."""
    factor = 1
    while shape[0] * shape[1] > OVERVIEW * factor**2 and core % (2 * factor) == 0:
        factor *= 2
    return factor


def _notes(mosaic: Mosaic, card: ModelCard, settings: Settings, tiling: Tiling) -> Iterator[str]:
    ground, wanted = mosaic.ground_gsd, card.gsd_m
    if ground and wanted and not 1 / GSD_TOLERANCE <= ground / wanted <= GSD_TOLERANCE:
        yield (
            f"the imagery has {ground:.3g} m a pixel on the ground, model {card.name} was trained for {wanted:g} m: "
            f"--gsd {wanted:g} may find more and takes {(ground / wanted) ** 2:.2g} of the work"
        )
    if not mosaic.georeferenced:
        yield "the imagery has no georeference: lengths and areas are in pixels"
    if settings.core and tiling.core != settings.core:
        yield f"blocks are {tiling.core} px: whole cells of {tiling.cell}"


def _identity(mosaic: Mosaic, model: ModelFile, job: Job) -> dict[str, Any]:
    import geoseg

    return {
        "geoseg": geoseg.__version__,
        "records": RECORDS,
        **mosaic.identity(),
        # With its place: a file that moved must not leave blocks behind where it was.
        "files": [
            [source.path, source.size, source.stamp, list(source.bands), astuple(source.rect)]
            for source in mosaic.sources
        ],
        "model": model.fingerprint,
        "tiling": {name: value for name, value in asdict(job.tiling).items() if name != "shape"},
        "scaling": asdict(job.scaling),
        "threshold": job.threshold,
        "precision": job.precision,
        "engine": job.engine,
        "tta": job.tta,
    }


@dataclass(frozen=True)
class Result:
    """What a run has done."""

    out: Path
    """The folder of the results."""
    buildings: int
    area_m2: float
    """Sum of the footprints' areas: square metres, or square pixels without georeference."""
    failures: tuple[dict[str, str], ...]
    """Inputs and blocks that failed: ``path`` or ``block``, and ``message``."""
    run: dict[str, Any] = field(repr=False)
    """The content of ``run.json``."""

    @property
    def complete(self) -> bool:
        """True when nothing failed."""
        return not self.failures


def segment(
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    progress: Progress | str | None = None,
    **settings: Any,
) -> Result:
    """Find the buildings in rasters and write masks, footprints and a report.

    A run that was interrupted goes on where it stopped when the same call is made again.

    Args:
        inputs: Files, folders, globs or GDAL names; all together are one mosaic.
        out: Folder for ``mask.tif``, ``probability.tif``, ``buildings.gpkg``, ``project.qgz``, ``report.html``,
            ``item.json``, ``run.json``.
        progress: ``auto``, ``bar``, ``json``, ``none``, or an object; by default the setting.
        **settings: See :class:`Settings`.

    Returns:
        Counts and failures. Failed inputs and blocks are in ``failures``; the rest is written.

    Raises:
        GeosegError: Nothing can be done: wrong settings, no usable input, no model, no workers, nowhere to write.
    """
    chosen = Settings.of(settings)
    shown = progress if isinstance(progress, Progress) else open_progress(progress or chosen.progress)
    started = time.time()
    if chosen.scheduler is None and chosen.workers != 0:
        warm_up()
    from geoseg.delivery import check_database
    from geoseg.formats import check_format

    planned = plan(inputs, chosen)
    _check_out(planned, Path(out))
    for name in chosen.format:
        check_format(name, planned.mosaic.wkt)
    check_database(chosen, planned.mosaic.wkt)
    with shown, Journal(Path(out)) as journal:
        shown.say(planned.headline)
        for note in planned.notes:
            shown.warn(note)
        for problem in planned.problems:
            shown.warn(f"{problem['path']}: {problem['message']}")
        for line in journal.renew(planned.identity, lambda paths: blocks_touching(planned, paths)):
            shown.say(f"{line}: the blocks around it are computed again")
        reasons = journal.open(planned.identity, fresh=chosen.fresh)
        if reasons:
            shown.say("starting afresh: " + "; ".join(reasons))
        clock = time.perf_counter()
        with Following(planned, journal) as following, ExitStack() as after:
            computed = compute(planned, chosen, journal, shown, following.settle, after)
            timings = {"blocks": time.perf_counter() - clock}
            from geoseg import finish

            return finish.write_all(planned, chosen, journal, computed, shown, timings, started, following)


def _check_out(planned: Plan, out: Path) -> None:
    """Refuse a folder that holds the imagery: the next run would take the results for imagery."""
    folder = out.resolve()
    for source in planned.mosaic.sources:
        if Path(source.path).parent == folder:
            raise SettingError(f"{out}: the imagery is in this folder ({source.name}); choose another one for --out")


def _waiting(
    planned: Plan, finished: set[tuple[int, int]], blank: list[tuple[int, int]], settle: Settle
) -> Iterator[tuple[int, int]]:
    """Yield the blocks that are not finished in the order of the grid; those without data only go to ``blank``."""
    tiling = planned.tiling
    for row in range(tiling.grid[0]):
        for col in range(tiling.grid[1]):
            if (row, col) in finished:
                continue
            if planned.mosaic.is_blank(tiling.core_of(row, col)):
                # It takes longer to send such a block to a worker than to see that there is nothing in it.
                blank.append((row, col))
                settle((row, col), False)
            else:
                yield row, col


@dataclass(frozen=True)
class Blocks:
    """What the stage of the blocks did."""

    computed: int
    """Blocks computed in this run."""
    resumed: int
    """Blocks found finished."""
    failed: dict[tuple[int, int], str]
    """Blocks that ended in an error, with its text."""
    pixels: int
    """Pixels with data that this run computed."""
    workers: str
    """Where, in words."""
    blank: int = 0
    """Blocks that surely have no data, which nobody had to compute."""
    started: bool = False
    """Whether processes were started here."""
    settled: bool = False
    """Whether workers have straightened outlines."""


def compute(
    planned: Plan, settings: Settings, journal: Journal, progress: Progress, settle: Settle, after: ExitStack
) -> Blocks:
    """Compute every block that the journal does not hold complete, storing each as it comes.

    ``settle`` is told each block, and whether the journal holds something of it, when no more will come of it;
    ``after`` waits for the workers' end, which may take longer.
    """
    from geoseg.workers import open_workers

    tiling = planned.tiling
    finished = set(journal.blocks(complete=True))
    total, resumed = len(tiling), len(finished)
    blank: list[tuple[int, int]] = []
    for index in finished:
        settle(index, True)
    waiting = _waiting(planned, finished, blank, settle)
    first = list(islice(waiting, 2))
    if not first:
        there = f"all {total} blocks are there" if total > 1 else "the only block is there"
        progress.say(f"{there} from an earlier run" if resumed else "there is no data in the imagery")
        return Blocks(0, resumed, {}, 0, "none needed", len(blank))
    indices = chain(first, waiting)
    failed: dict[tuple[int, int], str] = {}
    done = pixels = told = 0
    # A single block gains nothing from workers of its own but the seconds that starting them takes.
    alone = settings.scheduler is None and settings.workers is None and len(first) == 1
    count = 0 if alone else settings.workers
    needs = files_needed(planned) if settings.scheduler else ()
    with open_workers(
        scheduler=settings.scheduler, workers=count, device=settings.device, needs=needs, tasks=total - resumed
    ) as workers:
        after.callback(workers.wait)
        progress.stage("segmenting", total, done=resumed + len(blank), pixels=True)
        told = len(blank)
        # A local worker that is bound to one GPU sees it as the first and only one.
        device = planned.job.device if count == 0 else planned.job.device.partition(":")[0]
        # Where the network takes all cores of this machine, outlines are as well straightened afterwards.
        elsewhere = settings.scheduler is not None or (device != "cpu" and may_have_gpu())
        outlines = planned.outlines if elsewhere else None
        job = replace(
            planned.job,
            threads=workers.threads,
            device=device,
            outlines=outlines,
            tells=settings.scheduler is None,
        )
        under_way = UnderWay(progress)
        workers.listen(under_way.hear)
        # What comes after the blocks takes a second to import, and this process has little to do until then; but where
        # it computes them, importing what that takes comes first.
        imports = Timer(IMPORTS_AFTER_S if alone else 0, import_module, ("geoseg.finish",))
        imports.daemon = True
        imports.start()
        outcomes: Iterator[tuple[tuple[int, int], Computed | Left | Exception]]
        if count == 0 and settings.scheduler is None:
            outcomes = workers.map(run_block, job, indices)
        else:
            outcomes = workers.map(run_and_leave, Errand(job, str(journal.inbox())), indices)
        for index, outcome in outcomes:
            if isinstance(outcome, Exception):
                failed[index] = _failure(outcome)
                settle(index, False)
                progress.warn(f"{block_name(tiling, index)}: {failed[index]}")
                if done == resumed == 0 and len(failed) >= min(HOPELESS, total):
                    raise WorkerError(
                        f"none of the first {len(failed)} blocks could be computed, the last because: {failed[index]}"
                    ) from outcome
            else:
                if isinstance(outcome, Left):
                    journal.take(index, outcome.name, outcome.complete)
                else:
                    journal.put(index, outcome.data, outcome.complete)
                settle(index, True)
                done += 1
                pixels += outcome.pixels
            progress.advance(1 + len(blank) - told, tiling.core_of(*index).area)
            under_way.end(index)
            told = len(blank)
        described = workers.description
    started = settings.scheduler is None and count != 0
    return Blocks(done, resumed, failed, pixels, described, len(blank), started, outlines is not None and not resumed)


class UnderWay:
    """How far the blocks have come that are being computed, for the progress shown."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shares: dict[tuple[int, int], float] = {}
        self._ended: set[tuple[int, int]] = set()

    def hear(self, told: tuple[tuple[int, int], float]) -> None:
        """Take what a block tells of itself, in any thread; words that come after its end are too late."""
        (row, col), share = told
        if (row, col) not in self._ended:
            self._shares[row, col] = share
            self._show()

    def end(self, index: tuple[int, int]) -> None:
        """Forget a block that is counted as done."""
        self._ended.add(index)
        self._shares.pop(index, None)
        self._show()

    def _show(self) -> None:
        self._progress.within(sum(list(self._shares.values())))


def files_needed(planned: Plan) -> tuple[str, ...]:
    """Return local files that every worker must see: one of each folder of imagery, and the model's."""
    from geoseg.raster import is_remote

    folders: dict[str, str] = {}
    for source in planned.mosaic.sources:
        # Names of GDAL's own (/vsizip/…) lead to something else than a file.
        if not is_remote(source.path) and Path(source.path).is_absolute() and not source.path.startswith("/vsi"):
            folders.setdefault(os.path.dirname(source.path), source.path)
    model = [planned.job.model] if os.path.isabs(planned.job.model) else []
    return (*model, *list(folders.values())[:FOLDERS_CHECKED])


def block_name(tiling: Tiling, index: tuple[int, int]) -> str:
    """Return where a block lies, in words."""
    core = tiling.core_of(*index)
    return f"rows {core.row0}–{core.row1 - 1}, columns {core.col0}–{core.col1 - 1}"


def blocks_touching(planned: Plan, paths: Container[str]) -> Iterator[tuple[int, int]]:
    """Yield the blocks whose result may depend on the files with these paths."""
    tiling = planned.tiling
    # A window reaches a cell, half a taper and a halo beyond the block, and up to 31 reflected pixels further.
    margin = tiling.cell + tiling.halo + tiling.taper + ALIGN
    for source in planned.mosaic.sources:
        if source.path in paths:
            near = source.rect.grow(margin, tiling.extent)
            for row in range(near.row0 // tiling.core, -(-near.row1 // tiling.core)):
                for col in range(near.col0 // tiling.core, -(-near.col1 // tiling.core)):
                    yield row, col


def _failure(error: Exception) -> str:
    """Return an error in one line; raise it when every other block would end in it too."""
    if isinstance(error, ModelError | SettingError):
        raise error
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, GeosegError):
        raise error
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
