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

Rows = Any
"""Some rows of one layer's values, ``(1, channels, rows, width)``, in whatever form the engine holds them."""


class Layer(Protocol):
    """What an engine makes of a layer of the network: values in, values out."""

    def __call__(self, rows: Rows, /) -> Rows:
        """Return the layer's answer; see :class:`Engine` for how many rows that is."""


class Added(Protocol):
    """A layer whose answer something is added to."""

    def __call__(self, rows: Rows, addend: Rows, /) -> Rows:
        """Return the sum, and zero where it is negative; see :class:`Engine` for how many rows that is."""


class Engine(Protocol):
    """Who does the arithmetic."""

    def conv(self, layer: nn.Conv2d, relu: bool) -> Layer:
        """A convolution of stride one: no padding above and below, its own padding left and right."""

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """The same, to whose answer something is added, with ReLU."""

    def double(self, layer: nn.Module) -> Layer:
        """An upsampling by two with ReLU where it is a transposed convolution: ``n`` rows to ``2 n``."""

    def pool(self, rows: Rows) -> Rows:
        """Return the largest of each 2 × 2 values; the number of rows is even."""

    def height(self, rows: Rows) -> int:
        """Return the number of rows."""

    def cut(self, rows: Rows, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop - 1``."""

    def stack(self, parts: Sequence[Rows]) -> Rows:
        """Put rows below one another."""

    def beside(self, first: Rows, second: Rows) -> Rows:
        """Put the channels of the second behind those of the first."""

    def blank(self, like: Rows) -> Rows:
        """Return one row of zeros, as wide and with as many channels as ``like``."""

    def keep(self, rows: Rows) -> Rows:
        """Return rows that outlast the next call of any layer and hold no more memory than they need."""


class TorchEngine:
    """torch, on the device and in the type of the network's parameters."""

    def conv(self, layer: nn.Conv2d, relu: bool) -> Layer:
        """See :class:`Engine`."""
        weight = layer.weight.contiguous(memory_format=torch.channels_last)
        padding = (0, int(layer.padding[1]))

        def apply(rows: Tensor) -> Tensor:
            answer = F.conv2d(rows, weight, layer.bias, padding=padding)
            return answer.relu_() if relu else answer

        return apply

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """See :class:`Engine`."""
        conv = self.conv(layer, False)
        return lambda rows, addend: conv(rows).add_(addend).relu_()

    def double(self, layer: nn.Module) -> Layer:
        """See :class:`Engine`."""
        if isinstance(layer, nn.ConvTranspose2d):
            return lambda rows: layer(rows).relu_()
        return layer

    def pool(self, rows: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return F.max_pool2d(rows, 2)

    def height(self, rows: Tensor) -> int:
        """See :class:`Engine`."""
        return rows.shape[2]

    def cut(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """See :class:`Engine`."""
        return rows[:, :, start:stop]

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Engine`."""
        return torch.cat(list(parts), 2)

    def beside(self, first: Tensor, second: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return torch.cat([first, second], 1)

    def blank(self, like: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return torch.zeros_like(like[:, :, :1])

    def keep(self, rows: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return rows.clone()
