"""Other people's networks: what their cards say is done, and every mismatch is one clear error."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from conftest import blobs, write_tile
from torch import Tensor, nn

import geoseg.runtimes as runtimes
from geoseg.card import ForeignCard, ModelCard
from geoseg.checkpoint import load_model, read_card
from geoseg.cli import main
from geoseg.errors import ModelError, SettingError
from geoseg.foreign import EXAMPLE, ForeignModel, format_of
from geoseg.predict import Predictor, Scaling, whole_image
from geoseg.segment import plan, segment
from geoseg.settings import Settings
from geoseg.unet import Reach

SMALL = {"cell": 64, "core": 128, "workers": 0, "progress": "none"}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CARD = {"name": "theirs", "arch": "torchscript", "mean": MEAN, "std": STD, "reach": 1, "output": "logits"}
WEIGHTS = np.random.default_rng(7).normal(size=(2, 3, 3, 3)).astype(np.float32)


class Smooth(nn.Module):
    """A convolution 3×3 with fixed weights: reach 1, any size of image."""

    def __init__(self, classes: int = 1, bands: int = 3, probability: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bands, classes, 3, padding=1)
        self.probability = probability
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(WEIGHTS[:classes]).mean(1, keepdim=True).expand(-1, bands, -1, -1))
            self.conv.weight[:, :3] += torch.from_numpy(WEIGHTS[:classes])
            self.conv.bias.copy_(torch.tensor([0.25, -0.5])[:classes])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.probability:
            return x.sigmoid() if x.shape[1] == 1 else x.softmax(1)
        return x


class Coarse(nn.Module):
    """What a pooling to 64-pixel squares and back leaves: takes sides that are multiples of 64 only."""

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(x.mean(1, keepdim=True), 64)
        return x.mean(1, keepdim=True) + torch.nn.functional.interpolate(y, scale_factor=64.0, mode="nearest")


class Dict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x[:, :1]}


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1, ::2, ::2]


class NotFinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] / 0.0


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1].reshape(1, 1, 64, 64)


def put_card(path: Path, **card: Any) -> Path:
    """Write the card beside a network, and return the network's path."""
    content = {**CARD, "arch": "onnx" if path.suffix == ".onnx" else "torchscript", **card}
    Path(f"{path}.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def script(path: Path, net: nn.Module, **card: Any) -> Path:
    """Write a network as TorchScript with its card."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net.eval()), str(path))
    return put_card(path, **card)


def graph(
    path: Path,
    *,
    image: tuple[Any, ...] = ("n", 3, "h", "w"),
    answers: int = 1,
    kind: str = "FLOAT",
    probability: bool = False,
    twice: bool = False,
    **card: Any,
) -> Path:
    """Write the convolution of :class:`Smooth` as ONNX, operator by operator, with its card."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install geoseg[onnx])")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install geoseg[onnx])")
    helper, dtype = onnx.helper, getattr(onnx.TensorProto, kind)
    net = Smooth(answers, image[1])
    weights = [
        onnx.numpy_helper.from_array(value.detach().numpy().astype(helper.tensor_dtype_to_np_dtype(dtype)), name)
        for name, value in net.conv.named_parameters()
    ]
    last = "logits" if not probability else "answer"
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], pads=[1, 1, 1, 1])]
    if probability:
        last_node = ("Sigmoid", {}) if answers == 1 else ("Softmax", {"axis": 1})
        nodes.append(helper.make_node(last_node[0], ["logits"], ["answer"], **last_node[1]))
    sides = (image[0], answers, *image[2:])
    outputs = [helper.make_tensor_value_info(name, dtype, sides) for name in (["logits", last] if twice else [last])]
    inputs = [helper.make_tensor_value_info("image", dtype, image)]
    content = helper.make_graph(nodes, "theirs", inputs, outputs, weights)
    model = helper.make_model(content, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return put_card(path, **card)


Writer = Callable[..., Path]


@pytest.fixture(params=["onnx", "ts"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    """Write :class:`Smooth` in either format."""

    def make(name: str = "theirs", *, classes: int = 1, probability: bool = False, **card: Any) -> Path:
        path = tmp_path / f"{name}.{request.param}"
        card = {"num_classes": classes, "classes": ["building"] if classes == 1 else ["ground", "building"], **card}
        if request.param == "onnx":
            return graph(path, answers=classes, probability=probability, **card)
        return script(path, Smooth(classes, probability=probability), **card)

    return make


def expected(values: np.ndarray, classes: int = 1) -> np.ndarray:
    """The probability of the last class, in numpy."""
    pixels = (values / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    height, width = values.shape[1:]
    rows, cols = -height % 32, -width % 32
    pixels = np.pad(pixels, ((0, 0), (0, rows), (0, cols)), mode="reflect")
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    kernel = WEIGHTS[:classes] + WEIGHTS[:classes].mean(1, keepdims=True)
    logits = np.zeros((classes, height, width))
    for row in range(3):
        for col in range(3):
            part = padded[:, row : row + height, col : col + width]
            logits += np.einsum("kc,chw->khw", kernel[:, :, row, col], part)
    logits += np.array([0.25, -0.5])[:classes, None, None]
    if classes == 1:
        return 1 / (1 + np.exp(-logits[0]))
    return np.exp(logits[1]) / np.exp(logits).sum(0)


def run(model: ForeignModel, values: np.ndarray, **settings: Any) -> np.ndarray:
    predictor = Predictor.of(model, **{"device": "cpu", "threads": 1, **settings})
    return whole_image(predictor, values, np.ones(values.shape[1:], bool), Scaling.of(model.card, "uint8"))


# --- what is computed


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("output", ["logits", "probability"])
def test_against_numpy(write: Writer, classes: int, output: str) -> None:
    path = write(classes=classes, probability=output == "probability", output=output)
    values = blobs((70, 45))
    found = run(load_model(path), values)
    assert found.std() > 0.1
    np.testing.assert_allclose(found, expected(values, classes), atol=1e-5)


def test_a_whole_run(write: Writer, tmp_path: Path) -> None:
    values = blobs((150, 131))
    write_tile(tmp_path / "in" / "a.tif", values)
    result = segment(tmp_path / "in", tmp_path / "out", model=str(write(threshold=0.6)), **SMALL)
    with rasterio.open(tmp_path / "out" / "probability.tif") as dataset:
        found = dataset.read(1).astype(float)
    assert np.abs(found - 255 * expected(values)).max() < 0.51
    assert result.run["model"]["reach"] == [1, 1]
    with rasterio.open(tmp_path / "out" / "mask.tif") as dataset:
        assert ((dataset.read(1) > 0) == (expected(values) >= 0.6)).mean() > 0.999


def test_sides_that_are_multiples_of_more_than_32(tmp_path: Path) -> None:
    model = script(tmp_path / "coarse.ts", Coarse(), reach=63, align=64)
    values = blobs((150, 131))
    write_tile(tmp_path / "in" / "a.tif", values)
    segment(tmp_path / "in", tmp_path / "out", model=str(model), **SMALL)
    whole = run(load_model(model), values)
    with rasterio.open(tmp_path / "out" / "probability.tif") as dataset:
        assert np.abs(dataset.read(1) - 255 * whole).max() < 0.51
    for wrong in ({"halo": 32}, {"cell": 96, "core": 96}):
        with pytest.raises(SettingError, match="multiples of 64 px"):
            segment(tmp_path / "in", tmp_path / "other", model=str(model), **{**SMALL, **wrong})


def test_halo_and_bands_come_from_the_card(tmp_path: Path) -> None:
    path = script(tmp_path / "x.ts", Smooth(), bands=[3, 1, 2], reach=[40, 70])
    write_tile(tmp_path / "a.tif", blobs((64, 64)))
    made = plan(tmp_path / "a.tif", Settings.of({"model": str(path)}))
    assert made.tiling.halo == 96
    assert [list(source.bands) for source in made.mosaic.sources] == [[3, 1, 2]]
    put_card(path, reach=[40, 70], halo=32, taper=8)
    made = plan(tmp_path / "a.tif", Settings.of({"model": str(path)}))
    assert (made.tiling.halo, made.tiling.taper) == (32, 8)


def test_a_network_that_takes_one_image_at_a_time(tmp_path: Path) -> None:
    model = load_model(graph(tmp_path / "one.onnx", image=(1, 3, "h", "w")))
    images = np.stack([blobs((32, 64), seed) for seed in (1, 2, 3)])
    predictor = Predictor.of(model, device="cpu", threads=1, batch=3)
    found = predictor.probabilities(images, np.ones((3, 32, 64), bool), Scaling.of(model.card, "uint8"))
    np.testing.assert_allclose(found, [expected(image) for image in images], atol=1e-5)


def test_a_network_in_half_precision(tmp_path: Path) -> None:
    values = blobs((64, 64))
    found = run(load_model(graph(tmp_path / "x.onnx", kind="FLOAT16")), values)
    assert 0 < np.abs(found - expected(values)).max() < 5e-3


def test_onnx_runtime_takes_the_threads_of_the_predictor(tmp_path: Path) -> None:
    predictor = Predictor.of(load_model(graph(tmp_path / "x.onnx")), device="cpu", threads=2)
    before = torch.get_num_threads()
    try:
        predictor.probabilities(
            np.zeros((1, 3, 32, 32), np.uint8), np.ones((1, 32, 32), bool), Scaling(0.0, 1.0, MEAN, STD)
        )
    finally:
        torch.set_num_threads(before)
    assert predictor._net._session.get_session_options().intra_op_num_threads == 2


def test_precision(tmp_path: Path) -> None:
    model = load_model(graph(tmp_path / "x.onnx"))
    for wanted in ("auto", "fp32"):
        assert Predictor.of(model, device="cpu", precision=wanted).precision == "fp32"
    for wanted in ("bf16", "fp16"):
        with pytest.raises(SettingError, match=r"precision.*exported in"):
            Predictor.of(model, device="cpu", precision=wanted)
    values = blobs((64, 64))
    found = run(load_model(script(tmp_path / "x.ts", Smooth())), values, precision="bf16")
    exact = expected(values)
    assert 0 < np.abs(found - exact).max() < 0.05


# --- the model object and the command line


def test_a_foreign_model(write: Writer) -> None:
    path = write(reach=[3, 5])
    model = load_model(path)
    assert isinstance(model, ForeignModel)
    assert model.reach == Reach(3, 5)
    assert model.parameters == (28 if path.suffix == ".ts" else None)
    again = pickle.loads(pickle.dumps(model))
    assert again.card == model.card
    assert model.card == read_card(path) == ForeignCard.from_json(model.card.to_json())


def test_the_fingerprint_is_that_of_all_files(write: Writer) -> None:
    path = write()
    content = path.read_bytes() + Path(f"{path}.json").read_bytes()
    first = load_model(path).fingerprint
    assert first == hashlib.sha256(content).hexdigest()
    put_card(path, threshold=0.4)
    assert load_model(path).fingerprint != first


def test_external_data_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install geoseg[onnx])")
    path = graph(tmp_path / "x.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="x.onnx.data", size_threshold=0)
    parts = [path, tmp_path / "x.onnx.data", tmp_path / "x.onnx.json"]
    model = load_model(path)
    assert model.fingerprint == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    values = blobs((32, 32))
    np.testing.assert_allclose(run(model, values), expected(values), atol=1e-5)


def test_the_card_may_also_be_called_after_the_stem(tmp_path: Path) -> None:
    path = script(tmp_path / "x.ts", Smooth())
    (tmp_path / "x.ts.json").rename(tmp_path / "x.json")
    assert load_model(path).card.name == "theirs"


def test_reading_a_card_needs_neither_torch_nor_a_runtime(tmp_path: Path) -> None:
    path = put_card(tmp_path / "x.onnx")
    path.write_bytes(b"")
    code = (
        "import sys; from geoseg.checkpoint import read_card; print(read_card(sys.argv[1]).arch); "
        "print([m for m in ('torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "onnx\n[]\n"


def test_info(write: Writer) -> None:
    path = write(reach=7)
    result = CliRunner().invoke(main, ["model", "info", str(path)])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["reach_px"] == [7, 7]
    assert facts["output"] == "logits"
    assert "num_filters" not in facts


def test_a_checkpoint_with_the_same_ending_is_none(tmp_path: Path) -> None:
    torch.save(Smooth().state_dict(), tmp_path / "x.pt")
    assert format_of(tmp_path / "x.pt") is None
    with pytest.raises(ModelError, match="model import"):
        load_model(tmp_path / "x.pt")
    assert format_of(script(tmp_path / "y.pt", Smooth())) == "torchscript"
    assert load_model(tmp_path / "y.pt").card.arch == "torchscript"


# --- what is refused


def test_without_a_card_the_error_shows_one_that_works(write: Writer) -> None:
    path = write()
    Path(f"{path}.json").unlink()
    result = CliRunner().invoke(main, ["model", "info", str(path)])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"has no model card. Write {path.name}.json" in result.stderr
    example = result.stderr[result.stderr.index("{") :]
    Path(f"{path}.json").write_text(example)
    assert load_model(path).card.name == "theirs"
    assert set(json.loads(example)) == set(EXAMPLE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reach": None}, "needs 'reach'"),
        ({"mean": None, "std": None}, "needs 'mean', 'std'"),
        ({"output": None}, "needs 'output'"),
        ({"colour": "red"}, "has no 'colour'"),
        ({"num_filters": 32}, "has no 'num_filters'"),
        ({"arch": "unet11"}, "arch is 'unet11', not onnx or torchscript"),
        ({"arch": "onnx"}, r"arch is 'onnx', but x\.ts is torchscript"),
        ({"reach": -1}, "reach is -1"),
        ({"reach": [1, 2, 3]}, "reach is"),
        ({"reach": 1.5}, "reach is 1.5"),
        ({"reach": True}, "reach is True"),
        ({"reach": 10**6}, "reach is 1000000"),
        ({"output": "mask"}, "output is 'mask', not logits or probability"),
        ({"align": 0}, "align is 0"),
        ({"align": 48}, "align is 48, not a divisor or a multiple of 32"),
        ({"align": 64, "halo": 96}, "halo is 96, not a multiple of align"),
        ({"bands": [1, 2, 3, 4]}, "bands is"),
        ({"num_classes": 2, "classes": ["a", "b"]}, r"num_classes 2\) promises"),
    ],
)
def test_cards_that_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = script(tmp_path / "x.ts", Smooth(), **change)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert "x.ts" in str(caught.value)


def test_a_card_that_is_no_json(tmp_path: Path) -> None:
    path = script(tmp_path / "x.ts", Smooth())
    Path(f"{path}.json").write_text("reach: 3")
    with pytest.raises(ModelError, match=r"x\.ts\.json.*not valid JSON"):
        load_model(path)
    Path(f"{path}.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"x\.ts\.json: cannot be read"):
        load_model(path)


def test_own_cards_take_no_foreign_fields() -> None:
    text = ModelCard(name="x", arch="unet11").to_json()
    with pytest.raises(ModelError, match="'reach'"):
        ModelCard.from_json(json.dumps({**json.loads(text), "reach": 3}))
    with pytest.raises(ModelError, match="arch"):
        ModelCard(name="x", arch="onnx")


@pytest.mark.parametrize(
    ("net", "card", "words"),
    [
        (Smooth(bands=4), {}, "fails on an image of 64 × 64 with three bands: .*4 channels"),
        (Smooth(2), {}, r"shape \(1, 2, 64, 64\), where its card \(num_classes 1\) promises \(1, 1, 64, 64\)"),
        (Half(), {}, r"shape \(1, 1, 32, 32\)"),
        (Dict(), {}, "answers with a dict"),
        (NotFinite(), {}, "not finite"),
        (Fixed(), {}, "fails on an image of 64 × 96"),
        (Coarse(), {"align": 32}, r"fails on an image of 64 × 96.*tensor a \(96\) must match"),
        (Smooth(), {"output": "probability"}, 'no probabilities; .*"output": "logits"'),
    ],
    ids=["bands", "classes", "size", "dict", "nan", "fixed", "align", "output"],
)
def test_torchscript_that_does_not_fit(tmp_path: Path, net: nn.Module, card: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(script(tmp_path / "x.ts", net, **card))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"image": ("n", 4, "h", "w")}, r"takes images of shape \['n', 4, 'h', 'w'\]; geoseg gives .*three bands"),
        ({"image": ("n", 3, 512, 512)}, "takes images of 512 × 512 only.*dynamic height and width"),
        ({"image": (4, 3, "h", "w")}, "takes 4 images at once only"),
        ({"probability": True, "twice": True}, r"2 output\(s\) \(logits, answer\)"),
        ({"output": "probability"}, "no probabilities"),
    ],
    ids=["bands", "fixed", "batch", "outputs", "output"],
)
def test_onnx_that_does_not_fit(tmp_path: Path, made: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(graph(tmp_path / "x.onnx", **made))
    assert "\n" not in str(caught.value)


def test_onnx_with_other_classes_than_its_card(tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx", answers=2)
    put_card(path, num_classes=1)
    with pytest.raises(ModelError, match=r"shape \(1, 2, 64, 64\)"):
        load_model(path)


def test_an_input_of_integers(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install geoseg[onnx])")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install geoseg[onnx])")
    helper, kind = onnx.helper, onnx.TensorProto.UINT8
    ends = [helper.make_tensor_value_info(name, kind, ("n", 3, "h", "w")) for name in "xy"]
    content = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(content, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx"
    )
    with pytest.raises(ModelError, match=r"takes tensor\(uint8\), not floats"):
        load_model(put_card(tmp_path / "x.onnx"))


@pytest.mark.parametrize("keep", [0, 40, 0.5])
def test_damaged_files(write: Writer, keep: float) -> None:
    path = write()
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ModelError, match=r"cannot open it|damaged|input") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_onnx_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_card(tmp_path / "x.onnx")
    path.write_bytes(b"")
    monkeypatch.setattr(runtimes, "find_spec", lambda _name: None)
    result = CliRunner().invoke(main, ["model", "info", str(path)])
    assert result.exit_code == 2
    assert result.stderr.strip().endswith('which is not installed: pip install "geoseg[onnx]"')


def test_onnx_runtime_that_does_not_reach_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install geoseg[onnx])")
    path = graph(tmp_path / "x.onnx")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ModelError, match=r"does not reach the GPU.*--device cpu"):
        runtimes._session(path, torch.device("cuda", 0), 1)


def test_memory_that_does_not_suffice_is_torchs_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = runtimes.OnnxNetwork(graph(tmp_path / "x.onnx"))

    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 17")

    monkeypatch.setattr(network, "_session", Full())
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.zeros(1, 3, 32, 32))


def test_probabilities_that_turn_out_to_be_none(tmp_path: Path) -> None:
    """Noise did not show it: the probabilities leave [0, 1] on one image only."""

    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].sigmoid() * (1.0 + (x.mean() > 1.0).float())

    model = load_model(script(tmp_path / "x.ts", Sometimes(), output="probability"))
    dark, light = (np.full((3, 32, 32), value, np.uint8) for value in (10, 250))
    assert run(model, dark).max() < 1
    with pytest.raises(ModelError, match="no probabilities"):
        run(model, light)


def test_logits_that_look_like_probabilities_are_told(write: Writer, tmp_path: Path) -> None:
    write_tile(tmp_path / "a.tif", blobs((64, 64)))
    notes = plan(tmp_path / "a.tif", Settings.of({"model": str(write(probability=True))})).notes
    assert any('"output": "probability"' in note for note in notes)
    assert not plan(tmp_path / "a.tif", Settings.of({"model": str(write("plain"))})).notes
