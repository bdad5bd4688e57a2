"""What is a constant, and above all what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.constants import find_constants
from ticket_export.channels.labels import label
from ticket_export.channels.trace import trace


def head_columns(net: nn.Module, inputs: Tensor) -> tuple[list[bool], list[float]]:
    """Return what the layer called `head` sees on its input channels."""
    graph = label(trace(net, inputs))
    found = find_constants(graph)
    (columns,) = (found.columns[c.node] for c in graph.contractions if c.weight == "head.weight")
    return columns.is_constant.tolist(), columns.value.tolist()


class Probe(nn.Module):
    """A convolution whose channel 0 is zeroed, then `function`, then the head that is looked at."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, bias: float = 0.5) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.function = function
        with torch.no_grad():
            self.conv.weight[0] = 0.0
            self.conv.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x)))


def test_a_zeroed_filter_before_a_norm_emits_the_activation_of_beta(plain_net, images):
    net = nn.Sequential()
    net.conv, net.bn, net.act = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU()
    net.head = nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        net.conv.weight[1] = 0.0
        net.bn.running_mean.fill_(0.3)
        net.bn.running_var.fill_(2.0)
        net.bn.bias.fill_(0.7)
    is_constant, value = head_columns(net, images)
    emitted = torch.nn.functional.silu(torch.tensor(0.7 - 0.3 / (2.0 + 1e-5) ** 0.5, dtype=torch.float64))
    assert is_constant == [False, True, False, False]
    assert value[1] == pytest.approx(float(emitted), rel=1e-7)


def test_a_gamma_of_zero_makes_a_live_channel_constant(images):
    net = nn.Sequential()
    net.conv, net.bn, net.head = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        net.bn.weight[2] = 0.0
        net.bn.bias[2] = -1.25
    assert head_columns(net, images) == ([False, False, True], [0.0, 0.0, -1.25])


# each of these turns a live channel into numbers that often do not change from one input to the next
LOOK_CONSTANT = {
    "where": lambda x: torch.where(x > -1e9, torch.zeros_like(x), x),
    "comparison": lambda x: (x > -1e9).float(),
    "sign": lambda x: torch.sign(x.abs() + 1.0),
    "cast": lambda x: (x * 1e-9).to(torch.int32).float(),
    "bool_cast": lambda x: (x.abs() + 1.0).bool().float(),
    "nan_to_num": lambda x: torch.nan_to_num(x),
    "fmax": lambda x: torch.fmax(x, torch.full_like(x, 1e9)),
    "fmin": lambda x: torch.fmin(x, torch.full_like(x, -1e9)),
    "heaviside": lambda x: torch.heaviside(x.abs() + 1.0, torch.ones_like(x)),
    "clamp": lambda x: torch.clamp(x, 0.0, 0.0),
    "argmax": lambda x: x.argmax(dim=2, keepdim=True).float().expand_as(x),
    "sort": lambda x: torch.sort(x, dim=2).values,
    "topk": lambda x: torch.topk(x, 1, dim=2).values.expand_as(x),
    "floor": lambda x: torch.floor(x * 1e-9),
}


@pytest.mark.parametrize("name", LOOK_CONSTANT)
def test_a_live_channel_is_never_taken_for_a_constant(name, images):
    is_constant, _ = head_columns(Probe(LOOK_CONSTANT[name]), images)
    assert is_constant[1:] == [False, False]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.mean((2, 3), keepdim=True), 0.5),
        (lambda x: x.amax((2, 3), keepdim=True), 0.5),
        (lambda x: nn.functional.max_pool2d(x, 3, 2, 1), 0.5),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 1), 0.5),
        (lambda x: nn.functional.avg_pool2d(x, 2), 0.5),
        (lambda x: nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 0.5),
        (lambda x: x * 0.0 + 2.0, 2.0),
        (lambda x: nn.functional.interpolate(x, scale_factor=2.0), 0.5),
        (lambda x: nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), 0.5),
    ],
)
def test_a_constant_stays_known_through(function, expected, images):
    is_constant, value = head_columns(Probe(function), images)
    assert is_constant[0]
    assert value[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.functional.avg_pool2d(x, 3, 1, 1),  # counted padding: smaller at the border
        lambda x: nn.functional.avg_pool2d(x, 2, divisor_override=3),
        lambda x: x.sum((2, 3), keepdim=True),  # grows with the resolution
        lambda x: nn.functional.pad(x, (1, 1, 1, 1)),
    ],
)
def test_a_constant_that_changes_over_positions_or_sizes_is_given_up(function, images):
    is_constant, _ = head_columns(Probe(function), images)
    assert not is_constant[0]


def test_a_zero_constant_survives_zero_padding(images):
    is_constant, value = head_columns(Probe(lambda x: nn.functional.avg_pool2d(x, 3, 1, 1), bias=0.0), images)
    assert is_constant[0]
    assert value[0] == 0.0


def test_a_padded_layer_on_a_live_constant_is_not_constant(images):
    net = nn.Sequential()
    net.conv, net.padded, net.head = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.bias.fill_(1.0)
    assert head_columns(net, images)[0] == [False]


def test_zero_times_a_live_value_is_zero_but_its_sum_is_not(images):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
            self.scale = nn.Parameter(torch.tensor([0.0, 1.0]).reshape(2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x) * self.scale)

    assert head_columns(Product(), images) == ([True, False], [0.0, 0.0])
