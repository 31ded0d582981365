"""Model files: what comes back, what is refused, and that nothing in them runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import geoseg.checkpoint as checkpoint
from geoseg.checkpoint import (
    DataSource,
    ModelCard,
    import_checkpoint,
    list_models,
    load_model,
    read_card,
    read_state,
    save_model,
)
from geoseg.errors import ModelError, OutputError
from geoseg.unet import Reach, UNet11, UNet16

CARD = ModelCard(
    name="narrow",
    arch="unet11",
    num_filters=1,
    gsd_m=0.3,
    value_range={"uint8": (0, 255), "uint16": (100, 3000.5)},
    training_data=(DataSource("Some city", "CC BY 4.0", "https://example.org/city"),),
    licence="CC BY 4.0",
    metrics={"iou": 0.686},
    description="ä text",
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return UNet11(1).eval()


@pytest.fixture(scope="module")
def model_file(net, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "narrow.safetensors"
    save_model(path, net, CARD)
    return path


def with_header(path: Path, change) -> bytes:
    """The file's bytes with its header, as a dict, changed by ``change``."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def change_card(**changes: object):
    def change(header: dict) -> None:
        card = json.loads(header["__metadata__"]["geoseg"])
        header["__metadata__"]["geoseg"] = json.dumps({**card, **changes})

    return change


# --------------------------------------------------------------------------------------- the card


def test_defaults_are_the_papers():
    card = ModelCard(name="x", arch="unet11")
    assert (card.threshold, card.bands, card.classes) == (0.3, (1, 2, 3), ("building",))
    assert card.mean == (0.485, 0.456, 0.406)
    assert card.std == (0.229, 0.224, 0.225)
    assert card.value_range == {"uint8": (0.0, 255.0)}


texts = st.text(min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    num_filters=st.integers(1, 64),
    bands=st.tuples(*[st.integers(1, 12)] * 3),
    low=st.floats(-1e6, 1e6),
    span=st.floats(1, 1e6),
    mean=st.tuples(numbers, numbers, numbers),
    gsd_m=st.none() | st.floats(0.01, 100),
    threshold=st.floats(0.01, 0.99),
    classes=st.lists(texts, min_size=1, max_size=4, unique=True),
    training_data=st.lists(st.builds(DataSource, texts, texts, texts), max_size=2),
    metrics=st.dictionaries(texts, numbers, max_size=3),
    description=st.text(max_size=20),
)
def test_a_card_survives_json(low, span, classes, **fields):
    card = ModelCard(
        name="a-1.b_c",
        arch="unet16",
        is_deconv=True,
        num_classes=len(classes),
        classes=tuple(classes),
        value_range={"uint16": (low, low + span)},
        **fields,
    )
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert again.to_json() == card.to_json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "../evil"),
        ("name", 3),
        ("arch", "unet12"),
        ("num_filters", 0),
        ("num_filters", 10**9),
        ("num_filters", True),
        ("num_classes", 1.0),
        ("is_deconv", True),  # unet11 has no choice
        ("is_deconv", 1),
        ("bands", (0, 1, 2)),
        ("bands", (1, 2)),
        ("bands", "123"),
        ("value_range", {"uint9": (0, 1)}),
        ("value_range", {"uint8": (255, 0)}),
        ("value_range", {"uint8": 255}),
        ("value_range", []),
        ("mean", (0.1, 0.2)),
        ("mean", (0.1, 0.2, float("nan"))),
        ("std", (0.1, 0.2, 0.0)),
        ("std", 1.0),
        ("gsd_m", 0),
        ("gsd_m", float("inf")),
        ("gsd_m", "0.3"),
        ("threshold", 0),
        ("threshold", 1),
        ("threshold", 10**400),
        ("classes", ("a", "b")),
        ("classes", ("",)),
        ("training_data", ({"name": "x"},)),
        ("training_data", ({"name": "x", "licence": "y", "source": "z", "more": 1},)),
        ("training_data", ("x",)),
        ("metrics", {"iou": "good"}),
        ("metrics", {1: 1.0}),
        ("description", None),
        ("halo", 33),
        ("halo", -32),
        ("taper", 3),
        ("taper", 2),  # without a halo
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ModelError, match=field):
        dataclasses.replace(CARD, **{field: value})


