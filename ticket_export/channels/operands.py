"""What an operation is given, as the label pass sees it: labels for tensors, numbers for sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels.classes import FIXED, FREE
from ticket_export.channels.labelled import LabelledGraph, parts_of
from ticket_export.channels.products import is_parameter
from ticket_export.channels.trace import concrete_number, named_tensors


class Operands:
    """The labels of values and parameters, by node.

    Attributes:
        numbers: results that are sizes, not tensors.
    """

    def __init__(self, graph: LabelledGraph) -> None:
        self._graph = graph
        self.numbers: dict[Node, object] = {}
        named = named_tensors(graph.trace.module)
        # the integers of a buffer are positions, not values of channels
        self._sliceable = {name for name, tensor in named if tensor.is_floating_point()}

    def note_number(self, node: Node) -> None:
        """Remember the value of a node that is a size."""
        self.numbers[node] = concrete_number(node)

    def tensors(self, node: Node) -> tuple[Tensor, ...]:
        """Return the labels of the node's tensors; a parameter gets element labels on its first such use."""
        if node.op == "get_attr":
            return (self._leaf(str(node.target)),)
        if node not in self._graph.values:
            return ()
        return tuple(self._graph.classes.roots(part) for part in parts_of(self._graph.values[node]))

    def is_weight(self, argument: object) -> bool:
        """Return whether an argument is a parameter or buffer of real numbers, not something computed."""
        return is_parameter(argument) and str(argument.target) in self._sliceable  # type: ignore[attr-defined]

    def first(self, node: Node) -> Tensor:
        """Return the labels of the node's first argument."""
        source = node.args[0]
        assert isinstance(source, Node)
        return self.tensors(source)[0]

    def read(self, argument: object) -> object:
        """Return an argument with nodes replaced by labels or numbers."""
        if isinstance(argument, Node):
            if argument in self.numbers:
                return self.numbers[argument]
            found = self.tensors(argument)
            return found[0] if len(found) == 1 else found
        if isinstance(argument, list | tuple):
            return type(argument)(self.read(part) for part in argument)
        return argument

    def _leaf(self, name: str) -> Tensor:
        leaves = self._graph.leaves
        if name not in leaves:
            tensor = self._graph.trace.tensor(name)
            if tensor.numel() <= 1:
                leaves[name] = torch.full(tensor.shape, FREE)
            elif name not in self._sliceable:
                leaves[name] = torch.full((), FIXED).expand(tensor.shape)
            else:
                leaves[name] = self._graph.classes.fresh(tensor.numel()).reshape(tensor.shape)
        return self._graph.classes.roots(leaves[name])
