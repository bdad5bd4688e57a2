"""Interleaved timing: every subject in every round, in random order, on the same fresh inputs.

Each subject is placed anew in memory before each of its turns. Without that, two sessions of one file
differ by up to 1.5 % for as long as both live, and the interval, which sees rounds only, calls it a
difference: 13 of 25 runs of a ResNet-20 (8x8, batch 1, 42 us) against itself. With it none of 25, and the
spread of the ratio falls from 0.67 % to 0.21 % (2-core EPYC, onnxruntime 1.31.1, 10 rounds).
"""

from __future__ import annotations

import gc
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ticket_export.errors import MeasureError
from ticket_export.measure.equal import require_equal_runners, require_inputs_fit, require_sound_outputs
from ticket_export.measure.gpu import GpuBlock, GpuWatch, watched
from ticket_export.measure.load import Load, LoadMeter, num_cores
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.pinning import pinned
from ticket_export.measure.protocol import MAX_SAMPLES, MIN_SAMPLES, Protocol
from ticket_export.measure.stability import stability_reasons
from ticket_export.runtime.runner import Array, Runner, TensorSpec, shape_text
from ticket_export.seeds import seed_from_path
from ticket_export.store.machine import machine_facts

# A warm-up window is at least this many calls and this many seconds: the median of fewer calls, or of less
# than a few scheduler time slices, differs by more than 1 % from the next one even when nothing drifts.
WINDOW_CALLS = 5
MIN_WINDOWS = 4  # before it gives up: a call of a quarter second fills the cap within the first window
LEAD_IN_CALLS = 3  # the first call of a new session finds caches cold, the second still lays out its memory
WINDOW_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warmup:
    calls_s: npt.NDArray[np.float64]
    latency_s: float  # median of the last window
    drift_fraction: float


