"""Which engine runs a network over rows, and whether it can be trusted: torch, or MNN where it is asked for.

``auto`` is torch. MNN chooses its kernels by the number of threads, and its rounding with them, so its results are the
same to half a grey level only, not to the byte, when the number of threads is another: whoever wants that says so.
An engine other than torch is compared with torch once, on pixels of the first window that it is given; one that does
not agree is not used.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geoseg import mnn
from geoseg.errors import SettingError
from geoseg.layers import TorchEngine
from geoseg.stream import Network
from geoseg.unet import UNet11, UNet16

ENGINES = ("auto", "torch", "mnn")
TRIAL = 256
"""Pixels, the side of what an engine is compared on."""
AGREE = 0.5 / 255
"""How far two engines' probabilities may be apart: half a grey level of ``probability.tif``."""

Push = Callable[[Tensor, bool], "Tensor | None"]


class Streamed:
    """A network that takes images over rows."""

    def __init__(self, net: nn.Module, threads: int | None, use_mnn: bool) -> None:
        self._plain = Network(net, TorchEngine())
        self._fast: Network | None = None
        self._mnn: mnn.MnnEngine | None = None
        self.name = "torch"
        if use_mnn:
            self._mnn = mnn.MnnEngine(threads or torch.get_num_threads())
            self._fast = Network(net, self._mnn)
            self.name = "mnn"
        self._trusted = not use_mnn

    def checked(self, net: nn.Module, rows: Callable[[int, int], Tensor], height: int, width: int) -> Push:
        """Return a function that takes strips of one image and whether they are the last, and returns logits.

        Args:
            net: The network as torch runs it.
            rows: The image's normalised pixels, ``(1, 3, stop - start, width)``.
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
        """Go back to torch when the other engine's answer for ``trial`` is another."""
        wanted, found = net(trial), self._push()(trial, True)
        apart = 1.0 if found is None else float((wanted.sigmoid() - found.sigmoid()).abs().max())
        self._trusted = True
        if not apart <= AGREE:  # also when it is not a number
            self._fast = self._mnn = None
            self.name = f"torch (mnn is {apart:.2g} off)"

    def _push(self) -> Push:
        if self._fast is None or self._mnn is None:
            return self._plain.stream().push
        stream, engine = self._fast.stream(), self._mnn

        def push(pixels: Tensor, last: bool) -> Tensor | None:
            rows = stream.push(engine.rows(pixels.numpy()), last)
            return None if rows is None else torch.from_numpy(engine.array(rows))

        return push


def open_engine(
    wanted: str, net: nn.Module, device: torch.device, precision: str, threads: int | None
) -> Streamed | None:
    """Return what runs the network over rows; None where it cannot be: a network that is not of geoseg.

    Args:
        wanted: ``torch``, ``mnn``, or ``auto``, which is torch.
        net: The network.
        device: Where it lies.
        precision: MNN computes in float32 only.
        threads: CPU threads; None for as many as torch takes.

    Raises:
        SettingError: MNN is asked for by name and cannot do it.
        ModelError: MNN is asked for by name and not installed.
    """
    if wanted not in ENGINES:
        raise SettingError(f"engine {wanted!r} is not one of {', '.join(ENGINES)}")
    fits = isinstance(net, UNet11 | UNet16)
    able = fits and device.type == "cpu" and precision == "fp32" and mnn.suits(net)
    if wanted == "mnn" and not able:
        raise SettingError(
            "the engine mnn computes geoseg's own networks, with filters in multiples of 4, on the CPU in float32; "
            "leave --engine out, or add --device cpu --precision fp32"
        )
    if not fits:
        return None
    keep_freed_memory()
    return Streamed(net, threads, wanted == "mnn")


def keep_freed_memory() -> None:
    """Tell glibc to keep what large arrays leave: asking the kernel for fresh pages each time takes torch a tenth."""
    if sys.platform != "linux":
        return
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
