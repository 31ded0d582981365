"""Whether there may be a GPU, from the names of device files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from geoseg.gpus import may_have_gpu, nvidia_gpus


@pytest.mark.skipif(sys.platform != "linux", reason="device files are Linux's")
@pytest.mark.parametrize(
    ("names", "possible"),
    [
        ((), False),
        (("null", "nvme0n1", "nvram", "tty0"), False),
        (("null", "nvidia0", "nvidiactl"), True),
        (("dxg",), True),
        (("kfd",), True),
        (("nvhost-gpu",), True),
    ],
)
def test_device_files_tell(tmp_path: Path, names: tuple[str, ...], possible: bool) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert may_have_gpu(tmp_path) == possible


def test_no_gpu_that_torch_finds_is_denied() -> None:
    import torch

    assert may_have_gpu() or not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n", 2),
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\n", None),
        ("No devices found.\n", None),
    ],
)
def test_the_driver_counts(answer: str, count: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert nvidia_gpus() == count


def test_without_the_driver_nobody_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus() is None
