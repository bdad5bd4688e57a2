"""The steps that measure: each subject's accuracy through its runtime, and every latency in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_export.measure.compare import latency_row
from ticket_export.measure.explain import explain
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement, save_measurements
from ticket_export.measure.protocol import Protocol
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.work import Emit
from ticket_export.runtime.registry import MODULE_RUNTIMES, open_runner
from ticket_export.runtime.runner import Runner
from ticket_export.seeds import seed_from_path

if TYPE_CHECKING:
    from torch import nn

SAMPLES_FILE = "samples.npz"
CAUSES_FILE = "causes.json"
_BASELINE = "dense"
_EVALUATION_BATCH = 256


def accuracy_step(
    context: Context, node: Node, folder: Path, scratch: Path, progress: Emit
) -> dict[str, Any]:
    """Evaluate one subject on the test images through its runtime."""
    from ticket_export.train.evaluate import evaluate

    context.device  # sets torch's threads  # noqa: B018
    images = context.images
    with _runner(context, node.parents["network"], node.item, context.threads) as runner:
        # an engine takes no more images at a time than it was built for
        batch = max(context.recipe.measure.batches) if runner.name == "tensorrt" else _EVALUATION_BATCH
        accuracy = evaluate(
            runner, images.test_x, images.test_y, mean=context.mean, std=context.std, batch=batch
        )
    return {**node.item, "accuracy": accuracy, "num_images": len(images.test_y)}


def latency_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Time every subject in interleaved rounds, write the raw samples, compare each with its dense one.

    The layers are profiled afterwards, so that nothing of that is in the samples.
    """
    measure = context.recipe.measure
    batch = node.item["batch"]
    protocol = Protocol(
        rounds=measure.rounds,
        samples=measure.samples,
        scope=measure.scope,
        threads=measure.threads,
        seed=seed_from_path(context.recipe.seed, "measure", node.item["runtime"], batch),
    )

    def on_round(done: int, total: int) -> None:
        progress({"round": done, "rounds": total})

    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(_runner(context, source, node.item, measure.threads))
            for name, source in node.parents.items()
        }
        measured = measure_interleaved(runners, batch=batch, protocol=protocol, on_round=on_round)
    save_measurements(folder / SAMPLES_FILE, measured)
    rows = []
    for name, source in node.parents.items():
        row = latency_row(measured[name], measured[f"{_BASELINE}#{source.replicate}"])
        if row["speedup"] is not None:
            row["speedup"]["baseline"] = _BASELINE
        rows.append({"subject": source.subject, "replicate": source.replicate, **row})
    causes = _causes(context, node, measured, folder)
    return {**node.item, "scope": measure.scope, "threads": measure.threads, "rows": rows, "causes": causes}


def _causes(
    context: Context, node: Node, measured: Mapping[str, Measurement], folder: Path
) -> list[dict[str, Any]]:  # Any: JSON
    """Profile the layers of one replicate, write all numbers, and return the sentences.

    One replicate: the others have other widths but the same reasons, and each would cost as much again.
    """
    first = {name: source for name, source in node.parents.items() if source.replicate == 0}
    if len(first) < 2:
        return []
    found = explain(
        {name: _network(context, source, node.item) for name, source in first.items()},
        {name: measured[name] for name in sorted(first, key=lambda name: not name.startswith(_BASELINE))},
        example_inputs=(context.example_inputs.numpy(),),
    )
    causes = [
        {"subject": first[name].subject, "replicate": 0, **cause.to_json()} for name, cause in found.items()
    ]
    (folder / CAUSES_FILE).write_text(json.dumps(causes, indent=1) + "\n", encoding="utf-8")
    return [
        cause | {"evidence": {key: value for key, value in cause["evidence"].items() if key != "layers"}}
        for cause in causes
    ]


def _network(context: Context, source: Node, item: Mapping[str, Any]) -> Path | nn.Module:  # Any: JSON
    """Return what the runtime of `item` runs: the exported file, or the module in its precision."""
    if item["runtime"] not in MODULE_RUNTIMES:
        return context.file(source, context.result(source).facts["file"])
    from ticket_export.pipeline.networks import network_of

    network = network_of(context, source).eval()
    return network.half() if item["precision"] == "fp16" else network


def _runner(context: Context, source: Node, item: Mapping[str, Any], threads: int) -> Runner:  # Any: JSON
    network, runtime = _network(context, source, item), item["runtime"]
    if runtime not in MODULE_RUNTIMES:
        return open_runner(network, runtime, threads=threads, batches=context.recipe.measure.batches)
    return open_runner(
        network,
        runtime,
        threads=threads,
        device=str(context.device),
        example_inputs=(context.example_inputs.numpy(),),
    )
