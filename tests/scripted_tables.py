"""Tables of a machine that computes channels in lines of 8: probes and whole networks take what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from ticket_export.measure import profile as probing
from ticket_export.measure.latency_table import Cell, LatencyTable
from ticket_export.measure.layer_kind import LayerKind
from ticket_export.measure.probe import Probe
from ticket_export.measure.profile import Opener, Timing, Wanted
from ticket_export.pipeline import profiling
from ticket_export.pipeline.context import Context
from ticket_export.runtime.fake import FakeRunner
from ticket_export.runtime.runner import Runner, TensorSpec

RUN_S = 5e-5


def line_seconds(width_in: int, width_out: int) -> float:
    """Return what a layer of these widths takes."""
    return 1e-6 * -(-width_in // 8) * -(-width_out // 8)


def network_seconds(network: nn.Module) -> float:
    """Return what a network takes: a run and its layers."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return RUN_S + sum(line_seconds(layer.weight.shape[1], layer.weight.shape[0]) for layer in layers)


def table_of(wanted: tuple[Wanted, ...]) -> LatencyTable:
    """Return the table of that machine, not calibrated."""
    cells: dict[LayerKind, dict[tuple[int, int], Cell]] = {}
    for one in wanted:
        for a, b in one.pairs:
            seconds = line_seconds(1 if one.kind.depthwise else a, b)
            cell = Cell(seconds=seconds, low_s=seconds, high_s=seconds)
            cells.setdefault(one.kind, {})[a, b] = cell
    return LatencyTable(
        runtime="torch", precision="fp32", batch=1, threads=1, scope="compute", machine={}, cells=cells
    )


def _runner(seconds: float, image_shape: tuple[int, ...], timing: Timing) -> FakeRunner:
    spec = TensorSpec(name="input", dtype="float32", shape=(None, *image_shape))
    return FakeRunner(lambda _: seconds, name=timing.runtime, precision=timing.precision, spec=spec)


def install(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Script every probe and network of this process; return the list of the names that are opened."""
    opened: list[str] = []

    def probes(context: Context, timing: Timing) -> Opener:
        def one(probe: Probe) -> Runner:
            opened.append(probe.name)
            layers_s = sum(line_seconds(layer.weight_shape[1], layer.width_out) for layer in probe.layers)
            return _runner(RUN_S + layers_s, probe.input_shape, timing)

        return one

    def networks(context: Context, timing: Timing, folder: Path) -> Callable[[str, nn.Module], Runner]:
        shape = tuple(np.asarray(context.example_inputs).shape[1:])

        def one(name: str, network: nn.Module) -> Runner:
            opened.append(name)
            return _runner(network_seconds(network), shape, timing)

        return one

    monkeypatch.setattr(profiling, "_module_opener", probes)
    monkeypatch.setattr(profiling, "network_opener", networks)
    monkeypatch.setattr(probing, "BLOCK_S", 1e-4)
    return opened
