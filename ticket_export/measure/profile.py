"""Fills a latency table: every layer at every width, in interleaved rounds, a chunk at a time.

All chunks are timed twice over, so that a neighbour who is busy for a minute does not decide about one layer:
the calmer half of the rounds counts. What a chunk measured is written down at once, so that a process that is
killed loses one chunk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ticket_export.errors import MeasureError, StoreError
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.latency_table import Cell, LatencyTable
from ticket_export.measure.layer_kind import LayerKind
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.probe import Probe, ends_of, sandwich, write_probe
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import CONFIDENCE, student_t_quantile
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import Runner
from ticket_export.store.machine import machine_facts

SCHEMA = 1
PROBES_FILE = "probes.json"
CHUNK = 24  # runners that are open at once
ROUNDS = 5  # of a chunk in each pass
PASSES = 2
WARMUP_S = 0.05  # per probe and pass: every turn begins with calls that do not count
BLOCK_S = 0.01  # per probe and round: hundreds are timed, and the error of a network averages over its layers

Opener: TypeAlias = Callable[[Probe], Runner]
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Widths of one kind of layer that a table should hold: all pairs, of a depthwise layer equal ones."""

    kind: LayerKind
    widths_in: tuple[int, ...]
    widths_out: tuple[int, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every pair of widths."""
        if self.kind.depthwise:
            return [(width, width) for width in self.widths_out]
        return [(a, b) for a in self.widths_in for b in self.widths_out]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a table is measured for.

    Attributes:
        runtime: a key of `runtime.registry.RUNTIMES`.
        precision: "fp32", "fp16" or "int8".
        batch: images per inference.
        threads: CPU threads of one inference.
        scope: "compute" or "end_to_end".
        activations: of int8, "uint8" or "int8".
        rounds: of each chunk in each of two passes, at least 5.
        seed: of inputs and order.
    """

    runtime: str
    precision: str
    batch: int
    threads: int = 1
    scope: str = "compute"
    activations: str = "uint8"
    rounds: int = ROUNDS
    seed: int = 0

    @property
    def protocol(self) -> Protocol:
        """How every chunk is timed."""
        return Protocol(
            rounds=self.rounds,
            scope=self.scope,
            threads=self.threads,
            block_s=BLOCK_S,
            warmup_cap_s=WARMUP_S,
            seed=self.seed,
        )


def profile(
    wanted: Sequence[Wanted],
    timing: Timing,
    *,
    folder: Path,
    open_probe: Opener | None = None,
    on_progress: Progress | None = None,
) -> LatencyTable:
    """Return the table of all cells that are wanted, not calibrated yet.

    Args:
        wanted: at least one; what two ask for is measured once.
        timing: what to measure for.
        folder: where chunks are kept; what an earlier call with the same `timing` left there is not measured
            again.
        open_probe: opens a probe in the runtime; None writes ONNX files. Torch's runtimes need one.
        on_progress: called with (probes done, probes in all) after each chunk, both passes counted.

    Raises:
        MeasureError: nothing is wanted, a chunk cannot be measured, or the folder holds another table's.
        StoreError: the folder cannot be written.
    """
    pairs: dict[LayerKind, list[tuple[int, int]]] = {one.kind: [] for one in wanted}
    for one in wanted:
        pairs[one.kind] += [pair for pair in one.pairs if pair not in pairs[one.kind]]
    if not any(pairs.values()):
        raise MeasureError("latency table: no layer was asked for")
    probes = {
        probe.name: probe
        for kind, widths in pairs.items()
        for pair in widths
        for probe in (sandwich(kind, *pair), *ends_of(kind, *pair))
    }
    kept = _Kept(folder, timing)
    with tempfile.TemporaryDirectory(prefix="probes-", dir=folder) as files:
        opened = open_probe or _onnx_opener(timing, files)
        for done in range(PASSES):
            for names in _chunks(probes, kept.beyond(done * timing.rounds)):
                kept.add(_timed([probes[name] for name in names], timing, opened))
                if on_progress is not None:
                    on_progress(kept.num_rounds // timing.rounds, PASSES * len(probes))
    return LatencyTable(
        runtime=timing.runtime,
        precision=timing.precision,
        batch=timing.batch,
        threads=timing.threads,
        scope=timing.scope,
        activations=timing.activations,
        machine=machine_facts(),
        cells={
            kind: {pair: _cell(kind, pair, kept.rounds_s) for pair in sorted(widths)}
            for kind, widths in pairs.items()
        },
    )


def calm_seconds(*runs: Measurement) -> float:
    """Return the mean over the calmer half of all rounds' medians, which a neighbour's bursts spare."""
    return _calm_s([median_s for run in runs for median_s in run.round_medians_s.tolist()])


def _calm_s(rounds_s: Sequence[float]) -> float:
    ordered = sorted(rounds_s)
    return float(np.mean(ordered[: (len(ordered) + 1) // 2]))


def _cell(kind: LayerKind, pair: tuple[int, int], rounds_s: Mapping[str, Sequence[float]]) -> Cell:
    """Return a layer's seconds: the sandwich less half of the ends at either width, and never below 0."""
    whole = rounds_s[sandwich(kind, *pair).name]
    halves = [rounds_s[probe.name] for probe in ends_of(kind, *pair)]
    seconds = _calm_s(whole) - sum(_calm_s(half) for half in halves) / 2
    # the sandwich and its ends are timed in rounds of their own: their errors add up as squares
    variances = [float(np.var(whole, ddof=1)) / len(whole)]
    variances += [float(np.var(half, ddof=1)) / len(half) / 4 for half in halves]
    half_width = student_t_quantile((1 + CONFIDENCE) / 2, len(whole) - 1) * math.sqrt(sum(variances))
    return Cell(
        seconds=max(0.0, seconds), low_s=max(0.0, seconds - half_width), high_s=max(0.0, seconds + half_width)
    )


def _chunks(probes: Mapping[str, Probe], done: Collection[str]) -> list[list[str]]:
    """Return the names of what is missing, in chunks of probes that take and give the same shapes."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name, probe in probes.items():
        if name not in done:
            by_shape.setdefault((probe.input_shape, probe.output_shape), []).append(name)
    return [
        names[start : start + CHUNK] for names in by_shape.values() for start in range(0, len(names), CHUNK)
    ]


def _timed(probes: Sequence[Probe], timing: Timing, open_probe: Opener) -> dict[str, list[float]]:
    with ExitStack() as stack:
        runners = {probe.name: stack.enter_context(open_probe(probe)) for probe in probes}
        measured = measure_interleaved(runners, batch=timing.batch, protocol=timing.protocol)
    return {name: one.round_medians_s.tolist() for name, one in measured.items()}


def _onnx_opener(timing: Timing, folder: str) -> Opener:
    """Return what writes a probe as a file into a folder and opens it."""

    def opened(probe: Probe) -> Runner:
        name = hashlib.sha256(probe.name.encode()).hexdigest()[:16]
        path = write_probe(probe, Path(folder) / f"{name}.onnx", timing.precision, timing.activations)
        return open_runner(path, timing.runtime, threads=timing.threads, batches=(timing.batch,))

    return opened


class _Kept:
    """The medians of every round by probe, on disk after each chunk."""

    def __init__(self, folder: Path, timing: Timing) -> None:
        self._path = folder / PROBES_FILE
        self._facts: dict[str, Any] = {  # Any: JSON values
            "schema": SCHEMA, "machine": machine_facts()["fingerprint"], **asdict(timing),
        }  # fmt: skip
        self.rounds_s: dict[str, list[float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self.rounds_s = self._read()

    @property
    def num_rounds(self) -> int:
        return sum(map(len, self.rounds_s.values()))

    def beyond(self, num_rounds: int) -> list[str]:
        return [name for name, each in self.rounds_s.items() if len(each) > num_rounds]

    def add(self, rounds_s: Mapping[str, list[float]]) -> None:
        self.rounds_s |= {name: [*self.rounds_s.get(name, ()), *fresh] for name, fresh in rounds_s.items()}
        partial = self._path.with_name(f"{PROBES_FILE}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps({**self._facts, "rounds_s": self.rounds_s}), encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written: {error.strerror}") from error

    def _read(self) -> dict[str, list[float]]:
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
            rounds_s: dict[str, list[float]] = held.pop("rounds_s")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise MeasureError(
                f"{self._path}: not what a profile left: {error!r}", hint="delete it"
            ) from error
        for name in sorted({*held, *self._facts}):
            theirs, ours = held.get(name), self._facts.get(name)
            if theirs != ours:
                raise MeasureError(
                    f"{self._path}: holds a profile of {name} {theirs!r}, not {ours!r}",
                    hint="give each table a folder of its own",
                )
        return rounds_s
