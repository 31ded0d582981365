"""What is left to the one process that all blocks come to, when workers have done their part.

    python tests/benchmarks/driver.py [--grid N] [--size PX] [--seed N] [--city FOLDER]

A synthetic city of ``--grid`` × ``--grid`` tiles goes through ``geoseg segment`` with a stand-in for the network (that
of stages.py), once with outlines straightened by workers, as on a cluster or beside a GPU, and once without. Then each
is run again: all blocks are there, and what the run takes is the driver's share, from reading the records to the
report. Nanoseconds of one core and of wall time per pixel, the pixels a second that the driver keeps up with, and
whether all files but the report are the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from stages import StandIn, probability

import geoseg.block
import geoseg.segment
from geoseg.progress import Progress
from geoseg.sample import write_sample

FILES = ("mask.tif", "probability.tif", "buildings.gpkg")


def whole(city: Path, grid: int) -> NDArray[np.float32]:
    """Return the stand-in's probability for the whole city, in the place of its mosaic."""
    names = [[city / "truth" / f"tile_{row}_{col}.tif" for col in range(grid)] for row in range(grid)]
    return np.block([[probability(name, seed=row * grid + col) for col, name in enumerate(line)] for row, line in
                     enumerate(names)])  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--city", type=Path, help="keep the city in this folder, or take the one that is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        city = given.city or folder / "city"
        if not city.exists():
            write_sample(city, size=given.size, grid=(given.grid, given.grid), seed=given.seed)
        with rasterio.open(next((city / "images").glob("*.tif"))) as tile:
            area = tile.width * tile.height * given.grid**2
        stand_in = StandIn(whole(city, given.grid))
        geoseg.block.predictor_of = lambda job: stand_in  # type: ignore[assignment, return-value]
        settings: dict[str, Any] = {"workers": 0, "progress": Progress(), "threshold": 0.5}
        for label, beside in (("outlines by workers", True), ("outlines by the driver", False)):
            geoseg.segment.may_have_gpu = lambda beside=beside: beside
            out = folder / ("workers" if beside else "driver")
            clock = time.perf_counter()
            geoseg.segment.segment([str(city / "images")], out, **settings)
            first = time.perf_counter() - clock
            clock, used = time.perf_counter(), time.process_time()
            result = geoseg.segment.segment([str(city / "images")], out, **settings)
            wall, used = time.perf_counter() - clock, time.process_time() - used
            print(
                f"{label}: {result.buildings} buildings on {area / 1e6:.0f} Mpx; with the workers' part {first:.0f} s"
            )
            print(f"  {used / area * 1e9:.1f} ns of one core per pixel, {wall / area * 1e9:.1f} of wall time,", end=" ")
            print(
                f"{area / wall / 1e6:.0f} Mpx/s, {wall * 25e6 / area:.3f} s for 25 Mpx; {result.run['timings']}",
                flush=True,
            )
        for file in FILES:
            same = (folder / "workers" / file).read_bytes() == (folder / "driver" / file).read_bytes()
            print(f"  {file:24} {'the same' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    sys.exit(main())
