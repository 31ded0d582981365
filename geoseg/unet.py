"""The networks, whole, and how far one of their output pixels can see.

:class:`UNet11` and :class:`UNet16` follow "TernausNet: U-Net with VGG11 Encoder Pre-Trained on
ImageNet for Image Segmentation" (Iglovikov & Shvets, arXiv:1801.05746): the convolutions of a VGG
network as encoder, a decoder that doubles the resolution five times and sees the encoder's output
of the same size each time. Parameters have the names of the published checkpoints, each once.

:func:`reach` traces any network built of such layers and follows, for output pixels in every
position relative to the poolings, exactly which input pixels they can depend on. A halo of at least
the reach makes a cropped window equal to the same part of whole-image inference.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from geoseg.card import Reach as Reach
from geoseg.errors import ModelError, SettingError
from geoseg.tiling import ALIGN

# ------------------------------------------------------------------------------------- the networks


class ConvRelu(nn.Module):
    """Convolution 3×3 that keeps the size, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W)`` → ``(N, out, H, W)``."""
        return self.relu(self.conv(x))


class DecoderBlock(nn.Module):
    """Double the resolution, with learnt (transposed) or bilinear upsampling.

    ``kernel`` is the transposed convolution's, 3 or 4; ``None`` upsamples bilinearly before two
    convolutions.
    """

    def __init__(self, in_channels: int, middle: int, out: int, *, kernel: int | None) -> None:
        super().__init__()
        if kernel is None:
            self.block = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                ConvRelu(in_channels, middle),
                ConvRelu(middle, out),
            )
        else:
            # Kernel 3 needs one row and column added for the output to be exactly twice the input.
            up = nn.ConvTranspose2d(middle, out, kernel, stride=2, padding=1, output_padding=4 - kernel)
            self.block = nn.Sequential(ConvRelu(in_channels, middle), up, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W)`` → ``(N, out, 2H, 2W)``."""
        return self.block(x)


