"""Tiled prediction against one pass over the whole image, and every step of it against numpy.

The networks are the real classes with every convolution an eighth as wide and random weights, scaled so that
the probabilities spread over 0 … 1: a saturated or a constant network would agree with anything.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geoseg.blend import blend
from geoseg.card import ModelCard
from geoseg.errors import ModelError, SettingError
from geoseg.predict import Predictor, Scaling, building_class, choose_device, choose_precision, whole_image
from geoseg.tiling import Rect, Tiling
from geoseg.unet import UNet11, UNet16, reach

SCALING = Scaling(0.0, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NOISE = 5e-6
"""Float noise of a probability: sums of some thousand float32 products in another order."""
BF16 = 0.05
"""What bfloat16, with its 8 bits of mantissa through twenty layers, may move a probability."""
NETS = ("unet11", "unet16", "unet16-deconv")


@cache
def network(name: str, classes: int = 1) -> nn.Module:
    """Return a thin network whose logits on noise have mean 0 and deviation 2. Shared: nobody may change it."""
    with torch.device("meta"):
        net: nn.Module = (
            UNet11(8, classes) if name == "unet11" else UNet16(classes, 8, is_deconv=name.endswith("deconv"))
        )
    for path, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            inside = layer.in_channels if layer.in_channels == 3 else layer.in_channels // 8
            outside = classes if path == "final" else layer.out_channels // 8
            more = {"output_padding": layer.output_padding} if isinstance(layer, nn.ConvTranspose2d) else {}
            thin = type(layer)(inside, outside, layer.kernel_size, layer.stride, layer.padding, **more)
            parent, _, last = path.rpartition(".")
            setattr(net.get_submodule(parent), last, thin)
    generator = torch.Generator().manual_seed(len(name) + classes)
    with torch.no_grad():
        for parameter in net.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 1
            # He's deviation keeps the signal alive through all layers; transposed kernels meet 4 outputs each.
            scale = (2 / fan) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        net.eval()
        logits = net(torch.randn(1, 3, 160, 160, generator=generator))
        deviation, mean = torch.std_mean(logits, (0, 2, 3))
        net.final.weight *= (2 / deviation).view(-1, 1, 1, 1)
        net.final.bias.copy_((net.final.bias - mean) * 2 / deviation)
    return net


def image(shape: tuple[int, int], seed: int = 0, dtype: str = "uint8", holes: bool = True):
    """Return random pixels and where they are valid: coarse and fine structure, a nodata corner and specks."""
    rng = np.random.default_rng(seed)
    height, width = shape
    coarse = rng.random((3, -(-height // 16), -(-width // 16))).repeat(16, 1).repeat(16, 2)[:, :height, :width]
    top = np.iinfo(dtype).max
    values = ((coarse + rng.random((3, height, width))) / 2 * top).astype(dtype)
    valid = rng.random(shape) > (0.01 if holes else -1)
    if holes:
        valid[: height // 3, : width // 4] = False
    return values, valid


def tiled(predictor: Predictor, tiling: Tiling, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Predict block by block, as the job does, each block from no more pixels than it needs."""
    rows, cols = (-side % 32 for side in tiling.shape)
    values = np.pad(values, ((0, 0), (0, rows), (0, cols)), mode="reflect")
    valid = np.pad(valid, ((0, rows), (0, cols)), mode="reflect")
    result = np.full(tiling.shape, np.nan, dtype=np.float32)
    for block in tiling:
        need = [w.pixels for w in block.windows]
        around = Rect(
            min(r.row0 for r in need), min(r.col0 for r in need), max(r.row1 for r in need), max(r.col1 for r in need)
        )
        part = around.slices(tiling.padded)
        answers = predictor.windows(values[:, *part], valid[part], around, block.windows, SCALING)
        result[block.core.slices(tiling.extent)] = blend(tiling, block.core, answers)
    return result


def assert_spread(probability: np.ndarray) -> None:
    """The oracle has power only when probabilities vary and are not all at 0 and 1."""
    assert probability.std() > 0.1
    assert ((probability > 0.02) & (probability < 0.98)).mean() > 0.5


# ------------------------------------------------------------------------------------- tiled = whole


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("shape", "taper"), [((75, 333), 0), ((333, 75), 64)])
def test_with_the_reach_as_halo_tiles_equal_one_pass_over_the_whole(name, shape, taper):
    net = network(name)
    predictor = Predictor(net, device="cpu", engine="torch")
    values, valid = image(shape)
    whole = whole_image(predictor, values, valid, SCALING)
    assert_spread(whole)
    exact = Tiling(shape, cell=64, halo=reach(net).halo, taper=taper, core=128)
    np.testing.assert_allclose(tiled(predictor, exact, values, valid), whole, rtol=0, atol=NOISE)
    # Less context shows, so the comparison above says something.
    near = Tiling(shape, cell=64, halo=reach(net).halo - 128, taper=taper, core=128)
    assert np.abs(tiled(predictor, near, values, valid) - whole).max() > 10 * NOISE


