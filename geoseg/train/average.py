"""A moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of all floating parameters and buffers (Polyak & Juditsky, 1992, with decay).

    The decay rises with the number of updates, ``min(decay, n / (n + 20))``, so that the start is soon forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {key: value.detach().clone() for key, value in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the network's weights."""
        self.updates += 1
        part = 1 - min(self.decay, self.updates / (self.updates + 20))
        state = net.state_dict()
        floating = [key for key, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[key] for key in floating], [state[key] for key in floating], part)
        for key in set(self.values) - set(floating):
            self.values[key].copy_(state[key])

    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a stored average."""
        for key, value in values.items():
            self.values[key].copy_(value)
        self.updates = updates
