"""Whether this machine may have a GPU, asked without torch, whose import takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

_DEVICES = ("nvidia", "nvhost", "nvgpu", "dxg", "kfd")
"""What the names of device files begin with: NVIDIA's, those of its boards, of Windows' Linux, and AMD's."""


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Return False when there is surely no GPU that torch's CUDA interface could use."""
    if sys.platform == "darwin":
        return False
    if sys.platform != "linux":
        return True
    return any(entry.name.startswith(_DEVICES) for entry in devices.iterdir())
