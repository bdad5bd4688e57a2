"""The sizes in a traced graph that speak of channels, rewritten to what is kept.

Views, expansions, splits, pads, selections and indices hold channel counts and positions. Each is rewritten
from the labels of what it reads and what it gives; one that cannot be is refused, with the tensors whose
channels it touches, so that these can be kept instead.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ticket_export.channels import ops
from ticket_export.channels.compact import compact, core, varying_axes
from ticket_export.channels.graph import labelled_axes
from ticket_export.channels.labelled import LabelledGraph, parts_of
from ticket_export.channels.movement import constant_index, moved
from ticket_export.channels.trace import concrete_number
from ticket_export.errors import ShrinkError

_SHAPED = {"view", "reshape", "_unsafe_view", "expand"}
# moved along one axis by positions that a kept channel does not have any more
_PERMUTED = {"roll", "flip", "channel_shuffle", "repeat", "repeat_interleave", "tile", "slice", "narrow"}


class RefusedEditError(ShrinkError):
    """An operation of the graph cannot be rewritten to the kept channels.

    Attributes:
        axes: the (tensor, axis) pairs whose channels it touches.
        reason: in words, for the report.
    """

    def __init__(self, reason: str, axes: frozenset[tuple[str, int]]) -> None:
        super().__init__(f"{reason} holds a channel count that cannot be rewritten")
        self.reason = reason
        self.axes = axes


class GraphEditor:
    """Rewrites the nodes of one labelled graph in place.

    Args:
        labels: the labelled graph.
        kept: bool by root of a class.
        small: holds the sliced tensors; new index buffers are registered here.
    """

    def __init__(self, labels: LabelledGraph, kept: Tensor, small: nn.Module) -> None:
        self.labels = labels
        self.kept = kept
        self.small = small
        self.graph: Graph = labels.trace.module.graph
        self.is_done: set[Node] = set()

    def edit(self) -> None:
        """Rewrite every node.

        Raises:
            RefusedEditError: a node cannot be rewritten.
        """
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node in self.labels.values and node not in self.is_done:
                self._edit(node)

    def _edit(self, node: Node) -> None:
        name = ops.op_name(node)
        if name in _SHAPED:
            self._resize(node)
        elif name in ops.PADS:
            self._repad(node)
        elif name in {"split", "split_with_sizes", "chunk"}:
            self._resplit(node)
        elif name == "unbind":
            self._unbind(node)
        elif name == "stack":
            self._restack(node)
        elif name == "select":
            self._reselect(node)
        elif name in {"index_select", "index"}:
            self._reindex(node)
        elif name in _PERMUTED:
            self._permute(node)
        elif name == "slice_scatter" and not self.kept_along(self.part(node), self._axis(node)).all():
            raise self._refusal(node)
        elif name in ops.CONVOLUTIONS | ops.TRANSPOSED_CONVOLUTIONS:
            self._regroup(node)
        elif name == "group_norm":
            self._regroup_norm(node)

    def part(self, node: Node, position: int = 0) -> Tensor:
        """Return the labels of a node's tensor."""
        if node.op == "get_attr":
            return self.labels.leaves[str(node.target)]
        labels = self.labels.values[node]
        return labels[position] if isinstance(labels, tuple) else labels

    def kept_along(self, labels: Tensor, axis: int) -> Tensor:
        """Return bool per position on `axis`: whether anything of it is kept."""
        stored = core(self.labels.classes.roots(labels))
        lines = self.kept[stored].movedim(axis, 0).reshape(stored.shape[axis], -1).any(dim=1)
        return lines.expand(labels.shape[axis])

    def _axis(self, node: Node) -> int:
        return int(ops.argument(node, "dim") or 0) % self.part(_source(node)).dim()

    def _resize(self, node: Node) -> None:
        labels = self.part(node)
        sizes = list(node.args[1])  # type: ignore[arg-type]
        offset = len(sizes) - labels.dim()
        for axis in range(labels.dim()):
            keep = self.kept_along(labels, axis)
            if not keep.all() and sizes[offset + axis] != -1:
                # a size that is computed (batch times heads, say) cannot be rewritten; one may be left open
                is_number = isinstance(sizes[offset + axis], int)
                sizes[offset + axis] = int(keep.sum()) if is_number else -1
        if sizes.count(-1) > 1 and ops.op_name(node) != "expand":
            raise self._refusal(node)
        node.update_arg(1, sizes)
        if ops.op_name(node) != "expand":
            node.target = torch.ops.aten.reshape.default  # what is selected does not lie as it lay before

    def _repad(self, node: Node) -> None:
        labels, amounts = self.part(node), list(node.args[1])  # type: ignore[arg-type]
        for index in range(len(amounts) // 2):
            axis = labels.dim() - 1 - index
            keep = self.kept_along(labels, axis)
            if keep.all():
                continue
            before, after = amounts[2 * index], amounts[2 * index + 1]
            if not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
                raise self._refusal(node)
            amounts[2 * index] = int(keep[:before].sum())
            amounts[2 * index + 1] = int(keep[len(keep) - after :].sum()) if after else 0
        node.update_arg(1, amounts)

    def _resplit(self, node: Node) -> None:
        axis = self._axis(node)
        parts = self.labels.values[node]
        assert isinstance(parts, tuple)
        keeps = [self.kept_along(part, axis) for part in parts]
        if not all(keep.all() for keep in keeps):
            node.target = torch.ops.aten.split_with_sizes.default
            node.args = (node.args[0], [int(keep.sum()) for keep in keeps], axis)
            node.kwargs = {}

    def _unbind(self, node: Node) -> None:
        axis = self._axis(node)
        keep = self.kept_along(self.part(_source(node)), axis)
        if keep.all():
            return
        for user in list(node.users):
            assert user.target is operator.getitem
            self.is_done.add(user)
            user.target = torch.ops.aten.select.int
            user.args = (node.args[0], axis, _rank(keep, int(user.args[1])))  # type: ignore[arg-type]

    def _restack(self, node: Node) -> None:
        keep = self.kept_along(self.part(node), int(ops.argument(node, "dim") or 0) % self.part(node).dim())
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        node.update_arg(0, [part for part, is_kept in zip(parts, keep.tolist(), strict=True) if is_kept])

    def _reselect(self, node: Node) -> None:
        axis = self._axis(node)
        keep = self.kept_along(self.part(_source(node)), axis)
        if not keep.all():
            node.args = (node.args[0], axis, _rank(keep, ops.argument(node, "index")))
            node.kwargs = {}

    def _reindex(self, node: Node) -> None:
        source = self.part(_source(node))
        lost = [axis for axis in range(source.dim()) if not self.kept_along(source, axis).all()]
        if ops.op_name(node) == "index":
            given = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]  # type: ignore[arg-type]
        else:
            given = [(self._axis(node), ops.argument(node, "index"))]
        if not set(lost) & {axis for axis, _ in given}:
            return
        (axis, index_node), *others = given
        index = constant_index(index_node, self.labels.trace)
        if others or index is None or index.dim() != 1:
            raise self._refusal(node)
        keep = self.kept_along(source, axis)
        index = torch.where(index < 0, index + len(keep), index)
        self._select(node, axis, (keep.cumsum(0) - 1)[index[keep[index]]])

    def _permute(self, node: Node) -> None:
        source, result = self.part(_source(node)), self.part(node)
        lost = [axis for axis in range(source.dim()) if not self.kept_along(source, axis).all()]
        if not lost:
            return
        if len(lost) > 1 or result.dim() != source.dim():
            raise self._refusal(node)
        (axis,) = lost
        axes = _moved_axes(node, source.dim())
        if axis not in axes:
            return
        if axes != {axis}:
            raise self._refusal(node)
        view = [1] * source.dim()
        view[axis] = source.shape[axis]
        places = torch.arange(source.shape[axis]).reshape(view).expand(source.shape)
        positions = moved(
            node, lambda part: places if part is _source(node) else _number(part), self.labels.trace
        )
        if not isinstance(positions, Tensor) or varying_axes(compact(positions)) not in ([axis], []):
            raise self._refusal(node)
        line = positions.movedim(axis, 0).flatten(1)[:, 0]
        rank = self.kept_along(source, axis).cumsum(0) - 1
        self._select(node, axis, rank[line[self.kept_along(result, axis)]])

    def _select(self, node: Node, axis: int, index: Tensor) -> None:
        first, last = (int(index[0]), int(index[-1])) if len(index) else (0, -1)
        if len(index) == last - first + 1 and bool((index.diff() == 1).all()):
            node.target = torch.ops.aten.slice.Tensor
            node.args, node.kwargs = (node.args[0], axis, first, last + 1), {}
            return
        name = f"{node.name}_kept"
        self.small.register_buffer(name, index, persistent=False)
        with self.graph.inserting_before(node):
            read = self.graph.create_node("get_attr", name)
        node.target, node.args, node.kwargs = (
            torch.ops.aten.index_select.default, (node.args[0], axis, read), {},
        )  # fmt: skip

    def _regroup(self, node: Node) -> None:
        if ops.argument(node, "groups") == 1:
            return
        weight = node.args[1]
        assert isinstance(weight, Node)
        if str(weight.target) in self.labels.depthwise:
            node.update_arg(6, int(self.kept_along(self.part(node), 1).sum()))
        elif str(weight.target) in self.labels.grouped_columns:
            owner = self.small.get_submodule(str(weight.target).rpartition(".")[0])
            assert isinstance(owner.groups, int)
            node.update_arg(6, owner.groups)

    def _regroup_norm(self, node: Node) -> None:
        keep = self.kept_along(self.part(_source(node)), 1)
        num_groups = int(ops.argument(node, "num_groups"))
        node.update_arg(1, int(keep.sum()) * num_groups // len(keep))

    def _refusal(self, node: Node) -> RefusedEditError:
        touched = [
            self.labels.classes.roots(part)
            for n in (node, *node.all_input_nodes)
            if n in self.labels.values
            for part in parts_of(self.labels.values[n])
        ]
        roots = torch.unique(torch.cat([core(part).reshape(-1) for part in touched]))
        roots = roots[~self.kept[roots]]
        axes = {
            (axis.tensor, axis.axis)
            for axis in labelled_axes(self.labels)
            if torch.isin(axis.labels, roots).any()
        }
        return RefusedEditError(f"{node.name} ({ops.op_name(node)})", frozenset(axes))


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _moved_axes(node: Node, num_axes: int) -> set[int]:
    """Return the axes along which an operation of `_PERMUTED` moves elements."""
    name = ops.op_name(node)
    if name == "channel_shuffle":
        return {1}
    if name in {"repeat", "tile"}:
        repeats = ops.argument(node, "repeats" if name == "repeat" else "dims")
        first = num_axes - len(repeats)
        return {first + position for position, number in enumerate(repeats) if number != 1}
    given = ops.argument(node, "dims" if name in {"roll", "flip"} else "dim")
    return {axis % num_axes for axis in ops.numbers(given)} or (
        {0} if name == "slice" else set(range(num_axes))
    )


def _number(argument: object) -> object:
    """Return an argument with a size that is open replaced by its value at the example."""
    if isinstance(argument, Node):
        return concrete_number(argument)
    if isinstance(argument, list | tuple):
        return type(argument)(_number(part) for part in argument)
    return argument


def _rank(keep: Tensor, index: int) -> int:
    """Return where position `index` is among the kept ones; a valid place also for one that goes."""
    index = index if index >= 0 else index + len(keep)
    return min(int(keep[:index].sum()), int(keep.sum()) - 1)
