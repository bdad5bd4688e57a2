"""The kinds of layer a random network is made of: each proposes one layer that fits a value drawn before."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from random_layers import (
    Apply,
    ChannelsLast,
    FreeProduct,
    Gate,
    MultiheadAttention,
    Scale,
    SelfAttention,
    Windowed,
)
from torch import Tensor, nn
from torch.nn import functional

# N images, C channels, H W pixels, T tokens

MAP, TOKENS, FLAT, IDS = "map", "tokens", "flat", "ids"  # [N, C, pixels ...], [N, T, C], [N, C], [N, T]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_AVG = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ADAPTIVE_MAX = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


class MisfitError(Exception):
    """The drawn layer fits no value; another one is drawn."""


@dataclass(frozen=True, slots=True)
class Value:
    layout: str
    x: Tensor

    @property
    def channels(self) -> int:
        return self.x.shape[1 if self.layout == MAP else -1]

    @property
    def rank(self) -> int:
        return self.x.dim() - 2


@dataclass(slots=True)
class Step:
    """A layer and what it reads; `is_new` where its weights are not those of an earlier layer."""

    module: nn.Module
    sources: tuple[int, ...]
    layout: str
    is_new: bool = True
    kind: str = ""


@dataclass(slots=True)
class Draw:
    rng: random.Random
    values: list[Value] = field(default_factory=list)
    shared: list[tuple[nn.Module, int, str]] = field(default_factory=list)  # layer, width, layout

    def pick(self, *layouts: str, other_than: int = -1) -> int:
        """Return a value of one of the layouts, most often the newest."""
        found = [i for i, v in enumerate(self.values) if v.layout in layouts and i != other_than]
        if not found:
            raise MisfitError
        return found[-1] if self.rng.random() < 0.7 else self.rng.choice(found)

    def width(self) -> int:
        return self.rng.randint(3, 10)

    def coin(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def divisor(self, number: int) -> int:
        return self.rng.choice([d for d in range(1, number + 1) if number % d == 0])


# ---------------------------------------------------------------------- contractions


def convolution(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    size, stride = draw.rng.choice((1, 1, 2, 3, 3, 3)), draw.rng.choice((1, 1, 1, 2))
    same = stride == 1 and size % 2 == 1 and draw.coin(0.2)
    rows, groups = draw.width(), 1
    if (form := draw.rng.random()) < 0.2:
        groups, rows = value.channels, value.channels * draw.rng.choice((1, 1, 1, 2))
    elif form < 0.35:
        groups = draw.divisor(value.channels)
        rows = groups * draw.rng.randint(1, 3)
    module = CONVOLUTIONS[value.rank](
        value.channels,
        rows,
        size,
        stride=stride,
        dilation=draw.rng.choice((1, 1, 1, 2)),
        padding="same" if same else draw.rng.choice((0, size // 2, size // 2)),
        groups=groups,
        bias=draw.coin(0.6),
        padding_mode=draw.rng.choices(("zeros", "reflect", "replicate", "circular"), (8, 1, 1, 1))[0],
    )
    draw.shared.append((module, value.channels, MAP))
    return Step(module, (at,), MAP)


def transposed(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    groups = draw.divisor(value.channels) if draw.coin(0.3) else 1
    stride = draw.rng.choice((1, 2))
    module = TRANSPOSED[value.rank](
        value.channels,
        groups * draw.rng.randint(1, 3) if groups > 1 else draw.width(),
        draw.rng.choice((1, 2, 3)),
        stride=stride,
        padding=draw.rng.choice((0, 1)),
        output_padding=draw.rng.randint(0, stride - 1),
        groups=groups,
        bias=draw.coin(0.6),
    )
    return Step(module, (at,), MAP)


def linear(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS, FLAT)
    value = draw.values[at]
    layer = nn.Linear(value.channels, draw.width(), bias=draw.coin(0.7))
    if value.layout == MAP:
        return Step(ChannelsLast(layer), (at,), MAP)
    draw.shared.append((layer, value.channels, value.layout))
    return Step(layer, (at,), value.layout)


def free_product(draw: Draw) -> Step:
    at = draw.pick(TOKENS, FLAT)
    value = draw.values[at]
    layer = FreeProduct(value.channels, draw.width(), draw.rng.choice(("matmul", "einsum")))
    return Step(layer, (at,), value.layout)


def token_linear(draw: Draw) -> Step:
    at = draw.pick(TOKENS)
    layer = nn.Linear(draw.values[at].x.shape[1], draw.width())
    mix = Mixed(layer)
    return Step(mix, (at,), TOKENS)


class Mixed(nn.Module):
    """A linear layer over tokens instead of channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_NTC: Tensor) -> Tensor:
        return self.layer(x_NTC.transpose(1, 2)).transpose(1, 2)


