"""The label pass: run the graph on channel labels instead of numbers.

Data movement is the operation applied to the labels; element-wise operations unite the labels they join;
contractions (convolution, linear) consume the labels of their input through weight columns and create the
labels of their output through weight rows. Whatever mixes channels, or is unknown, pins them. Shared
weights, free parameters, concatenation and flattening then need no special case by module name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.classes import FIXED, FREE
from ticket_export.channels.compact import aligned_cores, broadcast, compact, core, varying_axes
from ticket_export.channels.labelled import Contraction, LabelledGraph, Labels
from ticket_export.channels.movement import moved
from ticket_export.channels.products import PRODUCTS, label_product
from ticket_export.channels.trace import Trace, concrete_shape, example_shape


def label(trace: Trace) -> LabelledGraph:
    """Return the labels of every intermediate value and parameter of a traced network."""
    graph = LabelledGraph(trace=trace)
    labeller = _Labeller(graph)
    for node in trace.module.graph.nodes:
        labeller.run(node)
    labeller.pin_tensors_used_in_two_ways()
    labeller.pin_parameters_labelled_along_two_axes()
    return graph


class _Labeller:
    def __init__(self, graph: LabelledGraph) -> None:
        self.graph = graph
        self.classes = graph.classes
        self.values = graph.values
        self.sizes: dict[Node, object] = {}  # results that are numbers, not tensors
        self.rules: tuple[tuple[Collection[str], Callable[[Node], Labels]], ...] = (
            (ops.BATCH_NORMS, self._batch_norm),
            (ops.MOVEMENTS, self._movement),
            (ops.COPIES, self._first),
            (ops.PADS, self._pad),
            (ops.POOLS, self._pool),
            (ops.REDUCTIONS, self._reduction),
            (ops.MIXERS, self._mixer),
            (PRODUCTS, self._product),
            ({"prelu"}, self._prelu),
        )

    def run(self, node: Node) -> None:
        if node.op == "placeholder":
            self.values[node] = torch.full((), FIXED).expand(concrete_shape(node))
        elif node.op == "get_attr":
            pass  # labelled where it is used: a weight by rows and columns, others by elements
        elif node.op == "output":
            for value in node.all_input_nodes:
                for labels in self.tensors_of(value):
                    self.classes.pin(labels, "model output")
        elif not self._is_tensor_node(node):
            self.sizes[node] = self._number(node)
        else:
            self.values[node] = self._tidy(self._labels_of_result(node))

    @staticmethod
    def _is_tensor_node(node: Node) -> bool:
        return isinstance(node.meta.get("val"), Tensor | tuple | list)

    def _number(self, node: Node) -> object:
        value = node.meta.get("val")
        return int(value.node.hint) if isinstance(value, torch.SymInt) else value

    def _tidy(self, labels: Labels) -> Labels:
        if isinstance(labels, tuple):
            return tuple(self.classes.roots(part) for part in labels)
        return self.classes.roots(labels)

    # ------------------------------------------------------------------ operands

    def tensors_of(self, node: Node) -> tuple[Tensor, ...]:
        """Return the labels of the node's tensors; a parameter gets element labels on its first such use."""
        if node.op == "get_attr":
            return (self._leaf(str(node.target)),)
        if node not in self.values:
            return ()
        labels = self.values[node]
        parts = labels if isinstance(labels, tuple) else (labels,)
        return tuple(self.classes.roots(part) for part in parts)

    def operand(self, argument: object) -> object:
        """Return an argument with nodes replaced by labels or numbers."""
        if isinstance(argument, Node):
            if argument in self.sizes:
                return self.sizes[argument]
            found = self.tensors_of(argument)
            return found[0] if len(found) == 1 else found
        if isinstance(argument, list | tuple):
            return type(argument)(self.operand(part) for part in argument)
        return argument

    def _leaf(self, name: str) -> Tensor:
        if name not in self.graph.leaves:
            tensor = self.graph.trace.tensor(name)
            if tensor.numel() <= 1:
                self.graph.leaves[name] = torch.full(tensor.shape, FREE)
            elif name not in self._sliceable():
                self.graph.leaves[name] = torch.full((), FIXED).expand(tensor.shape)
            else:
                self.graph.leaves[name] = self.classes.fresh(tensor.numel()).reshape(tensor.shape)
        return self.classes.roots(self.graph.leaves[name])

    def _sliceable(self) -> set[str]:
        module = self.graph.trace.module
        return {name for name, _ in module.named_parameters(remove_duplicate=False)} | {
            name for name, _ in module.named_buffers(remove_duplicate=False)
        }

    # ------------------------------------------------------------------ operations

    def _labels_of_result(self, node: Node) -> Labels:
        name = ops.op_name(node)
        if node.op == "call_function" and not name:
            return self._getitem(node)
        if name in ops.CONVOLUTIONS and self._has_plain_weight(node):
            return self._convolution(node)
        if (
            name in ops.TRANSPOSED_CONVOLUTIONS
            and self._has_plain_weight(node)
            and ops.argument(node, "groups") == 1
        ):
            return self._contraction(node, row_axis=1, column_axis=0, source_axis=1, is_padded=True)
        if name == "linear" and self._has_plain_weight(node):
            return self._contraction(node, row_axis=0, column_axis=1, source_axis=-1, is_padded=False)
        for names, rule in self.rules:
            if name in names:
                return rule(node)
        return self._pointwise(node) if ops.is_pointwise(node) else self._unknown(node)

    def _first(self, node: Node) -> Tensor:
        source = node.args[0]
        assert isinstance(source, Node)
        return self.tensors_of(source)[0]

    def _getitem(self, node: Node) -> Labels:
        source, position = node.args[0], node.args[1]
        assert isinstance(source, Node)
        assert isinstance(position, int)
        return self.tensors_of(source)[position]

    @staticmethod
    def _has_plain_weight(node: Node) -> bool:
        weight = node.args[1]
        return isinstance(weight, Node) and weight.op == "get_attr"

    def _convolution(self, node: Node) -> Tensor:
        groups = ops.argument(node, "groups")
        if groups == 1:
            return self._contraction(
                node, row_axis=0, column_axis=1, source_axis=1, is_padded=ops.adds_zeros(node)
            )
        weight = str(node.args[1].target)  # type: ignore[union-attr]
        source = self.collapse(self._first(node), axis=1)
        rows = self._rows(weight, axis=0)
        if groups == len(source) == len(rows):
            self.classes.unite(rows, source)
            self.graph.depthwise.add(weight)
        else:
            self.classes.pin(source, f"grouped convolution {weight} (groups={groups})")
            self.classes.pin(rows, f"grouped convolution {weight} (groups={groups})")
        self._bias(node, rows)
        return self._spread(rows, axis=1, shape=concrete_shape(node))

    def _contraction(
        self, node: Node, *, row_axis: int, column_axis: int, source_axis: int, is_padded: bool
    ) -> Tensor:
        source, weight_node = node.args[0], node.args[1]
        assert isinstance(source, Node)
        assert isinstance(weight_node, Node)
        weight = str(weight_node.target)
        rows = self._rows(weight, axis=row_axis)
        if weight not in self.graph.weight_columns:
            num_columns = self.graph.trace.tensor(weight).shape[column_axis]
            self.graph.weight_columns[weight] = (column_axis, self.classes.fresh(num_columns))
        columns = self.graph.weight_columns[weight][1]
        self.classes.unite(columns, self.collapse(self.tensors_of(source)[0], axis=source_axis))
        bias = self._bias(node, rows)
        self.graph.contractions.append(
            Contraction(
                node=node, source=source, weight=weight, bias=bias, row_axis=row_axis, rows=rows,
                column_axis=column_axis, columns=columns, source_axis=source_axis, is_padded=is_padded,
            )
        )  # fmt: skip
        return self._spread(rows, axis=source_axis, shape=concrete_shape(node))

    def _rows(self, weight: str, *, axis: int) -> Tensor:
        if weight not in self.graph.weight_rows:
            num_rows = self.graph.trace.tensor(weight).shape[axis]
            self.graph.weight_rows[weight] = (axis, self.classes.fresh(num_rows))
        return self.graph.weight_rows[weight][1]

    def _bias(self, node: Node, rows: Tensor) -> str | None:
        bias = node.args[2] if len(node.args) > 2 else None
        if not isinstance(bias, Node):
            return None
        labels = self.tensors_of(bias)[0]
        self.classes.unite(labels, rows)
        return str(bias.target) if bias.op == "get_attr" else None

    def collapse(self, labels: Tensor, *, axis: int) -> Tensor:
        """Return one label per position on `axis`, after uniting all labels that share a position."""
        lines = core(labels).movedim(axis, 0).reshape(core(labels).shape[axis], -1)
        self.classes.unite(lines, lines[:, :1])
        line = self.classes.roots(lines[:, 0])
        return line.expand(labels.shape[axis])

    @staticmethod
    def _spread(line: Tensor, *, axis: int, shape: torch.Size) -> Tensor:
        view = [1] * len(shape)
        view[axis] = len(line)
        return line.reshape(view).expand(shape)

    def _batch_norm(self, node: Node) -> Labels:
        labels = self._per_channel(node, axis=1)
        empty = torch.full((0,), FREE)
        return (labels, empty, empty) if isinstance(node.meta["val"], tuple | list) else labels

    def _prelu(self, node: Node) -> Labels:
        return self._per_channel(node, axis=1)

    def _per_channel(self, node: Node, *, axis: int) -> Tensor:
        source = self._first(node)
        for parameter in node.args[1:]:
            if isinstance(parameter, Node) and parameter not in self.sizes:
                line = self.tensors_of(parameter)[0]
                if line.numel() > 1:
                    self.classes.unite(self._spread(line, axis=axis, shape=source.shape), source)
        return source

    def _movement(self, node: Node) -> Labels:
        result = moved(node, self.operand, self.graph.trace)
        return self._unknown(node) if result is None else result

    def _pad(self, node: Node) -> Labels:
        labels = self._first(node)
        amounts = node.args[1]
        assert isinstance(amounts, list | tuple)
        for index in range(len(amounts) // 2):
            axis = labels.dim() - 1 - index
            before, after = self.operand(amounts[2 * index]), self.operand(amounts[2 * index + 1])
            assert isinstance(before, int)
            assert isinstance(after, int)
            if before < 0 or after < 0:
                labels = labels.narrow(
                    axis, max(-before, 0), labels.shape[axis] + min(before, 0) + min(after, 0)
                )
            if ops.pad_mode(node) != "constant" and axis in varying_axes(labels):
                return self._unknown(node)  # channels copied beside themselves
            labels = self._padded(labels, axis, max(before, 0), max(after, 0))
        return labels

    def _padded(self, labels: Tensor, axis: int, before: int, after: int) -> Tensor:
        if before == after == 0:
            return labels
        shape = list(labels.shape)
        if axis not in varying_axes(labels):
            shape[axis] += before + after
            return labels.narrow(axis, 0, 1).expand(shape)
        # slots on a channel axis are channels of their own: they are zero, and go when nothing joins them
        edges = []
        for amount in (before, after):
            shape[axis] = amount
            edges.append(self._spread(self.classes.fresh(amount), axis=axis, shape=torch.Size(shape)))
        return compact(torch.cat([edges[0], labels, edges[1]], dim=axis))

    def _pool(self, node: Node) -> Labels:
        labels = self._first(node)
        for axis in range(labels.dim() - ops.POOLS[ops.op_name(node)], labels.dim()):
            labels = self._uniform_along(labels, axis)
        value = node.meta["val"]
        if isinstance(value, tuple | list):
            return tuple(core(labels).expand(example_shape(part)) for part in value)
        return core(labels).expand(concrete_shape(node))

    def _uniform_along(self, labels: Tensor, axis: int) -> Tensor:
        if axis not in varying_axes(labels):
            return labels
        self.classes.unite(labels, labels.narrow(axis, 0, 1))
        return self.classes.roots(labels)

    def _reduction(self, node: Node) -> Tensor:
        labels = self._first(node)
        named = ops.numbers(ops.argument(node, "dim")) or list(range(labels.dim()))
        axes = [axis % labels.dim() for axis in named]
        keeps_axes = bool(ops.argument(node, "keepdim"))
        for axis in axes:
            if axis in varying_axes(labels):
                self.classes.pin(labels, f"{ops.op_name(node)} over channels")
                labels = self._uniform_along(labels, axis)
        for axis in sorted(axes, reverse=True):
            labels = labels.narrow(axis, 0, 1) if keeps_axes else labels.select(axis, 0)
        return labels

    def _mixer(self, node: Node) -> Labels:
        labels = self._first(node)
        name = ops.op_name(node)
        if "softmax" in name:
            mixed = [axis % labels.dim() for axis in ops.numbers(ops.argument(node, "dim"))]
        elif name == "layer_norm":
            mixed = list(range(labels.dim() - len(ops.argument(node, "normalized_shape")), labels.dim()))
        else:
            mixed = list(range(1, labels.dim()))
        if set(mixed) & set(varying_axes(labels)):
            self.classes.pin(labels, f"{name} mixes its channels")
        for parameter in node.args[1:]:
            if isinstance(parameter, Node) and parameter.op == "get_attr":
                leaf = self.tensors_of(parameter)[0]
                axis_first = 1 if name in {"group_norm", "instance_norm"} else labels.dim() - leaf.dim()
                view = (1,) * axis_first + tuple(leaf.shape)
                view += (1,) * (labels.dim() - len(view))
                self.classes.unite(leaf.reshape(view), labels)
        return self.classes.roots(labels)

    def _product(self, node: Node) -> Labels:
        factors = [self.tensors_of(n)[0] for n in node.all_input_nodes if n not in self.sizes]
        if any(labels.dim() < 2 for labels in factors):
            return self._unknown(node)
        return label_product(self.classes, factors, concrete_shape(node))

    def _pointwise(self, node: Node) -> Tensor:
        nodes = [n for n in node.all_input_nodes if n not in self.sizes]
        operands = [self.tensors_of(n)[0] for n in nodes]
        stored, shape = aligned_cores(operands)
        full = [tuple([1] * (len(shape) - t.dim())) + tuple(t.shape) for t in operands]
        joined = torch.full((1,) * len(shape), FREE)
        for position, labels in enumerate(stored):
            if self._is_broadcast_over_channels(position, stored, full, shape):
                # one value scales or shifts many channels: it must stay, and it ties none of them together
                self.classes.pin(labels, f"{ops.op_name(node)} broadcasts it over channels")
                continue
            self.classes.unite(joined, labels)
            ours, theirs = broadcast(joined, labels)
            joined = torch.where(ours == FREE, theirs, ours)
        return joined.expand(shape)

    @staticmethod
    def _is_broadcast_over_channels(
        position: int, stored: Sequence[Tensor], full: Sequence[tuple[int, ...]], shape: torch.Size
    ) -> bool:
        others = [t for index, t in enumerate(stored) if index != position]
        return any(
            full[position][axis] == 1 and size > 1 and any(other.shape[axis] > 1 for other in others)
            for axis, size in enumerate(shape)
        ) and bool((stored[position] != FREE).any())

    def _unknown(self, node: Node) -> Labels:
        name = ops.op_name(node) or str(node.target)
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                self._pin_whole(str(source.target), f"unknown operation {name}")
            for labels in self.tensors_of(source):
                self.classes.pin(labels, f"unknown operation {name}")
                if (core(labels) != FREE).any():
                    self.graph.unknown_ops.add(name)
        value = node.meta["val"]
        if isinstance(value, tuple | list):
            return tuple(
                torch.full((), FIXED).expand(example_shape(part))
                for part in value
                if isinstance(part, Tensor)
            )
        return torch.full((), FIXED).expand(concrete_shape(node))

    # ------------------------------------------------------------------ afterwards

    def _pin_whole(self, name: str, reason: str) -> None:
        for table in (self.graph.weight_rows, self.graph.weight_columns):
            if name in table:
                self.classes.pin(table[name][1], reason)
        if name in self.graph.leaves:
            self.classes.pin(self.graph.leaves[name], reason)

    def pin_tensors_used_in_two_ways(self) -> None:
        """Pin weights that one place reads by rows and columns, another by elements or transposed."""
        for name in self.graph.weight_rows:
            row_axis = self.graph.weight_rows[name][0]
            column_axis = self.graph.weight_columns.get(name, (None, None))[0]
            if name in self.graph.leaves or row_axis == column_axis:
                self._pin_whole(name, f"{name} is used in two ways")

    def pin_parameters_labelled_along_two_axes(self) -> None:
        """Pin element-wise parameters whose channels do not lie along one axis."""
        for name, labels in self.graph.leaves.items():
            roots = self.classes.roots(labels)
            self.graph.leaves[name] = roots
            if len(varying_axes(roots)) > 1:
                self.classes.pin(roots, f"the channels of {name} lie along more than one axis")
