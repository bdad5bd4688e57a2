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
from ticket_export.channels.compact import aligned_cores, along, broadcast, core, varying_axes
from ticket_export.channels.computed import computed_weights
from ticket_export.channels.labelled import Contraction, LabelledGraph, Labels
from ticket_export.channels.movement import moved
from ticket_export.channels.norms import label_mixer
from ticket_export.channels.operands import Operands
from ticket_export.channels.products import (
    EINSUM,
    PRODUCTS,
    Reading,
    label_einsum,
    label_product,
    parameter_reading,
)
from ticket_export.channels.spatial import label_pad, label_pool
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
        self.operands = Operands(graph)
        self.computed_weights = set(computed_weights(graph.trace))
        self.rules: tuple[tuple[Collection[str], Callable[[Node], Labels]], ...] = (
            (ops.CONVOLUTIONS, self._convolution),
            (ops.TRANSPOSED_CONVOLUTIONS, self._transposed_convolution),
            ({"linear"}, self._linear),
            (PRODUCTS, self._product),
            ({"embedding"}, self._embedding),
            (ops.BATCH_NORMS, self._batch_norm),
            ({"instance_norm"}, self._instance_norm),
            ({"prelu"}, self._per_channel),
            (ops.MOVEMENTS, self._movement),
            (ops.COPIES, self.operands.first),
            (ops.FILLS, self.operands.first),
            (ops.CREATIONS, lambda node: _fixed(concrete_shape(node))),
            ({"glu"}, self._glu),
            (ops.PADS, self._pad),
            (ops.POOLS, self._pool),
            (ops.REDUCTIONS, self._reduction),
            (ops.MIXERS, self._mixer),
        )

    def run(self, node: Node) -> None:
        if node.op == "placeholder":
            self.values[node] = _fixed(concrete_shape(node))
        elif node.op == "get_attr":
            pass  # labelled where it is used: a weight by rows and columns, others by elements
        elif node.op == "output":
            for value in node.all_input_nodes:
                for labels in self.operands.tensors(value):
                    self.classes.pin(labels, "model output")
        elif not isinstance(node.meta.get("val"), Tensor | tuple | list):
            self.operands.note_number(node)
        elif node in self.computed_weights:
            self.values[node] = _fixed(concrete_shape(node))
        else:
            self.values[node] = self._tidy(self._labels_of_result(node))

    def _tidy(self, labels: Labels) -> Labels:
        if isinstance(labels, tuple):
            return tuple(self.classes.roots(part) for part in labels)
        return self.classes.roots(labels)

    # ------------------------------------------------------------------ operations

    def _labels_of_result(self, node: Node) -> Labels:
        name = ops.op_name(node)
        if node.op == "call_function" and not name:
            return self._getitem(node)
        for names, rule in self.rules:
            if name in names:
                return rule(node)
        return self._pointwise(node) if ops.is_pointwise(node) else self._unknown(node)

    def _getitem(self, node: Node) -> Labels:
        source, position = node.args[0], node.args[1]
        assert isinstance(source, Node)
        assert isinstance(position, int)
        return self.operands.tensors(source)[position]

    # ------------------------------------------------------------------ contractions

    def _convolution(self, node: Node) -> Labels:
        if not self.operands.is_weight(node.args[1]):
            return self._unknown(node)
        is_padded = ops.adds_zeros(node)
        if ops.argument(node, "groups") > 1:
            return self._grouped_convolution(node, is_padded)
        return self._contraction(node, _weight_first(node, rows=0, axis=1, is_padded=is_padded))

    def _transposed_convolution(self, node: Node) -> Labels:
        if not self.operands.is_weight(node.args[1]):
            return self._unknown(node)
        groups = ops.argument(node, "groups")
        if groups == 1:  # its border sees fewer taps, as if zeros were added
            return self._contraction(node, _weight_first(node, rows=1, axis=1, is_padded=True))
        weight = str(node.args[1].target)  # type: ignore[union-attr]
        if groups != self.operands.first(node).shape[1] or self.graph.trace.tensor(weight).shape[1] != 1:
            return self._kept_whole(node, f"grouped transposed convolution {weight} (groups={groups})")
        return self._depthwise(node, weight, self.classes.collapse(self.operands.first(node), axis=1))

    def _grouped_convolution(self, node: Node, is_padded: bool) -> Labels:
        groups, weight = ops.argument(node, "groups"), str(node.args[1].target)  # type: ignore[union-attr]
        source = self.classes.collapse(self.operands.first(node), axis=1)
        if groups == len(source) == self.graph.trace.tensor(weight).shape[0]:
            return self._depthwise(node, weight, source)
        rows = self._rows(weight, axis=0)
        if weight in self.graph.grouped_columns:
            self.classes.unite(self.graph.grouped_columns[weight][1], source)
        else:
            self.graph.grouped_columns[weight] = (groups, source)
            reason = f"grouped convolution {weight} (groups={groups}) keeps equal numbers in every group"
            self.graph.equal_counts += [(rows, reason), (source, reason)]
        bias, is_computed = self._bias(ops.argument(node, "bias"), rows)
        self.graph.contractions.append(
            Contraction(
                node=node, source=node.all_input_nodes[0], weight=weight, bias=bias,
                row_axis=0, column_axis=1, rows=rows, columns=source, source_axis=1, result_axis=1,
                groups=groups, is_padded=is_padded, has_computed_bias=is_computed,
            )
        )  # fmt: skip
        return along(rows, 1, len(concrete_shape(node))).expand(concrete_shape(node))

    def _depthwise(self, node: Node, weight: str, source: Tensor) -> Tensor:
        rows = self._rows(weight, axis=0)
        self.classes.unite(rows, source)
        self.graph.depthwise.add(weight)
        self._bias(ops.argument(node, "bias"), rows)
        return along(rows, 1, len(concrete_shape(node))).expand(concrete_shape(node))

    def _linear(self, node: Node) -> Labels:
        if not self.operands.is_weight(node.args[1]):
            return self._unknown(node)
        return self._contraction(node, _weight_first(node, rows=0, axis=-1))

    def _contraction(self, node: Node, reading: Reading) -> Tensor:
        weight = str(reading.weight.target)
        rows = self._rows(weight, axis=reading.row_axis)
        if weight not in self.graph.weight_columns:
            num_columns = self.graph.trace.tensor(weight).shape[reading.column_axis]
            self.graph.weight_columns[weight] = (reading.column_axis, self.classes.fresh(num_columns))
        columns = self.graph.weight_columns[weight][1]
        labels = self.operands.tensors(reading.source)[0]
        source_axis = reading.source_axis % labels.dim()
        result_axis = source_axis if reading.result_axis is None else reading.result_axis
        self.classes.unite(columns, self.classes.collapse(labels, axis=source_axis))
        bias, is_computed = self._bias(reading.bias, rows)
        self.graph.contractions.append(
            Contraction(
                node=node, source=reading.source, weight=weight, bias=bias,
                row_axis=reading.row_axis, column_axis=reading.column_axis, rows=rows, columns=columns,
                source_axis=source_axis, result_axis=result_axis,
                is_padded=reading.is_padded, has_computed_bias=is_computed,
            )
        )  # fmt: skip
        return along(rows, result_axis, len(concrete_shape(node))).expand(concrete_shape(node))

    def _rows(self, weight: str, *, axis: int) -> Tensor:
        if weight not in self.graph.weight_rows:
            num_rows = self.graph.trace.tensor(weight).shape[axis]
            self.graph.weight_rows[weight] = (axis, self.classes.fresh(num_rows))
        return self.graph.weight_rows[weight][1]

    def _bias(self, bias: object, rows: Tensor) -> tuple[str | None, bool]:
        if not isinstance(bias, Node):
            return None, False
        labels = self.operands.tensors(bias)[0]
        self.classes.unite(labels, rows)
        return (str(bias.target), False) if bias.op == "get_attr" else (None, True)

    def _product(self, node: Node) -> Labels:
        reading = parameter_reading(node, self.graph.trace)
        if reading is not None:
            return self._contraction(node, reading)
        factors = [
            self.operands.tensors(n)[0] for n in node.all_input_nodes if n not in self.operands.numbers
        ]
        if ops.op_name(node) == EINSUM:
            labels = label_einsum(self.classes, str(node.args[0]), factors, concrete_shape(node))
        elif any(factor.dim() < 2 for factor in factors) or ops.op_name(node) == "addmm":
            labels = None
        else:
            labels = label_product(self.classes, factors, concrete_shape(node))
        return self._unknown(node) if labels is None else labels

    def _embedding(self, node: Node) -> Labels:
        table = node.args[0]
        if not self.operands.is_weight(table):
            return self._unknown(node)
        assert isinstance(table, Node)
        name = str(table.target)
        if name not in self.graph.leaves:
            num_rows, width = self.graph.trace.tensor(name).shape
            self.graph.leaves[name] = self.classes.fresh(width).expand(num_rows, width)
        labels = self.classes.uniform_along(self.operands.tensors(table)[0], [0])
        return labels[0].expand(concrete_shape(node))

    # ------------------------------------------------------------------ channels by themselves

    def _batch_norm(self, node: Node) -> Labels:
        labels = self._per_channel(node)
        empty = torch.full((0,), FREE)
        return (labels, empty, empty) if isinstance(node.meta["val"], tuple | list) else labels

    def _per_channel(self, node: Node) -> Tensor:
        source = self.operands.first(node)
        for parameter in node.args[1:]:
            if isinstance(parameter, Node) and parameter not in self.operands.numbers:
                line = self.operands.tensors(parameter)[0]
                if line.numel() > 1:
                    self.classes.unite(along(line, 1, len(source.shape)).expand(source.shape), source)
        return source

    def _instance_norm(self, node: Node) -> Tensor:
        # every channel by itself, but over all its places
        source = self.operands.first(node)
        self.classes.uniform_along(source, range(2, source.dim()))
        return self._per_channel(node)

    def _movement(self, node: Node) -> Labels:
        result = moved(node, self.operands.read, self.graph.trace)
        return self._unknown(node) if result is None else result

    def _glu(self, node: Node) -> Tensor:
        labels = self.operands.first(node)
        value, gate = labels.chunk(2, dim=int(ops.argument(node, "dim")))
        self.classes.unite(value, gate)
        return self.classes.roots(value)

    def _pad(self, node: Node) -> Labels:
        amounts = self.operands.read(node.args[1])
        assert isinstance(amounts, list | tuple)
        labels = label_pad(self.classes, node, self.operands.first(node), amounts)
        return self._unknown(node) if labels is None else labels

    def _pool(self, node: Node) -> Labels:
        return label_pool(self.classes, node, self.operands.first(node))

    def _reduction(self, node: Node) -> Labels:
        if len([n for n in node.all_input_nodes if n not in self.operands.numbers]) > 1:
            return self._pointwise(node)  # max(a, b)
        labels = self.operands.first(node)
        if not labels.numel():
            return self._unknown(node)
        named = ops.numbers(ops.argument(node, "dim")) or list(range(labels.dim()))
        axes = [axis % labels.dim() for axis in named]
        keeps_axes = bool(ops.argument(node, "keepdim"))
        labels = self.classes.mix(labels, axes, f"{ops.op_name(node)} over channels")
        for axis in sorted(axes, reverse=True):
            labels = labels.narrow(axis, 0, 1) if keeps_axes else labels.select(axis, 0)
        value = node.meta["val"]
        return (labels,) * len(value) if isinstance(value, tuple | list) else labels

    def _mixer(self, node: Node) -> Labels:
        return label_mixer(
            self.classes, node, self.operands.first(node), lambda n: self.operands.tensors(n)[0]
        )

    def _pointwise(self, node: Node) -> Tensor:
        nodes = [n for n in node.all_input_nodes if n not in self.operands.numbers]
        operands = [self.operands.tensors(n)[0] for n in nodes]
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
        operands = [labels for source in node.all_input_nodes for labels in self.operands.tensors(source)]
        if any((core(labels) != FREE).any() for labels in operands):
            self.graph.unknown_ops.add(name)
        return self._kept_whole(node, f"unknown operation {name}")

    def _kept_whole(self, node: Node, reason: str) -> Labels:
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                self._pin_whole(str(source.target), reason)
            for labels in self.operands.tensors(source):
                self.classes.pin(labels, reason)
        value = node.meta["val"]
        if isinstance(value, tuple | list):
            return tuple(_fixed(example_shape(part)) for part in value if isinstance(part, Tensor))
        return _fixed(concrete_shape(node))

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


def _fixed(shape: torch.Size) -> Tensor:
    return torch.full((), FIXED).expand(shape)


def _weight_first(node: Node, *, rows: int, axis: int, is_padded: bool = False) -> Reading:
    """Return the reading of a layer whose arguments are input, weight and bias."""
    source, weight = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    return Reading(
        source=source, weight=weight, bias=ops.argument(node, "bias"),
        row_axis=rows, column_axis=1 - rows, source_axis=axis, is_padded=is_padded,
    )  # fmt: skip
