"""The network's layers on a GPU: convolution, bias, skip connection and ReLU in one pass, on few but wide channels.

On a GPU a U-Net's time goes into reading and writing what lies between the layers, and into convolutions of so few
channels that the matrix units idle. Three things are done about it, none of which changes the result beyond rounding:

* cuDNN adds bias and skip connection and cuts off what is negative while it writes the convolution's answer.
* Where a layer has few channels, neighbouring pixels of a row are taken for channels of one wider pixel: in memory rows
  of pixels and rows of wide pixels are the same bytes, and the kernel is spread accordingly (:func:`folded`).
* A transposed convolution is written as a convolution that answers with all four of the pixels' successors
  (:func:`unfolded_up`).

Half precision has a range, too: the ImageNet encoder's values go up to 40 000, while float16 ends at 65 504. A network
of convolutions, ReLU and poolings is homogeneous: with its input and all its biases divided by 32, every value is
divided by 32, exactly, as that is a power of two (:func:`scale_for`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from geoseg.layers import Added, Conv, TorchEngine, inside, whole

WIDE = 64
"""Channels out of a convolution that matrix units are busy with."""
LARGEST_FOLD = 8
"""Most pixels taken for one, and what the number of channels should be a multiple of."""
ROOM = 32.0
"""How many times larger than what was seen a value may be before half precision ends."""

_CL = torch.channels_last


class GpuEngine(TorchEngine):
    """torch on a GPU, with the layers of geoseg's own networks put as the GPU likes them; see the module's text.

    On a CPU it computes the same, if slowly.

    Args:
        dtype: What the layers compute in.
        scale: What the input and the biases are multiplied with, a power of two.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> None:
        self._dtype, self._scale = dtype, scale
        self._made: dict[tuple[int, str], tuple[nn.Module, Any]] = {}

    def rows(self, pixels: Tensor) -> Tensor:
        """Return normalised pixels as the layers take them."""
        return (pixels * self._scale).to(self._dtype).contiguous(memory_format=_CL)

    def logits(self, rows: Tensor) -> Tensor:
        """Return float32 logits of what the last layer answers."""
        return rows.float() / self._scale

    def conv(self, layer: nn.Conv2d, relu: bool) -> Conv:
        """See :class:`geoseg.layers.Engine`."""
        return self._once(layer, f"conv {relu}", lambda: self._conv(layer, relu))

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """See :class:`geoseg.layers.Engine`."""
        return self._once(layer, "added", lambda: self._conv_added(layer))

    def double(self, layer: nn.Module) -> Conv:
        """See :class:`geoseg.layers.Engine`."""
        if isinstance(layer, nn.ConvTranspose2d):
            return self._once(layer, "double", lambda: self._double(layer))
        return super().double(layer)

    def pool(self, rows: Tensor) -> Tensor:
        """See :class:`geoseg.layers.Engine`."""
        # max_pool2d also writes where each largest value was, in eight bytes.
        count, channels, height, width = rows.shape
        fours = rows.permute(0, 2, 3, 1).reshape(count, height // 2, 2, width // 2, 2, channels)
        return fours.amax((2, 4)).permute(0, 3, 1, 2)

    def _once(self, layer: nn.Module, kind: str, make: Callable[[], Any]) -> Any:
        """Return what was made of a layer, which is held so that nobody else has its id."""
        key = (id(layer), kind)
        if key not in self._made:
            self._made[key] = layer, make()
        return self._made[key][1]

    def _bias(self, layer: Any, times: int) -> Tensor | None:
        if layer.bias is None:
            return None
        return (layer.bias.detach() * self._scale).to(self._dtype).repeat(times)

    def _kernel(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype).contiguous(memory_format=_CL)

    def _folds(self, layer: nn.Conv2d) -> Callable[[int], tuple[int, Tensor, Tensor | None, int]]:
        """Return what gives fold, kernel, bias and padding left and right for a width."""
        most = fold_of(layer)

        @cache
        def of(fold: int) -> tuple[int, Tensor, Tensor | None, int]:
            weight = self._kernel(folded(layer.weight.detach(), fold))
            return fold, weight, self._bias(layer, fold), weight.shape[3] // 2

        return lambda width: of(math.gcd(most, width))

    def _conv(self, layer: nn.Conv2d, relu: bool) -> Conv:
        made, margin = self._folds(layer), int(layer.padding[0])

        def apply(rows: Tensor, top: bool, bottom: bool) -> Tensor:
            fold, weight, bias, across = made(rows.shape[3])
            padding = margin * (top or bottom), across
            rows = narrow(rows, fold)
            answer = conv_relu(rows, weight, bias, padding) if relu else F.conv2d(rows, weight, bias, padding=padding)
            return inside(widen(answer, fold), margin, top, bottom)

        return apply

    def _conv_added(self, layer: nn.Conv2d) -> Added:
        made, margin = self._folds(layer), int(layer.padding[0])

        def apply(rows: Tensor, addend: Tensor, top: bool, bottom: bool) -> Tensor:
            fold, weight, bias, across = made(rows.shape[3])
            if top != bottom:  # as many rows must come out as are added
                rows = F.pad(rows, (0, 0, margin * top, margin * bottom))
            padding = margin * (top and bottom), across
            addend = narrow(addend.contiguous(memory_format=_CL), fold)
            return widen(conv_add_relu(narrow(rows, fold), addend, weight, bias, padding), fold)

        return apply

    def _double(self, layer: nn.ConvTranspose2d) -> Conv:
        weight, margin = unfolded_up(layer.weight.detach())
        weight, bias, out = self._kernel(weight), self._bias(layer, 4), layer.out_channels

        def apply(rows: Tensor, top: bool, bottom: bool) -> Tensor:
            answer = conv_relu(rows, weight, bias, (1, 1))
            if margin:  # a kernel of two reads one row and one column above and left of the first
                answer = answer[:, :, 1:, 1:]
            count, _, height, width = answer.shape
            spread = answer.permute(0, 2, 3, 1).unflatten(3, (2, 2, out))  # rows, columns, down, right, channels
            spread = spread.transpose(2, 3).reshape(count, 2 * height, 2 * width, out)
            return whole(spread.permute(0, 3, 1, 2), top, bottom)

        return apply


def scale_for(net: nn.Module) -> float:
    """Return the power of two to scale a network's input and biases with, so that its values fit half precision.

    It is found from the largest value of any layer on noise, edges and flat colours, and leaves :data:`ROOM` besides.
    """
    images = _trial().to(next(net.parameters()).device)
    largest = torch.zeros((), device=images.device)

    def look(_layer: nn.Module, _given: Any, answer: Tensor) -> None:
        torch.maximum(largest, answer.abs().max(), out=largest)

    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        with torch.inference_mode():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    scale = 1.0
    while float(largest) * scale * ROOM > torch.finfo(torch.float16).max:
        scale /= 2
    return scale


def _trial() -> Tensor:
    """Return images of the range of normalised ones, ``(5, 3, 128, 128)``, float32."""
    side, low, high = 128, -2.2, 2.7
    noise = torch.rand((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    noise[1] = (noise[1] > 0.5).float()
    at = torch.arange(side) // 8
    board = ((at[:, None] + at) % 2).expand(1, 3, side, side).float()
    flat = torch.stack([torch.zeros(3, side, side), torch.ones(3, side, side)])
    return torch.cat([noise, board, flat]) * (high - low) + low


def fold_of(layer: nn.Conv2d) -> int:
    """Return how many neighbouring pixels of a row a convolution takes for one, where the row's width allows."""
    fold = 1
    while fold < LARGEST_FOLD and (layer.out_channels * fold < WIDE or layer.in_channels * fold % LARGEST_FOLD):
        fold *= 2
    return fold


def folded(weight: Tensor, fold: int) -> Tensor:
    """Return the kernel of a convolution, ``(out, in, rows, columns)``, for pixels that are ``fold`` neighbours each.

    Channel ``j · in + c`` of a wide pixel is channel ``c`` of its ``j``-th pixel; most of the weights are zero.
    """
    if fold == 1:
        return weight
    out, channels, rows, columns = weight.shape
    margin = columns // 2
    reach = -(-margin // fold)
    spread = weight.new_zeros((fold, out, fold, channels, rows, 2 * reach + 1))
    for pixel in range(fold):
        for tap in range(columns):
            cell, neighbour = divmod(pixel + tap - margin, fold)
            spread[pixel, :, neighbour, :, :, cell + reach] = weight[:, :, :, tap]
    return spread.reshape(fold * out, fold * channels, rows, 2 * reach + 1)


def unfolded_up(weight: Tensor) -> tuple[Tensor, int]:
    """Return a transposed convolution of stride two and padding one as a convolution with four times the channels.

    Args:
        weight: ``(in, out, k, k)`` with ``k`` of 3 or 4.

    Returns:
        The kernel, ``((2 · down + right) · out + c, in, 3, 3)`` or, for ``k`` of 3, with rows and columns of two; and
        how many rows and columns too many it answers with at the top and at the left for a padding of one.
    """
    channels, out, size, _ = weight.shape
    first = -1 if size == 4 else 0
    taps = 2 - first
    spread = weight.new_zeros((2, 2, out, channels, taps, taps))
    for down in range(2):
        for right in range(2):
            for row in range(taps):
                for column in range(taps):
                    # Input h writes output 2 h - 1 + k.
                    at, across = down + 1 - 2 * (row + first), right + 1 - 2 * (column + first)
                    if 0 <= at < size and 0 <= across < size:
                        spread[down, right, :, :, row, column] = weight[:, :, at, across].T
    return spread.reshape(4 * out, channels, taps, taps), first + 1


def narrow(rows: Tensor, fold: int) -> Tensor:
    """Return ``(N, C, H, W)`` as ``(N, fold · C, H, W / fold)``, the same memory when it is channels-last."""
    if fold == 1:
        return rows
    count, channels, height, width = rows.shape
    return rows.permute(0, 2, 3, 1).reshape(count, height, width // fold, fold * channels).permute(0, 3, 1, 2)


def widen(rows: Tensor, fold: int) -> Tensor:
    """Undo :func:`narrow`."""
    if fold == 1:
        return rows
    count, channels, height, width = rows.shape
    return rows.permute(0, 2, 3, 1).reshape(count, height, width * fold, channels // fold).permute(0, 3, 1, 2)


def conv_relu(rows: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Return a convolution of stride one with ReLU."""
    if _fuses(rows):
        answer: Tensor = torch.cudnn_convolution_relu(rows, weight, bias, (1, 1), padding, (1, 1), 1)
        return answer
    return F.conv2d(rows, weight, bias, padding=padding).relu_()


def conv_add_relu(
    rows: Tensor, addend: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
) -> Tensor:
    """Return a convolution of stride one plus ``addend``, with ReLU."""
    if _fuses(rows):
        answer: Tensor = torch.cudnn_convolution_add_relu(rows, weight, addend, 1.0, bias, (1, 1), padding, (1, 1), 1)
        return answer
    return F.conv2d(rows, weight, bias, padding=padding).add_(addend).relu_()


def _fuses(rows: Tensor) -> bool:
    return rows.is_cuda and torch.version.hip is None and torch.backends.cudnn.is_available()
