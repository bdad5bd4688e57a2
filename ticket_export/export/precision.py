"""An fp32 file becomes an fp16 file that computes the same within the gate. Imports no torch.

ONNX Runtime on the CPU computes an fp16 file in fp32; of the fp16 only the weights' rounding remains, and a
network that overflows on a GPU passes there. So the gate holds the file as ONNX Runtime runs it, and also
the network with every value between two operators rounded to fp16. What no check on a CPU sees are the sums
inside an operator, which a GPU adds up in fp32 or fp16 as its kernels choose.
"""

# N images
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ticket_export.errors import ExportError, MeasureError, ParityError
from ticket_export.export.half import HalfGraph
from ticket_export.export.parity import FP16_TOLERANCE, error_at_every_batch
from ticket_export.export.publish import (
    FP32_LAYERS,
    PARITY,
    PRECISION,
    PRECISION_ERROR,
    layer_name,
    partial_of,
    publish_model,
    set_metadata,
    write_model,
)
from ticket_export.runtime.agreement import relative_error
from ticket_export.runtime.onnx_file import load_graph, precision_from_onnx
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.runner import Array, require_inputs

NUM_CHECK_ROWS = 8
_MOST_TRIED_WITHOUT = 24  # kept nodes that are tried in fp16 one by one; each costs an inference


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A file in another precision than its fp32 source, and how far it is from it.

    Attributes:
        path: the file.
        precision: "fp16" or "int8".
        precision_rel_error: max|a - b| / max|b| of its outputs against those of its own fp32 file; of an
            fp16 file the larger one of ONNX Runtime's and of all values rounded to fp16.
        parity_rel_error: the same against the torch source; None where no outputs of it were given.
        fp32_layers: the layers that compute in fp32, by weight or node name.
        top1_agreement: share of images on which both files name the same class; int8 only.
        accuracy_drop: fp32 accuracy less int8 accuracy, where labels were given; int8 only.
    """

    path: Path
    precision: str
    precision_rel_error: float
    parity_rel_error: float | None = None
    fp32_layers: tuple[str, ...] = ()
    top1_agreement: float | None = None
    accuracy_drop: float | None = None


def fp16_from_onnx(
    fp32_path: str | Path,
    path: str | Path,
    *,
    check_inputs: Mapping[str, Array] | None = None,
    source_outputs: Mapping[str, Array] | None = None,
    tolerance: float = FP16_TOLERANCE,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Write the network of an fp32 file with fp16 weights and activations, and return what it differs by.

    The file takes and gives fp32 like its source, casts at both ends, keeps the dynamic batch, and agrees
    with the source at batches 1, 3 and the whole within `tolerance` in ONNX Runtime on the CPU. Where the
    whole network in fp16 does not, the layers it loses most in stay fp32, as few as make it hold: they are
    named in `fp32_layers` and in the metadata.

    Args:
        fp32_path: the source.
        path: the file to write; an existing one is replaced, and only when all of that holds.
        check_inputs: arrays [N, ...] by input name, N >= 4; None is noise of mean 0 and deviation 1, which
            need not excite a trained network as its own images do.
        source_outputs: what the torch source gives for `check_inputs`, by output name; held to the same
            tolerance and stored apart, so that the two errors are not one.
        tolerance: largest relative error that passes.
        metadata: texts to store beside those of the source.

    Raises:
        ExportError: the source is missing, not ONNX, not fp32, or cannot be converted.
        ParityError: the error stays above the tolerance unless every layer is fp32; nothing is written.
        MeasureError: the check inputs do not fit the network.
        StoreError: the file cannot be written.
    """
    fp32_path, path = Path(fp32_path), Path(path)
    source = require_fp32(fp32_path)
    if check_inputs is None:
        check_inputs = noise_inputs(fp32_path)
    expected = outputs_of(fp32_path, check_inputs)
    graph = HalfGraph(source, fp32_path)
    with partial_of(path) as partial:
        kept = _fewest_fp32_nodes(graph, check_inputs, expected, tolerance, partial, path)
        precision_error = _error(graph, kept, check_inputs, expected, partial, path)
        if not precision_error <= tolerance:  # written so that a NaN fails
            raise ParityError(f"{path}: relative error {precision_error:.2e} in fp16 is above {tolerance:g}")
        model = graph.converted(kept)
        layers = _names(graph, kept)
        texts = {
            **(metadata or {}),
            PRECISION: "fp16",
            PRECISION_ERROR: f"{precision_error:.3e}",
            FP32_LAYERS: json.dumps(layers),
        }
        set_metadata(model, texts)
        parity_error = publish_model(model, path, partial, check_inputs, source_outputs, tolerance)
    return Converted(
        path=path,
        precision="fp16",
        precision_rel_error=precision_error,
        parity_rel_error=parity_error,
        fp32_layers=layers,
    )


