"""Tiny networks around one operation, for the tests that show what the shrink does with it.

A stem writes six channels of which two are dead, the operation follows, and a last layer reads what is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from random_layers import fill
from random_networks import Outcome, check
from torch import Tensor, nn

Kill = Callable[[nn.Sequential], None]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, what is dead in it, and how many parameters it has without that.

    Attributes:
        layers: stem, operation, last layer; built anew for every test.
        params: the count after the shrink, worked out by hand.
        kill: zeroes something in the network, in place.
        shape: of one input, without the batch axis.
    """

    layers: Callable[[], Sequence[nn.Module]]
    params: int
    kill: Kill
    shape: tuple[int, ...] = (3, 6, 6)


def constant(*rows: int) -> Kill:
    """The stem's `rows` have weights of zero: each emits its bias."""

    def kill(net: nn.Sequential) -> None:
        axis = 1 if isinstance(net[0], nn.modules.conv._ConvTransposeNd) else 0
        net[0].weight.data.index_fill_(axis, torch.tensor(rows or (0, 1)), 0.0)

    return kill


def silent(*rows: int) -> Kill:
    """The stem's `rows` emit zero."""

    def kill(net: nn.Sequential) -> None:
        constant(*rows)(net)
        net[0].bias.data[list(rows or (0, 1))] = 0.0

    return kill


def unread(*columns: int) -> Kill:
    """The last layer reads none of `columns`."""

    def kill(net: nn.Sequential) -> None:
        net[-1].weight.data[:, list(columns or (0, 1))] = 0.0

    return kill


def around(
    *operation: Callable[[], nn.Module], width: int = 6, after: int = 6, rank: int = 2
) -> Callable[[], list[nn.Module]]:
    """Return what builds stem (3 to `width`), operation and last layer (`after` to 2), both without a kernel.

    Two dead channels that go leave 4*3 + 4 numbers in the stem and 4*2 + 2 in the last layer: 26.
    """
    convolution = CONVOLUTIONS[rank]
    return lambda: [
        convolution(3, width, 1),
        *(make() for make in operation),
        convolution(after, 2, 1),
    ]


def on_tokens(
    *operation: Callable[[], nn.Module], width: int = 6, after: int = 6
) -> Callable[[], list[nn.Module]]:
    """Return the same on tokens [N, T, 3], with linear layers."""
    return lambda: [nn.Linear(3, width), *(make() for make in operation), nn.Linear(after, 2)]


def built(case: Case) -> tuple[nn.Sequential, tuple[Tensor, ...]]:
    """Return the network of a case with its zeros, equal in every run, and its example inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(*case.layers())
    fill(net, random.Random(0), with_zeros=False)
    case.kill(net)
    generator = torch.Generator().manual_seed(0)
    if isinstance(net[0], nn.Embedding):
        return net, (torch.randint(0, 10, (2, *case.shape), generator=generator),)
    return net, (torch.randn(2, *case.shape, generator=generator, dtype=torch.float64),)


def shrunk_exactly(case: Case) -> Outcome:
    """Return the checked result of the shrink of a case."""
    return check(*built(case))


def maker(kind: Callable[..., nn.Module], *args: object, **kwargs: object) -> Callable[[], nn.Module]:
    """Return what builds one layer."""
    return partial(kind, *args, **kwargs)


def with_marks(names: Collection[str], not_yet: Mapping[str, str]) -> list[object]:
    """Return the names as test parameters; those in `not_yet` are expected to fail for the reason given."""
    assert set(not_yet) <= set(names)
    return [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=not_yet[name]))
        if name in not_yet
        else name
        for name in names
    ]
