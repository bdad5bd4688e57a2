"""Random networks are shrunk exactly, whatever they are made of; what failed once is a test of its own."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_layers import Apply, FreeProduct, fill
from random_networks import BAR, STEPS, check, error_on, fresh_inputs, random_network
from random_steps import POINTWISE
from torch import Tensor, nn

from ticket_export.shrink.exact import shrink

# N images, C channels

FIXTURES = [HealthCheck.function_scoped_fixture]  # the collector may rest over all examples
SEEDS = st.integers(0, 2**31)


@pytest.fixture
def seldom_collected() -> Iterator[None]:
    """Tracing makes millions of short-lived objects: the collector would take a third of the time."""
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def holds(seed: int) -> None:
    if gc.get_count()[0] > 3_000_000:
        gc.collect()
    drawn = random_network(seed)
    try:
        outcome = check(drawn.net, drawn.inputs, seed=seed, **drawn.options)
    except Exception as error:
        error.add_note(drawn.words())
        raise
    assert outcome.error <= BAR


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=FIXTURES)
@given(seed=SEEDS)
def test_random_networks_are_shrunk_exactly(seldom_collected: None, seed: int) -> None:
    holds(seed)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=FIXTURES)
@given(seed=SEEDS)
def test_many_random_networks_are_shrunk_exactly(seldom_collected: None, seed: int) -> None:
    holds(seed)


@pytest.mark.parametrize("seed", [6001, 6002, 6013, 6015, 6016, 6018])
def test_what_is_shrunk_once_has_nothing_more_to_lose(seed: int) -> None:
    drawn = random_network(seed)
    once = shrink(drawn.net, drawn.inputs)
    again = shrink(once.model, drawn.inputs)
    assert again.report.params == once.report.params < once.report.params_dense


def test_a_weight_that_is_off_by_a_millionth_is_seen() -> None:
    drawn = random_network(6001)
    small = shrink(drawn.net, drawn.inputs).model
    trials = fresh_inputs(drawn.net, drawn.inputs, 0)
    assert max(error_on(trial, small, drawn.net) for trial in trials) <= BAR
    for parameter in small.parameters():
        parameter.data.mul_(1 + 1e-6)
    assert max(error_on(trial, small, drawn.net) for trial in trials) > BAR


def test_a_seed_gives_the_same_network_again() -> None:
    one, other = random_network(7), random_network(7)
    assert one.words() == other.words()
    assert all(torch.equal(a, b) for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True))


def test_random_networks_hold_every_kind_of_layer() -> None:
    kinds = {kind for seed in range(400) for kind in random_network(seed).kinds}
    assert kinds == {*STEPS, "head", "several inputs", "several outputs"}


# ---------------------------------------------------------------------- what random networks found


def images(*shape: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, *(shape or (3, 6, 6)), generator=generator, dtype=torch.float64),)


def test_filters_of_one_plane_each_keep_their_groups() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    small = check(net, images()).shrunk.model
    assert small[0].groups == 3


class BufferIndex(nn.Module):
    """Channels of the input in an order that a buffer holds."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 2, 1)
        self.register_buffer("index", torch.tensor([0, 2, 1]))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        picked = x_NCHW[:, self.index] if self.how == "index" else x_NCHW.index_select(1, self.index)
        return self.conv(picked)


@pytest.mark.parametrize("how", ["index", "index_select"])
def test_an_index_that_is_a_buffer_is_no_channel(how: str) -> None:
    small = check(BufferIndex(how).double().eval(), images()).shrunk.model
    assert torch.equal(small.index, torch.tensor([0, 2, 1]))


class Unused(nn.Module):
    """A layer whose result nobody reads stands in the forward beside a norm in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)
        self.unused = nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW)
        self.unused(x.mean((2, 3)))
        return self.last(self.norm(x))


def test_a_norm_in_groups_loses_a_group_in_the_graph_form() -> None:
    net = Unused().double().eval()
    net.first.weight.data[:2] = 0.0
    assert check(net, images()).shrunk.plan.kept["first.weight"][0] == (2, 3)


def test_a_transposed_convolution_with_a_group_per_channel_widens_exactly() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 6, 2, groups=3), nn.Conv2d(6, 2, 1)).double().eval()
    assert check(net, images()).shrunk.model[0].weight.shape == (3, 2, 2, 2)


class AnyInputs(nn.Module):
    """The forward takes as many inputs as it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, *images_NCHW: Tensor) -> Tensor:
        return self.conv(images_NCHW[0])


def test_a_forward_may_star_its_inputs() -> None:
    assert check(AnyInputs().double().eval(), images()).error <= BAR


class Gram(nn.Module):
    """Tokens times themselves, in one einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(5, 2)

    def forward(self, x_NTC: Tensor) -> Tensor:
        x = self.first(x_NTC)
        return self.last(torch.einsum("nic,njc->nij", x, x))


def test_an_einsum_of_a_tensor_with_itself_is_exact() -> None:
    assert check(Gram().double().eval(), images(5, 3)).error <= BAR


def test_a_matrix_that_reads_constants_alone_keeps_the_one_it_needs() -> None:
    net = nn.Sequential(
        nn.Linear(3, 6), FreeProduct(6, 4, "matmul"), Apply("sqrt", POINTWISE["sqrt"]), nn.Linear(4, 2)
    )
    net = fill(net, random.Random(0), with_zeros=False)
    net[0].weight.data[:2] = 0.0
    net[1].weight.data[2:] = 0.0  # what the two constant channels give is constant, and has no bias to be in
    outcome = check(net, images(5, 3))
    assert outcome.shrunk.report.params < outcome.shrunk.report.params_dense


def test_a_shuffle_of_one_channel_per_group_loses_groups() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ChannelShuffle(5), nn.Conv2d(5, 2, 1)).double().eval()
    net[0].weight.data[:1] = 0.0
    assert check(net, images()).shrunk.report.params == 4 * 3 + 4 + 4 * 2 + 2


def test_a_norm_without_tensors_is_told_its_new_width() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6), nn.Conv2d(6, 2, 1)).double().eval()
    net[0].weight.data[:2] = 0.0
    assert check(net, images()).shrunk.model[1].num_features == 4


class UnreadNorm(nn.Module):
    """A norm without tensors stands in the forward, and nobody reads its result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW)
        self.norm(x)
        return self.last(x)


def test_a_norm_without_tensors_or_readers_is_told_its_new_width() -> None:
    net = UnreadNorm().double().eval()
    net.first.weight.data[:2] = 0.0
    assert check(net, images()).shrunk.model.norm.num_features == 4
