"""What computes foreign networks: ONNX Runtime, and torch's interpreter for TorchScript.

Either gives a torch module from ``(N, 3, H, W)`` normalised float32 to ``(N, classes, H, W)``, which
:class:`geoseg.predict.Predictor` runs like any other.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from geoseg.errors import ModelError
from geoseg.tiling import ceil_to

if TYPE_CHECKING:
    from geoseg.card import ForeignCard

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_TRIAL = 64  # pixels, the least side of the images that a network is tried on


def open_network(path: Path, kind: str) -> nn.Module:
    """Open an ONNX or TorchScript file, on the CPU, in evaluation mode.

    Raises:
        ModelError: It is damaged or of another kind, its runtime is not installed, or it does not map one image of
            three bands to one answer.
    """
    return OnnxNetwork(path) if kind == "onnx" else _open_torchscript(path)


class OnnxNetwork(nn.Module):
    """An ONNX file in ONNX Runtime.

    Runs where its input lies, with as many threads as torch would use. Input and output cross the memory of the CPU,
    also when ONNX Runtime computes on a GPU.
    """

    fixed_precision = True
    """Autocast does not reach into ONNX Runtime: the file says what is computed in which precision."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._session: Any = None
        self._place: tuple[torch.device, int] | None = None
        session = self._open(torch.device("cpu"), torch.get_num_threads())
        self._input, self._dtype, self._one_by_one = _signature(session, path)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(N, 3, H, W)`` → ``(N, classes, H, W)``, on the same device."""
        session = self._open(pixels.device, torch.get_num_threads())
        values = np.ascontiguousarray(pixels.cpu().numpy(), dtype=self._dtype)
        parts = np.split(values, len(values)) if self._one_by_one else [values]
        try:
            answers = [session.run(None, {self._input: part})[0] for part in parts]
        except Exception as error:  # ONNX Runtime's errors have no common class below this one
            if "llocate memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise ModelError(
                f"{self._path}: ONNX Runtime fails on {tuple(values.shape)}: {last_line(error)}"
            ) from error
        return torch.from_numpy(answers[0] if len(answers) == 1 else np.concatenate(answers)).to(pixels.device)

    def _open(self, device: torch.device, threads: int) -> Any:
        """Return the session for a device and a number of threads, opened once."""
        if self._place != (device, threads):
            self._session = None  # two at once would hold the weights twice
            self._session = _session(self._path, device, threads)
            self._place = (device, threads)
        return self._session


def _session(path: Path, device: torch.device, threads: int) -> Any:
    if find_spec("onnxruntime") is None:
        raise ModelError(f'{path}: needs ONNX Runtime, which is not installed: pip install "geoseg[onnx]"')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors; they come as exceptions
    # A plan of memory for every shape of window is no faster here and keeps twice as much of it.
    options.enable_mem_pattern = False
    # Between windows the cores belong to reading and vectorising.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers = [("CUDAExecutionProvider", {"device_id": device.index or 0}), *providers]
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ModelError(_no_gpu(path))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no common class below this one
        raise ModelError(f"{path}: ONNX Runtime cannot open it: {last_line(error)}") from error
    # A GPU whose libraries are not found is left out without an error.
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ModelError(_no_gpu(path))
    return session


def _no_gpu(path: Path) -> str:
    return (
        f"{path}: the ONNX Runtime that is installed does not reach the GPU: install onnxruntime-gpu instead of "
        "onnxruntime, or take --device cpu"
    )


def _signature(session: Any, path: Path) -> tuple[str, Any, bool]:
    """Return the input's name and dtype, and whether it takes one image at a time."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        names = [", ".join(item.name for item in side) for side in (inputs, outputs)]
        raise ModelError(
            f"{path}: has {len(inputs)} input(s) ({names[0]}) and {len(outputs)} output(s) ({names[1]}); geoseg needs "
            "one image in and one answer out: export it so"
        )
    (image,) = inputs
    dtype = _FLOATS.get(image.type)
    if dtype is None:
        raise ModelError(f"{path}: takes {image.type}, not floats of 32 or 16 bits; geoseg normalises before it")
    shape = list(image.shape)
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise ModelError(f"{path}: takes images of shape {shape}; geoseg gives (N, 3, H, W), three bands")
    if any(isinstance(side, int) for side in shape[2:]):
        raise ModelError(
            f"{path}: takes images of {shape[2]} × {shape[3]} only, while windows differ in size: export it with "
            "dynamic height and width"
        )
    if isinstance(shape[0], int) and shape[0] != 1:
        raise ModelError(f"{path}: takes {shape[0]} images at once only: export it with a dynamic batch, or one of 1")
    return image.name, dtype, shape[0] == 1


def _open_torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, which its users know
            network: nn.Module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{path}: is no TorchScript archive, or damaged ({last_line(error)})") from error
    return network.eval()


def try_out(network: nn.Module, card: ForeignCard, where: str) -> tuple[str, ...]:
    """Run a network on two images of noise of different shapes, and return what looks odd.

    Raises:
        ModelError: It fails, or its answers are not what the card says.
    """
    side = ceil_to(_TRIAL, card.align)
    low, high = np.inf, -np.inf
    for height, width in ((side, side), (side, side + max(card.align, 32))):
        answer = _answer(network, (1, 3, height, width), card, where)
        low, high = min(low, float(answer.min())), max(high, float(answer.max()))
    if card.output == "probability" and not (low >= -1e-3 and high <= 1.001):
        raise ModelError(
            f"{where}: answers to noise with values from {low:.3g} to {high:.3g}, which are no probabilities; if they "
            'are logits, its card must say "output": "logits"'
        )
    if card.output == "logits" and low >= 0 and high <= 1:
        return (
            f"{where} answers to noise with values from {low:.3g} to {high:.3g}, which look like probabilities; if so, "
            'its card must say "output": "probability"',
        )
    return ()


def _answer(network: nn.Module, shape: tuple[int, int, int, int], card: ForeignCard, where: str) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = f"an image of {shape[2]} × {shape[3]} with three bands"
    try:
        with torch.inference_mode():
            answer = network(noise)
    except RuntimeError as error:
        raise ModelError(f"{where}: fails on {image}: {last_line(error)}") from error
    if not isinstance(answer, Tensor):
        raise ModelError(f"{where}: answers with a {type(answer).__name__}, not with one tensor")
    wanted = (1, card.num_classes, *shape[2:])
    if tuple(answer.shape) != wanted:
        raise ModelError(
            f"{where}: answers to {image} with shape {tuple(answer.shape)}, where its card (num_classes "
            f"{card.num_classes}) promises {wanted}"
        )
    if not bool(answer.isfinite().all()):
        raise ModelError(f"{where}: answers to noise with values that are not finite")
    return answer.float()


def last_line(error: Exception) -> str:
    """Return what an error says at its end: runtimes put their own trace before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
