"""`shrink`: a smaller network that computes the same function, with the reason for everything that stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ticket_export.channels.constants import find_constants
from ticket_export.channels.graph import ChannelGroup, groups_from_labels, labelled_axes
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.mask import Mask, zero_dropped
from ticket_export.channels.trace import Trace, example_tuple, trace
from ticket_export.errors import DivergedError, ShrinkError
from ticket_export.shrink.account import ShrinkReport, account
from ticket_export.shrink.divergence import first_difference
from ticket_export.shrink.equivalence import FORWARD_ERRORS, Trials, check_equal, trials_of
from ticket_export.shrink.fold import FoldedTensors, fold_constants
from ticket_export.shrink.given import check_given, main_dtype
from ticket_export.shrink.graph_edits import RefusedEditError
from ticket_export.shrink.graph_form import (
    constant_name,
    constant_operands,
    graph_form,
    may_open_sizes,
    open_graph,
)
from ticket_export.shrink.permanent import make_layers_standard, plain_copy
from ticket_export.shrink.plan import Plan, plan_from_kept
from ticket_export.shrink.removable import Decision, Sink, decide, has_dead_layer, sinks_of
from ticket_export.shrink.surgery import live_stream_rows, model_from_plan, resize_bare_norms

RESIDUAL_MODES = ("union", "index")
PADDED_CONSTANT_MODES = ("auto", "carrier", "term")
FLOAT64_TOLERANCE = 1e-9  # folds are computed in float64, so nothing but its rounding is left


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
    padded_constants: str = "auto",
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
            "index": besides, each writer computes its live rows alone and scatters them into the stream.
        tolerance: allowed max|a-b| / max|b|; at most 1e-9 for a model in float64.
        padded_constants: where constants go that a zero-padded layer reads. "carrier": one channel of the
            tensor stays and carries them. "term": the layer adds its response to them. "auto": a carrier,
            but a term where a carrier would widen a group past a multiple of `round_to`.

    Returns:
        The small model in the training mode and on the device of `model`, the plan, and the report.

    Raises:
        ShrinkError: the model cannot be traced, holds NaN, or the mask does not fit.
        DivergedError: the small network does not compute the same function.
    """
    inputs = example_tuple(example_inputs)
    options = _Options(round_to=round_to, residual=residual, padded_constants=padded_constants)
    _check_options(options, tolerance)
    check_given(model, inputs)
    device = inputs[0].device
    # the analysis is small tensors and float64 sums: the processor's work, wherever the model is
    dense = plain_copy(model)
    if device.type != "cpu":
        dense, inputs = dense.cpu(), tuple(x.cpu() for x in inputs)
    if mask is not None:
        zero_dropped(dense, groups_from_labels(label(trace(dense, inputs))), mask)
    if main_dtype(model) == torch.float64:
        tolerance = min(tolerance, FLOAT64_TOLERANCE)
    shrunk = _shrunk(dense, inputs, options, tolerance)
    return shrunk if device.type == "cpu" else replace(shrunk, model=shrunk.model.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    round_to: int
    residual: str
    padded_constants: str


def _check_options(options: _Options, tolerance: float) -> None:
    if isinstance(options.round_to, str):
        raise ShrinkError(
            f"round_to is {options.round_to!r}: shrink takes a number and measures nothing",
            hint="te.fastest_widths(...) measures, and so does ticket-export shrink ... --round-to auto",
        )
    if options.round_to < 1:
        raise ShrinkError(f"round_to is {options.round_to}", hint="pass 1 for no rounding, or 8, 16, 32")
    for name, value, modes in (
        ("residual", options.residual, RESIDUAL_MODES),
        ("padded_constants", options.padded_constants, PADDED_CONSTANT_MODES),
    ):
        if value not in modes:
            raise ShrinkError(f"{name} is {value!r}", hint=f"the modes are {', '.join(modes)}")
    if not 0 < tolerance < 1:
        raise ShrinkError(f"tolerance is {tolerance}", hint="it is a relative error, e.g. 1e-5")


def _shrunk(dense: nn.Module, inputs: tuple[Tensor, ...], options: _Options, tolerance: float) -> Shrunk:
    """Return the proven result; what the graph form cannot express is kept, and all is decided again."""
    traced = trace(dense, inputs)
    trials = trials_of(dense, inputs)
    standard = make_layers_standard(dense, traced, inputs)
    if standard:
        traced = trace(dense, inputs)
    refused: dict[tuple[str, int], str] = {}
    while True:
        analysis = _analysed(traced, options, refused)
        try:
            small, plan, rel_error = _proven(dense, inputs, analysis, options, tolerance, trials)
        except _WholeBranchesError:
            traced = replace(traced, branches=())
            continue
        except RefusedEditError as refusal:
            new_axes = refusal.axes - refused.keys()
            if not new_axes:
                raise
            refused |= dict.fromkeys(new_axes, f"{refusal.reason} cannot be rewritten")
            continue
        plan = replace(plan, standard=standard)
        report = account(
            small, dense, inputs, analysis.graph, analysis.groups, analysis.sinks, analysis.decision, plan,
            rel_error=rel_error, dynamic_batch=trials.dynamic_batch,
        )  # fmt: skip
        return Shrunk(model=small, plan=plan, report=report)


class _WholeBranchesError(ShrinkError):
    """A branch goes, which only the module form can express, and that form will not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Analysis:
    graph: LabelledGraph
    groups: Sequence[ChannelGroup]
    sinks: Sequence[Sink]
    decision: Decision
    folded: FoldedTensors


def _analysed(traced: Trace, options: _Options, refused: Mapping[tuple[str, int], str]) -> _Analysis:
    graph = label(traced)
    for axis in labelled_axes(graph):
        if (axis.tensor, axis.axis) in refused:
            graph.classes.pin(axis.labels, refused[axis.tensor, axis.axis])
    groups = groups_from_labels(graph)
    sinks = sinks_of(graph, find_constants(graph))
    decision = decide(
        graph, sinks, groups, round_to=options.round_to, padded_constants=options.padded_constants
    )
    return _Analysis(
        graph=graph, groups=groups, sinks=sinks, decision=decision,
        folded=fold_constants(graph, sinks, decision),
    )  # fmt: skip


def _proven(
    dense: nn.Module,
    inputs: Sequence[Tensor],
    analysis: _Analysis,
    options: _Options,
    tolerance: float,
    trials: Trials,
) -> tuple[nn.Module, Plan, float]:
    """Return the first form that runs and computes the same function, its plan, and its error.

    Raises:
        _WholeBranchesError: it would be the graph form, and a branch goes.
    """
    graph, decision, folded = analysis.graph, analysis.decision, analysis.folded
    plan = plan_from_kept(graph, decision.kept, folded)
    if options.residual == "index":
        live = live_stream_rows(
            model_from_plan(dense, plan, folded), graph, analysis.groups, options.round_to
        )
        plan = replace(plan, live_rows=live)

    def checked(small: nn.Module, open_size: bool = True) -> float:
        return check_equal(small, dense, trials, tolerance=tolerance, open_size=open_size)

    if has_dead_layer(analysis.sinks, decision):
        if decision.emptied:
            raise _WholeBranchesError("a layer outside its branches is dead")
        needed = plan_from_kept(graph, decision.needed, folded)
        if constant_operands(graph, plan, needed):
            with suppress(ShrinkError):  # else they stay, one channel wide
                return _graph_form(
                    dense, inputs, _as_graph(plan, graph.trace, inputs), folded, checked, needed
                )
    small = model_from_plan(dense, plan, folded)
    plan = replace(plan, bare_norms=resize_bare_norms(small, inputs))
    try:
        return small, plan, checked(small)
    except (DivergedError, *FORWARD_ERRORS) as error:
        # the forward holds a channel count (torch refuses the shapes, or halves come out unequal)
        reason = error
    if decision.emptied:
        raise _WholeBranchesError("the module form does not run") from reason
    try:
        return _graph_form(dense, inputs, _as_graph(plan, graph.trace, inputs), folded, checked)
    except DivergedError as error:
        plan = _as_graph(plan, graph.trace, inputs)
        small, plan = _built_graph(dense, inputs, replace(plan, open_size=False), folded)
        place = first_difference(small, dense, plan, graph, decision, inputs, tolerance=tolerance)
        raise DivergedError(f"{error}; {place}") from reason


def _graph_form(
    dense: nn.Module,
    inputs: Sequence[Tensor],
    plan: Plan,
    folded: FoldedTensors,
    checked: Callable[[nn.Module, bool], float],
    needed: Plan | None = None,
) -> tuple[nn.Module, Plan, float]:
    """Return the graph form with its plan and error, its sizes open where torch.export leaves them so.

    Raises:
        RefusedEditError: it cannot be written.
        DivergedError: it is another function.
        ShrinkError: it does not run.
    """
    if plan.open_size:
        with suppress(DivergedError, *FORWARD_ERRORS):  # torch.export took a size for fixed
            small, open_plan = _built_graph(dense, inputs, plan, folded, needed)
            return small, open_plan, checked(small, True)
    small, plan = _built_graph(dense, inputs, replace(plan, open_size=False), folded, needed)
    try:
        return small, plan, checked(small, False)
    except FORWARD_ERRORS as error:
        raise ShrinkError(
            f"the shrunk network does not run: {error}", hint="please report the network; nothing was written"
        ) from error


def _as_graph(plan: Plan, traced: Trace, inputs: Sequence[Tensor]) -> Plan:
    described = tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs)
    return replace(plan, form="graph", inputs=described, open_size=may_open_sizes(traced))


def _built_graph(
    dense: nn.Module,
    inputs: Sequence[Tensor],
    plan: Plan,
    folded: FoldedTensors,
    needed: Plan | None = None,
) -> tuple[nn.Module, Plan]:
    """Return the graph form and its plan; given `needed`, constants take the place of dead layers."""
    graph = open_graph(dense, plan, inputs)
    operands = {} if needed is None else constant_operands(graph, plan, needed)
    shapes = {
        node: (operand, None if value is None else tuple(value.shape))
        for node, (operand, value) in operands.items()
    }
    plan = replace(plan, constants=shapes)
    small = graph_form(model_from_plan(dense, plan, folded), graph, plan, type(dense).__name__)
    for operand, value in operands.values():
        if value is not None:
            small.get_buffer(constant_name(operand)).copy_(value)
    return small, plan
