"""What a run would take: blocks, forward pixels, memory and time, measured on one window here and now."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoseg.block import predictor_of
from geoseg.segment import Plan, crs_name
from geoseg.segment import plan as make_plan
from geoseg.settings import CELL_WHOLE, Settings
from geoseg.tiling import Rect
from geoseg.workers import CORES_PER_WORKER, OVERLAP, OVERLAP_GPU, cores

if TYPE_CHECKING:
    from geoseg.mosaic import Mosaic

LONG_S = 3.0
"""A trial window that took longer than this need not be run again."""
SHARE_SAMPLES = 64
"""Blocks looked at for data when there are more than this many."""
TRIAL_ROWS = 768
"""Rows of a streamed window that the speed is measured on."""


def estimate(inputs: str | Path | Iterable[str | Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`geoseg.segment.segment` would do with the same arguments, as JSON-able facts.

    Keys: ``files``, ``width``, ``height``, ``crs``, ``ground_gsd_m``, ``model``, ``device``, ``precision``,
    ``blocks``, ``blocks_with_data``, ``halo``, ``taper``, ``window``, ``forward_pixels_per_pixel``,
    ``pixels_per_second`` (forward, measured), ``seconds`` (for the arithmetic of all blocks with data on this
    machine), ``memory_bytes`` (peak of one worker and its processes), ``notes``, ``problems``.
    """
    chosen = Settings.of(settings)
    planned = make_plan(inputs, chosen)
    tiling, mosaic = planned.tiling, planned.mosaic
    share = _share_with_data(planned)
    rate, device, precision, memory = _measure(planned)
    gpus = _gpus() if device.startswith("cuda") else 0
    workers = chosen.workers or gpus or max(1, cores() // CORES_PER_WORKER)
    at_once = min(max(cores() // workers, OVERLAP), OVERLAP_GPU) if gpus else OVERLAP
    # Each GPU adds its own speed; workers on the CPU share the cores that the one window had to itself.
    together = min(workers, gpus) if gpus else 1
    ratio = tiling.forward_ratio() * (8 if chosen.tta else 1)
    forward = tiling.extent.area * share * ratio
    side = min(tiling.cell + 2 * tiling.halo, max(tiling.padded.shape))
    return {
        "files": len(mosaic.sources),
        "width": mosaic.shape[1],
        "height": mosaic.shape[0],
        "crs": crs_name(mosaic),
        "ground_gsd_m": mosaic.ground_gsd,
        "model": planned.card.name,
        "device": device,
        "precision": precision,
        "workers": workers,
        "blocks": len(tiling),
        "blocks_with_data": round(len(tiling) * share),
        "core": tiling.core,
        "window": side,
        "halo": tiling.halo,
        "taper": tiling.taper,
        "forward_pixels_per_pixel": round(ratio, 3),
        "pixels_per_second": round(rate),
        "seconds": round(forward / (rate * together), 1),
        "memory_bytes": memory + at_once * _block_bytes(mosaic, tiling.core + 2 * tiling.halo),
        "headline": planned.headline,
        "notes": list(planned.notes),
        "problems": list(planned.problems),
    }


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _share_with_data(planned: Plan) -> float:
    """Return the share of blocks that have data, from an even sample of them."""
    tiling = planned.tiling
    rows, cols = tiling.grid
    total = rows * cols
    numbers = np.unique(np.linspace(0, total - 1, min(total, SHARE_SAMPLES)).astype(int))
    found = [planned.mosaic.has_data(tiling.core_of(n // cols, n % cols)) for n in numbers.tolist()]
    return sum(found) / len(found)


def _measure(planned: Plan) -> tuple[float, str, str, int]:
    """Run the model on one window; return forward pixels a second, device, precision, peak bytes."""
    tiling = planned.tiling
    predictor = predictor_of(planned.job)
    pixels = tiling.window(0, 0).pixels
    middle = tiling.window(*(min(1, (side - 1) // tiling.cell) for side in tiling.shape)).pixels
    rect = max(pixels, middle, key=lambda r: r.area)
    if tiling.cell > CELL_WHOLE:  # passes through in strips, of which some tell as much as all
        rect = Rect(rect.row0, rect.col0, min(rect.row1, rect.row0 + TRIAL_ROWS), rect.col1)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (1, 3, *rect.shape)).astype(planned.mosaic.dtype)
    valid = np.ones((1, *rect.shape), dtype=bool)
    seconds: list[float] = []
    # The first pass also pays for memory and code that later ones find ready; beside a long one that is nothing.
    while not seconds or (len(seconds) == 1 and seconds[0] < LONG_S):
        clock = time.perf_counter()
        predictor.probabilities(values, valid, planned.job.scaling)
        seconds.append(time.perf_counter() - clock)
    return rect.area * predictor.views / min(seconds), str(predictor.device), predictor.precision, _peak()


def _peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _block_bytes(mosaic: Mosaic, side: int) -> int:
    """Return the bytes of a block's arrays: pixels, validity, probability in float and in grey, mask."""
    area = Rect(0, 0, side, side).area
    return int(area * (3 * np.dtype(mosaic.dtype).itemsize + 1 + 4 + 1 + 1 + 3 * 4))


def describe(facts: Mapping[str, Any]) -> str:
    """Return an estimate in words, a line a fact."""
    seconds = facts["seconds"]
    span = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    lines = [
        facts["headline"],
        f"blocks             {facts['blocks']} of {facts['core']} px, about {facts['blocks_with_data']} with data",
        f"windows            {facts['window']} px, halo {facts['halo']}, taper {facts['taper']}",
        f"forward pixels     {facts['forward_pixels_per_pixel']:g} per pixel",
        f"speed              {facts['pixels_per_second'] / 1e6:.2g} forward Mpx/s ({facts['device']}, "
        f"{facts['precision']}; one window, measured now)",
        f"time               about {span} on {facts['workers']} such worker{'s' if facts['workers'] != 1 else ''} here",
        f"memory             about {facts['memory_bytes'] / 2**30:.1f} GiB a worker, whatever the size of the mosaic",
    ]
    lines += [f"note               {note}" for note in facts["notes"]]
    lines += [f"unusable           {bad['path']}: {bad['message']}" for bad in facts["problems"]]
    return "\n".join(lines)
