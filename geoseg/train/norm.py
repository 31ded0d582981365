"""Batch normalisation while training, gone afterwards.

The published networks have none, which makes them slow to train. It can be put behind every convolution of the
decoder for training and folded into those convolutions afterwards: the network that is saved has the published
architecture and, in evaluation mode, the same output (Ioffe & Szegedy, "Batch Normalization", 2015).
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_DECODER = ("center", "dec5", "dec4", "dec3", "dec2", "dec1")


class NormalisedConv(nn.Sequential):
    """A convolution, transposed or not, and the batch normalisation of its output."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels))


def add_batch_norm(net: nn.Module) -> None:
    """Put a batch normalisation behind every convolution of a network's decoder but the last, in place."""
    for name in _DECODER:
        _wrap(net.get_submodule(name))


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose convolutions have taken in their normalisations."""
    folded = copy.deepcopy(net).eval()
    for name in _DECODER:
        _unwrap(folded.get_submodule(name))
    return folded


def _wrap(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            setattr(module, name, NormalisedConv(child))
        else:
            _wrap(child)


def _unwrap(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, NormalisedConv):
            conv: Any = child[0]
            norm: Any = child[1]
            setattr(module, name, fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d)))
        else:
            _unwrap(child)
