"""The networks against the paper's figures, and their reach against poisoned pixels.

The oracle for the reach puts one NaN into the input and looks where it comes out. A NaN survives
everything a network of these layers does (0 · NaN, max, ReLU, sums), whatever the weights, so it
marks exactly the output pixels that the input pixel is wired to; a gradient would miss the paths
that max-pooling or a dead ReLU happen not to take.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from geoseg.errors import ModelError, SettingError
from geoseg.unet import Reach, UNet11, UNet16, load_vgg, reach


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


# --------------------------------------------------------------------------------- the networks


def test_unet11_has_the_papers_number_of_parameters():
    assert count(on_meta(UNet11)) == 22_927_393


@pytest.mark.parametrize("is_deconv", [False, True])
def test_unet16_has_the_parameters_of_the_table(is_deconv):
    def conv(i: int, o: int, k: int = 3) -> int:
        return i * o * k * k + o

    vgg16 = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256),
             (256, 512), *[(512, 512)] * 5]  # fmt: skip
    blocks = [(512, 512, 256), (768, 512, 256), (768, 512, 256), (512, 256, 64), (192, 128, 32)]
    expected = sum(conv(i, o) for i, o in vgg16) + conv(96, 32) + conv(32, 1, 1)
    for i, middle, out in blocks:
        expected += conv(i, middle) + conv(middle, out, 4 if is_deconv else 3)
    assert count(on_meta(lambda: UNet16(is_deconv=is_deconv))) == expected


def decoder_keys(second: str) -> set[str]:
    blocks = ("center", "dec5", "dec4", "dec3", "dec2")
    stems = [f"{b}.block.{part}" for b in blocks for part in second.split()]
    return {f"{s}.{kind}" for s in [*stems, "dec1.conv", "final"] for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("make", "convs", "second"),
    [
        (UNet11, "0 3 6 8 11 13 16 18", "0.conv 1"),
        (UNet16, "0 2 5 7 10 12 14 17 19 21 24 26 28", "1.conv 2.conv"),
        (lambda: UNet16(is_deconv=True), "0 2 5 7 10 12 14 17 19 21 24 26 28", "0.conv 1"),
    ],
)
def test_parameters_have_the_published_names(make, convs, second):
    encoder = {f"encoder.{i}.{kind}" for i in convs.split() for kind in ("weight", "bias")}
    assert set(on_meta(make).state_dict()) == encoder | decoder_keys(second)


@pytest.mark.parametrize(
    "net",
    [UNet11(4, 3), UNet16(3, 4), UNet16(3, 4, True)],
    ids=["unet11", "unet16", "unet16-deconv"],
)
def test_logits_have_the_size_of_the_input(net):
    with torch.inference_mode():
        out = net.eval()(torch.zeros(2, 3, 64, 32))
    assert out.shape == (2, 3, 64, 32)
    assert out.isfinite().all()


def test_arguments_keep_the_order_of_the_reference():
    assert on_meta(lambda: UNet11(8, 5)).final.weight.shape == (5, 8, 1, 1)
    assert on_meta(lambda: UNet16(5, 8, True)).final.weight.shape == (5, 8, 1, 1)


@pytest.mark.parametrize("shape", [(1, 3, 100, 64), (1, 3, 32, 33), (1, 4, 32, 32), (3, 32, 32)])
def test_an_input_that_does_not_fit_is_refused_with_its_shape(shape):
    with pytest.raises(SettingError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        on_meta(lambda: UNet11(4))(torch.zeros(shape))


def test_the_size_message_says_what_would_fit():
    with pytest.raises(SettingError, match=r"128 × 64 pixels"):
        on_meta(lambda: UNet11(4))(torch.zeros(1, 3, 100, 64))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_widths_are_validated(value):
    with pytest.raises(SettingError, match="num_filters"):
        UNet11(value)
    with pytest.raises(SettingError, match="num_classes"):
        UNet16(value)


def test_training_reaches_every_parameter():
    """Inplace ReLUs must not break the backward pass."""
    for net in (UNet11(1), UNet16(1, 1), UNet16(1, 1, True)):
        net(torch.rand(1, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


# ------------------------------------------------------------------------------------ VGG weights


def vgg_state(name: str) -> dict[str, Tensor]:
    """Small numbers that differ from tensor to tensor, shaped like a VGG."""
    import torchvision

    with torch.device("meta"):
        features = getattr(torchvision.models, name)(weights=None, init_weights=False).features
    state = features.state_dict()
    return {f"features.{key}": torch.full(t.shape, i / 1000.0) for i, (key, t) in enumerate(state.items())}


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    return vgg_state("vgg16")


def test_load_vgg_of_the_same_kind_from_a_file(tmp_path: Path):
    state = vgg_state("vgg11")
    save_file(state, tmp_path / "vgg.safetensors")
    net = UNet11(4)
    mapping = load_vgg(net, tmp_path / "vgg.safetensors")
    assert mapping == {i: i for i in (0, 3, 6, 8, 11, 13, 16, 18)}
    for key, tensor in net.encoder.state_dict().items():
        assert torch.equal(tensor, state[f"features.{key}"]), key


def test_load_vgg_takes_the_convolutions_of_vgg16_that_fit(vgg16):
    net = UNet11(4)
    mapping = load_vgg(net, {**vgg16, "classifier.0.weight": torch.zeros(2, 2)})
    assert mapping == {0: 0, 3: 5, 6: 10, 8: 12, 11: 17, 13: 19, 16: 24, 18: 26}
    for to, of in mapping.items():
        for kind in ("weight", "bias"):
            assert torch.equal(net.encoder.state_dict()[f"{to}.{kind}"], vgg16[f"features.{of}.{kind}"])


def test_load_vgg_refuses_another_network_and_changes_nothing(vgg16):
    net = UNet16(1, 4)
    before = {k: t.clone() for k, t in net.encoder.state_dict().items()}
    with pytest.raises(ModelError, match="needs"):
        load_vgg(net, {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(ModelError, match=r"features\.28\.bias has shape \(7,\)"):
        load_vgg(net, {**vgg16, "features.28.bias": torch.zeros(7)})
    with pytest.raises(ModelError, match=r"features\.28\.bias is missing"):
        load_vgg(net, {k: t for k, t in vgg16.items() if k != "features.28.bias"})
    assert all(torch.equal(t, before[k]) for k, t in net.encoder.state_dict().items())


def test_pretrained_takes_the_hubs_weights(monkeypatch, vgg16):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: vgg16)
    net = UNet16(1, 4, pretrained=True)
    assert torch.equal(net.encoder[28].weight, vgg16["features.28.weight"])


def test_a_failing_download_says_how_to_do_without(monkeypatch):
    def fail(url: str, **_: object) -> None:
        assert url.endswith(".pth")
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(ModelError, match=r"no route to host.*load_vgg"):
        UNet11(4, pretrained=True)


def test_real_vgg16_weights_fit_both_networks(shared_data):
    path = shared_data / "weights" / "vgg16_imagenet_features_fp16.safetensors"
    for net in (UNet11(4), UNet16(1, 4)):
        load_vgg(net, path)
        assert net.encoder[0].weight.dtype == torch.float32
        assert net.encoder[0].weight.abs().max() > 0.1


# ------------------------------------------------------------------------------------------- reach


def test_reach_has_the_figures_of_the_specification():
    assert reach(on_meta(UNet11)) == Reach(153, 184)
    assert reach(on_meta(UNet16)) == Reach(215, 215)
    assert reach(on_meta(UNet11)).halo == 192
    assert reach(on_meta(UNet16)).halo == 224


@pytest.mark.parametrize(("before", "after", "halo"), [(0, 0, 0), (1, 0, 32), (32, 31, 32), (5, 33, 64)])
def test_halo_is_the_next_multiple_of_32(before, after, halo):
    assert Reach(before, after).halo == halo


def test_a_negative_reach_is_refused():
    with pytest.raises(SettingError, match="-1"):
        Reach(-1, 0)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(1, 1, 3, padding=1)], (1, 1)),
        ([nn.Conv2d(1, 1, 3, padding=2, dilation=2), nn.ReLU()], (2, 2)),
        ([nn.Conv2d(1, 1, 4, padding="same")], (1, 2)),
        ([nn.Conv2d(1, 1, (1, 7), padding=(0, 3))], (3, 3)),
        ([nn.Conv2d(1, 1, 3)], (0, 2)),
        # Output 2m reads 2m and 2m + 1, output 2m + 1 the same two.
        ([nn.MaxPool2d(2), nn.Upsample(scale_factor=2)], (1, 1)),
        # Coarse pixel m is 2m and 2m + 1; output 2m reads m - 1 and m, output 2m + 1 m and m + 1.
        ([nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")], (2, 2)),
        # Kernel 3, stride 2, padding 1: output 2m reads m, output 2m + 1 reads m and m + 1.
        ([nn.MaxPool2d(2), nn.ConvTranspose2d(1, 1, 3, 2, 1, output_padding=1)], (1, 2)),
    ],
)
def test_reach_computed_by_hand(layers, expected):
    assert reach(nn.Sequential(*layers)) == Reach(*expected)


class Functional(nn.Module):
    """The same wiring as ``Layered``, with functions instead of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(F.conv2d(x, self.weight, padding=(2, 1)))
        y = F.avg_pool2d(F.max_pool2d(y, 2), 2)
        y = F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=False)
        y = F.conv_transpose2d(y, self.weight, padding=(2, 1))
        return torch.sigmoid(torch.cat([x, y.relu()], dim=1)) * 2


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(1, 1, (5, 3), padding=(2, 1)),
            nn.BatchNorm2d(1),
            nn.MaxPool2d(2),
            nn.AvgPool2d(2),
            nn.Upsample(scale_factor=4, mode="bilinear"),
            nn.ConvTranspose2d(1, 1, (5, 3), padding=(2, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.path(x)], dim=1)


