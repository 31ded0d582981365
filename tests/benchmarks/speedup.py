"""Two workers of one thread against one: the same cluster commands, network and imagery, in one run.

    python tests/benchmarks/speedup.py IMAGE... [--size PX] [--core PX] [--model NAME|PATH]

Starts `dask scheduler` and `dask worker --nthreads 1` processes and runs `geoseg.segment` with their scheduler on a
square cut out of the images' centre, in blocks of --core. Each cluster does a few blocks before it is timed, so that
every worker has loaded the network. Prints seconds from the first block to the last for one and for two workers, their
ratio, and whether both wrote the same bytes; and what each worker had of a core meanwhile: below 1.0 it waited, for
blocks or, on a machine that others use too, for the core. What the machine itself allows is printed first: the bare
network in two processes of one thread against one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import rasterio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from cluster import Cluster

from geoseg.mosaic import open_mosaic
from geoseg.segment import segment
from geoseg.tiling import Rect

FILES = ("mask.tif", "probability.tif", "buildings.gpkg")


def cut(images: list[str], size: int, path: Path) -> Path:
    """Write the square at the centre of the mosaic of some images; return the file."""
    mosaic, _ = open_mosaic(images)
    rows, cols = mosaic.shape
    row, col = max(0, (rows - size) // 2), max(0, (cols - size) // 2)
    rect = Rect(row, col, min(row + size, rows), min(col + size, cols))
    pixels = mosaic.read(rect)
    profile = {"driver": "GTiff", "dtype": str(mosaic.dtype), "crs": mosaic.wkt, "count": 3, "tiled": True}
    transform = mosaic.transform @ mosaic.transform.translation(col, row)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", height=rect.height, width=rect.width, transform=transform, **profile) as dataset,
    ):
        dataset.write(pixels.values)
        dataset.write_mask(pixels.valid)
    return path


def spent(cluster: Cluster) -> list[float]:
    """Return the CPU seconds that each worker has used."""
    times = [psutil.Process(worker.pid).cpu_times() for worker in cluster.workers]
    return [item.user + item.system for item in times]


BARE = """
import sys, time, torch
from geoseg.checkpoint import load_model
torch.set_num_threads(1)
net = load_model(sys.argv[1] or None).build().eval().to(memory_format=torch.channels_last)
pixels = torch.rand(1, 3, 448, 448).contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    net(pixels)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in range(8):
        net(pixels)
    print(time.perf_counter() - start, flush=True)
"""


def bare(count: int, model: str | None) -> float:
    """Return the seconds that some processes of one thread take for the same number of windows each."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BARE, model or ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def main() -> None:
    """Print the two times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--core", type=int, default=192)
    parser.add_argument("--model")
    given = parser.parse_args()
    one, two = bare(1, given.model), bare(2, given.model)
    print(f"the machine  bare network, twice the work in two processes: {2 * one / two:.2f} times as fast", flush=True)
    seconds, results = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crop = cut(given.images, given.size, folder / "crop.tif")
        warm = cut(given.images, 2 * given.core, folder / "warm.tif")
        for count in (1, 2):
            (folder / f"cluster{count}").mkdir()
            cluster = Cluster(folder / f"cluster{count}").start(count)
            try:
                for image in (warm, crop):
                    before = spent(cluster)
                    result = segment(
                        image,
                        folder / f"out{count}",
                        model=given.model,
                        scheduler=str(cluster.file),
                        core=given.core,
                        cell=given.core,
                        fresh=True,
                        progress="none",
                    )
                share = [(b - a) / result.run["timings"]["blocks"] for a, b in zip(before, spent(cluster), strict=True)]
            finally:
                cluster.stop()
            seconds[count] = result.run["timings"]["blocks"]
            results[count] = [(folder / f"out{count}" / file).read_bytes() for file in FILES]
            blocks = result.run["counts"]["blocks_computed"]
            shares = ", ".join(f"{value:.2f}" for value in share)
            named = f"{count} worker{'s' if count > 1 else ''}"
            print(f"{named}   {blocks} blocks   {seconds[count]:7.2f} s   {shares} of a core", flush=True)
    equal = "the same bytes" if results[1] == results[2] else "DIFFERENT results"
    print(f"speed-up   {seconds[1] / seconds[2]:.2f}   {equal}")
    sys.exit(results[1] != results[2])


if __name__ == "__main__":
    main()
