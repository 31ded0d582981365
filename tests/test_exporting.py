"""Export: other runtimes give what torch gives, from the network alone to the rasters of a whole run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from conftest import city_arrays, narrow_net

import geoseg.exporting as exporting
from geoseg.card import ForeignCard
from geoseg.checkpoint import load_model, read_card
from geoseg.cli import main
from geoseg.errors import ModelError, OutputError, SettingError
from geoseg.exporting import export_model
from geoseg.predict import Predictor, Scaling, whole_image
from geoseg.segment import segment
from geoseg.unet import Reach

SMALL = {"cell": 64, "core": 128, "workers": 0, "progress": "none", "halo": "exact", "engine": "torch"}
NOISE = 1e-5
"""Float noise of a probability: the same sums in another order."""


@pytest.fixture(scope="module")
def onnx_model(narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The narrow network as ONNX."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (pip install geoseg[onnx])")
    path = tmp_path_factory.mktemp("exported") / "narrow.onnx"
    export_model(narrow_model, path)
    return path


@pytest.fixture(scope="module")
def torchscript_model(narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The narrow network as TorchScript."""
    path = tmp_path_factory.mktemp("exported") / "narrow.ts"
    export_model(narrow_model, path)
    return path


@pytest.fixture(scope="module")
def by_torch(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with geoseg's own model file: what the others are compared with."""
    out = tmp_path_factory.mktemp("torch")
    segment(city, out, model=str(narrow_model), **SMALL)
    return out


@pytest.fixture(params=["onnx_model", "torchscript_model"])
def exported(request: pytest.FixtureRequest) -> Path:
    """Each of the two formats."""
    path: Path = request.getfixturevalue(request.param)
    return path


def grey(out: Path) -> np.ndarray:
    with rasterio.open(out / "probability.tif") as dataset:
        return dataset.read(1).astype(int)


def geoseg_(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize("tta", [False, True])
def test_the_same_probabilities_as_torch(narrow_model: Path, exported: Path, tta: bool) -> None:
    values, valid = city_arrays()
    answers = []
    for path in (narrow_model, exported):
        model = load_model(path)
        predictor = Predictor.of(model, device="cpu", precision="fp32", threads=1, tta=tta, engine="torch")
        answers.append(whole_image(predictor, values, valid, Scaling.of(model.card, "uint8")))
    assert answers[0].std() > 0.1
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=NOISE)


def test_the_same_windows_when_several_pass_at_once(narrow_model: Path, exported: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 255, (3, 3, 64, 96)).astype(np.uint8)
    valid = rng.random((3, 64, 96)) < 0.9
    answers = []
    for path in (narrow_model, exported):
        model = load_model(path)
        predictor = Predictor.of(model, device="cpu", threads=1, batch=3, engine="torch")
        answers.append(predictor.probabilities(values, valid, Scaling.of(model.card, "uint8")))
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=NOISE)


def test_a_whole_run_gives_the_same_rasters(exported: Path, city: Path, by_torch: Path, tmp_path: Path) -> None:
    command = ["segment", city, "--model", exported, "--out", tmp_path, "--workers", 0, "--halo", "exact"]
    result = geoseg_(*command)
    assert result.exit_code == 0, result.output
    assert np.abs(grey(tmp_path) - grey(by_torch)).max() <= 1
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["model"]["arch"] == load_model(exported).card.arch
    assert run["model"]["sha256"] == load_model(exported).fingerprint
    assert "num_filters" not in run["model"]
    assert geoseg_(*command).exit_code == 0
    assert json.loads((tmp_path / "run.json").read_text())["counts"]["blocks_computed"] == 0


def test_two_worker_processes(onnx_model: Path, city: Path, by_torch: Path, tmp_path: Path) -> None:
    result = segment(city, tmp_path, model=str(onnx_model), **{**SMALL, "workers": 2})
    assert result.complete
    assert result.run["workers"].startswith("2 CPU workers")
    assert np.abs(grey(tmp_path) - grey(by_torch)).max() <= 1


def test_several_classes(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model("two-classes", num_classes=2, classes=("ground", "building"))
    export_model(source, tmp_path / "x.torchscript")
    values, valid = city_arrays()
    answers = []
    for path in (source, tmp_path / "x.torchscript"):
        model = load_model(path)
        scaling = Scaling.of(model.card, "uint8")
        predictor = Predictor.of(model, device="cpu", threads=1)
        answers.append(whole_image(predictor, values[:, :96, :64], valid[:96, :64], scaling))
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=NOISE)


