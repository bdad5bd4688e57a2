"""Data movement, applied to whatever lies in the places of the numbers: labels, known values, taints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.trace import Trace


def moved(node: Node, read: Callable[[object], object], trace: Trace) -> Tensor | tuple[Tensor, ...] | None:
    """Return the node's operation applied to what `read` gives for its operands.

    Args:
        node: an operation of `ops.MOVEMENTS`.
        read: argument -> the tensor or number in its place; nodes inside lists are resolved too.
        trace: holds the constant indices.

    Returns:
        None where the movement is not known before the network runs: an index that is computed.
    """
    args = [read(argument) for argument in node.args]
    kwargs = {name: read(argument) for name, argument in node.kwargs.items()}
    for position in (position for position, argument in enumerate(node.args) if _is_index(node, position)):
        indices = _constant_indices(node.args[position], trace)
        if indices is None:
            return None
        args[position] = indices
    target = torch.ops.aten.reshape.default if ops.op_name(node) in {"view", "_unsafe_view"} else node.target
    assert callable(target)
    result = target(*args, **kwargs)
    return tuple(result) if isinstance(result, list | tuple) else result


def constant_index(node: object, trace: Trace) -> Tensor | None:
    """Return the integers that an index node holds in every run, or None."""
    while isinstance(node, Node) and ops.op_name(node) in ops.COPIES:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    tensor = trace.tensor(str(node.target)).detach().cpu()
    return tensor if tensor.dtype in (torch.int64, torch.int32) else None


def _is_index(node: Node, position: int) -> bool:
    return (ops.op_name(node), position) in {("index_select", 2), ("index", 1)}


def _constant_indices(argument: object, trace: Trace) -> object | None:
    if not isinstance(argument, list | tuple):
        return constant_index(argument, trace)
    found = [None if part is None else constant_index(part, trace) for part in argument]
    given = [part for part in argument if part is not None]
    return found if sum(index is not None for index in found) == len(given) else None
