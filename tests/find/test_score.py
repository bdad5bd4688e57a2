"""Scores beside magnitude: first-order saliency, and torch-pruning's importances on our groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_export.channels.graph import channel_groups
from ticket_export.find.score import TORCH_PRUNING, taylor_saliency, torch_pruning_scores


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 3


def test_saliency_is_weight_times_gradient_and_leaves_the_network_alone(
    residual_net: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    x_NCHW, y_N = images
    before = {name: value.clone() for name, value in residual_net.state_dict().items()}
    found = taylor_saliency(residual_net, x_NCHW, y_N)
    residual_net.eval().requires_grad_(True)
    loss = functional.cross_entropy(residual_net(x_NCHW), y_N)
    weight = residual_net.get_parameter("conv2.weight")
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(found["conv2.weight"], (weight * gradient).abs().detach())
    assert all(torch.equal(value, before[name]) for name, value in residual_net.state_dict().items())


@pytest.mark.parametrize("name", sorted(TORCH_PRUNING))
def test_torch_pruning_scores_every_free_channel(
    residual_net: nn.Module, images: tuple[Tensor, Tensor], name: str
) -> None:
    groups = channel_groups(residual_net, images[0])
    scores = torch_pruning_scores(name, residual_net, groups, *images)
    free = {group.name: group.width for group in groups if group.pinned is None}
    assert {group: len(score) for group, score in scores.items()} == free
    assert all(torch.isfinite(score).all() for score in scores.values())


def test_a_louder_channel_scores_higher(residual_net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    groups = channel_groups(residual_net, images[0])
    inner = next(group for group in groups if group.pinned is None and group.is_inner)
    with torch.no_grad():
        residual_net.get_parameter(inner.producers[0].tensor)[1] *= 50
    score = torch_pruning_scores("tp_magnitude", residual_net, groups, *images)[inner.name]
    assert int(score.argmax()) == 1
