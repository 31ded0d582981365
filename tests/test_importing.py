"""Published checkpoints become model files with the same logits, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from geoseg.checkpoint import load_model, read_card
from geoseg.errors import ModelError
from geoseg.importing import import_checkpoint, read_state


class PublishedBlock(nn.Module):
    """A decoder block under the published names, after the specification's tables."""

    def __init__(self, inputs: int, middle: int, out: int, kind: str) -> None:
        super().__init__()
        first, second = PublishedConv(inputs, middle), PublishedConv(middle, out)
        if kind == "bilinear":
            self.block = nn.Sequential(nn.Identity(), first, second)
        elif kind == "deconv4":
            self.block = nn.Sequential(first, nn.ConvTranspose2d(middle, out, 4, 2, 1))
        else:
            self.block = nn.Sequential(first, nn.ConvTranspose2d(middle, out, 3, 2, 1, 1))
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "bilinear":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.block(x))


class PublishedConv(nn.Module):
    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


LEVELS = {
    "unet11": [["conv1"], ["conv2"], *([f"conv{i}s", f"conv{i}"] for i in (3, 4, 5))],
    "unet16": [[f"conv{i}.{j}" for j in (0, 2, 4)[:n]] for i, n in enumerate((2, 2, 3, 3, 3), 1)],
}


class Published(nn.Module):
    """TernausNet as circulating checkpoints know it: the encoder's convolutions have two names."""

    WIDTHS = (64, 128, 256, 512, 512)

    def __init__(self, arch: str, kind: str, filters: int, classes: int) -> None:
        super().__init__()
        self.names = LEVELS[arch]
        encoder: list[nn.Module] = []
        inputs = 3
        for level, width in zip(self.names, self.WIDTHS, strict=True):
            convs: list[nn.Module] = []
            for name in level:
                convs += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
                if arch == "unet11":
                    self.add_module(name, convs[-2])
            if arch == "unet16":
                self.add_module(level[0].split(".")[0], nn.Sequential(*convs))
            encoder += [*convs, nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*encoder)
        f, dec4 = filters, 4 if arch == "unet11" else 8
        self.center = PublishedBlock(512, 16 * f, 8 * f, kind)
        self.dec5 = PublishedBlock(8 * f + 512, 16 * f, 8 * f, kind)
        self.dec4 = PublishedBlock(8 * f + 512, 16 * f, dec4 * f, kind)
        self.dec3 = PublishedBlock(dec4 * f + 256, 8 * f, 2 * f, kind)
        self.dec2 = PublishedBlock(2 * f + 128, 4 * f, f, kind)
        self.dec1 = PublishedConv(f + 64, f)
        self.final = nn.Conv2d(f, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for level in self.names:
            x = F.max_pool2d(x, 2) if outs else x
            for name in level:
                x = F.relu(self.get_submodule(name)(x))
            outs.append(x)
        x = self.center(F.max_pool2d(x, 2))
        for block in (self.dec5, self.dec4, self.dec3, self.dec2, self.dec1):
            x = block(torch.cat([x, outs.pop()], 1))
        return self.final(x)


def published(arch: str, kind: str, filters: int = 2, classes: int = 1) -> Published:
    torch.manual_seed(1)
    return Published(arch, kind, filters, classes).eval()


@pytest.fixture(scope="module")
def published11() -> Published:
    return published("unet11", "deconv3")


def only_levels(state: dict) -> dict:
    return {k: v for k, v in state.items() if not k.startswith("encoder.")}


def only_encoder(state: dict) -> dict:
    return {k: v for k, v in state.items() if not k.startswith("conv")}


@pytest.mark.parametrize(
    ("arch", "kind", "classes"),
    [("unet11", "deconv3", 1), ("unet16", "bilinear", 3), ("unet16", "deconv4", 1)],
)
def test_a_published_checkpoint_gives_the_same_logits(arch, kind, classes, tmp_path):
    reference = published(arch, kind, 2, classes)
    torch.save(reference.state_dict(), tmp_path / "published.pt")
    card = import_checkpoint(tmp_path / "published.pt", tmp_path / "m.safetensors", arch=arch)
    assert (card.name, card.num_filters, card.num_classes) == ("m", 2, classes)
    assert card.is_deconv == (kind == "deconv4")
    assert len(card.classes) == classes
    image = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        expected, found = reference(image), load_model(tmp_path / "m.safetensors").build()(image)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "step": 7},
        only_levels,
        only_encoder,
        lambda s: {k: v.double() for k, v in s.items()},
        lambda s: {k: nn.Parameter(v) for k, v in s.items()},
    ],
    ids=["model", "state_dict", "module", "both", "levels", "encoder", "double", "parameters"],
)
def test_the_ways_checkpoints_are_wrapped(wrap, published11, tmp_path):
    torch.save(wrap(published11.state_dict()), tmp_path / "c.pth")
    import_checkpoint(tmp_path / "c.pth", tmp_path / "m.safetensors", arch="unet11")
    state = load_model(tmp_path / "m.safetensors").state
    expected = only_encoder(published11.state_dict())
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_safetensors_checkpoints_are_imported_too(published11, tmp_path):
    state = only_encoder(published11.state_dict())
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    overrides = {"name": "mine", "licence": "MIT", "gsd_m": 0.3, "classes": ["roof"]}
    card = import_checkpoint(
        tmp_path / "c.safetensors", tmp_path / "m.safetensors", arch="unet11", num_filters=2,
        card=overrides, half=True,
    )  # fmt: skip
    assert card == read_card(tmp_path / "m.safetensors")
    assert (card.name, card.licence, card.gsd_m, card.classes) == ("mine", "MIT", 0.3, ("roof",))