@settings(deadline=None, max_examples=8)
@given(
    st.sampled_from(NETS),
    st.tuples(st.integers(1, 100), st.integers(200, 340)),
    st.sampled_from([32, 64, 96]),
    st.sampled_from([0, 2, 32]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_exactness_holds_for_any_size_and_cut(name, shape, cell, taper, times, seed):
    net = network(name)
    predictor = Predictor(net, device="cpu", engine="torch", batch=2)
    values, valid = image(shape, seed)
    tiling = Tiling(shape, cell, reach(net).halo, taper, cell * times)
    whole = whole_image(predictor, values, valid, SCALING)
    np.testing.assert_allclose(tiled(predictor, tiling, values, valid), whole, rtol=0, atol=NOISE)


def test_exactness_with_augmentation_by_rotation_needs_the_reach_on_all_sides():
    net = network("unet11")
    predictor = Predictor(net, device="cpu", engine="torch", tta=True)
    values, valid = image((40, 290))
    tiling = Tiling((40, 290), 96, reach(net).halo, 0, 96)
    whole = whole_image(predictor, values, valid, SCALING)
    np.testing.assert_allclose(tiled(predictor, tiling, values, valid), whole, rtol=0, atol=NOISE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 2), (64, 64)])
def test_the_whole_image_is_reflected_to_a_multiple_of_32_and_cut_again(shape):
    values, valid = image(shape, holes=False)
    rows, cols = (np.pad(np.arange(side), (0, -side % 32), mode="reflect") for side in shape)
    padded = values[:, rows][:, :, cols]
    expected = by_hand(network("unet11"), padded)[: shape[0], : shape[1]]
    found = whole_image(Predictor(network("unet11"), device="cpu", engine="torch"), values, valid, SCALING)
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, atol=NOISE)


# ----------------------------------------------------------------------------- the steps of a prediction


def by_hand(net: nn.Module, values: np.ndarray, scaling: Scaling = SCALING, valid: np.ndarray | None = None):
    """Return one probability map from float64 numpy and the bare network, in float64 too."""
    unit = np.clip((values.astype(np.float64) - scaling.low) / (scaling.high - scaling.low), 0, 1)
    normal = (unit - np.reshape(scaling.mean, (3, 1, 1))) / np.reshape(scaling.std, (3, 1, 1))
    if valid is not None:
        normal[:, ~valid] = 0
    state = {key: value.double() for key, value in net.state_dict().items()}
    with torch.no_grad():
        logits = torch.func.functional_call(net, state, (torch.from_numpy(normal)[None],))[0].numpy()
    if len(logits) == 1:
        return 1 / (1 + np.exp(-logits[0]))
    return np.exp(logits) / np.exp(logits).sum(0)


@pytest.mark.parametrize("name", NETS)
def test_one_window_equals_the_arithmetic_in_float64(name):
    values, valid = image((64, 96))
    found = Predictor(network(name), device="cpu", engine="torch").probabilities(values[None], valid[None], SCALING)
    assert found.shape == (1, 64, 96)
    assert found.dtype == np.float32
    assert_spread(found)
    np.testing.assert_allclose(found[0], by_hand(network(name), values, valid=valid), rtol=0, atol=NOISE)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_of_several_classes_the_wanted_ones_share_is_given(target):
    net = network("unet11", 3)
    values, valid = image((32, 64))
    found = Predictor(net, device="cpu", engine="torch", target=target).probabilities(
        values[None], valid[None], SCALING
    )
    np.testing.assert_allclose(found[0], by_hand(net, values, valid=valid)[target], rtol=0, atol=NOISE)


