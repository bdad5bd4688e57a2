"""Where two networks part: the first layer whose output differs on the channels that were kept.

A shrunk network is proven by its outputs. When they differ, the layers tell where it went wrong: every layer
of the small network computes what the dense one computes on its kept channels, except where the shrink
itself moved a constant past it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from ticket_export.channels.compact import core
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.shrink.equivalence import evaluating, output_tensors
from ticket_export.shrink.plan import Plan
from ticket_export.shrink.removable import Decision


class Call(NamedTuple):
    """One call of a layer: its module path, and how often it was called before in the same forward."""

    path: str
    number: int

    @property
    def name(self) -> str:
        """What a message says."""
        return self.path if self.number == 0 else f"{self.path} (call {self.number + 1})"


def first_difference(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    graph: LabelledGraph,
    decision: Decision,
    inputs: Sequence[Tensor],
    *,
    tolerance: float,
) -> str | None:
    """Return the first layer, in the order of execution, after which `small` differs from `dense`.

    Compared are the outputs of the layers that call no other layer, on the positions whose values matter
    (`decision.needed`): carriers and channels kept for the width may differ. A layer whose constants went
    into the running mean behind it is passed over, the norm is compared.

    Args:
        small: the shrunk network, in module or in graph form; its forward must accept `inputs`.
        dense: the network it was made from.
        plan: what is kept, and what was folded where.
        graph: the labels of `dense`.
        decision: which channels are kept and which are needed, by the roots of `graph`.
        inputs: as for `dense`; of the resolution that was traced, where the forward fixes one.
        tolerance: allowed max|a-b| / max|b| of a layer's output.

    Returns:
        The layer in words, e.g. "first difference after layer2.0.conv2: relative error 0.31", or None where
        no compared layer differs.
    """
    nodes = _last_node_by_call(graph.trace.module.graph)
    shifted = {fold.weight.rpartition(".")[0] for fold in plan.folds if fold.kind == "running_mean"}
    expected_by_call = _outputs_by_call(dense, inputs, nodes)
    found_by_call = _outputs_by_call(small, inputs, nodes)
    for call, node in nodes.items():
        labels = graph.values.get(node)
        if call.path in shifted or not isinstance(labels, Tensor):
            continue
        expected, found = expected_by_call.get(call), found_by_call.get(call)
        if expected is None or found is None or not expected.is_floating_point():
            continue
        roots = core(graph.classes.roots(labels))
        if not _lies_on(roots, expected):
            continue
        text = _difference(found, *_kept(expected, roots, decision), tolerance)
        if text is not None:
            return f"first difference after {call.name}: {text}"
    return None


def _lies_on(roots: Tensor, value: Tensor) -> bool:
    """Return whether the labels fit the value: a layer may return another tensor than it computed last."""
    return roots.dim() == value.dim() and all(
        size in (1, length) for size, length in zip(roots.shape, value.shape, strict=True)
    )


def _kept(value: Tensor, roots: Tensor, decision: Decision) -> tuple[Tensor, Tensor]:
    """Return what is kept of a dense output, and, broadcastable to it, where the small one must equal it."""
    kept, needed = decision.kept[roots], decision.needed[roots]
    for axis in range(roots.dim()):
        if roots.shape[axis] > 1:
            lines = torch.nonzero(kept.movedim(axis, 0).flatten(1).any(dim=1)).flatten()
            needed = needed.index_select(axis, lines)
            value = value.index_select(axis, lines.to(value.device))
    return value, needed.to(value.device)


def _difference(found: Tensor, expected: Tensor, needed: Tensor, tolerance: float) -> str | None:
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    needed = needed.expand(expected.shape)
    found, expected = found[needed].double(), expected[needed].double()
    if not expected.numel():
        return None
    largest, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if largest <= tolerance * scale:  # a NaN is no such number
        return None
    return f"relative error {largest / scale:.2g}" if scale else f"{largest:.2g} where it is zero"


# ---------------------------------------------------------------------- layers and their outputs


def _last_node_by_call(graph: Graph) -> dict[Call, Node]:
    """Return call -> the node of its result, for the layers that call no other, in order of execution."""
    last: dict[str, Node] = {}
    callers: set[str] = set()
    for node in graph.nodes:
        stack = _stack(node)
        callers.update(stack[:-1])
        if stack:
            last[stack[-1]] = node
    nodes = {_call(node): node for key, node in last.items() if key not in callers}
    order = {node: position for position, node in enumerate(graph.nodes)}
    return dict(sorted(nodes.items(), key=lambda item: order[item[1]]))


def _stack(node: Node) -> list[str]:
    """Return the calls a node was traced in, outermost first; a call is a key of its own."""
    return list(node.meta.get("nn_module_stack") or {})


def _call(node: Node) -> Call:
    key, (path, _) = list(node.meta["nn_module_stack"].items())[-1]
    number = key.rpartition("@")[2]  # torch.export numbers a module's calls from the second one on
    return Call(path, int(number) if "@" in key and number.isdigit() else 0)


def _outputs_by_call(
    model: nn.Module, inputs: Sequence[Tensor], nodes: Mapping[Call, Node]
) -> dict[Call, Tensor]:
    with evaluating(model), torch.no_grad():
        if isinstance(model, GraphModule) and _last_node_by_call(model.graph):
            return _outputs_of_graph(model, inputs)
        outputs: dict[Call, Tensor] = {}
        with _recording(model, {call.path for call in nodes}, outputs):
            model(*inputs)
        return outputs


def _outputs_of_graph(model: GraphModule, inputs: Sequence[Tensor]) -> dict[Call, Tensor]:
    call_by_node = {node: call for call, node in _last_node_by_call(model.graph).items()}
    outputs: dict[Call, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:  # Any: what the node gives
            value = super().run_node(n)
            if n in call_by_node and isinstance(value, Tensor):
                outputs[call_by_node[n]] = value
            return value

    Recorder(model).run(*inputs)
    return outputs


@contextmanager
def _recording(model: nn.Module, paths: set[str], outputs: dict[Call, Tensor]) -> Iterator[None]:
    """Fill `outputs` with what each layer in `paths` returns in each of its calls."""
    num_calls = dict.fromkeys(paths, 0)

    def recorder(path: str) -> Any:  # Any: a hook of torch's own signature
        def record(_module: nn.Module, _inputs: object, value: object) -> None:
            tensors = output_tensors(value)
            if tensors:  # a copy: the next layer may work in place
                outputs[Call(path, num_calls[path])] = tensors[0].detach().clone()
            num_calls[path] += 1

        return record

    handles = [
        module.register_forward_hook(recorder(path))
        for path, module in model.named_modules()
        if path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
