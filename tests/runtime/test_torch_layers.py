"""Layer times and costs of modules: every leaf by its name, everything else by its operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ticket_export.runtime.layers import profile_layers
from ticket_export.runtime.torch_layers import _layers_of_run, costs_of_module


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


@dataclass
class Event:
    """What torch's profiler tells of one call: its kernels in microseconds and the calls within."""

    name: str
    kernels: list[SimpleNamespace] = field(default_factory=list)
    cpu_children: list[Event] = field(default_factory=list)


def test_on_a_gpu_a_layer_is_its_kernels_and_the_ranges_own_shadow_does_not_count() -> None:
    def kernel(microseconds: float) -> SimpleNamespace:
        return SimpleNamespace(duration=microseconds)

    convolution = Event("aten::conv2d", [], [Event("aten::cudnn_convolution", [kernel(7.0), kernel(5.0)])])
    layer = Event("ticket_export.layer conv", [kernel(12.0)], [convolution])
    whole = Event("ticket_export.inference", [kernel(15.0)], [layer, Event("aten::add", [kernel(3.0)])])
    total_s, layers = _layers_of_run(whole, on_gpu=True)  # type: ignore[arg-type]
    assert total_s == pytest.approx(15e-6)
    assert layers == {("conv", ""): pytest.approx(12e-6), ("aten::add", "aten::add"): pytest.approx(3e-6)}
