"""The network's arithmetic by MNN, whose Winograd kernels need a third of the multiplications on a CPU.

MNN (https://github.com/alibaba/MNN) is optional: ``pip install "geoseg[fast]"``. Each layer becomes a small MNN model
(:mod:`geoseg.mnn_layers`), and the rows between layers stay in MNN's own layout. :mod:`geoseg.stream` says which rows
go where.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from geoseg.errors import ModelError
from geoseg.layers import Added, Conv, Layer, Rows
from geoseg.mnn_layers import write_layer
from geoseg.tiling import ceil_to

PACK = 4
"""Channels that MNN keeps together."""

NEEDED = ("MNN", "onnx")
"""What has to be installed."""


def available() -> bool:
    """Say whether MNN and what its models are made with are installed; nothing is imported."""
    return all(find_spec(name) is not None for name in NEEDED)


def suits(net: nn.Module) -> bool:
    """Say whether all values between the layers have channels in multiples of :data:`PACK`."""
    inner = [conv.out_channels for conv in net.modules() if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)][:-1]
    return all(channels % PACK == 0 for channels in inner)


class MnnEngine:
    """MNN on the CPU, float32; see :class:`geoseg.layers.Engine`.

    Args:
        threads: CPU threads.

    Raises:
        ModelError: MNN or onnx is not installed, or MNN refuses a layer.
    """

    def __init__(self, threads: int) -> None:
        if not available():
            raise ModelError('the engine mnn needs two packages more: pip install "geoseg[fast]"')
        with _silent():
            import MNN.expr
            import MNN.nn

            self._expr = MNN.expr
            self._nn = MNN.nn
        self._settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        self._layers: dict[tuple[int, bool], _Layer] = {}

    def rows(self, values: NDArray[np.float32]) -> Rows:
        """Return an array ``(1, channels, rows, width)`` as MNN holds it, with channels of zeros up to a multiple of 4.

        Copies of other numbers of channels overrun their memory in MNN.
        """
        expr = self._expr
        _, channels, rows, width = values.shape
        filled = np.zeros((1, ceil_to(channels, PACK), rows, width), np.float32)
        filled[:, :channels] = values
        plain = expr.const(filled, list(filled.shape), expr.NCHW)
        return self.keep(expr.convert(plain, expr.NC4HW4))

    def array(self, rows: Rows) -> NDArray[np.float32]:
        """Return rows as an array ``(1, channels, rows, width)``, a copy."""
        plain = self._expr.convert(rows, self._expr.NCHW)  # held: what it reads as is its own memory
        return np.array(plain.read(), dtype=np.float32)

    def conv(self, layer: nn.Conv2d, relu: bool) -> Conv:
        """See :class:`geoseg.layers.Engine`."""
        margin, across = (int(side) for side in layer.padding)
        facts = {"kernel_shape": list(layer.kernel_size), "pads": [0, across, 0, across]}
        made = self._layer(layer, relu, "Conv", facts)

        def apply(rows: Rows, top: bool, bottom: bool) -> Rows:
            if margin and (top or bottom):
                blank = self._blank(rows, margin)
                rows = self.stack([*([blank] * top), rows, *([blank] * bottom)])
            return made(rows)

        return apply

    def conv_added(self, layer: nn.Conv2d) -> Added:
        """See :class:`geoseg.layers.Engine`."""
        conv, expr = self.conv(layer, False), self._expr
        return lambda rows, addend, top, bottom: self.keep(expr.relu(expr.add(conv(rows, top, bottom), addend)))

    def double(self, layer: nn.Module) -> Layer:
        """See :class:`geoseg.layers.Engine`."""
        if isinstance(layer, nn.ConvTranspose2d):
            facts = {
                "kernel_shape": list(layer.kernel_size),
                "pads": [1, 1, 1, 1],
                "strides": [2, 2],
                "output_padding": list(layer.output_padding),
            }
            return self._layer(layer, True, "ConvTranspose", facts)
        return self._layer(layer, False, "Resize", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"})

    def pool(self, rows: Rows) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return self.keep(self._expr.max_pool(rows, (2, 2), (2, 2)))

    def height(self, rows: Rows) -> int:
        """See :class:`geoseg.layers.Engine`."""
        return int(rows.shape[2])

    def cut(self, rows: Rows, start: int, stop: int) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        _, channels, _, width = rows.shape
        return self._expr.slice(rows, [0, 0, start, 0], [1, channels, stop - start, width])

    def stack(self, parts: Sequence[Rows]) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return self._expr.concat(list(parts), 2)

    def beside(self, first: Rows, second: Rows) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return self._expr.concat([first, second], 1)

    def keep(self, rows: Rows) -> Rows:
        """See :class:`geoseg.layers.Engine`."""
        return self._expr.clone(rows, True)

    def _blank(self, like: Rows, rows: int) -> Rows:
        """Return rows of zeros, as wide and with as many channels as ``like``."""
        _, channels, _, width = like.shape
        return self.rows(np.zeros((1, channels, rows, width), np.float32))

    def _layer(self, layer: nn.Module, relu: bool, operation: str, attributes: dict[str, Any]) -> Layer:
        """Return a layer as MNN runs it, made once: preparing its weights takes longer than a strip."""
        key = (id(layer), relu)
        if key not in self._layers:
            self._layers[key] = _Layer(layer, relu, operation, attributes)

        def apply(rows: Rows) -> Rows:
            made = self._layers[key]
            if made.forward is None:
                self._make()
            if made.forward is None:
                raise ModelError(f"MNN could not take a layer of the network ({operation}): use --engine torch")
            return made.forward(rows)

        return apply

    def _make(self) -> None:
        """Make all layers that were asked for."""
        new = [made for made in self._layers.values() if made.forward is None]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for number, made in enumerate(new):
                made.write(folder, str(number))
            command = [sys.executable, "-m", "geoseg.mnn_layers", str(folder)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                raise ModelError(f"MNN could not take the network ({' '.join(last)}): use --engine torch")
            with _silent():
                for number, made in enumerate(new):
                    # Each with memory of its own: what one answers lies where it works, and others must not work there.
                    made.runtime = self._nn.create_runtime_manager((self._settings,))
                    module = self._nn.load_module_from_file(
                        str(folder / f"{number}.mnn"), ["x"], ["y"], runtime_manager=made.runtime
                    )
                    made.forward = module.forward


@dataclass
class _Layer:
    """A layer, and what MNN made of it."""

    layer: nn.Module
    """Held: while it lives nobody else has its id."""
    relu: bool
    operation: str
    attributes: dict[str, Any]
    runtime: Any = None
    forward: Layer | None = None

    def write(self, folder: Path, name: str) -> None:
        """Write it for :mod:`geoseg.mnn_layers`."""
        weights: dict[str, NDArray[np.float32]] = {}
        channels: list[Any] = [None, None]
        if self.operation == "Resize":
            weights = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
        else:
            for key in ("weight", "bias"):
                if (value := getattr(self.layer, key)) is not None:
                    weights[key] = np.ascontiguousarray(value.detach().float().cpu().numpy())
            channels = [int(getattr(self.layer, f"{side}_channels")) for side in ("in", "out")]
            if self.operation == "Conv" and (more := -channels[0] % PACK):
                weights["weight"] = np.pad(weights["weight"], ((0, 0), (0, more), (0, 0), (0, 0)))
                channels[0] += more
        facts = {"operation": self.operation, "attributes": self.attributes, "channels": channels, "relu": self.relu}
        write_layer(folder, name, facts, weights)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what MNN prints off standard output, which is for data."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
