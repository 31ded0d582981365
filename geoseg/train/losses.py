"""The paper's loss: cross-entropy minus the logarithm of the Jaccard index."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from geoseg.errors import SettingError

Form = Literal["batch", "pixel"]
FORMS: tuple[Form, ...] = ("batch", "pixel")


class Parts(NamedTuple):
    """What a loss is made of; scalars on the device of the logits."""

    loss: Tensor
    """``H - weight · log J``, with its gradient."""
    entropy: Tensor
    """H, the mean binary cross-entropy of the counted pixels."""
    jaccard: Tensor
    """J in the form that the loss has."""
    iou: Tensor
    """The soft Jaccard index of the batch, whatever the form."""


class JaccardLoss(nn.Module):
    """``L = H - weight · log J`` (Iglovikov & Shvets, "TernausNet", 2018).

    H is the binary cross-entropy. J comes in two forms. ``batch``, the default, is the ratio of sums over the batch,
    ``Σ p·y / Σ (p + y - p·y)``, which is what the authors' training code computes. ``pixel`` is the formula of the
    paper's text, the mean over pixels of ``p·y / (p + y - p·y)``, which is 0 at every background pixel, so that J is
    at most the share of building pixels. Pixels that are not valid count in none of the sums.
    """

    def __init__(self, weight: float = 1.0, form: Form = "batch", smooth: float = 1.0) -> None:
        """Take the weight of ``log J``, the form of J, and what is added to both of its sums.

        ``smooth`` is a number of pixels: it keeps ``log J`` finite where a batch has no building at all.

        Raises:
            SettingError: A number below 0 or not finite, or an unknown form.
        """
        super().__init__()
        if form not in FORMS:
            raise SettingError(f"jaccard form {form!r} is not one of {', '.join(FORMS)}")
        for name, value in (("weight", weight), ("smooth", smooth)):
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"the loss's {name} is {value!r}; it must be a number from 0")
        self.weight, self.form, self.smooth = weight, form, smooth

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor) -> Parts:
        """Return the loss of ``logits`` ``(N, H, W)`` against ``target`` in 0 … 1 where ``valid`` (bool).

        A batch without a single valid pixel has H = 0 and J = 1, and a gradient of zero. What stands in pixels that are
        not valid does not matter, NaN included.
        """
        # Replaced, not only multiplied by zero, which would leave NaN what it is.
        logits, target = logits.float().masked_fill(~valid, 0.0), target.float().masked_fill(~valid, 0.0)
        counts = valid.float()
        pixels = counts.sum()
        entropy = nnf.binary_cross_entropy_with_logits(logits, target, reduction="none") * counts
        entropy = entropy.sum() / pixels.clamp(min=1)
        probability = logits.sigmoid()
        both = probability * target * counts
        either = (probability + target) * counts - both
        iou = jaccard = (both.sum() + self.smooth) / (either.sum() + self.smooth)
        if self.form == "pixel":
            tiny = torch.finfo(torch.float32).tiny
            jaccard = ((both / either.clamp(min=tiny)).sum() + self.smooth) / (pixels + self.smooth)
        return Parts(entropy - self.weight * jaccard.log(), entropy.detach(), jaccard.detach(), iou.detach())
