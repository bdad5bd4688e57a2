from __future__ import annotations

import pytest
import torch
from torch import nn

from ticket_export.channels.costs import count_costs


@pytest.mark.parametrize(
    ("net", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 10 * 10 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 10, 10), 8 * 8 * 8 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 5 * 5 * 4 * 6 * 4),
        (nn.Linear(16, 5), (16,), 80),
    ],
)
def test_macs_are_those_of_one_image_whatever_the_batch(net, shape, macs):
    assert count_costs(net, torch.randn(7, *shape)).macs == macs


def test_what_is_not_counted_is_named(plain_net, images):
    costs = count_costs(plain_net, images)
    assert costs.params == sum(p.numel() for p in plain_net.parameters())
    assert costs.macs == 64 * (8 * 27 + 12 * 72) + 12 * 4
    assert costs.not_counted["relu"] == 2


def test_the_training_mode_comes_back(plain_net, images):
    plain_net.train()
    plain_net.bn1.eval()
    count_costs(plain_net, images)
    assert plain_net.training
    assert not plain_net.bn1.training
