"""The main job, and the only place that composes the stages: rasters in, masks and footprints out.

    open mosaic ─▶ tiling ─▶ blocks on workers (read ─▶ predict ─▶ blend ─▶ mask ─▶ parts) ─▶ journal
                                                                                                │
           report, run.json ◀─ buildings.gpkg ◀─ join across blocks ◀─ mask.tif, probability.tif ◀┘

A block is computed by :func:`run_block`, a pure function of the job and the block's index; everything after the
journal is in :mod:`geoseg.finish`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import GeosegError, InputError, ModelError, SettingError, WorkerError
from geoseg.journal import BlockRecord, Journal
from geoseg.progress import KINDS, Progress, open_progress
from geoseg.tiling import Block, Rect, Tiling, Window, ceil_to

if TYPE_CHECKING:
    from geoseg.checkpoint import Model, ModelCard
    from geoseg.mosaic import Mosaic, Pixels
    from geoseg.predict import Predictor, Scaling
    from geoseg.workers import Workers

CELL = 1024
"""Side of a lattice cell. Larger windows waste less on halos but pass the CPU's caches."""
CORE = 2048
"""Side of a block's core unless ``--core`` says otherwise."""
OVERVIEW = 1600
"""Longest side, in pixels, of the overview picture in the report."""
FORMATS = ("gpkg", "fgb", "parquet", "geojson")
HOPELESS = 8
"""When so many blocks fail in a row and none has succeeded, the run stops: it is not the blocks."""
GSD_TOLERANCE = 1.5
"""Imagery coarser or finer than the model's by more than this factor is worth a warning."""


@dataclass(frozen=True)
class Settings:
    """What a user can choose; every field is an option of ``geoseg segment`` and a key of a pipeline file."""

    model: str | None = None
    """Name of a shipped model or path of a model file; None for the default model."""
    threshold: float | None = None
    """A pixel is building when its probability is at least this; None for the model card's."""
    bands: tuple[int, int, int] | None = None
    """Bands that are red, green and blue for the model, counted from 1; None for the model card's."""
    gsd: float | None = None
    """Resample to this many metres a pixel on the ground; None keeps the grid of the first file."""
    range: tuple[float, float] | None = None
    """Stored values that mean black and white; None for the model card's."""
    aoi: str | None = None
    """Vector file whose polygons bound the area of interest."""
    halo: str | int = "auto"
    """Pixels that a window sees beyond its cell: a multiple of 32, ``exact`` or ``auto``."""
    taper: int | None = None
    """Width in pixels of the strip over which neighbouring windows fade into each other; None for the halo's own."""
    core: int = CORE
    """Side of a block in pixels: the unit of work and of resume. Does not change the result."""
    cell: int = CELL
    """Side of the lattice cell that a window answers for."""
    tta: bool = False
    """Average over the eight rotations and mirror images: eight times the work."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str = "auto"
    """``auto``, ``fp32``, ``bf16`` or ``fp16``."""
    workers: int | None = None
    """Local worker processes; 0 computes in this process; None chooses."""
    scheduler: str | None = None
    """Address of a running dask scheduler, instead of local workers."""
    min_area: float = 4.0
    """Buildings smaller than this many square metres are left out."""
    min_hole: float = 2.0
    """Holes smaller than this many square metres are closed."""
    simplify: float | None = None
    """Tolerance of the outlines' simplification in metres, 0 for pixel edges; None for one pixel."""
    format: tuple[str, ...] = ("gpkg",)
    """Vector formats to write, of ``gpkg``, ``fgb``, ``parquet`` and ``geojson``."""
    fresh: bool = False
    """Forget the blocks that an earlier run left in the output folder."""
    progress: str = "auto"
    """``auto``, ``bar``, ``json`` or ``none``."""

    def __post_init__(self) -> None:
        for name in ("bands", "range", "format"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.format, str):
            object.__setattr__(self, "format", (self.format,))
        for name in ("model", "aoi", "scheduler", "device", "precision", "progress"):
            value = getattr(self, name)
            if isinstance(value, Path):
                value = str(value)
                object.__setattr__(self, name, value)
            if value is not None and not isinstance(value, str):
                raise SettingError(f"{name} is {value!r}; it must be text")
        _between("threshold", self.threshold, 0, 1)
        for name in ("min_area", "min_hole", "simplify"):
            _between(name, getattr(self, name), 0, np.inf, closed=True)
        _between("gsd", self.gsd, 0, np.inf)
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 1):
            raise SettingError(f"bands is {self.bands}; it must be three band numbers from 1, such as 1,2,3")
        if self.range is not None and (len(self.range) != 2 or self.range[0] >= self.range[1]):
            raise SettingError(f"range is {self.range}; it must be two values, the smaller first")
        if isinstance(self.halo, str) and self.halo not in ("auto", "exact"):
            if not self.halo.isdigit():
                raise SettingError(f"halo is {self.halo!r}; it must be auto, exact or a number of pixels")
            object.__setattr__(self, "halo", int(self.halo))
        if self.core < 1:
            raise SettingError(f"core is {self.core} px; it must be positive")
        unknown = set(self.format) - set(FORMATS)
        if unknown or not self.format:
            raise SettingError(f"format {', '.join(sorted(unknown)) or '(none)'}: choose from {', '.join(FORMATS)}")
        if self.progress not in KINDS:
            raise SettingError(f"progress {self.progress!r} is not one of {', '.join(KINDS)}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Build from a mapping, refusing unknown keys.

        Raises:
            SettingError: A key that is no setting, or a value that does not fit.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise SettingError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise SettingError(f"a setting has the wrong type: {error}") from error


def _between(name: str, value: float | None, low: float, high: float, closed: bool = False) -> None:
    if value is None:
        return
    if not (low <= value <= high if closed else low < value < high):
        raise SettingError(f"{name} is {value:g}; it must lie {'from' if closed else 'between'} {low:g} and {high:g}")


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
    threads: int | None
    """CPU threads for the network; None to take what the worker has."""
    shrink: int
    """Pixels of the mosaic, along one side, for a pixel of the report's overview."""


_predictors: dict[tuple[Any, ...], Predictor] = {}
_building = threading.Lock()


def predictor_of(job: Job) -> Predictor:
    """Return the predictor of a job, built once a process."""
    key = (job.model, job.device, job.precision, job.tta, job.threads)
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
                threads=job.threads if job.threads is not None else _worker_threads(),
            )
        return _predictors[key]


