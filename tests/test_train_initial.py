"""Three ways to begin: drawn as the paper says, from ImageNet, and from a checkpoint."""

from __future__ import annotations

import math
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import narrow_net
from scipy import stats
from torch import Tensor, nn

import geoseg.unet
from geoseg.card import DataSource, ModelCard
from geoseg.checkpoint import save_model
from geoseg.errors import ModelError
from geoseg.train.initial import initialise, lecun_uniform_
from geoseg.unet import UNet11, UNet16

VGG11 = {0: (3, 64), 3: (64, 128), 6: (128, 256), 8: (256, 256), 11: (256, 512), 13: (512, 512), 16: (512, 512)}
VGG11 |= {18: (512, 512)}
VGG16 = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
VGG16 |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


def vgg(shapes: dict[int, tuple[int, int]]) -> dict[str, Tensor]:
    """Return weights with torchvision's names, each convolution with numbers of its own."""
    made: dict[str, Tensor] = {}
    for index, (before, after) in shapes.items():
        made[f"features.{index}.weight"] = torch.arange(after * before * 9).view(after, before, 3, 3) * 1e-9 + index
        made[f"features.{index}.bias"] = torch.arange(after) * 1e-6 - index
    return {key: value.float() for key, value in made.items()} | {"classifier.6.bias": torch.zeros(3)}


def convolutions(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))


def inputs_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> float:
    """Count how many numbers an output value sums, by letting the layer do it: all weights and inputs 1."""
    ones = torch.ones(1, layer.in_channels, 12, 12)
    with torch.no_grad():
        kernel = torch.ones_like(layer.weight)
        if isinstance(layer, nn.ConvTranspose2d):
            summed = nn.functional.conv_transpose2d(ones, kernel, None, layer.stride, layer.padding)
        else:
            summed = nn.functional.conv2d(ones, kernel, None, layer.stride, layer.padding)
        return float(summed[..., 4:8, 4:8].mean())


@pytest.mark.parametrize(
    "make",
    [lambda: UNet11(2), lambda: UNet16(1, 2), lambda: UNet16(1, 2, True)],
    ids=["unet11", "unet16", "unet16-deconv"],
)
def test_every_convolution_is_uniform_between_the_papers_bounds(make):
    net = make()
    initialise(net, "lecun", None, seed=7)
    for name, layer in convolutions(net):
        bound = math.sqrt(1 / inputs_of(layer))
        weights = layer.weight.detach().numpy().ravel().astype(float)
        assert abs(weights).max() <= bound * (1 + 1e-6), name
        assert abs(layer.bias.detach().numpy()).max() <= bound * (1 + 1e-6), name
        if weights.size < 500:
            continue
        assert abs(weights).max() > bound * (1 - 10 / weights.size), name
        # Five standard errors of the mean, the variance and the kurtosis of a uniform distribution.
        deviation, error = bound / math.sqrt(3), 5 / math.sqrt(weights.size)
        assert abs(weights.mean()) < error * deviation, name
        assert weights.var() == pytest.approx(bound**2 / 3, rel=error * math.sqrt(0.8)), name
        assert stats.kurtosis(weights) == pytest.approx(-1.2, abs=6 * error), name
        some = weights[:20_000] / bound
        assert stats.kstest(some, stats.uniform(-1, 2).cdf).pvalue > 1e-5, name


