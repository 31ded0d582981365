"""What only a GPU can show; without one all of this is skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from geoseg.checkpoint import load_model
from geoseg.lane import down, room, up
from geoseg.predict import Predictor, Scaling
from geoseg.segment import segment
from geoseg.unet import UNet16

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

SCALING = Scaling(0, 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def spread_net() -> torch.nn.Module:
    torch.manual_seed(2)
    net = UNet16(1, 16, True)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return net.eval()


def image(height: int, width: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(4).integers(0, 255, (count, 3, height, width), dtype=np.uint8)
    valid = np.ones((count, height, width), bool)
    valid[0, :40, :50] = False
    return values, valid


def test_float32_is_float32() -> None:
    given = image(320, 256)
    wanted = Predictor(spread_net(), device="cpu").probabilities(*given, SCALING)
    found = Predictor(spread_net(), device="cuda", precision="fp32").probabilities(*given, SCALING)
    assert np.ptp(wanted) > 0.5
    assert np.abs(found - wanted).max() < 1e-3


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.01), ("bf16", 0.1)])
def test_half_precision_is_near(precision: str, least: float) -> None:
    given = image(320, 256)
    wanted = Predictor(spread_net(), device="cpu").probabilities(*given, SCALING)
    predictor = Predictor(spread_net(), device="cuda", precision=precision)
    found = predictor.probabilities(*given, SCALING)
    assert predictor.engine == "torch"  # and not "torch (its fast layers are … off)"
    assert np.quantile(np.abs(found - wanted), 0.99) < least


def test_auto_is_float16_for_our_own_networks() -> None:
    assert Predictor(spread_net(), device="auto").precision == "fp16"
    assert Predictor(torch.nn.Conv2d(3, 1, 1), device="auto").precision == "bf16"


def test_values_beyond_float16_are_computed_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.engines.scale_for", lambda net: 1.0)
    net = spread_net()
    with torch.no_grad():
        net.encoder[0].weight *= 3e4
        net.final.weight /= 3e4
    given = image(128, 96)
    wanted = Predictor(net, device="cpu").probabilities(*given, SCALING)
    predictor = Predictor(net, device="cuda", precision="fp16")
    predictor._streamed._trusted = True  # it would be found out on the first window already
    found = predictor.probabilities(*given, SCALING)
    assert predictor._rescue is not None
    assert np.quantile(np.abs(found - wanted), 0.99) < 0.1


def test_strips_change_nothing_but_rounding() -> None:
    given = image(640, 256)
    whole, strips = (Predictor(spread_net(), device="cuda") for _ in range(2))
    strips._strip = 128 * 256
    found = strips.probabilities(*given, SCALING)
    assert np.quantile(np.abs(found - whole.probabilities(*given, SCALING)), 0.99) < 0.01


def test_memory_that_does_not_suffice() -> None:
    given = image(2048, 2048)
    predictor = Predictor(spread_net(), device="cuda")
    wanted = predictor.probabilities(*given, SCALING)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 700 * 2**20) / total)
    try:
        found = predictor.probabilities(*given, SCALING)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert predictor._strip < 2048 * 2048
    assert np.quantile(np.abs(found - wanted), 0.99) < 0.01


def test_copies() -> None:
    device = torch.device("cuda")
    array = np.random.default_rng(0).integers(0, 255, (3, 70, 50), dtype=np.uint8)
    there = up(array[:, 5:60], device)
    assert there.device.type == "cuda"
    np.testing.assert_array_equal(down(there + 1), array[:, 5:60] + np.uint8(1))
    with room(device), room(device):
        pass


@pytest.mark.parametrize("workers", [0, 1])
def test_a_city_is_the_same_as_on_the_cpu(city: Path, narrow_model: Path, tmp_path: Path, workers: int) -> None:
    options = {"model": str(narrow_model), "cell": 64, "core": 128, "progress": "none"}
    for device in ("cpu", "cuda"):
        segment(city, tmp_path / device, device=device, workers=workers, **options)
    wanted, found = (tmp_path / device / "probability.tif" for device in ("cpu", "cuda"))
    with rasterio.open(wanted) as one, rasterio.open(found) as other:
        apart = np.abs(one.read(1).astype(int) - other.read(1))
        np.testing.assert_array_equal(one.dataset_mask(), other.dataset_mask())
    assert apart.max() <= 2


def test_the_shipped_model(tmp_path: Path) -> None:
    from geoseg.sample import write_sample

    write_sample(tmp_path / "city", size=512, grid=(1, 1), seed=3)
    with rasterio.open(next((tmp_path / "city" / "images").glob("*.tif"))) as tile:
        values = tile.read((1, 2, 3))[None]
    model = load_model("unet16-buildings")
    scaling, valid = Scaling.of(model.card, "uint8", None), np.ones((1, 512, 512), bool)
    wanted = Predictor.of(model, device="cpu").probabilities(values, valid, scaling)
    found = Predictor.of(model, device="cuda").probabilities(values, valid, scaling)
    assert np.abs(found - wanted).max() * 255 < 4
    threshold = model.card.threshold
    assert np.mean((found >= threshold) != (wanted >= threshold)) < 1e-3
