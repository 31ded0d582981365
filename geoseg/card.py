"""The model card: what must be known about weights to run them and to trust them. Needs no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from geoseg.errors import ModelError, SettingError
from geoseg.tiling import ALIGN, ceil_to

ARCHITECTURES = ("unet11", "unet16")
FOREIGN = ("onnx", "torchscript")
"""What :class:`ForeignCard` calls the networks that bring their own layers, by file format."""
OUTPUTS = ("logits", "probability")
MAX_ALIGN = 512
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
"""Pixel types that a card can give a value range for (numpy's names)."""

_MAX_REACH = 16384
_MAX_WIDTH = 1024  # filters or classes, so that a header cannot ask for absurd amounts of memory


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an output pixel can see along one axis, the worse of rows and columns."""

    before: int
    """Pixels towards index 0 that can matter, the output pixel itself not counted."""
    after: int
    """Pixels in the other direction."""

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 0:
            raise SettingError(f"a reach is not negative: {self!r}")

    @property
    def halo(self) -> int:
        """The smallest multiple of 32 that covers the reach on both sides."""
        return ceil_to(max(self.before, self.after), ALIGN)


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

    architectures: ClassVar[tuple[str, ...]] = ARCHITECTURES

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
            raise bad_field("name", self.name, "letters, digits, '.', '_' and '-', a letter or digit first")
        if self.arch not in self.architectures:
            raise bad_field("arch", self.arch, " or ".join(self.architectures))
        for key in ("num_filters", "num_classes"):
            _check_count(key, getattr(self, key), _MAX_WIDTH)
        if not isinstance(self.is_deconv, bool) or (self.is_deconv and self.arch == "unet11"):
            raise bad_field(
                "is_deconv",
                self.is_deconv,
                "true or false, and false for unet11, which has no choice",
            )
        bands = _sequence("bands", self.bands, 3)
        for band in bands:
            _check_count("bands", band, 65535)
        if self.gsd_m is not None and not (gsd := _number("gsd_m", self.gsd_m)) > 0:
            raise bad_field("gsd_m", gsd, "metres above 0, or null")
        if not 0 < _number("threshold", self.threshold) < 1:
            raise bad_field("threshold", self.threshold, "a number between 0 and 1")
        if self.halo is not None and (_is_no_count(self.halo) or self.halo % 32):
            raise bad_field("halo", self.halo, "a multiple of 32 from 0, or null")
        if _is_no_count(self.taper) or self.taper % 2 or self.taper > 2 * (self.halo or 0):
            raise bad_field("taper", self.taper, "an even number from 0 to twice the halo")
        for key in ("licence", "description", "geoseg_version"):
            _check_text(key, getattr(self, key), empty=True)
        std = tuple(_number("std", value) for value in _sequence("std", self.std, 3))
        if min(std) <= 0:
            raise bad_field("std", self.std, "numbers above 0")
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
        given = {item.name for item in dataclasses.fields(self) if item.init}
        content = {key: value for key, value in dataclasses.asdict(self).items() if key in given}
        return json.dumps(content, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the model card") -> Self:
        """Return the card that ``text`` holds; ``where`` names its origin in the :class:`ModelError`."""
        try:
            content = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: the model card is not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise ModelError(f"{where}: the model card is a {type(content).__name__}, not an object")
        try:
            return cls(**known_fields("a model card", content, cls))
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ForeignCard(ModelCard):
    """The card of somebody else's network: an ONNX or TorchScript file with a small JSON file beside it.

    What would silently give wrong buildings if it were guessed has to be said: how pixel values become the network's
    input (``mean``, ``std``), how far an output pixel sees (``reach``), and what comes out (``output``).
    """

    architectures: ClassVar[tuple[str, ...]] = FOREIGN

    arch: str
    """``onnx`` or ``torchscript``: what the file is."""
    num_filters: int = field(default=1, init=False)
    """Of geoseg's own networks only; no part of this card."""
    is_deconv: bool = field(default=False, init=False)
    """Of geoseg's own networks only; no part of this card."""
    mean: tuple[float, ...] = field()
    std: tuple[float, ...] = field()
    threshold: float = 0.5
    reach: tuple[int, int] = field()
    """Pixels before (above, left of) and after an output pixel that can matter to it; one number for both. Where a
    network looks at the whole image: what was found to be enough."""
    output: str = field()
    """``logits``, of which geoseg takes the sigmoid (one class) or softmax (several), or ``probability``."""
    align: int = 32
    """Both sides of an image have to be multiples of this: a divisor or a multiple of 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        reach = self.reach if isinstance(self.reach, list | tuple) else (self.reach, self.reach)
        if len(reach) != 2 or any(_is_no_count(side) or side > _MAX_REACH for side in reach):
            raise bad_field("reach", self.reach, f"one or two whole numbers of pixels from 0 to {_MAX_REACH}")
        if self.output not in OUTPUTS:
            raise bad_field("output", self.output, " or ".join(OUTPUTS))
        _check_count("align", self.align, MAX_ALIGN)
        if 32 % self.align and self.align % 32:
            raise bad_field("align", self.align, f"a divisor or a multiple of 32 up to {MAX_ALIGN}")
        if (self.halo or 0) % self.align:
            raise bad_field("halo", self.halo, f"a multiple of align, {self.align}")
        self._settle("reach", tuple(reach))


def bad_field(key: str, value: object, wanted: str) -> ModelError:
    """Return the error that quotes a field of a card and says what it should have been."""
    return ModelError(f"model card: {key} is {value!r}, not {wanted}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def known_fields(what: str, content: Mapping[str, Any], cls: type) -> Mapping[str, Any]:
    """Return ``content`` if it has the fields of the dataclass ``cls``: none unknown, none missing."""
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    if unknown := sorted(set(content) - set(fields)):
        raise ModelError(f"{what} has no {', '.join(map(repr, unknown))}; a newer geoseg may know more than this one")
    missing = dataclasses.MISSING
    required = {k for k, f in fields.items() if f.default is missing and f.default_factory is missing}
    if lacking := sorted(required - set(content)):
        raise ModelError(f"{what} needs {', '.join(map(repr, lacking))}")
    return content


def _check_text(key: str, value: object, *, empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise bad_field(key, value, "a text")


def _is_no_count(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int) or value < 0


def _check_count(key: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise bad_field(key, value, f"a whole number from 1 to {most}")


def _number(key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond float's range is as bad as inf
            if math.isfinite(number := float(value)):
                return number
    raise bad_field(key, value, "a finite number")


def _sequence(key: str, value: object, length: int | None = None) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise bad_field(key, value, f"a list of {length}" if length else "a list")
    return tuple(value)


def _mapping(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise bad_field(key, value, "an object with text keys")
    return value


def _value_range(value: object) -> dict[str, tuple[float, float]]:
    ranges = {}
    for dtype, pair in _mapping("value_range", value).items():
        key = f"value_range.{dtype}"
        if dtype not in DTYPES:
            raise bad_field("value_range", value, f"keyed by pixel types ({', '.join(DTYPES)})")
        low, high = (_number(key, v) for v in _sequence(key, pair, 2))
        if low >= high:
            raise bad_field(key, pair, "two rising numbers")
        ranges[dtype] = (low, high)
    return ranges


def _class_names(value: object, count: int) -> tuple[str, ...]:
    names = _sequence("classes", value)
    if not names:
        names = ("building",) if count == 1 else tuple(f"class {i}" for i in range(count))
    for name in names:
        _check_text("classes", name)
    if len(names) != count or len(set(names)) != count:
        raise bad_field("classes", value, f"{count} different name(s), one per class")
    return names


def _data_sources(value: object) -> tuple[DataSource, ...]:
    return tuple(
        item
        if isinstance(item, DataSource)
        else DataSource(**known_fields("training_data", _mapping("training_data", item), DataSource))
        for item in _sequence("training_data", value)
    )
