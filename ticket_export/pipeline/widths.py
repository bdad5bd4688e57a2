"""Widths by measurement: one network shrunk to several width grids, each timed, the fastest equal one kept.

Which grid a runtime likes cannot be known from MACs: rounding up adds some, and can make a network faster. So
every candidate is exported, all are timed in the same rounds, and the rule of `measure.fastest` decides: no
other choice is shown to be faster.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticket_export.channels.mask import Mask
from ticket_export.channels.trace import example_tuple
from ticket_export.errors import MeasureError
from ticket_export.export.onnx import onnx_from_module
from ticket_export.export.quantize import MIN_TOP1_AGREEMENT
from ticket_export.measure.compare import ROUNDS_BUDGET_S
from ticket_export.measure.fastest import Measured, fastest, speedup_over_batches
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol, require_cores
from ticket_export.measure.speedup import Speedup, speedup
from ticket_export.runtime.registry import MODULE_RUNTIMES, RUNTIMES, open_runner
from ticket_export.runtime.runner import Array, Runner
from ticket_export.shrink.exact import Shrunk, shrink
from ticket_export.store.machine import machine_facts

# off the grid; lines of fp16 and AVX-512; lines of int8; TensorRT's int8 (TensorRT #1310)
ROUND_TO = (1, 8, 16, 32)
# INT8 in ONNX Runtime on a CPU runs fast at every multiple of 4 (benchmarks/layers.py)
ROUND_TO_INT8 = (1, 4, 8, 16, 32)
FORMS = ("carrier", "term", "auto")
DENSE = "dense"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One network of the choice.

    Attributes:
        round_to: kept widths are multiples of this, or whole.
        form: where constants at zero-padded borders go: "carrier", "term" or "auto"; "" where there are none.
        same_as: other (round_to, form) that gave the identical network, which was timed once.
        params, macs: of the network; MACs are per image.
        file_bytes: of what the runtime loads; None where it runs the module itself.
        speedup: over dense, geometric mean over the batches; below 1 it is slower.
        by_batch: batch -> speedup over dense.
        reasons: why its timings are not to be trusted; empty means stable.
    """

    round_to: int
    form: str
    same_as: tuple[tuple[int, str], ...]
    params: int
    macs: int
    file_bytes: int | None
    speedup: Speedup
    by_batch: Mapping[int, Speedup]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return it as JSON values."""
        return {
            "round_to": self.round_to,
            "form": self.form,
            "same_as": [list(pair) for pair in self.same_as],
            "params": self.params,
            "macs": self.macs,
            "file_bytes": self.file_bytes,
            "speedup": self.speedup.to_json(),
            "by_batch": {str(batch): ratio.to_json() for batch, ratio in self.by_batch.items()},
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthChoice:
    """The fastest equal network for one runtime and precision on this machine, and what it was chosen from.

    Attributes:
        shrunk: the network that was chosen.
        chosen: its entry of `candidates`.
        candidates: every network that was timed, in the order tried.
        runtime, precision, batches, scope, threads: what it was chosen for.
        num_rounds: rounds of each interval.
        params_dense, macs_dense: of the network that was given.
        machine: facts of the machine.
        runs: every measurement, one interleaved run per batch, by the names of `name_of` and "dense".
    """

    shrunk: Shrunk
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    runtime: str
    precision: str
    batches: tuple[int, ...]
    scope: str
    threads: int
    num_rounds: int
    params_dense: int
    macs_dense: int
    machine: Mapping[str, Any]  # Any: JSON values
    runs: tuple[Measured, ...]

    @property
    def stable(self) -> bool:
        """True when no timing gives a reason to distrust it."""
        return not any(candidate.reasons for candidate in self.candidates)

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return what a manifest and a report tell of the choice; no samples."""
        told = ("runtime", "precision", "scope", "threads", "num_rounds", "params_dense", "macs_dense")
        return {
            **{name: getattr(self, name) for name in told},
            "batches": list(self.batches),
            "chosen": self.candidates.index(self.chosen),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "machine": dict(self.machine),
        }


