"""The network's layers on a CPU by geoseg's own kernels, and by torch where there is none for them.

Rows stay in the pieces that they came in: the kernels are told where each row lies, so nothing has to be copied for the
rows of one strip to lie below those of the strip before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geoseg import native
from geoseg.kernels import CHUNK, CONV, Machine
from geoseg.layers import Added, Conv, Rows, TorchEngine

_CL = torch.channels_last
THIN = 2 * CONV.outputs
"""What rows that are taken at a time are a multiple of: halved, they still fill a row of tiles."""
CACHE = 1 << 24
"""Bytes that values of the finest level may take."""
FINEST = 64
"""Channels of the finest level."""


class NativeEngine:
    """See :class:`geoseg.layers.Engine`; rows are lists of tensors.

    Args:
        machine: The processor, as :func:`geoseg.native.machine` returns it.
    """

    copies = False

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._torch = TorchEngine()
        self._made: dict[tuple[int, str], tuple[nn.Module, Any]] = {}

    def rows(self, pixels: Tensor) -> Rows:
        """Return normalised pixels as the layers take them."""
        return [pixels]

    def whole(self, rows: Rows) -> Tensor:
        """Return rows in one piece."""
        return rows[0] if len(rows) == 1 else torch.cat(rows, 2)

    def conv(self, layer: nn.Conv2d, relu: bool) -> Conv:
        """See :class:`geoseg.layers.Engine`."""
        return self._once(layer, f"conv {relu}", lambda: self._any(layer, relu, self._torch.conv))

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """See :class:`geoseg.layers.Engine`."""
        return self._once(layer, "added", lambda: self._added(layer))

    def double(self, layer: nn.Module) -> Conv:
        """See :class:`geoseg.layers.Engine`."""
        return self._once(layer, "double", lambda: self._any(layer, True, lambda layer, _: self._torch.double(layer)))

    def pool(self, rows: Rows) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        if rows[0].shape[1] % CHUNK:
            return [self._torch.pool(self.whole(rows))]
        return [native.pooled(rows, self._machine)]

    def height(self, rows: Rows) -> int:
        """See :class:`geoseg.layers.Engine`."""
        return sum(piece.shape[2] for piece in rows)

    def thin(self, rows: Rows) -> int:
        """See :class:`geoseg.layers.Engine`."""
        return max(CACHE // (4 * FINEST * rows[0].shape[3] * rows[0].shape[0]) // THIN, 1) * THIN

    def cut(self, rows: Rows, start: int, stop: int) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        found, at = [], 0
        for piece in rows:
            height = piece.shape[2]
            first, last = max(start - at, 0), min(stop - at, height)
            if first < last:
                found.append(piece[:, :, first:last])
            at += height
        return found or [rows[0][:, :, :0]]

    def stack(self, parts: Sequence[Rows]) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return [piece for part in parts for piece in part]

    def beside(self, first: Rows, second: Rows) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return [torch.cat([self.whole(first), self.whole(second)], 1)]

    def keep(self, rows: Rows) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return [piece.clone(memory_format=_CL) if _holds_more(piece) else piece for piece in rows]

    def _once(self, layer: nn.Module, kind: str, make: Callable[[], Any]) -> Any:
        """Return what was made of a layer, which is held so that nobody else has its id."""
        key = (id(layer), kind)
        if key not in self._made:
            self._made[key] = layer, make()
        return self._made[key][1]

    def _any(self, layer: Any, relu: bool, plain: Callable[[Any, bool], Conv]) -> Conv:
        if native.computes(layer):
            kernel = native.Layer(layer, relu, self._machine)
            return lambda rows, top, bottom: [kernel(rows, top, bottom)]
        other = plain(layer, relu)
        return lambda rows, top, bottom: [other(self.whole(rows), top, bottom)]

    def _added(self, layer: nn.Conv2d) -> Added:
        if native.computes(layer):
            kernel = native.Layer(layer, True, self._machine)
            return lambda rows, addend, top, bottom: [kernel(rows, top, bottom, addend)]
        other = self._torch.conv_added(layer)
        return lambda rows, addend, top, bottom: [other(self.whole(rows), self.whole(addend), top, bottom)]


def _holds_more(piece: Tensor) -> bool:
    """Say whether a tensor holds on to much more memory than it needs."""
    held = piece.untyped_storage().nbytes()
    return held > 2 * CACHE and held > 2 * piece.numel() * piece.element_size()
