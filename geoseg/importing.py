"""Published TernausNet checkpoints become model files; nothing in them is executed."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.card import ARCHITECTURES, ModelCard, bad_field, known_fields
from geoseg.checkpoint import SUFFIX, decode, first_few, read_bytes, read_card, save_state
from geoseg.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a plain state dict from safetensors, .pt or .pth; nothing in the file is executed.

    A dict wrapped as ``{"model": …}`` or ``{"state_dict": …}`` is taken out; names are left as they
    are. Raises :class:`ModelError`.
    """
    path = Path(path)
    content = read_bytes(path)
    if path.suffix == SUFFIX or _looks_like_safetensors(content):
        return decode(content, path)
    state = _unwrap(_unpickle_data(content, path))
    wrong = [f"{k!r}: {type(v).__name__}" for k, v in state.items() if not _is_tensor(k, v)]
    if wrong or not state:
        raise ModelError(
            f"{path}: is not a state dict of tensors ({first_few(wrong) or 'it is empty'}); "
            "save one with torch.save(net.state_dict(), FILE)"
        )
    return state


def _looks_like_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and struct.unpack("<Q", content[:8])[0] <= len(content) - 8


def _is_tensor(key: object, value: object) -> bool:
    import torch

    return (
        isinstance(key, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _unwrap(loaded: object) -> dict[Any, Any]:
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return dict(loaded) if isinstance(loaded, dict) else {type(loaded).__name__: loaded}


def _unpickle_data(content: bytes, path: Path) -> object:
    import torch

    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise ModelError(
            f"{path}: refused, because it is not plain data: reading it would run code{what} or it "
            "is damaged. Ask its author for safetensors, or, where you trust it, load it yourself and save "
            "torch.save(net.state_dict(), FILE)"
        ) from error
    except _UNREADABLE as error:
        raise ModelError(f"{path}: is no checkpoint, or damaged ({error})") from error


_UNREADABLE = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, OverflowError, MemoryError, struct.error,
)  # fmt: skip
"""What torch's data-only unpickler raises on bytes that are no checkpoint: it was written for good ones."""


_LEVELS = {
    "unet11": {
        "conv1": 0, "conv2": 3, "conv3s": 6, "conv3": 8,
        "conv4s": 11, "conv4": 13, "conv5s": 16, "conv5": 18,
    },
    "unet16": {
        f"conv{level}.{2 * i}": index
        for level, indices in enumerate(
            ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1
        )
        for i, index in enumerate(indices)
    },
}  # fmt: skip
"""Second names of the encoder's convolutions in published checkpoints → index in the encoder."""


def import_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    arch: str,
    num_filters: int | None = None,
    half: bool = False,
    card: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Convert a published TernausNet checkpoint into a model file and return its card.

    ``src`` is safetensors, .pt or .pth: a state dict, plain or wrapped, with or without ``module.``
    in front of its names, the encoder under its own names, the level names, or both. Nothing in it
    is executed. The number of filters and classes and the kind of upsampling follow from the shapes
    (``num_filters`` only checks). ``card`` holds further fields of :class:`ModelCard`, by default
    the name is that of ``dst``. Weights stay float32 unless ``half``, so that the logits stay the
    same. Raises :class:`ModelError` and :class:`OutputError`.
    """
    if arch not in ARCHITECTURES:
        raise bad_field("arch", arch, " or ".join(ARCHITECTURES))
    where = os.fspath(src)
    state = plain_names(read_state(src), arch, where)
    final = state.get("final.weight")
    if final is None or final.ndim != 4:
        raise ModelError(f"{where}: is no TernausNet checkpoint, it has no final.weight of four dimensions")
    classes, filters = int(final.shape[0]), int(final.shape[1])
    if num_filters not in (None, filters):
        raise ModelError(f"{where}: has num_filters={filters}, not {num_filters}")
    derived = {
        "arch": arch,
        "num_filters": filters,
        "num_classes": classes,
        "is_deconv": arch == "unet16" and "center.block.1.weight" in state,
    }
    overrides = dict(card or {})
    if clash := sorted(k for k, v in derived.items() if overrides.get(k, v) != v):
        raise ModelError(f"{where}: {', '.join(f'{k} is {derived[k]!r}' for k in clash)} by its weights")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(dst).stem).lstrip("._-") or arch
    content = {"name": name, **overrides, **derived}
    made = ModelCard(**known_fields("a model card", content, ModelCard))
    save_state(Path(dst), state, made, half=half)
    return read_card(dst)


def plain_names(state: Mapping[str, Tensor], arch: str, where: str) -> dict[str, Tensor]:
    """Return ``state`` without wrappers' prefixes and with each convolution of the encoder once.

    Raises:
        ModelError: A tensor is there twice, with different values.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        short = re.sub(r"^((module|_orig_mod)\.)+", "", key)
        if short in named:
            raise ModelError(f"{where}: holds {short} twice, with and without a prefix")
        named[short] = tensor
    for level, index in _LEVELS[arch].items():
        for kind in ("weight", "bias"):
            double = named.pop(f"{level}.{kind}", None)
            key = f"encoder.{index}.{kind}"
            if double is None or _same(named.setdefault(key, double), double):
                continue
            raise ModelError(
                f"{where}: {level}.{kind} and {key} should be the same tensor but differ; which "
                f"one the network used cannot be told"
            )
    return named


def _same(a: Tensor, b: Tensor) -> bool:
    import torch

    return a is b or (a.dtype == b.dtype and torch.equal(a, b))