def measure_interleaved(
    runners: Mapping[str, Runner],
    *,
    batch: int,
    protocol: Protocol,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Measurement]:
    """Time all runners in the same rounds and return every raw sample, by the runners' names.

    Each subject is warmed until two windows agree (or the cap is reached, which becomes a reason). Then every
    round draws fresh inputs, the same for all subjects, and a random order; at its turn a subject is placed
    anew in memory, and its first calls after that are kept apart. Python's garbage collector rests meanwhile;
    on a CPU the process keeps to its quietest cores, a GPU is watched.

    Args:
        runners: open runners by subject name, of equal runtime, device, precision, threads and inputs.
        batch: images per inference, at least 1.
        protocol: how to measure.
        on_round: called after each round with (rounds done, rounds in all).

    Raises:
        MeasureError: no runners, a batch below 1 or one the network does not take, unequal runners, or
            outputs that are not finite or not of equal shapes.
        DeviceError: memory runs out at this batch, or the device is lost.
        BusyDeviceError: another process computes on the GPU.
    """
    specs = require_equal_runners(runners, protocol)
    shapes = _input_shapes(specs, batch)
    require_inputs_fit(shapes, batch)
    inputs = _Inputs(specs, shapes, protocol.seed)
    machine, device = machine_facts(), next(iter(runners.values())).device  # asked before cores are held
    require_sound_outputs(runners, lambda runner: inputs.draw(runner, "warm-up"))
    with _collector_off(), pinned(protocol.threads, device) as cores, watched(device) as (watch, unknown):
        warmups = {
            name: _warm(runner, inputs.draw(runner, "warm-up"), protocol) for name, runner in runners.items()
        }
        samples = protocol.samples or _samples_that_fit(warmups, protocol)
        timed = _Timed.empty(runners, rounds=protocol.rounds, samples=samples)
        for index in range(protocol.rounds):
            timed.loads.append(_time_round(runners, inputs, index, timed, protocol, watch))
            if on_round is not None:
                on_round(index + 1, protocol.rounds)
    shared = _Shared(
        batch=batch,
        protocol=replace(protocol, samples=samples),
        machine=machine,
        cores=cores,
        unknown=() if unknown is None else (unknown,),
        run=uuid.uuid4().hex[:12],
    )
    return {
        name: _measurement(name, runner, warmups[name], timed, shared) for name, runner in runners.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all Measurements of one run have in common."""

    batch: int
    protocol: Protocol
    machine: Mapping[str, Any]  # Any: JSON values, whatever the machine module records
    cores: tuple[int, ...] | None
    unknown: tuple[str, ...]  # what the device does not tell of itself, as a reason
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """What the rounds fill: seconds by subject, and the load of others by round."""

    samples_s: dict[str, npt.NDArray[np.float64]]  # [rounds, samples]
    lead_in_s: dict[str, npt.NDArray[np.float64]]  # [rounds, LEAD_IN_CALLS]
    loads: list[Load]
    gpu: dict[str, list[GpuBlock]]

    @classmethod
    def empty(cls, names: Mapping[str, object], *, rounds: int, samples: int) -> _Timed:
        return cls(
            samples_s={name: np.full((rounds, samples), np.nan) for name in names},
            lead_in_s={name: np.full((rounds, LEAD_IN_CALLS), np.nan) for name in names},
            loads=[],
            gpu={name: [] for name in names},
        )


def _time_round(
    runners: Mapping[str, Runner],
    inputs: _Inputs,
    index: int,
    timed: _Timed,
    protocol: Protocol,
    watch: GpuWatch | None,
) -> Load:
    """Fill row `index` of `timed`, all subjects in random order, and return the load meanwhile."""
    names = list(runners)
    generator = np.random.default_rng(seed_from_path(protocol.seed, "measure", "order", index))
    meter = LoadMeter()
    for position in generator.permutation(len(names)):
        name = names[position]
        runner = runners[name]
        arrays = inputs.draw(runner, f"round-{index}")
        runner.renew()
        _fill(timed.lead_in_s[name][index], runner, arrays, protocol.scope)
        if watch is not None:
            watch.start()
        _fill(timed.samples_s[name][index], runner, arrays, protocol.scope)
        if watch is not None:
            timed.gpu[name].append(watch.stop())
    return meter.stop()


def _fill(row_s: npt.NDArray[np.float64], runner: Runner, arrays: Mapping[str, Array], scope: str) -> None:
    for call in range(len(row_s)):
        row_s[call] = runner.time_once(arrays, scope)


def _warm(runner: Runner, inputs: Mapping[str, Array], protocol: Protocol) -> _Warmup:
    """Run until the medians of two consecutive windows agree, or the cap is reached."""
    calls_s: list[float] = []
    before_s: float | None = None
    drift_fraction = float("inf")
    while True:
        window_s = _window(runner, inputs, protocol.scope)
        calls_s += window_s
        median_s = float(np.median(window_s))
        if before_s is not None:
            drift_fraction = abs(median_s / before_s - 1.0)
        before_s = median_s
        capped = sum(calls_s) > protocol.warmup_cap_s and len(calls_s) >= MIN_WINDOWS * WINDOW_CALLS
        if drift_fraction < protocol.drift_fraction or capped:
            return _Warmup(calls_s=np.array(calls_s), latency_s=median_s, drift_fraction=drift_fraction)


def _window(runner: Runner, inputs: Mapping[str, Array], scope: str) -> list[float]:
    """Return the seconds of enough calls for one median."""
    calls_s: list[float] = []
    total_s = 0.0
    while len(calls_s) < MAX_SAMPLES and (len(calls_s) < WINDOW_CALLS or total_s < WINDOW_S):
        calls_s.append(runner.time_once(inputs, scope))
        total_s += calls_s[-1]
    return calls_s


def _samples_that_fit(warmups: Mapping[str, _Warmup], protocol: Protocol) -> int:
    """Return the samples per round that take about `block_s` for the slowest subject."""
    slowest_s = max(warmup.latency_s for warmup in warmups.values())
    return int(np.clip(round(protocol.block_s / max(slowest_s, 1e-9)), MIN_SAMPLES, MAX_SAMPLES))


def _measurement(name: str, runner: Runner, warmup: _Warmup, timed: _Timed, shared: _Shared) -> Measurement:
    protocol = shared.protocol
    found = stability_reasons(
        timed.samples_s[name],
        warmup_drift_fraction=warmup.drift_fraction,
        drift_limit=protocol.drift_fraction,
        loads=timed.loads,
        threads=protocol.threads,
        num_cores=num_cores(),
        gpu=timed.gpu[name],
    )
    return Measurement(
        name=name,
        samples_s=timed.samples_s[name],
        lead_in_s=timed.lead_in_s[name],
        warmup_s=warmup.calls_s,
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        settings=dict(runner.settings),
        batch=shared.batch,
        scope=protocol.scope,
        threads=protocol.threads,
        protocol=protocol,
        machine=shared.machine,
        run=shared.run,
        loads=tuple(timed.loads),
        reasons=found + shared.unknown,
        cores=shared.cores,
        gpu=tuple(timed.gpu[name]),
    )


class _Inputs:
    """Random inputs, the same for every runner; only the last draw is kept."""

    def __init__(self, specs: list[TensorSpec], shapes: list[tuple[int, ...]], seed: int) -> None:
        self._specs, self._shapes, self._seed = specs, shapes, seed
        self._label = ""
        self._arrays: list[Array] = []

    def draw(self, runner: Runner, label: str) -> dict[str, Array]:
        """Return the inputs that belong to `label`, under the runner's own input names."""
        if label != self._label:
            generator = np.random.default_rng(seed_from_path(self._seed, "measure", "inputs", label))
            pairs = zip(self._specs, self._shapes, strict=True)
            self._arrays = [_random_array(generator, spec.dtype, shape) for spec, shape in pairs]
            self._label = label
        return dict(zip(runner.input_specs, self._arrays, strict=True))


def random_inputs(specs: Mapping[str, TensorSpec], batch: int, seed: int) -> list[Array]:
    """Return one array of noise per input, in the specs' order, as the timed rounds use them.

    Raises:
        MeasureError: a batch below 1 or one the network does not take.
    """
    shapes = _input_shapes(list(specs.values()), batch)
    generator = np.random.default_rng(seed)
    return [_random_array(generator, s.dtype, shape) for s, shape in zip(specs.values(), shapes, strict=True)]


def _random_array(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return normal noise for floating types, and zeros and ones, valid as any index, for all others."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _input_shapes(specs: list[TensorSpec], batch: int) -> list[tuple[int, ...]]:
    if batch < 1:
        raise MeasureError(f"measure: batch is {batch}, but must be at least 1")
    return [_with_batch(spec, batch) for spec in specs]


def _with_batch(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    sizes = [size for size in spec.shape[1:] if size is not None]
    if not spec.shape or len(sizes) != len(spec.shape) - 1:
        raise MeasureError(
            f"measure: input {spec.name!r} is {shape_text(spec.shape)}; only the batch, axis 0, may be free",
            hint="export it with fixed height and width",
        )
    if spec.shape[0] not in (None, batch):
        raise MeasureError(
            f"measure: batch is {batch}, but input {spec.name!r} is {shape_text(spec.shape)}",
            hint="export it with a dynamic batch, or measure at the batch it has",
        )
    return (batch, *sizes)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from running inside a timed call."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