@pytest.mark.parametrize("classes", [1, 2])
def test_augmentation_is_the_mean_over_the_eight_views(classes):
    net = network("unet16", classes)
    values, valid = image((32, 96), 3)
    views = []
    for flip in (False, True):
        for turns in range(4):
            seen, known = (v[..., ::-1] if flip else v for v in (values, valid))
            seen, known = (np.rot90(v, turns, (-2, -1)) for v in (seen, known))
            answer = by_hand(net, seen.copy(), valid=known.copy())
            answer = np.rot90(answer if classes == 1 else answer[1], -turns)
            views.append(answer[:, ::-1] if flip else answer)
    assert np.ptp(views, axis=0).max() > 0.05, "all views agree: nothing is tested"
    predictor = Predictor(net, device="cpu", engine="torch", tta=True, target=classes - 1)
    found = predictor.probabilities(values[None], valid[None], SCALING)
    np.testing.assert_allclose(found[0], np.mean(views, axis=0), rtol=0, atol=NOISE)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_an_augmented_prediction_turns_with_its_image(turns, flip):
    predictor = Predictor(network("unet11"), device="cpu", engine="torch", tta=True)
    values, valid = image((32, 64), 5)

    def turned(array: np.ndarray) -> np.ndarray:
        return np.rot90(array[..., ::-1] if flip else array, turns, (-2, -1))

    straight = predictor.probabilities(values[None], valid[None], SCALING)[0]
    found = predictor.probabilities(turned(values)[None], turned(valid)[None], SCALING)[0]
    np.testing.assert_allclose(found, turned(straight), rtol=0, atol=NOISE)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_what_lies_under_invalid_pixels_does_not_matter(dtype):
    kind = "uint8" if dtype == "uint8" else "uint16"
    values, valid = image((64, 64), dtype=kind)
    values = values.astype(dtype)
    scaling = Scaling(0, float(values.max()), SCALING.mean, SCALING.std)
    garbage = values.copy()
    garbage[:, ~valid] = np.nan if dtype == "float32" else np.iinfo(dtype).max
    other = values.copy()
    other[:, ~valid] = -np.inf if dtype == "float32" else 0
    predictor = Predictor(network("unet11"), device="cpu", engine="torch")
    first, second, third = (predictor.probabilities(v[None], valid[None], scaling) for v in (values, garbage, other))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert np.isfinite(first).all()


def test_the_caller_keeps_its_pixels():
    values, valid = image((32, 32))
    before = values.copy(), valid.copy()
    as_float = values.astype(np.float32)
    Predictor(network("unet11"), device="cpu", engine="torch").probabilities(values[None], valid[None], SCALING)
    Predictor(network("unet11"), device="cpu", engine="torch").probabilities(as_float[None], valid[None], SCALING)
    np.testing.assert_array_equal(values, before[0])
    np.testing.assert_array_equal(valid, before[1])
    np.testing.assert_array_equal(as_float, before[0].astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_stored_types_are_scaled_by_their_range_and_clipped(dtype):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 12_000, (3, 32, 32)).astype(dtype)
    valid = np.ones((32, 32), bool)
    scaling = Scaling(500.0, 10_000.0, SCALING.mean, SCALING.std)
    net = network("unet11")
    found = Predictor(net, device="cpu", engine="torch").probabilities(values[None], valid[None], scaling)
    np.testing.assert_allclose(found[0], by_hand(net, values, scaling), rtol=0, atol=NOISE)
    unit = scaling.unit(values)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, np.clip((values.astype(float) - 500) / 9500, 0, 1), atol=1e-6)


def test_the_same_picture_in_8_and_16_bit_gives_the_same_answer():
    values, valid = image((32, 64))
    predictor = Predictor(network("unet11"), device="cpu", engine="torch")
    wide = Scaling(0.0, 65_535.0, SCALING.mean, SCALING.std)
    np.testing.assert_allclose(
        predictor.probabilities(values[None], valid[None], SCALING),
        predictor.probabilities(values.astype(np.uint16)[None] * 257, valid[None], wide),
        rtol=0,
        atol=NOISE,
    )


