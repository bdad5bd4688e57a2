"""The step that makes a latency table: the dense network's layers over their widths, then whole networks."""

# N images, C channels, H W pixels
from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.channels.sites import LayerSite, layer_sites
from ticket_export.data.augment import normalise
from ticket_export.export.onnx import onnx_from_module
from ticket_export.export.quantize import MIN_CALIBRATION_IMAGES
from ticket_export.measure.calibration import WholeNetwork, calibrated
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.latency_table import LatencyTable
from ticket_export.measure.layer_kind import LayerKind, table_widths
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.probe import Probe, ProbeLayer
from ticket_export.measure.profile import Opener, Timing, calm_seconds, profile
from ticket_export.measure.protocol import Protocol
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.latency_costs import kind_of, wanted_cells
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.tables import TABLE_FILE
from ticket_export.pipeline.work import Emit
from ticket_export.runtime.registry import MODULE_RUNTIMES, open_runner
from ticket_export.runtime.runner import Runner
from ticket_export.seeds import stream
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.stages import Subject

NUM_NETWORKS = 10  # dense and nine of random widths: each is exported, which takes longer than its timing
_SPREAD = 0.5  # a group's share lies within (1 -+ this) times the network's
_GONE = 0.25  # of the branches that may go


def table_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Time every layer of the dense network at every width, calibrate the sum on whole networks."""
    started_s = time.monotonic()
    context.device  # sets torch's threads  # noqa: B018
    timing = timing_of(context, node)
    dense = context.fresh_network(0, Subject("dense")).eval()
    sites = layer_sites(dense, context.example_inputs, context.groups)
    whole = {group.name: group.width for group in context.groups}

    widths = {"dense": whole} | random_widths(context.groups, NUM_NETWORKS - 1, seed=context.recipe.seed)
    networks = {name: network_of_widths(dense, context.groups, each) for name, each in widths.items()}

    def tell(done: int, total: int) -> None:
        progress({"round": done, "rounds": total})

    # before and behind the layers: a minute in which the machine is busy must not decide alone
    runs = [_timed(context, networks, timing, scratch / "networks")]
    table = profile(
        wanted_cells(sites, whole),
        timing,
        folder=scratch / "probes",
        open_probe=_module_opener(context, timing) if timing.runtime in MODULE_RUNTIMES else None,
        on_progress=tell,
    )
    runs.append(_timed(context, networks, timing, scratch / "networks"))
    calibration = calibrated(
        [
            WholeNetwork(
                name=name,
                layers_s=layers_seconds(table, sites, each),
                seconds=calm_seconds(*(run[name] for run in runs)),
            )
            for name, each in widths.items()
        ]
    )
    table = replace(table, calibration=calibration)
    (folder / TABLE_FILE).write_text(json.dumps(table.to_json()), encoding="utf-8")
    return {
        **node.item,
        "scope": timing.scope,
        "threads": timing.threads,
        "num_cells": table.num_cells,
        "num_networks": len(networks),
        "median_error": calibration.median_error,
        "largest_error": calibration.largest_error,
        "dense_s": calibration.networks[0].seconds,
        "seconds": round(time.monotonic() - started_s, 1),
    }


def timing_of(context: Context, node: Node) -> Timing:
    """Return what a node is timed for: its own runtime, precision and batch, by the recipe's threads."""
    measure = context.recipe.measure
    return Timing(
        runtime=node.item["runtime"],
        precision=node.item["precision"],
        batch=node.item["batch"],
        threads=measure.threads,
        scope=measure.scope,
        activations=context.recipe.export.int8_activations,
    )


def layers_seconds(table: LatencyTable, sites: Sequence[LayerSite], kept: Mapping[str, int]) -> float:
    """Return the sum over the layers of a network whose groups keep `kept` channels, not calibrated."""
    return sum(
        table.seconds(kind_of(site), site.columns.width(kept), site.rows.width(kept))
        for site in sites
        if site.op != "norm"
    )


