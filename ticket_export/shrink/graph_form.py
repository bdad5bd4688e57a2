"""Graph form: the traced graph over sliced tensors, for networks that no slicing of parameters can mend.

ShuffleNet views its channels as two halves, a hand-written forward says `reshape(n, 8, h, w)`: every size,
split, slice and pad that speaks of channels is rewritten to what is kept. A layer of which nothing depends on
the input becomes its constant, and what only it read disappears. Norms become the model's own modules again,
so that the result trains like any network; its parameters have the `state_dict` keys of the module form.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ticket_export.channels import ops
from ticket_export.channels.classes import FIXED
from ticket_export.channels.compact import aligned_cores, varying_axes
from ticket_export.channels.constants import find_constants
from ticket_export.channels.graph import labelled_axes
from ticket_export.channels.known import Known
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.products import ATTENTION
from ticket_export.channels.trace import Trace, trace
from ticket_export.shrink.graph_edits import GraphEditor
from ticket_export.shrink.layers import MORE
from ticket_export.shrink.plan import Plan

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def open_graph(dense: nn.Module, plan: Plan, inputs: Sequence[Tensor]) -> LabelledGraph:
    """Return the labelled graph of `dense` with the sizes open that the plan leaves open."""
    return label(trace(dense, inputs, open_batch=True, open_size=plan.open_size))


def graph_form(small: nn.Module, graph: LabelledGraph, plan: Plan, class_name: str) -> nn.Module:
    """Return a module that runs the graph of the dense network over the tensors of `small`.

    Args:
        small: the module form (`model_from_plan`); its forward need not work. It is changed.
        graph: of the dense network (`open_graph`). It is changed.
        plan: what is kept, and which operands are constants.
        class_name: what the result calls itself.

    Raises:
        RefusedEditError: an operation cannot be rewritten to the kept channels.
    """
    return _Builder(graph, kept_roots(graph, plan), small).run(plan, class_name)


def may_open_sizes(traced: Trace) -> bool:
    """Return whether the graph form leaves height and width open.

    torch.export takes minutes to reason about attention over windows of open sizes (swin_t: 122 s), so a
    network with rolled windows keeps the resolution of its example.
    """
    names = {ops.op_name(node) for node in traced.module.graph.nodes}
    return not (names & {"roll", "einsum"} and names & (ops.SOFTMAXES | {ATTENTION}))


def kept_roots(graph: LabelledGraph, plan: Plan) -> Tensor:
    """Return by root whether a class is kept, read off the kept positions of every tensor it lies on."""
    kept = torch.zeros(graph.classes.num_labels, dtype=torch.bool)
    kept[list(graph.classes.pin_by_root())] = True
    kept[: FIXED + 1] = True
    for axis in labelled_axes(graph):
        positions = plan.kept.get(axis.tensor, {}).get(axis.axis)
        kept[
            axis.labels if positions is None else axis.labels[torch.tensor(positions, dtype=torch.int64)]
        ] = True
    for weight, (_, labels) in graph.grouped_columns.items():
        inputs = plan.grouped[weight][1] if weight in plan.grouped else range(len(labels))
        kept[graph.classes.roots(labels)[torch.tensor(inputs, dtype=torch.int64)]] = True
    return kept


def constant_name(operand: str) -> str:
    """Return the name of the buffer that holds the constant of an operand."""
    return f"constant_{operand}"


def constant_operands(graph: LabelledGraph, plan: Plan, needed: Plan) -> dict[str, tuple[str, Tensor | None]]:
    """Return the operands of element-wise operations that do not depend on the input where they matter.

    Args:
        graph: of the network with its zeros (`open_graph`).
        plan: what is kept.
        needed: the part of it whose values matter.

    Returns:
        name of the operation -> name of the operand, and its value with one element per kept channel and
        size 1 on every other axis; None for an added zero.
    """
    kept, matters = kept_roots(graph, plan), kept_roots(graph, needed)
    known = find_constants(graph, keep_all=True).values
    found: dict[Node, Tensor | None] = {}

    def constant(node: Node) -> Tensor | None:
        if node not in found:
            labels, value = graph.values.get(node), known.get(node)
            found[node] = None
            if isinstance(labels, Tensor) and isinstance(value, Known):
                found[node] = _kept_constant(graph, labels, value, kept, matters)
        return found[node]

    operands: dict[str, tuple[str, Tensor | None]] = {}
    for node in graph.trace.module.graph.nodes:
        pair = [argument for argument in node.args if isinstance(argument, Node) and argument in graph.values]
        if not ops.is_pointwise(node) or len(pair) != 2 or constant(node) is not None:
            continue
        for operand, other in (pair, pair[::-1]):
            value = constant(operand)
            has_full_shape = other.meta["val"].shape == node.meta["val"].shape
            if value is not None and has_full_shape and operand.op == "call_function":
                is_nothing = ops.op_name(node) == "add" and not value.any()
                operands[node.name] = (operand.name, None if is_nothing else value)
    return operands


def _kept_constant(
    graph: LabelledGraph, labels: Tensor, known: Known, kept: Tensor, matters: Tensor
) -> Tensor | None:
    """Return a value on its kept channels, or None where it depends on the input or changes over places."""
    (roots, value, taint), _ = aligned_cores([graph.classes.roots(labels), known.value, known.taint])
    its_channels = varying_axes(roots)
    counts = matters[roots]
    if (taint & counts).any() or any(
        value.shape[axis] > 1 and axis not in its_channels for axis in range(value.dim())
    ):
        return None
    value = torch.where(counts, value, 0.0)
    for axis in its_channels:
        others = [other for other in range(value.dim()) if other != axis]
        keep = kept[roots].amax(dim=others) if others else kept[roots]
        value = value.index_select(axis, torch.nonzero(keep).flatten())
    return value


class _Builder:
    def __init__(self, graph: LabelledGraph, kept: Tensor, small: nn.Module) -> None:
        self.labels = graph
        self.kept = kept
        self.small = small
        self.graph: Graph = graph.trace.module.graph

    def run(self, plan: Plan, class_name: str) -> nn.Module:
        GraphEditor(self.labels, self.kept, self.small).edit()
        self._replace_constants(plan)
        self._use_norm_modules()
        self._use_larger_layers()
        self._add_biases(plan)
        self._copy_constants()
        whole = GraphModule(self.small, self.graph, class_name)
        whole.graph.eliminate_dead_code()
        module = GraphModule(whole, whole.graph, class_name)  # holds what is still read
        module.train(self.small.training)
        return module

    def _replace_constants(self, plan: Plan) -> None:
        by_name = {node.name: node for node in self.graph.nodes}
        for user_name, (operand_name, shape) in plan.constants.items():
            node, operand = by_name[user_name], by_name[operand_name]
            if shape is None:
                (other,) = (source for source in node.all_input_nodes if source is not operand)
                node.replace_all_uses_with(other)
                continue
            name = constant_name(operand_name)
            if _attribute(self.small, name) is None:
                dtype = operand.meta["val"].dtype
                self.small.register_buffer(name, torch.zeros(shape, dtype=dtype))
            with self.graph.inserting_before(node):
                read = self.graph.create_node("get_attr", name)
            node.replace_input_with(operand, read)

    def _use_larger_layers(self) -> None:
        """Call the layers that hold a border term or live rows alone, in place of their operation."""
        for contraction in self.labels.contractions:
            owner_name = contraction.weight.rpartition(".")[0]
            if not self._is_larger(owner_name):
                continue
            node = contraction.node
            with self.graph.inserting_before(node):
                called = self.graph.call_module(owner_name, (node.args[0],))
            called.meta = dict(node.meta)
            node.replace_all_uses_with(called)
            self.graph.erase_node(node)

    def _use_norm_modules(self) -> None:
        """Call the model's own batch norms where the graph calls their frozen form."""
        for node in list(self.graph.nodes):
            if ops.op_name(node) not in ops.BATCH_NORMS:
                continue
            mean = node.args[3]
            owner_name = str(mean.target).rpartition(".")[0] if isinstance(mean, Node) else ""
            norm = _submodule(self.small, owner_name)
            plain = next((kind for kind in _NORMS if isinstance(norm, kind)), None)
            if norm is None or plain is None:
                continue
            # a subclass may do more in its forward (an activation, say), which the graph does by itself
            norm.__class__ = plain
            with self.graph.inserting_before(node):
                called = self.graph.call_module(owner_name, (node.args[0],))
            called.meta = dict(node.meta)
            for user in list(node.users):
                if user.target is operator.getitem:
                    user.replace_all_uses_with(called)
                    self.graph.erase_node(user)
            node.replace_all_uses_with(called)
            self.graph.erase_node(node)

    def _is_larger(self, owner_name: str) -> bool:
        return type(_submodule(self.small, owner_name)) in MORE.values()

    def _add_biases(self, plan: Plan) -> None:
        """Read the biases that folding added: `small` has them, the graph does not know them."""
        for contraction in self.labels.contractions:
            node, owner_name = contraction.node, contraction.weight.rpartition(".")[0]
            if contraction.weight in plan.new_biases and not self._is_larger(owner_name):
                with self.graph.inserting_before(node):
                    read = self.graph.create_node("get_attr", f"{owner_name}.bias")
                node.args = (*node.args[:2], read, *node.args[3:])

    def _copy_constants(self) -> None:
        """Give `small` the constants that tracing lifted out of the forward."""
        for node in self.graph.nodes:
            if node.op == "get_attr" and _attribute(self.small, str(node.target)) is None:
                value = self.labels.trace.tensor(str(node.target))
                node.target = str(node.target).replace(".", "_")
                self.small.register_buffer(node.target, value, persistent=False)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _attribute(model: nn.Module, name: str) -> Any:  # Any: what the attribute holds
    owner = _submodule(model, name.rpartition(".")[0])
    return getattr(owner, name.rpartition(".")[2], None)
