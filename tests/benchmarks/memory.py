"""Peak resident memory of every process of ``geoseg segment``, on rasters of very different size.

    python tests/benchmarks/memory.py [--sides 5000,20000,100000] [--cities 1,2,3] [--city PX]
        [--network narrow|tiny] [-- further options of segment]

Rasters are sparse GeoTIFFs: squares of ``--city`` pixels full of buildings ("cities") here and there, the last corner
included, and no data anywhere else. ``--cities`` says how many squares each raster has besides the corner; 0 stands for
as many as fit.

``narrow`` is a UNet11 with a decoder of 4 filters and random weights, but for one path wired by hand that brings the
red band to the answer, so that the buildings drawn into the imagery are what comes out. ``tiny`` is a TorchScript
network that only does the latter, for rasters full of data.

Memory is what the kernel remembers as the highest (VmHWM), read every 50 ms, of the command's process and of each of
its children.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch import nn

from geoseg.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard
from geoseg.checkpoint import save_model
from geoseg.unet import UNet11

PITCH = 64
"""Pixels from building to building."""
DARK, BRIGHT = 60, 220
EVERY_S = 0.05


def narrow(path: Path) -> None:
    """Save a UNet11 with 4 filters whose answer follows the red band."""
    torch.manual_seed(0)
    net = UNet11(4)
    with torch.no_grad():
        first, last = net.encoder[0], net.dec1.conv
        for weight, source in ((first.weight, 0), (last.weight, last.in_channels - 64)):
            weight[0] = 0
            weight[0, source, 1, 1] = 1
        first.bias[0], last.bias[0] = 3.0, 0.0  # ReLU must let dark pixels through
        net.final.weight[:] = 0
        net.final.weight[0, 0] = 4.0
        middle = ((DARK + BRIGHT) / 2 / 255 - IMAGENET_MEAN[0]) / IMAGENET_STD[0]
        net.final.bias[0] = -4.0 * (3.0 + middle)
    save_model(path, net, ModelCard(name="narrow", arch="unet11", num_filters=4, threshold=0.5, licence="MIT"))


class Red(nn.Module):
    """The red band as a logit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, H, W)`` → ``(N, 1, H, W)``."""
        return 4.0 * x[:, :1]


def tiny(path: Path) -> None:
    """Save :class:`Red` with its card."""
    torch.jit.script(Red()).save(str(path))
    middle = (DARK + BRIGHT) / 2 / 255
    card = {"name": "tiny", "arch": "torchscript", "mean": [middle] * 3, "std": [0.2] * 3, "reach": 0, "halo": 32}
    path.with_name(path.name + ".json").write_text(json.dumps({**card, "output": "logits", "threshold": 0.5}))


def draw(size: int) -> NDArray[np.uint8]:
    """Return ``(size, size)`` brightness: houses with a corner cut out, some with courtyards, touching no other."""
    rng = np.random.default_rng(0)
    image = rng.integers(DARK - 20, DARK + 20, (size, size), dtype=np.uint8)
    for row, col in itertools.product(range(0, size, PITCH), repeat=2):
        top, left = rng.integers(2, 12, 2)
        tall, wide = rng.integers(20, PITCH - 14, 2)
        house = image[row + top : row + top + tall, col + left : col + left + wide]
        kept = house[: tall // 3, : wide // 3].copy()
        house[:] = BRIGHT
        house[: tall // 3, : wide // 3] = kept
        if tall > 30 and wide > 30:
            house[tall // 2 : tall // 2 + 6, wide // 2 : wide // 2 + 6] = DARK
    return image


def write_raster(path: Path, side: int, cities: int, size: int) -> int:
    """Write a raster; return its pixels with data."""
    most = -(-side // size)
    places = list(itertools.product(range(most), repeat=2))
    if cities and cities < len(places):
        # Spread evenly, and the last corner besides, where coordinates are largest.
        chosen = np.linspace(0, len(places) - 2, cities + 2).astype(int)[1:-1]
        places = [*(places[i] for i in np.unique(chosen)), places[-1]]
    image, pixels = draw(size), 0
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", nodata=0, tiled=True,
        blockxsize=512, blockysize=512, compress="ZSTD", zstd_level=1, photometric="RGB", SPARSE_OK=True,
        BIGTIFF="YES", crs="EPSG:32633", transform=from_origin(400_000, 5_400_000, 0.3, 0.3), num_threads=2,
    ) as file:  # fmt: skip
        for row, col in places:
            tall, wide = (min(size, side - at * size) for at in (row, col))
            part = image[:tall, :wide]
            file.write(np.stack([part] * 3), window=Window(col * size, row * size, wide, tall))
            pixels += tall * wide
    return pixels


def peak(pid: int) -> int:
    """Return a process's highest resident memory in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def role(process: psutil.Process, driver: int) -> str:
    """Say what a process is."""
    if process.pid == driver:
        return "driver"
    if "resource_tracker" in " ".join(process.cmdline()):
        return "tracker"
    # A worker is forked from a server that is forked from the driver, or the driver's own child.
    forked = any("forkserver" in part for part in process.cmdline())
    return "forkserver" if forked and process.ppid() == driver else "worker"


def run(command: list[str]) -> tuple[float, dict[str, int], int]:
    """Run a command; return its seconds, the peak of each kind of process, and the highest sum over all at once."""
    clock = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[str, int] = {}
    together = 0
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            members = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        total = 0
        for member in members:
            try:
                name = role(member, process.pid)
                peaks[name] = max(peaks.get(name, 0), peak(member.pid))
                total += member.memory_info().rss
            except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
                continue
        together = max(together, total)
        time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - clock, peaks, together


def numbers(text: str) -> list[int]:
    """Parse ``1,2,3``."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print a line for each raster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=numbers, default=[5_000, 20_000, 100_000])
    parser.add_argument("--cities", type=numbers, default=[1, 2, 3])
    parser.add_argument("--city", type=int, default=4096)
    parser.add_argument("--network", choices=["narrow", "tiny"], default="narrow")
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / ("narrow.safetensors" if given.network == "narrow" else "tiny.pt")
        (narrow if given.network == "narrow" else tiny)(model)
        first: dict[str, int] = {}
        for side, cities in zip(given.sides, given.cities, strict=True):
            raster, out = folder / f"r{side}.tif", folder / f"out{side}"
            pixels = write_raster(raster, side, cities, given.city)
            command = [sys.executable, "-m", "geoseg", "segment", str(raster), "--out", str(out), "--model", str(model)]
            seconds, peaks, together = run([*command, "--progress", "none", *(o for o in options if o != "--")])
            facts = json.loads((out / "run.json").read_text())
            print(
                f"{side} × {side}, {pixels / 1e6:.0f} Mpx with data, {facts['counts']['buildings']} buildings: "
                f"{seconds:.0f} s {facts['timings']}"
            )
            for kind, most in peaks.items():
                grown = most / first.setdefault(kind, most) - 1
                print(f"  {kind:10} {most / 2**20:8.0f} MiB  {grown:+.1%}")
            print(f"  {'together':10} {together / 2**20:8.0f} MiB", flush=True)
            raster.unlink()


if __name__ == "__main__":
    main()
