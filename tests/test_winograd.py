"""Convolutions by Winograd's filtering against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geoseg.layers import TorchEngine
from geoseg.winograd import QUAD, convolution, fits, pays


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("count", "height", "width"), [(1, 3, 4), (1, 6, 8), (2, 5, 32), (3, 7, 20)])
def test_it_is_a_convolution(count: int, height: int, width: int, padding: int, bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    image = torch.randn(count, 5, height, width)
    with torch.inference_mode():
        wanted = F.conv2d(image.double(), layer.weight.double(), None, padding=(padding, 1))
        wanted += 0 if layer.bias is None else layer.bias.double()[:, None, None]
        found = convolution(layer)(image.contiguous(memory_format=torch.channels_last), padding)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def test_what_comes_in_stays_as_it_is() -> None:
    layer, image = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 6, 8)
    before = image.clone()
    with torch.inference_mode():
        convolution(layer)(image, 1)
    assert torch.equal(image, before)


def test_where_it_pays() -> None:
    assert pays(nn.Conv2d(64, 128, 3, padding=1))
    assert pays(nn.Conv2d(512, 512, 3, padding=1))
    assert not pays(nn.Conv2d(64, 64, 3, padding=1))
    assert not pays(nn.Conv2d(512, 512, 1))
    assert not pays(nn.Conv2d(512, 512, 3, padding=1, stride=2))
    assert not pays(nn.Conv2d(512, 512, 3, padding=2, dilation=2))
    assert not pays(nn.Conv2d(512, 512, 3, padding=1, groups=2))
    assert not pays(nn.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"))


def test_where_it_fits() -> None:
    assert fits(torch.zeros(1, 2, 3, 2 * QUAD))
    assert not fits(torch.zeros(1, 2, 3, 2 * QUAD + 1))
    assert not fits(torch.zeros(1, 2, 3, 2 * QUAD, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(torch.zeros(1, 2, 3, 2 * QUAD))


@pytest.mark.parametrize("width", [8, 10])
@pytest.mark.parametrize(("top", "bottom"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_engine_takes_it_where_it_can(top: bool, bottom: bool, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, image = nn.Conv2d(64, 128, 3, padding=1), torch.randn(1, 64, 6, width)
    taken = []
    monkeypatch.setattr(
        "geoseg.winograd.convolution",
        lambda layer, relu: lambda values, padding: taken.append(1) or convolution(layer, relu)(values, padding),
    )
    with torch.inference_mode():
        wanted = F.conv2d(F.pad(image, (0, 0, int(top), int(bottom))), layer.weight, layer.bias, padding=(0, 1)).relu()
        found = TorchEngine().conv(layer, True)(image, top, bottom)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert len(taken) == (width == 8)
