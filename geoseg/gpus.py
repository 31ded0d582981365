"""Which GPUs this machine has, asked without torch, whose import takes seconds."""

from __future__ import annotations

import re
import subprocess
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


def nvidia_gpus() -> int | None:
    """Return how many GPUs NVIDIA's driver knows; None where that has to be asked otherwise."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return None
    # Parts of a GPU are counted in another way.
    return None if "MIG" in listed else len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)) or None
