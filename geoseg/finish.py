"""From finished blocks to the files that a user opens: rasters, footprints, report, ``run.json``.

:mod:`geoseg.following` has written the rasters and joined the buildings by then, as the blocks came; a pass over the
joined buildings writes them. Neither holds more than a row of blocks and a batch of buildings.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geoseg
from geoseg.delivery import (
    POSTGIS,
    Database,
    destination_of,
    name_of,
    shown_settings,
    without_password,
    write_companions,
)
from geoseg.field import Field
from geoseg.following import Following
from geoseg.footprints import finish
from geoseg.gallery import Drawn, Tally
from geoseg.journal import Journal
from geoseg.processes import how_many, pool_for, shares
from geoseg.progress import Progress
from geoseg.report import write_report
from geoseg.segment import Blocks, Plan, Result, block_name, crs_name
from geoseg.settings import Settings
from geoseg.tiling import Tiling
from geoseg.vector import write_formats
from geoseg.vectorise import outline_rules
from geoseg.write import replacing

LIBRARIES = ("torch", "torchvision", "rasterio", "geopandas", "shapely", "dask", "numpy", "pyogrio")


def write_all(
    planned: Plan,
    settings: Settings,
    journal: Journal,
    computed: Blocks,
    progress: Progress,
    timings: dict[str, float],
    started: float,
    following: Following,
) -> Result:
    """Write every result of a run whose blocks are there; see :func:`geoseg.segment.segment`."""
    out = journal.out
    mosaic = planned.mosaic
    failures = [*planned.problems, *_block_failures(planned.tiling, computed)]
    allowed = how_many(computed.started)
    with ExitStack() as stack:
        clock = time.perf_counter()
        # Where workers have straightened outlines, little is left to be shared.
        blocks = 0 if computed.settled else len(planned.tiling) - computed.blank
        pool = stack.enter_context(pool_for(allowed, blocks))
        followed = following.result(progress)
        tally, spool = followed.tally, followed.spool
        timings["rasters"] = time.perf_counter() - clock
        failures += [*tally.problems.values(), *followed.lost]
        clock = time.perf_counter()
        progress.stage("writing footprints", 1)
        drawn = Drawn(planned, tally, out / "probability.tif")
        paths = [out / f"buildings.{name}" for name in settings.format]
        chances = None
        if settings.outline == "subpixel":
            chances = stack.enter_context(Field.open(out / "probability.tif", 255 * planned.job.threshold))
        rules = outline_rules(settings.min_area, settings.min_hole, planned.simplify_px, settings.square, chances)
        processes, size = shares(len(spool), allowed, spool.open())
        outlines = spool.batches(rules.beside_px, size)
        batches = finish(outlines, mosaic.transform, mosaic.wkt, rules, processes, pool)
        destination = destination_of(settings)
        database = None if destination is None else Database(destination, mosaic.wkt, name_of(planned, settings))
        written = write_formats(paths, drawn.watch(batches), mosaic.wkt, also=database)
        timings["footprints"] = time.perf_counter() - clock
        progress.advance()
    failures += database.failures if database else []
    run = _run_facts(planned, settings, computed, tally, timings, started)
    run["counts"] |= {"buildings": written.count, "building_area_m2": written.area_m2}
    run["failures"] = failures
    run["outputs"] = {
        "mask": "mask.tif",
        "probability": "probability.tif",
        **{f"buildings_{name}": f"buildings.{name}" for name in settings.format},
        "report": "report.html",
    }
    if database:
        run["postgis"] = database.facts
    write_companions(out, planned, settings, run)
    clock = time.perf_counter()
    overview, details = drawn.previews()
    write_report(out / "report.html", run, overview, details, drawn.areas)
    timings["report"] = time.perf_counter() - clock
    run["timings"] = {name: round(value, 3) for name, value in timings.items()}
    with replacing(out / "run.json") as temporary:
        temporary.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return Result(out, written.count, written.area_m2, tuple(failures), run)


def _block_failures(tiling: Tiling, computed: Blocks) -> Iterator[dict[str, str]]:
    for index, message in computed.failed.items():
        yield {"block": block_name(tiling, index), "message": message}


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
        "command": _command(settings),
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
            **shown_settings(settings),
            "threshold": job.threshold,
            "scaling": asdict(job.scaling),
            "simplify_px": planned.simplify_px,
        },
        "counts": {
            "blocks": len(tiling),
            "blocks_computed": computed.computed,
            "blocks_resumed": computed.resumed,
            "blocks_failed": len(computed.failed),
            "blocks_blank": computed.blank,
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
        "engine": ", ".join(sorted(tally.engines)) or None,
        "halo": tiling.halo,
        "taper": tiling.taper,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def _command(settings: Settings) -> str:
    if Path(sys.argv[0]).name != "geoseg":
        return ""
    return without_password(" ".join(["geoseg", *sys.argv[1:]]), settings)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def summary(result: Result) -> list[str]:
    """Return the closing lines of a run: buildings, area, speed, where the files are, what failed."""
    run, out = result.run, result.out
    vectors = [name for key, name in run["outputs"].items() if key.startswith("buildings_")]
    files = [*vectors, *([run["outputs"]["project"]] if "project" in run["outputs"] else []), "report.html"]
    lines = []
    if run["rate_px_s"]:
        computed = run["counts"]["blocks_computed"]
        seconds = run["timings"]["blocks"]
        lines.append(f"{computed} blocks in {seconds:.0f} s, {run['rate_px_s'] / 1e6:.2g} Mpx/s on {run['workers']}")
    lines.append(
        f"{thousands(result.buildings)} buildings, {area_text(result.area_m2, run['mosaic']['crs'])} · "
        + " · ".join(str(out / name) for name in files)
    )
    if "rows" in run.get("postgis", {}):
        rows, table = thousands(run["postgis"]["rows"]), run["postgis"]["table"]
        lines.append(f"{rows} rows in {run['postgis']['server']}, table {table}")
    lines += [f"{name}: {reason}" for name, reason in run.get("left_out", {}).items()]
    if result.failures:
        lines += [f"{item.get('path') or item.get('block')}: {item['message']}" for item in result.failures[:5]]
        if len(result.failures) > 5:
            lines.append(f"… and {len(result.failures) - 5} more")
        names = {item.get("path") or item.get("block") for item in result.failures}
        count = len(names - {POSTGIS})
        had = ["1 input had errors" if count == 1 else f"{count} inputs or blocks had errors"] if count else []
        had += [f"{POSTGIS} was not written"] if POSTGIS in names else []
        lines.append(f"{', and '.join(had)}: see {out / 'run.json'}; run the same command again to retry")
    return lines


def thousands(number: int) -> str:
    """Return a number with thin groups of thousands: 12 431."""
    return f"{number:,}".replace(",", "\u202f")


def area_text(area: float, crs: str) -> str:
    """Return an area in words, in square pixels where there is no CRS."""
    if crs == "no CRS":
        return f"{area:,.0f} px²".replace(",", "\u202f")
    return f"{area / 1e6:.2f} km²" if area >= 1e5 else f"{area:,.0f} m²".replace(",", "\u202f")
