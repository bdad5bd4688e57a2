"""The constants pass: run the graph on known values, with a taint beside each.

A value is tainted when it may depend on the input. An output is tainted if any input is, except through an
exactly zero weight or factor. What is not tainted at the end is a constant, and its value is known in
float64: the channel of a zeroed filter that a BatchNorm follows emits act(beta - gamma * mean / std), not
zero.

NaN fed as the input would be shorter and is unsound: comparisons, casts, argmax, sign and where turn it
into a finite value. The taint follows every operand instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.compact import aligned_cores, compact, core, varying_axes
from ticket_export.channels.known import Known, all_tainted
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.movement import moved
from ticket_export.channels.products import ATTENTION, PRODUCTS, known_attention, known_product
from ticket_export.channels.trace import Trace, concrete_shape, example_shape


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


def find_constants(graph: LabelledGraph) -> ConstantGraph:
    """Return which values of the network do not depend on its input, and what they are."""
    found = ConstantGraph()
    evaluator = _Evaluator(graph, found)
    last_use = _last_uses(graph.trace)
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

    def run(self, node: Node) -> None:
        if node.op == "placeholder":
            self.found.values[node] = all_tainted(concrete_shape(node))
        elif node.op == "call_function":
            value = node.meta.get("val")
            if isinstance(value, Tensor | tuple | list):
                self.found.values[node] = self._evaluate(node)
            else:
                self.sizes[node] = int(value.node.hint) if isinstance(value, torch.SymInt) else value

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
        if name in ops.CONVOLUTIONS:
            return self._grouped_convolution(node)
        if name in ops.BATCH_NORMS:
            return self._batch_norm(node)
        if name in ops.PADS:
            return self._pad(node)
        if name in ops.MOVEMENTS:
            return self._movement(node)
        if name in ops.COPIES:
            return self.first(node)
        if name in ops.POOLS:
            return self._pool(node)
        if name in ops.REDUCTIONS:
            return self._reduction(node)
        if name == ATTENTION:
            assert isinstance(node.args[2], Node)
            return known_attention(self.known(node.args[2]), concrete_shape(node))
        if name in PRODUCTS:
            a, b = (self.known(part) for part in node.args[:2] if isinstance(part, Node))
            return known_product(a, b)
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
        taps_OI = _taps(
            self.trace.tensor(contraction.weight).detach(), contraction.row_axis, contraction.column_axis
        )
        # zeros around the border meet the kernel where the constant does not: such a row changes over
        # positions
        blocked_I = taint_I if not contraction.is_padded else taint_I | (value_I != 0)
        blocked = taps_OI if blocked_I.all() else taps_OI[:, blocked_I]
        taint_O = (blocked != 0).flatten(1).any(dim=1)
        matters_I = value_I != 0
        value_O = taps_OI[:, matters_I].to(torch.float64).sum(dim=2) @ value_I[matters_I]
        if contraction.bias is not None:
            value_O = value_O + self.trace.tensor(contraction.bias).detach().to(torch.float64)
        elif len(node.args) > 2 and isinstance(node.args[2], Node):
            taint_O = torch.ones_like(taint_O)  # a computed bias
        self.found.columns[node] = KnownColumns(~taint_I, value_I, taint_O)
        return _spread(value_O, taint_O, contraction.source_axis, concrete_shape(node))

    def _grouped_convolution(self, node: Node) -> Known | tuple[Known, ...]:
        weight_node, bias_node = node.args[1], node.args[2] if len(node.args) > 2 else None
        groups = ops.argument(node, "groups")
        if not isinstance(weight_node, Node) or weight_node.op != "get_attr" or not isinstance(groups, int):
            return self._all_tainted_like(node)
        value_I, taint_I = self._channel_line(self.first(node), 1)
        weight = self.trace.tensor(str(weight_node.target)).detach().to(torch.float64)
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        taint_GI, value_GI = taint_I.reshape(groups, -1), value_I.reshape(groups, -1)
        # counted padding is not looked at here: a non-zero constant under it would change over positions
        blocked = (
            (taint_GI | (value_GI != 0)).to(torch.float64) if ops.adds_zeros(node) else taint_GI.double()
        )
        taint_O = torch.einsum("goi,gi->go", (taps != 0).any(dim=3).double(), blocked).reshape(-1) > 0
        value_O = torch.einsum("goi,gi->go", taps.sum(dim=3), value_GI).reshape(-1)
        if isinstance(bias_node, Node):
            bias = self.known(bias_node)
            taint_O = taint_O | bias.taint
            value_O = value_O + bias.value
        return _spread(value_O, taint_O, 1, concrete_shape(node))

    def _batch_norm(self, node: Node) -> Known | tuple[Known, ...]:
        source = self.first(node)
        parameters = [self.known(n) if isinstance(n, Node) else None for n in node.args[1:5]]
        weight, bias, mean, variance = (None if p is None else self._line(p, source) for p in parameters)
        epsilon = node.args[-1]
        assert isinstance(epsilon, float)
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + epsilon) * (1.0 if weight is None else weight)
        shift = torch.zeros(()) if bias is None else bias
        (value, taint, scale, shift, mean), shape = aligned_cores(
            [source.value, source.taint, scale, shift, mean]
        )
        # gamma exactly zero: the channel is beta, whatever comes in
        known = Known.of(((value - mean) * scale + shift).expand(shape), (taint & (scale != 0)).expand(shape))
        nothing = all_tainted(torch.Size([0]))
        return (known, nothing, nothing) if isinstance(node.meta["val"], tuple | list) else known

    @staticmethod
    def _line(parameter: Known, source: Known) -> Tensor:
        return parameter.value.reshape(-1, *([1] * (source.value.dim() - 2)))

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

    def _pad(self, node: Node) -> Known | tuple[Known, ...]:
        source, amounts = self.first(node), self._map(node.args[1], lambda known: known.value)
        if ops.pad_mode(node) == "constant":
            fill = ops.argument(node, "value") or 0.0
            pad = torch.ops.aten.constant_pad_nd.default
            return Known.of(pad(source.value, amounts, fill), pad(source.taint, amounts, False))
        padded = {source.value.dim() - 1 - index // 2 for index, n in enumerate(ops.numbers(amounts)) if n}
        if padded & {*varying_axes(source.value), *varying_axes(source.taint)}:
            return self._all_tainted_like(node)
        shape = concrete_shape(node)  # a border made of a constant's own values is that constant
        return Known.of(core(source.value).expand(shape), core(source.taint).expand(shape))

    def _pool(self, node: Node) -> Known | tuple[Known, ...]:
        source = self.first(node)
        axes = ops.POOLS[ops.op_name(node)]
        value, taint = core(source.value), core(source.taint)
        if set(varying_axes(source.value)) & set(range(source.value.dim() - axes, source.value.dim())):
            return self._all_tainted_like(node)
        for axis in range(taint.dim() - axes, taint.dim()):
            taint = taint.any(dim=axis, keepdim=True)
        if ops.op_name(node).startswith("avg_pool") and not _averages_in_bounds(node):
            taint = taint | (value != 0)
        output = node.meta["val"]
        if isinstance(output, tuple | list):
            shape = example_shape(output[0])
            indices = all_tainted(shape)
            return (Known.of(value.expand(shape), taint.expand(shape)), indices)
        shape = concrete_shape(node)
        return Known.of(value.expand(shape), taint.expand(shape))

    def _reduction(self, node: Node) -> Known | tuple[Known, ...]:
        source = self.first(node)
        assert callable(node.target)
        args = [source.value, *(self._map(argument, lambda k: k.value) for argument in node.args[1:])]
        kwargs = {key: argument for key, argument in node.kwargs.items() if key != "dtype"}
        if len(args) > 1 and not isinstance(args[1], list | tuple | int):
            return self._all_tainted_like(node)
        value = node.target(*args, **kwargs)
        taint = torch.ops.aten.sum.dim_IntList(
            source.taint.to(torch.float64), args[1] if len(args) > 1 else None, *args[2:3]
        )
        taint = taint > 0
        if ops.op_name(node) == "sum":
            taint = taint | (value != 0)  # a sum over positions changes with the resolution
        return Known.of(value, taint)

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
    return stored.reshape(stored.shape[0], -1).expand(t.shape[axis], -1)


def _taps(weight: Tensor, row_axis: int, column_axis: int) -> Tensor:
    """Return the weight as [O, I, kernel taps]."""
    moved = weight.movedim((row_axis, column_axis), (0, 1))
    return moved.reshape(moved.shape[0], moved.shape[1], -1)


def _spread(value: Tensor, taint: Tensor, axis: int, shape: torch.Size) -> Known:
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return Known.of(value.reshape(view).expand(shape), taint.reshape(view).expand(shape))


def _averages_in_bounds(node: Node) -> bool:
    """Return whether every output of an average pool is the mean of input elements alone."""
    has_own_divisor = ops.argument(node, "divisor_override") is not None
    return not has_own_divisor and not (ops.argument(node, "count_include_pad") and ops.adds_zeros(node))
