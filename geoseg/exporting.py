"""geoseg's networks as ONNX and TorchScript files that other programs run, with the card beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.card import ForeignCard, known_fields
from geoseg.checkpoint import geoseg_version
from geoseg.errors import ModelError, SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from geoseg.checkpoint import Model

OPSET = 18
"""Version of ONNX's operators: the first that torch's exporter writes by itself; in ONNX Runtime since 1.14 (2023)."""
TOLERANCE = 1e-4
"""Largest difference in probability that an exported network may show on the window it is tried on."""
_DYNAMO_FROM = (2, 7)
"""Torch's releases before this one have the newer exporter as an experiment only."""


def export_model(
    name_or_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    card: Mapping[str, Any] | None = None,
) -> ForeignCard:
    """Write a model of geoseg as ONNX (``OUT.onnx``) or TorchScript (``OUT.pt``, ``.ts``, ``.torchscript``).

    The network takes ``image``, normalised float32 ``(N, 3, H, W)`` with sides that are multiples of 32, and gives
    ``logits``, ``(N, classes, H, W)``. The weights are written as float32. Its card goes to ``OUT.onnx.json``. Before
    either file appears, the written network is run on a window of noise, unless it is ONNX and ONNX Runtime is not
    installed.

    Args:
        name_or_path: A shipped model's name or a model file.
        out: The file; an existing one is replaced.
        card: Fields of the card that should differ from the model's, such as ``name`` or ``description``.

    Returns:
        The card that was written.

    Raises:
        ModelError: The model cannot be read or is foreign itself, a package for the export is not installed, or the
            written network does not give the same probabilities.
        SettingError: OUT's ending is none of the four.
        OutputError: The files cannot be written.
    """
    from geoseg.checkpoint import load_model
    from geoseg.foreign import SUFFIXES, ForeignModel, card_path
    from geoseg.write import replacing

    out = Path(out)
    kind = SUFFIXES.get(out.suffix.lower())
    if kind is None:
        raise SettingError(f"{out}: a model is exported as {', '.join(SUFFIXES)}; choose one of these endings")
    model = load_model(name_or_path)
    if isinstance(model, ForeignModel):
        raise ModelError(f"{model.path}: is {kind_in_words(model.card.arch)} already; only geoseg's own are exported")
    made = _card(model, kind, card or {})
    net = model.build()
    text = json.dumps(json.loads(made.to_json()), indent=1, ensure_ascii=False) + "\n"
    with replacing(out) as written, replacing(card_path(out)) as written_card:
        if kind == "onnx":
            _write_onnx(net, written)
        else:
            _write_torchscript(net, written)
        _compare(net, written, kind, out)
        written_card.write_text(text, encoding="utf-8")
    return made


def kind_in_words(arch: str) -> str:
    """Return what a foreign ``arch`` is called in a sentence."""
    return {"onnx": "an ONNX network", "torchscript": "a TorchScript network"}[arch]


def _card(model: Model, kind: str, overrides: Mapping[str, Any]) -> ForeignCard:
    fixed = {"arch": kind, "reach": (model.reach.before, model.reach.after), "output": "logits", "align": 32}
    if clash := sorted(fixed.keys() & overrides.keys()):
        raise ModelError(f"{', '.join(clash)}: follow(s) from the network that is exported")
    given = {item.name for item in dataclasses.fields(ForeignCard) if item.init}
    kept = {key: getattr(model.card, key) for key in given - fixed.keys()}
    content = {**kept, "geoseg_version": geoseg_version(), **overrides, **fixed}
    return ForeignCard(**known_fields("a model card", content, ForeignCard))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch's exporters say of their own progress and future from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _example() -> Tensor:
    import torch

    # Two images and different sides, so that no exporter takes one of them for a constant.
    return torch.zeros(2, 3, 64, 96)


def _write_onnx(net: nn.Module, path: Path) -> None:
    import torch

    settings: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"], "opset_version": OPSET}
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version >= _DYNAMO_FROM and find_spec("onnxscript") and find_spec("onnx"):
        step = torch.export.Dim
        batch, height, width = step("batch"), 32 * step("height", min=1), 32 * step("width", min=1)
        settings |= {"dynamo": True, "external_data": False, "verbose": False}
        settings["dynamic_shapes"] = ({0: batch, 2: height, 3: width},)
    else:
        # The older exporter, which needs no further package while torch still has it.
        free = {0: "batch", 2: "height", 3: "width"}
        settings |= {"dynamo": False, "dynamic_axes": {"image": free, "logits": free}}
    try:
        with _quietly():
            torch.onnx.export(net, (_example(),), str(path), **settings)
    except (ImportError, TypeError) as error:
        raise ModelError(f'exporting to ONNX needs further packages ({error}): pip install "geoseg[onnx]"') from error


def _write_torchscript(net: nn.Module, path: Path) -> None:
    import torch

    with _quietly(), torch.no_grad():
        traced = torch.jit.trace(net, _example(), check_trace=False)
        torch.jit.save(traced, str(path))


def _compare(net: nn.Module, written: Path, kind: str, out: Path) -> None:
    """Refuse a file whose network does not do what the model does."""
    import torch

    from geoseg.runtimes import open_network

    if kind == "onnx" and find_spec("onnxruntime") is None:
        return
    noise = torch.randn((1, 3, 96, 160), generator=torch.Generator().manual_seed(1))
    other = open_network(written, kind)
    with torch.inference_mode():
        wanted, found = (_probability(network(noise)) for network in (net, other))
    apart = float((wanted - found).abs().max()) if wanted.shape == found.shape else float("inf")
    if not apart <= TOLERANCE:
        raise ModelError(
            f"{out}: not written, since the exported network gives other probabilities than the model (up to "
            f"{apart:.2g} apart); another release of torch, onnx or onnxruntime may do better"
        )


def _probability(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
