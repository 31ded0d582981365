"""The network over rows against the same network on the whole image."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geoseg.errors import ModelError
from geoseg.layers import TorchEngine
from geoseg.stream import Network, strips
from geoseg.unet import UNet11, UNet16

NOISE = 1e-5
"""Sums in another order, on logits of about one."""

MAKERS = {
    "unet11": lambda: UNet11(4),
    "unet11 of two classes": lambda: UNet11(3, 2),
    "unet16 bilinear": lambda: UNet16(1, 4),
    "unet16 transposed": lambda: UNet16(1, 4, True),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    net = MAKERS[name]().eval()
    for module in net.modules():  # biases of zero would hide rows that were padded wrongly
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net


class FewRows(TorchEngine):
    """As an engine that has the finest levels take few rows at a time, and does not mind pieces."""

    copies = False

    def thin(self, rows: Tensor) -> int:
        return 20


def over_rows(
    net: nn.Module, image: Tensor, cuts: list[tuple[int, int]], engine: type[TorchEngine] = TorchEngine
) -> list[Tensor]:
    """Return what comes out after each strip."""
    stream = Network(net, engine()).stream()
    height = image.shape[2]
    with torch.inference_mode():
        found = [stream.push(image[:, :, start:stop], stop == height) for start, stop in cuts]
        return [part.clone() for part in found if part is not None]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rows", [32, 64, 96, 10_000])
@pytest.mark.parametrize("engine", [TorchEngine, FewRows])
def test_strips_give_what_the_whole_image_gives(name: str, rows: int, engine: type[TorchEngine]) -> None:
    net = network(name)
    for height in (32, 64, 416):
        image = torch.randn(2, 3, height, 64)
        with torch.inference_mode():
            whole = net(image)
        found = torch.cat(over_rows(net, image, list(strips(height, rows)), engine), 2)
        assert whole.std() > 0.01
        torch.testing.assert_close(found, whole, rtol=0, atol=NOISE)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=7), st.sampled_from(list(MAKERS)), st.booleans())
def test_strips_may_be_of_any_heights(lengths: list[int], name: str, few: bool) -> None:
    net = network(name)
    ends = torch.tensor([0, *lengths]).cumsum(0).mul(32).tolist()
    image = torch.randn(1, 3, ends[-1], 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = net(image)
    found = torch.cat(over_rows(net, image, list(pairwise(ends)), FewRows if few else TorchEngine), 2)
    torch.testing.assert_close(found, whole, rtol=0, atol=NOISE)


def test_answers_come_out_on_the_way_and_wait_for_no_more_rows_than_the_network_sees() -> None:
    from geoseg.unet import reach

    net = network("unet11")
    height, rows = 1024, 64
    stream = Network(net, TorchEngine()).stream()
    image = torch.randn(1, 3, height, 32)
    out = 0
    with torch.inference_mode():
        for start, stop in strips(height, rows):
            part = stream.push(image[:, :, start:stop], stop == height)
            out += 0 if part is None else part.shape[2]
            assert out <= stop
            assert stop - out <= reach(net).halo + rows
    assert out == height


def test_what_waits_does_not_grow_with_the_image() -> None:
    held: list[int] = []

    class Watched(TorchEngine):
        def keep(self, rows: Tensor) -> Tensor:
            held[-1] += rows.numel()
            return super().keep(rows)

    stream = Network(network("unet16 transposed"), Watched()).stream()
    with torch.inference_mode():
        for number in range(40):
            held.append(0)
            stream.push(torch.randn(1, 3, 64, 32), number == 39)
    assert held[20] > 0
    assert held[38] == held[20]


def test_other_networks_are_refused() -> None:
    with pytest.raises(ModelError, match="Sequential cannot be run over rows"):
        Network(nn.Sequential(nn.Conv2d(3, 1, 1)), TorchEngine())


@pytest.mark.parametrize(
    ("height", "rows", "expected"),
    [
        (96, 64, [(0, 64), (64, 96)]),
        (64, 7, [(0, 32), (32, 64)]),
        (320, 200, [(0, 192), (192, 320)]),
        (320, 320, [(0, 320)]),
    ],
)
def test_strips_are_multiples_of_32_and_of_96_where_they_can_be(
    height: int, rows: int, expected: list[tuple[int, int]]
) -> None:
    assert list(strips(height, rows)) == expected
