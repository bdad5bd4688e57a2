"""The layers of two networks side by side: what the runtime timed, joined with what the files cost.

Runtimes fuse and rename. A runtime's layer belongs to the layer of the file whose node it names, or whose
following node it names when the kernel is one that multiplies. The layers of two files are paired by the
owner of their weights, and what is left by operator and order; what stays alone is told by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from ticket_export.runtime.layers import LayerCost, LayerProfile, LayerTime, NetworkCosts

_MULTIPLIES = re.compile(r"conv|gemm|matmul|linear", re.IGNORECASE)
# what runtimes call a change of layout or of type that no node of the file asks for
_REFORMATS = re.compile(r"reorder|reformat|memcpy|nchwto|nhwcto|shuffle|^cast$|^transpose$", re.IGNORECASE)
# ORT's names for nodes it made, and what TensorRT writes between the names of nodes it fused
_RUNTIME_SUFFIX = re.compile(r"(_nchwc|_nhwc|_quant|_token_\d+|/duplicated)+$")
_BETWEEN_NAMES = re.compile(r"\s*\+\s*|\s*\|\|\s*|,\s*|[\[\](){}]|\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedLayer:
    """A layer that multiplies, with all kernels that ran for it."""

    cost: LayerCost
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedNetwork:
    """A profile in the file's own layers.

    Attributes:
        layers: the layers that multiply, in the file's order; all of them were found in the profile.
        missing: layers of the file that no kernel could be found for.
        reformats: changes of layout or type that the runtime added.
        others: layers without multiplications, such as Add or MaxPool, and kernels nobody could place.
        between_s: seconds outside all layers.
        macs: of the whole file.
    """

    layers: tuple[TimedLayer, ...]
    missing: tuple[str, ...]
    reformats: tuple[LayerTime, ...]
    others: tuple[LayerTime, ...]
    between_s: float
    macs: int

    @property
    def whole_s(self) -> float:
        """Seconds of one profiled inference."""
        added = (*self.reformats, *self.others)
        kernels_s = sum(layer.seconds for layer in self.layers) + sum(layer.seconds for layer in added)
        return kernels_s + self.between_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """One layer in both networks; None where one of them does not have it."""

    name: str
    dense: TimedLayer | None
    ticket: TimedLayer | None


def timed_network(profile: LayerProfile, costs: NetworkCosts, latency_s: float | None = None) -> TimedNetwork:
    """Return the profile with every kernel placed.

    Args:
        profile: of the runtime.
        costs: of the same network at the same batch.
        latency_s: measured seconds of one inference without a profiler; what exceeds the layers then counts
            as time between them where the profile itself does not tell.
    """
    cost_by_name = {layer.name: layer for layer in costs.layers}
    seconds: dict[str, float] = {}
    reformats: list[LayerTime] = []
    others: list[LayerTime] = []
    for layer in profile.layers:
        owners = [name for name in _owners(layer, costs) if name in cost_by_name]
        total = sum(cost_by_name[name].macs for name in owners)
        for name in owners:  # kernels merged into one share its time by their MACs
            share = cost_by_name[name].macs / total if total else 1.0 / len(owners)
            seconds[name] = seconds.get(name, 0.0) + layer.seconds * share
        if not owners:
            in_file = layer.name in costs.fused_by_node
            reformat = not in_file and _REFORMATS.search(f"{layer.op or layer.name}") is not None
            (reformats if reformat else others).append(layer)
    others = _placed_by_order(others, cost_by_name, seconds)
    between_s = profile.between_s
    if between_s is None:
        between_s = max(0.0, latency_s - profile.layers_s) if latency_s is not None else 0.0
    return TimedNetwork(
        layers=tuple(
            TimedLayer(cost=layer, seconds=seconds[layer.name])
            for layer in costs.layers
            if layer.name in seconds
        ),
        missing=(*(layer.name for layer in costs.layers if layer.name not in seconds), *costs.uncounted),
        reformats=tuple(reformats),
        others=tuple(others),
        between_s=between_s,
        macs=costs.macs,
    )


def _placed_by_order(
    others: list[LayerTime], cost_by_name: Mapping[str, LayerCost], seconds: dict[str, float]
) -> list[LayerTime]:
    """Give nameless kernels to the layers still without one when there are as many; return the rest.

    A runtime that fuses nodes without names has none to give. As many kernels that multiply as layers left
    over, both in the order they run, are taken for each other.
    """
    left = [name for name in cost_by_name if name not in seconds]
    kernels = [layer for layer in others if _MULTIPLIES.search(layer.op)]
    if len(left) != len(kernels):
        return others
    seconds |= {name: kernel.seconds for name, kernel in zip(left, kernels, strict=True)}
    return [layer for layer in others if layer not in kernels]


def _owners(layer: LayerTime, costs: NetworkCosts) -> list[str]:
    """Return the layers of the file that a runtime's layer computes, each once."""
    name = _RUNTIME_SUFFIX.sub("", layer.name)
    words = [name, *(word for word in _BETWEEN_NAMES.split(layer.name) if word)]
    reformat = _REFORMATS.search(layer.op) or (not layer.op and re.match(r"reformat", layer.name, re.I))
    if reformat:
        return []
    direct = [costs.layer_by_node[word] for word in words if word in costs.layer_by_node]
    if direct or not _MULTIPLIES.search(layer.op):
        return list(dict.fromkeys(direct))
    return list(dict.fromkeys(costs.fused_by_node[word] for word in words if word in costs.fused_by_node))


def pairs_of(dense: TimedNetwork, ticket: TimedNetwork) -> list[LayerPair]:
    """Return every layer of both networks, paired by name, then by operator and order, in dense's order."""
    ours = {layer.cost.name: layer for layer in ticket.layers}
    names = {layer.cost.name: layer.cost.name for layer in dense.layers if layer.cost.name in ours}
    names |= _by_order(
        [layer.cost for layer in dense.layers if layer.cost.name not in names],
        [layer.cost for layer in ticket.layers if layer.cost.name not in names],
    )
    pairs = [
        LayerPair(
            name=layer.cost.name,
            dense=layer,
            ticket=ours[names[layer.cost.name]] if layer.cost.name in names else None,
        )
        for layer in dense.layers
    ]
    used = set(names.values())
    alone = [layer for layer in ticket.layers if layer.cost.name not in used]
    return pairs + [LayerPair(name=layer.cost.name, dense=None, ticket=layer) for layer in alone]


def _by_order(dense: Sequence[LayerCost], ticket: Sequence[LayerCost]) -> dict[str, str]:
    """Pair layers whose names differ between two exports: equal operators in equal order."""
    match = SequenceMatcher(None, [c.op for c in dense], [c.op for c in ticket], autojunk=False)
    return {
        dense[block.a + i].name: ticket[block.b + i].name
        for block in match.get_matching_blocks()
        for i in range(block.size)
    }


def seconds_by_op(layers: Sequence[LayerTime]) -> Mapping[str, float]:
    """Return the seconds of layers by their operator."""
    found: dict[str, float] = {}
    for layer in layers:
        word = layer.op or layer.name
        found[word] = found.get(word, 0.0) + layer.seconds
    return found
