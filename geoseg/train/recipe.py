"""What to train, on what, and how: the ``[train]`` table of a pipeline file.

The defaults are the TernausNet paper's protocol: random crops of 768, validation on centre crops of 1440, Adam at
0.001, 100 epochs, ``H - log J``, no augmentation, the threshold chosen on the validation images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from geoseg.errors import SettingError
from geoseg.predict import PRECISIONS
from geoseg.tiling import ALIGN
from geoseg.train.initial import INITS
from geoseg.train.losses import FORMS

Table = TypeVar("Table")

ARCHS = ("unet11", "unet16")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and what is known of them: masks of their size, or polygons. One ``[[train.data]]`` table.

    The images of one table are one data set: one licence, one weight. Masks go with images by name; where names differ
    by an ending (``a_rgb.tif``, ``a_mask.tif``) the endings are said.
    """

    images: tuple[str, ...]
    """Files, folders and globs."""
    masks: tuple[str, ...] = ()
    """Files, folders and globs of masks; one per image, of its size."""
    image_ending: str = ""
    """What image names have before their suffix and masks' names have not, such as ``_rgb``."""
    mask_ending: str = ""
    """The same of masks, such as ``_mask``."""
    buildings: str | None = None
    """Instead of masks: a vector file with the buildings as polygons, in any CRS."""
    aoi: str | None = None
    """A vector file with polygons inside which every building is outlined; pixels outside count in nothing."""
    only: tuple[str, ...] = ()
    """Names (without suffix, ``*`` and ``[1-5]`` allowed) of the images to take; none: all."""
    but: tuple[str, ...] = ()
    """Names of images to leave out."""
    classes: tuple[int, ...] | None = None
    """Mask values that mean building; by default the only one besides 0."""
    ignore: tuple[int, ...] = ()
    """Mask values that mean 'not labelled': those pixels count in nothing."""
    bands: tuple[int, int, int] | None = None
    """Bands that are red, green and blue, from 1; by default the first three."""
    range: tuple[float, float] | None = None
    """Stored values that mean black and white; needed where images are not 8-bit."""
    gsd: float | None = None
    """Metres a pixel spans on the ground, where the files do not say."""
    weight: float | None = None
    """How often crops come from here, relative to the other tables; by default in proportion to the pixels."""
    scale: tuple[float, float] | None = None
    """Instead of the recipe's: by how much crops are enlarged at random, smallest and largest factor."""
    name: str = ""
    """For the model card, with ``licence`` and ``source``."""
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _settle(self)
        if not self.images:
            raise SettingError("a data table names no images")
        if bool(self.masks) == (self.buildings is not None):
            raise SettingError("a data table needs masks, or buildings (a vector file), and not both")
        for key in ("gsd", "weight"):
            _positive(self, key)
        if self.scale is not None:
            _range(self, "scale")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise SettingError(f"range is {list(self.range)}; it must be two rising numbers")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of crops, image and mask together: the ``[train.augment]`` table. None by default."""

    turn: bool = False
    """Quarter turns and mirror images, all eight alike."""
    scale: tuple[float, float] = (1.0, 1.0)
    """By how much crops are enlarged, smallest and largest factor; log-uniform between."""
    brightness: float = 0.0
    """Up to this part brighter or darker; so too ``contrast`` and ``saturation`` (torchvision's ``ColorJitter``)."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Shift around the colour circle, at most 0.5."""
    gamma: tuple[float, float] = (1.0, 1.0)
    """Exponent of the values, smallest and largest."""
    tint: float = 0.0
    """Each band up to this part brighter or darker by itself."""
    blur: float = 0.0
    """Largest standard deviation in pixels of a Gaussian blur that three crops in ten get."""
    noise: float = 0.0
    """Largest standard deviation, on the scale 0 … 1, of the noise that three crops in ten get."""

    def __post_init__(self) -> None:
        _settle(self)
        for key in ("brightness", "contrast", "saturation", "hue", "tint", "blur", "noise"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"augment: {key} is {value}; it must be a number from 0")
        if self.hue > 0.5 or self.tint >= 1:
            raise SettingError("augment: hue is at most 0.5, and tint below 1")
        for key in ("scale", "gamma"):
            _range(self, key)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a training run depends on: the ``[train]`` table of a pipeline file."""

    out: str
    """Folder for the model files, the learning curves and the state to resume from."""
    data: tuple[Dataset, ...]
    """What to learn from."""
    validate: tuple[Dataset, ...]
    """What to choose the threshold and the best epoch on; never learnt from."""
    augment: Augment = field(default_factory=Augment)
    name: str = ""
    """Of the model; by default the name of ``out``."""
    arch: str = "unet11"
    num_filters: int = 32
    is_deconv: bool = False
    init: str = "lecun"
    """``lecun``, ``imagenet`` (encoder) or ``checkpoint`` (whole network)."""
    weights: str | None = None
    """File or model's name that ``init`` takes the weights from."""
    decoder_norm: bool = False
    """Batch normalisation in the decoder while training, folded into its convolutions when saved."""
    frozen: int = 0
    """Encoder levels, from the first, that keep their weights."""
    seed: int = 0
    epochs: int = 100
    crop: int = 768
    """Side of a training crop in pixels, a multiple of 32."""
    crops: int | None = None
    """Crops an epoch; by default as many as cover the training images once."""
    batch: int = 4
    """Crops a step, over all GPUs together."""
    validation_crop: int = 1440
    """Side of the centre crop of a validation image that is looked at; smaller images whole."""
    gsd: float | None = None
    """Metres a pixel is to span: images of another size are resampled, validation images too. None: as they are."""
    optimizer: str = "adam"
    learning_rate: float = 0.001
    encoder_rate: float = 1.0
    """The encoder's learning rate as a part of the others'."""
    weight_decay: float = 0.0
    schedule: str = "constant"
    """``cosine`` falls to nothing at the last epoch."""
    warmup: int = 0
    """Steps in which the learning rate rises to its value."""
    clip: float | None = None
    """Largest norm of the gradient."""
    average: float = 0.0
    """Decay a step of an exponential moving average of the weights, which is then validated and saved; 0: none."""
    jaccard: float = 1.0
    """Weight of ``log J`` in the loss."""
    jaccard_form: str = "batch"
    """``batch``: ratio of sums over the batch; ``pixel``: the mean over pixels of the paper's text."""
    validate_every: int = 1
    """Epochs from one validation to the next."""
    device: str = "auto"
    devices: int = 1
    """Processes that share a batch: GPUs, or CPU processes."""
    precision: str = "auto"
    threads: int | None = None
    """CPU threads a process; by default what torch chooses."""
    workers: int | None = None
    """Processes that read crops; by default none on the CPU and up to eight a GPU."""
    half: bool = False
    """Model files in half precision, which halves them."""
    halo: int | None = None
    """For the model card: measured halo of this network, see ModelCard."""
    licence: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        _settle(self)
        for key, known in (
            ("arch", ARCHS),
            ("init", INITS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("jaccard_form", FORMS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, key) not in known:
                raise SettingError(f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(known)}")
        if self.init == "checkpoint" and self.weights is None:
            raise SettingError(
                "init = 'checkpoint' needs weights: a model's name, or the path of a model or checkpoint"
            )
        if self.init == "lecun" and self.weights is not None:
            raise SettingError(
                f"weights is {self.weights!r}, which init = 'lecun' takes nothing from; say init = 'imagenet' "
                "(encoder) or 'checkpoint' (whole network)"
            )
        if self.is_deconv and self.arch == "unet11":
            raise SettingError("is_deconv is a choice of unet16; unet11 has transposed convolutions anyway")
        for key in ("data", "validate"):
            if not getattr(self, key):
                raise SettingError(f"no [[train.{key}]] table: nothing to {'learn from' if key == 'data' else key}")
        for key in ("num_filters", "epochs", "crop", "crops", "batch", "validation_crop", "validate_every", "devices"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise SettingError(f"{key} is {value}; it must be a whole number from 1")
        for key in ("seed", "warmup", "frozen", "workers"):
            if (getattr(self, key) or 0) < 0:
                raise SettingError(f"{key} is {getattr(self, key)}; it must be a whole number from 0")
        if self.seed >= 2**63:
            raise SettingError(f"seed is {self.seed}; it must be below 2⁶³")
        for key in ("crop", "validation_crop"):
            if getattr(self, key) % ALIGN:
                raise SettingError(f"{key} is {getattr(self, key)}; it must be a multiple of {ALIGN}")
        if self.frozen > 5:
            raise SettingError(f"frozen is {self.frozen}; the encoder has 5 levels")
        if self.batch % self.devices:
            raise SettingError(f"batch is {self.batch}; it must be a multiple of devices, {self.devices}")
        if self.decoder_norm and self.crop == ALIGN and self.batch == self.devices:
            raise SettingError(
                f"crop {self.crop} with one crop a process leaves decoder_norm a single value to normalise; take a "
                "larger crop or batch"
            )
        for key in ("gsd", "learning_rate", "clip", "threads"):
            _positive(self, key)
        for key in ("encoder_rate", "weight_decay", "jaccard"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{key} is {value}; it must be a number from 0")
        if not 0 <= self.average < 1:
            raise SettingError(f"average is {self.average}; it must lie from 0 to below 1")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Recipe:
        """Make a recipe of a table as TOML gives it; unknown keys are refused.

        Raises:
            SettingError: A key is unknown, missing or of the wrong kind.
        """
        content = dict(table)
        for key in ("data", "validate"):
            content[key] = tuple(_table(Dataset, item, f"[[train.{key}]]") for item in _tables(content, key))
        content["augment"] = _table(Augment, content.get("augment", {}), "[train.augment]")
        return _table(cls, content, "[train]")

    def deciding(self) -> dict[str, Any]:
        """Return all that decides the weights, as plain JSON values; where they go, and on what machine, does not."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for key in ("out", "name", "device", "threads", "workers", "half", "halo", "licence", "description"):
            content.pop(key)
        if self.schedule == "constant":
            # Under cosine the length is part of every step's learning rate.
            content.pop("epochs")
        for table in (*content["data"], *content["validate"]):
            for key in ("name", "licence", "source"):
                table.pop(key)
            for key in ("images", "masks"):
                table[key] = [_absolute(item) for item in table[key]]
            for key in ("buildings", "aoi"):
                table[key] = _absolute(table[key])
        if self.weights is not None and os.path.exists(self.weights):
            content["weights"] = _absolute(self.weights)
        return content

    def fingerprint(self) -> str:
        """Return a hash of all that decides the weights, see :meth:`deciding`."""
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()


def _absolute(path: Any) -> Any:
    """Return a path as it is from any working folder; GDAL's names, and None, as they are."""
    named = path is None or path.startswith("/vsi") or re.match(r"[A-Za-z][A-Za-z0-9_+]+:", path)
    return path if named else os.path.abspath(path)


def _tables(content: Mapping[str, Any], key: str) -> list[Any]:
    found = content.get(key, [])
    return [found] if isinstance(found, Mapping) else list(found) if isinstance(found, list | tuple) else [found]


def _table(cls: type[Table], content: Any, where: str) -> Table:
    """Make a dataclass of a table, refusing keys it does not know."""
    if isinstance(content, cls):
        return content
    if not isinstance(content, Mapping):
        raise SettingError(f"{where} must be a table, not {content!r}")
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if strange := sorted(set(content) - set(known)):
        raise SettingError(f"{where}: no such key: {', '.join(strange)}; there are {', '.join(known)}")
    needed = [
        name
        for name, item in known.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in content]:
        raise SettingError(f"{where} lacks {' and '.join(missing)}")
    try:
        return cls(**content)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error


def _settle(value: Any) -> None:
    """Check each field of a frozen dataclass against its annotation, and make tuples of lists."""
    for item in dataclasses.fields(value):
        given = getattr(value, item.name)
        kinds = [kind.strip() for kind in str(item.type).split("|")]
        if given is None:
            if "None" in kinds:
                continue
            raise SettingError(f"{item.name} is missing")
        kind = kinds[0]
        settled = _as(kind, given)
        if settled is None:
            raise SettingError(f"{item.name} is {given!r}; it must be {_WORDS[kind]}")
        object.__setattr__(value, item.name, settled)


_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[str, ...]": "text, or a list of texts",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[int, int, int]": "three whole numbers",
    "tuple[float, float]": "two numbers",
    "tuple[Dataset, ...]": "tables",
    "Augment": "a table",
}


def _as(kind: str, given: Any) -> Any:
    """Return ``given`` as an annotation wants it, or None."""
    if kind == "Augment":
        return given if isinstance(given, Augment) else None
    if kind == "tuple[Dataset, ...]":
        right = isinstance(given, list | tuple) and all(isinstance(item, Dataset) for item in given)
        return tuple(given) if right else None
    if kind == "float":
        return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else None
    if kind in ("str", "int", "bool"):
        wanted = {"str": str, "int": int, "bool": bool}[kind]
        return given if isinstance(given, wanted) and (kind == "bool" or not isinstance(given, bool)) else None
    items = [given] if isinstance(given, str) and kind == "tuple[str, ...]" else given
    if not isinstance(items, list | tuple):
        return None
    inner = kind.removeprefix("tuple[").split(",")[0]
    length = None if kind.endswith("...]") else kind.count(",") + 1
    settled = tuple(_as(inner, item) for item in items)
    return None if None in settled or length not in (None, len(settled)) else settled


def _positive(value: Any, key: str) -> None:
    given = getattr(value, key)
    if given is not None and not (math.isfinite(given) and given > 0):
        raise SettingError(f"{key} is {given}; it must be a number above 0")


def _range(value: Any, key: str) -> None:
    low, high = getattr(value, key)
    if not 0 < low <= high < math.inf:
        raise SettingError(f"{key} is [{low:g}, {high:g}]; it must be two numbers above 0, the smaller one first")
