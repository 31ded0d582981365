"""Which engine runs a network over rows, and whether it can be trusted.

On a CPU that is ``native``, geoseg's own kernels, compiled for the processor (:mod:`geoseg.native`), and torch where
they cannot be. On a GPU torch computes the layers in another arrangement (:mod:`geoseg.gpu_layers`).

Whatever differs from torch's plain layers is compared with them once, on pixels of the first window that it is given;
an engine that does not agree is not used.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoseg import native
from geoseg.errors import SettingError
from geoseg.gpu_layers import GpuEngine, scale_for
from geoseg.layers import Engine, Rows, TorchEngine
from geoseg.native_layers import NativeEngine
from geoseg.stream import Network
from geoseg.unet import UNet11, UNet16

ENGINES = ("auto", "torch", "native")
TRIAL = 128
"""Pixels, the side of what an engine is compared on."""
AGREE = 0.5 / 255
"""How far two engines' probabilities may be apart: half a grey level of ``probability.tif``."""
AGREE_HALF = 4.0
"""In half precision: how many times as far from float32 as torch's plain layers in the same precision."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Push = Callable[[Tensor, bool], "Tensor | None"]


@dataclass(frozen=True)
class Fast:
    """An engine, and how pixels and logits get into and out of it."""

    name: str
    engine: Engine
    enter: Callable[[Tensor], Rows]
    leave: Callable[[Rows], Tensor]

    @classmethod
    def native(cls, net: nn.Module) -> Fast | None:
        """Geoseg's own kernels on this processor; None where they cannot be, or have nothing to do."""
        machine = native.ready()
        if machine is None or not any(native.computes(layer) for layer in net.modules()):
            return None
        engine = NativeEngine(machine)
        return cls("native", engine, engine.rows, engine.whole)

    @classmethod
    def gpu(cls, net: nn.Module, precision: str) -> Fast:
        """The layers of :mod:`geoseg.gpu_layers`, by torch."""
        engine = GpuEngine(DTYPES[precision], scale_for(net) if precision == "fp16" else 1.0)
        return cls("torch", engine, engine.rows, engine.logits)


class Streamed:
    """A network that takes images over rows."""

    def __init__(self, net: nn.Module, fast: Fast | None, precision: str = "fp32") -> None:
        self._net, self._fast = net, fast
        self._network = Network(net, TorchEngine() if fast is None else fast.engine)
        if fast is not None:
            self._network.stream()  # prepares all layers, which may be done while somebody reads
        self._precision = precision
        self.name = "torch" if fast is None else fast.name
        self._trusted = fast is None

    def checked(self, net: nn.Module, rows: Callable[[int, int], Tensor], height: int, width: int) -> Push:
        """Return a function that takes strips of one image and whether they are the last, and returns logits.

        Args:
            net: The network as torch runs it.
            rows: The image's normalised pixels, ``(N, 3, stop - start, width)``.
            height: Rows of the image.
            width: Columns.
        """
        if not self._trusted:
            middle = min(TRIAL, height), min(TRIAL, width)
            begin = (height - middle[0]) // 64 * 32, (width - middle[1]) // 64 * 32
            trial = rows(begin[0], begin[0] + middle[0])[..., begin[1] : begin[1] + middle[1]]
            trial = trial.contiguous(memory_format=torch.channels_last)
            self._judge(net, trial)
        return self._push()

    def _judge(self, net: nn.Module, trial: Tensor) -> None:
        """Go back to torch's plain layers when the engine's answer for ``trial`` is another."""
        kind = trial.device.type
        with torch.autocast(kind, enabled=False):
            wanted = net(trial).sigmoid()
            found = self._push()(trial, True)
        allowed = AGREE
        if self._precision != "fp32":
            with torch.autocast(kind, DTYPES[self._precision]):
                allowed += AGREE_HALF * float((net(trial).float().sigmoid() - wanted).abs().nan_to_num(1).max())
        apart = 1.0 if found is None else float((wanted - found.sigmoid()).abs().max())
        self._trusted = True
        if not apart <= allowed:  # also when it is not a number
            self._fast, self._network = None, Network(self._net, TorchEngine())
            self.name = f"torch ({'native is' if self.name == 'native' else 'its fast layers are'} {apart:.2g} off)"

    def _push(self) -> Push:
        stream, fast = self._network.stream(), self._fast
        if fast is None:
            return stream.push

        def push(pixels: Tensor, last: bool) -> Tensor | None:
            rows = stream.push(fast.enter(pixels), last)
            return None if rows is None else fast.leave(rows)

        return push


def open_engine(wanted: str, net: nn.Module, device: torch.device, precision: str) -> Streamed | None:
    """Return what runs the network over rows; None where it cannot be: a network that is not of geoseg.

    Args:
        wanted: ``torch``, ``native``, or ``auto``: native where it can be.
        net: The network.
        device: Where it lies.
        precision: Native computes in float32 only.

    Raises:
        SettingError: Native is asked for by name and cannot do it.
    """
    if wanted not in ENGINES:
        raise SettingError(f"engine {wanted!r} is not one of {', '.join(ENGINES)}")
    fits = isinstance(net, UNet11 | UNet16)
    able = fits and device.type == "cpu" and precision == "fp32" and wanted != "torch"
    fast = Fast.native(net) if able else None
    if wanted == "native" and fast is None:
        raise SettingError(
            "the engine native computes geoseg's own networks on the CPU in float32, on a processor with AVX2 or NEON; "
            "leave --engine out, or add --device cpu --precision fp32"
        )
    if not fits:
        return None
    if device.type == "cuda":
        return Streamed(net, Fast.gpu(net, precision), precision)
    keep_freed_memory()
    return Streamed(net, fast, precision)


def keep_freed_memory() -> None:
    """Tell glibc to keep what large arrays leave: asking the kernel for fresh pages each time takes torch a tenth."""
    if sys.platform != "linux":
        return
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