def random_widths(groups: Sequence[ChannelGroup], count: int, *, seed: int) -> dict[str, dict[str, int]]:
    """Return `count` networks as name -> group -> width, from narrow to whole, on the table's widths.

    Args:
        groups: of the dense network; pinned ones stay whole, branches that may go do so now and then.
        count: networks.
        seed: root of the draw.
    """
    found = {}
    for index in range(count):
        generator = stream(seed, "measure", "table", index)
        share = 0.25 + 0.75 * (index + 0.5) / count
        spreads = 1 + _SPREAD * (2 * torch.rand(len(groups), generator=generator) - 1)
        are_gone = torch.rand(len(groups), generator=generator) < _GONE
        found[f"random-{index}"] = {
            group.name: _nearest_width(group, share * spread, is_gone)
            for group, spread, is_gone in zip(groups, spreads.tolist(), are_gone.tolist(), strict=True)
        }
    return found


def _nearest_width(group: ChannelGroup, share: float, is_gone: bool) -> int:
    if group.pinned is not None:
        return group.width
    if is_gone and group.branch is not None:
        return 0
    return min(table_widths(group.width), key=lambda width: abs(width - share * group.width))


def network_of_widths(
    dense: nn.Module, groups: Sequence[ChannelGroup], widths: Mapping[str, int]
) -> nn.Module:
    """Return the dense network with the first channels of every group, in evaluation mode."""
    keep_by_group = {
        group.name: torch.arange(group.width) < widths[group.name] for group in groups if group.pinned is None
    }
    return small_from_mask(dense, groups, Mask(keep_by_group)).eval()


def _timed(
    context: Context, networks: Mapping[str, nn.Module], timing: Timing, folder: Path
) -> dict[str, Measurement]:
    """Return every network's measurement, all timed in the same rounds, as many as the recipe's samples."""
    folder.mkdir(parents=True, exist_ok=True)
    measure = context.recipe.measure
    protocol = Protocol(
        rounds=measure.rounds, samples=measure.samples, scope=timing.scope, threads=timing.threads
    )
    opened = network_opener(context, timing, folder)
    with ExitStack() as stack:
        runners = {name: stack.enter_context(opened(name, network)) for name, network in networks.items()}
        return measure_interleaved(runners, batch=timing.batch, protocol=protocol)


def network_opener(context: Context, timing: Timing, folder: Path) -> Callable[[str, nn.Module], Runner]:
    """Return what opens a network in a runtime; a file that is in the folder is not written again."""

    def opened(name: str, network: nn.Module) -> Runner:
        if timing.runtime in MODULE_RUNTIMES:
            return _open_module(context, timing, network, context.example_inputs.numpy())
        path = folder / f"{name}.onnx"
        if not path.exists():
            images = context.images.train_x[:MIN_CALIBRATION_IMAGES]
            onnx_from_module(
                network,
                path,
                context.example_inputs,
                precision=timing.precision,
                calibration=normalise(images, context.mean, context.std)
                if timing.precision == "int8"
                else None,
                activations=timing.activations,
                min_top1_agreement=0.0,  # weights are random, and their classes nearly tied
            )
        return open_runner(path, timing.runtime, threads=timing.threads, batches=(timing.batch,))

    return opened


def _module_opener(context: Context, timing: Timing) -> Opener:
    """Return what opens probes as modules, for the runtimes that run those."""

    def opened(probe: Probe) -> Runner:
        example = np.zeros((len(context.example_inputs), *probe.input_shape), np.float32)
        return _open_module(context, timing, module_from_probe(probe), example)

    return opened


def _open_module(
    context: Context, timing: Timing, network: nn.Module, example: np.ndarray[Any, np.dtype[np.float32]]
) -> Runner:
    return open_runner(
        copy.deepcopy(network).half() if timing.precision == "fp16" else network,
        timing.runtime,
        threads=timing.threads,
        device=str(context.device),
        example_inputs=(example,),
    )


def module_from_probe(probe: Probe) -> nn.Module:
    """Return a probe as a module; convolutions have the norm that they have inside a network."""
    return nn.Sequential(*(part for layer in probe.layers for part in _parts(layer))).eval()


def _parts(layer: ProbeLayer) -> tuple[nn.Module, ...]:
    kind: LayerKind = layer.kind
    if kind.op == "linear":
        return nn.Linear(layer.width_in, layer.width_out), nn.ReLU()
    convolution = nn.Conv2d(
        layer.width_in,
        layer.width_out,
        kind.kernel,
        stride=kind.stride,
        padding=kind.padding,
        groups=layer.width_in if kind.depthwise else 1,
        bias=False,
    )
    return convolution, nn.BatchNorm2d(layer.width_out), nn.ReLU()
