"""Networks that share, view, hook, mask and wrap in odd ways are shrunk right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import Small, equal_result, hidden_width
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from ticket_export.shrink.exact import shrink

# N batch, C channels, H W pixels, F features, K outputs, T tokens


@pytest.fixture(autouse=True)
def _equal_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4)


# parameters shared in odd ways


class OneWeightTwoNames(Small):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 6)
        self.b.weight = self.a.weight

    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF) + torch.tanh(self.b(x_NF)))


def test_one_weight_under_two_names_stays_one(x: Tensor) -> None:
    shrunk = equal_result(OneWeightTwoNames(), x)
    assert hidden_width(shrunk) == 3
    assert shrunk.model.a.weight is shrunk.model.b.weight


class WeightReadAsATensor(Small):
    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF)) * self.a.weight.sum()


def test_a_weight_that_is_also_read_as_a_tensor_stays_whole(x: Tensor) -> None:
    assert equal_result(WeightReadAsATensor(), x).model.a.weight.shape == (6, 4)


class OneConvTwice(nn.Module):
    """The same 3x3 convolution reads two streams with different dead channels."""

    def __init__(self) -> None:
        super().__init__()
        self.s, self.t = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.a, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.s.weight[::2] = 0.0
            self.t.weight[1::2] = 0.0
            self.a.weight[:3] = 0.0

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> object:
        both = torch.relu(self.a(self.s(x_NCHW))), torch.tanh(self.a(self.t(y_NCHW)))
        return self.c(torch.cat(both, dim=1))


def test_one_convolution_used_twice_keeps_what_either_use_needs() -> None:
    shrunk = equal_result(OneConvTwice(), torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6))
    assert shrunk.report.widths["s"].after == 8  # each channel is alive in one of the streams
    assert shrunk.report.widths["a"].after == 5


class OneConvTwiceInARow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s, self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.a.weight[::2] = 0.0

    def forward(self, x_NCHW: Tensor) -> object:
        return self.c(torch.relu(self.a(torch.relu(self.a(self.s(x_NCHW))))))


def test_one_convolution_that_reads_itself_is_right() -> None:
    equal_result(OneConvTwiceInARow(), torch.randn(2, 3, 6, 6))


class OneNormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.n, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.a.weight[::2] = 0.0
            self.b.weight[:4] = 0.0
            self.n.running_mean.normal_()
            self.n.bias.normal_()

    def forward(self, x_NCHW: Tensor) -> object:
        return self.c(torch.relu(self.n(self.a(x_NCHW))) + torch.relu(self.n(self.b(x_NCHW))))


def test_one_norm_used_twice_loses_what_is_dead_in_both() -> None:
    assert hidden_width(equal_result(OneNormTwice(), torch.randn(2, 3, 6, 6))) == 6


class TiedEmbedding(nn.Module):
    """A token model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.b = nn.Embedding(7, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.o = nn.Linear(8, 7, bias=False)
        self.o.weight = self.e.weight
        with torch.no_grad():
            self.a.weight[::2] = 0.0
            self.e.weight[2] = 0.0

    def forward(self, ids_NT: Tensor) -> object:
        return self.o(self.b(torch.relu(self.a(self.e(ids_NT)))))


def test_an_embedding_tied_to_the_output_layer_stays_tied_and_whole() -> None:
    shrunk = equal_result(TiedEmbedding(), torch.randint(0, 7, (2, 5)))
    assert hidden_width(shrunk) == 3
    assert shrunk.model.o.weight is shrunk.model.e.weight
    assert shrunk.model.e.weight.shape == (7, 8)


class ViewOfAnother(Small):
    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(self.a.weight.data[1:5])

    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF)) + functional.linear(x_NF, self.v).sum(1, keepdim=True)


class ViewsOfOneBuffer(Small):
    def __init__(self) -> None:
        super().__init__()
        flat = torch.randn(12, 4)
        flat[::2] = 0.0
        self.b = nn.Linear(4, 6)
        self.a.weight, self.b.weight = nn.Parameter(flat[:6]), nn.Parameter(flat[6:])

    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF) * torch.tanh(self.b(x_NF)))


@pytest.mark.parametrize("network", [ViewOfAnother, ViewsOfOneBuffer])
def test_parameters_that_are_views_of_one_memory_are_cut_apart(network: type[Small], x: Tensor) -> None:
    assert hidden_width(equal_result(network(), x)) == 3


# hooks, masks and wrappers


HOOKS: dict[str, Callable[[Small], object]] = {
    "output": lambda net: net.a.register_forward_hook(lambda _, __, out: out * 2 + 1),
    "input": lambda net: net.c.register_forward_pre_hook(lambda _, args: (args[0] + 1,)),
    "root": lambda net: net.register_forward_hook(lambda _, __, out: out * 3),
    "backward": lambda net: net.a.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_part_of_the_function(name: str, x: Tensor) -> None:
    net = Small()
    HOOKS[name](net)
    assert hidden_width(equal_result(net, x)) == 3


def test_a_mask_that_was_just_attached_counts_as_zeros(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    prune.ln_structured(net[0], "weight", 0.5, n=1, dim=0)
    assert equal_result(net, x).report.widths["0"].after == 3


def test_a_weight_norm_without_length_is_zeros(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    parametrizations.weight_norm(net[0])
    with torch.no_grad():
        net[0].parametrizations.weight.original0[::2] = 0.0
    assert equal_result(net, x).report.widths["0"].after == 3


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_older_weight_norm_is_shrunk_too(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    torch.nn.utils.weight_norm(net[0])
    with torch.no_grad():
        net[0].weight_g[::2] = 0.0
    assert equal_result(net, x).report.widths["0"].after == 3


class AnyNumberOfInputs(Small):
    def forward(self, *inputs: Tensor) -> object:
        return self.c(sum(self.hidden(value) for value in inputs))


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "star": AnyNumberOfInputs,
    "data parallel": lambda: nn.DataParallel(Small()),
    "compiled": lambda: torch.compile(Small(), backend="eager"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_forward_that_takes_any_number_of_inputs_is_traced(name: str, x: Tensor) -> None:
    assert min(change.after for change in equal_result(WRAPPED[name](), x).report.widths.values()) == 2


class FixedBatch(Small):
    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF.reshape(2, 4)))


def test_a_forward_that_fixes_its_batch_is_tried_at_that_batch(x: Tensor) -> None:
    shrunk = equal_result(FixedBatch(), x)
    assert hidden_width(shrunk) == 3
    assert not shrunk.report.dynamic_batch


class Counting(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_calls", torch.zeros(()))

    def forward(self, x_NF: Tensor) -> object:
        self.num_calls += 1
        return self.c(self.hidden(x_NF))


def test_a_network_that_counts_its_calls_is_given_back_unchanged(x: Tensor) -> None:
    net = Counting().eval()
    assert hidden_width(shrink(net, x)) == 3
    assert net.num_calls == 0


@pytest.mark.parametrize("when", ["made", "shrunk"])
def test_inference_mode_is_no_hindrance(when: str, x: Tensor) -> None:
    with torch.inference_mode(when == "made"):
        net = Small().eval()
    with torch.inference_mode(when == "shrunk"):
        assert hidden_width(shrink(net, x)) == 3
    assert hidden_width(equal_result(net, x)) == 3


def test_frozen_parameters_stay_frozen(x: Tensor) -> None:
    net = Small()
    net.a.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in equal_result(net, x).model.parameters()]
    assert flags == [False, False, True, True]
