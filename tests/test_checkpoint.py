"""Model files: what comes back, and what is refused."""

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
from torch import nn

import geoseg.checkpoint as checkpoint
from geoseg.card import DataSource, ModelCard
from geoseg.checkpoint import list_models, load_model, look_at_model, read_card, save_model
from geoseg.errors import ModelError, OutputError
from geoseg.unet import Reach, UNet11, UNet16, reach

ROOT = Path(__file__).resolve().parents[1]
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


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    # The first byte of a file is the length's lowest, which for one length in 32 is that of a pickle.
    path = tmp_path / "m.safetensors"
    header = json.dumps({"__metadata__": {"geoseg": ModelCard(name="m", arch="unet11").to_json()}}).encode()
    first = -(-len(header) // 8) * 8
    for length in range(first, first + 256, 8):
        path.write_bytes(struct.pack("<Q", length) + header.ljust(length))
        assert read_card(path).name == "m"


# ----------------------------------------------------------------------------- without the weights


@pytest.mark.parametrize(("arch", "deconv"), [("unet11", False), ("unet16", False), ("unet16", True)])
def test_the_reach_that_is_written_down_is_the_networks_own(tmp_path: Path, arch: str, deconv: bool) -> None:
    net = UNet11(1) if arch == "unet11" else UNet16(1, 1, deconv)
    path = tmp_path / "a.safetensors"
    save_model(path, net, dataclasses.replace(CARD, arch=arch, is_deconv=deconv))
    assert look_at_model(path).reach == reach(net)


def test_looking_at_a_model_tells_what_loading_it_tells(model_file: Path) -> None:
    seen, loaded = look_at_model(model_file), load_model(model_file)
    for name in ("card", "path", "fingerprint", "reach", "output", "align", "notes"):
        assert getattr(seen, name) == getattr(loaded, name)


def test_a_file_that_was_cut_short_is_seen_without_loading_it(model_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model_file.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated"):
        look_at_model(cut)
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(with_header(model_file, lambda header: header.update(more=[1])))
    with pytest.raises(ModelError, match="damaged"):
        look_at_model(odd)


def test_planning_and_loading_import_neither_torchs_compiler_nor_torchvision() -> None:
    program = """
import sys
from geoseg.segment import plan
from geoseg.settings import Settings
plan([sys.argv[1]], Settings())
assert "torch" not in sys.modules
from geoseg.checkpoint import load_model
load_model().build()
assert "torch" in sys.modules
assert not {"torch._dynamo", "torchvision", "sympy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program, str(ROOT / "sample_tiles" / "images")], check=True)
