"""`shrink`: a smaller network that computes the same function, with the reason for everything that stays."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ticket_export.channels.constants import find_constants
from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup, groups_from_labels
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.mask import Mask, zero_dropped
from ticket_export.channels.trace import example_tuple, trace
from ticket_export.errors import DivergedError, ShrinkError
from ticket_export.shrink.equivalence import FORWARD_ERRORS, check_equal
from ticket_export.shrink.fold import fold_constants
from ticket_export.shrink.graph_form import graph_form
from ticket_export.shrink.permanent import with_plain_parameters
from ticket_export.shrink.plan import Plan, plan_from_kept
from ticket_export.shrink.removable import Decision, decide, sinks_of
from ticket_export.shrink.surgery import model_from_plan

FLOAT64_TOLERANCE = 1e-9  # folds are computed in float64, so nothing but its rounding is left


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
        params, macs: of the small network; `params_dense`, `macs_dense` of the given one. MACs are per image.
        widths: group name -> what happened to it.
        num_carriers: channels kept to carry constants past zero-padded borders.
        num_folds: constants that moved into a bias, a running mean or a carrier.
        rel_error: largest max|a-b| / max|b| over all trial inputs.
        form: "module" (same classes, sliced tensors) or "graph" (the traced graph over them).
        unknown_ops: operations the analysis does not know; their channels stay.
        dynamic_batch: whether the network accepts any batch.
    """

    params: int
    macs: int
    params_dense: int
    macs_dense: int
    widths: Mapping[str, GroupChange]
    num_carriers: int
    num_folds: int
    rel_error: float
    form: str
    unknown_ops: tuple[str, ...]
    dynamic_batch: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """The result of `shrink`: the small `model`, the `plan` that made it, and the `report`."""

    model: nn.Module
    plan: Plan
    report: ShrinkReport


def shrink(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    mask: Mask | None = None,
    round_to: int = 1,
    residual: str = "union",
    tolerance: float = 1e-5,
) -> Shrunk:
    """Return a smaller network that computes the same function as `model` with its zeros.

    Channels go when nothing with a non-zero weight reads them, or when they are constant wherever they are
    read; the constants are folded exactly, at zero-padded borders too. Both networks are then run side by
    side.

    Args:
        model: any module that `torch.export` accepts, in float32 or float64; it is never changed. Masks of
            `torch.nn.utils.prune` and parametrisations are made permanent on a copy.
        example_inputs: a tensor or a tuple of tensors as for `torch.export`, axis 0 is the batch.
        mask: channels to drop as well (their slices count as zero); None takes the zeros in the weights
            alone.
        round_to: kept widths are rounded up to a multiple of this with removable channels; the function is
            the same.
        residual: "union": a channel of a residual stream goes when every writer is dead or constant on it.
        tolerance: allowed max|a-b| / max|b|; at most 1e-9 for a model in float64.

    Returns:
        The small model in the training mode and on the device of `model`, the plan, and the report.

    Raises:
        ShrinkError: the model cannot be traced, holds NaN, or the mask does not fit.
        DivergedError: the small network does not compute the same function.
    """
    inputs = example_tuple(example_inputs)
    _check_arguments(model, inputs, round_to=round_to, residual=residual, tolerance=tolerance)
    device = inputs[0].device
    # the analysis is small tensors and float64 sums: the processor's work, wherever the model is
    home = model if device.type == "cpu" else copy.deepcopy(model).cpu()
    inputs = tuple(x.cpu() for x in inputs)
    dense = with_plain_parameters(home)
    if mask is not None:
        dense = copy.deepcopy(dense)
        zero_dropped(dense, groups_from_labels(label(trace(dense, inputs))), mask)
    if _dtype(model) == torch.float64:
        tolerance = min(tolerance, FLOAT64_TOLERANCE)
    shrunk = _shrunk(dense, inputs, round_to, tolerance)
    return shrunk if device.type == "cpu" else replace(shrunk, model=shrunk.model.to(device))


