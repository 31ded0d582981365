"""What everything but the network costs: ``geoseg segment`` with a stand-in for the network, stage by stage.

    python tests/benchmarks/stages.py [--size PX] [--seed N] [--network NS] [--format gpkg]...

The imagery is one tile of a synthetic city (5000 × 5000 pixels hold about 4400 buildings), the probability its truth,
blurred, with smooth noise on it so that outlines are as ragged as a network's. All else is the code that users run, in
one process: planning, reading, blending, parts, journal, rasters, join, outlines, files, report.

First the stages one by one, in nanoseconds of one core per pixel (libraries are held to one thread, so that what they
do counts where it was asked for), and their share of the whole; the same mask through ``rasterio.features.shapes`` and
``scipy.ndimage.label`` in the same run. Then the whole once more as it is, with threads: wall time and processor time
per pixel, and the share of a run whose network takes ``--network`` nanoseconds of wall time a pixel.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import torch
from numpy.typing import NDArray
from scipy import ndimage

import geoseg.areas
import geoseg.blend
import geoseg.block
import geoseg.cog
import geoseg.delivery
import geoseg.finish
import geoseg.following
import geoseg.footprints
import geoseg.gallery
import geoseg.join
import geoseg.journal
import geoseg.polygonize
import geoseg.segment
import geoseg.sights
import geoseg.spool
import geoseg.write
from geoseg.progress import Progress
from geoseg.sample import write_sample
from geoseg.tiling import Rect, Window
from geoseg.workers import cores

BLUR, NOISE, SMOOTH = 1.2, 0.35, 1.5
"""Pixels of blur, standard deviation of the noise on the logit, and its smoothness in pixels."""

STAGES: tuple[tuple[str, object, str], ...] = (
    ("plan", geoseg.segment, "plan"),
    ("read", geoseg.block, "_read"),
    ("blend", geoseg.blend, "blend"),
    ("block: mask, grey", geoseg.block, "run_block"),
    ("parts", geoseg.polygonize, "block_parts"),
    ("parts: bytes", geoseg.polygonize.Parts, "to_bytes"),
    ("parts: bytes", geoseg.polygonize.Parts, "from_bytes"),
    ("overview's pixels", geoseg.sights, "shrunk"),
    ("record: pack", geoseg.journal.BlockRecord, "to_bytes"),
    ("record: unpack", geoseg.journal.BlockRecord, "from_bytes"),
    ("journal", geoseg.journal.Journal, "put"),
    ("journal", geoseg.journal.Journal, "get"),
    ("tally", geoseg.gallery.Tally, "add"),
    ("join", geoseg.join.Joiner, "add"),
    ("join", geoseg.join.Joiner, "finish"),
    ("spool", geoseg.spool.Spool, "add"),
    ("spool", geoseg.spool.Spool, "batches"),
    ("rasters: tiles", geoseg.block, "tiles_of"),
    ("rasters: file", geoseg.write.CogWriter, "add"),
    ("rasters: file", geoseg.cog.Cog, "finish"),
    ("rasters: rest", geoseg.following.Following, "_follow"),
    ("outlines", geoseg.footprints, "_simplified"),
    ("footprints: filter", geoseg.footprints, "_filtered"),
    ("footprints: rest", geoseg.footprints, "_finished"),
    ("report: outlines", geoseg.gallery.Drawn, "watch"),
    ("vector files", geoseg.finish, "write_formats"),
    ("report: pictures", geoseg.gallery.Drawn, "previews"),
    ("report: page", geoseg.finish, "write_report"),
    ("project, STAC", geoseg.finish, "write_companions"),
    ("the rest", geoseg.segment, "segment"),
)
"""What is timed, where it lies, and its name there; time is counted for the innermost."""


class Clocks:
    """Processor time of the calling threads, counted for the innermost stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._here = threading.local()
        self._lock = threading.Lock()

    def _switch(self, label: str | None) -> None:
        """Count what passed for the stage on top; put ``label`` on top, or take the top away."""
        here, now = self._here, time.thread_time()
        stack = here.__dict__.setdefault("stack", [])
        if stack:
            with self._lock:
                self.seconds[stack[-1]] += now - here.since
        if label is None:
            stack.pop()
        else:
            stack.append(label)
        here.since = now

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, or generator function, with its time counted."""

        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            inner = function(*args, **kwargs)
            while True:
                self._switch(label)
                try:
                    item = next(inner)
                except StopIteration:
                    return
                finally:
                    self._switch(None)
                yield item

        def plain(*args: Any, **kwargs: Any) -> Any:
            self._switch(label)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(None)

        return functools.wraps(function)(generator if inspect.isgeneratorfunction(function) else plain)

    def watch(self) -> Callable[[], None]:
        """Put clocks on all stages; return what takes them off."""
        before = []
        for label, home, name in STAGES:
            found = inspect.getattr_static(home, name)
            before.append((home, name, found))
            method = isinstance(found, classmethod)
            clocked = self.timed(label, found.__func__ if method else found)
            setattr(home, name, classmethod(clocked) if method else clocked)

        def undo() -> None:
            for home, name, found in before:
                setattr(home, name, found)

        return undo


class StandIn:
    """Answers as a predictor does, from an array."""

    device, precision, engine, views = torch.device("cpu"), "fp32", "stand-in", 1

    def __init__(self, chance: NDArray[np.float32]) -> None:
        # As the network's answer, reflected at the right and bottom to the next multiple of 32.
        height, width = chance.shape
        self._chance = np.pad(chance, ((0, -height % 32), (0, -width % 32)), mode="reflect")
        self.seconds = 0.0

    def windows(
        self,
        values: object,
        valid: object,
        origin: Rect,
        windows: Iterable[Window],
        scaling: object,
        told: Callable[[int], None] | None = None,
    ) -> list[tuple[Window, NDArray[np.float32]]]:
        """Return every window with its part of the array."""
        clock = time.perf_counter()
        answers = [(w, np.ascontiguousarray(self._chance[w.pixels.slices(Rect(0, 0, 1, 1))])) for w in windows]
        self.seconds += time.perf_counter() - clock
        return answers


def probability(truth: Path, seed: int = 0) -> NDArray[np.float32]:
    """Return the truth blurred, with smooth noise on its logit."""
    with rasterio.open(truth) as file:
        mask = file.read(1) > 0
    soft = np.clip(ndimage.gaussian_filter(mask.astype(np.float32), BLUR), 1e-3, 1 - 1e-3)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(mask.shape, np.float32), SMOOTH)
    logit = np.log(soft / (1 - soft)) + NOISE * noise / noise.std()
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


def peers(mask: NDArray[np.bool_]) -> None:
    """Print what others take for the same mask."""
    area = mask.size
    grey = mask.astype(np.uint8)
    clock = time.process_time()
    found = sum(1 for _ in rasterio.features.shapes(grey, mask))
    line("rasterio.features.shapes", (time.process_time() - clock) / area, f"{found} polygons, pixel edges")
    clock = time.process_time()
    _, count = ndimage.label(mask)
    line("scipy.ndimage.label", (time.process_time() - clock) / area, f"{count} components, no outlines")


def line(name: str, seconds: float, more: str = "") -> None:
    """Print a line of the table."""
    print(f"  {name:26} {seconds * 1e9:8.2f}  {more}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", type=float, default=2200.0)
    parser.add_argument("--format", action="append")
    parser.add_argument("--city", type=Path, help="keep the city in this folder, or take the one that is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        city = given.city or Path(folder) / "city"
        if not city.exists():
            write_sample(city, size=given.size, grid=(1, 1), seed=given.seed)
        chance = probability(city / "truth" / "tile_0_0.tif")
        images = [str(city / "images")]
        stand_in = StandIn(chance)
        geoseg.block.predictor_of = lambda job: stand_in  # type: ignore[assignment, return-value]
        settings: dict[str, Any] = {"workers": 0, "progress": Progress(), "threshold": 0.5}
        settings["format"] = tuple(given.format or ["gpkg"])
        threads, geoseg.write.THREADS = geoseg.write.THREADS, 1
        clocks = Clocks()
        undo = clocks.watch()
        result = geoseg.segment.segment(images, Path(folder) / "one", **settings)
        undo()
        geoseg.write.THREADS = threads
        area = chance.size
        network = stand_in.seconds
        total = sum(clocks.seconds.values()) - network
        clocks.seconds["block: mask, grey"] -= network
        print(f"{area / 1e6:.1f} Mpx, {result.buildings} buildings; ns of one core per pixel, share")
        for name in dict.fromkeys(label for label, _, _ in STAGES):
            line(name, clocks.seconds[name] / area, f"{clocks.seconds[name] / total:6.1%}")
        line("all", total / area)
        print("the same mask, others")
        peers(chance >= 0.5)
        print("as it runs, with threads and processes")
        geoseg.finish.how_many = lambda started: cores()
        stand_in.seconds = 0.0
        wall, used = time.perf_counter(), time.process_time()
        geoseg.segment.segment(images, Path(folder) / "two", **settings)
        wall, used = time.perf_counter() - wall, time.process_time() - used
        wall, used = wall - stand_in.seconds, used - stand_in.seconds
        line("processor", used / area)
        line("wall", wall / area, f"{wall / area * 1e9 / given.network:.1%} of a network of {given.network:g} ns")


if __name__ == "__main__":
    sys.exit(main())
