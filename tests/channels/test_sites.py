"""Sites and their counted costs: the sum over sites is what the network has, dense or cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.cost_models import (
    MacCosts,
    WeightCosts,
    channel_prices,
    free_widths,
    network_cost,
)
from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.channels.sites import layer_sites
from ticket_export.errors import ShrinkError
from ticket_export.models.zoo import zoo_network
from ticket_export.shrink.surgery import small_from_mask


class Concat(nn.Module):
    """Two convolutions side by side, read by a third; the first one's weights are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1, bias=False)
        self.join = nn.Conv2d(10, 5, 3, stride=2, padding=1)
        self.linear = nn.Linear(5 * 4 * 4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        left = torch.relu(self.left(x_NCHW) + self.left(x_NCHW.flip(3)))
        y_NCHW = torch.cat([left, self.right(x_NCHW)], dim=1)
        return self.linear(torch.relu(self.join(y_NCHW)).flatten(1))


def network(name: str) -> tuple[nn.Module, Tensor]:
    if name == "concat":
        return Concat().eval(), torch.randn(2, 3, 8, 8)
    shape = (1, 28, 28) if name == "lenet300_100" else (3, 32, 32)
    return zoo_network(name, num_classes=10, image_shape=shape, args={}).eval(), torch.randn(2, *shape)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "conv2", "lenet300_100", "supernet", "concat"])
def test_sites_add_up_to_the_counted_costs_dense_and_cut(name: str) -> None:
    model, x_NCHW = network(name)
    groups = channel_groups(model, x_NCHW)
    sites = layer_sites(model, x_NCHW, groups)
    widths = free_widths(groups)
    generator = torch.Generator().manual_seed(1)
    keep = {g.name: torch.rand(g.width, generator=generator) < 0.6 for g in groups if g.name in widths}
    for keep_C in keep.values():
        keep_C[0] = True
    mask = Mask(keep)
    weights = WeightCosts(model, sites)
    for kept, cut in ((widths, model), (mask.kept_widths(), small_from_mask(model, groups, mask))):
        counted = count_costs(cut, x_NCHW)
        assert network_cost(weights, sites, kept) == counted.params
        assert network_cost(MacCosts(), sites, kept) == counted.macs


def test_a_flatten_gives_a_channel_several_columns_and_a_concatenation_several_parts() -> None:
    model, x_NCHW = network("concat")
    sites = {site.name: site for site in layer_sites(model, x_NCHW, channel_groups(model, x_NCHW))}
    assert sites["join"].columns.parts == (("left", 1), ("right", 1))
    assert sites["linear"].columns.parts == (("join", 16),)
    assert sites["linear"].columns.width({"join": 2}) == 32


def test_the_price_of_a_channel_is_what_the_network_saves_without_it() -> None:
    model, x_NCHW = network("resnet20")
    groups = channel_groups(model, x_NCHW)
    sites, widths = layer_sites(model, x_NCHW, groups), free_widths(groups)
    # layer1.0.conv1 -> conv2: 3x3 x 16 channels in and out at 32x32, twice
    assert channel_prices(MacCosts(), sites, widths)["layer1.0.conv1"] == 2 * 9 * 16 * 32 * 32


def test_a_grouped_convolution_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2))
    with pytest.raises(ShrinkError, match="1 is a convolution in 2 groups"):
        layer_sites(model, torch.randn(2, 4, 8, 8), [])
