"""What a GPU makes of the network: its matrix rate, the bare network, and the network as geoseg runs it.

    python tests/benchmarks/gpu.py [IMAGE...] [--out DIR] [-- further options of segment]

Prints pixels a second, the arithmetic that is, and its share of the rate of an 8192 × 8192 product of bfloat16 matrices
measured in the same run: for the bare network (eager, channels last, autocast to bfloat16, eight windows of 1024
pixels) and over rows as :mod:`geoseg.gpu_layers` computes it, in strips of several heights, with the memory that takes.
With images: then ``geoseg segment`` on them from a cold start, stage by stage, and its rate as a share of the bare
one's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from geoseg.gpu_layers import GpuEngine
from geoseg.stream import Network, strips
from geoseg.unet import UNet11, UNet16

SIDE = 8192
HEIGHT, WIDTH = 5120, 5376
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet16, 16 filters": lambda: UNet16(1, 16, True),
    "UNet11, 32 filters": lambda: UNet11(32),
}


def timed(run: Callable[[], object], runs: int = 5) -> float:
    """Return the median seconds of some runs on the GPU, after two more."""
    seconds = []
    for number in range(runs + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 2:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return median(seconds)


def matrix_rate() -> float:
    """Return operations a second of a product of random matrices."""
    one, other = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIDE**3 / timed(lambda: one @ other)


def work_per_pixel(net: nn.Module) -> float:
    """Return the operations of the network's convolutions for a pixel."""
    total = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += 2 * given[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            total += 2 * answer.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in net.modules()]
    with torch.inference_mode():
        net(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return total / 64**2


def rates(make: Callable[[], nn.Module], peak: float) -> float:
    """Print the table of one network; return the bare one's pixels a second."""
    net = make().eval()
    work = work_per_pixel(net)
    net = net.to("cuda").to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def line(name: str, seconds: float, pixels: int, more: str = "") -> None:
        rate = pixels / seconds
        print(f"  {name:28} {rate / 1e6:7.1f} Mpx/s {rate * work / 1e12:5.0f} TFLOP/s {rate * work / peak:6.2f} {more}")

    with torch.inference_mode():
        windows = torch.randn((8, 3, 1024, 1024), device="cuda").to(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            bare = timed(lambda: net(windows))
        line("bare, bfloat16", bare, 8 << 20)
        image = torch.randn((1, 3, HEIGHT, WIDTH), device="cuda").to(memory_format=torch.channels_last)
        for kind in (torch.float16, torch.bfloat16):
            engine = GpuEngine(kind)
            network = Network(net, engine)
            for rows in (256, 1536, HEIGHT):

                def run(network: Network = network, engine: GpuEngine = engine, rows: int = rows) -> None:
                    stream = network.stream()
                    for start, stop in strips(HEIGHT, rows):
                        stream.push(engine.rows(image[:, :, start:stop]), stop == HEIGHT)

                torch.cuda.reset_peak_memory_stats()
                seconds = timed(run, 3)
                memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
                line(f"{str(kind).removeprefix('torch.')}, {rows} rows at once", seconds, HEIGHT * WIDTH, memory)
    return (8 << 20) / bare


def end_to_end(images: list[str], out: Path, options: list[str], bare: float) -> None:
    """Run the command; print its stages."""
    command = [sys.executable, "-m", "geoseg", "segment", *images, "--out", str(out), "--progress", "none", *options]
    clock = time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - clock
    run = json.loads((out / "run.json").read_text("utf-8"))
    pixels = run["counts"]["valid_pixels"]
    print(f"geoseg segment: {wall:.1f} s, {pixels / wall / 1e6:.1f} Mpx/s, {pixels / wall / bare:.2f} of the bare rate")
    print(f"  {run['timings']}, workers' {run['worker_seconds']}, {run['device']}, {run['precision']}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*")
    parser.add_argument("--out", type=Path)
    given, options = parser.parse_known_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    peak = matrix_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; matrix product {peak / 1e12:.0f} TFLOP/s")
    bare = 0.0
    for name, make in NETWORKS.items():
        print(name)
        found = rates(make, peak)
        bare = bare or found
    if given.images:
        with tempfile.TemporaryDirectory() as folder:
            end_to_end(given.images, given.out or Path(folder) / "out", [o for o in options if o != "--"], bare)


if __name__ == "__main__":
    main()
