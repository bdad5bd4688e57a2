"""What Regroup's blocks execute: weights kept beside MACs executed, and the layers that run whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ticket_export.report.lineage import Lineage
from ticket_export.report.order import subject_order


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayer:
    """One layer as it is executed.

    Attributes:
        layer: its name.
        num_blocks: dense blocks of rows and columns.
        form: `grouped` is one grouped convolution, `blocks` a small one per block, `dense` the whole layer.
        reason: why it is dense, or how its output comes into order.
        dense_macs: of the dense network's layer, per image.
        executed_macs: of what runs in its place.
    """

    layer: str
    num_blocks: int
    form: str
    reason: str
    dense_macs: int
    executed_macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """One network made of blocks; densities are shares of the dense network.

    Attributes:
        subject: whose.
        replicate: from 0.
        pruned_density: share of the prunable weights that magnitude pruning left before they were grouped;
            None for a mask that was made from another one.
        param_density: weights that the mask keeps.
        executed_density: weights that the executed network holds, zeros of layers that run whole included.
        mac_density: MACs that it executes.
        layers: every convolution, in the network's order.
        no_block: layer -> why the finder made no block of it.
    """

    subject: str
    replicate: int
    pruned_density: float | None
    param_density: float
    executed_density: float
    mac_density: float
    layers: tuple[BlockLayer, ...]
    no_block: Mapping[str, str]


def blocks_of(lineage: Lineage, subjects: Iterable[tuple[str, int]]) -> tuple[Blocks, ...]:
    """Return the blocks of every network that is executed in blocks, in the order of every table."""
    found = []
    for subject, replicate in sorted(set(subjects), key=lambda who: (subject_order(who[0]), who[1])):
        shrunk = lineage.shrink(subject, replicate)
        if shrunk is None or "blocks" not in shrunk["facts"]:
            continue
        finder = lineage.finder(subject, replicate)
        facts, told = shrunk["facts"], shrunk["facts"]["blocks"]
        found.append(
            Blocks(
                subject=subject,
                replicate=replicate,
                pruned_density=None if finder is None else finder["facts"].get("imp_density"),
                param_density=facts["param_density"],
                executed_density=facts["params"] / facts["params_dense"],
                mac_density=facts["macs"] / facts["macs_dense"],
                layers=tuple(_layer(name, layer) for name, layer in told["layers"].items()),
                no_block=dict(told["no_block"]),
            )
        )
    return tuple(found)


def _layer(name: str, told: Mapping[str, Any]) -> BlockLayer:  # Any: JSON values
    return BlockLayer(
        layer=name,
        num_blocks=told["blocks"],
        form=told["form"],
        reason=told["reason"],
        dense_macs=told["dense_macs"],
        executed_macs=told["executed_macs"],
    )


def densities(found: Sequence[Blocks]) -> dict[str, tuple[float | None, float, float, float]]:
    """Return per subject the means of pruned, weight, executed and MAC density over its replicates."""
    means: dict[str, tuple[float | None, float, float, float]] = {}
    for subject in dict.fromkeys(one.subject for one in found):
        own = [one for one in found if one.subject == subject]
        pruned = [one.pruned_density for one in own if one.pruned_density is not None]
        means[subject] = (
            fmean(pruned) if len(pruned) == len(own) else None,
            fmean(one.param_density for one in own),
            fmean(one.executed_density for one in own),
            fmean(one.mac_density for one in own),
        )
    return means


def whole_layers(found: Sequence[Blocks]) -> dict[str, dict[str, list[str]]]:
    """Return layer -> reason -> the subjects whose layer runs whole for it, each once.

    It has no block, or running its blocks would not pay.
    """
    told: dict[str, dict[str, list[str]]] = {}
    for one in found:
        reasons = {layer.layer: layer.reason for layer in one.layers if layer.form == "dense"}
        # finders name the weight, which is more than the layer where it has no convolution
        reasons |= {name.removesuffix(".weight"): reason for name, reason in one.no_block.items()}
        for layer, reason in reasons.items():
            subjects = told.setdefault(layer, {}).setdefault(reason, [])
            if one.subject not in subjects:
                subjects.append(one.subject)
    return told
