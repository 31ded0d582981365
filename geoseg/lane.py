"""Copies between this machine's memory and a GPU's, beside the arithmetic: on streams and in pages of their own.

What goes up waits for nothing, what comes down only for what it is made from, and neither keeps the GPU from computing.
On a CPU there is nothing to copy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import Semaphore
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AT_ONCE = 3
"""Blocks that may be on a GPU at a time: one is computed, one comes, one goes."""


@cache
def _room(_device: torch.device) -> Semaphore:
    return Semaphore(AT_ONCE)


def room(device: torch.device) -> AbstractContextManager[Any]:
    """Return what is to be held while something of a block is on a device: a GPU's memory has room for few."""
    return nullcontext() if device.type != "cuda" else _room(device)


@cache
def _stream(device: torch.device, _way: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def up(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return an array on a device; whatever the device is then told to compute waits until it is there."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    here, lane = torch.cuda.current_stream(device), _stream(device, "up")
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
    with torch.cuda.stream(lane):
        try:
            there = held.to(device, non_blocking=True)
        except torch.OutOfMemoryError:
            # What torch keeps for itself may be enough.
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            there = held.to(device, non_blocking=True)
    here.wait_stream(lane)
    there.record_stream(here)
    return there


def down(tensor: Tensor) -> NDArray[np.generic]:
    """Return a tensor as an array."""
    if tensor.device.type != "cuda":
        return tensor.numpy()
    lane = _stream(tensor.device, "down")
    lane.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(lane):
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        held.copy_(tensor, non_blocking=True)
        done = lane.record_event()
    tensor.record_stream(lane)
    done.synchronize()
    # Pages that a GPU can reach are few and dear: they are free again when this returns.
    return held.numpy().copy()
