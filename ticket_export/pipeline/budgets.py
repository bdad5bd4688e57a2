"""What a mask's network costs as a share of dense: counted, or timed beside dense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import Mask
from ticket_export.export.onnx import onnx_from_module
from ticket_export.measure.compare import compare
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import dense_network
from ticket_export.pipeline.nodes import Node
from ticket_export.shrink.surgery import small_from_mask

_ROUNDS = 5  # the fewest that give an interval: a search times several networks


def cost_counter(context: Context, node: Node, kind: str, scratch: Path) -> Callable[[Mask], float]:
    """Return the function that tells a mask's cost as a share of dense, each mask once.

    Args:
        context: of the run.
        node: the finder that keeps to a budget.
        kind: `param_fraction`, `mac_fraction`, or `latency_fraction` in the node's runtime and precision.
        scratch: where networks to be timed are exported.
    """
    dense = dense_network(context, node.replicate or 0).eval()
    known: dict[tuple[int, ...], float] = {}
    if kind == "latency_fraction":
        measure = _timer(context, node, dense, scratch)
    else:
        measure = _counter(context, dense, kind)

    def cost_of(mask: Mask) -> float:
        widths = tuple(mask.kept_widths().values())
        if widths not in known:
            known[widths] = measure(small_from_mask(dense, context.groups, mask).eval())
        return known[widths]

    return cost_of


def _counter(context: Context, dense: nn.Module, kind: str) -> Callable[[nn.Module], float]:
    before = count_costs(dense, context.example_inputs)

    def share(network: nn.Module) -> float:
        after = count_costs(network, context.example_inputs)
        return after.params / before.params if kind == "param_fraction" else after.macs / before.macs

    return share


def _timer(context: Context, node: Node, dense: nn.Module, scratch: Path) -> Callable[[nn.Module], float]:
    measure = context.recipe.measure
    dense_path = _exported(context, node, dense, scratch / "dense.onnx")

    def share(network: nn.Module) -> float:
        path = _exported(context, node, network, scratch / "candidate.onnx")
        comparison = compare(
            {"dense": dense_path, "candidate": path},
            runtime=node.item["runtime"],
            batch=node.item["batch"],
            threads=measure.threads,
            scope=measure.scope,
            rounds=_ROUNDS,
            samples=measure.samples,
        )
        return 1 / comparison.speedup("candidate").ratio

    return share


def _exported(context: Context, node: Node, network: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return onnx_from_module(network, path, context.example_inputs, precision=node.item["precision"])
