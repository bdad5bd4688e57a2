"""Weights that a forward computes from parameters alone, as a weight standardisation does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.trace import Trace

_LAYERS = ops.CONVOLUTIONS | ops.TRANSPOSED_CONVOLUTIONS | {"linear"}


def computed_weights(trace: Trace) -> list[Node]:
    """Return the nodes between the parameters and the weight of a layer, in graph order."""
    from_parameters: set[Node] = set()
    for node in trace.module.graph.nodes:
        sources = node.all_input_nodes
        is_call = node.op == "call_function" and bool(sources)
        if is_call and all(source.op == "get_attr" or source in from_parameters for source in sources):
            from_parameters.add(node)
    found: set[Node] = set()
    waiting = [node.args[1] for node in trace.module.graph.nodes if ops.op_name(node) in _LAYERS]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node) and node in from_parameters and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return [node for node in trace.module.graph.nodes if node in found]


def weights_by_module(trace: Trace) -> dict[str, Tensor]:
    """Return path of the module that calls a layer with a computed weight -> that weight."""
    values: dict[Node, object] = {}

    def value(argument: object) -> object:
        if isinstance(argument, Node):
            if argument.op == "get_attr":
                return trace.tensor(str(argument.target)).detach()
            return values[argument]
        return type(argument)(map(value, argument)) if isinstance(argument, list | tuple) else argument

    with torch.no_grad():
        for node in computed_weights(trace):
            assert callable(node.target)
            kwargs = {name: value(argument) for name, argument in node.kwargs.items()}
            values[node] = node.target(*(value(argument) for argument in node.args), **kwargs)
    found: dict[str, Tensor] = {}
    for node in trace.module.graph.nodes:
        weight = values.get(node.args[1]) if ops.op_name(node) in _LAYERS else None
        if isinstance(weight, Tensor):
            *_, (path, _) = node.meta["nn_module_stack"].values()
            found[path] = weight
    return found
