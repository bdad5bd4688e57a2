"""Networks whose own forward holds a channel count are shrunk as a graph, and stay networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import Shrunk, shrink


class FixedWidth(nn.Module):
    """Its forward runs `function` on eight channels; conv, norm, function, head."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.LazyConv2d(4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(torch.relu(self.bn(self.conv(x)))))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda x: x.reshape(x.shape[0], 8, x.shape[2], x.shape[3]) * 2.0,
    "two_halves": lambda x: torch.cat((x[:, 5:], x[:, :5].tanh()), dim=1),
    "chunk": lambda x: torch.cat([part.sigmoid() for part in x.chunk(2, dim=1)][::-1], dim=1),
    "split": lambda x: torch.cat([part * 3.0 for part in torch.split(x, [1, 5, 2], dim=1)], dim=1),
    "select": lambda x: torch.stack((x[:, 2], x[:, 6]), dim=1),
    "shuffle": lambda x: x.reshape(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "index": lambda x: x[:, [6, 1, 0, 3, 2, 7]] * 2.0,
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([7, 5, 5, 2])),
    "pad_channels": lambda x: nn.functional.pad(x, (0, 0, 0, 0, 2, 3)),
}


def shrunk_net(name: str, images: Tensor) -> tuple[nn.Module, Shrunk]:
    torch.manual_seed(1)
    net = FixedWidth(FUNCTIONS[name]).double()
    net(images.double())  # the head takes its width from here
    with torch.no_grad():
        net.bn.bias.fill_(0.4)
        net.bn.running_mean.uniform_(-0.2, 0.2)
        net.conv.weight[[0, 3, 7]] = 0.0
    net.eval()
    return net, shrink(net, images.double())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_forward_that_holds_a_width_is_shrunk_exactly(name, images):
    net, shrunk = shrunk_net(name, images)
    assert shrunk.report.params < shrunk.report.params_dense
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 14, 9)):
        x = torch.randn(*shape, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(shrunk.model(x), net(x)) <= 1e-9


def test_the_graph_form_is_taken_only_where_the_module_form_breaks(images, plain_net):
    assert shrunk_net("reshape", images)[1].report.form == "graph"
    plain_net.conv1.weight.data[:4] = 0.0
    assert shrink(plain_net, images).report.form == "module"


def test_a_graph_trains_like_a_network(images):
    _, shrunk = shrunk_net("reshape", images)
    model = copy.deepcopy(shrunk.model).float().train()
    before = model.bn.running_mean.clone()
    model(images).square().mean().backward()
    assert not torch.equal(model.bn.running_mean, before)
    assert model.conv.weight.grad is not None
    frozen = model.eval().bn.running_mean.clone()
    model(images)
    assert torch.equal(model.bn.running_mean, frozen)


def test_a_graph_keeps_the_keys_of_the_dense_network(images):
    net, shrunk = shrunk_net("split", images)
    assert set(shrunk.model.state_dict()) == set(net.state_dict())


def test_a_graph_comes_back_from_its_bundle_bit_for_bit(images, tmp_path):
    net, shrunk = shrunk_net("reshape", images)
    save_bundle(shrunk, tmp_path)
    small = load_bundle(tmp_path, copy.deepcopy(net)).eval()
    x = torch.randn(3, 3, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(small(x), shrunk.model(x))
