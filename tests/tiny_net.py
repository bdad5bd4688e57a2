"""A network that a recipe names as `tiny_net.py:make`: a stem, one residual block and a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Residual, so that a stream joins two writers; small, so that a chain of trainings takes seconds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        stream = torch.relu(self.stem_norm(self.stem(x_NCHW)))
        inner = torch.relu(self.norm1(self.conv1(stream)))
        stream = torch.relu(self.norm2(self.conv2(inner)) + stream)
        logits: Tensor = self.linear(stream.mean((2, 3)))
        return logits


def make(width: int = 8) -> nn.Module:
    return TinyNet(width)