def _worker_threads() -> int | None:
    """Return the threads of the dask worker that this runs on, None elsewhere."""
    from distributed import get_worker

    try:
        return int(get_worker().state.nthreads)
    except ValueError:
        return None


def run_block(job: Job, index: tuple[int, int]) -> tuple[bytes, bool]:
    """Compute one block: what :class:`geoseg.journal.BlockRecord` holds, packed, and whether it is complete.

    Args:
        job: What to do.
        index: Row and column in the grid of blocks.
    """
    from geoseg.mosaic import gdal_env

    clock = time.perf_counter()
    block = job.tiling.block(*index)
    with gdal_env():
        pixels, wanted, windows = _read(job, block)
    seconds = {"read": time.perf_counter() - clock}
    problems = [asdict(problem) for problem in pixels.problems] if pixels is not None else []
    if pixels is None or not windows:
        return _empty(job, block, problems)
    clock = time.perf_counter()
    predictor = predictor_of(job)
    from geoseg.blend import blend

    results = predictor.windows(pixels.values, pixels.valid, pixels.rect, windows, job.scaling)
    chance = blend(job.tiling, block.core, results)
    seconds["predict"] = time.perf_counter() - clock
    clock = time.perf_counter()
    mask = (chance >= job.threshold) & wanted
    grey = np.where(wanted, np.rint(chance * 255), 0).astype(np.uint8)
    from geoseg.polygonize import block_parts

    parts = block_parts(mask, grey, block.core).to_bytes()
    inner = block.core.slices(pixels.rect)
    thumbnail = shrunk(job.scaling.unit(pixels.values[:, *inner]), pixels.valid[inner], job.shrink)
    seconds["vectorise"] = time.perf_counter() - clock
    facts = {
        "windows": len(windows),
        "forward_pixels": sum(window.pixels.area for window in windows),
        "device": str(predictor.device),
        "precision": predictor.precision,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "problems": problems,
    }
    return BlockRecord(grey, wanted, mask, thumbnail, parts, facts).to_bytes(), not problems


