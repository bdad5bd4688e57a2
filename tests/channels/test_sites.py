from __future__ import annotations

import pytest
import torch
from torch import nn

from ticket_export.channels.cost_models import MacCosts, WeightCosts, counted_costs, network_cost, width_grid
from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.channels.sites import Axis, layer_sites
from ticket_export.errors import ShrinkError
from ticket_export.models.zoo import zoo_network
from ticket_export.shrink.surgery import small_from_mask

ZOO = {
    "resnet20": {},
    "resnet20-pad": {"shortcut": "pad"},
    "mobilenet_v1": {},
    "lenet300_100": {},
    "conv2": {},
}


def _built(name, tiny):
    if name in tiny:
        return tiny[name], torch.zeros(2, 3, 8, 8)
    shape = (3, 16, 16)
    return zoo_network(name.partition("-")[0], ZOO[name], num_classes=10, image_shape=shape), torch.zeros(
        2, *shape
    )


@pytest.fixture
def tiny(plain_net, residual_net, concat_net, depthwise_net):
    return {"plain": plain_net, "residual": residual_net, "concat": concat_net, "depthwise": depthwise_net}


@pytest.mark.parametrize("name", [*ZOO, "plain", "residual", "concat", "depthwise"])
def test_the_sum_over_sites_is_what_is_counted_of_dense_and_of_random_masks(name, tiny):
    net, x = _built(name, tiny)
    groups = channel_groups(net, x)
    sites = layer_sites(net, x, groups)
    dense = {group.name: group.width for group in groups}
    costs = [
        counted_costs(net, x, sites, kind=kind, dense=dense) for kind in ("param_fraction", "mac_fraction")
    ]
    fixed = sum(p.numel() for p in net.parameters()) - network_cost(WeightCosts(fixed_params=0), sites, dense)
    assert costs[1].fixed() == 0
    assert costs[0].fixed() == fixed
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        keep = {}
        for group in groups:
            keep[group.name] = torch.rand(group.width, generator=generator) < 0.5
            keep[group.name][0] = True
            if group.pinned is not None:
                keep[group.name][:] = True
        mask = Mask(keep)
        counted = count_costs(small_from_mask(net, groups, mask), x)
        kept = mask.kept_widths()
        assert network_cost(costs[0], sites, kept) == counted.params
        assert network_cost(costs[1], sites, kept) == counted.macs


def test_a_concatenation_gives_parts_and_a_flatten_several_elements_per_channel(concat_net):
    x = torch.zeros(2, 3, 8, 8)
    sites = {site.name: site for site in layer_sites(concat_net, x, channel_groups(concat_net, x))}
    assert sites["join"].columns == Axis(fixed=0, parts=(("left", 1), ("right", 1)))
    assert sites["left"].columns == Axis(fixed=3, parts=())
    assert sites["linear"].rows == Axis(fixed=4, parts=())
    net = zoo_network("conv2", {}, num_classes=10, image_shape=(1, 8, 8))
    x = torch.zeros(2, 1, 8, 8)
    sites = {site.name: site for site in layer_sites(net, x, channel_groups(net, x))}
    assert sites["fc1"].columns == Axis(fixed=0, parts=(("features.2", 16),))


def test_a_site_says_where_its_layer_stands(residual_net):
    x = torch.zeros(2, 3, 8, 8)
    groups = channel_groups(residual_net, x)
    site = next(site for site in layer_sites(residual_net, x, groups) if site.name == "conv3")
    assert (site.op, site.kernel, site.stride, site.padding) == ("conv", (3, 3), (2, 2), (1, 1))
    assert (site.in_size, site.out_size) == ((8, 8), (4, 4))
    assert not site.depthwise
    assert not site.has_bias
    assert site.groups == ("stem", "conv3")


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 4)

    def forward(self, x_NCHW):
        x = torch.relu(self.again(torch.relu(self.again(torch.relu(self.stem(x_NCHW))))))
        return self.linear(x.mean((2, 3)))


def test_a_layer_that_runs_twice_costs_its_weights_once_and_its_macs_twice():
    net, x = _Twice(), torch.zeros(2, 3, 8, 8)
    sites = [site for site in layer_sites(net, x, channel_groups(net, x)) if site.name == "again"]
    assert [site.owns_weight for site in sites] == [True, False]
    assert sum(WeightCosts(fixed_params=0).cost(site, 6, 6) for site in sites) == 6 * 6 * 9 + 6
    assert sum(MacCosts(fixed_macs=0).cost(site, 6, 6) for site in sites) == 2 * 6 * 6 * 9 * 64


def test_a_grouped_convolution_is_refused_by_name():
    net, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2)), torch.zeros(2, 4, 8, 8)
    with pytest.raises(ShrinkError, match=r"convolution '1' has 2 groups of 4 channels"):
        layer_sites(net, x, channel_groups(net, x))


def test_a_layer_without_a_price_is_refused_by_name():
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 5, 3))
    x = torch.zeros(2, 4, 12)
    with pytest.raises(ShrinkError, match=r"'0\.weight' of Conv1d belongs to channel groups"):
        layer_sites(net, x, channel_groups(net, x))


def test_a_scale_per_channel_costs_its_elements():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.PReLU(8), nn.Conv2d(8, 5, 1))
    x = torch.zeros(2, 3, 8, 8)
    site = next(site for site in layer_sites(net, x, channel_groups(net, x)) if site.name == "1")
    assert (site.op, site.rows) == ("norm", Axis(fixed=0, parts=(("0", 1),)))
    assert WeightCosts(fixed_params=0).cost(site, 8, 5) == 5
    assert MacCosts(fixed_macs=0).cost(site, 8, 5) == 0


@pytest.mark.parametrize(
    ("width", "round_to", "grid"),
    [
        (5, 1, (1, 2, 3, 4, 5)),
        (20, 8, (8, 16, 20)),
        (6, 8, (6,)),
        (64, 1, tuple(range(2, 65, 2))),
        (512, 8, tuple(range(16, 513, 16))),
    ],
)
def test_a_grid_has_at_most_32_multiples_and_ends_at_the_width(width, round_to, grid):
    assert width_grid(width, round_to=round_to) == grid
