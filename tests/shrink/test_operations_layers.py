"""What the shrink removes around layers with weights: convolutions, products, attention, joins."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from one_operation import (
    CONVOLUTIONS,
    Case,
    around,
    constant,
    maker,
    on_tokens,
    shrunk_exactly,
    silent,
    with_marks,
)
from random_layers import FreeProduct, MultiheadAttention, SelfAttention, fill
from random_networks import check
from torch import Tensor, nn
from torch.nn import functional

# N images, C channels, T tokens


def read_by(last: Callable[[], nn.Module], rank: int = 2) -> Callable[[], Sequence[nn.Module]]:
    return lambda: [CONVOLUTIONS[rank](3, 6, 1), last()]


def convolution(params: int, kill: Callable[[nn.Sequential], None], *, rank: int = 2, **how: object) -> Case:
    return Case(
        layers=read_by(partial(CONVOLUTIONS[rank], 6, 2, 3, **how), rank),
        params=params,
        kill=kill,
        shape=(3, *([6] * rank)),
    )


def separable(*, multiplier: int = 1, padding: int = 0) -> Callable[[], Sequence[nn.Module]]:
    wide = 6 * multiplier
    return around(maker(nn.Conv2d, 6, wide, 3, padding=padding, groups=6), after=wide)


def kill_depthwise(net: nn.Sequential) -> None:
    net[1].weight.data[:2] = 0.0


def kill_embedding(net: nn.Sequential) -> None:
    net[0].weight.data[:, :2] = 0.0


def level_embedding(net: nn.Sequential) -> None:
    net[0].weight.data[:, :2] = torch.tensor([0.7, -0.4], dtype=torch.float64)


def kill_free_columns(net: nn.Sequential) -> None:
    net[0].weight.data[:, :2] = 0.0


# the stem keeps 4*3 + 4 = 16; a last layer of 3 by 3 keeps 4*2*9 + 2 = 74
CASES = {
    "convolution 1d": convolution(16 + 26, constant(), rank=1),
    "convolution 2d": convolution(16 + 74, constant()),
    "convolution 3d": convolution(16 + 218, constant(), rank=3),
    "convolution with stride": convolution(16 + 74, constant(), stride=2),
    "convolution with dilation": convolution(16 + 74, constant(), dilation=2),
    "convolution with padding, dead channels silent": convolution(16 + 74, silent(), padding=1),
    # one channel stays to carry both constants: 5*3 + 5, then 5*2*9 + 2
    "convolution with padding": convolution(20 + 92, constant(), padding=1),
    "convolution with padding same": convolution(20 + 92, constant(), padding="same"),
    "convolution with padding and stride": convolution(20 + 92, constant(), padding=1, stride=2),
    "padding reflect": convolution(16 + 74, constant(), padding=1, padding_mode="reflect"),
    "padding replicate": convolution(16 + 74, constant(), padding=1, padding_mode="replicate"),
    "padding circular": convolution(16 + 74, constant(), padding=1, padding_mode="circular"),
    # the constants become a bias that was not there
    "convolution without a bias": convolution(16 + 72 + 2, constant(), bias=False),
    # or a running mean: 2 + 2 numbers of the norm
    "convolution without a bias before a norm": Case(
        layers=lambda: [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 3, bias=False), nn.BatchNorm2d(2)],
        params=16 + 72 + 4,
        kill=constant(),
    ),
    "transposed convolution reads": Case(
        layers=read_by(maker(nn.ConvTranspose2d, 6, 2, 3)), params=16 + 74, kill=silent()
    ),
    # its border meets fewer taps: a carrier
    "transposed convolution reads constants": Case(
        layers=read_by(maker(nn.ConvTranspose2d, 6, 2, 3)), params=20 + 92, kill=constant()
    ),
    # 3*4 taps of 2 by 2 and 4 biases, then 4*2 + 2
    "transposed convolution writes": Case(
        layers=lambda: [nn.ConvTranspose2d(3, 6, 2), nn.Conv2d(6, 2, 1)], params=52 + 10, kill=constant()
    ),
    # 4 filters of one plane and 4 biases
    "depthwise": Case(layers=separable(), params=16 + 40 + 10, kill=constant()),
    "depthwise with padding, dead channels silent": Case(
        layers=separable(padding=1), params=16 + 40 + 10, kill=silent()
    ),
    "depthwise filters of zero": Case(layers=separable(padding=1), params=16 + 40 + 10, kill=kill_depthwise),
    # 8 filters and biases, then 8*2 + 2
    "depthwise with a multiplier": Case(layers=separable(multiplier=2), params=16 + 80 + 18, kill=constant()),
    # each group of 3 loses one: 6*2 + 6, and its 6 rows live
    "grouped, one channel of each group": Case(
        layers=around(maker(nn.Conv2d, 6, 6, 1, groups=2)), params=16 + 18 + 14, kill=constant(0, 3)
    ),
    # its three rows are constant then: 3*3 + 3, 3*3 + 3, 3*2 + 2
    "grouped, a whole group": Case(
        layers=around(maker(nn.Conv2d, 6, 6, 1, groups=2)), params=12 + 12 + 8, kill=constant(0, 1, 2)
    ),
    # two of one group and none of the other: nothing can go, for groups have one size
    "grouped, unequal": Case(
        layers=around(maker(nn.Conv2d, 6, 6, 1, groups=2)), params=24 + 24 + 14, kill=constant(0, 1)
    ),
    "transposed depthwise": Case(
        layers=around(maker(nn.ConvTranspose2d, 6, 6, 2, groups=6)), params=16 + 20 + 10, kill=silent()
    ),
    # 4 rows of 2 columns, 2 by 2 taps, and 4 biases
    "transposed grouped": Case(
        layers=around(maker(nn.ConvTranspose2d, 6, 4, 2, groups=2), after=4),
        params=16 + 36 + 10,
        kill=silent(0, 3),
    ),
    "matmul by a free matrix": Case(
        layers=on_tokens(maker(FreeProduct, 6, 4, "matmul"), after=4),
        params=16 + 16 + 10,
        kill=silent(),
        shape=(5, 3),
    ),
    "einsum with a free matrix": Case(
        layers=on_tokens(maker(FreeProduct, 6, 4, "einsum"), after=4),
        params=16 + 16 + 10,
        kill=silent(),
        shape=(5, 3),
    ),
    # 3*4 of the matrix, then 4*2 + 2
    "matmul by a free matrix writes": Case(
        layers=lambda: [FreeProduct(3, 6, "matmul"), nn.Linear(6, 2)],
        params=12 + 10,
        kill=kill_free_columns,
        shape=(5, 3),
    ),
    # 10 words of 4 numbers, then 4*2 + 2
    "embedding": Case(
        layers=lambda: [nn.Embedding(10, 6), nn.Linear(6, 2)], params=50, kill=kill_embedding, shape=(5,)
    ),
    "embedding with a constant for all words": Case(
        layers=lambda: [nn.Embedding(10, 6), nn.Linear(6, 2)], params=50, kill=level_embedding, shape=(5,)
    ),
}
NOT_YET = {
    "transposed grouped": "grouped transposed convolution is kept whole",
}


@pytest.mark.parametrize("name", with_marks(CASES, NOT_YET))
def test_dead_channels_go_on_both_sides_of(name: str) -> None:
    outcome = shrunk_exactly(CASES[name])
    assert outcome.shrunk.report.params == CASES[name].params


def test_a_grouped_transposed_convolution_keeps_its_channels_and_the_report_names_it() -> None:
    report = shrunk_exactly(CASES["transposed grouped"]).shrunk.report
    assert report.params == report.params_dense
    assert report.unknown_ops == ()
    assert "grouped transposed convolution" in report.widths["0"].how


# ---------------------------------------------------------------------- attention


def unread_head(net: nn.Sequential) -> None:
    net[0].out.weight.data[:, 2:4] = 0.0


def silent_head(net: nn.Sequential) -> None:
    last = net[0].projections[-1]
    last.weight.data[-4:-2] = 0.0
    last.bias.data[-4:-2] = 0.0


def constant_head(net: nn.Sequential) -> None:
    net[0].projections[-1].weight.data[-4:-2] = 0.0


def attention(kill: Callable[[nn.Sequential], None], *, packed: bool, spelling: str) -> Case:
    """Three heads of two channels over four: two heads leave 3*4 rows of 4 columns, and 4 rows of 4."""
    return Case(
        layers=lambda: [SelfAttention(4, 3, 2, packed=packed, spelling=spelling), nn.Linear(4, 2)],
        params=12 * 5 + 4 * 5 + 10,
        kill=kill,
        shape=(5, 4),
    )


HEADS = {
    f"{spelling}, {'packed' if packed else 'separate'}, {kill.__name__}": attention(
        kill, packed=packed, spelling=spelling
    )
    for spelling in ("sdpa", "matmul", "einsum", "bmm")
    for packed in (True, False)
    for kill in (unread_head, silent_head, constant_head)
    if kill is not constant_head or spelling == "sdpa"  # the rows of a softmax sum to 1: sdpa alone is known
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_goes_as_a_whole_from_attention_written_as(name: str) -> None:
    outcome = shrunk_exactly(HEADS[name])
    assert outcome.shrunk.report.params == HEADS[name].params


def test_a_head_of_torchs_own_attention_goes() -> None:
    def kill(net: nn.Sequential) -> None:
        net[0].attention.out_proj.weight.data[:, :2] = 0.0

    case = Case(
        layers=lambda: [MultiheadAttention(6, 3), nn.Linear(6, 2)],
        params=12 * 7 + (6 * 4 + 6) + 14,
        kill=kill,
        shape=(5, 6),
    )
    assert shrunk_exactly(case).shrunk.report.params == case.params


# ---------------------------------------------------------------------- joins


class Joined(nn.Module):
    """Layers a, b and c joined by a function."""

    def __init__(self, join: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.join, self.layers = join, nn.ModuleDict(layers)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        return self.join(x, **self.layers) if y is None else self.join(x, y, **self.layers)


def joined(join: Callable[..., object], *dead: str, num_inputs: int = 1, **layers: nn.Module) -> int:
    """Return the parameters left when rows 0 and 1 of the `dead` layers emit zero, after the check."""
    net = fill(Joined(join, **layers), random.Random(0), with_zeros=False)
    for name in dead:
        net.layers[name].weight.data[:2] = 0.0
        net.layers[name].bias.data[:2] = 0.0
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(num_inputs)
    )
    return check(net, inputs).shrunk.report.params


def test_a_residual_channel_goes_when_both_of_its_writers_are_silent() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        x = a(x)
        return c(x + b(functional.relu(x)))

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 2, 1)}
    assert joined(join, "a", "b", **layers) == 16 + 20 + 10
    assert joined(join, "a", **layers) == 24 + 42 + 14  # b writes all six


def test_a_gate_made_of_another_layer_goes_with_what_it_gates() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        return c(a(x) * torch.sigmoid(b(x)))

    # six gates for six channels: both writers lose the two whose product is zero
    params = joined(join, "a", a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), c=nn.Conv2d(6, 2, 1))
    assert params == 16 + 16 + 10


def test_each_branch_of_a_concatenation_loses_its_own_channels() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        return c(torch.cat((a(x), b(x)), 1))

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(3, 6, 1), "c": nn.Conv2d(12, 2, 1)}
    assert joined(join, "a", **layers) == 16 + 24 + 22
    assert joined(join, "a", "b", **layers) == 16 + 16 + 18


def test_a_shortcut_without_weights_loses_its_slots_of_zeros() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        x = a(x)
        return c(b(x) + functional.pad(x, (0, 0, 0, 0, 2, 0)))

    # the two slots before the four channels are what b's rows 0 and 1 write: 4 rows of 4 stay of b
    params = joined(join, "b", a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 6, 1), c=nn.Conv2d(6, 2, 1))
    assert params == 16 + 20 + 10


def test_a_layer_used_twice_loses_channels_that_both_uses_can_spare() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        return c(b(functional.relu(b(a(x)))))

    params = joined(join, "a", "b", a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 6, 1), c=nn.Conv2d(6, 2, 1))
    assert params == 16 + 20 + 10


def test_a_weight_shared_by_two_layers_is_cut_once() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        return c(functional.relu(a(x)) + functional.gelu(b(x)))

    a, b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
    b.weight = a.weight
    # one weight of 4*3 and two biases of 4
    assert joined(join, "a", "b", a=a, b=b, c=nn.Conv2d(6, 2, 1)) == 12 + 4 + 4 + 10


def test_several_inputs_and_outputs_are_kept_and_what_is_dead_between_them_goes() -> None:
    def join(x: Tensor, y: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> tuple[Tensor, Tensor]:
        x = a(x) + a(y)
        return b(x), c(functional.relu(x)).mean((2, 3))

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 2, 1), "c": nn.Conv2d(6, 2, 1)}
    assert joined(join, "a", num_inputs=2, **layers) == 16 + 10 + 10


def test_a_block_that_adds_nothing_goes_whole() -> None:
    def join(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module, d: nn.Module) -> Tensor:
        x = a(x)
        x = x + c(functional.relu(b(x)))
        return d(x)

    block = {"b": nn.Conv2d(4, 8, 3, padding=1), "c": nn.Conv2d(8, 4, 3, padding=1)}
    layers = {"a": nn.Conv2d(3, 4, 1), **block, "d": nn.Conv2d(4, 2, 1)}
    net = fill(Joined(join, **layers), random.Random(0), with_zeros=False)
    net.layers["c"].weight.data.zero_()
    net.layers["c"].bias.data.zero_()
    outcome = check(net, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    assert outcome.shrunk.report.params == 16 + 10  # the stem and the last layer
