"""The convolutions of a network one by one, as torch computes them and as geoseg does, side by side.

    python tests/benchmarks/layers.py [--rows N] [--width PX] [--threads N]

For the layers that a strip of a UNet16 passes through: oneDNN's convolution; :mod:`geoseg.winograd`'s, half the
multiplications in torch's operations; and that of :mod:`geoseg.native`, a fifth of them in compiled kernels. Medians of
several runs, in milliseconds, how many times as fast the latter two are, and billions of multiplications and additions
per second that oneDNN does and that geoseg's kernels would have to do were they to multiply as often.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from geoseg import native, winograd
from geoseg.engines import keep_freed_memory

LAYERS = (
    (0, 64, 64), (0, 64, 16), (0, 16, 16), (1, 64, 128), (1, 128, 128), (1, 128, 64), (2, 128, 256), (2, 256, 256),
    (2, 256, 128), (3, 256, 512), (3, 512, 512), (3, 512, 256), (4, 512, 512),
)  # fmt: skip
"""Level of the encoder, channels in, channels out."""
DOUBLED = ((4, 256, 128), (3, 256, 128), (2, 128, 32), (1, 64, 16))
"""Level of what goes in, channels in, channels out, of transposed convolutions."""
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


def compare(name: str, values: Tensor, plain: Callable[[], Tensor], half: float | None, layer: nn.Module) -> None:
    """Print a line of the table."""
    machine = native.ready()
    if machine is None:
        raise SystemExit("geoseg has no kernels for this processor")
    ours = timed(native.Layer(layer, False, machine), [values], False, False)  # type: ignore[arg-type]
    each, answer = timed(plain), plain()
    taps = 9 if isinstance(layer, nn.Conv2d) else 4
    work = 2 * taps * values.shape[1] * answer.numel() / 1e9
    times = "    –" if half is None else f"{each / half:5.2f}"
    rates = f"{work / each:8.0f} {work / ours:8.0f}"
    print(f"{name:26} {each * 1e3:8.1f} {ours * 1e3:8.1f}   {times} {each / ours:8.2f} {rates}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="of the finest level")
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    keep_freed_memory()
    print("layer                       oneDNN   native   times as fast    billions a second")
    print("                                ms       ms   torch   native   oneDNN   native")
    with torch.inference_mode():
        for level, channels, out in LAYERS:
            layer = nn.Conv2d(channels, out, 3, padding=1)
            shape = (1, channels, (given.rows >> level) + 2, given.width >> level)
            values = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
            half = timed(winograd.convolution(layer), values, 0) if winograd.pays(layer) else None
            name = f"{channels} → {out}, {shape[2] - 2} × {shape[3]}"
            compare(name, values, lambda v=values, w=weight, b=layer.bias: F.conv2d(v, w, b, 1, (0, 1)), half, layer)
        for level, channels, out in DOUBLED:
            up = nn.ConvTranspose2d(channels, out, 4, 2, 1).to(memory_format=torch.channels_last)
            shape = (1, channels, (given.rows >> level) + 1, given.width >> level)
            values = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            name = f"{channels} → {out}, {shape[2] - 1} × {shape[3]}, doubled"
            compare(name, values, lambda v=values, u=up: u(v), None, up)


if __name__ == "__main__":
    main()