def require_fp32(path: Path) -> onnx.ModelProto:
    """Return the model of an fp32 file, without the parity of its own export.

    Raises:
        ExportError: it is missing, not ONNX, or of another precision.
    """
    try:
        model, precision = load_graph(path), precision_from_onnx(path)
    except MeasureError as error:
        raise ExportError(error.message, hint=error.hint) from error
    if precision != "fp32":
        raise ExportError(
            f"{path}: its precision is {precision}, but conversion starts from fp32",
            hint="give the file that was exported with precision fp32",
        )
    onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    kept = [entry for entry in model.metadata_props if entry.key != PARITY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def noise_inputs(path: Path, num_rows: int = NUM_CHECK_ROWS) -> dict[str, Array]:
    """Return seeded normal noise for every input of a file; integers are 0.

    Raises:
        ExportError: an input has a free axis beside the batch.
    """
    numbers = np.random.default_rng(0)
    made: dict[str, Array] = {}
    with OrtCpuRunner(path) as runner:
        specs = runner.input_specs
    for name, spec in specs.items():
        sizes = [size for size in spec.shape[1:] if size is not None]
        if len(sizes) != len(spec.shape) - 1:
            raise ExportError(
                f"{path}: input {name!r} has free axes beside the batch", hint="pass check_inputs"
            )
        values = numbers.standard_normal((num_rows, *sizes))
        made[name] = values.astype(spec.dtype) if "float" in spec.dtype else np.zeros_like(values, spec.dtype)
    return made


def outputs_of(path: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of a file for the inputs, which must fit it.

    Raises:
        MeasureError: they do not.
    """
    with OrtCpuRunner(path) as runner:
        require_inputs(str(path), runner.input_specs, inputs)
        return runner.infer(inputs)


def _fewest_fp32_nodes(
    graph: HalfGraph,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    tolerance: float,
    partial: Path,
    path: Path,
) -> tuple[str, ...]:
    """Return the nodes to keep in fp32: none if possible, else the worst ones, less those not needed."""

    def holds(kept: Sequence[str]) -> bool:
        write_model(graph.rounded(kept), partial, path)
        return error_at_every_batch(partial, inputs, expected) <= tolerance  # a NaN does not hold

    if holds(()):
        return ()
    error_by_node = _local_errors(graph, inputs, partial, path)
    worst_first = sorted(error_by_node, key=lambda name: -error_by_node[name])
    low, high = 0, 1  # `low` is known to be too few
    while high < len(worst_first) and not holds(worst_first[:high]):
        low, high = high, 2 * high
    high = min(high, len(worst_first))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(worst_first[:middle]) else (middle, high)
    kept = worst_first[:high]
    for name in kept[::-1][:_MOST_TRIED_WITHOUT]:
        without = [other for other in kept if other != name]
        if holds(without):
            kept = without
    if not any(_weights_in_half(graph, node, kept) for node in graph.model.graph.node):
        raise ParityError(
            f"{path}: in fp16 its relative error is above {tolerance:g} unless every layer stays fp32",
            hint="deploy this network in fp32, or raise the tolerance",
        )
    return tuple(node.name for node in graph.model.graph.node if node.name in set(kept))


def _error(
    graph: HalfGraph,
    kept: Sequence[str],
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    partial: Path,
    path: Path,
) -> float:
    """Return the larger error of all values rounded and of the converted model as it runs; NaN if one is."""
    errors = []
    for model in (graph.rounded(kept), graph.converted(kept)):
        write_model(model, partial, path)
        errors.append(error_at_every_batch(partial, inputs, expected))
    return float(np.max(errors))


def _weights_in_half(graph: HalfGraph, node: onnx.NodeProto, kept: Sequence[str]) -> bool:
    matrices = {name for name, weight in graph.weights.items() if len(weight.dims) > 1}
    return node.name not in kept and any(node.input[p] in matrices for p in graph.slots[node.name].inputs)


def _local_errors(
    graph: HalfGraph, inputs: Mapping[str, Array], partial: Path, path: Path
) -> dict[str, float]:
    """Return each node's relative error when it alone is rounded to fp16; inf where it overflows."""
    model, pairs = graph.locally_rounded()
    write_model(model, partial, path)
    errors = dict.fromkeys(pairs, 0.0)
    with OrtCpuRunner(partial) as runner:
        for row in range(len(next(iter(inputs.values())))):  # one at a time: every activation is in memory
            found = runner.infer({name: array[row : row + 1] for name, array in inputs.items()})
            for node, compared in pairs.items():
                for exact, half in compared:
                    error = relative_error(found[half], found[exact])
                    errors[node] = max(errors[node], np.inf if np.isnan(error) else error)
    return errors


def _names(graph: HalfGraph, kept: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the kept layers and of those whose operator has no fp16 form, in order."""
    named = [
        layer_name(node, graph.weights)
        for node in graph.model.graph.node
        if node.name in kept or node.name in graph.without_half_form
    ]
    return tuple(dict.fromkeys(named))