def _attention(draw: Draw, channels: int) -> nn.Module:
    if draw.coin(0.25):
        return MultiheadAttention(channels, draw.divisor(channels))
    spelling = draw.rng.choice(("sdpa", "matmul", "einsum", "bmm"))
    heads, depth = draw.rng.randint(1, 4), draw.rng.randint(1, 3)
    return SelfAttention(channels, heads, depth, packed=draw.coin(), spelling=spelling)


def attention(draw: Draw) -> Step:
    at = draw.pick(TOKENS)
    return Step(_attention(draw, draw.values[at].channels), (at,), TOKENS)


def window(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    sides = [side for side in (2, 3, 4) if value.rank == 2 and not any(s % side for s in value.x.shape[2:])]
    if not sides:
        raise MisfitError
    channels = value.channels
    layer = nn.Linear(channels, draw.width()) if draw.coin() else _attention(draw, channels)
    return Step(Windowed(layer, draw.rng.choice(sides), draw.rng.choice((0, 1))), (at,), MAP)


def activations_product(draw: Draw) -> Step:
    """Two tensors of tokens times each other: what attention is made of, without a softmax."""
    a = draw.pick(TOKENS)
    b = draw.pick(TOKENS)
    if draw.values[a].channels != draw.values[b].channels:
        raise MisfitError
    spelled: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "a @ b.mT": lambda a, b: a @ b.mT * 0.2,
        "a.mT @ b": lambda a, b: a.mT @ b * 0.2,
        "bmm(a, b.mT)": lambda a, b: torch.bmm(a, b.transpose(1, 2)) * 0.2,
        "nic,njc->nij": lambda a, b: torch.einsum("nic,njc->nij", a, b) * 0.2,
    }
    words = draw.rng.choice(list(spelled))
    return Step(Apply(words, spelled[words]), (a, b), TOKENS)


def embedding(draw: Draw) -> Step:
    at = draw.pick(IDS)
    return Step(nn.Embedding(10, draw.width()), (at,), TOKENS)


def again(draw: Draw) -> Step:
    """A layer used a second time: one weight, two places."""
    if not draw.shared:
        raise MisfitError
    module, width, layout = draw.rng.choice(draw.shared)
    at = draw.pick(layout)
    if draw.values[at].channels != width:
        raise MisfitError
    return Step(module, (at,), layout, is_new=False)


# ---------------------------------------------------------------------- norms


def batch_norm(draw: Draw) -> Step:
    at = draw.pick(MAP, FLAT)
    value = draw.values[at]
    kind = nn.BatchNorm1d if value.layout == FLAT else BATCH_NORMS[value.rank]
    return Step(kind(value.channels, affine=draw.coin(0.9)), (at,), value.layout)


def layer_norm(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS, FLAT)
    value = draw.values[at]
    norm = nn.LayerNorm(value.channels, elementwise_affine=draw.coin(0.85))
    return Step(ChannelsLast(norm) if value.layout == MAP else norm, (at,), value.layout)


def group_norm(draw: Draw) -> Step:
    at = draw.pick(MAP)
    channels = draw.values[at].channels
    return Step(nn.GroupNorm(draw.divisor(channels), channels, affine=draw.coin(0.85)), (at,), MAP)