class _UNet(nn.Module):
    """What both networks share: the order in which their parts meet."""

    encoder: nn.Sequential
    center: nn.Module
    dec5: nn.Module
    dec4: nn.Module
    dec3: nn.Module
    dec2: nn.Module
    dec1: nn.Module
    final: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes, H, W)`` of normalised RGB images ``(N, 3, H, W)``.

        Raises :class:`SettingError` unless H and W are multiples of 32.
        """
        _check_image(x)
        skips = []
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                skips.append(x)
            x = layer(x)
        x = self.center(x)
        for decode in (self.dec5, self.dec4, self.dec3, self.dec2, self.dec1):
            x = decode(torch.cat([x, skips.pop()], 1))
        return self.final(x)


class UNet11(_UNet):
    """TernausNet as in the paper: VGG11 encoder, transposed convolutions; 22 927 393 parameters.

    ``num_filters`` scales the decoder only, ``num_classes`` is the number of logits per pixel.
    ``pretrained=True`` downloads torchvision's ImageNet weights for the encoder (see
    :func:`load_vgg` for a local file) and raises :class:`ModelError` when that fails.
    """

    def __init__(self, num_filters: int = 32, num_classes: int = 1, *, pretrained: bool = False) -> None:
        super().__init__()
        f = _positive("num_filters", num_filters)
        self.encoder = _vgg_features("vgg11")
        self.center = DecoderBlock(512, 16 * f, 8 * f, kernel=3)
        self.dec5 = DecoderBlock(8 * f + 512, 16 * f, 8 * f, kernel=3)
        self.dec4 = DecoderBlock(8 * f + 512, 16 * f, 4 * f, kernel=3)
        self.dec3 = DecoderBlock(4 * f + 256, 8 * f, 2 * f, kernel=3)
        self.dec2 = DecoderBlock(2 * f + 128, 4 * f, f, kernel=3)
        self.dec1 = ConvRelu(f + 64, f)
        self.final = nn.Conv2d(f, _positive("num_classes", num_classes), 1)
        if pretrained:
            load_vgg(self, download_vgg("vgg11"))


class UNet16(_UNet):
    """The same idea on VGG16, with bilinear upsampling or (``is_deconv``) transposed convolutions.

    Arguments as in :class:`UNet11`, in the order of the reference implementation.
    """

    def __init__(
        self,
        num_classes: int = 1,
        num_filters: int = 32,
        is_deconv: bool = False,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        f = _positive("num_filters", num_filters)
        kernel = 4 if is_deconv else None
        self.encoder = _vgg_features("vgg16")
        self.center = DecoderBlock(512, 16 * f, 8 * f, kernel=kernel)
        self.dec5 = DecoderBlock(8 * f + 512, 16 * f, 8 * f, kernel=kernel)
        self.dec4 = DecoderBlock(8 * f + 512, 16 * f, 8 * f, kernel=kernel)
        self.dec3 = DecoderBlock(8 * f + 256, 8 * f, 2 * f, kernel=kernel)
        self.dec2 = DecoderBlock(2 * f + 128, 4 * f, f, kernel=kernel)
        self.dec1 = ConvRelu(f + 64, f)
        self.final = nn.Conv2d(f, _positive("num_classes", num_classes), 1)
        if pretrained:
            load_vgg(self, download_vgg("vgg16"))


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name} is a whole number of at least 1, not {value!r}")
    return value


@fx.wrap  # a leaf when traced: it looks at the shape, which tracing does not know
def _check_image(x: Tensor) -> None:
    shape = tuple(x.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise SettingError(f"the network takes images of shape (N, 3, H, W), not {shape}")
    height, width = shape[2:]
    if height < 1 or width < 1 or height % ALIGN or width % ALIGN:
        fits = " × ".join(str(max(1, math.ceil(side / ALIGN)) * ALIGN) for side in (height, width))
        raise SettingError(
            f"the network takes sides divisible by {ALIGN}, but the input has shape {shape}: "
            "reflect the right and "
            f"bottom sides up to {fits} pixels and crop the output, or let geoseg.segment do so"
        )


_CHANNELS: dict[str, tuple[int | None, ...]] = {
    "vgg11": (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None),
    "vgg16": (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None),
}
"""Outputs of the convolutions of VGG A and D (Simonyan & Zisserman, arXiv:1409.1556); None is a pooling."""


class Undrawn(TorchFunctionMode):
    """Layers that are built inside get no random numbers.

    On the meta device, where there is nothing to fill, drawing them makes torch import its compiler: seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for, but for the drawing."""
        draws = func in (torch.Tensor.uniform_, torch.Tensor.normal_)
        return args[0] if draws else func(*args, **(kwargs or {}))


def _vgg_features(name: str) -> nn.Sequential:
    """Return a VGG's convolutional part, laid out and initialised as torchvision's, whose import takes seconds."""
    layers: list[nn.Module] = []
    channels = 3
    with Undrawn():  # torch's own initialisation comes first, and is not wanted
        for out in _CHANNELS[name]:
            if out is None:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
            channels = out
    features = nn.Sequential(*layers)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return features


# --------------------------------------------------------------------------------- ImageNet weights


def download_vgg(name: str) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights of ``vgg11`` or ``vgg16``, downloaded once; ModelError when that fails."""
    import torchvision

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return torch.hub.load_state_dict_from_url(weights.url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"the ImageNet weights of {name} could not be fetched from {weights.url} ({error}): "
            "fetch that file some "
            "other way, build the network with pretrained=False and call "
            "geoseg.unet.load_vgg(net, FILE)"
        ) from error


_CONVS = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
_VGG11_FROM_VGG16 = {0: 0, 3: 5, 6: 10, 8: 12, 11: 17, 13: 19, 16: 24, 18: 26}
"""The first convolutions of each level of VGG16 have the shapes of VGG11's."""