def fastest_widths(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    mask: Mask | None = None,
    runtime: str = "ort-cpu",
    precision: str = "fp32",
    batches: Sequence[int] = (1,),
    threads: int = 1,
    scope: str = "compute",
    rounds: int = 10,
    samples: int | None = None,
    device: str | None = None,
    candidates: Sequence[int] | None = None,
    residual: str = "union",
    tolerance: float = 1e-5,
    calibration: Mapping[str, Array] | Tensor | None = None,
    activations: str = "uint8",
    min_top1_agreement: float = MIN_TOP1_AGREEMENT,
    on_progress: Tell | None = None,
) -> WidthChoice:
    """Shrink `model` to every width grid, time all results beside the dense network, return the fastest.

    All compute the same function, as `shrink` proves of each. Returned is the smallest (file, then MACs) of
    those than which none is shown to be faster: the 95 % interval of their paired ratio, over rounds, would
    lie above 1. With several batches a ratio is the geometric mean.

    Args:
        model: as for `shrink`.
        example_inputs: as for `shrink`.
        mask: as for `shrink`.
        runtime: what will run the network; a name of `runtime.registry.RUNTIMES`.
        precision: "fp32", "fp16" or "int8", as exported for that runtime.
        batches: images per inference; one interleaved run each.
        threads: CPU threads of one inference.
        scope: "compute" or "end_to_end".
        rounds: rounds of each run, at least 5.
        samples: timings per network and round; None lets the rounds of a batch take about 12 s.
        device: for torch runtimes, where to run; None is the runtime's own.
        candidates: the width grids; None is 1, 8, 16 and 32, for int8 also 4.
        residual: as for `shrink`.
        tolerance: as for `shrink`.
        calibration: as for `onnx_from_module`, of int8.
        activations: as for `onnx_from_module`, of int8.
        min_top1_agreement: as for `onnx_from_module`, of int8.
        on_progress: called with a line before each slow step.

    Raises:
        ShrinkError, ExportError: as `shrink` and `onnx_from_module`.
        MeasureError: nothing to choose from, or a measurement that cannot be made.
        MissingDependency: the runtime is not installed.
    """
    candidates = _checked_candidates(runtime, precision, batches, candidates, threads)
    protocol = Protocol(rounds=rounds, samples=samples, scope=scope, threads=threads)
    exported = dict(calibration=calibration, activations=activations, min_top1_agreement=min_top1_agreement)
    form = _Form(example_tuple(example_inputs), runtime, precision, exported, batches, on_progress)
    options = {"mask": mask, "residual": residual, "tolerance": tolerance}
    return _chosen(model, form, candidates, options, protocol=protocol, device=device)


