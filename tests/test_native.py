"""The compiled convolutions against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geoseg import native
from geoseg.kernels import KINDS

pytestmark = pytest.mark.skipif(native.machine() is None, reason="no kernels for this processor")

MACHINES = [native._AVX2, native._NEON, *([native._AVX512] if native.machine() == native._AVX512 else [])]
"""LLVM makes several short vectors of a long one and the other way round; only what is not there cannot be tried."""
LAYERS = {
    "of panels": lambda: nn.Conv2d(32, 64, 3, padding=1),
    "of half a panel": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "of panels and a half": lambda: nn.Conv2d(48, 80, 3, padding=1, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(32, 16, 4, 2, 1),
    "transposed of three": lambda: nn.ConvTranspose2d(16, 48, 3, 2, 1, output_padding=1),
}
NOISE = 3e-5
"""Of the largest value."""


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def wanted(layer: nn.Module, rows: Tensor, top: bool, bottom: bool) -> Tensor:
    """Return what all of the image's rows that are complete should be."""
    with torch.inference_mode():
        whole = layer.double()(rows.double())
    layer.float()
    return whole[:, :, 0 if top else 1 : whole.shape[2] - (not bottom)]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("top", "bottom"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_layer_is_that_of_torch(machine: native.Machine, name: str, top: bool, bottom: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for height, width in ((3, 1), (8, 19), (13, 64)):
        rows = channels_last(2, layer.in_channels, height, width)
        expected = wanted(layer, rows, top, bottom)
        addend = channels_last(*expected.shape)
        found = native.Layer(layer, False, machine)([rows], top, bottom)
        assert found.is_contiguous(memory_format=torch.channels_last)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=NOISE * scale)
        added = native.Layer(layer, True, machine)([rows[:, :, :2], rows[:, :, 2:]], top, bottom, [addend])
        torch.testing.assert_close(added.double(), (expected + addend).relu(), rtol=0, atol=NOISE * scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 5), st.sampled_from(list(LAYERS)), st.data())
def test_any_shape_in_any_pieces(height: int, width: int, threads: int, name: str, data: st.DataObject) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name]()
    rows = channels_last(1, layer.in_channels, height, width)
    cuts = sorted(data.draw(st.sets(st.integers(1, height), max_size=4)) | {height})
    pieces = [rows[:, :, start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]
    expected = wanted(layer, rows, True, True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = native.Layer(layer, False, native.machine())(pieces, True, True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=NOISE * float(expected.abs().max()))


@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_are_the_same_on_every_machine_and_in_any_number_of_threads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    layer = LAYERS[name]()
    rows = channels_last(1, layer.in_channels, 20, 33)
    found = [native.Layer(layer, True, machine)([rows], True, False) for machine in MACHINES]
    monkeypatch.setattr(native, "_openmp", lambda: None)  # threads of our own
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found.append(native.Layer(layer, True, MACHINES[0])([rows], True, False))
    assert float(found[0].max()) > 0.5
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_nothing_is_written_beyond_the_answer() -> None:
    """What lies around it in memory stays."""
    layer = LAYERS["of panels"]()
    rows = channels_last(1, 32, 9, 11)
    real, made = torch.empty, []

    def guarded(*size: object, **more: object) -> Tensor:
        if "memory_format" not in more:
            return real(*size, **more)
        count, channels, height, width = size[0]
        made.append(torch.full((count, height + 20, width, channels), 7.0))
        return made[-1][:, 10:-10].permute(0, 3, 1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", guarded)
        native.Layer(layer, False, native.machine())([rows], False, False)
    assert bool((made[-1][:, :10] == 7).all())
    assert bool((made[-1][:, -10:] == 7).all())
    assert not bool((made[-1][:, 10:-10] == 7).any())


def test_not_a_number_is_not_hidden_by_the_relu() -> None:
    rows = channels_last(1, 32, 9, 11)
    rows[0, 3, 4, 5] = torch.nan
    found = native.Layer(LAYERS["of panels"](), True, native.machine())([rows], True, True)
    assert bool(found[0, :, 4, 5].isnan().all())


@pytest.mark.parametrize("machine", MACHINES)
def test_pooling_is_that_of_torch(machine: native.Machine) -> None:
    rows = channels_last(2, 48, 10, 14)
    rows[1, 7, 3, 3] = torch.nan
    found = native.pooled([rows[:, :, :3], rows[:, :, 3:]], machine)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, nn.functional.max_pool2d(rows, 2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 64, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=0),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.ConvTranspose2d(16, 16, 4, 2, 1, output_padding=1),
        nn.ConvTranspose2d(16, 16, 2, 2),
        nn.Upsample(scale_factor=2),
    ],
)
def test_other_layers_are_not_computed(layer: nn.Module) -> None:
    assert native.computes(layer) is None


@pytest.mark.parametrize("kind", KINDS)
def test_filters_of_one_tap_are_taken_apart_into_powers_of_the_points(kind) -> None:
    """A filter is a polynomial; apart, it is its values at the points, up to a factor of each point."""
    points = [0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5]
    for line, point in zip(kind.filter, points, strict=False):
        assert [value / line[0] for value in line] == pytest.approx([point**power for power in range(kind.taps)])
    assert kind.filter[-1] == [0.0] * (kind.taps - 1) + [1.0]
