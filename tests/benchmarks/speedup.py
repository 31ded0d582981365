"""Two workers of one thread against one: the same cluster commands, network and imagery, in one run.

    python tests/benchmarks/speedup.py IMAGE... [--size PX] [--core PX] [--model NAME|PATH]

Starts `dask scheduler` and `dask worker --nthreads 1` processes and runs `geoseg.segment` with their scheduler on a
square cut out of the images' centre, in blocks of --core. Each cluster does a few blocks before it is timed, so that
every worker has loaded the network. Prints seconds from the first block to the last for one and for two workers, their
ratio, and whether both wrote the same bytes. A machine needs two free cores for this to say anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    """Print the two times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--core", type=int, default=192)
    parser.add_argument("--model")
    given = parser.parse_args()
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
            finally:
                cluster.stop()
            seconds[count] = result.run["timings"]["blocks"]
            results[count] = [(folder / f"out{count}" / file).read_bytes() for file in FILES]
            blocks = result.run["counts"]["blocks_computed"]
            print(f"{count} worker{'s' if count > 1 else ''}   {blocks} blocks   {seconds[count]:7.2f} s", flush=True)
    equal = "the same bytes" if results[1] == results[2] else "DIFFERENT results"
    print(f"speed-up   {seconds[1] / seconds[2]:.2f}   {equal}")
    sys.exit(results[1] != results[2])


if __name__ == "__main__":
    main()