def _read(job: Job, block: Block) -> tuple[Pixels | None, NDArray[np.bool_], list[Window]]:
    """Read what a block needs: pixels with halo, the wanted pixels of the core, the windows to run."""
    nothing = np.zeros(block.core.shape, dtype=bool)
    if not job.mosaic.has_data(block.core):
        return None, nothing, []
    asked = job.mosaic.inside_aoi(block.core)
    if not asked.any():
        return None, nothing, []
    pixels = job.mosaic.read_padded(_around(block.windows))
    wanted = asked & pixels.valid[block.core.slices(pixels.rect)]
    # A window without a wanted pixel under its weight adds nothing to any pixel that is written.
    windows = [window for window in block.windows if _touches(window, block.core, wanted)]
    return pixels, wanted, windows


def _touches(window: Window, core: Rect, wanted: NDArray[np.bool_]) -> bool:
    part = window.support & core
    return part is not None and bool(wanted[part.slices(core)].any())


def _around(windows: Iterable[Window]) -> Rect:
    rects = [window.pixels for window in windows]
    return Rect(
        min(rect.row0 for rect in rects),
        min(rect.col0 for rect in rects),
        max(rect.row1 for rect in rects),
        max(rect.col1 for rect in rects),
    )


def _empty(job: Job, block: Block, problems: list[dict[str, Any]]) -> tuple[bytes, bool]:
    from geoseg.polygonize import Parts

    shape = block.core.shape
    grey = np.zeros(shape, dtype=np.uint8)
    nothing = np.zeros(shape, dtype=bool)
    small = np.zeros((3, *(ceil_to(side, job.shrink) // job.shrink for side in shape)), dtype=np.uint8)
    parts = Parts.empty(block.core).to_bytes()
    facts: dict[str, Any] = {"empty": True, "windows": 0, "forward_pixels": 0, "problems": problems}
    return BlockRecord(grey, nothing, nothing, small, parts, facts).to_bytes(), not problems


def shrunk(unit: NDArray[np.float32], valid: NDArray[np.bool_], factor: int) -> NDArray[np.uint8]:
    """Return ``(3, H, W)`` values on [0, 1] averaged over ``factor`` × ``factor`` valid pixels, as 8 bit.

    Ragged right and bottom sides average over what is there; squares without data are black.
    """
    height, width = valid.shape
    pad = ((0, -height % factor), (0, -width % factor))
    weight = np.pad(valid, pad).astype(np.float32)
    values = np.pad(unit * valid, ((0, 0), *pad))
    rows, cols = weight.shape[0] // factor, weight.shape[1] // factor
    count = weight.reshape(rows, factor, cols, factor).sum((1, 3))
    total = values.reshape(3, rows, factor, cols, factor).sum((2, 4))
    return np.rint(255 * total / np.maximum(count, 1)).astype(np.uint8)


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
    from geoseg.checkpoint import load_model
    from geoseg.mosaic import open_mosaic
    from geoseg.predict import Scaling, building_class

    model = load_model(settings.model)
    card = model.card
    building_class(card)
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    mosaic, bad = open_mosaic(names, bands=settings.bands or _card_bands(card), gsd=settings.gsd, aoi=settings.aoi)
    tiling = _tiling(mosaic.shape, settings, model)
    threshold = card.threshold if settings.threshold is None else settings.threshold
    job = Job(
        mosaic=mosaic,
        tiling=tiling,
        model=str(model.path.absolute()),  # a cluster's workers may stand in another folder
        scaling=Scaling.of(card, str(mosaic.dtype), settings.range),
        threshold=threshold,
        device=settings.device,
        precision=settings.precision,
        tta=settings.tta,
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
        tuple(_notes(mosaic, card)),
        tuple({"path": str(problem.path), "message": problem.message} for problem in bad),
    )


def _card_bands(card: ModelCard) -> tuple[int, int, int] | None:
    # The usual order is left to the reader, which also knows palettes and single grey bands.
    return None if tuple(card.bands) == (1, 2, 3) else tuple(card.bands)  # type: ignore[return-value]


def _tiling(shape: tuple[int, int], settings: Settings, model: Model) -> Tiling:
    card = model.card
    taper = settings.taper or 0
    if isinstance(settings.halo, int):
        halo = settings.halo
    elif settings.halo == "auto" and card.halo is not None:
        halo = card.halo
        taper = card.taper if settings.taper is None else taper
    else:
        halo = model.reach.halo
    return Tiling(shape, settings.cell, halo, taper, ceil_to(settings.core, settings.cell))


def _shrink(shape: tuple[int, int], core: int) -> int:
    """Return the power of two, a divisor of the core, that brings the mosaic down to the overview's size."""
    factor = 1
    while max(shape) > OVERVIEW * factor and core % (2 * factor) == 0:
        factor *= 2
    return factor


def _notes(mosaic: Mosaic, card: ModelCard) -> Iterator[str]:
    ground, wanted = mosaic.ground_gsd, card.gsd_m
    if ground and wanted and not 1 / GSD_TOLERANCE <= ground / wanted <= GSD_TOLERANCE:
        yield (
            f"the imagery has {ground:.3g} m a pixel on the ground, model {card.name} was trained for {wanted:g} m: "
            f"--gsd {wanted:g} may find more and takes {(ground / wanted) ** 2:.2g} of the work"
        )
    if not mosaic.georeferenced:
        yield "the imagery has no georeference: lengths and areas are in pixels"


def _identity(mosaic: Mosaic, model: Model, job: Job) -> dict[str, Any]:
    import geoseg

    return {
        "geoseg": geoseg.__version__,
        **mosaic.identity(),
        "model": model.fingerprint,
        "tiling": {name: value for name, value in asdict(job.tiling).items() if name != "shape"},
        "scaling": asdict(job.scaling),
        "threshold": job.threshold,
        "precision": job.precision,
        "device": job.device.partition(":")[0],
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
        out: Folder for ``mask.tif``, ``probability.tif``, ``buildings.gpkg``, ``report.html``, ``run.json``.
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
    with shown, Journal(Path(out)) as journal:
        planned = plan(inputs, chosen)
        from geoseg import finish
        from geoseg.vector import check_format

        for name in chosen.format:
            check_format(name, planned.mosaic.wkt)
        shown.say(planned.headline)
        for note in planned.notes:
            shown.warn(note)
        for problem in planned.problems:
            shown.warn(f"{problem['path']}: {problem['message']}")
        reasons = journal.open(planned.identity, fresh=chosen.fresh)
        if reasons:
            shown.say("starting afresh: " + "; ".join(reasons))
        clock = time.perf_counter()
        computed = compute(planned, chosen, journal, shown)
        timings = {"blocks": time.perf_counter() - clock}
        done = finish.write_all(planned, chosen, journal, computed, shown, timings, started)
    return done


@dataclass(frozen=True)
class Computed:
    """What the stage of the blocks did."""

    computed: int
    """Blocks computed in this run."""
    resumed: int
    """Blocks found finished."""
    failed: dict[tuple[int, int], str]
    """Blocks that ended in an error, with its text."""
    workers: str
    """Where, in words."""


def compute(planned: Plan, settings: Settings, journal: Journal, progress: Progress) -> Computed:
    """Compute every block that the journal does not hold complete, storing each as it comes."""
    from geoseg.workers import open_workers

    tiling = planned.tiling
    finished = set(journal.blocks(complete=True))
    total, resumed = len(tiling), len(finished)
    if resumed == total:
        progress.say(f"all {total} blocks are there from an earlier run")
        return Computed(0, resumed, {}, "none needed")
    indices = (
        (row, col) for row in range(tiling.grid[0]) for col in range(tiling.grid[1]) if (row, col) not in finished
    )
    failed: dict[tuple[int, int], str] = {}
    done = 0
    with open_workers(scheduler=settings.scheduler, workers=settings.workers, device=settings.device) as workers:
        progress.stage("segmenting", total, done=resumed, pixels=True)
        job = _for_workers(planned.job, workers, settings)
        for index, outcome in workers.map(run_block, job, indices):
            if isinstance(outcome, Exception):
                failed[index] = _failure(outcome)
                progress.warn(f"block {index}: {failed[index]}")
                if done == 0 and len(failed) >= min(HOPELESS, total):
                    raise WorkerError(
                        f"none of the first {len(failed)} blocks could be computed, the last because: {failed[index]}"
                    ) from outcome
            else:
                journal.put(index, *outcome)
                done += 1
            progress.advance(1, tiling.core_of(*index).area)
        described = workers.description
    return Computed(done, resumed, failed, described)


def _for_workers(job: Job, workers: Workers, settings: Settings) -> Job:
    from dataclasses import replace

    # A local worker that is bound to one GPU sees it as the first and only one.
    device = job.device.partition(":")[0] if settings.workers != 0 else job.device
    return replace(job, threads=workers.threads, device=device)


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
