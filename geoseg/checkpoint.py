"""Model files: safetensors whose header carries a model card.

A model file is data only. The card (JSON under the key ``geoseg`` of the safetensors metadata) says everything that
must be known to run the weights: architecture, bands, how pixel values become [0, 1], mean and standard deviation,
ground sampling distance, threshold; and where the weights come from. :func:`read_card` reads nothing but the header and
needs no torch. Published TernausNet checkpoints are turned into this format by :mod:`geoseg.importing`. Networks that
bring their own layers, ONNX and TorchScript files with a card beside them, are in :mod:`geoseg.foreign`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from geoseg.card import ModelCard, Reach
from geoseg.errors import ModelError, OutputError

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_MODEL = "unet16-buildings"
"""The shipped model that is used when none is named."""

SUFFIX = ".safetensors"
"""What names of model files end in."""

_KEY = "geoseg"
_MAX_HEADER = 16 << 20  # bytes; the header of a U-Net takes some 10 kB


_REACH = {
    ("unet11", False): Reach(153, 184),
    ("unet16", False): Reach(215, 215),
    ("unet16", True): Reach(215, 215),
}
"""By architecture and ``is_deconv``, as :func:`geoseg.unet.reach` finds it (a test compares), without torch."""


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What is known of a model without its weights in memory, and without torch."""

    card: ModelCard
    path: Path
    """The file it was read from."""
    fingerprint: str
    """SHA-256 of that file's bytes, 64 hexadecimal digits."""

    @property
    def reach(self) -> Reach:
        """How far an output pixel of the network sees (:func:`geoseg.unet.reach`)."""
        return _REACH[self.card.arch, self.card.is_deconv]

    @property
    def output(self) -> str:
        """What the network answers with: ``logits`` or ``probability``."""
        return "logits"

    @property
    def align(self) -> int:
        """What both sides of an image must be multiples of."""
        return 32

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before running it."""
        return ()


@dataclass(frozen=True, eq=False)
class Model(ModelFile):
    """A model file in memory."""

    state: dict[str, Tensor]
    """Parameter name → float32 tensor on the CPU."""

    def build(self) -> nn.Module:
        """Return the network with these weights, on the CPU, float32, in evaluation mode."""
        net = _empty_network(self.card)
        # Copies, so that training what was built leaves the model as it is.
        weights = {key: tensor.clone() for key, tensor in self.state.items()}
        net.load_state_dict(weights, assign=True)
        return net.eval()

    @property
    def parameters(self) -> int | None:
        """How many numbers were learnt; None when the file does not tell."""
        return sum(tensor.numel() for tensor in self.state.values())


def look_at_model(name_or_path: str | os.PathLike[str] | None = None) -> ModelFile:
    """Read what must be known to plan with a model, named as for :func:`load_model`, but not its weights.

    Whether the weights fit the card shows when they are loaded; a file that was cut short is found here. A foreign
    network is loaded, since only trying it tells whether it fits its card.
    """
    from geoseg.foreign import format_of, load_foreign

    path = _resolve(name_or_path)
    if kind := format_of(path):
        return load_foreign(path, kind)
    try:
        with path.open("rb") as stream:
            card = _card_of(stream, path)
            stream.seek(0)
            _check_length(stream, path)
            stream.seek(0)
            return ModelFile(card, path, hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def load_model(name_or_path: str | os.PathLike[str] | None = None) -> Model:
    """Load a shipped model by name, the default one (``None``), or a model file by path.

    Nothing in a model file of geoseg is executed. An ONNX or TorchScript file gives a
    :class:`geoseg.foreign.ForeignModel`; see there what runs in which. Raises :class:`ModelError` that says what is
    wrong with the file.
    """
    from geoseg.foreign import format_of, load_foreign

    path = _resolve(name_or_path)
    if kind := format_of(path):
        return load_foreign(path, kind)
    content = read_bytes(path)
    card = _card_of(io.BytesIO(content), path)
    state = _as_float32(decode(content, path))
    _check_state(state, card, str(path))
    return Model(card, path, hashlib.sha256(content).hexdigest(), state)


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read the card of a model file from its header alone; needs neither torch nor memory for the weights.

    For an ONNX or TorchScript file, the card beside it is read.
    """
    from geoseg.foreign import format_of, read_card_beside

    path = Path(path)
    if kind := format_of(path):
        return read_card_beside(path, kind)[0]
    try:
        with path.open("rb") as stream:
            return _card_of(stream, path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def list_models() -> list[tuple[str, ModelCard]]:
    """Return ``(name, card)`` of the shipped models in order of name; only headers are read."""
    return [(path.stem, read_card(path)) for path in sorted(_models_folder().glob(f"*{SUFFIX}"))]


def shipped_name(path: Path) -> str | None:
    """Return the name under which any geoseg of this version finds the model at ``path``, None for a user's own."""
    return path.stem if path.suffix == SUFFIX and path.absolute().parent == _models_folder().absolute() else None


def save_model(path: str | os.PathLike[str], net: nn.Module, card: ModelCard, *, half: bool = True) -> None:
    """Write a network's weights and card as one file, complete or not at all; equal input gives equal bytes.

    ``half`` stores float16, which halves the file; they are float32 again after loading. Raises
    :class:`ModelError` when the weights are not those of the card's architecture or not finite,
    :class:`OutputError` when the file cannot be written.
    """
    save_state(Path(path), net.state_dict(), card, half=half)


def save_state(path: Path, state: Mapping[str, Tensor], card: ModelCard, *, half: bool) -> None:
    """Do what :func:`save_model` does, with the weights as a state dict."""
    import safetensors.torch
    import torch

    where = f"the weights for {path}"
    tensors = _as_float32(state)
    _check_state(tensors, card, where)
    if half:
        tensors = {key: tensor.to(torch.float16) for key, tensor in tensors.items()}
    if half and (key := _first_not_finite(tensors)):
        raise ModelError(f"{where}: {key} exceeds what float16 can hold; save with half=False")
    card = dataclasses.replace(card, geoseg_version=card.geoseg_version or geoseg_version())
    # One metadata key only: the library writes several in random order, and equal models should be
    # equal files.
    _write(path, safetensors.torch.save(tensors, metadata={_KEY: card.to_json()}))


def geoseg_version() -> str:
    """Return the version of geoseg for the cards it writes; ``unknown`` where it runs without being installed."""
    try:
        return metadata.version("geoseg")
    except metadata.PackageNotFoundError:
        return "unknown"  # used from a source tree that was not installed


def _write(path: Path, content: bytes) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's files are private, a model is not
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _models_folder() -> Path:
    return Path(str(resources.files("geoseg"))) / "models"


def _resolve(name_or_path: str | os.PathLike[str] | None) -> Path:
    given = os.fspath(DEFAULT_MODEL if name_or_path is None else name_or_path)
    path = Path(given)
    is_name = isinstance(name_or_path, str | None) and path.name == given and path.suffix != SUFFIX
    if is_name and (shipped := _models_folder() / f"{given}{SUFFIX}").is_file():
        return shipped
    if path.is_file():
        return path
    names = ", ".join(p.stem for p in sorted(_models_folder().glob(f"*{SUFFIX}"))) or "none"
    what = "is a folder, not a model file" if path.is_dir() else "no such model or file"
    raise ModelError(
        f"{given}: {what}. Shipped models: {names}; or give the path of a {SUFFIX}, .onnx or TorchScript file"
    )


def read_bytes(path: Path) -> bytes:
    """Return a file's content; :class:`ModelError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def _card_of(stream: BinaryIO, path: Path) -> ModelCard:
    metadata_ = _header(stream, path).get("__metadata__", {})
    text = metadata_.get(_KEY) if isinstance(metadata_, dict) else None
    if not isinstance(text, str):
        raise ModelError(
            f"{path}: has no geoseg model card. If it is a TernausNet checkpoint, convert it with "
            f"'geoseg model import {path.name} OUT.safetensors --arch unet11' (or unet16)"
        )
    return ModelCard.from_json(text, str(path))


def _header(stream: BinaryIO, path: Path) -> dict[str, Any]:
    """Return a safetensors header: eight bytes of length (little-endian), then that much JSON."""
    start, brace = stream.read(8), stream.read(1)
    # A pickle begins with 0x80, but so does one length of header in 32.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and brace != b"{"):
        raise ModelError(f"{path}: is a PyTorch checkpoint, not a geoseg model; convert it with 'geoseg model import'")
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    if not 2 <= length <= _MAX_HEADER:
        raise ModelError(
            f"{path}: is not a safetensors file"
            + (f" (its header would have {length} bytes, at most {_MAX_HEADER} are read)" if length > 0 else "")
        )
    text = brace + stream.read(length - 1)
    if not text.startswith(b"{"):
        raise ModelError(f"{path}: is not a safetensors file")
    if len(text) < length:
        raise ModelError(f"{path}: is truncated: {len(text)} of {length} bytes of header; copy it again")
    try:
        header: dict[str, Any] = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is damaged: header {error}; copy it again") from error
    return header


def _check_length(stream: BinaryIO, path: Path) -> None:
    """Raise :class:`ModelError` when a safetensors file ends before its tensors do."""
    header = _header(stream, path)
    begin = stream.tell()
    length = stream.seek(0, os.SEEK_END) - begin
    try:
        ends = [int(item["data_offsets"][1]) for name, item in header.items() if name != "__metadata__"]
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{path}: is damaged: its header does not say where its tensors are; copy it again") from error
    wanted = max(ends, default=0)
    if length < wanted:
        raise ModelError(f"{path}: is truncated or damaged ({length} of {wanted} bytes of weights); copy it again")


def decode(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file; :class:`ModelError`, naming ``path``, when damaged."""
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: is truncated or damaged ({error}); copy it again") from error


def _empty_network(card: ModelCard) -> nn.Module:
    """Build the card's network without memory for its weights."""
    import torch

    from geoseg.unet import Undrawn, UNet11, UNet16

    with torch.device("meta"), Undrawn():
        if card.arch == "unet11":
            return UNet11(card.num_filters, card.num_classes)
        return UNet16(card.num_classes, card.num_filters, card.is_deconv)


def _check_state(state: Mapping[str, Tensor], card: ModelCard, where: str) -> None:
    """Raise :class:`ModelError` unless ``state`` has the names, shapes and finite numbers the card's network needs."""
    expected = {key: tuple(t.shape) for key, t in _empty_network(card).state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    faults = [f"{k} is missing" for k in expected if k not in found]
    faults += [f"{k} is not part of {card.arch}" for k in found if k not in expected]
    faults += [
        f"{k} has shape {found[k]} instead of {shape}" for k, shape in expected.items() if found.get(k, shape) != shape
    ]
    faults += [f"{k} holds {t.dtype}, not floats" for k, t in state.items() if not t.is_floating_point()]
    if faults:
        raise ModelError(
            f"{where} does not fit {card.arch} with num_filters={card.num_filters}, "
            f"num_classes={card.num_classes}, "
            f"is_deconv={card.is_deconv}: {first_few(faults)}"
        )
    if key := _first_not_finite(state):
        raise ModelError(f"{where}: {key} holds values that are not finite")


def _as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return floating-point tensors as float32 on the CPU, contiguous; others as they are, to be refused."""
    import torch

    return {
        key: t.detach().to("cpu", torch.float32).contiguous() if t.is_floating_point() else t
        for key, t in state.items()
    }


def first_few(items: Iterable[str], most: int = 4) -> str:
    """Return the first few items as one text that says how many more there are."""
    items = list(items)
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def _first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    return next((key for key, tensor in state.items() if not tensor.isfinite().all()), None)