def _shrunk(dense: nn.Module, inputs: tuple[Tensor, ...], round_to: int, tolerance: float) -> Shrunk:
    traced = trace(dense, inputs)
    graph = label(traced)
    groups = groups_from_labels(graph)
    sinks = sinks_of(graph, find_constants(graph))
    decision = decide(graph, sinks, groups, round_to=round_to)
    folded = fold_constants(graph, sinks, decision)
    plan = plan_from_kept(graph, decision.kept, folded)
    small = model_from_plan(dense, plan, folded)
    small, plan, rel_error = _proven(small, dense, plan, inputs, tolerance, traced.dynamic_batch)
    report = ShrinkReport(
        **_costs(small, dense, inputs),
        widths=_changes(graph, groups, decision),
        num_carriers=len(decision.carriers),
        num_folds=len(folded.folds),
        rel_error=rel_error,
        form=plan.form,
        unknown_ops=tuple(sorted(graph.unknown_ops)),
        dynamic_batch=traced.dynamic_batch,
    )
    return Shrunk(model=small, plan=plan, report=report)


def _costs(small: nn.Module, dense: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    after, before = count_costs(small, inputs), count_costs(dense, inputs)
    return {
        "params": after.params,
        "macs": after.macs,
        "params_dense": before.params,
        "macs_dense": before.macs,
    }


def _check_arguments(
    model: nn.Module, inputs: Sequence[Tensor], *, round_to: int, residual: str, tolerance: float
) -> None:
    if round_to < 1:
        raise ShrinkError(f"round_to is {round_to}", hint="pass 1 for no rounding, or 8, 16, 32")
    if residual != "union":
        raise ShrinkError(f"residual is {residual!r}", hint="the one mode that exists is 'union'")
    if not 0 < tolerance < 1:
        raise ShrinkError(f"tolerance is {tolerance}", hint="it is a relative error, e.g. 1e-5")
    dtype = _dtype(model)
    if dtype not in (torch.float32, torch.float64):
        raise ShrinkError(
            f"the model is in {dtype}", hint="shrink it in float32 (model.float()) and convert the result"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ShrinkError(
                f"{name!r} holds a value that is not finite", hint="check the training run or the file"
            )
    device = next(iter(model.parameters()), torch.zeros(())).device
    for position, x in enumerate(inputs):
        if x.device != device:
            raise ShrinkError(f"example_inputs[{position}] is on {x.device}, the model on {device}")


def _proven(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    inputs: Sequence[Tensor],
    tolerance: float,
    dynamic_batch: bool,
) -> tuple[nn.Module, Plan, float]:
    """Return the first form that runs and computes the same function, its plan, and its error."""
    try:
        error = check_equal(small, dense, inputs, tolerance=tolerance, dynamic_batch=dynamic_batch)
        return small, plan, error
    except (DivergedError, *FORWARD_ERRORS):
        # the forward holds a channel count (torch refuses the shapes, or halves come out unequal)
        described = tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs)
        plan = replace(plan, form="graph", inputs=described)
        model = graph_form(small, dense, plan, inputs)
        error = check_equal(model, dense, inputs, tolerance=tolerance, dynamic_batch=dynamic_batch)
        return model, plan, error


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _changes(
    graph: LabelledGraph, groups: Sequence[ChannelGroup], decision: Decision
) -> dict[str, GroupChange]:
    tables = (graph.weight_rows, graph.weight_columns)
    changes = {}
    for group in groups:
        member = group.members[0]
        table = next((t for t in tables if member.tensor in t and t[member.tensor][0] == member.axis), None)
        if table is None:
            continue
        roots = graph.classes.roots(table[member.tensor][1])[member.indices[:, 0]]
        kept, needed = decision.kept[roots], decision.needed[roots]
        num_carriers = len(decision.carriers & set(roots[kept].tolist()))
        changes[group.name] = GroupChange(
            before=group.width, after=int(kept.sum()), how=_how(group, kept, needed, num_carriers)
        )
    return changes


def _how(group: ChannelGroup, kept: Tensor, needed: Tensor, num_carriers: int) -> str:
    if group.pinned is not None:
        return f"kept whole: {group.pinned}"
    parts = [f"{int((~kept).sum())} dead or constant", f"{int(needed.sum())} alive"]
    if num_carriers:
        parts.append(f"{num_carriers} carrying constants")
    fillers = int((kept & ~needed).sum()) - num_carriers
    if fillers:
        parts.append(f"{fillers} kept for the width")
    return ", ".join(parts)