def test_what_contradicts_the_weights_is_refused(published11, tmp_path):
    src, dst = tmp_path / "c.pt", tmp_path / "m.safetensors"
    torch.save(published11.state_dict(), src)
    for settings, match in (
        ({"arch": "unet11", "num_filters": 32}, "num_filters=2, not 32"),
        ({"arch": "unet11", "card": {"num_classes": 2}}, "num_classes is 1"),
        ({"arch": "unet11", "card": {"colour": 2}}, "'colour'"),
        ({"arch": "unet16"}, "does not fit unet16"),
        ({"arch": "resnet"}, "unet11 or unet16"),
    ):
        with pytest.raises(ModelError, match=match):
            import_checkpoint(src, dst, **settings)
    assert not dst.exists()


def test_names_for_one_convolution_must_agree(published11, tmp_path):
    state = {k: v.clone() for k, v in published11.state_dict().items()}
    state["conv3s.bias"] += 1
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"conv3s\.bias and encoder\.6\.bias"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "m.safetensors", arch="unet11")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, r"extra\.weight is not part of unet11"),
        (lambda s: {k: v for k, v in s.items() if "dec1" not in k}, r"dec1\.conv\.weight is missing"),
        (lambda s: {k: v for k, v in s.items() if k != "final.weight"}, r"no final\.weight"),
        (lambda s: {**s, "module.final.bias": s["final.bias"]}, r"final\.bias twice"),
        (lambda s: {**s, "epoch": 3}, r"'epoch': int"),
        (lambda s: {}, "empty"),
        (lambda s: [1, 2], "list"),
    ],
)  # fmt: skip
def test_what_is_no_ternausnet_is_refused(change, match, published11, tmp_path):
    torch.save(change(published11.state_dict()), tmp_path / "c.pt")
    with pytest.raises(ModelError, match=match):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "m.safetensors", arch="unet11")


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["c.pt", "c.pth", "c.safetensors"])
def test_a_pickle_that_wants_to_run_code_does_not(zipped, name, tmp_path):
    src, target = tmp_path / name, tmp_path / "was-run"
    content = {"model": {"final.weight": Hostile(target)}}
    torch.save(content, src, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError) as caught:
        import_checkpoint(src, tmp_path / "m.safetensors", arch="unet11")
    if name != "c.safetensors":
        assert "refused" in str(caught.value)
        assert "torch.save(net.state_dict()" in str(caught.value)
    for read in (load_model, read_card, read_state):
        with pytest.raises(ModelError):
            read(src)
    assert not target.exists()


def test_the_hostile_file_would_run_if_it_were_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "was-run")))
    assert (tmp_path / "was-run").is_dir()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_checkpoint_are_a_model_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("noise") / "c.pt"
    path.write_bytes(content)
    for read in (read_state, load_model, read_card):
        with pytest.raises(ModelError):
            read(path)


def test_a_missing_file_is_a_model_error(tmp_path):
    for read in (load_model, read_card, read_state):
        with pytest.raises(ModelError, match="gone"):
            read(tmp_path / "gone.pt")
