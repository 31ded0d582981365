"""``geoseg segment`` against the bare network and MONAI's sliding window, on the same pixels, in one run.

    python tests/benchmarks/end_to_end.py IMAGE... [--model NAME|PATH] [--engines native,torch] [--monai FOLDER]
        [-- further options of segment]

The floor is the network alone: eager torch, channels last, float32, 512 × 512 windows without overlap, pixels already
in memory; some windows are taken before and some after everything else, and count for all. geoseg runs as its users run
it, from a cold start to the last file written. ``--monai`` names a folder that MONAI was installed into (``pip install
--no-deps --target``): its sliding window of 512 pixels with a quarter of overlap and Gaussian weights, then
rasterio's ``shapes``, on at most 2048 × 2048 pixels of the image, which are in memory already.

Prints time as a multiple of the floor's, pixels forwarded per pixel, the largest resident memory of any process, and
the largest difference of the probability, in grey levels of 1/255, from one pass over the whole image (on its first
1024 × 1024 pixels).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import rasterio.features
import torch
from numpy.typing import NDArray

from geoseg.blend import blend
from geoseg.checkpoint import Model, load_model
from geoseg.mosaic import Mosaic, open_mosaic
from geoseg.predict import Predictor, Scaling
from geoseg.settings import CELL
from geoseg.tiling import Rect, Tiling

WINDOW = 512
SIDE = 2048
"""Of what MONAI is given."""
CROP = 1024
"""Of what exactness is measured on."""
CUTS = 256
"""Cells on the crop: windows of the default size would be the whole image."""


class Floor:
    """The bare network, timed window by window."""

    def __init__(self, model: Model, mosaic: Mosaic) -> None:
        self._net = model.build().to(memory_format=torch.channels_last)
        self._scaling = Scaling.of(model.card, str(mosaic.dtype), None)
        self._mosaic = mosaic
        self.seconds: list[float] = []

    def run(self, windows: int) -> None:
        """Time some windows along the diagonal."""
        last = min(self._mosaic.shape) - WINDOW
        for start in np.linspace(0, last, windows + 1).astype(int).tolist():
            values = self._mosaic.read(Rect(start, start, start + WINDOW, start + WINDOW)).values
            pixels = normalised(values, self._scaling)
            clock = time.perf_counter()
            with torch.inference_mode():
                self._net(pixels).sigmoid()
            if start:  # the first pays for memory that others find ready
                self.seconds.append(time.perf_counter() - clock)

    @property
    def per_pixel(self) -> float:
        """Seconds for a pixel."""
        return median(self.seconds) / WINDOW**2


def normalised(values: NDArray[np.generic], scaling: Scaling) -> torch.Tensor:
    """Return ``(1, 3, H, W)`` as the network takes it."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (scaling.mean, scaling.std))
    pixels = torch.from_numpy((scaling.unit(values) - mean) / std)[None]
    return pixels.contiguous(memory_format=torch.channels_last)


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


def geoseg(images: list[str], model: str | None, engine: str, options: list[str]) -> tuple[float, float, str]:
    """Run the command; return seconds, forward pixels a pixel, and peak memory in words."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "geoseg", "segment", *images, "--out", str(out), "--engine", engine]
        command += [*(["--model", model] if model else []), "--progress", "none", *options]
        clock = time.perf_counter()
        process = subprocess.Popen(command)
        peaks: dict[str, int] = {}
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        process.wait()
        wall = time.perf_counter() - clock
        watcher.join()
        counts = json.loads((out / "run.json").read_text())
    memory = ", ".join(f"{kind} {peak / 2**30:.2f} GiB" for kind, peak in peaks.items())
    print(f"  stages of {engine}: {counts['timings']}, workers' {counts['worker_seconds']}", flush=True)
    return wall, counts["counts"]["forward_pixels"] / counts["counts"]["valid_pixels"], memory


def exactness(model: Model, mosaic: Mosaic, engine: str) -> tuple[float, float]:
    """Return the largest difference from one pass, in grey levels: in one strip-wise pass, and with seams."""
    scaling = Scaling.of(model.card, str(mosaic.dtype), None)
    rows, cols = (min(side // 32 * 32, CROP) for side in mosaic.shape)
    rect = Rect(0, 0, rows, cols)
    read = mosaic.read(rect)
    with torch.inference_mode():
        pixels = normalised(read.values, scaling).masked_fill_(torch.from_numpy(~read.valid), 0)
        wanted = model.build().to(memory_format=torch.channels_last)(pixels)[0, 0].sigmoid()
    predictor = Predictor.of(model, device="cpu", precision="fp32", engine=engine)
    differences = []
    for cell in (CELL, CUTS):
        tiling = Tiling((rows, cols), cell, model.card.halo or model.reach.halo, 0, max(CELL, cell))
        windows = predictor.windows(read.values, read.valid, rect, tiling.windows(rect), scaling)
        found = blend(tiling, rect, windows)
        differences.append(float((found - wanted).abs().max()) * 255)
    return differences[0], differences[1]


def monai(folder: str, model: Model, mosaic: Mosaic) -> tuple[float, int]:
    """Return seconds and pixels of MONAI's sliding window and rasterio's shapes."""
    sys.path.insert(0, folder)
    from monai.inferers import sliding_window_inference

    scaling = Scaling.of(model.card, str(mosaic.dtype), None)
    rows, cols = (min(side, SIDE) for side in mosaic.shape)
    pixels = normalised(mosaic.read(Rect(0, 0, rows, cols)).values, scaling)
    net = model.build().to(memory_format=torch.channels_last)
    clock = time.perf_counter()
    with torch.inference_mode():
        answer = sliding_window_inference(pixels, (WINDOW, WINDOW), 1, net, overlap=0.25, mode="gaussian")
        mask = (answer.sigmoid()[0, 0] >= model.card.threshold).numpy().astype(np.uint8)
    list(rasterio.features.shapes(mask, mask=mask.astype(bool)))
    return time.perf_counter() - clock, rows * cols


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--engines", default="native,torch")
    parser.add_argument("--monai", metavar="FOLDER")
    parser.add_argument("--windows", type=int, default=12, help="windows of the floor, before and after")
    given, options = parser.parse_known_args()
    model = load_model(given.model)
    mosaic, _ = open_mosaic(given.images)
    floor = Floor(model, mosaic)
    floor.run(given.windows)
    pixels = mosaic.extent.area
    rows: list[tuple[str, float, int, str]] = []
    for engine in given.engines.split(","):
        wall, forward, memory = geoseg(given.images, given.model, engine, [o for o in options if o != "--"])
        rows.append((f"geoseg, {engine}", wall, pixels, f"{forward:.2f} forward pixels a pixel, {memory}"))
    if given.monai:
        seconds, area = monai(given.monai, model, mosaic)
        rows.append(("MONAI, shapes", seconds, area, "without reading and writing"))
    floor.run(given.windows)
    each = floor.per_pixel
    spread = f"windows {min(floor.seconds):.2f} … {max(floor.seconds):.2f} s"
    print(f"{'floor':16} {each * pixels:7.1f} s   {1e-6 / each:.3f} Mpx/s   1.00   {spread}")
    for name, seconds, area, text in rows:
        print(f"{name:16} {seconds:7.1f} s   {area / seconds / 1e6:.3f} Mpx/s   {seconds / area / each:.2f}   {text}")
    for engine in given.engines.split(","):
        whole, cut = exactness(model, mosaic, engine)
        print(f"{engine}: from one pass {whole:.2g} grey levels over rows, {cut:.2g} with windows of {CUTS} px")


if __name__ == "__main__":
    main()
