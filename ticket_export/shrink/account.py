"""The account of a shrink: what the network was, what it is, and what became of every channel group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.shrink.plan import Plan
from ticket_export.shrink.removable import Decision, Sink

FOLD_WORDS = {
    "carrier": "into a carrier",
    "term": "into an added term",
    "bias": "into a bias",
    "new_bias": "into a new bias",
    "running_mean": "into a running mean",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """What happened to one channel group.

    Attributes:
        before, after: widths.
        how: why it has its new width, in words.
    """

    before: int
    after: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkReport:
    """What the shrink did.

    Attributes:
        params, macs, bytes: of the small network; `params_dense`, `macs_dense`, `bytes_dense` of the given
            one. MACs are per image; bytes are those of all parameters and buffers.
        widths: group name -> what happened to it.
        num_carriers: channels kept to carry constants past zero-padded borders.
        num_terms: layers that add the response to such constants instead.
        num_folds: constants that moved into a bias, a running mean, a carrier or a term.
        num_constants: operands that became constants because nothing of them depends on the input.
        rel_error: largest max|a-b| / max|b| over all trial inputs.
        form: "module" (same classes, sliced tensors) or "graph" (the traced graph over them).
        unknown_ops: operations the analysis does not know; their channels stay.
        dynamic_batch: whether the network accepts any batch.
        open_size: whether it accepts every height and width that the given one accepts.
    """

    params: int
    macs: int
    bytes: int
    params_dense: int
    macs_dense: int
    bytes_dense: int
    widths: Mapping[str, GroupChange]
    num_carriers: int
    num_terms: int
    num_folds: int
    num_constants: int
    rel_error: float
    form: str
    unknown_ops: tuple[str, ...]
    dynamic_batch: bool
    open_size: bool


def account(
    small: nn.Module,
    dense: nn.Module,
    inputs: Sequence[Tensor],
    graph: LabelledGraph,
    groups: Sequence[ChannelGroup],
    sinks: Sequence[Sink],
    decision: Decision,
    plan: Plan,
    *,
    rel_error: float,
    dynamic_batch: bool,
) -> ShrinkReport:
    """Return the report of a shrink that is done and proven."""
    after, before = count_costs(small, inputs), count_costs(dense, inputs)
    return ShrinkReport(
        params=after.params,
        macs=after.macs,
        bytes=_num_bytes(small),
        params_dense=before.params,
        macs_dense=before.macs,
        bytes_dense=_num_bytes(dense),
        widths=_changes(small, graph, groups, sinks, decision, plan),
        num_carriers=len(decision.carriers),
        num_terms=len(plan.terms),
        num_folds=len(plan.folds),
        num_constants=len(plan.constants),
        rel_error=rel_error,
        form=plan.form,
        unknown_ops=tuple(sorted(graph.unknown_ops)),
        dynamic_batch=dynamic_batch,
        open_size=plan.open_size,
    )


def _num_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _changes(
    small: nn.Module,
    graph: LabelledGraph,
    groups: Sequence[ChannelGroup],
    sinks: Sequence[Sink],
    decision: Decision,
    plan: Plan,
) -> dict[str, GroupChange]:
    tables = (graph.weight_rows, graph.weight_columns)
    is_constant = _constant_somewhere(graph, sinks)
    folds_of = {fold.weight: fold.kind for fold in plan.folds}
    names = {*dict(small.named_parameters()), *dict(small.named_buffers())}
    changes = {}
    for group in groups:
        member = group.members[0]
        table = next((t for t in tables if member.tensor in t and t[member.tensor][0] == member.axis), None)
        if table is None:
            continue
        roots = graph.classes.roots(table[member.tensor][1])[member.indices[:, 0]]
        if plan.constants and not any(m.tensor in names for m in group.members):
            how = "its layer does not depend on the input and is gone"
            changes[group.name] = GroupChange(before=group.width, after=0, how=how)
            continue
        kinds = {folds_of[m.tensor] for m in group.members if m.role == "consumer" and m.tensor in folds_of}
        how = _how(graph, decision, roots, is_constant[roots], sorted(FOLD_WORDS[kind] for kind in kinds))
        after = int(decision.kept[roots].sum())
        changes[group.name] = GroupChange(before=group.width, after=after, how=how)
    return changes


def _constant_somewhere(graph: LabelledGraph, sinks: Sequence[Sink]) -> Tensor:
    """Return by root whether some layer reads the channel as a constant that is not zero."""
    is_constant = torch.zeros(graph.classes.num_labels, dtype=torch.bool)
    for sink in sinks:
        is_constant[sink.columns[sink.foldable & (sink.value != 0)]] = True
    return is_constant


def _how(
    graph: LabelledGraph, decision: Decision, roots: Tensor, is_constant: Tensor, folded: Sequence[str]
) -> str:
    kept, needed = decision.kept[roots], decision.needed[roots]
    pins = graph.classes.pin_by_root()
    reasons = {pins[root] for root in roots.tolist() if root in pins}
    if kept.all() and reasons:
        return f"kept whole: {'; '.join(sorted(reasons))}"
    num_carriers = len(decision.carriers & set(roots[kept].tolist()))
    num_fillers = int((kept & ~needed).sum()) - num_carriers
    num_constant = int((~kept & is_constant).sum())
    parts = [
        (int((~kept & ~is_constant).sum()), "dead"),
        (num_constant, f"constant, folded {' and '.join(folded)}" if folded else "constant, read by nobody"),
        (int(needed.sum()), "alive"),
        (num_carriers, "carrying constants"),
        (num_fillers, "kept for the width"),
    ]
    return ", ".join(f"{number} {words}" for number, words in parts if number)
