"""After the timing: profile every subject once, in runs of their own, and say why it is so fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.measure.cause import Cause, Ratio, Tried, cause, no_layer_times
from ticket_export.measure.latency import random_inputs
from ticket_export.measure.layer_pairs import TimedNetwork, timed_network
from ticket_export.measure.losses import losses, width_grid
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.onnx_costs import costs_from_onnx
from ticket_export.measure.speedup import speedup
from ticket_export.runtime.layers import NetworkCosts, calm_s, profile_layers, require_profiler
from ticket_export.runtime.onnx_file import ENGINE_SUFFIXES
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import Array, Runner
from ticket_export.runtime.trt_sidecar import read_facts

if TYPE_CHECKING:
    import torch

    Source: TypeAlias = Path | torch.nn.Module

GRAPH_WARMUP, GRAPH_CALLS = 5, 30


def explain(
    sources: Mapping[str, Source],
    measurements: Mapping[str, Measurement],
    *,
    example_inputs: Sequence[Array] | None = None,
    tried: Sequence[Tried] = (),
) -> dict[str, Cause]:
    """Return the cause of every subject but the first, which is the baseline.

    Where a runtime tells no layer times, the causes say so; the measurements are worth as much as before.

    Args:
        sources: what was measured, by subject: a file or a module.
        measurements: of one interleaved run, by subject, the baseline first.
        example_inputs: one array [N, ...] per input, for modules.
        tried: variants that were measured against the same baseline.

    Raises:
        MeasureError: the measurements are not of one run.
    """
    baseline = next(iter(measurements))
    ratios = {
        name: Ratio(ratio=found.ratio, low=found.low, high=found.high)
        for name, found in (
            (name, speedup(measurements[baseline], measurement))
            for name, measurement in measurements.items()
            if name != baseline
        )
    }
    try:
        networks = _timed_networks(sources, measurements, example_inputs)
    except (MeasureError, MissingDependency) as error:
        return {name: no_layer_times(ratio, error.message) for name, ratio in ratios.items()}
    first = measurements[baseline]
    grid = width_grid(
        first.runtime,
        device=first.device,
        precision=first.precision,
        instruction_sets=first.machine.get("isa", ()),
    )
    return {
        name: cause(
            losses(networks[baseline], networks[name], grid=grid),
            ratio,
            grid=grid,
            graph_speedup=graph_speedup(sources[name], measurements[name]),
            tried=tried,
        )
        for name, ratio in ratios.items()
    }


def graph_speedup(source: Source, measured: Measurement) -> float | None:
    """Return how many times faster a subject runs as one CUDA graph than it was timed, or None.

    None where it was timed as a graph, where the runtime leaves no such choice (on a CPU, in torch), or where
    the network cannot be captured.
    """
    if measured.settings.get("cuda_graph") != "off" or not isinstance(source, (str, Path)):
        return None

    def opened(cuda_graph: bool) -> Runner:
        return open_runner(
            source,
            measured.runtime,
            threads=measured.threads,
            device=measured.device,
            cuda_graph=cuda_graph,
            batches=(measured.batch,),
        )

    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        with opened(False) as plain, opened(True) as graphed:
            arrays = random_inputs(plain.input_specs, measured.batch, measured.protocol.seed)
            inputs = dict(zip(plain.input_specs, arrays, strict=True))
            for call in range(GRAPH_WARMUP + GRAPH_CALLS):
                for runner, own in zip((plain, graphed), seconds, strict=True):
                    taken_s = runner.time_once(inputs, "compute")
                    if call >= GRAPH_WARMUP:
                        own.append(taken_s)
    except (MeasureError, MissingDependency):
        return None
    return calm_s(seconds[0]) / calm_s(seconds[1])


def _timed_networks(
    sources: Mapping[str, Source],
    measurements: Mapping[str, Measurement],
    example_inputs: Sequence[Array] | None,
) -> dict[str, TimedNetwork]:
    first = next(iter(measurements.values()))
    require_profiler(first.runtime)
    device = None if first.device == "cpu" else first.device
    with open_runner(
        next(iter(sources.values())),
        first.runtime,
        threads=first.threads,
        device=device,
        example_inputs=example_inputs,
        batches=(first.batch,),
    ) as runner:
        inputs = random_inputs(runner.input_specs, first.batch, first.protocol.seed)
    profiles = profile_layers(sources, first.runtime, inputs, threads=first.threads, device=device)
    return {
        name: timed_network(
            profiles[name],
            _costs(source, inputs, first.batch),
            latency_s=measurements[name].p50_s,
        )
        for name, source in sources.items()
    }


def _costs(source: Source, inputs: Sequence[Array], batch: int) -> NetworkCosts:
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix in ENGINE_SUFFIXES:  # it was built from the file beside it, whose hash is in its facts
            path = path.with_name(read_facts(path).source)
        return costs_from_onnx(path, batch)
    from ticket_export.runtime.torch_layers import costs_of_module

    return costs_of_module(source, inputs)