def test_only_convolutions_are_drawn():
    others = [nn.Linear(3, 3), nn.BatchNorm2d(3)]
    before = [value.clone() for module in others for value in module.state_dict().values()]
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    lecun_uniform_([*others, conv], torch.Generator().manual_seed(0))
    after = [value for module in others for value in module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    bound = math.sqrt(1 / (2 * 9))
    assert 0.9 * bound < float(conv.weight.detach().abs().max()) <= bound


def test_a_seed_is_a_network_whatever_was_drawn_before():
    nets = []
    for seed in (1, 1, 2):
        torch.rand(3)
        nets.append(UNet11(1))
        kept = torch.get_rng_state()
        initialise(nets[-1], "lecun", None, seed)
        assert torch.equal(torch.get_rng_state(), kept)
    one, same, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


def decoder_of(net: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if not key.startswith("encoder.")}


@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
@pytest.mark.parametrize(("make", "shapes"), [(UNet11, VGG11), (lambda f: UNet16(1, f, True), VGG16)])
def test_imagenet_fills_the_encoder_and_leaves_the_decoder(make, shapes, kind, tmp_path):
    state, file = vgg(shapes), tmp_path / f"vgg{kind}"
    torch.save(state, file) if kind == ".pth" else safetensors.torch.save_file(state, file)
    net, drawn = make(1), make(1)
    (source,) = initialise(net, "imagenet", str(file), seed=3)
    initialise(drawn, "lecun", None, seed=3)
    for key, value in net.encoder.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"]), key
    wanted, found = decoder_of(drawn), decoder_of(net)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (source.name, source.source) == ("ImageNet, encoder only", file.name)
    file.unlink()


def test_without_a_file_torchvisions_weights_are_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr(geoseg.unet, "download_vgg", lambda name: asked.append(name) or vgg(VGG11))
    net = UNet11(1)
    (source,) = initialise(net, "imagenet", None, seed=0)
    assert asked == ["vgg11"]
    assert torch.equal(net.encoder[3].weight, vgg(VGG11)["features.3.weight"])
    assert "torchvision" in source.source


def test_out_of_reach_it_says_what_to_do(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(ModelError, match=r"vgg16 could not be fetched from https.*no route to host.*weights = FILE"):
        initialise(UNet16(1, 1), "imagenet", None, seed=0)


def test_a_file_of_another_network_is_told(tmp_path):
    file = tmp_path / "vgg.safetensors"
    safetensors.torch.save_file(vgg(VGG11), file)
    with pytest.raises(ModelError, match=r"vgg\.safetensors has convolutions at features.N"):
        initialise(UNet16(1, 1), "imagenet", str(file), seed=0)
    with pytest.raises(ModelError, match=r"gone\.pth"):
        initialise(UNet11(1), "imagenet", str(tmp_path / "gone.pth"), seed=0)
    file.unlink()


def test_the_real_weights_of_vgg16(shared_data):
    file = shared_data / "weights" / "vgg16_imagenet_features_fp16.safetensors"
    state = safetensors.torch.load_file(file)
    net = UNet16(1, 1)
    (source,) = initialise(net, "imagenet", str(file), seed=0)
    for key, value in net.encoder.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"].float()), key
    assert source.name == "ImageNet, encoder only"
    # VGG11 takes the first convolutions of each level that fit.
    smaller = UNet11(1)
    (source,) = initialise(smaller, "imagenet", str(file), seed=0)
    for ours, theirs in zip(VGG11, (0, 5, 10, 12, 17, 19, 24, 26), strict=True):
        for kind in ("weight", "bias"):
            assert torch.equal(
                smaller.encoder.state_dict()[f"{ours}.{kind}"], state[f"features.{theirs}.{kind}"].float()
            )
    assert "VGG16 that fit VGG11" in source.name


CARD = ModelCard(name="n", arch="unet11", num_filters=4, training_data=(DataSource("roofs", "CC0", "drawn"),))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """One network as a model of geoseg, and as TernausNet published such."""
    folder = tmp_path_factory.mktemp("checkpoints")
    net = narrow_net()
    save_model(folder / "ours.safetensors", net, CARD, half=False)
    levels = dict(zip(["conv1", "conv2", "conv3s", "conv3", "conv4s", "conv4", "conv5s", "conv5"], VGG11, strict=True))
    published = {f"module.{key}": value for key, value in net.state_dict().items()}
    for level, index in levels.items():
        for kind in ("weight", "bias"):
            published[f"module.{level}.{kind}"] = published[f"module.encoder.{index}.{kind}"]
    torch.save({"model": published}, folder / "published.pth")
    only_levels = {key: value for key, value in published.items() if ".encoder." not in key}
    torch.save(only_levels, folder / "levels.pt")
    made = {file.stem: file for file in folder.iterdir()}
    yield made
    for file in made.values():
        file.unlink()


@pytest.mark.parametrize(
    ("which", "sources"), [("ours", [DataSource("roofs", "CC0", "drawn")]), ("published", []), ("levels", [])]
)
def test_a_checkpoint_fills_the_whole_network(checkpoints, which, sources):
    net = UNet11(4)
    assert initialise(net, "checkpoint", str(checkpoints[which]), seed=0) == sources
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64))).float()
    with torch.inference_mode():
        assert torch.equal(net.eval()(image), narrow_net()(image))


@pytest.mark.parametrize("which", ["ours", "published"])
@pytest.mark.parametrize("make", [lambda: UNet11(8), lambda: UNet16(1, 4), lambda: UNet16(1, 4, True)])
def test_a_checkpoint_of_another_network_is_told(checkpoints, which, make):
    net = make()
    with pytest.raises(ModelError, match=rf"{which}.*is of another network than the unet1[16] with [48] filters"):
        initialise(net, "checkpoint", str(checkpoints[which]), seed=0)


def test_a_checkpoint_that_is_none_is_told(tmp_path):
    with pytest.raises(ModelError, match="no-such-model"):
        initialise(UNet11(1), "checkpoint", "no-such-model", seed=0)
    file = tmp_path / "x.pth"
    file.write_bytes(b"nonsense" * 100)
    with pytest.raises(ModelError, match=r"x\.pth"):
        initialise(UNet11(1), "checkpoint", str(file), seed=0)
    with pytest.raises(ModelError, match="needs weights"):
        initialise(UNet11(1), "checkpoint", None, seed=0)


def test_a_checkpoint_of_numbers_that_are_none_is_told(checkpoints, tmp_path):
    state = torch.load(checkpoints["levels"])
    state["module.final.bias"] = torch.tensor([math.nan])
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ModelError, match=r"broken.pt: final.bias holds values that are not finite"):
        initialise(UNet11(4), "checkpoint", str(tmp_path / "broken.pt"), seed=0)
    (tmp_path / "broken.pt").unlink()