def load_vgg(net: UNet11 | UNet16, path_or_state: str | Path | Mapping[str, Tensor]) -> dict[int, int]:
    """Fill the encoder from a VGG state dict with torchvision's names (``features.N.weight``, ``features.N.bias``).

    ``path_or_state`` is such a dict or a file of it (safetensors, or .pth, which is read as data
    only). UNet11 also takes the state of a **VGG16**: the convolutions whose shapes fit, the first
    one or two of each level, fill those of VGG11 in the order 0←0, 3←5, 6←10, 8←12, 11←17, 13←19,
    16←24, 18←26. That is a better start than noise, not the ImageNet VGG11, so say so where results
    depend on it.

    Returns the mapping used, encoder index ← index in the state. Raises :class:`ModelError` when
    the state is of another network; the encoder is then unchanged.
    """
    state, where = path_or_state, "the given state"
    if not isinstance(state, Mapping):
        from geoseg.importing import read_state

        where = str(state)
        state = read_state(Path(where))
    wanted = tuple(i for i, layer in enumerate(net.encoder) if isinstance(layer, nn.Conv2d))
    found = tuple(sorted(int(k.split(".")[1]) for k in state if _is_features_weight(k)))
    if found == wanted:
        mapping = {i: i for i in wanted}
    elif wanted == _CONVS["vgg11"] and found == _CONVS["vgg16"]:
        mapping = _VGG11_FROM_VGG16
    else:
        raise ModelError(
            f"{where} has convolutions at features.N for N in {list(found)}; {type(net).__name__} "
            f"needs {list(wanted)}" + (f" or those of VGG16, {list(_CONVS['vgg16'])}" if len(wanted) == 8 else "")
        )
    source: dict[str, Tensor] = {}
    for key, target in net.encoder.state_dict().items():
        index, kind = key.split(".")
        name = f"features.{mapping[int(index)]}.{kind}"
        tensor = state.get(name)
        if tensor is None or tensor.shape != target.shape:
            has = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ModelError(f"{where}: {name} {has}; encoder.{key} needs shape {tuple(target.shape)}")
        source[key] = tensor
    net.encoder.load_state_dict(source)
    return dict(mapping)


def _is_features_weight(key: str) -> bool:
    parts = key.split(".")
    return len(parts) == 3 and parts[0] == "features" and parts[1].isdigit() and parts[2] == "weight"


# -------------------------------------------------------------------------------------------- reach


Positions = NDArray[np.int64]


@dataclass(frozen=True)
class _Step:
    """One layer along one axis: which inputs an output needs, and how much coarser the output is."""

    needs: Callable[[Positions], Positions]
    stride: Fraction = Fraction(1)


def reach(module: nn.Module) -> Reach:
    """Compute from its layers how many pixels around an output pixel can matter.

    The module is traced (``torch.fx``); for one output pixel in every position relative to the
    strides (32 of them in a U-Net with five poolings) the set of input pixels that its value can
    depend on is followed backward, layer by layer, in exact integers. Weights do not matter, so the
    module may be on the meta device. Borders are ignored: clipping at a border only removes
    dependencies. Layers count as in evaluation mode.

    Raises :class:`ModelError` naming the layer when one is not known to look at a bounded
    neighbourhood, or when the output is not as large as the input.
    """
    try:
        graph = fx.Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"the reach of {type(module).__name__} cannot be computed, since its flow depends on values: {error}"
        ) from error
    sides = [_reach_along(axis, module, graph) for axis in (0, 1)]
    return Reach(max(s.before for s in sides), max(s.after for s in sides))


def _reach_along(axis: int, module: nn.Module, graph: fx.Graph) -> Reach:
    nodes = _live_nodes(graph)
    steps = {node: _step(node, module, axis) for node in nodes}
    strides: dict[fx.Node, Fraction] = {}
    for node in nodes:
        before = {strides[n] for n in node.all_input_nodes if n in strides}
        if len(before) > 1:
            raise ModelError(f"{_name(node, module)} joins inputs of different resolution")
        strides[node] = steps[node].stride * (before.pop() if before else 1)
    if strides[nodes[-1]] != 1:
        raise ModelError(f"the output is not as large as the input: stride {strides[nodes[-1]]}")

    period = math.lcm(*(s.numerator for s in strides.values()))
    if period > 4096:
        raise ModelError(f"the pattern of the strides repeats only after {period} pixels")
    before_max = after_max = 0
    for phase in range(period):
        seen = _inputs_seen(phase, nodes, steps)
        if seen.size:
            before_max = max(before_max, phase - int(seen.min()))
            after_max = max(after_max, int(seen.max()) - phase)
    return Reach(before_max, after_max)


