"""From finished blocks to the files that a user opens: rasters, footprints, report, ``run.json``.

One pass over the journal, row by row of blocks, feeds both rasters and the join; a second pass over the joined
buildings writes them. Neither holds more than a row of blocks and a batch of buildings.
"""

from __future__ import annotations

import heapq
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

import geoseg
from geoseg.aoi import apply_affine
from geoseg.areas import AreaHistogram
from geoseg.errors import InputError
from geoseg.footprints import Footprints, Rules, finish
from geoseg.join import Joiner
from geoseg.journal import BlockRecord, Journal
from geoseg.outline import simplify
from geoseg.picture import Preview
from geoseg.polygonize import Parts, block_parts
from geoseg.progress import Progress, open_progress
from geoseg.report import write_report
from geoseg.segment import Blocks, Plan, Result, block_name, crs_name
from geoseg.settings import Settings
from geoseg.spool import Outlines, Polygons, Spool
from geoseg.square import square_up
from geoseg.tiling import Rect, Tiling
from geoseg.vector import check_format, format_of, write_buildings, write_formats
from geoseg.write import replacing, writing_cog

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

SQUARE_PX = 1.5
"""Pixels that squaring up may move a wall at least: below, it cannot undo what the pixel grid did to corners."""
DETAIL = 512
"""Side in pixels of the report's full-resolution pictures."""
DETAILS = 4
"""How many of them."""
MOST_OUTLINES = 20_000
"""Outlines drawn over the report's overview; beyond, it shows the probability instead."""
LIBRARIES = ("torch", "torchvision", "rasterio", "geopandas", "shapely", "dask", "numpy", "pyogrio")


