"""Layers as a GPU likes them against the layers as they are; all of it is arithmetic that a CPU can do, too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from geoseg.gpu_layers import (
    LARGEST_FOLD,
    GpuEngine,
    fold_of,
    folded,
    narrow,
    scale_for,
    unfolded_up,
    widen,
)
from geoseg.stream import Network, strips
from geoseg.unet import UNet11, UNet16

MAKERS = {
    "unet11": lambda: UNet11(4),
    "unet11 of two classes": lambda: UNet11(3, 2),
    "unet16 bilinear": lambda: UNet16(1, 4),
    "unet16 transposed": lambda: UNet16(1, 4, True),
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
]


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    torch.backends.cudnn.allow_tf32 = False


def network(name: str, device: str = "cpu") -> nn.Module:
    torch.manual_seed(3)
    net = MAKERS[name]().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net.to(device)


def through(net: nn.Module, engine: GpuEngine, image: Tensor, rows: int) -> Tensor:
    stream, height = Network(net, engine).stream(), image.shape[2]
    with torch.inference_mode():
        parts = [stream.push(engine.rows(image[:, :, a:b]), b == height) for a, b in strips(height, rows)]
        return engine.logits(torch.cat([part for part in parts if part is not None], 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rows", [64, 10_000])
@pytest.mark.parametrize("scale", [1.0, 1 / 32])
def test_the_network_is_the_same(name: str, rows: int, scale: float, device: str) -> None:
    net = network(name, device)
    image = torch.randn(2, 3, 160, 96, device=device)
    with torch.inference_mode():
        whole = net(image)
    assert whole.std() > 0.01
    found = through(net, GpuEngine(scale=scale), image, rows)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("out", "channels", "size"), [(5, 3, 3), (2, 8, 1), (1, 4, 5)])
@pytest.mark.parametrize("fold", [2, 4, 8])
def test_folded_kernels(out: int, channels: int, size: int, fold: int) -> None:
    weight, image = torch.randn(out, channels, size, size), torch.randn(2, channels, 9, 16)
    image = image.contiguous(memory_format=torch.channels_last)
    wanted = F.conv2d(image, weight, padding=(0, size // 2))
    kernel = folded(weight, fold)
    wide = narrow(image, fold)
    assert wide.data_ptr() == image.data_ptr()
    assert wide.shape == (2, fold * channels, 9, 16 // fold)
    found = widen(F.conv2d(wide, kernel, padding=(0, kernel.shape[3] // 2)), fold)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [3, 4])
def test_transposed_convolutions(size: int) -> None:
    layer = nn.ConvTranspose2d(6, 5, size, stride=2, padding=1, output_padding=4 - size)
    image = torch.randn(2, 6, 7, 4)
    with torch.inference_mode():
        wanted = layer(image).relu()
        found = GpuEngine().double(layer)(image, True, True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_transposed_kernel_of_three_needs_two_rows_and_columns_only() -> None:
    assert unfolded_up(torch.ones(2, 3, 3, 3))[0].shape == (12, 2, 2, 2)
    assert unfolded_up(torch.ones(2, 3, 4, 4))[0].shape == (12, 2, 3, 3)


@pytest.mark.parametrize(
    ("channels", "out", "size", "fold"),
    [(3, 64, 3, 8), (64, 64, 3, 1), (64, 16, 3, 4), (80, 16, 3, 4), (16, 1, 1, 8), (512, 512, 3, 1)],
)
def test_pixels_taken_for_one(channels: int, out: int, size: int, fold: int) -> None:
    assert fold_of(nn.Conv2d(channels, out, size, padding=size // 2)) == fold
    assert fold <= LARGEST_FOLD


def test_values_beyond_half_precision_are_brought_into_its_range() -> None:
    net = network("unet16 transposed")
    assert scale_for(net) == 1.0
    with torch.no_grad():
        net.encoder[0].weight *= 1e5
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = net(image)
    scale = scale_for(net)
    assert scale < 1
    assert torch.frexp(torch.tensor(scale)).mantissa == 0.5
    plain, scaled = (through(net, GpuEngine(torch.float16, factor), image, 64) for factor in (1.0, scale))
    assert not plain.isfinite().all()
    assert float((scaled - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
