"""The steps that deploy: the exact shrink, and the exported file with its parity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ticket_export.channels.mask import zero_dropped
from ticket_export.data.augment import normalise
from ticket_export.export import publish
from ticket_export.export.onnx import onnx_from_module
from ticket_export.measure.measurement import save_measurements
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import (
    BUNDLE_FOLDER,
    block_facts,
    blocks_of,
    dense_network,
    in_blocks,
    is_small,
    mask_of,
    network_of,
    scattered,
    trained_network,
)
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.widths import WidthChoice, fastest_widths
from ticket_export.pipeline.work import Emit
from ticket_export.runtime.registry import MODULE_RUNTIMES
from ticket_export.seeds import stream
from ticket_export.shrink.bundle import save_bundle
from ticket_export.shrink.exact import Shrunk, shrink

ONNX_FILE = "model.onnx"
_NUM_CALIBRATION = 512  # accuracy of a CIFAR-10 ResNet-20 in INT8 is the same from 64 to 1,024 images


def shrink_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Remove what is dead from a trained subject, proved equal to the masked dense one, and write the bundle.

    A subject trained small is scattered back into the dense shape first, so that one plan in dense numbering
    holds all that was cut, and the proof covers all of it.
    """
    context.device  # sets torch's threads  # noqa: B018
    recipe = context.recipe
    trained, mask = node.parents["trained"], mask_of(context, node.parents["mask"])
    network = trained_network(context, trained)
    if is_small(context, trained):
        network = scattered(network, dense_network(context, node.replicate or 0), context.groups, mask)
    else:
        zero_dropped(network, context.groups, mask)  # held parameters are zero already, statistics are not
    shrunk, choice = _shrunk(context, node, network.eval())
    origin = {
        "builder": recipe.model.builder,
        "args": recipe.model.args,
        "input_shapes": [list(context.images.image_shape)],
        "trained": f"{trained.stage}/{trained.key}",
    }
    if choice is not None:
        origin["widths_by_measurement"] = choice.to_json()
        for batch, run in zip(choice.batches, choice.runs, strict=True):
            save_measurements(folder / f"samples_batch_{batch}.npz", run)
    save_bundle(shrunk, folder / BUNDLE_FOLDER, origin=origin)
    told = {} if choice is None else {"choice": choice.to_json()}
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        **asdict(shrunk.report),
        **told,
        **_kept_elements(context, node),
        **_executed(context, node, shrunk),
    }


def _kept_elements(context: Context, node: Node) -> dict[str, Any]:  # Any: JSON values
    """Return the share of the weights that an element mask keeps; its zeros stand in the small tensors."""
    found = context.result(node.parents["mask"]).facts
    holds_zeros = found["channel_density"] == 1.0 and "element_density" in found
    return {"param_density": found["param_density"]} if holds_zeros else {}


def _executed(context: Context, node: Node, shrunk: Shrunk) -> dict[str, Any]:  # Any: JSON values
    """Return what the blocks of a regrouped network execute, proved equal to the shrunk network."""
    if not in_blocks(context, node):
        return {}
    form = blocks_of(context, shrunk.model.eval())
    no_block = context.result(node.parents["mask"]).facts["blocks"]["no_block"]
    params = sum(parameter.numel() for parameter in form.model.parameters())
    blocks = {"layers": block_facts(form), "no_block": no_block, "rel_error": form.rel_error}
    return {"params": params, "macs": form.macs, "blocks": blocks}