@dataclass
class Tally:
    """What the pass over the blocks counts and picks for the report, in bounded memory."""

    shrink: int
    """Pixels of the mosaic for one of the overview, along a side."""
    overview: NDArray[np.uint8]
    """``(3, h, w)`` imagery."""
    grey: NDArray[np.uint8]
    """``(h, w)`` probability, 255 = 1.0."""
    seen: NDArray[np.bool_]
    """``(h, w)``, True where there is data."""
    valid: int = 0
    building: int = 0
    forward: int = 0
    devices: set[str] = field(default_factory=set)
    precisions: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    problems: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    densest: list[tuple[int, Rect]] = field(default_factory=list)

    @classmethod
    def of(cls, tiling: Tiling, shrink: int) -> Tally:
        """Start with an empty overview of the right size."""
        height, width = (-(-side // shrink) for side in tiling.shape)
        return cls(
            shrink,
            np.zeros((3, height, width), np.uint8),
            np.zeros((height, width), np.uint8),
            np.zeros((height, width), bool),
        )

    def add(self, core: Rect, record: BlockRecord) -> None:
        """Count one block."""
        for problem in record.facts.get("problems", []):
            where = "" if problem["block"] is None else f"block {tuple(problem['block'])} "
            text = f"{where}unreadable ({problem['message']})"
            self.problems[problem["path"], text] = {"path": problem["path"], "message": text}
        if record.empty:
            return
        self.valid += int(record.valid.sum())
        self.building += int(record.mask.sum())
        self.forward += record.facts["forward_pixels"]
        self.devices.add(record.facts["device"])
        self.precisions.add(record.facts["precision"])
        for name, value in record.facts["seconds"].items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        row, col = core.row0 // self.shrink, core.col0 // self.shrink
        height, width = record.thumbnail.shape[1:]
        there = slice(row, row + height), slice(col, col + width)
        self.overview[:, *there] = record.thumbnail
        self.grey[there] = record.probability[:: self.shrink, :: self.shrink]
        self.seen[there] = record.valid[:: self.shrink, :: self.shrink]
        self._pick(core, record)

    def _pick(self, core: Rect, record: BlockRecord) -> None:
        """Keep the squares with the most outline in them: they show most."""
        edges = record.mask[:, 1:] != record.mask[:, :-1]
        for row in range(0, core.height, DETAIL):
            for col in range(0, core.width, DETAIL):
                square = (slice(row, row + DETAIL), slice(col, col + DETAIL))
                if not record.valid[square].mean() > 0.9:
                    continue
                rect = Rect(core.row0 + row, core.col0 + col, core.row0 + row + DETAIL, core.col0 + col + DETAIL)
                inside = rect & core
                if inside is not None:
                    entry = (int(edges[square].sum()), inside)
                    push = heapq.heappush if len(self.densest) < 8 * DETAILS else heapq.heappushpop
                    push(self.densest, entry)

    def details(self) -> list[Rect]:
        """Return the chosen squares, no two touching while there are others."""
        ranked = [rect for _, rect in sorted(self.densest, key=lambda entry: (-entry[0], entry[1]))]
        chosen: list[Rect] = []
        for rect in ranked:
            near = Rect(rect.row0 - DETAIL, rect.col0 - DETAIL, rect.row1 + DETAIL, rect.col1 + DETAIL)
            if len(chosen) < DETAILS and all(near & other is None for other in chosen):
                chosen.append(rect)
        return chosen or ranked[:1]


def write_all(
    planned: Plan,
    settings: Settings,
    journal: Journal,
    computed: Blocks,
    progress: Progress,
    timings: dict[str, float],
    started: float,
) -> Result:
    """Write every result of a run from its journal; see :func:`geoseg.segment.segment`."""
    out = journal.out
    mosaic = planned.mosaic
    failures = [*planned.problems, *_block_failures(planned.tiling, computed)]
    with Spool(journal.folder / "buildings.sqlite", mosaic.shape[1]) as spool:
        clock = time.perf_counter()
        tally, lost = _write_rasters(planned, journal, spool, progress, skip=set(computed.failed))
        timings["rasters"] = time.perf_counter() - clock
        failures += [*tally.problems.values(), *lost]
        clock = time.perf_counter()
        progress.stage("writing footprints", 1)
        drawn = Drawn(planned, tally)
        paths = [out / f"buildings.{name}" for name in settings.format]
        rules = outline_rules(settings.min_area, settings.min_hole, planned.simplify_px, settings.square)
        batches = finish(spool.batches(), mosaic.transform, mosaic.wkt, rules)
        written = write_formats(paths, drawn.watch(batches), mosaic.wkt)
        timings["footprints"] = time.perf_counter() - clock
        progress.advance()
    run = _run_facts(planned, settings, computed, tally, timings, started)
    run["counts"] |= {"buildings": written.count, "building_area_m2": written.area_m2}
    run["failures"] = failures
    run["outputs"] = {
        "mask": "mask.tif",
        "probability": "probability.tif",
        **{f"buildings_{name}": f"buildings.{name}" for name in settings.format},
        "report": "report.html",
    }
    clock = time.perf_counter()
    overview, details = drawn.previews(out / "probability.tif")
    write_report(out / "report.html", run, overview, details, drawn.areas)
    timings["report"] = time.perf_counter() - clock
    run["timings"] = {name: round(value, 3) for name, value in timings.items()}
    with replacing(out / "run.json") as temporary:
        temporary.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return Result(out, written.count, written.area_m2, tuple(failures), run)


def outline_rules(min_area: float, min_hole: float, simplify_px: float, square: bool = False) -> Rules:
    """Return what is left out and how outlines are straightened, from the options' values."""

    def straighten(polygons: Polygons) -> Polygons:
        straight = simplify(polygons, simplify_px) if simplify_px > 0 else polygons
        return square_up(straight, max(simplify_px, SQUARE_PX)) if square else straight

    return Rules(min_area, min_hole, straighten if simplify_px > 0 or square else None)


def _block_failures(tiling: Tiling, computed: Blocks) -> Iterator[dict[str, str]]:
    for index, message in computed.failed.items():
        yield {"block": block_name(tiling, index), "message": message}


def _write_rasters(
    planned: Plan, journal: Journal, spool: Spool, progress: Progress, *, skip: set[tuple[int, int]]
) -> tuple[Tally, list[dict[str, str]]]:
    """Write mask and probability and join the buildings; return counts and blocks that cannot be read."""
    tiling, geobox, out = planned.tiling, planned.mosaic.geobox, journal.out
    tally = Tally.of(tiling, planned.job.shrink)
    joiner = Joiner(tiling)
    lost: list[dict[str, str]] = []
    progress.stage("writing rasters", len(tiling), pixels=True)
    with (
        writing_cog(out / "mask.tif", geobox, "mask") as mask,
        writing_cog(out / "probability.tif", geobox, "probability") as probability,
    ):
        for row in range(tiling.grid[0]):
            for col in range(tiling.grid[1]):
                core = tiling.core_of(row, col)
                record = journal.get((row, col))
                progress.advance(1, core.area)
                if record is None:
                    if (row, col) not in skip:
                        lost.append(
                            {"block": block_name(tiling, (row, col)), "message": "its stored result does not read"}
                        )
                    continue
                tally.add(core, record)
                if record.empty:
                    continue
                mask.write(core, record.mask, record.valid)
                probability.write(core, record.probability, record.valid)
                spool.add(joiner.add(row, col, core, Parts.from_bytes(record.parts)))
        spool.add(joiner.finish())
    return tally, lost


class Drawn:
    """Watches the finished footprints go by and keeps what the report draws, in bounded memory."""

    def __init__(self, planned: Plan, tally: Tally) -> None:
        """Choose the report's pictures from what the pass over the blocks saw."""
        self._planned, self._tally = planned, tally
        self._rects = tally.details()
        self._inverse = ~planned.mosaic.transform
        self._boxes = [shapely.box(r.col0, r.row0, r.col1, r.row1) for r in self._rects]
        self._near: list[list[shapely.Polygon]] = [[] for _ in self._rects]
        self._all: list[shapely.Polygon] = []
        self._count = 0
        self.areas = AreaHistogram()

    def watch(self, batches: Iterable[Footprints]) -> Iterator[Footprints]:
        """Yield the batches unchanged."""
        for batch in batches:
            self.areas.add(batch.area_m2)
            self._count += len(batch)
            pixels = _in_pixels(batch.polygons, self._inverse)
            for kept, box in zip(self._near, self._boxes, strict=True):
                kept.extend(pixels[shapely.intersects(pixels, box)])
            if self._count <= MOST_OUTLINES:
                small = Affine.scale(1 / self._tally.shrink)
                self._all.extend(shapely.simplify(_in_pixels(pixels, small), 0.3))
            else:
                self._all.clear()
            yield batch

    def previews(self, probability: Path) -> tuple[Preview, list[Preview]]:
        """Return the overview and the details."""
        tally = self._tally
        rows, cols = self._planned.mosaic.shape
        about = "every building" if self._all or not self._count else "probability: too many buildings to draw"
        overview = Preview(
            tally.overview, tally.seen, self._all, f"The whole mosaic, {cols} × {rows} pixels: {about}", tally.grey
        )
        return overview, [self._detail(i, probability) for i in range(len(self._rects))]

    def _detail(self, number: int, probability: Path) -> Preview:
        import rasterio

        rect = self._rects[number]
        read = self._planned.mosaic.read(rect)
        rgb = np.rint(255 * self._planned.job.scaling.unit(read.values)).astype(np.uint8)
        with rasterio.open(probability) as raster:
            grey = raster.read(1, window=rect.window)
        shifted = _in_pixels(np.array(self._near[number], dtype=object), Affine.translation(-rect.col0, -rect.row0))
        return Preview(
            rgb,
            read.valid,
            list(shifted),
            f"Rows {rect.row0}–{rect.row1 - 1}, columns {rect.col0}–{rect.col1 - 1}, full resolution",
            grey,
        )


def _in_pixels(polygons: NDArray[np.object_], affine: Affine) -> NDArray[np.object_]:
    moved: NDArray[np.object_] = shapely.transform(
        polygons, lambda xy: np.column_stack(apply_affine(affine, xy[:, 0], xy[:, 1]))
    )
    return moved


def _run_facts(
    planned: Plan,
    settings: Settings,
    computed: Blocks,
    tally: Tally,
    timings: dict[str, float],
    started: float,
) -> dict[str, Any]:
    """Return the content of ``run.json`` but for what the writing of footprints adds."""
    mosaic, tiling, job = planned.mosaic, planned.tiling, planned.job
    identity = planned.identity
    return {
        "geoseg": geoseg.__version__,
        "command": " ".join(["geoseg", *sys.argv[1:]]) if Path(sys.argv[0]).name == "geoseg" else "",
        "started": _iso(started),
        "finished": _iso(time.time()),
        "inputs": [{"path": source.name, "size": source.size} for source in mosaic.sources],
        "mosaic": {
            "width": mosaic.shape[1],
            "height": mosaic.shape[0],
            "crs": crs_name(mosaic),
            "transform": list(mosaic.transform)[:6],
            "pixel_size": abs(mosaic.transform.a) or abs(mosaic.transform.b),
            "ground_gsd_m": mosaic.ground_gsd,
            "data_share": tally.valid / tiling.extent.area,
        },
        "model": {**json.loads(planned.card.to_json()), "sha256": identity["model"]},
        "settings": {
            **asdict(settings),
            "threshold": job.threshold,
            "scaling": asdict(job.scaling),
            "simplify_px": planned.simplify_px,
        },
        "counts": {
            "blocks": len(tiling),
            "blocks_computed": computed.computed,
            "blocks_resumed": computed.resumed,
            "blocks_failed": len(computed.failed),
            "valid_pixels": tally.valid,
            "building_pixels": tally.building,
            "forward_pixels": tally.forward,
        },
        "timings": {name: round(value, 3) for name, value in timings.items()},
        "worker_seconds": {name: round(value, 3) for name, value in sorted(tally.seconds.items())},
        "rate_px_s": round(computed.pixels / timings["blocks"]) if computed.pixels else None,
        "workers": computed.workers,
        "device": ", ".join(sorted(tally.devices)) or None,
        "precision": ", ".join(sorted(tally.precisions)) or None,
        "halo": tiling.halo,
        "taper": tiling.taper,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def summary(result: Result) -> list[str]:
    """Return the closing lines of a run: buildings, area, speed, where the files are, what failed."""
    run, out = result.run, result.out
    vectors = [name for key, name in run["outputs"].items() if key.startswith("buildings_")]
    files = [*vectors, "report.html"]
    lines = []
    if run["rate_px_s"]:
        computed = run["counts"]["blocks_computed"]
        seconds = run["timings"]["blocks"]
        lines.append(f"{computed} blocks in {seconds:.0f} s, {run['rate_px_s'] / 1e6:.2g} Mpx/s on {run['workers']}")
    lines.append(
        f"{thousands(result.buildings)} buildings, {area_text(result.area_m2, run['mosaic']['crs'])} · "
        + " · ".join(str(out / name) for name in files)
    )
    if result.failures:
        lines += [f"{item.get('path') or item.get('block')}: {item['message']}" for item in result.failures[:5]]
        if len(result.failures) > 5:
            lines.append(f"… and {len(result.failures) - 5} more")
        count = len({item.get("path") or item.get("block") for item in result.failures})
        had = "1 input had errors" if count == 1 else f"{count} inputs or blocks had errors"
        lines.append(f"{had}: see {out / 'run.json'}; run the same command again to retry")
    return lines


def thousands(number: int) -> str:
    """Return a number with thin groups of thousands: 12 431."""
    return f"{number:,}".replace(",", "\u202f")


def area_text(area: float, crs: str) -> str:
    """Return an area in words, in square pixels where there is no CRS."""
    if crs == "no CRS":
        return f"{area:,.0f} px²".replace(",", "\u202f")
    return f"{area / 1e6:.2f} km²" if area >= 1e5 else f"{area:,.0f} m²".replace(",", "\u202f")


def polygonize_file(
    raster: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    min_area: float = 4.0,
    min_hole: float = 2.0,
    simplify: float | None = None,
    square: bool = False,
    progress: Progress | str = "none",
) -> int:
    """Turn a mask or probability raster into building polygons.

    A raster of floats, or of integers with a scale in its metadata (as ``probability.tif`` has), is a probability;
    so is any other when a threshold is given (its type's largest value is 1.0 then). Otherwise everything that
    is not zero is building.

    Args:
        raster: One band is read, the first; pixels without data are no building.
        out: The vector file; its ending chooses the format.
        threshold: Probability from which a pixel is building; 0.5 when the raster is a probability.
        min_area: Square metres below which a building is left out.
        min_hole: Square metres below which a hole is closed.
        simplify: Metres that outlines may move from the pixels' edges; None for one pixel.
        square: Turn walls that are nearly parallel or at right angles until they are.
        progress: As for :func:`geoseg.segment.segment`.

    Returns:
        Number of buildings written.

    Raises:
        InputError: The raster cannot be read.
        SettingError: A setting is wrong.
        OutputError: The file cannot be written.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    from geoseg.mosaic import open_mosaic

    # One band is read three times by the mosaic, which knows nodata, masks, georeference and broken files.
    checked = Settings(threshold=threshold, min_area=min_area, min_hole=min_hole, simplify=simplify)
    shown = progress if isinstance(progress, Progress) else open_progress(progress)
    mosaic, problems = open_mosaic([raster], bands=(1, 1, 1))
    if problems:
        raise InputError(str(problems[0]))
    check_format(format_of(out), mosaic.wkt)
    pixel = mosaic.ground_gsd or 1.0
    tolerance = 1.0 if checked.simplify is None else checked.simplify / pixel
    tiling = Tiling(mosaic.shape, 1024, 0, 0, 2048)
    target = Path(out)
    try:
        with rasterio.open(raster) as dataset:
            scale = _probability_scale(dataset, threshold)
    except RasterioIOError as error:
        raise InputError(f"{raster}: cannot be read ({error})") from error
    joiner = Joiner(tiling)
    with shown, Spool(target.with_name(f".{target.name}.sqlite"), mosaic.shape[1]) as spool:
        shown.stage("vectorising", len(tiling), pixels=True)
        for block in tiling:
            read = mosaic.read(block.core)
            if read.problems:
                raise InputError(str(read.problems[0]))
            values = read.values[0]
            if scale is None:
                mask = (values != 0) & read.valid
                grey = np.where(mask, 255, 0).astype(np.uint8)
            else:
                chance = values.astype(np.float64) * scale
                # Half a rounding error of the scale: a stored 255 · 0.4 must count as 0.4.
                mask = (chance >= (threshold or 0.5) - 1e-9) & read.valid
                grey = np.rint(np.clip(np.nan_to_num(chance), 0, 1) * 255).astype(np.uint8)
            parts = block_parts(mask, grey, block.core)
            spool.add(joiner.add(*block.index, block.core, parts))
            shown.advance(1, block.core.area)
        spool.add(joiner.finish())
        rules = outline_rules(min_area, min_hole, tolerance, square)
        batches: Iterator[Footprints] = finish(spool.batches(), mosaic.transform, mosaic.wkt, rules)
        return write_buildings(target, batches, mosaic.wkt).count


def _probability_scale(dataset: DatasetReader, threshold: float | None) -> float | None:
    """Return what a stored value is multiplied with to be a probability, None for a mask."""
    scale, dtype = dataset.scales[0], np.dtype(dataset.dtypes[0])
    if scale != 1.0 or dtype.kind == "f":
        return float(scale)
    return None if threshold is None else 1.0 / float(np.iinfo(dtype).max)


__all__ = ["Outlines", "outline_rules", "polygonize_file", "summary", "write_all"]