def test_names_and_free_sides_of_the_onnx_file(onnx_model: Path) -> None:
    import onnx

    content = onnx.load(onnx_model)
    onnx.checker.check_model(content)
    assert next((item.domain, item.version) for item in content.opset_import) == ("", exporting.OPSET)
    for items, name, channels in ((content.graph.input, "image", 3), (content.graph.output, "logits", 1)):
        assert [item.name for item in items] == [name]
        sides = items[0].type.tensor_type.shape.dim
        assert [side.WhichOneof("value") for side in sides] == ["dim_param", "dim_value", "dim_param", "dim_param"]
        assert sides[1].dim_value == channels
    assert {path.name for path in onnx_model.parent.iterdir()} == {"narrow.onnx", "narrow.onnx.json"}


def test_the_card_is_the_models_and_says_what_a_foreign_network_needs(narrow_model: Path, exported: Path) -> None:
    card, own = read_card(exported), read_card(narrow_model)
    assert isinstance(card, ForeignCard)
    for key in ("name", "bands", "value_range", "mean", "std", "gsd_m", "threshold", "halo", "taper", "classes"):
        assert getattr(card, key) == getattr(own, key), key
    assert (card.output, card.align) == ("logits", 32)
    assert Reach(*card.reach) == load_model(narrow_model).reach == load_model(exported).reach
    assert card.geoseg_version


def test_fields_of_the_card_can_be_given(narrow_model: Path, tmp_path: Path) -> None:
    made = export_model(narrow_model, tmp_path / "x.pt", card={"name": "other", "licence": "CC0-1.0"})
    assert made == read_card(tmp_path / "x.pt")
    assert (made.name, made.licence) == ("other", "CC0-1.0")
    with pytest.raises(ModelError, match="reach"):
        export_model(narrow_model, tmp_path / "x.pt", card={"reach": 0})
    with pytest.raises(ModelError, match="'colour'"):
        export_model(narrow_model, tmp_path / "x.pt", card={"colour": "red"})


def test_the_command(narrow_model: Path, tmp_path: Path) -> None:
    result = geoseg_("model", "export", narrow_model, tmp_path / "x.ts")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "x.ts.json" in result.stderr
    info = json.loads(geoseg_("model", "info", tmp_path / "x.ts").stdout)
    own = json.loads(geoseg_("model", "info", narrow_model).stdout)
    assert info["arch"] == "torchscript"
    assert (info["reach_px"], info["parameters"]) == (own["reach_px"], own["parameters"])
    assert geoseg_("model", "export", narrow_model, tmp_path / "x.png").exit_code == 2


def test_what_cannot_be_exported(narrow_model: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"x\.tflite.*\.onnx, \.pt, \.ts, \.torchscript"):
        export_model(narrow_model, tmp_path / "x.tflite")
    with pytest.raises(ModelError, match="network already"):
        export_model(exported, tmp_path / "x.ts")
    with pytest.raises(OutputError, match="nowhere"):
        export_model(narrow_model, tmp_path / "nowhere" / "x.ts")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_came_out_wrong_is_refused(
    narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "x.ts"
    old.write_text("old")
    right = exporting._write_torchscript

    def wrong(net: torch.nn.Module, path: Path) -> None:
        other = narrow_net()
        with torch.no_grad():
            other.final.bias += 0.01
        right(other, path)

    monkeypatch.setattr(exporting, "_write_torchscript", wrong)
    with pytest.raises(ModelError, match=r"not written.*other probabilities"):
        export_model(narrow_model, old)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let packages look as if they were not installed."""
    from importlib.util import find_spec

    for module in (exporting, sys.modules["geoseg.runtimes"]):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in names else find_spec(name))


def test_the_older_exporter_serves_where_onnxscript_is_missing(
    onnx_model: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "onnxscript")
    try:
        export_model(narrow_model, tmp_path / "x.onnx")
    except ModelError as error:  # a torch without it
        assert "geoseg[onnx]" in str(error)  # noqa: PT017
        return
    assert load_model(tmp_path / "x.onnx").card == read_card(onnx_model)


def test_without_onnx_runtime_the_file_is_written_untried(
    onnx_model: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "onnxruntime")
    monkeypatch.setattr(exporting, "_write_onnx", lambda _net, path: path.write_bytes(onnx_model.read_bytes()))
    export_model(narrow_model, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == onnx_model.read_bytes()
    assert (tmp_path / "x.onnx.json").read_text() == Path(f"{onnx_model}.json").read_text()
    with pytest.raises(ModelError, match=r'pip install "geoseg\[onnx\]"'):
        load_model(tmp_path / "x.onnx")
