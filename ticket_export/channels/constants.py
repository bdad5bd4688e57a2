"""The constants pass: run the graph on known values, with a taint beside each.

A value is tainted when it may depend on the input. An output is tainted if any input is, except through an
exactly zero weight or factor. What is not tainted at the end is a constant, and its value is known in
float64: the channel of a zeroed filter that a BatchNorm follows emits act(beta - gamma * mean / std), not
zero.

NaN fed as the input would be shorter and is unsound: comparisons, casts, argmax, sign and where turn it
into a finite value. The taint follows every operand instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.compact import aligned_cores, along, compact, core
from ticket_export.channels.known import Known, all_tainted
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.movement import moved
from ticket_export.channels.norms import known_batch_norm, known_instance_norm, known_mixer
from ticket_export.channels.products import (
    ATTENTION,
    EINSUM,
    PRODUCTS,
    is_parameter,
    known_attention,
    known_product,
)
from ticket_export.channels.spatial import known_pad, known_pool
from ticket_export.channels.trace import Trace, concrete_number, concrete_shape, example_shape

Values = Known | tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class KnownColumns:
    """What a contraction sees on its input channels.

    Attributes:
        is_constant: bool [I]; False for a channel that depends on the input or changes over positions.
        value: float64 [I]; 0 where not constant.
        row_is_tainted: bool [O], whether the contraction's own output channel depends on the input.
    """

    is_constant: Tensor
    value: Tensor
    row_is_tainted: Tensor


@dataclass(slots=True)
class ConstantGraph:
    """Known values at every node, and what each contraction sees, by node."""

    values: dict[Node, Known | tuple[Known, ...]] = field(default_factory=dict)
    columns: dict[Node, KnownColumns] = field(default_factory=dict)


def find_constants(graph: LabelledGraph, *, keep_all: bool = False) -> ConstantGraph:
    """Return which values of the network do not depend on its input, and what they are.

    Args:
        graph: the labelled network.
        keep_all: keep the value of every node; else each is forgotten after its last use.
    """
    found = ConstantGraph()
    evaluator = _Evaluator(graph, found)
    last_use = {} if keep_all else _last_uses(graph.trace)
    for node in graph.trace.module.graph.nodes:
        evaluator.run(node)
        for dead in last_use.get(node, ()):
            found.values.pop(dead, None)
    return found


def _last_uses(trace: Trace) -> dict[Node, list[Node]]:
    user: dict[Node, Node] = {}
    for node in trace.module.graph.nodes:
        for source in node.all_input_nodes:
            user[source] = node
    freed: dict[Node, list[Node]] = {}
    for source, last in user.items():
        freed.setdefault(last, []).append(source)
    return freed


class _Evaluator:
    def __init__(self, graph: LabelledGraph, found: ConstantGraph) -> None:
        self.trace = graph.trace
        self.contractions = {contraction.node: contraction for contraction in graph.contractions}
        self.found = found
        self.sizes: dict[Node, object] = {}
        self.rules: tuple[tuple[Collection[str], Callable[[Node], Values | None]], ...] = (
            (ops.CONVOLUTIONS, self._depthwise),
            (ops.TRANSPOSED_CONVOLUTIONS, self._depthwise_transposed),
            (ops.BATCH_NORMS, lambda node: known_batch_norm(node, self.first(node), self.known)),
            ({"instance_norm"}, lambda node: known_instance_norm(node, self.first(node), self.known)),
            (ops.LAYER_NORMS | {"group_norm"}, lambda node: known_mixer(node, self.first(node), self.known)),
            (ops.PADS, self._pad),
            (ops.MOVEMENTS, self._movement),
            (ops.COPIES, self.first),
            (ops.FILLS, self._fill),
            ({"embedding"}, self._embedding),
            ({"glu"}, self._glu),
            ({"prelu"}, self._prelu),
            (ops.POOLS, lambda node: known_pool(node, self.first(node))),
            (ops.REDUCTIONS, self._reduction),
            ({ATTENTION}, self._attention),
            (PRODUCTS, self._product),
        )

    def run(self, node: Node) -> None:
        if node.op == "placeholder":
            self.found.values[node] = all_tainted(concrete_shape(node))
        elif node.op == "call_function":
            value = node.meta.get("val")
            if isinstance(value, Tensor | tuple | list):
                self.found.values[node] = self._evaluate(node)
            else:
                self.sizes[node] = concrete_number(node)

    # ------------------------------------------------------------------ operands

    def known(self, node: Node) -> Known:
        if node.op == "get_attr":  # read where it is used: a weight of a contraction never needs this form
            return self._constant(str(node.target))
        found = self.found.values[node]
        return found if isinstance(found, Known) else found[0]

    def _constant(self, name: str) -> Known:
        tensor = self.trace.tensor(name).detach()
        if tensor.is_complex():
            return all_tainted(tensor.shape)
        return Known.of(compact(tensor.to(torch.float64)), torch.zeros((), dtype=torch.bool))

    def first(self, node: Node) -> Known:
        source = node.args[0]
        assert isinstance(source, Node)
        return self.known(source)

    def _map(self, argument: object, pick: Callable[[Known], Tensor]) -> object:
        if isinstance(argument, Node):
            return self.sizes[argument] if argument in self.sizes else pick(self.known(argument))
        if isinstance(argument, list | tuple):
            return type(argument)(self._map(part, pick) for part in argument)
        return argument

    # ------------------------------------------------------------------ operations

    def _evaluate(self, node: Node) -> Known | tuple[Known, ...]:
        name = ops.op_name(node)
        if not name:
            source, position = node.args[0], node.args[1]
            assert isinstance(source, Node)
            assert isinstance(position, int)
            parts = self.found.values[source]
            return parts[position] if isinstance(parts, tuple) else parts
        if node in self.contractions:
            return self._contraction(node)
        for names, rule in self.rules:
            if name in names:
                known = rule(node)
                return self._all_tainted_like(node) if known is None else known
        if ops.is_pointwise(node):
            return self._pointwise(node)
        return self._all_tainted_like(node)

    def _all_tainted_like(self, node: Node) -> Known | tuple[Known, ...]:
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return all_tainted(concrete_shape(node))
        return tuple(all_tainted(example_shape(part)) for part in value if isinstance(part, Tensor))

    def _channel_line(self, known: Known, axis: int) -> tuple[Tensor, Tensor]:
        """Return value and taint per position on `axis`; a channel that changes elsewhere is tainted."""
        lines = _lines(known.value, axis)
        taint = _lines(known.taint, axis).any(dim=1) | (lines != lines[:, :1]).any(dim=1)
        return torch.where(taint, 0.0, lines[:, 0]), taint

    def _contraction(self, node: Node) -> Known:
        contraction = self.contractions[node]
        value_I, taint_I = self._channel_line(self.known(contraction.source), contraction.source_axis)
        weight = self.trace.tensor(contraction.weight).detach()
        # zeros around the border meet the kernel where the constant does not: such a row changes over
        # positions
        blocked_I = taint_I if not contraction.is_padded else taint_I | (value_I != 0)
        rows = [
            _row_constants(_taps(block, contraction.row_axis, contraction.column_axis), value, blocked)
            for block, value, blocked in zip(
                weight.chunk(contraction.groups, dim=contraction.row_axis),
                value_I.chunk(contraction.groups),
                blocked_I.chunk(contraction.groups),
                strict=True,
            )
        ]
        value_O, taint_O = (torch.cat(parts) for parts in zip(*rows, strict=True))
        if contraction.bias is not None:
            value_O = value_O + self.trace.tensor(contraction.bias).detach().to(torch.float64)
        elif contraction.has_computed_bias:
            taint_O = torch.ones_like(taint_O)
        self.found.columns[node] = KnownColumns(~taint_I, value_I, taint_O)
        return _spread(value_O, taint_O, contraction.result_axis, concrete_shape(node))

    def _depthwise(self, node: Node) -> Known | None:
        return self._channel_by_channel(node, ops.adds_zeros(node))

    def _depthwise_transposed(self, node: Node) -> Known | None:
        return self._channel_by_channel(node, True)

    def _channel_by_channel(self, node: Node, is_padded: bool) -> Known | None:
        weight_node, bias_node = node.args[1], ops.argument(node, "bias")
        if not is_parameter(weight_node) or ops.argument(node, "groups") == 1:
            return None
        assert isinstance(weight_node, Node)
        value_C, taint_C = self._channel_line(self.first(node), 1)
        weight = self.trace.tensor(str(weight_node.target)).detach().to(torch.float64)
        is_transposed = ops.op_name(node) in ops.TRANSPOSED_CONVOLUTIONS
        if not len(weight) == len(value_C) == ops.argument(node, "groups") or (
            is_transposed and weight.shape[1] > 1
        ):
            return None
        taps_C = weight.flatten(1)
        blocked_C = taint_C | (value_C != 0) if is_padded else taint_C
        taint_C, value_C = blocked_C & (taps_C != 0).any(dim=1), taps_C.sum(dim=1) * value_C
        if isinstance(bias_node, Node):
            bias = self.known(bias_node)
            taint_C, value_C = taint_C | bias.taint, value_C + bias.value
        return _spread(value_C, taint_C, 1, concrete_shape(node))

    def _movement(self, node: Node) -> Known | tuple[Known, ...]:
        value, taint = (
            moved(node, lambda argument, pick=pick: self._map(argument, pick), self.trace)  # type: ignore[misc]
            for pick in (lambda known: known.value, lambda known: known.taint)
        )
        if value is None or taint is None:
            return self._all_tainted_like(node)
        if isinstance(value, tuple) or isinstance(taint, tuple):
            return tuple(Known.of(v, t) for v, t in zip(value, taint, strict=True))
        return Known.of(value, taint)

    def _pad(self, node: Node) -> Known | None:
        return known_pad(node, self.first(node), self._map(node.args[1], lambda known: known.value))

    def _fill(self, node: Node) -> Known | None:
        fill = ops.FILLS[ops.op_name(node)]
        number = node.args[1] if fill is None else fill
        if not isinstance(number, int | float):
            return None
        value = torch.tensor(number, dtype=torch.float64)
        return Known.of(value.expand(concrete_shape(node)), torch.zeros((), dtype=torch.bool))

    def _embedding(self, node: Node) -> Known | None:
        table = node.args[0]
        if not is_parameter(table):
            return None
        assert isinstance(table, Node)
        rows = self.trace.tensor(str(table.target)).detach().to(torch.float64)
        return Known.of(rows[0].expand(concrete_shape(node)), (rows != rows[0]).any(dim=0))

    def _glu(self, node: Node) -> Known:
        source, axis = self.first(node), int(ops.argument(node, "dim"))
        (value, gate), (taint, gate_taint) = source.value.chunk(2, axis), source.taint.chunk(2, axis)
        is_zero = ~taint & (value == 0)  # a gate lies within (0, 1)
        return Known.of(value * gate.sigmoid(), (taint | gate_taint) & ~is_zero)

    def _attention(self, node: Node) -> Known:
        assert isinstance(node.args[2], Node)
        return known_attention(self.known(node.args[2]), concrete_shape(node))

    def _product(self, node: Node) -> Known | None:
        if ops.op_name(node) == EINSUM:
            operands = node.args[1]
            assert isinstance(operands, list | tuple)
            product: Callable[[Tensor, Tensor], Tensor] = partial(torch.einsum, str(node.args[0]))
        elif ops.op_name(node) == "addmm":
            return None
        else:
            operands, product = node.args[:2], torch.matmul
        if len(operands) != 2:
            return None
        a, b = (self.known(part) for part in operands if isinstance(part, Node))
        return known_product(a, b, product)

    def _prelu(self, node: Node) -> Known:
        source, slope_node = self.first(node), node.args[1]
        assert isinstance(slope_node, Node)
        slope = along(self.known(slope_node).value, 1, source.value.dim())
        return Known.of(torch.where(source.value > 0, source.value, source.value * slope), source.taint)

    def _reduction(self, node: Node) -> Known | tuple[Known, ...] | None:
        if len([n for n in node.all_input_nodes if n not in self.sizes]) > 1:
            return self._pointwise(node)  # max(a, b)
        source = self.first(node)
        if not source.value.numel():
            return None
        axes = ops.numbers(ops.argument(node, "dim")) or list(range(source.value.dim()))
        axes = sorted((axis % source.value.dim() for axis in axes), reverse=True)
        taint, value = core(source.taint), core(source.value)
        # what changes along an axis, or counts its places, changes with the resolution
        for axis in axes:
            changes = value != value.narrow(axis, 0, 1)
            taint = (taint | changes).any(dim=axis, keepdim=True)
            value = value.narrow(axis, 0, 1)
        if ops.op_name(node) not in ops.SIZE_FREE_REDUCTIONS:
            taint = taint | (value != 0) if ops.op_name(node) == "sum" else torch.ones_like(taint)
        if not ops.argument(node, "keepdim"):
            value, taint = _without(value, axes, source), _without(taint, axes, source)
        output = node.meta["val"]
        if isinstance(output, tuple | list):
            shape = example_shape(output[0])
            return Known.of(value.expand(shape), taint.expand(shape)), all_tainted(shape)
        shape = concrete_shape(node)
        return Known.of(value.expand(shape), taint.expand(shape))

    def _pointwise(self, node: Node) -> Known | tuple[Known, ...]:
        nodes = [n for n in node.all_input_nodes if n not in self.sizes]
        knowns = [self.known(n) for n in nodes]
        cores, shape = aligned_cores([k.value for k in knowns] + [k.taint for k in knowns])
        values = dict(zip(nodes, cores[: len(nodes)], strict=True))
        taints = dict(zip(nodes, cores[len(nodes) :], strict=True))
        try:
            value = self._apply(node, values)
        except (RuntimeError, TypeError, NotImplementedError):
            # an element-wise operation without a float64 form (bit operations, say): nothing is known
            return self._all_tainted_like(node)
        taint = torch.zeros((1,) * len(shape), dtype=torch.bool)
        for part in taints.values():
            taint = taint | part
        if ops.op_name(node) == "mul" and len(nodes) == 2:
            (a, b), (value_a, value_b) = taints.values(), values.values()
            taint = (a & (b | (value_b != 0))) | (b & (a | (value_a != 0)))
        return Known.of(value.to(torch.float64).expand(shape), taint.expand(shape))

    def _apply(self, node: Node, values: dict[Node, Tensor]) -> Tensor:
        def argument(part: object) -> object:
            if isinstance(part, Node):
                if part in self.sizes:
                    return self.sizes[part]
                wants_bool = part.meta["val"].dtype == torch.bool
                return values[part] != 0 if wants_bool else values[part]
            return type(part)(argument(p) for p in part) if isinstance(part, list | tuple) else part

        assert callable(node.target)
        result = node.target(
            *(argument(part) for part in node.args),
            **{key: argument(part) for key, part in node.kwargs.items() if key != "dtype"},
        )
        assert isinstance(result, Tensor)
        return result


def _lines(t: Tensor, axis: int) -> Tensor:
    stored = core(t).movedim(axis, 0)
    return stored.unsqueeze(-1).flatten(1).expand(t.shape[axis], -1)


def _taps(weight: Tensor, row_axis: int, column_axis: int) -> Tensor:
    """Return the weight as [O, I, kernel taps]."""
    moved = weight.movedim((row_axis, column_axis), (0, 1))
    return moved.unsqueeze(-1).flatten(2)


def _spread(value: Tensor, taint: Tensor, axis: int, shape: torch.Size) -> Known:
    value, taint = (along(line, axis, len(shape)) for line in (value, taint))
    return Known.of(value.expand(shape), taint.expand(shape))


def _row_constants(taps_OI: Tensor, value_I: Tensor, blocked_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each row of a weight makes of known inputs, and whether a blocked input reaches it."""
    blocked = taps_OI if blocked_I.all() else taps_OI[:, blocked_I]
    taint_O = (blocked != 0).flatten(1).any(dim=1)
    matters_I = value_I != 0
    return taps_OI[:, matters_I].to(torch.float64).sum(dim=2) @ value_I[matters_I], taint_O


def _without(t: Tensor, axes: Sequence[int], source: Known) -> Tensor:
    """Return `t`, which broadcasts to the source, without the reduced axes."""
    t = t.reshape((1,) * (source.value.dim() - t.dim()) + tuple(t.shape))
    for axis in axes:
        t = t.narrow(axis, 0, 1).squeeze(axis)
    return t
