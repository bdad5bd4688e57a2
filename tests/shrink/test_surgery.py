from __future__ import annotations

import pytest
import torch
from torch import nn

from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.shrink.plan import Plan
from ticket_export.shrink.surgery import model_from_plan, small_from_mask

KEEP = torch.tensor([True, False, True, True, False, False, True, True, True, False, True, False])


def test_a_small_network_holds_the_kept_values_and_says_its_sizes(depthwise_net, images):
    groups = channel_groups(depthwise_net, images)
    small = small_from_mask(depthwise_net, groups, Mask({"expand": KEEP}))
    assert torch.equal(small.expand.weight, depthwise_net.expand.weight[KEEP])
    assert torch.equal(small.project.weight, depthwise_net.project.weight[:, KEEP])
    assert torch.equal(small.bn_depthwise.running_var, depthwise_net.bn_depthwise.running_var[KEEP])
    assert (small.depthwise.groups, small.depthwise.in_channels, small.depthwise.out_channels) == (7, 7, 7)
    assert (small.expand.out_channels, small.project.in_channels, small.bn_expand.num_features) == (7, 7, 7)
    assert small(images).shape == (2, 4)


def test_shared_parameters_stay_shared():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    net[2].weight = net[1].weight
    x = torch.randn(2, 3, 4, 4)
    groups = channel_groups(net, x)
    name = groups[0].name
    keep = torch.tensor([True, True, False, True])
    small = small_from_mask(net, groups, Mask({name: keep}))
    assert small[1].weight is small[2].weight
    assert small[1].weight.shape == (3, 3, 1, 1)


def test_a_plan_of_another_network_is_refused(plain_net):
    plan = Plan(kept={"layer9.weight": {0: (0,)}})
    with pytest.raises(ShrinkError, match=r"the plan cuts 'layer9\.weight', which Plain does not have"):
        model_from_plan(plain_net, plan)
    plan = Plan(kept={"conv1.weight": {0: (0, 40)}})
    with pytest.raises(ShrinkError, match=r"position 40 on axis 0 of 'conv1\.weight'"):
        model_from_plan(plain_net, plan)
