"""Batch normalisation while training, and without it afterwards the same network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from geoseg.train.initial import initialise
from geoseg.train.loop import freeze
from geoseg.train.norm import NormalisedConv, add_batch_norm, fold_batch_norm
from geoseg.unet import UNet11, UNet16

NETS = [lambda: UNet11(2), lambda: UNet16(1, 2), lambda: UNet16(1, 2, True)]
NAMES = ["unet11", "unet16", "unet16-deconv"]


@pytest.mark.parametrize("make", NETS, ids=NAMES)
def test_folded_is_the_same_network(make: Callable[[], nn.Module]):
    plain = make()
    initialise(plain, "lecun", None, seed=1)
    net = make()
    net.load_state_dict(plain.state_dict())
    add_batch_norm(net)
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    decoder = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    encoder = [m for m in plain.encoder if isinstance(m, nn.Conv2d)]
    assert len(norms) == len(decoder) - len(encoder) - 1
    assert not any(isinstance(module, NormalisedConv) for module in (*net.encoder.modules(), net.final))
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 2, generator=generator)
            norm.bias.normal_(generator=generator)
        images = torch.randn(2, 3, 64, 64, generator=generator)
        for _ in range(3):
            net.train()(images)
        assert not torch.equal(norms[0].running_mean, torch.zeros_like(norms[0].running_mean))
        wanted = net.eval()(images)
        net.train()
        folded = fold_batch_norm(net)
        assert not folded.training
        assert net.training
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
        assert [*folded.state_dict()] == [*plain.state_dict()]
        # Into a network without any, which is what a model file holds.
        plain.load_state_dict(folded.state_dict())
        torch.testing.assert_close(plain.eval()(images), wanted, rtol=1e-4, atol=1e-4)
        # And the original is as before.
        torch.testing.assert_close(net.eval()(images), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("levels", "kept"), [(0, 0), (1, 2), (2, 4), (5, 13)])
def test_frozen_levels_keep_their_weights(levels: int, kept: int):
    net = UNet16(1, 1)
    initialise(net, "lecun", None, seed=0)
    add_batch_norm(net)
    freeze(net, levels)
    before = {key: value.clone() for key, value in net.named_parameters()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e3)
    net.train()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    optimizer.step()
    after = dict(net.named_parameters())
    same = {key for key in before if torch.equal(before[key], after[key])}
    encoder = [key.removesuffix(".weight") for key in before if key.startswith("encoder.") and key.endswith(".weight")]
    for name in encoder[:kept]:
        assert {f"{name}.weight", f"{name}.bias"} <= same
    for name in encoder[kept:]:
        assert f"{name}.weight" not in same
    assert "final.weight" not in same