def _live_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that the output needs, in order of execution; parameters are left out."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in live:
            live.add(node)
            live.update(_tensor_inputs(node))
    return [node for node in graph.nodes if node in live]


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def _inputs_seen(phase: int, nodes: list[fx.Node], steps: dict[fx.Node, _Step]) -> Positions:
    needed: dict[fx.Node, Positions] = {nodes[-1]: np.array([phase], np.int64)}
    inputs = np.empty(0, np.int64)
    for node in reversed(nodes):
        positions = needed.pop(node)
        if node.op == "placeholder":
            inputs = np.union1d(inputs, positions)
            continue
        sources = np.unique(steps[node].needs(positions))
        for source in _tensor_inputs(node):
            needed[source] = np.union1d(needed[source], sources) if source in needed else sources
    return inputs


def _name(node: fx.Node, module: nn.Module) -> str:
    if node.op == "call_module":
        return f"layer {node.target} ({type(module.get_submodule(str(node.target))).__name__})"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"operation {target} ({node.name})"


def _step(node: fx.Node, module: nn.Module, axis: int) -> _Step:
    """Return the rule of a node; the tables below say which layers are known."""
    try:
        if node.op in ("placeholder", "output"):
            return _pointwise()
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            if type(layer) in _MODULES:
                return _MODULES[type(layer)](axis, layer)
        elif node.target in _FUNCTIONS:

            def resolve(n: fx.Node) -> Any:
                return _parameter(n, module)

            args = fx.node.map_arg(node.args, resolve)
            kwargs = {k: v for k, v in node.kwargs.items() if k != "input"}
            image_first = "input" not in node.kwargs
            return _FUNCTIONS[node.target](axis, *args[image_first:], **fx.node.map_arg(kwargs, resolve))
    except (ModelError, TypeError) as error:
        raise ModelError(f"the reach of {_name(node, module)} is not known: {error}") from error
    raise ModelError(
        f"the reach of {_name(node, module)} is not known: give the halo in pixels, or build the "
        "network of convolutions, poolings, upsampling by a factor, concatenation and "
        "element-wise layers"
    )


def _parameter(node: fx.Node, module: nn.Module) -> Any:
    """Return the tensor behind a ``get_attr`` node, which functional convolutions need for the kernel size."""
    if node.op != "get_attr":
        return node
    return operator.attrgetter(str(node.target))(module)


def _pair(value: Any, axis: int) -> int:
    item = value[axis % len(value)] if isinstance(value, tuple | list) else value
    if isinstance(item, bool) or not isinstance(item, int):
        raise ModelError(f"{item!r} is not a constant")
    return item


def _pointwise(*_: Any, **__: Any) -> _Step:
    return _Step(lambda out: out)


def _channels(axis: int, dim: Any = None, **_: Any) -> _Step:
    if dim not in (1, -3):
        raise ModelError(f"it works along dimension {dim!r}, not along the channels (1)")
    return _pointwise()


