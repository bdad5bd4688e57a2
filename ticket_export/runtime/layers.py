"""Where an inference's time goes, layer by layer, in the words of the runtime that ran it.

Profiling runs are apart from timed ones: a runtime that writes down every kernel is slower than one that
does not. Only the shares of a profile are used, never its sum as a latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ticket_export.errors import MeasureError
from ticket_export.runtime.runner import Array

if TYPE_CHECKING:
    import torch

    Source: TypeAlias = Path | str | torch.nn.Module

WARMUP_RUNS = 3  # the first run of a session lays out its memory
MIN_RUNS, MAX_RUNS = 10, 200
RUNS_BUDGET_S = 1.0
TURNS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer as the runtime executes it, after its own fusing.

    Attributes:
        name: the runtime's own name; a fused layer may name several nodes of the file.
        op: what it does in the runtime's word, e.g. "Conv" or "Reorder".
        seconds: over the calmer half of the profiled inferences, where the runtime tells each of them, else
            the median; all calls of the layer within one inference added up.
    """

    name: str
    op: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """All layers of one network in one runtime.

    Attributes:
        layers: in the order they run.
        between_s: seconds of one inference that no layer took, such as the runtime's own steps; None
            where the profiler tells of layers alone.
        num_runs: inferences the times rest on.
    """

    layers: tuple[LayerTime, ...]
    between_s: float | None
    num_runs: int

    @property
    def layers_s(self) -> float:
        """Seconds of all layers together."""
        return sum(layer.seconds for layer in self.layers)

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return JSON values that `from_json` reads."""
        layers = [[layer.name, layer.op, layer.seconds] for layer in self.layers]
        return {"layers": layers, "between_s": self.between_s, "num_runs": self.num_runs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerProfile:  # Any: JSON values
        """Return the profile that `to_json` described."""
        layers = tuple(LayerTime(name=name, op=op, seconds=seconds) for name, op, seconds in value["layers"])
        return cls(layers=layers, between_s=value["between_s"], num_runs=value["num_runs"])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer that multiplies has to do in one inference, by the network's own shapes.

    Attributes:
        name: the owner of its weights, e.g. "layer1.0.conv1", or the node's name.
        op: the operator, e.g. "Conv".
        macs: multiply-adds.
        num_bytes: bytes of its input, weights and output: what must be moved at least.
        width_in, width_out: channels or features it reads and writes.
        depthwise: every channel is convolved by itself.
    """

    name: str
    op: str
    macs: int
    num_bytes: int
    width_in: int
    width_out: int
    depthwise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCosts:
    """All layers that multiply, in the network's order.

    Attributes:
        layers: by their order.
        layer_by_node: name of a multiplying node, or of its output -> name of its layer.
        fused_by_node: the same for the nodes behind it, into whose name a runtime may fuse its kernel.
        uncounted: nodes that multiply but whose shapes are unknown.
    """

    layers: tuple[LayerCost, ...]
    layer_by_node: Mapping[str, str]
    fused_by_node: Mapping[str, str]
    uncounted: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-adds of one inference."""
        return sum(layer.macs for layer in self.layers)


def calm_s(seconds: Sequence[float]) -> float:
    """Return what timings of one thing say when nothing disturbs them: the mean of their lower half.

    A neighbour only ever adds time, and in a profile it would be taken for a slow layer. A mean, because
    profilers count in whole microseconds.
    """
    ordered = np.sort(np.asarray(seconds, dtype=np.float64))
    return float(np.mean(ordered[: (len(ordered) + 1) // 2]))


class LayerProfiler(Protocol):
    """One network under its runtime's own profiler."""

    def run(self, times: int) -> None:
        """Run the network `times` times."""

    def finish(self, skipped_runs: int) -> LayerProfile:
        """Stop and return the times over all runs but the first `skipped_runs`; not called twice."""

    def close(self) -> None:
        """Free the network and what the profiler wrote."""