def test_functions_count_like_layers():
    assert reach(Functional()) == reach(Layered())
    assert reach(Functional()).before > 4


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool2d"),
        (nn.GroupNorm(1, 1), "GroupNorm"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "circular"),
        (nn.Upsample(size=(32, 32)), "scale_factor"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners"),
        (nn.Softmax(dim=2), "dimension 2"),
        (nn.MaxPool2d(2), "stride 2"),
    ],
)
def test_layers_without_a_bounded_reach_are_named(layer, named):
    with pytest.raises(ModelError, match=named):
        reach(nn.Sequential(nn.Identity(), layer))


class Flows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Crops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1:]


@pytest.mark.parametrize(("net", "named"), [(Flows(), "Flows"), (Crops(), "getitem")])
def test_networks_that_cannot_be_followed_are_refused(net, named):
    with pytest.raises(ModelError, match=named):
        reach(net)


def poisoned(net: nn.Module, channels: int, length: int, at: int, rows: int) -> tuple[int, int]:
    """First and last column that a NaN in column ``at`` reaches, over all rows of a strip."""
    image = torch.rand(1, channels, rows, length, dtype=torch.float64)
    image[..., at] = torch.nan
    with torch.inference_mode():
        columns = net(image).isnan().any(dim=(0, 1, 2)).nonzero().ravel()
    return int(columns[0]), int(columns[-1])


