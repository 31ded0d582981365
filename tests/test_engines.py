"""Who computes on the CPU, and that a fast engine which is wrong is found out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geoseg import native
from geoseg.engines import AGREE, open_engine
from geoseg.errors import SettingError
from geoseg.native_layers import NativeEngine
from geoseg.predict import Predictor, Scaling
from geoseg.unet import UNet11, UNet16

CPU = torch.device("cpu")
SCALING = Scaling(0, 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
needs_native = pytest.mark.skipif(native.machine() is None, reason="no kernels for this processor")


def net(filters: int = 4) -> torch.nn.Module:
    return spread(UNet16(1, filters, True))


def spread(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network whose answers are not all nearly the same."""
    torch.manual_seed(2)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return network.eval()


def image(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    values = np.random.default_rng(4).integers(0, 255, (1, 3, height, width), dtype=np.uint8)
    valid = np.ones((1, height, width), bool)
    valid[0, :40, :50] = False
    return values, valid


def answers(engine: str, network: torch.nn.Module, height: int, width: int, **more: object) -> Predictor:
    predictor = Predictor(network, device="cpu", engine=engine, threads=2, **more)  # type: ignore[arg-type]
    predictor.found = predictor.probabilities(*image(height, width), SCALING)  # type: ignore[attr-defined]
    return predictor


@needs_native
@pytest.mark.parametrize(
    "make", [lambda: UNet11(4), lambda: UNet11(8), lambda: UNet16(1, 4), lambda: UNet16(1, 8, True)]
)
@pytest.mark.parametrize("shape", [(32, 32), (160, 96), (704, 64)])
def test_native_agrees_with_torch(make, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.predict._STRIP_PIXELS", 96 * shape[1])  # several strips
    network = spread(make())
    plain, fast = answers("torch", network, *shape), answers("native", network, *shape)
    assert (plain.engine, fast.engine) == ("torch", "native")
    assert np.ptp(plain.found) > 100 * np.abs(plain.found - fast.found).max()
    assert np.abs(plain.found - fast.found).max() < AGREE


@needs_native
def test_neither_threads_nor_windows_beside_it_matter() -> None:
    network = net()
    values, valid = image(288, 96)
    one, three = (Predictor(network, device="cpu", engine="native", threads=n) for n in (1, 3))
    wanted = one.probabilities(values, valid, SCALING)[0]
    pair = np.concatenate([values[:, :, ::-1], values]), np.concatenate([valid, valid])
    for found in (three.probabilities(values, valid, SCALING)[0], one.probabilities(*pair, SCALING)[1]):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)  # torch's layers, the first and the last, differ


@needs_native
@needs_native
@pytest.mark.parametrize("shape", [(352, 480), (384, 416)])
def test_no_bit_of_a_probability_depends_on_the_number_of_threads(shape: tuple[int, int]) -> None:
    found, network = [], net(16)
    for threads in (1, 2, 3, 5):
        predictor = Predictor(network, device="cpu", engine="native", threads=threads)
        found.append(predictor.probabilities(*image(*shape), SCALING))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_images_of_several_shapes_one_after_the_other() -> None:
    network = net()
    fast = Predictor(network, device="cpu", engine="native", threads=1)
    plain = Predictor(network, device="cpu", engine="torch", threads=1)
    for shape in ((96, 64), (32, 32), (96, 64), (64, 160), (96, 64)):
        given = image(*shape)
        found, wanted = (p.probabilities(*given, SCALING) for p in (fast, plain))
        assert np.abs(found - wanted).max() < AGREE


@needs_native
def test_auto_is_native_for_float32_on_a_cpu() -> None:
    assert Predictor(net(), device="cpu").engine == "native"
    assert Predictor(net(), device="cpu", precision="bf16").engine == "torch"


@needs_native
def test_an_engine_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NativeEngine.whole
    monkeypatch.setattr(NativeEngine, "whole", lambda self, rows: right(self, rows) + 0.1)
    network = net()
    plain, found = answers("torch", network, 96, 64), answers("native", network, 96, 64)
    assert found.engine.startswith("torch (native is 0.")
    assert np.array_equal(found.found, plain.found)


def test_where_nothing_can_be_compiled_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ready", lambda: None)
    assert Predictor(net(), device="cpu").engine == "torch"
    with pytest.raises(SettingError, match="the engine native computes"):
        Predictor(net(), device="cpu", engine="native")


@pytest.mark.parametrize("error", [OSError("no memory may be executed"), RuntimeError("unknown processor")])
def test_an_error_of_the_compiler_means_that_nothing_can_be_compiled(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(machine: object) -> None:
        raise error

    monkeypatch.setattr(native, "_compiled", refuse)
    assert native.ready.__wrapped__() is None


def test_native_is_refused_where_it_cannot_compute() -> None:
    for given in ({"precision": "bf16"}, {"net": torch.nn.Conv2d(3, 1, 1)}):
        facts = {"net": net(), "precision": "fp32", **given}
        with pytest.raises(SettingError, match="the engine native computes"):
            open_engine("native", facts["net"], CPU, facts["precision"])
    with pytest.raises(SettingError, match="engine 'fast' is not one of auto, torch, native"):
        open_engine("fast", net(), CPU, "fp32")


def test_other_networks_pass_whole() -> None:
    assert open_engine("auto", torch.nn.Conv2d(3, 1, 1), CPU, "fp32") is None


def test_a_window_that_does_not_fit_passes_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does when its memory is too small, here on the CPU."""
    network = net()
    wanted = answers("torch", network, 256, 64).found
    small = Predictor(network, device="cpu", engine="torch")
    small._strip = 256 * 64
    plain, seen = small._logits, []

    def limited(run, pixels, precision):
        seen.append(pixels.shape[2])
        if pixels.shape[2] > 64:
            raise torch.OutOfMemoryError("as if")
        return plain(run, pixels, precision)

    monkeypatch.setattr(small, "_logits", limited)
    found = small.probabilities(*image(256, 64), SCALING)
    assert seen == [256, 96, 64, 64, 64, 64]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
