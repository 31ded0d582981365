"""Whether there may be a GPU, from the names of device files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from geoseg.gpus import may_have_gpu


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
