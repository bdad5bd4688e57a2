"""A ResNet-20 of any width whose norms matter, written out here so that no other room is needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x_NCHW)))))
        return functional.relu(y_NCHW + self.shortcut(x_NCHW))


class ResNet20(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
        self.blocks = nn.Sequential(
            *(Block(w_in, w, 1 if w_in == w else 2) for w_in, w in itertools.pairwise(widths))
        )
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.blocks(functional.relu(self.bn1(self.conv1(x_NCHW))))
        return self.linear(functional.adaptive_avg_pool2d(y_NCHW, 1).flatten(1))


def make_resnet20(width: int = 16) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        net = ResNet20(width)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="session")
def resnet20() -> Callable[[int], nn.Module]:
    return make_resnet20
