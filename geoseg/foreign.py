"""Networks that bring their own layers: ONNX and TorchScript files, with a model card beside them.

The card is a JSON file, ``NAME.onnx.json`` beside ``NAME.onnx`` (or ``NAME.json``), with the fields of
:class:`geoseg.card.ForeignCard`. ``geoseg model export`` writes both.

What is executed: an ONNX file is data, a graph of known operators that ONNX Runtime computes; no operator library is
loaded for it. A TorchScript archive is a program. Torch's interpreter runs it, without Python but with every operator
of torch, some of which read and write files, and its reader was not made for hostile files: take TorchScript only from
where you would also take a Python package.

Needs no torch to import and to read cards; the networks themselves are in :mod:`geoseg.runtimes`.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from geoseg.card import ForeignCard, Reach
from geoseg.checkpoint import Model
from geoseg.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

Format = Literal["onnx", "torchscript"]
SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
}
"""Endings of file names → what the files hold. A ``.pt`` may also be a checkpoint, which is no network yet."""
EXAMPLE = {
    "name": "my-model",
    "arch": "onnx",
    "bands": [1, 2, 3],
    "value_range": {"uint8": [0, 255]},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "reach": 160,
    "output": "logits",
    "threshold": 0.5,
}
"""A card that says the least that must be said, and what most people will want to say."""


@dataclass(frozen=True, eq=False)
class ForeignModel(Model):
    """A foreign network that was tried and found to fit its card.

    ``state`` is empty, since the weights stay in the file; ``fingerprint`` is the SHA-256 of the file's bytes, then
    those of its external data where there are any, then the card's: what ``cat x.onnx x.onnx.json | sha256sum`` says.
    """

    card: ForeignCard
    learnt: int | None = None
    """Number of parameters, where the format tells."""
    hints: tuple[str, ...] = ()
    """What looked odd when the network was tried."""

    def build(self) -> nn.Module:
        """Return the network, ready to run."""
        from geoseg.runtimes import open_network

        return open_network(self.path, self.card.arch)

    @property
    def reach(self) -> Reach:
        """How far an output pixel of the network sees, as the card says."""
        return Reach(*self.card.reach)

    @property
    def output(self) -> str:
        """What the network answers with: ``logits`` or ``probability``."""
        return self.card.output

    @property
    def align(self) -> int:
        """What both sides of an image must be multiples of."""
        return self.card.align

    @property
    def parameters(self) -> int | None:
        """How many numbers were learnt; None for ONNX, whose runtime does not tell."""
        return self.learnt

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before running it."""
        return self.hints


def format_of(path: Path) -> Format | None:
    """Return what kind of foreign network a file holds by its name, and a ``.pt`` or ``.pth`` also by its content."""
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        return "torchscript" if _is_archive_of_code(path) else None
    return SUFFIXES.get(suffix)


def _is_archive_of_code(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "constants.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def card_path(path: Path) -> Path:
    """Return where the card of a foreign network is written: the file's name with ``.json`` behind it."""
    return path.with_name(f"{path.name}.json")


def read_card_beside(path: Path, kind: Format) -> tuple[ForeignCard, Path]:
    """Return the card beside a foreign network, and where it is.

    Raises:
        ModelError: There is none (the message shows an example), or it is not valid, or is of another format.
    """
    places = (card_path(path), path.with_suffix(".json"))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        example = json.dumps({**EXAMPLE, "name": path.stem, "arch": kind})
        raise ModelError(
            f"{path}: has no model card. Write {places[0].name} beside it, saying which bands it takes, how pixel "
            "values become its input, how many pixels around an output pixel matter to it (reach) and whether it "
            f'answers with "logits" or "probability", for example: {example}'
        )
    try:
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{found}: cannot be read ({error})") from error
    card = ForeignCard.from_json(text, str(found))
    if card.arch != kind:
        raise ModelError(f"{found}: arch is {card.arch!r}, but {path.name} is {kind}")
    return card, found


def load_foreign(path: Path, kind: Format) -> ForeignModel:
    """Read the card of a foreign network and try the network on two small images of noise.

    Raises:
        ModelError: No card, a card that the network does not fit, a network that takes one size of image only, or a
            file that its runtime cannot open; a runtime that is not installed.
    """
    card, card_file = read_card_beside(path, kind)
    from geoseg.runtimes import open_network, try_out

    fingerprint = _fingerprint(path, card_file)
    network = open_network(path, kind)
    hints = try_out(network, card, str(path))
    # ONNX Runtime keeps the weights to itself.
    learnt = sum(value.numel() for value in network.parameters()) if kind == "torchscript" else None
    return ForeignModel(card, path, fingerprint, {}, learnt, hints)


def _fingerprint(path: Path, card_file: Path) -> str:
    digest = hashlib.sha256()
    for part in (path, *_external_data(path), card_file):
        try:
            with part.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
        except OSError as error:
            raise ModelError(f"{part}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def _external_data(path: Path) -> Iterator[Path]:
    """Yield the files where ONNX exporters keep weights that do not fit into the model file, by their usual names."""
    if path.suffix.lower() == ".onnx":
        for name in (f"{path.name}.data", f"{path.name}_data", f"{path.stem}.data"):
            if (beside := path.with_name(name)).is_file():
                yield beside
