"""Layers that compute their weight from parameters: they become torch's own where that is equal."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink

# N images, C channels, H W pixels


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, times a gain."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.gain = nn.Parameter(torch.full((out_channels, 1, 1, 1), 0.3))

    def weight_now(self) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) / (variance + 1e-6).sqrt() * self.gain

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return functional.conv2d(x_NCHW, self.weight_now(), self.bias, padding=1)


class Shifted(Standardised):
    """Its forward does more than its convolution."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(functional.pad(x_NCHW, (1, 0, 1, 0)))


def network(first: type[nn.Module] = Standardised) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(first(3, 8), nn.ReLU(), Standardised(8, 6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        net[0].weight[:4] = 0.0
        net[4].weight[:, :2] = 0.0
    return net.double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_zero_filter_and_an_unread_one_go_from_standardised_layers(tmp_path: Path):
    net = network()
    shrunk = shrink(net, images(2, 3, 8, 8), padded_constants="term")
    assert relative_error(shrunk.model(images(3, 3, 9, 9)), net(images(3, 3, 9, 9))) <= 1e-9
    assert (shrunk.model[0].out_channels, shrunk.model[2].out_channels) == (4, 4)
    assert shrunk.plan.standard == ("0", "2")
    assert not [name for name in shrunk.model.state_dict() if "gain" in name]
    save_bundle(shrunk, tmp_path)
    loaded = load_bundle(tmp_path, network()).eval()
    assert torch.equal(loaded(images(1, 3, 8, 8)), shrunk.model(images(1, 3, 8, 8)))


def test_a_layer_whose_forward_does_more_stays_what_it_is():
    net = network(Shifted)
    shrunk = shrink(net, images(2, 3, 8, 8))
    assert relative_error(shrunk.model(images(3, 3, 9, 9)), net(images(3, 3, 9, 9))) <= 1e-9
    assert shrunk.plan.standard == ("2",)
    assert type(shrunk.model[0]) is Shifted
    assert shrunk.model[2].out_channels == 4