def _window(axis: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> _Step:
    """Convolution or pooling: output j reads inputs j·s - p + d·t, t = 0 … k - 1."""
    k, s, d = (_pair(value, axis) for value in (kernel, stride, dilation))
    left = {"same": d * (k - 1) // 2, "valid": 0}
    p = left[padding] if isinstance(padding, str) else _pair(padding, axis)
    taps = d * np.arange(k)
    return _Step(lambda out: (out[:, None] * s - p + taps).ravel(), Fraction(s))


def _transposed(axis: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> _Step:
    """Transposed convolution: input i writes outputs i·s - p + d·t, so output j reads (j + p - d·t) / s."""
    k, s, p, d = (_pair(value, axis) for value in (kernel, stride, padding, dilation))
    taps = d * np.arange(k)

    def needs(out: Positions) -> Positions:
        spread = (out[:, None] + p - taps).ravel()
        return spread[spread % s == 0] // s

    return _Step(needs, Fraction(1, s))


def _interpolate(
    axis: int,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> _Step:
    """Resampling by a fixed factor; torch's convention src = (j + 1/2) / factor - 1/2 unless nearest."""
    if size is not None or scale_factor is None:
        raise ModelError("it resamples to a given size; use scale_factor")
    if align_corners or antialias:
        raise ModelError("with align_corners or antialias it depends on the size of the image")
    item = scale_factor[axis] if isinstance(scale_factor, tuple | list) else scale_factor
    if not isinstance(item, int | float):
        raise ModelError(f"scale_factor {item!r} is not a constant")
    factor = Fraction(item).limit_denominator(64)
    if abs(factor - Fraction(item)) > 1e-6:
        raise ModelError(f"scale_factor {item!r} is not a simple fraction")
    a, b = factor.numerator, factor.denominator

    offsets = {
        "nearest": (0, 2 * b, 2 * a, (0,)),
        "nearest-exact": (b, 2 * b, 2 * a, (0,)),
        "bilinear": (b - a, 2 * b, 2 * a, (0, 1)),
        "bicubic": (b - a, 2 * b, 2 * a, (-1, 0, 1, 2)),
    }
    if mode not in offsets:
        raise ModelError(f"mode {mode!r}")
    start, step, unit, taps = offsets[mode]

    def needs(out: Positions) -> Positions:
        left, rest = np.divmod(start + out * step, unit)
        reads = [left + tap for tap in taps]
        if a & (a - 1):
            # 1 / factor is not a binary fraction: where the source position is a whole number,
            # torch's rounding may put it just below.
            reads.append(left[rest == 0] + taps[0] - 1)
        return np.concatenate(reads)

    return _Step(needs, 1 / factor)


def _conv_layer(axis: int, m: Any) -> _Step:
    if m.padding_mode == "circular":
        raise ModelError("circular padding joins opposite sides of the image")
    rule = _transposed if isinstance(m, nn.ConvTranspose2d) else _window
    return rule(axis, m.kernel_size, m.stride, m.padding, m.dilation)


def _conv_function(
    axis: int,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Step:
    return _window(axis, tuple(weight.shape[2:]), stride, padding, dilation)


def _transposed_function(
    axis: int, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> _Step:  # fmt: skip
    return _transposed(axis, tuple(weight.shape[2:]), stride, padding, dilation)


def _pool(axis: int, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any) -> _Step:
    return _window(axis, kernel_size, stride or kernel_size, padding, dilation)


def _avg_pool(axis: int, kernel_size: Any, stride: Any = None, padding: Any = 0, *_: Any, **__: Any) -> _Step:
    return _pool(axis, kernel_size, stride, padding)


def _upsample_layer(axis: int, m: Any) -> _Step:
    return _interpolate(axis, m.size, m.scale_factor, m.mode, m.align_corners)


_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.BatchNorm2d,
)  # fmt: skip
_MODULES: dict[type[nn.Module], Callable[..., _Step]] = {
    **dict.fromkeys(_ELEMENTWISE, _pointwise),
    nn.Conv2d: _conv_layer,
    nn.ConvTranspose2d: _conv_layer,
    nn.MaxPool2d: lambda axis, m: _pool(axis, m.kernel_size, m.stride, m.padding, m.dilation),
    nn.AvgPool2d: lambda axis, m: _pool(axis, m.kernel_size, m.stride, m.padding),
    nn.Upsample: _upsample_layer,
    nn.UpsamplingNearest2d: _upsample_layer,
    nn.Softmax: lambda axis, m: _channels(axis, m.dim),
    nn.LogSoftmax: lambda axis, m: _channels(axis, m.dim),
}
_ELEMENTWISE_FUNCTIONS = (
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu,
    F.sigmoid, F.tanh, F.dropout, torch.sigmoid, torch.tanh, torch.clamp, torch.add, torch.sub,
    torch.mul, operator.add, operator.sub, operator.mul, operator.truediv, operator.neg,
    operator.iadd, operator.imul, "relu", "relu_", "sigmoid", "tanh", "clamp", "add", "add_", "sub",
    "mul", "mul_", "contiguous", "float", "half",
)  # fmt: skip
_FUNCTIONS: dict[Any, Callable[..., _Step]] = {
    **dict.fromkeys(_ELEMENTWISE_FUNCTIONS, _pointwise),
    **dict.fromkeys((torch.cat, torch.concat, F.softmax, torch.softmax, F.log_softmax), _channels),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _pool),
    F.avg_pool2d: _avg_pool,
    F.conv2d: _conv_function,
    F.conv_transpose2d: _transposed_function,
    F.interpolate: _interpolate,
}
