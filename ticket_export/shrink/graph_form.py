"""Graph form: the traced graph over sliced tensors, for networks whose own forward holds a channel count.

ShuffleNet views its channels as two halves, a hand-written forward says `reshape(n, 8, h, w)`: no slicing
of parameters can mend that. The graph can: every size, split, slice and pad that speaks of channels is
rewritten to what is kept. Norms become the model's own modules again, so that the result trains like any
network; its parameters and `state_dict` keys are those of the module form.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from ticket_export.channels import ops
from ticket_export.channels.classes import FIXED
from ticket_export.channels.compact import core
from ticket_export.channels.graph import labelled_axes
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.movement import constant_index
from ticket_export.channels.trace import trace
from ticket_export.errors import ShrinkError
from ticket_export.shrink.plan import Plan

_SHAPED = {"view", "reshape", "_unsafe_view", "expand"}


def graph_form(small: nn.Module, dense: nn.Module, plan: Plan, inputs: Sequence[Tensor]) -> nn.Module:
    """Return a module that runs the graph of `dense` over the tensors of `small`.

    Args:
        small: the module form (`model_from_plan`); its forward need not work.
        dense: the network that was planned for.
        plan: what is kept.
        inputs: example inputs of `dense`; height and width stay open where the network allows it.

    Raises:
        ShrinkError: an operation cannot be rewritten to the kept channels.
    """
    graph = label(trace(dense, inputs, dynamic_size=True))
    editor = _Editor(graph, _kept_roots(graph, plan), small)
    return editor.run(type(dense).__name__)


def _kept_roots(graph: LabelledGraph, plan: Plan) -> Tensor:
    """Return by root whether a class is kept, read off the kept positions of every tensor it lies on."""
    kept = torch.zeros(graph.classes.num_labels, dtype=torch.bool)
    kept[list(graph.classes.pin_by_root())] = True
    kept[: FIXED + 1] = True
    for axis in labelled_axes(graph):
        positions = plan.kept.get(axis.tensor, {}).get(axis.axis)
        kept[axis.labels if positions is None else axis.labels[torch.tensor(positions)]] = True
    return kept


class _Editor:
    def __init__(self, graph: LabelledGraph, kept: Tensor, small: nn.Module) -> None:
        self.labels = graph
        self.kept = kept
        self.small = small
        self.graph: Graph = graph.trace.module.graph

    def run(self, class_name: str) -> nn.Module:
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node in self.labels.values:
                self._edit(node)
        self._use_norm_modules()
        self._add_biases()
        self._copy_constants()
        module = GraphModule(self.small, self.graph, class_name)
        module.graph.eliminate_dead_code()
        module.recompile()
        module.train(self.small.training)
        return module

    # ------------------------------------------------------------------ sizes that speak of channels

    def _edit(self, node: Node) -> None:
        name = ops.op_name(node)
        if name in _SHAPED:
            self._resize(node)
        elif name in ops.PADS:
            self._repad(node)
        elif name in {"split", "split_with_sizes", "chunk"}:
            self._resplit(node)
        elif name in {"slice", "narrow"}:
            self._reslice(node)
        elif name == "select":
            self._reselect(node)
        elif name in {"index_select", "index"}:
            self._reindex(node)
        elif name in ops.CONVOLUTIONS:
            self._regroup(node)

    def _part(self, node: Node, position: int = 0) -> Tensor:
        labels = self.labels.values[node]
        return labels[position] if isinstance(labels, tuple) else labels

    def _kept_along(self, labels: Tensor, axis: int) -> Tensor:
        """Return bool per position on `axis`: whether anything of it is kept."""
        stored = core(self.labels.classes.roots(labels))
        lines = self.kept[stored].movedim(axis, 0).reshape(stored.shape[axis], -1).any(dim=1)
        return lines.expand(labels.shape[axis])

    def _source(self, node: Node) -> Node:
        source = node.args[0]
        assert isinstance(source, Node)
        return source

    def _resize(self, node: Node) -> None:
        labels = self._part(node)
        sizes = list(node.args[1])  # type: ignore[arg-type]
        for axis in range(labels.dim()):
            keep = self._kept_along(labels, axis)
            if not keep.all() and sizes[axis] != -1:
                # a size that is computed (batch times heads, say) cannot be rewritten; one may be left open
                sizes[axis] = int(keep.sum()) if isinstance(sizes[axis], int) else -1
        if sizes.count(-1) > 1 and ops.op_name(node) != "expand":
            raise self._refusal(node)
        node.update_arg(1, sizes)

    def _repad(self, node: Node) -> None:
        labels, amounts = self._part(node), list(node.args[1])  # type: ignore[arg-type]
        for index in range(len(amounts) // 2):
            axis = labels.dim() - 1 - index
            keep = self._kept_along(labels, axis)
            if keep.all():
                continue
            before, after = amounts[2 * index], amounts[2 * index + 1]
            if not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
                raise self._refusal(node)
            amounts[2 * index] = int(keep[:before].sum())
            amounts[2 * index + 1] = int(keep[len(keep) - after :].sum()) if after else 0
        node.update_arg(1, amounts)

    def _resplit(self, node: Node) -> None:
        axis = int(ops.argument(node, "dim") or 0) % self._part(self._source(node)).dim()
        parts = self.labels.values[node]
        assert isinstance(parts, tuple)
        keeps = [self._kept_along(part, axis) for part in parts]
        if not all(keep.all() for keep in keeps):
            node.target = torch.ops.aten.split_with_sizes.default
            node.args = (node.args[0], [int(keep.sum()) for keep in keeps], axis)
            node.kwargs = {}

    def _reslice(self, node: Node) -> None:
        source = self._part(self._source(node))
        axis = int(ops.argument(node, "dim") or 0) % source.dim()
        keep = self._kept_along(source, axis)
        if keep.all():
            return
        start, step = ops.argument(node, "start") or 0, ops.argument(node, "step") or 1
        if ops.op_name(node) != "slice" or not isinstance(start, int) or step != 1:
            raise self._refusal(node)
        start = start if start >= 0 else start + len(keep)
        first = int(keep[:start].sum())
        length = int(self._kept_along(self._part(node), axis).sum())
        node.args = (node.args[0], axis, first, first + length)
        node.kwargs = {}

    def _reselect(self, node: Node) -> None:
        source = self._part(self._source(node))
        axis = int(ops.argument(node, "dim")) % source.dim()
        keep = self._kept_along(source, axis)
        index = ops.argument(node, "index")
        if not keep.all():
            index = index if index >= 0 else index + len(keep)
            node.args = (node.args[0], axis, int(keep[:index].sum()))

    def _reindex(self, node: Node) -> None:
        source = self._part(self._source(node))
        lost = [axis for axis in range(source.dim()) if not self._kept_along(source, axis).all()]
        if ops.op_name(node) == "index":
            given = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]  # type: ignore[arg-type]
        else:
            given = [(int(ops.argument(node, "dim")) % source.dim(), ops.argument(node, "index"))]
        if not set(lost) & {axis for axis, _ in given}:
            return
        (axis, index_node), *others = given
        index = constant_index(index_node, self.labels.trace)
        if others or index is None or index.dim() != 1:
            raise self._refusal(node)
        keep = self._kept_along(source, axis)
        rank = keep.cumsum(0) - 1
        name = f"{node.name}_kept"
        self.small.register_buffer(name, rank[index[keep[index]]], persistent=False)
        with self.graph.inserting_before(node):
            read = self.graph.create_node("get_attr", name)
        node.target, node.args, node.kwargs = (
            torch.ops.aten.index_select.default, (node.args[0], axis, read), {},
        )  # fmt: skip

    def _regroup(self, node: Node) -> None:
        if ops.argument(node, "groups") > 1:
            weight = node.args[1]
            assert isinstance(weight, Node)
            owner = self.small.get_submodule(str(weight.target).rpartition(".")[0])
            groups = owner.groups if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) else None
            if groups is None:
                raise self._refusal(node)
            node.update_arg(6, groups)

    def _refusal(self, node: Node) -> ShrinkError:
        return ShrinkError(
            f"{node.name} ({ops.op_name(node)}) holds a channel count that cannot be rewritten: "
            f"{node.args[1:]}",
            hint="let the forward read the sizes off its tensors",
        )

    # ------------------------------------------------------------------ the modules behind the graph

    def _use_norm_modules(self) -> None:
        """Call the model's own batch norms where the graph calls their frozen form."""
        for node in list(self.graph.nodes):
            if ops.op_name(node) not in ops.BATCH_NORMS:
                continue
            mean = node.args[3]
            owner_name = str(mean.target).rpartition(".")[0] if isinstance(mean, Node) else ""
            if not isinstance(_submodule(self.small, owner_name), _BatchNorm):
                continue
            with self.graph.inserting_before(node):
                called = self.graph.call_module(owner_name, (node.args[0],))
            called.meta = dict(node.meta)
            for user in list(node.users):
                if user.target is operator.getitem:
                    user.replace_all_uses_with(called)
                    self.graph.erase_node(user)
            node.replace_all_uses_with(called)
            self.graph.erase_node(node)

    def _add_biases(self) -> None:
        """Read the biases that folding added: `small` has them, the graph does not know them."""
        for contraction in self.labels.contractions:
            node = contraction.node
            owner_name = contraction.weight.rpartition(".")[0]
            bias = getattr(_submodule(self.small, owner_name), "bias", None)
            if contraction.bias is None and isinstance(bias, Tensor):
                with self.graph.inserting_before(node):
                    read = self.graph.create_node("get_attr", f"{owner_name}.bias")
                node.args = (*node.args[:2], read, *node.args[3:])

    def _copy_constants(self) -> None:
        """Give `small` the constants that tracing lifted out of the forward."""
        for node in self.graph.nodes:
            if node.op == "get_attr" and _attribute(self.small, str(node.target)) is None:
                value = self.labels.trace.tensor(str(node.target))
                self.small.register_buffer(str(node.target), value, persistent=False)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _attribute(model: nn.Module, name: str) -> Any:  # Any: what the attribute holds
    owner = _submodule(model, name.rpartition(".")[0])
    return getattr(owner, name.rpartition(".")[2], None)
