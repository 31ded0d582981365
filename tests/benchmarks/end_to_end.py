"""``geoseg segment`` against the bare network on the same pixels, on the same machine, in one run.

    python tests/benchmarks/end_to_end.py IMAGE... [--model NAME|PATH] [-- further options of segment]

The floor is the network alone: eager torch, channels last, float32, 512 × 512 windows without overlap, pixels already
in memory. geoseg runs as its users run it, from a cold start to the last file written. Prints both times, their
ratio, and the largest resident memory of any one process of the run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from geoseg.checkpoint import load_model
from geoseg.mosaic import open_mosaic
from geoseg.predict import Predictor, Scaling
from geoseg.tiling import Rect

WINDOW = 512


def floor_seconds(images: list[str], model: str | None) -> tuple[float, int]:
    """Return seconds of the bare forward pass, and the pixels that went through."""
    loaded = load_model(model)
    mosaic, _ = open_mosaic(images)
    predictor = Predictor.of(loaded, device="cpu", precision="fp32")
    scaling = Scaling.of(loaded.card, str(mosaic.dtype), None)
    rows, cols = (side // WINDOW for side in mosaic.shape)
    valid = np.ones((1, WINDOW, WINDOW), dtype=bool)
    first = mosaic.read(Rect(0, 0, WINDOW, WINDOW)).values[None]
    predictor.probabilities(first, valid, scaling)
    seconds = 0.0
    for row in range(rows):
        for col in range(cols):
            rect = Rect(row * WINDOW, col * WINDOW, (row + 1) * WINDOW, (col + 1) * WINDOW)
            values = mosaic.read(rect).values[None]
            clock = time.perf_counter()
            predictor.probabilities(values, valid, scaling)
            seconds += time.perf_counter() - clock
    pixels = rows * cols * WINDOW * WINDOW
    # The ragged rest of the image costs what its pixels cost.
    return seconds * mosaic.extent.area / pixels, mosaic.extent.area


def watch(process: subprocess.Popen[bytes], peaks: dict[str, int]) -> None:
    """Keep the largest resident memory of the process and of its children."""
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            for kind, members in (("driver", [parent]), ("worker", parent.children(recursive=True))):
                for member in members:
                    peaks[kind] = max(peaks.get(kind, 0), member.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model")
    given, options = parser.parse_known_args()
    seconds, pixels = floor_seconds(given.images, given.model)
    print(f"floor     {seconds:7.1f} s   {pixels / seconds / 1e6:.3f} Mpx/s", flush=True)
    model = ["--model", given.model] if given.model else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "geoseg.cli", "segment", *given.images, "--out", str(Path(folder) / "out")]
        clock = time.perf_counter()
        process = subprocess.Popen([*command, *model, "--progress", "none", *(o for o in options if o != "--")])
        peaks: dict[str, int] = {}
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        process.wait()
        watcher.join()
        wall = time.perf_counter() - clock
    memory = ", ".join(f"{kind} {peak / 2**30:.2f} GiB" for kind, peak in peaks.items())
    print(f"geoseg    {wall:7.1f} s   {pixels / wall / 1e6:.3f} Mpx/s   {wall / seconds:.2f} × floor   {memory}")


if __name__ == "__main__":
    main()
