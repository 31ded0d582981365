"""From pixels to probabilities: normalise, run the network, undo what test-time augmentation did.

The one class here holds a network on a device. It knows nothing of files, blocks or clusters. The rows of a window pass
through geoseg's own networks one strip after the other (:mod:`geoseg.stream`), computed by the engine that
:mod:`geoseg.engines` chooses; other networks take windows whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoseg.engines import DTYPES, Push, Streamed, open_engine
from geoseg.errors import ModelError, SettingError
from geoseg.lane import up
from geoseg.scaling import Scaling as Scaling
from geoseg.scaling import building_class as building_class
from geoseg.stream import strips
from geoseg.tiling import ALIGN, Rect, Window
from geoseg.unet import UNet11, UNet16

if TYPE_CHECKING:
    from geoseg.checkpoint import Model

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "fp32", "bf16", "fp16")
_DIHEDRAL = tuple((turns, flip) for flip in (False, True) for turns in range(4))
_GPU_BATCH = 16
_STRIP_PIXELS = 5 << 17
"""Pixels that enter a streamed network at once: enough for the coarsest level to have some rows."""
_GPU_STRIP, _GPU_BYTES = 30_000_000, 768
"""The same on a GPU, whose thousands of cores want more (64 channels of them have 2³¹ values, which is as far as its
kernels count), and the memory that is to be free for each."""
_PIECE = 1 << 14
"""Values that torch leaves to one thread."""
_ROUNDING = 1e-3  # how far half precision may leave [0, 1]


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SettingError: The name is none of these, or asks for a GPU that this machine does not show.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise SettingError(f"device {wanted!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device {wanted!r} is not one of auto, cpu, cuda, cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise SettingError(f"device {wanted!r}: torch sees {count} GPU(s) here; take --device cpu")
    return device


def choose_precision(wanted: str, device: torch.device, *, fixed: bool = False, own: bool = False) -> Precision:
    """Resolve ``auto``: float32 on a CPU, half precision on a GPU.

    float16 is as fast as bfloat16 and eight times as precise, but its range is small. geoseg's own networks (``own``)
    are scaled to fit into it; of others nobody knows, and they get bfloat16 where the GPU has it.

    ``fixed`` says that the network computes in the precision of its file, which an ONNX network does: it is given
    float32 and anything but ``auto`` and ``fp32`` is refused.
    """
    if wanted not in PRECISIONS:
        raise SettingError(f"precision {wanted!r} is not one of {', '.join(PRECISIONS)}")
    if fixed:
        if wanted in ("auto", "fp32"):
            return "fp32"
        raise SettingError(
            f"precision {wanted!r}: an ONNX network computes in the precision that it was exported in; leave "
            "--precision out"
        )
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    if own:
        return "fp16"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"


class Predictor:
    """A network on a device, in the precision that was asked for, ready for windows."""

    def __init__(
        self,
        net: nn.Module,
        *,
        device: str = "auto",
        precision: str = "auto",
        tta: bool = False,
        target: int = 0,
        batch: int | None = None,
        threads: int | None = None,
        output: str = "logits",
        align: int = 1,
        engine: str = "auto",
    ) -> None:
        """Move the network to its device.

        Args:
            net: Maps ``(N, 3, H, W)`` normalised float to ``(N, classes, H, W)``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
            tta: Average over the eight rotations and mirror images of every window.
            target: Which class is wanted, when the network has several (softmax over the classes).
            batch: Windows per forward pass; by default 1 on the CPU and up to 16 on a GPU, halved until it fits.
            threads: CPU threads for the arithmetic; by default what torch chooses.
            output: What the network answers with: ``logits`` or ``probability``.
            align: What both sides of an image must be multiples of; one that is not is reflected at its right and
                bottom side, and cut again.
            engine: Who does the arithmetic of a U-Net on the CPU: ``auto``, ``torch`` or ``native``.
        """
        self.device = choose_device(device)
        fixed, own = getattr(net, "fixed_precision", False), isinstance(net, UNet11 | UNet16)
        self.precision = choose_precision(precision, self.device, fixed=fixed, own=own)
        self.tta = tta
        self.views = len(_DIHEDRAL) if tta else 1
        self.target = target
        self.batch = batch or (_GPU_BATCH if self.device.type == "cuda" else 1)
        self.threads = threads
        self.output, self.align = output, align
        # Not typed: torch's stubs know this keyword in some releases only.
        placed: Any = net.eval().to(self.device)
        self._net: nn.Module = placed.to(memory_format=torch.channels_last)
        self._turn = threading.Lock()
        self._told: Callable[[int], None] | None = None
        self._strip = _STRIP_PIXELS
        if self.device.type == "cuda":
            if self.precision == "fp32":
                # What torch calls float32 there keeps ten bits of each factor.
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            free, _ = torch.cuda.mem_get_info(self.device)
            self._strip = min(_GPU_STRIP, free // _GPU_BYTES)
        self._streamed = open_engine(engine, self._net, self.device, self.precision)
        self._rescue: Streamed | None = None

    @property
    def engine(self) -> str:
        """What computes the network, in a word or two."""
        return self._streamed.name if self._streamed is not None else "torch"

    @classmethod
    def of(cls, model: Model, **settings: object) -> Predictor:
        """Build the network of a loaded model; ``settings`` as in the constructor."""
        known = {"target": building_class(model.card), "output": model.output, "align": model.align}
        return cls(model.build(), **{**known, **settings})  # type: ignore[arg-type]

    def windows(
        self,
        values: NDArray[np.generic],
        valid: NDArray[np.bool_],
        origin: Rect,
        windows: Iterable[Window],
        scaling: Scaling,
        told: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Window, Tensor]]:
        """Yield every window with its probabilities, in the order given.

        Args:
            values: Stored pixel values, ``(3, H, W)``, covering all windows.
            valid: ``(H, W)``, True where there is data; the rest enters as the mean colour.
            origin: Where the arrays lie in the mosaic.
            windows: What to run; only neighbours of the same shape are batched together.
            scaling: From stored values to what the network expects.
            told: Called with the number of pixels each time that some have been through the network.

        Yields:
            ``(window, probability)`` with float32 probabilities of shape ``window.pixels.shape`` on the device.
        """
        for group in _runs(windows, lambda: self.batch):
            cuts = [window.pixels.slices(origin) for window in group]
            if len(cuts) == 1:
                stored, known = values[None, :, *cuts[0]], valid[None, *cuts[0]]
            else:
                stored = np.stack([values[:, rows, cols] for rows, cols in cuts])
                known = np.stack([valid[rows, cols] for rows, cols in cuts])
            yield from zip(group, self._answers(stored, known, scaling, told), strict=True)

    def probabilities(
        self, values: NDArray[np.generic], valid: NDArray[np.bool_], scaling: Scaling
    ) -> NDArray[np.float32]:
        """Return probabilities ``(N, H, W)`` for stored values ``(N, 3, H, W)`` with validity ``(N, H, W)``.

        ``H`` and ``W`` are multiples of 32. Safe to call from several threads: they take turns on the device.
        """
        return self._answers(values, valid, scaling).cpu().numpy()

    def _answers(
        self,
        values: NDArray[np.generic],
        valid: NDArray[np.bool_],
        scaling: Scaling,
        told: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return :meth:`probabilities` on the device."""
        with torch.inference_mode():
            height, width = valid.shape[1:]
            pad = ((0, -height % self.align), (0, -width % self.align))
            if any(after for _, after in pad):
                values = np.pad(values, ((0, 0), (0, 0), *pad), mode="reflect")
                valid = np.pad(valid, ((0, 0), *pad), mode="reflect")
            image = _Image(values, valid, scaling, self.device)
            with self._turn:
                self._told = told
                if self.threads is not None:
                    # Set on every call: torch keeps the number of threads per calling thread.
                    torch.set_num_threads(self.threads)
                return self._halving(image)[:, :height, :width]

    def _halving(self, image: _Image) -> Tensor:
        count, height, width = image.shape
        try:
            return self._forward(image)
        except torch.OutOfMemoryError:
            if count == 1 and not self._shorter(height * width, width):
                raise
        # Outside the handler, so that the failed attempt's tensors are already freed.
        torch.cuda.empty_cache()
        if count == 1:
            return self._halving(image)
        half = count // 2
        self.batch = max(half, 1)
        return torch.cat([self._halving(image.some(part)) for part in (slice(0, half), slice(half, None))])

    def _shorter(self, pixels: int, width: int) -> bool:
        """Halve the strips that a window goes through in; False when they cannot be shorter."""
        if self._streamed is None:
            return False
        self._strip = min(self._strip, pixels) // 2
        return self._strip >= ALIGN * width

    def _forward(self, image: _Image) -> Tensor:
        if not self.tta:
            return self._through(image.rows, image.shape)
        pixels = image.rows(0, image.shape[1])
        total: Tensor | None = None
        for turns, flip in _DIHEDRAL:
            turned = torch.rot90(pixels.flip(-1) if flip else pixels, turns, (-2, -1))
            turned = turned.contiguous(memory_format=torch.channels_last)
            answer = self._through(partial(_rows_of, turned), (len(turned), *turned.shape[2:]))
            answer = torch.rot90(answer, -turns, (-2, -1))
            answer = answer.flip(-1) if flip else answer
            total = answer if total is None else total + answer
        if total is None:
            raise ModelError("test-time augmentation without a single view")
        return total / len(_DIHEDRAL)

    def _through(self, rows: Callable[[int, int], Tensor], shape: tuple[int, int, int]) -> Tensor:
        """Return the probabilities of images of ``shape``, ``(N, H, W)``.

        Their normalised rows ``start`` to ``stop - 1`` are what ``rows(start, stop)`` returns.
        """
        if self._streamed is None:
            return self._chance(self._logits(self._net, rows(0, shape[1]), self.precision))
        answer = self._over_rows(self._streamed, self.precision, rows, shape)
        if self.precision == "fp16" and not bool(answer.isfinite().all()):
            # Values beyond the range of float16, in spite of the scaling.
            if self._rescue is None:
                self._rescue = open_engine("torch", self._net, self.device, "bf16")
            if self._rescue is not None:
                answer = self._over_rows(self._rescue, "bf16", rows, shape)
        return answer

    def _over_rows(
        self, streamed: Streamed, precision: str, rows: Callable[[int, int], Tensor], shape: tuple[int, int, int]
    ) -> Tensor:
        """Return :meth:`_through` strip by strip."""
        count, height, width = shape
        stream = streamed.checked(self._net, rows, height, width)
        answers, at, counted = None, 0, 0
        for start, stop in strips(height, self._strip // (count * width)):
            if self._told is not None and start:
                self._told((start - counted) * width)
                counted = start
            part = self._logits(partial(_pushed, stream, stop == height), rows(start, stop), precision)
            if part is None:
                continue
            chance = self._chance(part)
            if answers is None:
                answers = chance.new_empty((len(chance), height, width))
            answers[:, at : at + chance.shape[1]] = chance
            at += chance.shape[1]
        if answers is None or at != height:
            raise ModelError(f"{at} rows of {height} came out of the network")
        return answers

    def _logits(self, net: Callable[[Tensor], Any], pixels: Tensor, precision: str) -> Any:
        with torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32"):
            return net(pixels)

    def _chance(self, answer: Tensor) -> Tensor:
        """Return the probability of the wanted class, ``(N, H, W)``, from what the network answers."""
        answer = answer.float()
        if self.output == "probability":
            return _checked(answer[:, self.target])
        if answer.shape[1] == 1:
            return _sigmoid(answer[:, 0])
        return answer.softmax(1)[:, self.target]


class _Image:
    """Stored pixels of one or several windows, on their way into the network."""

    def __init__(
        self, values: NDArray[np.generic], valid: NDArray[np.bool_], scaling: Scaling, device: torch.device
    ) -> None:
        self.shape: tuple[int, int, int] = valid.shape
        self._scaling, self._device = scaling, device
        self._values: Any = values
        self._valid: Any = valid
        if device.type == "cuda":
            # At once, before the device has time for it; small integers travel as they are.
            self._values, self._valid = up(_plain(values), device), up(valid, device)

    def some(self, part: slice) -> _Image:
        """Return some of the windows."""
        found = copy(self)
        found._values, found._valid = self._values[part], self._valid[part]
        found.shape = tuple(found._valid.shape)
        return found

    def rows(self, start: int, stop: int) -> Tensor:
        """Return normalised rows of all windows, ``(N, 3, stop - start, W)`` float32; zero where there is no data."""
        values, valid = self._values[:, :, start:stop], self._valid[:, start:stop]
        if self._device.type != "cuda":
            values, valid = (torch.from_numpy(np.ascontiguousarray(part)) for part in (_plain(values), valid))
        scaling = self._scaling
        mean = torch.tensor(scaling.mean, device=self._device).view(1, 3, 1, 1)
        std = torch.tensor(scaling.std, device=self._device).view(1, 3, 1, 1)
        pixels = ((values.float() - scaling.low) / (scaling.high - scaling.low)).clamp_(0, 1)
        pixels = ((pixels - mean) / std).masked_fill_(~valid[:, None], 0.0)
        return pixels.contiguous(memory_format=torch.channels_last)


def _plain(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values as torch can compute with them: it knows larger whole numbers without a sign too little."""
    return values if values.dtype == np.uint8 else values.astype(np.float32)


def _pushed(push: Push, last: bool, pixels: Tensor) -> Tensor | None:
    return push(pixels, last)


def _rows_of(pixels: Tensor, start: int, stop: int) -> Tensor:
    return pixels[:, :, start:stop]


def _sigmoid(logits: Tensor) -> Tensor:
    """Return the sigmoid, on a CPU piece by piece.

    Where torch shares a tensor out to threads, the last few values of each share go another way than the others and
    differ in the last bit. Pieces are too small to be shared out, so the result depends on no number of threads.
    """
    if logits.device.type != "cpu":
        return logits.sigmoid()
    flat = logits.reshape(-1)
    answer = torch.empty_like(flat)
    for part, into in zip(flat.split(_PIECE), answer.split(_PIECE), strict=True):
        torch.sigmoid(part, out=into)
    return answer.view(logits.shape)


def _checked(chance: Tensor) -> Tensor:
    """Return what a network calls probabilities, refusing what cannot be any."""
    # The comparison is also false for NaN.
    if not bool(((chance >= -_ROUNDING) & (chance <= 1 + _ROUNDING)).all()):
        raise ModelError(
            f"the network answers with values from {float(chance.min()):g} to {float(chance.max()):g}, which are no "
            'probabilities; if they are logits, say "output": "logits" on its card'
        )
    return chance.clamp(0, 1)


def whole_image(
    predictor: Predictor,
    values: NDArray[np.generic],
    valid: NDArray[np.bool_],
    scaling: Scaling,
) -> NDArray[np.float32]:
    """Return one forward pass over a whole image: what every tiling is measured against.

    The right and bottom sides are reflected to the next multiple of 32 and cut off again.

    Args:
        predictor: The network.
        values: Stored values, ``(3, H, W)``.
        valid: ``(H, W)``.
        scaling: From stored values to what the network expects.

    Returns:
        float32 probabilities, ``(H, W)``.
    """
    height, width = valid.shape
    pad = ((0, -height % 32), (0, -width % 32))
    stored = np.pad(values, ((0, 0), *pad), mode="reflect")
    known = np.pad(valid, pad, mode="reflect")
    return predictor.probabilities(stored[None], known[None], scaling)[0, :height, :width]


def _runs(windows: Iterable[Window], longest: Callable[[], int]) -> Iterator[list[Window]]:
    """Group consecutive windows of equal shape, at most ``longest()`` together, which may shrink on the way."""
    group: list[Window] = []
    for window in windows:
        if group and (window.pixels.shape != group[0].pixels.shape or len(group) >= longest()):
            yield group
            group = []
        group.append(window)
    if group:
        yield group