def _chosen(
    model: nn.Module,
    form: _Form,
    candidates: Sequence[int],
    options: Mapping[str, Any],  # Any: arguments of `shrink`
    *,
    protocol: Protocol,
    device: str | None,
) -> WidthChoice:
    with tempfile.TemporaryDirectory(prefix="widths-") as folder, ExitStack() as stack:
        sources = {DENSE: form.source(DENSE, model, folder)}  # first, as it refuses what no width mends
        tried = _tried(model, form.inputs, candidates, options, form.tell)
        sources |= {one.name: form.source(one.name, one.shrunk.model, folder) for one in tried}
        runners = {name: stack.enter_context(form.opened(source, protocol.threads, device))
                   for name, source in sources.items()}  # fmt: skip
        timed = replace(protocol, block_s=ROUNDS_BUDGET_S / (protocol.rounds * len(sources)))
        runs = []
        for batch in form.batches:
            form.tell(f"timing {len(runners)} networks, {form.runtime}, {form.precision}, batch {batch}")
            runs.append(measure_interleaved(runners, batch=batch, protocol=timed))
        sizes = {
            name: source.stat().st_size if isinstance(source, Path) else None
            for name, source in sources.items()
        }
    return chosen_from(tried, runs, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A network that `shrink` made, with every (round_to, form) that led to it; the first names it."""

    shrunk: Shrunk
    made_by: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """Like "round_to 8, term"."""
        return name_of(*self.made_by[0])


def name_of(round_to: int, form: str) -> str:
    """Return how a candidate is called: "round_to 8", or "round_to 8, term" where the form matters."""
    return f"round_to {round_to}" + (f", {form}" if form else "")


def chosen_from(
    tried: Sequence[Tried], runs: Sequence[Measured], file_bytes: Mapping[str, int | None]
) -> WidthChoice:
    """Return the choice that the measurements allow.

    Args:
        tried: the networks.
        runs: one interleaved run per batch, by the networks' names and "dense".
        file_bytes: by name; None where the runtime runs the module itself.
    """
    sizes = {}
    for one in tried:
        report = one.shrunk.report
        sizes[one.name] = (file_bytes[one.name] or 0, report.macs, report.params)
    best = fastest(runs, sizes)
    entries = {one.name: _candidate(one, runs, file_bytes[one.name]) for one in tried}
    first = runs[0][DENSE]
    report = tried[0].shrunk.report
    return WidthChoice(
        shrunk=next(one.shrunk for one in tried if one.name == best),
        chosen=entries[best],
        candidates=tuple(entries.values()),
        runtime=first.runtime,
        precision=first.precision,
        batches=tuple(run[DENSE].batch for run in runs),
        scope=first.scope,
        threads=first.threads,
        num_rounds=first.num_rounds,
        params_dense=report.params_dense,
        macs_dense=report.macs_dense,
        machine=machine_facts(),
        runs=tuple(runs),
    )


def _candidate(one: Tried, runs: Sequence[Measured], file_bytes: int | None) -> Candidate:
    (round_to, form), *same_as = one.made_by
    reasons = dict.fromkeys(
        f"batch {run[name].batch}{', dense' if name == DENSE else ''}: {reason}"
        for run in runs
        for name in (one.name, DENSE)
        for reason in run[name].reasons
    )
    return Candidate(
        round_to=round_to,
        form=form,
        same_as=tuple(same_as),
        params=one.shrunk.report.params,
        macs=one.shrunk.report.macs,
        file_bytes=file_bytes,
        speedup=speedup_over_batches(runs, DENSE, one.name),
        by_batch={run[DENSE].batch: speedup(run[DENSE], run[one.name]) for run in runs},
        reasons=tuple(reasons),
    )


def _checked_candidates(
    runtime: str, precision: str, batches: Sequence[int], candidates: Sequence[int] | None, threads: int
) -> Sequence[int]:
    """Return the width grids to try, when everything can be tried."""
    if candidates is None:
        candidates = ROUND_TO_INT8 if precision == "int8" else ROUND_TO
    if runtime not in RUNTIMES:
        raise MeasureError(f"runtime {runtime!r} is not one of {', '.join(RUNTIMES)}")
    for what, numbers in (("batches", batches), ("candidates", candidates)):
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 1:
            raise MeasureError(
                f"widths: {what} is {list(numbers)}", hint="give numbers of at least 1, each once"
            )
    require_cores(threads)
    return candidates


def _tried(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    candidates: Sequence[int],
    options: Mapping[str, Any],  # Any: arguments of `shrink`
    tell: Tell,
) -> list[Tried]:
    """Return the different networks; two are the same when their plans are, as all start from one model."""
    tried: list[Tried] = []
    for round_to in candidates:
        for form in FORMS:
            tell(f"shrinking at round_to {round_to}, padded constants: {form}")
            shrunk = shrink(model, inputs, round_to=round_to, padded_constants=form, **options)
            has_constants = bool(shrunk.report.num_carriers or shrunk.report.num_terms)
            is_only_form = form == FORMS[0] and not has_constants
            made_by = (round_to, "" if is_only_form else form)
            place = next((i for i, one in enumerate(tried) if one.shrunk.plan == shrunk.plan), None)
            if place is None:
                tried.append(Tried(shrunk=shrunk, made_by=(made_by,)))
            else:
                one = tried[place]
                tried[place] = Tried(shrunk=one.shrunk, made_by=(*one.made_by, made_by))
            if is_only_form:
                break  # no padded constant needs a place, so the other forms are this one
    return tried


class _Form:
    """What a runtime runs of a network: an exported file, or for torch's runtimes the module itself."""

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        runtime: str,
        precision: str,
        exported: Mapping[str, Any],  # Any: arguments of the exporter
        batches: Sequence[int],
        on_progress: Tell | None,
    ) -> None:
        self.inputs, self.runtime, self.precision = inputs, runtime, precision
        self.exported, self.batches = exported, batches
        self.tell: Tell = on_progress or (lambda line: None)

    def source(self, name: str, network: nn.Module, folder: str) -> Path | nn.Module:
        if self.runtime in MODULE_RUNTIMES:
            if self.precision not in ("fp32", "fp16"):
                raise MeasureError(
                    f"runtime {self.runtime!r} runs the module itself, in fp32 or fp16, got {self.precision}"
                )
            return copy.deepcopy(network).half() if self.precision == "fp16" else network
        self.tell(f"exporting {name}, {self.precision}")
        path = Path(folder) / f"{name.replace(', ', '_').replace(' ', '_')}.onnx"
        return onnx_from_module(network, path, self.inputs, precision=self.precision, **self.exported)

    def opened(self, source: Path | nn.Module, threads: int, device: str | None) -> Runner:
        if isinstance(source, Path):
            return open_runner(
                source, self.runtime, threads=threads, device=device, batches=tuple(self.batches)
            )
        arrays = tuple(x.detach().cpu().numpy() for x in self.inputs)
        return open_runner(source, self.runtime, threads=threads, device=device, example_inputs=arrays)