def _shrunk(context: Context, node: Node, network: nn.Module) -> tuple[Shrunk, WidthChoice | None]:
    """Return the network at the recipe's widths, or at those that are the fastest here."""
    recipe = context.recipe
    round_to = recipe.find.round_to if recipe.shrink.round_to is None else recipe.shrink.round_to
    residual, tolerance = recipe.shrink.residual, recipe.shrink.tolerance
    if round_to != "auto":
        fixed = shrink(
            network, context.example_inputs, round_to=round_to, residual=residual, tolerance=tolerance
        )
        return fixed, None
    measure, runtime, precision = recipe.measure, node.item["runtime"], node.item["precision"]
    if runtime in MODULE_RUNTIMES and precision == "int8":
        precision = "fp32"  # torch has no form of it, so that is what is timed
    choice = fastest_widths(
        network,
        context.example_inputs,
        runtime=runtime,
        precision=precision,
        batches=measure.batches,
        threads=measure.threads,
        scope=measure.scope,
        rounds=measure.rounds,
        samples=measure.samples,
        device=str(context.device) if runtime in MODULE_RUNTIMES else None,
        residual=residual,
        tolerance=tolerance,
        calibration=_calibration_images(context) if precision == "int8" else None,
        activations=recipe.export.int8_activations,
        min_top1_agreement=recipe.export.int8_min_agreement,
    )
    return choice.shrunk, choice


def export_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Write a subject's network as a file that was seen to compute the same."""
    context.device  # sets torch's threads  # noqa: B018
    source = node.parents["network"]
    shape = _shape_facts(context, source)
    precision = node.item["precision"]
    path = onnx_from_module(
        network_of(context, source),
        folder / ONNX_FILE,
        context.example_inputs,
        precision=precision,
        calibration=_calibration_images(context) if precision == "int8" else None,
        activations=context.recipe.export.int8_activations,
        min_top1_agreement=context.recipe.export.int8_min_agreement,
        metadata={
            "ticket_export.key": node.key,
            "ticket_export.subject": node.subject,
            "ticket_export.source": f"{source.stage}/{source.key}",
            "ticket_export.widths": json.dumps(
                {name: width["after"] for name, width in shape["widths"].items()}
            ),
        },
    )
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        "precision": precision,
        "file": ONNX_FILE,
        "file_bytes": path.stat().st_size,
        **_recorded_errors(path, precision),
        **{name: node.item[name] for name in ("runtime",) if name in node.item},
        **shape,
    }


def _calibration_images(context: Context) -> torch.Tensor:
    """Return training images as networks take them, drawn anew for each seed and never augmented."""
    images = context.images.train_x
    order = torch.randperm(len(images), generator=stream(context.recipe.seed, "export", "calibration"))
    return normalise(images[order[:_NUM_CALIBRATION]], context.mean, context.std)


def _recorded_errors(path: Path, precision: str) -> dict[str, Any]:  # Any: JSON values
    """Return what the exporter measured and wrote into the file."""
    texts = publish.metadata_of(onnx.load(path, load_external_data=False))
    errors: dict[str, Any] = {"parity_rel_error": float(texts[publish.PARITY])}  # Any: JSON values
    if precision != "fp32":
        errors["precision_rel_error"] = float(texts[publish.PRECISION_ERROR])
        errors["fp32_layers"] = json.loads(texts[publish.FP32_LAYERS])
    if precision == "int8":
        errors["top1_agreement"] = float(texts[publish.TOP1_AGREEMENT])
        errors["calibration_images"] = int(texts[publish.CALIBRATION_IMAGES])
    return errors


def _shape_facts(context: Context, source: Node) -> dict[str, Any]:
    """Return what of the dense network is kept, as the report shows it."""
    facts = context.result(source).facts
    if source.stage == "shrink":
        kept = _kept(facts, facts["widths"])
        return kept | {name: facts[name] for name in ("param_density",) if name in facts}
    widths = {group.name: {"before": group.width, "after": group.width} for group in context.groups}
    dense = {**facts, "params_dense": facts["params"], "macs_dense": facts["macs"]}
    kept = _kept(dense, widths)
    if "mask" in source.parents:  # single weights are zero: they are kept in the file and counted as dropped
        kept["param_density"] = context.result(source.parents["mask"]).facts["param_density"]
    return kept


def _kept(
    facts: Mapping[str, Any], widths: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:  # Any: JSON values
    before = sum(width["before"] for width in widths.values())
    return {
        "params": facts["params"],
        "macs": facts["macs"],
        "channel_density": sum(width["after"] for width in widths.values()) / before,
        "param_density": facts["params"] / facts["params_dense"],
        "mac_density": facts["macs"] / facts["macs_dense"],
        "widths": {name: {"before": w["before"], "after": w["after"]} for name, w in widths.items()},
    }
