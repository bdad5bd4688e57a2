"""The kinds of layer of a random network that move, pool, pad or join what they read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from random_layers import Apply, ClassToken, Indexed
from random_steps import FLAT, MAP, TOKENS, Draw, MisfitError, Step
from torch import Tensor, nn
from torch.nn import functional

MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_AVG = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ADAPTIVE_MAX = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
LINEAR_BY_RANK = {1: "linear", 2: "bilinear", 3: "trilinear"}


# ---------------------------------------------------------------------- pools and sizes


def pool(draw: Draw) -> Step:
    at = draw.pick(MAP)
    rank = draw.values[at].rank
    size, stride = draw.rng.choice((2, 3)), draw.rng.choice((1, 2))
    padding = draw.rng.choice((0, 0, 1))
    ceil = draw.coin(0.2)
    if draw.coin():
        return Step(MAX_POOLS[rank](size, stride, padding, ceil_mode=ceil), (at,), MAP)
    module = AVG_POOLS[rank](size, stride, padding, ceil_mode=ceil, count_include_pad=draw.coin())
    return Step(module, (at,), MAP)


def adaptive_pool(draw: Draw) -> Step:
    at = draw.pick(MAP)
    table = draw.rng.choice((ADAPTIVE_AVG, ADAPTIVE_AVG, ADAPTIVE_MAX))
    return Step(table[draw.values[at].rank](draw.rng.choice((1, 2, 3))), (at,), MAP)


def mean(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS)
    if draw.values[at].layout == TOKENS:
        function: Callable[[Tensor], Tensor] = draw.rng.choice((lambda x: x.mean(1), lambda x: x.amax(dim=1)))
    else:
        axes = tuple(range(2, draw.values[at].x.dim()))
        function = draw.rng.choice(
            (lambda x: x.mean(axes), lambda x: x.amax(dim=axes), lambda x: x.sum(axes) * 0.05)
        )
    return Step(Apply("over positions", function), (at,), FLAT)


def over_channels(draw: Draw) -> Step:
    """A spatial gate: the mean or maximum over channels, times what it is made from."""
    at = draw.pick(MAP)
    if draw.coin():
        return Step(Apply("x * mean over channels", lambda x: x * x.mean(1, keepdim=True)), (at,), MAP)
    return Step(Apply("x * sigmoid(max)", lambda x: x * x.amax(1, keepdim=True).sigmoid()), (at,), MAP)


def resize(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    if draw.coin(0.6):
        module = nn.Upsample(scale_factor=2, mode="nearest")
    else:
        module = nn.Upsample(scale_factor=2, mode=LINEAR_BY_RANK[value.rank], align_corners=draw.coin())
    if value.rank == 2 and draw.coin(0.3):
        return Step(
            Apply("resize to 5x7", partial(functional.interpolate, size=(5, 7), mode="bilinear")), (at,), MAP
        )
    return Step(module, (at,), MAP)


def pad(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    mode = draw.rng.choice(("constant", "constant", "reflect", "replicate", "circular"))
    amounts = [draw.rng.randint(0, 2) for _ in range(2 * value.rank)]
    if mode == "constant" and draw.coin(0.3):
        amounts[0] = -1
    if mode == "constant" and draw.coin(0.3):
        amounts += [draw.rng.randint(0, 2), draw.rng.randint(0, 2)]
    fill = draw.rng.choice((0.0, 0.0, 0.7)) if mode == "constant" else 0.0
    function = partial(functional.pad, pad=amounts, mode=mode, value=fill if mode == "constant" else None)
    return Step(Apply(f"pad {amounts} {mode} {fill}", function), (at,), MAP)


# ---------------------------------------------------------------------- moves


def shuffle_pixels(draw: Draw) -> Step:
    at = draw.pick(MAP)
    if draw.values[at].rank != 2:
        raise MisfitError
    return Step(draw.rng.choice((nn.PixelShuffle(2), nn.PixelUnshuffle(2))), (at,), MAP)


def shuffle_channels(draw: Draw) -> Step:
    at = draw.pick(MAP)
    value = draw.values[at]
    groups = draw.divisor(value.channels)
    if value.rank == 2 and draw.coin(0.3):
        return Step(nn.ChannelShuffle(groups), (at,), MAP)

    def shuffled(x: Tensor) -> Tensor:
        n, c, *pixels = x.shape
        return x.view(n, groups, c // groups, *pixels).transpose(1, 2).reshape(n, c, *pixels)

    return Step(Apply(f"shuffle {groups}", shuffled), (at,), MAP)


def part(draw: Draw) -> Step:
    """One part of a split, chunk or slice of the channels."""
    at = draw.pick(MAP, TOKENS)
    value = draw.values[at]
    axis, c = (1, value.channels) if value.layout == MAP else (2, value.channels)
    if c < 4:
        raise MisfitError
    cut, number = draw.rng.randint(1, c - 1), draw.rng.randint(2, 3)
    spelled: dict[str, Callable[[Tensor], Tensor]] = {
        f"split [{cut}, {c - cut}] 0": lambda x: x.split([cut, c - cut], axis)[0],
        f"split [{cut}, {c - cut}] 1": lambda x: x.split([cut, c - cut], axis)[1],
        f"chunk {number}": lambda x: x.chunk(number, axis)[1],
        f"tensor_split {number}": lambda x: x.tensor_split(number, axis)[0],
        f"narrow {cut - 1} 2": lambda x: x.narrow(axis, cut - 1, 2),
        "halves swapped": lambda x: torch.cat(x.chunk(2, axis)[::-1], axis),
        "a * sigmoid(b)": lambda x: x.chunk(2, axis)[0] * x.chunk(2, axis)[1].sigmoid(),
        "every second": lambda x: x[:, ::2] if axis == 1 else x[:, :, ::2],
        "unbind, stack": lambda x: torch.stack(x.unbind(axis)[1:], axis),
    }
    words = draw.rng.choice(list(spelled))
    return Step(Apply(words, spelled[words]), (at,), value.layout)


def index(draw: Draw) -> Step:
    at = draw.pick(MAP)
    channels = draw.values[at].channels
    picked = draw.rng.sample(range(channels), draw.rng.randint(2, channels))
    if draw.coin(0.3):
        picked.append(draw.rng.choice(picked))  # one channel twice
    return Step(Indexed(picked, draw.rng.choice(("buffer", "list", "select"))), (at,), MAP)


def roll_or_flip(draw: Draw) -> Step:
    at = draw.pick(MAP, TOKENS)
    value = draw.values[at]
    axis = draw.rng.randrange(1, value.x.dim())
    if draw.coin():
        return Step(Apply(f"flip {axis}", partial(torch.flip, dims=(axis,))), (at,), value.layout)
    shift = draw.rng.randint(1, 3)
    return Step(
        Apply(f"roll {shift} {axis}", partial(torch.roll, shifts=shift, dims=axis)), (at,), value.layout
    )


def crop(draw: Draw) -> Step:
    at = draw.pick(MAP)
    function: Callable[[Tensor], Tensor] = draw.rng.choice((lambda x: x[..., ::2], lambda x: x[:, :, 1:]))
    return Step(Apply("crop", function), (at,), MAP)


def repeat(draw: Draw) -> Step:
    at = draw.pick(MAP)
    ones = [1] * draw.values[at].rank
    spelled: dict[str, Callable[[Tensor], Tensor]] = {
        "repeat 2": lambda x: x.repeat(1, 2, *ones),
        "repeat_interleave 2": lambda x: x.repeat_interleave(2, dim=1),
        "both signs": lambda x: torch.cat((x, -x), dim=1),
    }
    words = draw.rng.choice(list(spelled))
    return Step(Apply(words, spelled[words]), (at,), MAP)


# ---------------------------------------------------------------------- from one layout to another


def flatten(draw: Draw) -> Step:
    return Step(nn.Flatten(1), (draw.pick(MAP, TOKENS),), FLAT)


def tokens_from_map(draw: Draw) -> Step:
    at = draw.pick(MAP)
    if draw.coin():
        return Step(Apply("tokens", lambda x: x.flatten(2).transpose(1, 2)), (at,), TOKENS)
    return Step(Apply("tokens of channels", lambda x: x.flatten(2)), (at,), TOKENS)


def map_from_tokens(draw: Draw) -> Step:
    at = draw.pick(TOKENS)
    num_tokens = draw.values[at].x.shape[1]
    rank = draw.rng.choice((1, 2))
    height = draw.divisor(num_tokens)
    sizes = (num_tokens,) if rank == 1 else (height, num_tokens // height)

    def mapped(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], -1, *sizes)

    return Step(Apply(f"map {sizes}", mapped), (at,), MAP)


def unflatten(draw: Draw) -> Step:
    at = draw.pick(FLAT)
    width = draw.values[at].channels
    rows = draw.divisor(width)
    if draw.coin():
        return Step(
            Apply(f"[{rows}, {width // rows}, 1]", lambda x: x.view(-1, rows, width // rows, 1)), (at,), MAP
        )
    return Step(nn.Unflatten(1, (rows, width // rows)), (at,), TOKENS)


def class_token(draw: Draw) -> Step:
    at = draw.pick(TOKENS)
    return Step(ClassToken(draw.values[at].channels), (at,), TOKENS)


def one_token(draw: Draw) -> Step:
    return Step(Apply("first token", lambda x: x[:, 0]), (draw.pick(TOKENS),), FLAT)


# ---------------------------------------------------------------------- joins


def two_values(draw: Draw) -> Step:
    a = draw.pick(MAP, TOKENS, FLAT)
    one = draw.values[a]
    twins = [
        i for i, v in enumerate(draw.values) if i != a and v.x.shape == one.x.shape and v.layout == one.layout
    ]
    if not twins:
        raise MisfitError
    joined: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "a + b": lambda a, b: a + b,
        "a - b": lambda a, b: a - b,
        "a * b": lambda a, b: a * b,
        "a + 0.5 b": lambda a, b: torch.add(a, b, alpha=0.5),
        "relu(a + b)": lambda a, b: functional.relu(a + b),
        "a * sigmoid(b)": lambda a, b: a * torch.sigmoid(b),
        "a / (1 + |b|)": lambda a, b: a / (1 + b.abs()),
        "maximum(a, b)": torch.maximum,
        "where(b > 0, a * b, b)": lambda a, b: torch.where(b > 0, a * b, b),
    }
    words = draw.rng.choices(list(joined), [8, 2, 2, 1, 2, 2, 1, 1, 1])[0]
    return Step(Apply(words, joined[words]), (a, draw.rng.choice(twins)), one.layout)


def per_image(draw: Draw) -> Step:
    """One number per image and channel added to, or times, every position."""
    a, b = draw.pick(MAP, TOKENS), draw.pick(FLAT)
    one = draw.values[a]
    if one.channels != draw.values[b].channels:
        raise MisfitError
    shape = (-1, one.channels, *([1] * one.rank)) if one.layout == MAP else (-1, 1, one.channels)
    if draw.coin():
        return Step(Apply("a + b per image", lambda a, b: a + b.reshape(shape)), (a, b), one.layout)
    return Step(Apply("a * b per image", lambda a, b: a * b.view(shape)), (a, b), one.layout)


def concat(draw: Draw) -> Step:
    a = draw.pick(MAP, TOKENS, FLAT)
    layout = draw.values[a].layout
    axis = (1 if layout == MAP else -1) if draw.coin(0.8) else draw.rng.randrange(1, draw.values[a].x.dim())
    places = (a, *(draw.pick(layout) for _ in range(draw.rng.choice((1, 1, 2)))))
    return Step(Apply(f"cat {axis}", lambda *xs: torch.cat(xs, dim=axis)), places, layout)


def padded_add(draw: Draw) -> Step:
    """A shortcut without weights: channels of zeros around the narrower of two values, then the sum."""
    wide = draw.pick(MAP)
    many = draw.values[wide]
    few = [i for i, v in enumerate(draw.values) if v.layout == MAP and v.channels < many.channels]
    few = [i for i in few if draw.values[i].x.shape[2:] == many.x.shape[2:]]
    if not few:
        raise MisfitError
    narrow = draw.rng.choice(few)
    missing = many.channels - draw.values[narrow].channels
    before = draw.rng.randint(0, missing)
    amounts = [0, 0] * many.rank + [before, missing - before]
    return Step(
        Apply(f"a + pad(b, {amounts})", lambda a, b: a + functional.pad(b, amounts)), (wide, narrow), MAP
    )


POOLS: dict[str, tuple[float, Callable[[Draw], Step]]] = {
    "pool": (3, pool),
    "adaptive pool": (1, adaptive_pool),
    "mean of positions": (1.5, mean),
    "mean of channels": (0.5, over_channels),
    "resize": (1, resize),
    "pad": (1.2, pad),
}

MOVES: dict[str, tuple[float, Callable[[Draw], Step]]] = {
    "pixel shuffle": (1, shuffle_pixels),
    "channel shuffle": (1.5, shuffle_channels),
    "part": (2, part),
    "index": (1, index),
    "roll or flip": (1, roll_or_flip),
    "crop": (0.5, crop),
    "repeat": (0.7, repeat),
    "flatten": (1, flatten),
    "tokens from map": (1.5, tokens_from_map),
    "map from tokens": (1, map_from_tokens),
    "unflatten": (0.5, unflatten),
    "class token": (0.7, class_token),
    "one token": (0.5, one_token),
}

JOINS: dict[str, tuple[float, Callable[[Draw], Step]]] = {
    "two values": (8, two_values),
    "per image": (1, per_image),
    "concat": (2, concat),
    "padded shortcut": (1.5, padded_add),
}
