"""Convolutions of three by three with half the multiplications, on a CPU, in torch's own operations.

Winograd's minimal filtering F(4, 3) gets four outputs of a filter of three taps from six products instead of twelve. It
is applied along the rows (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", arXiv:1509.09308;
there along both axes): each quad of neighbouring pixels becomes six sums, which go through six convolutions of three
rows and one column, oneDNN's, whose answers are summed up to four pixels again. The sums are passes over memory, so it
pays where there are many channels: it is 1.5 to 1.7 times as fast as oneDNN's own convolution with 256 and more, and no
faster with 64 (tests/benchmarks/layers.py). Along both axes the passes eat up what the products save.

The result differs from the plain convolution by about 1e-5 of its largest value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

QUAD = 4
"""Pixels that are computed together: what the width has to be a multiple of."""
PAYS = 64 * 128
"""Channels in times channels out from which it is faster."""

AT_ONCE = 1 << 21
"""Values, in and out, that are dealt with at once, give or take a half: some megabytes."""

_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G of F(4, 3): what the six filters are made of."""


def pays(layer: nn.Conv2d) -> bool:
    """Say whether a convolution is one that this is faster for."""
    plain = layer.kernel_size == (3, 3) and layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    zeros = layer.padding == (1, 1) and layer.padding_mode == "zeros"
    return plain and zeros and layer.in_channels * layer.out_channels >= PAYS


def fits(rows: Tensor) -> bool:
    """Say whether values can be convolved so: float32 on a CPU, of a width in whole quads."""
    return (
        rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and rows.shape[3] % QUAD == 0
        and not torch.is_autocast_enabled("cpu")
    )


def convolution(layer: nn.Conv2d, relu: bool = False) -> Callable[[Tensor, int], Tensor]:
    """Return a layer as a function of values ``(N, in, H, W)`` and of the rows of zeros above and below them.

    It returns ``(N, out, H + 2 · rows - 2, W)``, channels last; with ``relu`` nothing that is negative.
    """
    exact = torch.tensor(_FILTER, dtype=torch.float64)
    weight = layer.weight.detach()
    filters = [
        torch.einsum("x,kcyx->kcy", six, weight.double())
        .to(weight.dtype)
        .unsqueeze(3)
        .contiguous(memory_format=torch.channels_last)
        for six in exact
    ]
    bias = None if layer.bias is None else layer.bias.detach()

    def apply(values: Tensor, padding: int) -> Tensor:
        count, channels, height, width = values.shape
        quads = values.permute(0, 2, 3, 1).reshape(count, height, width // QUAD, QUAD, channels)
        pixels = values.new_empty((count, height + 2 * padding - 2, width // QUAD, QUAD, layer.out_channels))
        # A few columns at a time, so that the sums stay in the cache.
        step = max(AT_ONCE // (count * height * (channels + layer.out_channels)), 1)
        for start in range(0, width // QUAD, step):
            stop = min(start + step, width // QUAD)
            # What is added to the second of the six comes out in each of the four pixels once.
            answers = [
                F.conv2d(six.permute(0, 3, 1, 2), weight, bias if number == 1 else None, padding=(padding, 0))
                for number, (six, weight) in enumerate(zip(_taken_apart(quads, start, stop), filters, strict=True))
            ]
            some = pixels[:, :, start:stop]
            _put_together([answer.permute(0, 2, 3, 1) for answer in answers], some)
            if relu:
                some.relu_()
        return pixels.flatten(2, 3).permute(0, 3, 1, 2)

    return apply


def _taken_apart(quads: Tensor, start: int, stop: int) -> Tensor:
    """Return Bᵀd of F(4, 3), ``(6, N, H, stop - start, C)``, of quads ``(N, H, all of them, 4, C)`` between zeros."""
    # The six inputs of a quad: d1 … d4 are its own pixels, d0 is the last of the quad before, d5 the first of the next.
    d1, d2, d3, d4 = quads[:, :, start:stop].unbind(3)
    six = quads.new_empty((6, *d1.shape))
    before, after = quads[:, :, max(start - 1, 0) : stop - 1, 3], quads[:, :, start + 1 : stop + 1, 0]
    torch.sub(d4, d2, alpha=5, out=six[0])
    six[0][:, :, -before.shape[2] :].add_(before, alpha=4) if before.shape[2] else None
    even, odd = torch.sub(d4, d2, alpha=4, out=six[1]), torch.sub(d3, d1, alpha=4)
    torch.sub(even, odd, out=six[2])
    even.add_(odd)
    even, odd = torch.sub(d4, d2, out=six[3]), torch.sub(d3, d1, out=odd)
    torch.sub(even, odd, alpha=2, out=six[4])
    even.add_(odd, alpha=2)
    torch.mul(d1, 4, out=six[5])
    six[5].sub_(d3, alpha=5)
    six[5][:, :, : after.shape[2]].add_(after)
    return six


def _put_together(six: list[Tensor], pixels: Tensor) -> None:
    """Write Aᵀm of F(4, 3) into ``(N, H, quads, 4, C)``, of six ``(N, H, quads, C)``, which are overwritten."""
    first, second, third, fourth = pixels.unbind(3)
    sum12 = six[1] + six[2]
    diff12 = six[1].sub_(six[2])
    sum34 = torch.add(six[3], six[4], out=six[2])
    diff34 = six[3].sub_(six[4])
    torch.add(six[0], sum12, out=first)
    first.add_(sum34)
    torch.add(diff12, diff34, alpha=2, out=second)
    torch.add(sum12, sum34, alpha=4, out=third)
    torch.add(diff12, diff34, alpha=8, out=fourth)
    fourth.add_(six[5])
