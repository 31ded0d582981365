"""Model files: safetensors whose header carries a model card.

A model file is data only. The card (JSON under the key ``geoseg`` of the safetensors metadata) says
everything that must be known to run the weights: architecture, bands, how pixel values become [0,
1], mean and standard deviation, ground sampling distance, threshold; and where the weights come
from. :func:`read_card` reads nothing but the header and needs no torch. :func:`import_checkpoint`
turns published TernausNet checkpoints into this format without executing anything in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import re
import struct
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from geoseg.errors import ModelError, OutputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from geoseg.unet import Reach

DEFAULT_MODEL = "unet11-buildings"
"""The shipped model that is used when none is named."""

ARCHITECTURES = ("unet11", "unet16")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
"""Pixel types that a card can give a value range for (numpy's names)."""

_KEY = "geoseg"
_SUFFIX = ".safetensors"
_MAX_HEADER = 16 << 20  # bytes; the header of a U-Net takes some 10 kB
_MAX_WIDTH = 1024  # filters or classes, so that a header cannot ask for absurd amounts of memory


# ----------------------------------------------------------------------------------------- the card


@dataclass(frozen=True, slots=True)
class DataSource:
    """One data set the weights were trained on."""

    name: str
    licence: str
    """As its publisher states it."""
    source: str
    """URL or citation."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check_text(f"training_data.{item.name}", getattr(self, item.name))


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What must be known about weights to run them and to trust them. Raises :class:`ModelError` when invalid."""

    name: str
    """Letters, digits, ``.``, ``_`` and ``-``: it also serves as file name."""
    arch: str
    """``unet11`` or ``unet16``."""
    num_filters: int = 32
    """Width of the decoder's last convolution; the others are multiples of it."""
    num_classes: int = 1
    """Logits per pixel: 1 means a sigmoid, more a softmax."""
    is_deconv: bool = False
    """UNet16 only: transposed convolutions instead of bilinear upsampling."""
    bands: tuple[int, ...] = (1, 2, 3)
    """Which bands of a raster are red, green and blue, counted from 1."""
    value_range: dict[str, tuple[float, float]] = field(default_factory=lambda: {"uint8": (0.0, 255.0)})
    """Pixel type (numpy's name) → the values that become 0 and 1. A type that is not here needs a user's choice."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per band, of values in [0, 1]; subtracted."""
    std: tuple[float, ...] = IMAGENET_STD
    """Per band, of values in [0, 1]; divided by."""
    gsd_m: float | None = None
    """Ground sampling distance of the training imagery in metres; ``None`` when not known."""
    threshold: float = 0.3
    """Probability from which a pixel belongs to the class; 0.3 is the paper's for its loss."""
    halo: int | None = None
    """Pixels around a window at which results were measured to stay within one grey level (1/255) of
    whole-image inference, a multiple of 32; ``None`` when that was not measured: the reach is taken."""
    taper: int = 0
    """Width in pixels of the fade between windows that belongs to ``halo``."""
    classes: tuple[str, ...] = ()
    """One name per logit; ``building`` for a single one unless given."""
    training_data: tuple[DataSource, ...] = ()
    """What the weights were trained on, pre-training included."""
    licence: str = ""
    """Of the weights."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figure of merit → value, on data that the description names."""
    description: str = ""
    """Free text."""
    geoseg_version: str = ""
    """Version that wrote the file."""

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise _bad("name", self.name, "letters, digits, '.', '_' and '-', a letter or digit first")
        if self.arch not in ARCHITECTURES:
            raise _bad("arch", self.arch, " or ".join(ARCHITECTURES))
        for key in ("num_filters", "num_classes"):
            _check_count(key, getattr(self, key), _MAX_WIDTH)
        if not isinstance(self.is_deconv, bool) or (self.is_deconv and self.arch == "unet11"):
            raise _bad(
                "is_deconv",
                self.is_deconv,
                "true or false, and false for unet11, which has no choice",
            )
        bands = _sequence("bands", self.bands, 3)
        for band in bands:
            _check_count("bands", band, 65535)
        if self.gsd_m is not None and not (gsd := _number("gsd_m", self.gsd_m)) > 0:
            raise _bad("gsd_m", gsd, "metres above 0, or null")
        if not 0 < _number("threshold", self.threshold) < 1:
            raise _bad("threshold", self.threshold, "a number between 0 and 1")
        if self.halo is not None and (_is_no_count(self.halo) or self.halo % 32):
            raise _bad("halo", self.halo, "a multiple of 32 from 0, or null")
        if _is_no_count(self.taper) or self.taper % 2 or self.taper > 2 * (self.halo or 0):
            raise _bad("taper", self.taper, "an even number from 0 to twice the halo")
        for key in ("licence", "description", "geoseg_version"):
            _check_text(key, getattr(self, key), empty=True)
        std = tuple(_number("std", value) for value in _sequence("std", self.std, 3))
        if min(std) <= 0:
            raise _bad("std", self.std, "numbers above 0")
        # Lists from JSON and integers become what the annotations say, once, here.
        self._settle("bands", bands)
        self._settle("std", std)
        self._settle("mean", tuple(_number("mean", v) for v in _sequence("mean", self.mean, 3)))
        self._settle("value_range", _value_range(self.value_range))
        self._settle("classes", _class_names(self.classes, self.num_classes))
        self._settle("training_data", _data_sources(self.training_data))
        metrics = _mapping("metrics", self.metrics)
        self._settle("metrics", {k: _number(f"metrics.{k}", v) for k, v in metrics.items()})

    def _settle(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)

    def to_json(self) -> str:
        """Return the card as JSON, the same text for equal cards."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the model card") -> ModelCard:
        """Return the card that ``text`` holds; ``where`` names its origin in the :class:`ModelError`."""
        try:
            content = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: the model card is not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise ModelError(f"{where}: the model card is a {type(content).__name__}, not an object")
        try:
            return cls(**_known("a model card", content, cls))
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from error


def _bad(key: str, value: object, wanted: str) -> ModelError:
    return ModelError(f"model card: {key} is {value!r}, not {wanted}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _known(what: str, content: Mapping[str, Any], cls: type) -> Mapping[str, Any]:
    """Return ``content`` if it has the fields of the dataclass ``cls``: none unknown, none missing."""
    fields = {item.name: item for item in dataclasses.fields(cls)}
    if unknown := sorted(set(content) - set(fields)):
        raise ModelError(f"{what} has no {', '.join(map(repr, unknown))}; a newer geoseg may know more than this one")
    missing = dataclasses.MISSING
    required = {k for k, f in fields.items() if f.default is missing and f.default_factory is missing}
    if lacking := sorted(required - set(content)):
        raise ModelError(f"{what} needs {', '.join(map(repr, lacking))}")
    return content


def _check_text(key: str, value: object, *, empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise _bad(key, value, "a text")


def _is_no_count(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int) or value < 0


def _check_count(key: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _bad(key, value, f"a whole number from 1 to {most}")


def _number(key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond float's range is as bad as inf
            if math.isfinite(number := float(value)):
                return number
    raise _bad(key, value, "a finite number")


def _sequence(key: str, value: object, length: int | None = None) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise _bad(key, value, f"a list of {length}" if length else "a list")
    return tuple(value)


def _mapping(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise _bad(key, value, "an object with text keys")
    return value


def _value_range(value: object) -> dict[str, tuple[float, float]]:
    ranges = {}
    for dtype, pair in _mapping("value_range", value).items():
        key = f"value_range.{dtype}"
        if dtype not in DTYPES:
            raise _bad("value_range", value, f"keyed by pixel types ({', '.join(DTYPES)})")
        low, high = (_number(key, v) for v in _sequence(key, pair, 2))
        if low >= high:
            raise _bad(key, pair, "two rising numbers")
        ranges[dtype] = (low, high)
    return ranges


def _class_names(value: object, count: int) -> tuple[str, ...]:
    names = _sequence("classes", value)
    if not names:
        names = ("building",) if count == 1 else tuple(f"class {i}" for i in range(count))
    for name in names:
        _check_text("classes", name)
    if len(names) != count or len(set(names)) != count:
        raise _bad("classes", value, f"{count} different name(s), one per class")
    return names


def _data_sources(value: object) -> tuple[DataSource, ...]:
    return tuple(
        item
        if isinstance(item, DataSource)
        else DataSource(**_known("training_data", _mapping("training_data", item), DataSource))
        for item in _sequence("training_data", value)
    )


# ---------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class Model:
    """A model file in memory."""

    card: ModelCard
    state: dict[str, Tensor]
    """Parameter name → float32 tensor on the CPU."""
    path: Path
    """The file it was read from."""
    fingerprint: str
    """SHA-256 of that file's bytes, 64 hexadecimal digits."""

    def build(self) -> nn.Module:
        """Return the network with these weights, on the CPU, float32, in evaluation mode."""
        net = _empty_network(self.card)
        # Copies, so that training what was built leaves the model as it is.
        weights = {key: tensor.clone() for key, tensor in self.state.items()}
        net.load_state_dict(weights, assign=True)
        return net.eval()

    @cached_property
    def reach(self) -> Reach:
        """How far an output pixel of the network sees (:func:`geoseg.unet.reach`)."""
        from geoseg.unet import reach

        return reach(_empty_network(self.card))


def load_model(name_or_path: str | os.PathLike[str] | None = None) -> Model:
    """Load a shipped model by name, the default one (``None``), or a model file by path.

    Nothing in the file is executed. Raises :class:`ModelError` that says what is wrong with it.
    """
    path = _resolve(name_or_path)
    content = _read_bytes(path)
    card = _card_of(io.BytesIO(content), path)
    state = _as_float32(_decode(content, path))
    _check_state(state, card, str(path))
    return Model(card, state, path, hashlib.sha256(content).hexdigest())


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read the card of a model file from its header alone; needs neither torch nor memory for the weights."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _card_of(stream, path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def list_models() -> list[tuple[str, ModelCard]]:
    """Return ``(name, card)`` of the shipped models in order of name; only headers are read."""
    return [(path.stem, read_card(path)) for path in sorted(_models_folder().glob(f"*{_SUFFIX}"))]


def save_model(path: str | os.PathLike[str], net: nn.Module, card: ModelCard, *, half: bool = True) -> None:
    """Write a network's weights and card as one file, complete or not at all; equal input gives equal bytes.

    ``half`` stores float16, which halves the file; they are float32 again after loading. Raises
    :class:`ModelError` when the weights are not those of the card's architecture or not finite,
    :class:`OutputError` when the file cannot be written.
    """
    _save(Path(path), net.state_dict(), card, half=half)


def _save(path: Path, state: Mapping[str, Tensor], card: ModelCard, *, half: bool) -> None:
    import safetensors.torch
    import torch

    where = f"the weights for {path}"
    tensors = _as_float32(state)
    _check_state(tensors, card, where)
    if half:
        tensors = {key: tensor.to(torch.float16) for key, tensor in tensors.items()}
    if half and (key := _first_not_finite(tensors)):
        raise ModelError(f"{where}: {key} exceeds what float16 can hold; save with half=False")
    card = dataclasses.replace(card, geoseg_version=card.geoseg_version or _version())
    # One metadata key only: the library writes several in random order, and equal models should be
    # equal files.
    _write(path, safetensors.torch.save(tensors, metadata={_KEY: card.to_json()}))


def _version() -> str:
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
    is_name = isinstance(name_or_path, str | None) and path.name == given and path.suffix != _SUFFIX
    if is_name and (shipped := _models_folder() / f"{given}{_SUFFIX}").is_file():
        return shipped
    if path.is_file():
        return path
    names = ", ".join(p.stem for p in sorted(_models_folder().glob(f"*{_SUFFIX}"))) or "none"
    what = "is a folder, not a model file" if path.is_dir() else "no such model or file"
    raise ModelError(f"{given}: {what}. Shipped models: {names}; or give the path of a {_SUFFIX} file")


def _read_bytes(path: Path) -> bytes:
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


def _decode(content: bytes, path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: is truncated or damaged ({error}); copy it again") from error


# --------------------------------------------------------------------------- weights against a card


def _empty_network(card: ModelCard) -> nn.Module:
    """Build the card's network without memory for its weights."""
    import torch

    from geoseg.unet import UNet11, UNet16

    with torch.device("meta"):
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
            f"is_deconv={card.is_deconv}: {_first_few(faults)}"
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


def _first_few(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def _first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    return next((key for key, tensor in state.items() if not tensor.isfinite().all()), None)


# ------------------------------------------------------------------------- checkpoints of other kin


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a plain state dict from safetensors, .pt or .pth; nothing in the file is executed.

    A dict wrapped as ``{"model": …}`` or ``{"state_dict": …}`` is taken out; names are left as they
    are. Raises :class:`ModelError`.
    """
    path = Path(path)
    content = _read_bytes(path)
    if path.suffix == _SUFFIX or _looks_like_safetensors(content):
        return _decode(content, path)
    state = _unwrap(_unpickle_data(content, path))
    wrong = [f"{k!r}: {type(v).__name__}" for k, v in state.items() if not _is_tensor(k, v)]
    if wrong or not state:
        raise ModelError(
            f"{path}: is not a state dict of tensors ({_first_few(wrong) or 'it is empty'}); save "
            "one with "
            f"torch.save(net.state_dict(), FILE)"
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
            "is damaged. Ask its "
            f"author for safetensors, or, where you trust it, load it yourself and save "
            f"torch.save(net.state_dict(), FILE)"
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
        raise _bad("arch", arch, " or ".join(ARCHITECTURES))
    where = os.fspath(src)
    state = _plain_names(read_state(src), arch, where)
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
    made = ModelCard(**_known("a model card", content, ModelCard))
    _save(Path(dst), state, made, half=half)
    return read_card(dst)


def _plain_names(state: Mapping[str, Tensor], arch: str, where: str) -> dict[str, Tensor]:
    """Return ``state`` without wrappers' prefixes and with each convolution of the encoder once."""
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
