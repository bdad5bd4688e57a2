"""What the shrink removes around one operation: pointwise operations, norms, pools, moves, layouts."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from one_operation import (
    Case,
    Kill,
    around,
    constant,
    maker,
    on_tokens,
    shrunk_exactly,
    silent,
    unread,
)
from random_layers import Apply, ChannelsLast, Gate, Indexed, Scale, Windowed, fill
from random_networks import check
from random_steps import POINTWISE
from torch import Tensor, nn
from torch.nn import functional

# N images, C channels, H W pixels


def shuffled_in_two(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax over channels": lambda x: x.softmax(1),
    "softmax over pixels": lambda x: x.softmax(2),
    "mean of pixels": lambda x: x.mean((2, 3)),
    "max of pixels": lambda x: x.amax((2, 3)),
    "sum of pixels": lambda x: x.sum((2, 3)) * 0.05,
    "times mean of channels": lambda x: x * x.mean(1, keepdim=True),
    "resize": lambda x: functional.interpolate(x, size=(5, 7), mode="bilinear"),
    "zeros around": lambda x: functional.pad(x, (1, 0, 2, 1)),
    "reflect": lambda x: functional.pad(x, (1, 0, 2, 1), mode="reflect"),
    "replicate": lambda x: functional.pad(x, (1, 0, 2, 1), mode="replicate"),
    "circular": lambda x: functional.pad(x, (1, 0, 2, 1), mode="circular"),
    "shuffle in two": shuffled_in_two,
    "shuffle in three": lambda x: x.view(2, 3, 2, 6, 6).transpose(1, 2).reshape(2, 6, 6, 6),
    "halves swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "second of a split": lambda x: x.split([2, 4], 1)[1],
    "narrow": lambda x: x.narrow(1, 2, 4),
    "every second": lambda x: x[:, ::2],
    "every second, gap": lambda x: x[:, 1::2],
    "tensor_split": lambda x: x.tensor_split(2, 1)[0],
    "unbind": lambda x: torch.stack(x.unbind(1)[1:], 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "both signs": lambda x: torch.cat((x, -x), 1),
    "half gates half": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(),
    "flip pixels": lambda x: x.flip(2),
    "flip channels": lambda x: x.flip(1),
    "roll pixels": lambda x: x.roll(2, 3),
    "roll channels": lambda x: x.roll(1, 1),
    "crop": lambda x: x[:, :, 1:, ::2],
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "width written out": lambda x: x.reshape(-1, 6, 36).reshape(-1, 6, 6, 6),
}


FIRST_TWO = constant(0, 1)


def of(words: str) -> nn.Module:
    return Apply(words, FUNCTIONS[words])


def middle(words: str, params: int = 26, kill: Kill = FIRST_TWO, **sizes: int) -> Case:
    return Case(layers=around(partial(of, words), **sizes), params=params, kill=kill)


# 4 of 6 channels stay: 4*3 + 4 in the stem, 4*2 + 2 in the last layer, and what the operation itself holds
CASES = {
    "batch norm": Case(layers=around(maker(nn.BatchNorm2d, 6)), params=26 + 8, kill=constant()),
    "batch norm without parameters": Case(
        layers=around(maker(nn.BatchNorm2d, 6, affine=False)), params=26, kill=constant()
    ),
    "instance norm": Case(
        layers=around(maker(nn.InstanceNorm2d, 6, affine=True)), params=26 + 8, kill=constant()
    ),
    "group norm, one group dead": Case(
        layers=around(maker(nn.GroupNorm, 3, 6)), params=26 + 8, kill=constant()
    ),
    "group norm, a group of one": Case(
        layers=around(maker(nn.GroupNorm, 6, 6)), params=26 + 8, kill=constant()
    ),
    "prelu per channel": Case(layers=around(maker(nn.PReLU, 6)), params=26 + 4, kill=constant()),
    "prelu shared": Case(layers=around(nn.PReLU), params=26 + 1, kill=constant()),
    "dropout": Case(layers=around(nn.Dropout), params=26, kill=constant()),
    "layer scale": Case(layers=around(maker(Scale, 6, 1, 1, how="mul")), params=26 + 4, kill=constant()),
    "shift": Case(layers=around(maker(Scale, 6, 1, 1, how="add")), params=26 + 4, kill=constant()),
    "one scale for all": Case(layers=around(maker(Scale, 1, how="mul")), params=26 + 1, kill=constant()),
    "one number per position": Case(
        layers=around(maker(Scale, 6, 6, 6, how="add")), params=26 + 4 * 36, kill=unread()
    ),
    # down 4*4 + 4, up 4*4 + 4
    "gate": Case(layers=around(maker(Gate, 6, 4, torch.sigmoid)), params=26 + 40, kill=silent()),
    # 2 pairs of channels go: 4*3 + 4, then 2*2 + 2
    "glu": Case(layers=around(maker(nn.GLU, 1), width=8, after=4), params=22, kill=silent()),
    "half gates half": middle("half gates half", 22, silent(), width=8, after=4),
    "softmax over pixels": middle("softmax over pixels", kill=unread()),
    "max pool": Case(layers=around(maker(nn.MaxPool2d, 3, 2, 1)), params=26, kill=constant()),
    "average pool": Case(layers=around(maker(nn.AvgPool2d, 2)), params=26, kill=constant()),
    "average pool that counts its zeros": Case(
        layers=around(maker(nn.AvgPool2d, 3, 1, 1)), params=26, kill=silent()
    ),
    "average pool that does not": Case(
        layers=around(maker(nn.AvgPool2d, 3, 1, 1, count_include_pad=False)), params=26, kill=constant()
    ),
    "adaptive average pool": Case(layers=around(maker(nn.AdaptiveAvgPool2d, 2)), params=26, kill=constant()),
    "adaptive max pool": Case(layers=around(maker(nn.AdaptiveMaxPool2d, 4)), params=26, kill=constant()),
    "average pool 1d": Case(
        layers=around(maker(nn.AvgPool1d, 2), rank=1), params=26, kill=constant(), shape=(3, 6)
    ),
    "max pool 3d": Case(
        layers=around(maker(nn.MaxPool3d, 2), rank=3), params=26, kill=constant(), shape=(3, 4, 4, 4)
    ),
    "nearest": Case(layers=around(maker(nn.Upsample, scale_factor=2)), params=26, kill=constant()),
    "bilinear": Case(
        layers=around(maker(nn.Upsample, scale_factor=2, mode="bilinear")), params=26, kill=constant()
    ),
    "linear in one dimension": Case(
        layers=around(maker(nn.Upsample, scale_factor=2, mode="linear"), rank=1),
        params=26,
        kill=constant(),
        shape=(3, 6),
    ),
    "nearest in three dimensions": Case(
        layers=around(maker(nn.Upsample, scale_factor=2), rank=3),
        params=26,
        kill=constant(),
        shape=(3, 4, 4, 4),
    ),
    "resize": middle("resize"),
    "zeros around": middle("zeros around", kill=silent()),
    "reflect": middle("reflect"),
    "replicate": middle("replicate"),
    "circular": middle("circular"),
    # all four channels of one block of pixels: 4*3 + 4, then 1*2 + 2
    "pixel shuffle": Case(
        layers=around(maker(nn.PixelShuffle, 2), width=8, after=2), params=20, kill=silent(0, 1, 2, 3)
    ),
    # 4*3 + 4, then 16*2 + 2
    "pixel unshuffle": Case(layers=around(maker(nn.PixelUnshuffle, 2), after=24), params=50, kill=constant()),
    "channel shuffle": Case(layers=around(maker(nn.ChannelShuffle, 3)), params=26, kill=constant()),
    "shuffle in two": middle("shuffle in two", kill=constant(0, 3)),
    "halves swapped": middle("halves swapped"),
    "second of a split": middle("second of a split", after=4),
    "narrow": middle("narrow", after=4),
    # 0, 2, 4 are read, 0 is dead: 2*3 + 2, then 2*2 + 2
    "every second": middle("every second", 14, after=3),
    "every second, gap": middle("every second, gap", 14, after=3),
    # 0, 1, 2 are read, 2 lives
    "tensor_split": middle("tensor_split", 8, after=3),
    "unbind": middle("unbind", after=5),
    # 2, 3, 5 are read and live: 3*3 + 3, then 3*2 + 2
    "index list": Case(
        layers=around(maker(Indexed, [5, 0, 2, 3], "list"), after=4), params=20, kill=constant()
    ),
    "index buffer": Case(
        layers=around(maker(Indexed, [5, 0, 2, 3], "buffer"), after=4), params=20, kill=constant()
    ),
    "index_select": Case(
        layers=around(maker(Indexed, [5, 0, 2, 3], "select"), after=4), params=20, kill=constant()
    ),
    # four channels live, one is read twice: 4*3 + 4, then 5*2 + 2
    "index twice": Case(
        layers=around(maker(Indexed, [0, 2, 2, 3, 4, 5], "buffer")), params=28, kill=constant()
    ),
    # 4*3 + 4, then 8*2 + 2
    "repeat": middle("repeat", 34, after=12),
    "repeat_interleave": middle("repeat_interleave", 34, after=12),
    "both signs": middle("both signs", 34, after=12),
    "flip pixels": middle("flip pixels"),
    "flip channels": middle("flip channels"),
    "roll pixels": middle("roll pixels"),
    "roll channels": middle("roll channels"),
    "crop": middle("crop"),
    "width written out": middle("width written out"),
    # a linear layer 4 to 4 in every window of 3 by 3
    "windows": Case(
        layers=around(maker(Windowed, nn.Linear(6, 4), 3, 1), after=4), params=26 + 20, kill=constant()
    ),
    # 4*3 + 4, then 4 channels of 36 pixels to 2
    "flatten": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(216, 2)], params=16 + 290, kill=constant()
    ),
    "mean of pixels": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), of("mean of pixels"), nn.Linear(6, 2)],
        params=26,
        kill=constant(),
    ),
    "max of pixels": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), of("max of pixels"), nn.Linear(6, 2)],
        params=26,
        kill=constant(),
    ),
    "sum of pixels": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), of("sum of pixels"), nn.Linear(6, 2)],
        params=26,
        kill=silent(),
    ),
    "tokens": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), of("tokens"), nn.Linear(6, 2)], params=26, kill=constant()
    ),
    "layer on the last axis": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), ChannelsLast(nn.Linear(6, 2))], params=26, kill=constant()
    ),
    "linear after linear": Case(layers=on_tokens(nn.GELU), params=26, kill=constant(), shape=(5, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_dead_channels_go_on_both_sides_of(name: str) -> None:
    case = CASES[name]
    outcome = shrunk_exactly(case)
    assert outcome.shrunk.report.params == case.params


class Branches(nn.Module):
    """Every pointwise function on the same six channels, each read by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.readers = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in POINTWISE)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.stem(x_NCHW)
        results = [read(function(x)) for read, function in zip(self.readers, POINTWISE.values(), strict=True)]
        return torch.stack(results).sum(0)


def test_dead_channels_go_through_every_pointwise_function() -> None:
    with torch.random.fork_rng(devices=[]):
        net = fill(Branches(), random.Random(0), with_zeros=False)
    net.stem.weight.data[:2] = 0.0  # each emits its bias: what the function makes of it is folded
    outcome = check(net, (torch.randn(2, 3, 5, 5, dtype=torch.float64),))
    widths = {
        words: read.in_channels for words, read in zip(POINTWISE, outcome.shrunk.model.readers, strict=True)
    }
    assert widths == dict.fromkeys(POINTWISE, 4)


MIXES = {
    "layer norm": Case(layers=around(lambda: ChannelsLast(nn.LayerNorm(6))), params=38 + 12, kill=constant()),
    "softmax over channels": middle("softmax over channels", 38),
    "times mean of channels": middle("times mean of channels", 38),
}
WORDS = {"layer norm": "layer_norm", "softmax over channels": "softmax", "times mean of channels": "mean"}


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_its_channels_keeps_them_and_the_report_names_it(name: str) -> None:
    outcome = shrunk_exactly(MIXES[name])
    assert outcome.shrunk.report.params == MIXES[name].params
    assert WORDS[name] in outcome.shrunk.report.widths["0"].how
