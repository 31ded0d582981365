"""How a network's weights begin: the paper's three ways."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from geoseg.errors import ModelError

if TYPE_CHECKING:
    from geoseg.card import DataSource
    from geoseg.unet import UNet11, UNet16

INITS = ("lecun", "imagenet", "checkpoint")


def lecun_uniform_(modules: Iterable[nn.Module], generator: torch.Generator | None = None) -> None:
    """Draw weights and biases of convolutions from ``U(-L, L)`` with ``L = √(1 / f_in)``, in place.

    ``f_in`` is how many numbers one output value is a weighted sum of: ``in · k²`` for a convolution, and
    ``in · k² / s²`` for a transposed one with stride ``s``, on average (LeCun et al., "Efficient BackProp", 1998; as
    the TernausNet paper writes it). Modules of other kinds are left alone.
    """
    with torch.no_grad():
        for module in modules:
            if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                continue
            fan_in: float = module.in_channels // module.groups * math.prod(module.kernel_size)
            if isinstance(module, nn.ConvTranspose2d):
                fan_in /= math.prod(module.stride)
            bound = math.sqrt(1 / fan_in)
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)


def initialise(net: UNet11 | UNet16, init: str, weights: str | None, seed: int) -> list[DataSource]:
    """Fill the weights of a network in one of the paper's ways.

    Args:
        net: What to fill, in place.
        init: ``lecun``: all of it LeCun uniform. ``imagenet``: the encoder from ImageNet, the decoder LeCun uniform.
            ``checkpoint``: all of it from a model file or a TernausNet checkpoint.
        weights: For ``imagenet`` a VGG state dict (safetensors or .pth); without it torchvision's are downloaded. For
            ``checkpoint`` a model's name or file, or a TernausNet checkpoint.
        seed: Of the random numbers.

    Returns:
        What the weights had seen before, for the model card.

    Raises:
        ModelError: The weights cannot be had, or are of another network.
    """
    from geoseg.card import DataSource
    from geoseg.unet import UNet16, download_vgg, load_vgg

    generator = torch.Generator().manual_seed(seed)
    lecun_uniform_(net.modules(), generator)
    if init == "lecun":
        return []
    if init == "imagenet":
        name = "vgg16" if isinstance(net, UNet16) else "vgg11"
        try:
            mapping = load_vgg(net, weights if weights is not None else download_vgg(name))
        except ModelError as error:
            if weights is not None:
                raise
            raise ModelError(f"{error}. In a pipeline file: weights = FILE") from error
        as_is = all(ours == theirs for ours, theirs in mapping.items())
        what = "" if as_is else " (the convolutions of VGG16 that fit VGG11)"
        origin = "torchvision IMAGENET1K_V1" if weights is None else Path(weights).name
        return [DataSource(f"ImageNet, encoder only{what}", "ImageNet terms of access (research)", origin)]
    if weights is None:
        raise ModelError("init = 'checkpoint' needs weights: a model's name, or the path of a model or checkpoint")
    return _from_checkpoint(net, weights)


def _from_checkpoint(net: UNet11 | UNet16, weights: str) -> list[DataSource]:
    from geoseg.checkpoint import SUFFIX, load_model
    from geoseg.importing import plain_names, read_state
    from geoseg.unet import UNet16

    arch = "unet16" if isinstance(net, UNet16) else "unet11"
    path = Path(weights)
    sources: list[DataSource] = []
    try:
        model = load_model(weights)
        state, sources = model.state, list(model.card.training_data)
    except ModelError:
        # Not a model of geoseg: a published checkpoint, which says nothing of where it comes from.
        if not path.is_file():
            raise
        state = plain_names(read_state(path), arch, weights)
    wanted = net.state_dict()
    strange = sorted(set(state) ^ set(wanted)) or sorted(k for k, v in wanted.items() if state[k].shape != v.shape)
    if strange:
        raise ModelError(
            f"{weights}: is of another network than the {arch} with {net.final.in_channels} filters that is to be "
            f"trained (they differ in {strange[0]}{' and more' if len(strange) > 1 else ''}); set arch, num_filters "
            f"and is_deconv to those of the checkpoint ('geoseg model info' shows them for {SUFFIX} files)"
        )
    if lost := next((key for key, value in state.items() if not value.isfinite().all()), None):
        raise ModelError(f"{weights}: {lost} holds values that are not finite")
    net.load_state_dict(state)
    return sources
