"""The convolutions of a network one by one, plain and by Winograd's filtering, side by side.

    python tests/benchmarks/layers.py [--rows N] [--width PX] [--threads N]

For the layers that a strip of a UNet16 passes through: oneDNN's convolution, :mod:`geoseg.winograd`'s, and the six
convolutions of three rows and one column that the latter consists of, without the sums around them. Medians of several
runs, in milliseconds, and how many times as fast Winograd's is; below 1 it is slower, and the network takes the plain
one (:func:`geoseg.winograd.pays`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geoseg import winograd
from geoseg.engines import keep_freed_memory

LAYERS = (
    (0, 64, 64), (0, 64, 16), (1, 64, 128), (1, 128, 128), (1, 128, 64), (2, 128, 256), (2, 256, 256), (2, 256, 128),
    (3, 256, 512), (3, 512, 512), (3, 512, 256), (4, 512, 512),
)  # fmt: skip
"""Level of the encoder, channels in, channels out."""
RUNS = 9


def timed(run: Callable[..., object], *given: object) -> float:
    """Return the median time of some runs, in seconds."""
    seconds = []
    for number in range(RUNS + 2):
        clock = time.perf_counter()
        run(*given)
        if number >= 2:
            seconds.append(time.perf_counter() - clock)
    return median(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="of the finest level")
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    keep_freed_memory()
    print("layer                     plain  Winograd  its convolutions  times as fast  taken")
    for level, channels, out in LAYERS:
        layer = nn.Conv2d(channels, out, 3, padding=1)
        shape = (1, channels, (given.rows >> level) + 2, given.width >> level)
        values = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        quarter = torch.randn((*shape[:3], shape[3] // 4)).contiguous(memory_format=torch.channels_last)
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        column = weight[..., :1].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            plain = timed(F.conv2d, values, weight, layer.bias, 1, (0, 1))
            ours = timed(winograd.convolution(layer), values, 0)
            six = 6 * timed(F.conv2d, quarter, column)
        name = f"{channels} → {out}, {shape[2]} × {shape[3]}"
        taken = "Winograd" if winograd.pays(layer) else "plain"
        line = f"{name:22} {plain * 1e3:8.1f} {ours * 1e3:9.1f} {six * 1e3:17.1f} {plain / ours:14.2f}  {taken}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