def observed(net: nn.Module, channels: int, length: int, phases: range, rows: int) -> Reach:
    before = after = 0
    for at in phases:
        first, last = poisoned(net, channels, length, at, rows)
        assert first > 0, "the strip is too short"
        assert last < length - 1, "the strip is too short"
        before, after = max(before, last - at), max(after, at - first)
    return Reach(before, after)


def with_few_channels(net: nn.Module) -> nn.Module:
    """The same wiring, every convolution with one channel out, so that many passes are cheap."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            wiring = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
            if isinstance(layer, nn.ConvTranspose2d):
                wiring["output_padding"] = layer.output_padding
                thin: nn.Module = nn.LazyConvTranspose2d(1, **wiring, dtype=torch.float64)
            else:
                thin = nn.LazyConv2d(1, **wiring, dtype=torch.float64)
            owner, _, attribute = name.rpartition(".")
            setattr(net.get_submodule(owner), attribute, thin)
    net(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    return net.eval()


NETWORKS = {
    "unet11": lambda: UNet11(4),
    "unet16": lambda: UNet16(1, 4),
    "unet16-deconv": lambda: UNet16(1, 4, True),
}


@pytest.fixture(params=NETWORKS)
def make(request):
    return NETWORKS[request.param]


def test_reach_is_what_a_poisoned_pixel_shows_in_all_32_phases(make):
    thin = with_few_channels(make())
    assert observed(thin, 3, 1024, range(512, 544), rows=32) == reach(make())


def test_the_whole_network_agrees_where_the_extremes_are(make):
    """Real channel numbers; only the two input columns that reach furthest, for time."""
    thin, net, expected = with_few_channels(make()), make().double().eval(), reach(make())
    columns = {at: poisoned(thin, 3, 512, at, rows=32) for at in range(240, 272)}
    furthest_on = next(at for at, (_, last) in columns.items() if last - at == expected.before)
    furthest_back = next(at for at, (first, _) in columns.items() if at - first == expected.after)
    for at in {furthest_on, furthest_back}:
        assert poisoned(net, 3, 512, at, rows=32) == columns[at]


class MeanPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


def test_gradients_stay_inside_the_reach_and_touch_its_ends():
    """Positive weights and inputs keep every ReLU open and cancel nothing; average pooling, which
    reads the same pixels, lets the gradient through all of them."""
    net = with_few_channels(UNet11(4))
    for i, layer in enumerate(net.encoder):
        if isinstance(layer, nn.MaxPool2d):
            net.encoder[i] = MeanPool(2)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    image = torch.ones(1, 3, 32, 1024, dtype=torch.float64, requires_grad=True)
    out = net(image)[0, 0].sum(0)
    before = after = 0
    for at in range(512, 544):
        (gradient,) = torch.autograd.grad(out[at], image, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero().ravel()
        assert len(columns) == columns[-1] - columns[0] + 1, "a hole in what the pixel sees"
        before = max(before, at - int(columns[0]))
        after = max(after, int(columns[-1]) - at)
    assert Reach(before, after) == reach(UNet11(4))


def test_a_window_with_the_halo_equals_the_whole_image(make):
    thin, halo = with_few_channels(make()), reach(make()).halo
    image = torch.rand(1, 3, 32, 1024, dtype=torch.float64)
    with torch.inference_mode():
        whole = thin(image)[..., 480:544]
        window = thin(image[..., 480 - halo : 544 + halo])[..., halo:-halo]
    torch.testing.assert_close(window, whole, rtol=0, atol=1e-12)


@st.composite
def small_networks(draw) -> nn.Module:
    """Down by a factor, something on the coarse grid, up again, beside a skip connection."""

    def conv() -> nn.Module:
        k, d = draw(st.sampled_from([1, 2, 3, 5])), draw(st.integers(1, 3))
        return nn.Conv2d(1, 1, (1, k), padding="same", dilation=d)

    s = draw(st.sampled_from([1, 2, 3, 4]))
    k = s + draw(st.integers(0, 3))
    down = draw(
        st.sampled_from(
            [
                nn.MaxPool2d((1, s)),
                nn.AvgPool2d((1, s)),
                nn.Conv2d(1, 1, (1, k), stride=(1, s), padding=(0, (k - s + 1) // 2)),
            ]
        )
    )
    pad = draw(st.integers(0, (k - s) // 2))
    transposed = nn.ConvTranspose2d(1, 1, (1, k), (1, s), (0, pad), dilation=(1, draw(st.integers(1, 2))))
    modes = ("nearest", "nearest-exact", "bilinear")
    up = draw(st.sampled_from([transposed, *(nn.Upsample(scale_factor=(1, s), mode=m) for m in modes)]))
    return nn.Sequential(conv(), down, conv(), nn.ReLU(), up, conv()).double().eval()


@settings(max_examples=60, deadline=None)
@given(small_networks())
def test_reach_of_other_networks_of_these_layers(net):
    seen, claimed = observed(net, 1, 240, range(120, 132), rows=1), reach(net)
    if isinstance(net[4], nn.Upsample) and net[4].scale_factor[1] % 2:
        # Odd factors hit pixel centres, where the claim allows for torch's rounding.
        assert seen.before <= claimed.before
        assert seen.after <= claimed.after
    else:
        assert seen == claimed


def test_importing_the_networks_is_left_to_those_who_need_them():
    code = "import sys, geoseg.checkpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
