"""Three ways in which a pruned network holds zeros.

general: half of the output channels of every convolution and linear layer have zero weights (not the
    last layer), and independently half of the gammas of every BatchNorm are zero. Biases and betas stay: dead
    channels emit constants, and the layers of a residual stream disagree.
groups: half of the channels of every group that torch-pruning finds, with weight, bias, gamma and beta zero
    in every layer of the group: what torch-pruning itself would remove (the same places in every part of a
    grouped convolution and in every attention head, as its pruners choose them).
groups_beta: as `groups`, but the betas stay, as training tools leave them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
import torch_pruning as tp
from peers.networks import LAYERS, NETWORKS, built, calibrate, half, images
from torch import Tensor, nn

MASKS = ("general", "groups", "groups_beta")
MAX_SEEDS = 20
ALIVE = 0.02  # spread of the outputs over images, as a part of the largest
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def masked(name: str, mask: str) -> nn.Module:
    """Return the network called `name` with the zeros of `mask`, in eval mode; equal in every call.

    It is the one of the first seed whose outputs depend on the image: behind enough zeros, none may.
    """
    for seed in range(MAX_SEEDS):
        model = _masked(name, mask, seed)
        with torch.no_grad():
            logits_NK = model(images(3, NETWORKS[name].size, 3))
        if float((logits_NK - logits_NK.mean(0)).abs().max()) >= ALIVE * float(logits_NK.abs().max()):
            return model
    raise RuntimeError(f"{name} with {mask} zeros computes a constant for {MAX_SEEDS} seeds")


def _masked(name: str, mask: str, seed: int) -> nn.Module:
    model = built(name, seed)
    size = NETWORKS[name].size
    if mask == "general":
        _zero_rows_and_gammas(model)
    else:
        _zero_groups(model, images(1, size, 0), with_beta=mask == "groups_beta")
    for parameter in model.parameters():
        parameter.grad = None
    return calibrate(model, size)


def _zero_rows_and_gammas(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in [module for module in model.modules() if isinstance(module, LAYERS)][:-1]:
            layer.weight[half(len(layer.weight))] = 0.0
        for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
            norm.weight[half(len(norm.weight))] = 0.0


def _zero_groups(model: nn.Module, x_NCHW: Tensor, *, with_beta: bool) -> None:
    graph = dependencies(model, x_NCHW)
    with torch.no_grad():
        for group in all_groups(graph, model):
            parts, width = num_parts(group), len(group[0].idxs)
            dropped = {
                part * (width // parts) + place
                for place in half(width // parts).tolist()
                for part in range(parts)
            }
            for item in group:
                module, positions = item.dep.target.module, _positions(item, dropped)
                if not positions or not graph.is_out_channel_pruning_fn(item.dep.handler):
                    continue
                if isinstance(module, nn.Parameter):
                    axis = item.dep.target.pruning_dim
                    module.index_fill_(axis if axis is not None else -1, torch.tensor(positions), 0.0)
                elif isinstance(module, NORMS):
                    module.weight[positions] = 0.0
                    if not with_beta:
                        module.bias[positions] = 0.0
                elif isinstance(module, LAYERS):
                    module.weight[positions] = 0.0
                    if module.bias is not None:
                        module.bias[positions] = 0.0
                elif isinstance(module, nn.MultiheadAttention):
                    _zero_attention(module, positions)


def _zero_attention(attention: nn.MultiheadAttention, positions: list[int]) -> None:
    for part in range(3):
        rows = [part * attention.embed_dim + position for position in positions]
        attention.in_proj_weight[rows] = 0.0
        attention.in_proj_bias[rows] = 0.0
    attention.out_proj.weight[positions] = 0.0
    attention.out_proj.bias[positions] = 0.0


def num_parts(group: tp.dependency.Group) -> int:
    """Return into how many equal parts its channels fall: conv groups and heads need equal widths."""
    parts = 1
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.out_channels:
            parts = max(parts, layer.groups)
        elif isinstance(layer, nn.MultiheadAttention):
            parts = max(parts, layer.num_heads)
    return parts


def _positions(item: tp.dependency.Group, dropped: set[int]) -> list[int]:
    return [index for index, root in zip(item.idxs, item.root_idxs, strict=True) if root in dropped]


def dependencies(model: nn.Module, x_NCHW: Tensor) -> tp.DependencyGraph:
    """Return torch-pruning's own graph of the network."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # it tells which parameters it prunes on their last axis
        return tp.DependencyGraph().build_dependency(model, example_inputs=x_NCHW)


def all_groups(graph: tp.DependencyGraph, model: nn.Module) -> Iterator[tp.dependency.Group]:
    """Yield the groups of every layer but the last, one after another, as its manual says."""
    last = [module for module in model.modules() if isinstance(module, LAYERS)][-1]
    yield from graph.get_all_groups(ignored_layers=[last], root_module_types=list(LAYERS))
