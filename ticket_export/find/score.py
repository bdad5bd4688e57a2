"""What weights and channels are worth beyond their magnitude: saliency, and torch-pruning's scores."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_export.channels.graph import ChannelGroup
from ticket_export.errors import ShrinkError
from ticket_export.find.depgraph import copy_with_gradients

# What of torch-pruning can be asked for, by the name in recipes; True where it reads gradients
TORCH_PRUNING: Mapping[str, tuple[str, bool]] = {
    "tp_magnitude": ("GroupMagnitudeImportance", False),
    "tp_bn_scale": ("BNScaleImportance", False),
    "tp_lamp": ("LAMPImportance", False),
    "tp_fpgm": ("FPGMImportance", False),
    "tp_taylor": ("GroupTaylorImportance", True),
    "tp_hessian": ("GroupHessianImportance", True),
}


def taylor_saliency(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> dict[str, Tensor]:
    """Return per parameter |weight * gradient| of the mean loss: how much the loss moves when it goes.

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8, first order.

    Args:
        model: trained; it is not changed.
        x_NCHW: normalised images.
        y_N: their labels.
    """
    model = copy_with_gradients(model)
    with torch.enable_grad():
        _backward(functional.cross_entropy(model(x_NCHW), y_N))
    return {
        name: (parameter.detach() * parameter.grad).abs()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def torch_pruning_scores(
    name: str, model: nn.Module, groups: Sequence[ChannelGroup], x_NCHW: Tensor, y_N: Tensor
) -> dict[str, Tensor]:
    """Return group name -> torch-pruning's importance of each channel, float64 [width].

    Args:
        name: a key of TORCH_PRUNING.
        model: trained, on the CPU; it is not changed.
        groups: its channel groups; pinned ones are left out.
        x_NCHW: normalised images, for the importances that read gradients and for tracing.
        y_N: their labels.

    Raises:
        ShrinkError: torch-pruning cannot score a group, with its words.
    """
    import torch_pruning as tp

    kind, reads_gradients = TORCH_PRUNING[name]
    importance = getattr(tp.importance, kind)()
    model = copy_with_gradients(model)
    scores = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells which parameters it prunes on their last axis
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=x_NCHW[:2])
        for group in groups:
            if group.pinned is None and group.producers:
                if reads_gradients:  # scoring one group may use its gradients up
                    _take_gradients(importance, kind, model, x_NCHW, y_N)
                scores[group.name] = _group_score(importance, kind, graph, model, group)
    return scores


def _backward(loss: Tensor, *, retain_graph: bool = False) -> None:
    torch.autograd.backward(loss, retain_graph=retain_graph)


def _take_gradients(
    importance: Any,  # torch-pruning carries no types
    kind: str,
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
) -> None:
    model.zero_grad()
    with torch.enable_grad():
        losses_N = functional.cross_entropy(model(x_NCHW), y_N, reduction="none")
        if kind == "GroupTaylorImportance":
            _backward(losses_N.mean())
            return
        importance.zero_grad()
        for loss in losses_N:  # squares of single images' gradients: Optimal Brain Damage's diagonal
            model.zero_grad()
            _backward(loss, retain_graph=True)
            importance.accumulate_grad(model)


def _group_score(
    importance: Any,  # torch-pruning carries no types, also below
    kind: str,
    graph: Any,
    model: nn.Module,
    group: ChannelGroup,
) -> Tensor:
    member = group.producers[0]
    layer = model.get_submodule(member.tensor.rpartition(".")[0])
    rows = sorted({row for rows in member.indices.tolist() for row in rows})
    try:
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        score_R: Tensor | None = importance(graph.get_pruning_group(layer, prune, rows))
    except Exception as error:  # it raises what it meets
        raise ShrinkError(
            f"torch-pruning's {kind} cannot score {group.name!r}: {type(error).__name__}: {error}",
            hint="take find.score l1",
        ) from error
    if score_R is None or len(score_R) != len(rows):
        told = "nothing" if score_R is None else f"{len(score_R)} scores for {len(rows)} rows"
        raise ShrinkError(
            f"torch-pruning's {kind} gives {told} for {group.name!r}", hint="take find.score l1"
        )
    place = {row: index for index, row in enumerate(rows)}
    indices = torch.tensor([[place[row] for row in own] for own in member.indices.tolist()])
    return score_R.detach().double().cpu()[indices].sum(1)
