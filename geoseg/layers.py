"""A network's layers on some rows of an image: what an engine has to offer, and the one that is always there, torch.

:mod:`geoseg.stream` knows the order of the layers and which rows to keep; what a layer computes, and how rows are held,
is the matter of an :class:`Engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from geoseg import winograd

Rows = Any
"""Some rows of one layer's values, ``(1, channels, rows, width)``, in whatever form the engine holds them."""


class Conv(Protocol):
    """A layer that looks at the rows around: a convolution that keeps the size, or an upsampling by two."""

    def __call__(self, rows: Rows, top: bool, bottom: bool, /) -> Rows:
        """Return the rows whose neighbours are there; above the top and below the bottom of the image is zero."""


class Added(Protocol):
    """A convolution whose answer something is added to."""

    def __call__(self, rows: Rows, addend: Rows, top: bool, bottom: bool, /) -> Rows:
        """Return the sum, and zero where it is negative; rows as of :class:`Conv`."""


class Engine(Protocol):
    """Who does the arithmetic."""

    copies: bool
    """Whether rows that are stacked are copied."""

    def conv(self, layer: nn.Conv2d, relu: bool) -> Conv:
        """A convolution of stride one that keeps the size."""

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """The same, to whose answer something is added, with ReLU."""

    def double(self, layer: nn.Module) -> Conv:
        """An upsampling by two with ReLU where it is a transposed convolution.

        Of ``2 n`` rows the outermost two see beyond the ``n`` that they come from; they are there at the image's ends.
        """

    def pool(self, rows: Rows) -> Rows:
        """Return the largest of each 2 × 2 values; the number of rows is even."""

    def height(self, rows: Rows) -> int:
        """Return the number of rows."""

    def thin(self, rows: Rows) -> int:
        """Return how many rows of the image the finest levels are to take at a time."""

    def cut(self, rows: Rows, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop - 1``."""

    def stack(self, parts: Sequence[Rows]) -> Rows:
        """Put rows below one another."""

    def beside(self, first: Rows, second: Rows) -> Rows:
        """Put the channels of the second behind those of the first."""

    def keep(self, rows: Rows) -> Rows:
        """Return rows that outlast the next call of any layer and hold no more memory than they need."""


class TorchEngine:
    """torch, on the device and in the type of the network's parameters."""

    copies = True

    def conv(self, layer: nn.Conv2d, relu: bool) -> Conv:
        """See :class:`Engine`."""
        if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.out_channels == layer.groups == 1:
            return _weighed(layer, relu)
        weight = layer.weight.contiguous(memory_format=torch.channels_last)
        margin, across = (int(side) for side in layer.padding)
        fast = winograd.convolution(layer, relu) if winograd.pays(layer) else None

        def apply(rows: Tensor, top: bool, bottom: bool) -> Tensor:
            padding = margin * (top or bottom)
            if fast is not None and winograd.fits(rows):
                answer = fast(rows, padding)
            else:
                answer = F.conv2d(rows, weight, layer.bias, padding=(padding, across))
                answer = answer.relu_() if relu else answer
            return inside(answer, margin, top, bottom)

        return apply

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """See :class:`Engine`."""
        conv = self.conv(layer, False)
        return lambda rows, addend, top, bottom: conv(rows, top, bottom).add_(addend).relu_()

    def double(self, layer: nn.Module) -> Conv:
        """See :class:`Engine`."""
        if isinstance(layer, nn.ConvTranspose2d):
            return lambda rows, top, bottom: whole(layer(rows).relu_(), top, bottom)
        return lambda rows, top, bottom: whole(layer(rows), top, bottom)

    def pool(self, rows: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return F.max_pool2d(rows, 2)

    def height(self, rows: Tensor) -> int:
        """See :class:`Engine`."""
        return rows.shape[2]

    def thin(self, rows: Tensor) -> int:
        """See :class:`Engine`."""
        return max(self.height(rows), 1)

    def cut(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """See :class:`Engine`."""
        return rows[:, :, start:stop]

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Engine`."""
        return torch.cat(list(parts), 2)

    def beside(self, first: Tensor, second: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return torch.cat([first, second], 1)

    def keep(self, rows: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return rows.clone()


def _weighed(layer: nn.Conv2d, relu: bool) -> Conv:
    """A convolution that weighs the channels of each pixel.

    On a CPU as a product of a matrix and a vector: in a third of the time that torch's convolution takes, and with the
    same bits for any number of threads.
    """
    weight = layer.weight.reshape(-1)

    def apply(rows: Tensor, top: bool, bottom: bool) -> Tensor:
        if rows.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32:
            count, channels, height, width = rows.shape
            answer = torch.mv(rows.permute(0, 2, 3, 1).reshape(-1, channels), weight)
            answer = (answer if layer.bias is None else answer.add_(layer.bias)).view(count, 1, height, width)
        else:
            answer = F.conv2d(rows, layer.weight, layer.bias)
        return answer.relu_() if relu else answer

    return apply


def inside(answer: Tensor, margin: int, top: bool, bottom: bool) -> Tensor:
    """Return rows that were convolved with zeros on both sides if on any, without those that saw zeros wrongly."""
    if top == bottom or not margin:
        return answer
    return answer[:, :, :-margin] if top else answer[:, :, margin:]


def whole(answer: Tensor, top: bool, bottom: bool) -> Tensor:
    """Return those of twice the rows that saw all they look at."""
    return answer[:, :, int(not top) : answer.shape[2] - (not bottom)]
