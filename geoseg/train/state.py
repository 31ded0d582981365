"""What a training run needs to go on after it was interrupted: one file of numbers, written whole.

A safetensors file: the weights, their moving average and the optimiser's moments as tensors; the rest (epoch, step,
learning curve, recipe) as JSON in the header. Nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from geoseg.errors import InputError, SettingError
from geoseg.train.recipe import Recipe
from geoseg.write import replacing

FILE = "state.safetensors"
_KEY = "geoseg-training"


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time that took, over all attempts."""
    rows: list[dict[str, float | int | None]] = field(default_factory=list)
    """The learning curve, a row an epoch."""
    best_epoch: int | None = None
    best_iou: float = -1.0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of this epoch's validation; empty where it had none."""
    threshold: float = 0.5
    """Best on the validation images in the last validation."""
    averaged: int = 0
    """Steps that the moving average has seen."""
    scaler: dict[str, float] = field(default_factory=dict)
    """Of the gradients in half precision; empty otherwise."""


def save_state(
    path: Path,
    recipe: Recipe,
    position: Position,
    net: nn.Module,
    average: Mapping[str, Tensor] | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state, complete or not at all; raises OutputError."""
    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in (average or {}).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    about = {"position": dataclasses.asdict(position), "recipe": dataclasses.asdict(recipe)}
    with replacing(path) as temporary:
        safetensors.torch.save_file(plain, temporary, metadata={_KEY: json.dumps(about)})


def load_state(path: Path, recipe: Recipe) -> tuple[Position, dict[str, Tensor]]:
    """Read a state that was made by the same recipe.

    Raises:
        InputError: The file is damaged.
        SettingError: It was made by another recipe.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        position = Position(**about["position"])
        made = about["recipe"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); start again with --fresh") from error
    ours = recipe.deciding()
    try:
        theirs = Recipe.of(made).deciding()
    except SettingError:
        # Of another version, which knew other keys.
        theirs = {key: made.get(key) for key in ours}
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if keys:
        raise SettingError(
            f"{path.parent}: holds a run with other settings ({', '.join(keys)}); give another out, or start again "
            "with --fresh"
        )
    return position, tensors


def restore(
    tensors: Mapping[str, Tensor], net: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor] | None:
    """Put a state back into the network and the optimiser; return the moving average, None without one."""
    net.load_state_dict(_under(tensors, "net."))
    content = optimizer.state_dict()
    moments: dict[int, dict[str, Any]] = {}
    for key, value in _under(tensors, "optimizer.").items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": content["param_groups"]})
    for parameter, known in optimizer.state.items():
        for name, value in known.items():
            if value.shape == parameter.shape:
                # Laid out in memory as its parameter, as before: kernels may round differently otherwise.
                known[name] = torch.empty_like(parameter).copy_(value)
    return _under(tensors, "average.") or None


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