def instance_norm(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    kind = INSTANCE_NORMS[value.rank]
    return Step(kind(value.channels, affine=draw.coin(), track_running_stats=draw.coin(0.3)), (at,), MAP)


# ---------------------------------------------------------------------- one value per element

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "relu in place": lambda x: functional.relu_(x.clone()),
    "relu6": functional.relu6, "silu": functional.silu, "gelu": functional.gelu,
    "gelu tanh": partial(functional.gelu, approximate="tanh"), "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "leaky_relu": partial(functional.leaky_relu, negative_slope=0.1), "elu": functional.elu,
    "celu": functional.celu, "selu": functional.selu, "mish": functional.mish,
    "softplus": functional.softplus, "logsigmoid": functional.logsigmoid, "softsign": functional.softsign,
    "hardtanh": functional.hardtanh, "softshrink": partial(functional.softshrink, lambd=0.05),
    "clamp": lambda x: x.clamp(-0.7, 0.9), "clamp_min": lambda x: x.clamp(min=0.1), "abs": torch.abs,
    "neg": torch.neg, "square": lambda x: x.pow(2) * 0.5, "cube": lambda x: x**3 * 0.2,
    "exp": lambda x: torch.exp(-x.abs()), "log1p": lambda x: torch.log1p(x.abs()),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.01), "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "reciprocal": lambda x: 1.0 / (x.abs() + 0.5), "sin": torch.sin, "add 0.3": lambda x: x + 0.3,
    "0.4 - x": lambda x: 0.4 - x, "x - 0.2": lambda x: x - 0.2, "x / 1.7": lambda x: x / 1.7,
    "x * -0.8": lambda x: x * -0.8, "maximum": lambda x: torch.maximum(x, -0.3 * x),
    "where": lambda x: torch.where(x > 0, x, 0.2 * x), "gate": lambda x: (x > 0.2137).to(x.dtype) * x,
    "swish": lambda x: x * torch.sigmoid(1.5 * x),
    "masked_fill": lambda x: x.masked_fill(x < -0.5137, 0.3),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
}  # fmt: skip


def pointwise(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS, FLAT)
    if draw.coin(0.4):
        module = nn.ReLU() if draw.coin(0.9) else nn.Dropout(0.3)
        return Step(module, (at,), draw.values[at].layout)
    words = draw.rng.choice(list(POINTWISE))
    return Step(Apply(words, POINTWISE[words]), (at,), draw.values[at].layout)


def prelu(draw: Draw) -> Step:
    at = draw.pick(MAP, FLAT)
    value = draw.values[at]
    return Step(nn.PReLU(value.channels if draw.coin(0.6) else 1), (at,), value.layout)


def softmax(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS, FLAT)
    value = draw.values[at]
    axis = draw.rng.randrange(1, value.x.dim())
    function = draw.rng.choice((functional.softmax, functional.softmax, functional.log_softmax))
    return Step(Apply(f"{function.__name__}({axis})", partial(function, dim=axis)), (at,), value.layout)


def glu(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS, FLAT)
    value = draw.values[at]
    return Step(nn.GLU(1 if value.layout == MAP else -1), (at,), value.layout)


def scale(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS, FLAT)
    value = draw.values[at]
    channels, how = value.channels, draw.rng.choice(("mul", "mul", "add"))
    shape = (channels, *([1] * value.rank)) if value.layout == MAP else (channels,)
    if draw.coin(0.2):
        shape = tuple(value.x.shape[1:])  # one number per position: a position embedding
    if draw.coin(0.1):
        shape = (1,)
    return Step(Scale(*shape, how=how), (at,), value.layout)


def gate(draw: Draw) -> Step:
    at = draw.pick(MAP)
    function = draw.rng.choice((torch.sigmoid, functional.hardsigmoid))
    return Step(Gate(draw.values[at].channels, draw.rng.randint(1, 4), function), (at,), MAP)


COMPUTED: dict[str, tuple[float, Callable[[Draw], Step]]] = {
    "convolution": (18, convolution),
    "transposed convolution": (2, transposed),
    "linear": (7, linear),
    "free product": (1, free_product),
    "linear over tokens": (0.5, token_linear),
    "attention": (4, attention),
    "windows": (1.5, window),
    "product of activations": (0.7, activations_product),
    "embedding": (5, embedding),
    "shared layer": (2, again),
    "batch norm": (6, batch_norm),
    "layer norm": (1.5, layer_norm),
    "group norm": (1.5, group_norm),
    "instance norm": (1, instance_norm),
    "pointwise": (8, pointwise),
    "prelu": (1, prelu),
    "softmax": (0.7, softmax),
    "glu": (1, glu),
    "scale": (2, scale),
    "gate": (1.5, gate),
}