def require_profiler(runtime: str) -> None:
    """Pass for a runtime that tells the time of its layers.

    Raises:
        MeasureError: it does not.
    """
    if runtime not in PROFILERS:
        raise MeasureError(
            f"runtime {runtime!r} tells no layer times", hint=f"profile in one of {', '.join(PROFILERS)}"
        )


def profile_layers(
    sources: Mapping[str, Source],
    runtime: str,
    inputs: Sequence[Array],
    *,
    threads: int = 1,
    device: str | None = None,
) -> dict[str, LayerProfile]:
    """Run all sources under their runtime's own profiler, in turns, and return every layer's time.

    In turns, because a neighbour that is busy for a second would otherwise slow down one network alone.

    Args:
        sources: by name, what `open_runner` takes for this runtime.
        runtime: a key of PROFILERS.
        inputs: one array [N, ...] per input, in the networks' order.
        threads: CPU threads of one inference.
        device: as for `open_runner`.

    Raises:
        MeasureError: the runtime tells no layer times, or a source does not run.
        MissingDependency: the runtime is not installed.
    """
    require_profiler(runtime)
    with ExitStack() as stack:
        profilers: dict[str, LayerProfiler] = {}
        for name, source in sources.items():
            profilers[name] = PROFILERS[runtime](source, inputs, threads, device)
            stack.callback(profilers[name].close)
        slowest_s = max(_warm(profiler) for profiler in profilers.values())
        num_runs = int(np.clip(RUNS_BUDGET_S / max(slowest_s, 1e-9), MIN_RUNS, MAX_RUNS))
        for turn in range(TURNS):
            for profiler in profilers.values():
                profiler.run(num_runs * (turn + 1) // TURNS - num_runs * turn // TURNS)
        return {name: profiler.finish(WARMUP_RUNS) for name, profiler in profilers.items()}


def _warm(profiler: LayerProfiler) -> float:
    """Run WARMUP_RUNS times and return the seconds of the last."""
    profiler.run(WARMUP_RUNS - 1)
    start = time.perf_counter()
    profiler.run(1)
    return time.perf_counter() - start


Profiler: TypeAlias = "Callable[[Source, Sequence[Array], int, str | None], LayerProfiler]"


def _by_ort_cpu(source: Source, inputs: Sequence[Array], threads: int, device: str | None) -> LayerProfiler:
    from ticket_export.runtime.ort_layers import SessionProfiler

    return SessionProfiler(_path(source), inputs, provider="CPUExecutionProvider", threads=threads)


def _by_ort_cuda(source: Source, inputs: Sequence[Array], threads: int, device: str | None) -> LayerProfiler:
    from ticket_export.runtime.ort_layers import SessionProfiler

    return SessionProfiler(
        _path(source),
        inputs,
        provider="CUDAExecutionProvider",
        threads=threads,
        provider_options={
            "device_id": (device or "cuda:0").partition(":")[2] or "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        },
    )


def _by_tensorrt(source: Source, inputs: Sequence[Array], threads: int, device: str | None) -> LayerProfiler:
    from ticket_export.runtime.trt import open_tensorrt

    runner = open_tensorrt(_path(source), threads=threads, device=device, batches=(len(inputs[0]),))
    return runner.profiler(dict(zip(runner.input_specs, inputs, strict=True)))


def _by_torch(source: Source, inputs: Sequence[Array], threads: int, device: str | None) -> LayerProfiler:
    if isinstance(source, (str, Path)):
        raise MeasureError(f"runtime 'torch' runs an nn.Module, got the file {source}")
    from ticket_export.runtime.torch_layers import ModuleProfiler

    return ModuleProfiler(source, inputs, threads=threads, device=device)


def _path(source: Source) -> Path:
    if not isinstance(source, (str, Path)):
        raise MeasureError(f"layer times come from an exported file, got a {type(source).__name__}")
    return Path(source)


PROFILERS: dict[str, Profiler] = {
    "ort-cpu": _by_ort_cpu,
    "ort-cuda": _by_ort_cuda,
    "tensorrt": _by_tensorrt,
    "torch": _by_torch,
}
