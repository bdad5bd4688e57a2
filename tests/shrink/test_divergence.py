"""A broken layer is named; networks that are equal on what was kept have no first difference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pruning_laws import with_zeros
from torch import Tensor, nn

from ticket_export.channels.constants import find_constants
from ticket_export.channels.graph import groups_from_labels
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.trace import trace
from ticket_export.models.load import build
from ticket_export.shrink.divergence import first_difference
from ticket_export.shrink.exact import Shrunk, shrink
from ticket_export.shrink.removable import Decision, decide, sinks_of


@dataclass(frozen=True)
class Pair:
    """A dense network with its zeros, what the shrink made of it, and what was decided."""

    dense: nn.Module
    shrunk: Shrunk
    graph: LabelledGraph
    decision: Decision
    images: Tensor

    def first_difference(self, small: nn.Module | None = None) -> str | None:
        return first_difference(
            self.shrunk.model if small is None else small,
            self.dense,
            self.shrunk.plan,
            self.graph,
            self.decision,
            (self.images,),
            tolerance=1e-5,
        )

    def broken(self, layer: str, breaks: Callable[[nn.Module], None]) -> nn.Module:
        small = copy.deepcopy(self.shrunk.model)
        with torch.no_grad():
            breaks(small.get_submodule(layer))
        return small


def pair(dense: nn.Module, images: Tensor, *, round_to: int = 1) -> Pair:
    graph = label(trace(dense, images))
    decision = decide(
        graph, sinks_of(graph, find_constants(graph)), groups_from_labels(graph), round_to=round_to
    )
    return Pair(dense, shrink(dense, images, round_to=round_to), graph, decision, images)


def flip_a_sign(layer: nn.Module) -> None:
    largest = layer.weight.flatten(1).abs().sum(dim=1).argmax()
    layer.weight[largest] *= -1.0


def shift_the_bias(layer: nn.Module) -> None:
    layer.bias += 0.5


def swap_two_rows(layer: nn.Module) -> None:
    layer.weight.copy_(layer.weight.roll(1, dims=0))


@pytest.mark.parametrize(("law", "round_to"), [("both", 1), ("both", 4), ("one_left", 1), ("rows", 4)])
def test_equal_networks_have_no_first_difference(tiny_net, images, law, round_to):
    assert pair(with_zeros(tiny_net, law), images, round_to=round_to).first_difference() is None


CONVOLUTIONS = {
    "plain": ("conv1", "conv2"),
    "residual": ("stem", "conv1", "conv2", "conv3", "conv4", "project"),
    "concat": ("left", "right", "join"),
    "depthwise": ("stem", "expand", "depthwise", "project"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_broken_convolution_is_named(request, images, name):
    found = pair(with_zeros(request.getfixturevalue(f"{name}_net"), "columns"), images)
    assert found.first_difference() is None
    for layer in CONVOLUTIONS[name]:
        for breaks in (flip_a_sign, swap_two_rows):
            text = str(found.first_difference(found.broken(layer, breaks)))
            assert text.startswith(f"first difference after {layer}: relative error ")


def test_a_shifted_bias_is_named(residual_net, images):
    found = pair(with_zeros(residual_net, "columns"), images)
    for layer in ("bn", "bn1", "bn2", "bn_project", "linear"):
        text = str(found.first_difference(found.broken(layer, shift_the_bias)))
        assert text.startswith(f"first difference after {layer}: relative error ")


def test_the_error_is_that_of_the_layer(plain_net, images):
    found = pair(plain_net, images)

    def double(layer: nn.Module) -> None:
        layer.weight *= 2.0

    text = found.first_difference(found.broken("conv2", double))
    assert text == "first difference after conv2: relative error 1"


def test_a_layer_whose_constants_moved_behind_it_is_passed_over():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight[1] = 0.0  # its bias is a constant that the next layer reads
    found = pair(net, torch.randn(2, 3, 5, 5))
    assert [fold.kind for fold in found.shrunk.plan.folds] == ["running_mean"]
    x = torch.randn(2, 3, 5, 5)
    inner = (net[:2](x)[:, :5], found.shrunk.model[:2](x))
    assert not torch.allclose(*inner, atol=1e-3)  # they differ, by design
    assert found.first_difference() is None
    assert "after 2: " in str(found.first_difference(found.broken("2", shift_the_bias)))


def test_carriers_and_fillers_may_differ(plain_net, images):
    with torch.no_grad():
        plain_net.conv2.weight[:, 1:] = 0.0  # nothing reads them: round_to fills up with some of them
    found = pair(plain_net, images, round_to=4)
    assert found.shrunk.model.conv1.weight.shape[0] == 4
    assert found.first_difference() is None
    filler = next(
        row for row, position in enumerate(found.shrunk.plan.kept["conv1.weight"][0]) if position != 0
    )

    def change_the_filler(layer: nn.Module) -> None:
        layer.weight[filler] += 1.0

    def change_the_channel_that_is_read(layer: nn.Module) -> None:
        layer.weight[found.shrunk.plan.kept["conv1.weight"][0].index(0)] += 1.0

    assert found.first_difference(found.broken("conv1", change_the_filler)) is None
    text = found.first_difference(found.broken("conv1", change_the_channel_that_is_read))
    assert "after conv1: " in str(text)


RESNET20_LAYERS = ("conv1", "layer1.0.conv1", "layer1.2.conv2", "layer2.0.conv2", "layer3.1.bn2", "linear")


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_the_broken_layer_of_a_residual_stream_is_named(shortcut):
    net = build("zoo:resnet20", {"shortcut": shortcut}, num_classes=10, image_shape=(3, 8, 8), seed=0)
    found = pair(with_zeros(net, "both"), torch.randn(2, 3, 8, 8))
    assert found.first_difference() is None
    # constants of a layer may have moved into the mean of the norm behind it
    moved = {fold.weight for fold in found.shrunk.plan.folds if fold.kind == "running_mean"}
    for layer in RESNET20_LAYERS:
        module = found.shrunk.model.get_submodule(layer)
        breaks = shift_the_bias if isinstance(module, nn.BatchNorm2d) else flip_a_sign
        text = str(found.first_difference(found.broken(layer, breaks)))
        named = layer.replace("conv", "bn") if f"{layer}.weight" in moved else layer
        assert text.startswith(f"first difference after {named}: relative error ")


class Shuffled(nn.Module):
    """Its forward holds a channel count, and it calls one activation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = x.reshape(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.head(self.relu(self.inner(x)))


@pytest.fixture
def shuffled(images) -> Pair:
    torch.manual_seed(2)
    net = Shuffled().eval()
    with torch.no_grad():
        net.bn.bias.fill_(0.4)
        net.conv.weight[[0, 3, 7]] = 0.0
    return pair(net, images)


def test_the_broken_layer_of_a_graph_is_named(shuffled):
    assert shuffled.shrunk.report.form == "graph"
    assert shuffled.first_difference() is None
    for layer in ("conv", "inner", "head"):
        text = str(shuffled.first_difference(shuffled.broken(layer, flip_a_sign)))
        assert text.startswith(f"first difference after {layer}: relative error ")


def test_the_second_call_of_a_layer_is_told_from_the_first(images):
    torch.manual_seed(2)
    net = Shuffled().eval()
    found = pair(net, images)
    small = copy.deepcopy(found.shrunk.model)
    num_calls = [0]

    def wrong_from_the_second_call_on(_module: nn.Module, _inputs: object, value: Tensor) -> Tensor:
        num_calls[0] += 1
        return value + 1.0 if num_calls[0] > 1 else value

    small.relu.register_forward_hook(wrong_from_the_second_call_on)
    text = found.first_difference(small)
    assert str(text).startswith("first difference after relu (call 2): ")


def test_a_wrong_shape_is_a_difference(plain_net, images):
    found = pair(with_zeros(plain_net, "columns"), images)
    kept = found.shrunk.model.conv1.out_channels
    text = found.first_difference(plain_net)
    assert text == f"first difference after conv1: shape (2, 8, 8, 8), expected (2, {kept}, 8, 8)"


def test_nan_is_a_difference(plain_net, images):
    def spoil(layer: nn.Module) -> None:
        layer.weight.fill_(float("nan"))

    found = pair(plain_net, images)
    text = found.first_difference(found.broken("conv2", spoil))
    assert text == "first difference after conv2: relative error nan"


def test_neither_network_is_changed(residual_net, images):
    found = pair(with_zeros(residual_net, "both").train(), images)
    small = found.shrunk.model
    before = copy.deepcopy(small.state_dict())
    assert found.first_difference() is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert small.training
    assert residual_net.training
    assert not any(module._forward_hooks for net in (small, residual_net) for module in net.modules())
