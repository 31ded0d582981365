"""Measure a network on the centres of validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from geoseg.card import IMAGENET_MEAN, IMAGENET_STD
from geoseg.errors import TrainingError
from geoseg.metrics import ThresholdCurve
from geoseg.tiling import ALIGN, Rect
from geoseg.train.crops import resized, zoom
from geoseg.train.losses import JaccardLoss
from geoseg.train.recipe import Dataset
from geoseg.train.scenes import Scene

THRESHOLDS = tuple(round(0.01 * k, 2) for k in range(5, 96))
"""Among which the best is looked for."""


@dataclass(frozen=True)
class Validation:
    """What the validation images say."""

    loss: float
    """Mean over images."""
    threshold: float
    """The one of the highest IoU over all images together."""
    iou: float
    """At that threshold, over the pixels of all images together."""
    parts: dict[str, float]
    """IoU at that threshold of each data table, by name."""
    problems: tuple[str, ...] = ()
    """What could not be read, and therefore counts in nothing."""


def validate(
    net: nn.Module,
    tables: Sequence[tuple[Dataset, Sequence[Scene]]],
    loss: JaccardLoss,
    *,
    crop: int,
    gsd: float | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Validation:
    """Run a network in evaluation mode over the centre ``crop × crop`` pixels of what is labelled of every image.

    Right and bottom sides are reflected to a multiple of 32, as in :func:`geoseg.predict.whole_image`.

    Raises:
        TrainingError: A probability is not finite.
        InputError: Labels cannot be read.
    """
    curves: dict[str, ThresholdCurve] = {}
    losses: list[float] = []
    problems: list[str] = []
    for number, (dataset, scenes) in enumerate(tables):
        name = dataset.name or f"table {number + 1}"
        for scene in scenes:
            logits, building, counts, lost = centre(net, scene, crop=crop, gsd=gsd, device=device, dtype=dtype)
            problems += lost
            losses.append(float(loss(logits[None], building[None], counts[None]).loss))
            probability = logits.sigmoid().cpu().numpy()
            if not np.isfinite(probability).all():
                raise TrainingError(
                    f"{scene.name}: the network's answer to this validation image is not finite, so the last steps "
                    "must have been too large: lower learning_rate, add warmup or clip, or take precision = 'fp32'"
                )
            curve = ThresholdCurve.of(probability, building.cpu().numpy(), counts.cpu().numpy())
            curves[name] = curves[name] + curve if name in curves else curve
    total = sum(curves.values(), ThresholdCurve())
    threshold, confusion = total.best(THRESHOLDS)
    parts = {name: curve.at(threshold).iou for name, curve in curves.items()}
    return Validation(float(np.mean(losses)), threshold, confusion.iou, parts, tuple(dict.fromkeys(problems)))


def normalised(image: Tensor, known: Tensor) -> Tensor:
    """Return images ``(N, 3, H, W)`` as the network takes them: ImageNet mean and deviation, 0 where unknown."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(1, 3, 1, 1)
    pixels = ((image - mean) / std).masked_fill(~known[:, None], 0.0)
    return pixels.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def centre(
    net: nn.Module, scene: Scene, *, crop: int, gsd: float | None, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Return logits (float32), building and counts (bool) of the centre of a scene, each ``(H, W)``, and problems."""
    box = scene.labelled
    height, width = box.shape
    enlarge = zoom(scene, gsd)
    tall, wide = (min(side, round(crop / enlarge)) for side in (height, width))
    row, col = box.row0 + (height - tall) // 2, box.col0 + (width - wide) // 2
    window = scene.read(Rect(row, col, row + tall, col + wide))
    image = torch.from_numpy(window.image).to(device)[None]
    masks = torch.from_numpy(np.stack([window.building, window.known, window.counts])).to(device)
    if round(tall * enlarge) != tall or round(wide * enlarge) != wide:
        size = (max(1, round(tall * enlarge)), max(1, round(wide * enlarge)))
        image = nnf.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        masks = resized(masks, size)
    tall, wide = image.shape[-2:]
    pad = (0, -wide % ALIGN, 0, -tall % ALIGN)
    mode = "reflect" if max(pad) < min(tall, wide) else "replicate"
    known = nnf.pad(masks[1][None, None].float(), pad, mode=mode)[:, 0] > 0.5
    pixels = normalised(nnf.pad(image, pad, mode=mode), known)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = net(pixels)
    return logits[0, 0, :tall, :wide].float(), masks[0], masks[2], window.problems