def test_bfloat16_stays_near_float32():
    values, valid = image((96, 96))
    exact, rough = (
        Predictor(network("unet11"), device="cpu", engine="torch", precision=p).probabilities(
            values[None], valid[None], SCALING
        )
        for p in ("fp32", "bf16")
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < BF16


# ---------------------------------------------------------------------------------- windows and batches


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_batches_keep_order_and_change_nothing_but_float_noise(batch):
    tiling = Tiling((100, 150), cell=32, halo=32, taper=0, core=160)
    (block,) = tiling
    values, valid = image(tiling.padded.shape)
    predictor = Predictor(network("unet11"), device="cpu", engine="torch", batch=batch)
    found = list(predictor.windows(values, valid, tiling.padded, iter(block.windows), SCALING))
    assert [window for window, _ in found] == list(block.windows)
    alone = Predictor(network("unet11"), device="cpu", engine="torch", batch=1)
    for window, probability in found:
        cut = window.pixels.slices(tiling.padded)
        (expected,) = alone.probabilities(values[:, *cut][None], valid[cut][None], SCALING)
        assert probability.shape == window.pixels.shape
        np.testing.assert_allclose(probability, expected, rtol=0, atol=NOISE)


class Counting(nn.Module):
    """Takes the first band for logits, notes the batches, and runs out of memory beyond ``room`` images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.seen.append((len(x), *x.shape[2:]))
        return x[:, :1]


def first_band(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(values[..., 0, :, :] / 255 - 0.485) / 0.229))


def test_only_neighbours_of_one_shape_share_a_batch():
    tiling = Tiling((32, 32 * 6), cell=32, halo=32, taper=0, core=32 * 6)
    (block,) = tiling
    # Six windows: those at the ends see 64 columns, the others 96.
    values, valid = image(tiling.shape, holes=False)
    net = Counting(room=99)
    found = list(
        Predictor(net, device="cpu", engine="torch", batch=3).windows(
            values, valid, tiling.padded, block.windows, SCALING
        )
    )
    assert net.seen == [(1, 32, 64), (3, 32, 96), (1, 32, 96), (1, 32, 64)]
    for window, probability in found:
        np.testing.assert_allclose(probability, first_band(values)[window.pixels.slices(tiling.padded)], atol=1e-6)


@pytest.mark.parametrize("room", [1, 2, 3, 5])
def test_batches_are_halved_until_they_fit_and_stay_so(room):
    values = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    valid = np.ones((7, 32, 32), bool)
    net = Counting(room)
    predictor = Predictor(net, device="cpu", engine="torch", batch=7)
    found = predictor.probabilities(values, valid, SCALING)
    np.testing.assert_allclose(found, first_band(values), atol=1e-6)
    assert 1 <= predictor.batch <= room
    assert sum(count for count, *_ in net.seen) == 7


def test_one_window_that_does_not_fit_is_an_error():
    values, valid = image((32, 32))
    with pytest.raises(torch.OutOfMemoryError):
        Predictor(Counting(0), device="cpu", engine="torch").probabilities(values[None], valid[None], SCALING)


def test_the_network_is_put_into_evaluation_mode():
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Dropout(0.9)).train()
    values, valid = image((32, 32))
    predictor = Predictor(net, device="cpu", engine="torch")
    first, second = (predictor.probabilities(values[None], valid[None], SCALING) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_several_threads_may_share_a_predictor():
    predictor = Predictor(network("unet11"), device="cpu", engine="torch")
    images = [image((32, 64), seed) for seed in range(6)]

    def predict(pair) -> np.ndarray:
        values, valid = pair
        return predictor.probabilities(values[None], valid[None], SCALING)

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(predict, images))
    for pair, found in zip(images, together, strict=True):
        np.testing.assert_allclose(found, predict(pair), rtol=0, atol=NOISE)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cuda:x", "xpu:0"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(SettingError, match=rf"'{name}' is not one of auto, cpu, cuda, cuda:N"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused():
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(SettingError, match=rf"'{missing}': torch sees \d+ GPU.*--device cpu"):
        choose_device(missing)
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(SettingError, match="torch sees 0"):
            Predictor(network("unet11"), device="cuda")


def test_precision_is_fp32_on_the_cpu_unless_asked():
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(SettingError, match="'fp8' is not one of auto, fp32, bf16, fp16"):
        Predictor(network("unet11"), device="cpu", engine="torch", precision="fp8")


def test_the_range_comes_from_the_option_or_the_card_or_is_asked_for():
    card = ModelCard(name="m", arch="unet11", value_range={"uint8": (0, 255), "uint16": (0, 4095)})
    assert Scaling.of(card, "uint8") == Scaling(0.0, 255.0, card.mean, card.std)
    assert Scaling.of(card, "uint16").high == 4095
    assert Scaling.of(card, "uint8", (10, 90)) == Scaling(10.0, 90.0, card.mean, card.std)
    with pytest.raises(SettingError, match=r"float32.*'m' knows only uint16, uint8.*--range 0,10000"):
        Scaling.of(card, "float32")


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5), (0, float("nan")), (0, float("inf")), (-float("inf"), 0)])
def test_ranges_that_are_none_are_refused(low, high):
    with pytest.raises(SettingError, match="value range"):
        Scaling(low, high, SCALING.mean, SCALING.std)


def test_the_building_class_is_the_only_one_or_the_one_called_so():
    assert building_class(ModelCard(name="m", arch="unet11")) == 0
    assert building_class(ModelCard(name="m", arch="unet11", classes=("roof",))) == 0
    two = ModelCard(name="m", arch="unet11", num_classes=2, classes=("road", "Buildings"))
    assert building_class(two) == 1
    with pytest.raises(ModelError, match=r"'m' has 2 classes \(road, tree\) and none is called 'building'"):
        building_class(ModelCard(name="m", arch="unet11", num_classes=2, classes=("road", "tree")))
