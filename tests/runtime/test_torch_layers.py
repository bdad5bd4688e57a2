"""Layer times and costs of modules: every leaf by its name, everything else by its operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ticket_export.runtime.layers import profile_layers
from ticket_export.runtime.torch_layers import costs_of_module


class Two(nn.Module):
    """A convolution, an addition outside any leaf, a depthwise convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())
        self.linear = nn.Linear(8, 5)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.conv(x_NCHW)
        return self.linear(self.block(y + y).mean((2, 3)))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)


def test_every_leaf_and_every_operator_outside_of_leaves_is_timed(images: np.ndarray) -> None:
    profile = profile_layers({"net": Two()}, "torch", [images])["net"]
    ops = {layer.name: layer.op for layer in profile.layers}
    assert ops["conv"] == "Conv2d"
    assert ops["block.0"] == "Conv2d"
    assert ops["linear"] == "Linear"
    assert ops["aten::add"] == "aten::add"
    assert all(layer.seconds > 0.0 for layer in profile.layers)
    assert profile.between_s is not None
    assert profile.between_s >= 0.0


def test_profiling_leaves_the_module_as_it_was(images: np.ndarray) -> None:
    net = Two().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    profile_layers({"net": net}, "torch", [images])
    assert net.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_costs_are_counted_by_hand(images: np.ndarray) -> None:
    costs = costs_of_module(Two(), [images])
    assert [(layer.name, layer.macs) for layer in costs.layers] == [
        ("conv", 2 * 8 * 36 * 27),
        ("block.0", 2 * 8 * 16 * 9),
        ("linear", 2 * 5 * 8),
    ]
    conv, depthwise, _ = costs.layers
    assert (conv.width_in, conv.width_out, conv.depthwise, depthwise.depthwise) == (3, 8, False, True)
    assert conv.num_bytes == 4 * (2 * 3 * 36 + 8 * 27 + 2 * 8 * 36)