def test_class_names_must_be_as_many_as_classes_and_differ():
    with pytest.raises(ModelError, match="classes"):
        ModelCard(name="x", arch="unet11", num_classes=2, classes=("a", "a"))
    assert len(ModelCard(name="x", arch="unet11", num_classes=3).classes) == 3


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"name": "x", "arch": "unet11", "colour": 1}', "'colour'"),
        ('{"name": "x"}', "needs 'arch'"),
        ("[]", "not an object"),
        ("{", "not valid JSON"),
        ('{"threshold": NaN}', "NaN"),
        ("[" * 200_000, "not valid JSON"),
        ('{"name": "x", "arch": ["unet11"]}', "arch"),
        ('{"name": "x", "arch": "unet11", "threshold": 1e999}', "threshold"),
    ],
)
def test_bad_card_text_is_refused_with_its_origin(text, match):
    with pytest.raises(ModelError, match=match) as caught:
        ModelCard.from_json(text, "there.safetensors")
    assert "there.safetensors" in str(caught.value)


# --------------------------------------------------------------------------------- save and load


def test_a_model_comes_back_in_float32(net, model_file):
    model = load_model(model_file)
    assert model.card == dataclasses.replace(CARD, geoseg_version=model.card.geoseg_version)
    assert model.card.geoseg_version
    assert model.path == model_file
    assert model.reach == Reach(153, 184)
    assert model.fingerprint == hashlib.sha256(model_file.read_bytes()).hexdigest()
    for key, tensor in net.state_dict().items():
        assert model.state[key].dtype == torch.float32
        assert torch.equal(model.state[key], tensor.half().float()), key


def test_the_built_network_gives_the_same_logits_and_is_ready_to_run(net, tmp_path):
    save_model(tmp_path / "m.safetensors", net, CARD, half=False)
    built = load_model(tmp_path / "m.safetensors").build()
    image = torch.rand(1, 3, 64, 32)
    with torch.inference_mode():
        assert torch.equal(built(image), net(image))
    assert not built.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in built.parameters())


def test_training_what_was_built_leaves_the_model_alone(model_file):
    model = load_model(model_file)
    with torch.no_grad():
        model.build().final.bias.add_(1)
    assert torch.equal(model.build().final.bias, model.state["final.bias"])


def test_a_model_travels_to_workers(model_file):
    model = load_model(model_file)
    again = pickle.loads(pickle.dumps(model))
    assert again.card == model.card
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.state["final.weight"], model.state["final.weight"])


def test_half_precision_halves_the_file(net, model_file, tmp_path):
    save_model(tmp_path / "full.safetensors", net, CARD, half=False)
    ratio = (tmp_path / "full.safetensors").stat().st_size / model_file.stat().st_size
    assert 1.95 < ratio < 2.0


def test_equal_models_are_equal_bytes_even_from_another_process(net, model_file, tmp_path):
    save_model(tmp_path / "again.safetensors", net, CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == model_file.read_bytes()
    code = (
        "import sys; from geoseg.checkpoint import load_model, save_model; "
        "m = load_model(sys.argv[1]); save_model(sys.argv[2], m.build(), m.card)"
    )
    other = tmp_path / "other.safetensors"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(model_file), str(other)]
    subprocess.run(command, check=True, env=environment)
    assert other.read_bytes() == model_file.read_bytes()


