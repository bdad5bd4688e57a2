"""Where the convolutions of a network stand: their uses in its graph, and the norms behind them."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.labelled import Contraction, LabelledGraph


def conv2d_uses(graph: LabelledGraph) -> dict[str, list[Contraction]]:
    """Return weight -> its uses, for every two-dimensional convolution, in graph order."""
    uses: dict[str, list[Contraction]] = {}
    for contraction in graph.contractions:
        if ops.op_name(contraction.node) == "conv2d":
            uses.setdefault(contraction.weight, []).append(contraction)
    return uses


def why_not_divided(model: nn.Module, weight: str, use: Contraction) -> str | None:
    """Return why a convolution cannot run in blocks, or None.

    Args:
        model: the network.
        weight: of the convolution.
        use: one of its uses in the network's graph.
    """
    module = model.get_submodule(weight.rpartition(".")[0])
    if not isinstance(module, nn.Conv2d):
        return "its weight is read by the network's own graph, not by a Conv2d"
    if type(module) is not nn.Conv2d:
        return f"it is a {type(module).__name__}"
    if module is model:
        return "it is the whole network"
    if use.groups != 1:
        return f"it has {use.groups} groups"
    owners = [other for other in model.modules() if getattr(other, "weight", None) is module.weight]
    return "several layers share its weight" if len(owners) > 1 else None


def norms_behind(model: nn.Module, graph: LabelledGraph) -> dict[str, nn.BatchNorm2d]:
    """Return convolution weight -> the batch norm that reads its output alone, and is read from nowhere else.

    Args:
        model: the network.
        graph: its labelled graph.
    """
    sites: dict[str, str] = {}
    for weight, own in conv2d_uses(graph).items():
        readers = list(own[0].node.users)
        if len(own) == 1 and len(readers) == 1 and ops.op_name(readers[0]) in ops.BATCH_NORMS:
            mean = ops.argument(readers[0], "running_mean")
            if isinstance(mean, Node) and mean.op == "get_attr" and readers[0].args[0] is own[0].node:
                sites[weight] = str(mean.target).rpartition(".")[0]
    calls = Counter(
        str(mean.target).rpartition(".")[0]
        for node in graph.trace.module.graph.nodes
        if ops.op_name(node) in ops.BATCH_NORMS
        and isinstance(mean := ops.argument(node, "running_mean"), Node)
    )
    norms = {weight: model.get_submodule(path) for weight, path in sites.items() if calls[path] == 1}
    return {weight: norm for weight, norm in norms.items() if type(norm) is nn.BatchNorm2d}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands in the model."""
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if module is old]
    for path in paths:
        model.set_submodule(path, new)