def test_saving_replaces_and_leaves_nothing_beside(net, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("old")
    save_model(path, net, CARD)
    assert read_card(path).name == "narrow"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file(net, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(path, net, CARD)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_missing_folder_is_an_output_error(net, tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        save_model(tmp_path / "nowhere" / "m.safetensors", net, CARD)


def test_weights_must_fit_the_card_when_saving(net, tmp_path):
    with pytest.raises(ModelError, match=r"center\.block\.0\.conv\.weight has shape .*and \d+ more"):
        save_model(tmp_path / "m", net, dataclasses.replace(CARD, num_filters=2))


@pytest.mark.parametrize(("value", "match"), [(float("nan"), "not finite"), (1e6, "half=False")])
def test_weights_must_be_finite_in_the_files_precision(value, match, net, tmp_path):
    bad = UNet11(1)
    bad.load_state_dict({**net.state_dict(), "final.bias": torch.tensor([value])})
    with pytest.raises(ModelError, match=match):
        save_model(tmp_path / "m", bad, CARD)
    assert not list(tmp_path.iterdir())


def test_several_classes_and_both_decoders_of_unet16(tmp_path):
    for is_deconv in (False, True):
        card = ModelCard(name="n", arch="unet16", num_filters=1, num_classes=4, is_deconv=is_deconv)
        save_model(tmp_path / "m.safetensors", UNet16(4, 1, is_deconv), card)
        built = load_model(tmp_path / "m.safetensors").build()
        with torch.inference_mode():
            assert built(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)


# ---------------------------------------------------------------------------------- names and paths


@pytest.fixture
def shipped(tmp_path, model_file, monkeypatch) -> Path:
    """A package whose models folder holds a default model and another one."""
    folder = tmp_path / "geoseg" / "models"
    folder.mkdir(parents=True)
    for name in ("zebra", checkpoint.DEFAULT_MODEL):
        (folder / f"{name}.safetensors").write_bytes(model_file.read_bytes())
    monkeypatch.setattr(checkpoint.resources, "files", lambda _: folder.parent)
    return folder


def test_shipped_models_are_found_by_name(shipped):
    assert load_model().path == shipped / f"{checkpoint.DEFAULT_MODEL}.safetensors"
    assert load_model("zebra").path == shipped / "zebra.safetensors"
    assert [name for name, _ in list_models()] == [checkpoint.DEFAULT_MODEL, "zebra"]
    assert list_models()[0][1].name == "narrow"


def test_a_missing_model_lists_what_there_is(shipped):
    with pytest.raises(ModelError, match=rf"nosuch.*{checkpoint.DEFAULT_MODEL}, zebra"):
        load_model("nosuch")
    with pytest.raises(ModelError, match="is a folder"):
        load_model(shipped)


def test_a_path_given_as_text_is_a_path(shipped, model_file, monkeypatch):
    assert load_model(str(model_file)).path == model_file
    monkeypatch.chdir(model_file.parent)
    assert load_model(model_file.name).path == Path(model_file.name)


def test_reading_a_card_needs_no_torch(model_file):
    code = (
        "import sys; from geoseg.checkpoint import list_models, read_card; list_models(); "
        "print(read_card(sys.argv[1]).name, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(model_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["narrow", "False"]


def test_a_card_is_read_from_the_header_alone(model_file, tmp_path):
    content = model_file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    (tmp_path / "head").write_bytes(content[: 8 + length])
    assert read_card(tmp_path / "head") == load_model(model_file).card


# -------------------------------------------------------------------------------------- bad files


def header_of(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a safetensors file"),
        (b"short", "not a safetensors file"),
        (b"II*\0" + bytes(100), "not a safetensors file"),
        (struct.pack("<Q", 1 << 40) + b"{}", "header would have"),
        (struct.pack("<Q", 500) + b'{"a"', "truncated"),
        (header_of(b"[1, 2]"), "not a safetensors file"),
        (header_of(b"{" * 100), "damaged"),
        (header_of(b'{"a":' * 200_000), "damaged"),
        (header_of(b'{"\xff": 1}'), "damaged"),
        (header_of(b"{}"), "geoseg model import"),
        (header_of(b'{"__metadata__": {"format": "pt"}}'), "geoseg model import"),
        (header_of(b'{"__metadata__": [1]}'), "geoseg model import"),
        (header_of(b'{"__metadata__": {"geoseg": 5}}'), "geoseg model import"),
        (header_of(b'{"__metadata__": {"geoseg": "{"}}'), "not valid JSON"),
    ],
)
def test_files_that_are_no_models_say_so(content, match, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (load_model, read_card):
        with pytest.raises(ModelError, match=match) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 1000, 10_000_000])
def test_a_truncated_model_is_refused(cut, model_file, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(model_file.read_bytes()[:-cut])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(path)


def test_a_card_with_unknown_keys_is_refused_in_a_file(model_file, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(with_header(model_file, change_card(colour="red")))
    with pytest.raises(ModelError, match=r"m\.safetensors.*'colour'"):
        load_model(path)


def test_weights_that_do_not_fit_the_card_are_named(model_file, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(with_header(model_file, change_card(arch="unet16")))
    with pytest.raises(ModelError, match=r"encoder\.2\.weight is missing"):
        load_model(path)


def test_weights_of_integers_or_nan_are_refused(net, tmp_path):
    path = tmp_path / "m.safetensors"
    for bad, match in ((torch.tensor([1]), "int64"), (torch.tensor([float("nan")]), "finite")):
        state = {**net.state_dict(), "final.bias": bad}
        safetensors.torch.save_file(state, path, metadata={"geoseg": CARD.to_json()})
        with pytest.raises(ModelError, match=rf"final\.bias.*{match}"):
            load_model(path)


# ------------------------------------------------------------------------- published checkpoints


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


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    # The first byte of a file is the length's lowest, which for one length in 32 is that of a pickle.
    path = tmp_path / "m.safetensors"
    header = json.dumps({"__metadata__": {"geoseg": ModelCard(name="m", arch="unet11").to_json()}}).encode()
    first = -(-len(header) // 8) * 8
    for length in range(first, first + 256, 8):
        path.write_bytes(struct.pack("<Q", length) + header.ljust(length))
        assert read_card(path).name == "m"
