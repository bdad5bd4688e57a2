"""An fp32 file becomes an INT8 file with explicit Q/DQ pairs, calibrated on real images. Imports no torch.

ONNX Runtime's quantiser does the work: per-channel symmetric weights, one range per activation tensor, the
inputs of residual adds included. Ranges are the smallest and largest value seen (min-max): on a trained
CIFAR-10 ResNet-20 it gave the accuracy of the entropy and percentile methods to 0.1 points, and it keeps no
histograms. Biases stay fp32 in the file: ONNX Runtime (1.21 or later) quantises them when it opens it, and
TensorRT accepts no INT32 bias.
"""

# N images
from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ticket_export.errors import ExportError, MissingDependency, ParityError, StoreError
from ticket_export.export.parity import check_parity
from ticket_export.export.precision import NUM_CHECK_ROWS, Converted, outputs_of, require_fp32
from ticket_export.export.publish import (
    CALIBRATION_IMAGES,
    FP32_LAYERS,
    PRECISION,
    PRECISION_ERROR,
    TOP1_AGREEMENT,
    layer_name,
    metadata_of,
    partial_of,
    publish_model,
    set_metadata,
    write_model,
)
from ticket_export.export.qdq import ACTIVATIONS, fused, signed
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.runner import Array, TensorSpec, shape_text

MIN_CALIBRATION_IMAGES = 8
MIN_TOP1_AGREEMENT = 0.95
MAX_ACCURACY_DROP = 0.01
_ANY_FINITE = float(np.finfo(np.float64).max)
_BATCH = 16
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What has an 8-bit kernel in ONNX Runtime and TensorRT, or only moves values; norms, softmax and the like
# stay fp32, where 8 bits cost accuracy and win no time.
_QUANTISED = (
    *sorted(_LAYERS),
    *("Add", "Mul", "Relu", "Clip", "Concat"),
    *("AveragePool", "GlobalAveragePool", "MaxPool"),
    *("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
)


def int8_from_onnx(
    fp32_path: str | Path,
    path: str | Path,
    calibration: Mapping[str, Array],
    *,
    judge_inputs: Mapping[str, Array] | None = None,
    labels: Array | None = None,
    min_top1_agreement: float = MIN_TOP1_AGREEMENT,
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    activations: str = "uint8",
    check_inputs: Mapping[str, Array] | None = None,
    source_outputs: Mapping[str, Array] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Write the network of an fp32 file with INT8 weights and activations, and return what it differs by.

    The file takes and gives fp32 like its source and keeps the dynamic batch. It appears only when its
    outputs are finite and when it names the class of the source on enough of the judged images.

    Args:
        fp32_path: the source.
        path: the file to write; an existing one is replaced.
        calibration: real images as the network takes them, arrays [N, ...] by input name, N >= 8 (some
            hundred are good): the range of every activation is what they excite. Never the test images.
        judge_inputs: images [N, ...] to compare both files on; None takes the calibration images.
        labels: integer classes [N] of the judged images.
        min_top1_agreement: share of them that must get the class of the fp32 file, in 0..1. Random weights
            agree on little: 0 says openly that only the latency of the file matters.
        max_accuracy_drop: largest loss of accuracy on the labels, as a fraction.
        activations: "uint8", with a zero point, which ONNX Runtime runs in 8 bits on x86, or "int8",
            symmetric around 0, which TensorRT needs and ONNX Runtime runs in fp32 there.
        check_inputs: arrays [N, ...], N >= 4, for the relative errors; None is the first judged images.
        source_outputs: what the torch source gives for `check_inputs`, by output name.
        metadata: texts to store beside those of the source.

    Raises:
        ExportError: the source is no fp32 ONNX file, or the images do not fit it.
        ParityError: a gate is missed; nothing is written.
        MeasureError, MissingDependency, StoreError: a runtime, the quantiser or the disk fails.
    """
    fp32_path, path = Path(fp32_path), Path(path)
    if activations not in ACTIVATIONS:
        raise ExportError(f"export: activations {activations!r} is not one of {', '.join(ACTIVATIONS)}")
    source = require_fp32(fp32_path)
    require_images(fp32_path, "calibration", calibration, at_least=MIN_CALIBRATION_IMAGES)
    judged = calibration if judge_inputs is None else judge_inputs
    _require_labels(labels, require_images(fp32_path, "judge_inputs", judged, at_least=4))
    model = fused(_quantised(source, calibration, path))
    model = signed(model) if activations == "int8" else model
    _describe(model, source, calibration, metadata)
    check_inputs = check_inputs or {name: array[:NUM_CHECK_ROWS] for name, array in judged.items()}
    with partial_of(path) as partial:
        write_model(model, partial, path)
        agreement, drop = _judged(fp32_path, partial, judged, labels)
        _require_quality(path, agreement, drop, min_top1_agreement, max_accuracy_drop)
        set_metadata(model, {TOP1_AGREEMENT: f"{agreement:.4f}"})
        found = _published(model, path, partial, fp32_path, check_inputs, source_outputs)
    return replace(found, top1_agreement=agreement, accuracy_drop=drop)


def _published(
    model: onnx.ModelProto,
    path: Path,
    partial: Path,
    fp32_path: Path,
    check_inputs: Mapping[str, Array],
    source_outputs: Mapping[str, Array] | None,
) -> Converted:
    """Publish a judged model with its two errors, of which any finite one passes."""
    expected = outputs_of(fp32_path, check_inputs)
    error = check_parity(partial, check_inputs, expected, tolerance=_ANY_FINITE)
    set_metadata(model, {PRECISION_ERROR: f"{error:.3e}"})
    parity = publish_model(model, path, partial, check_inputs, source_outputs, _ANY_FINITE)
    return Converted(
        path=path,
        precision="int8",
        precision_rel_error=error,
        parity_rel_error=parity,
        fp32_layers=_fp32_layers(model),
    )


def _describe(
    model: onnx.ModelProto,
    source: onnx.ModelProto,
    calibration: Mapping[str, Array],
    metadata: Mapping[str, str] | None,
) -> None:
    """Store the texts of the source and what was done; the quantiser's own marks go."""
    del model.metadata_props[:]
    texts = {
        **metadata_of(source),
        **(metadata or {}),
        PRECISION: "int8",
        FP32_LAYERS: json.dumps(_fp32_layers(model)),
        CALIBRATION_IMAGES: str(len(next(iter(calibration.values())))),
    }
    set_metadata(model, texts)


def _quantised(source: onnx.ModelProto, calibration: Mapping[str, Array], path: Path) -> onnx.ModelProto:
    try:
        from onnxruntime import quantization as ort_quantization
    except ImportError as error:
        raise MissingDependency("onnxruntime is not installed", hint="pip install onnxruntime") from error
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
            onnx.save(source, Path(folder) / "source.onnx")
            # folds norms into their convolutions; shapes come from ONNX alone, so that sympy is not needed
            ort_quantization.quant_pre_process(
                str(Path(folder) / "source.onnx"), str(prepared), skip_symbolic_shape=True
            )
            ort_quantization.quantize_static(
                str(prepared),
                str(quantised),
                _Reader(calibration),
                quant_format=ort_quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                per_channel=True,
                weight_type=ort_quantization.QuantType.QInt8,
                activation_type=ort_quantization.QuantType.QUInt8,
                calibrate_method=ort_quantization.CalibrationMethod.MinMax,
                extra_options={
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # an activation that is left out cannot come back when the ranges become symmetric
                    "QDQKeepRemovableActivations": True,
                },
            )
            model = onnx.load(quantised)
    except OSError as error:
        raise StoreError(f"{path}: cannot be quantised: {error}", hint="TMPDIR needs space") from error
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        raise ExportError(f"{path}: ONNX Runtime cannot quantise it: {error}") from error
    used = {"ai.onnx" if node.domain == "" else node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if (entry.domain or "ai.onnx") not in used]:
        model.opset_import.remove(entry)  # the optimiser lists every domain it knows
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice to itself: it writes to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


class _Reader:
    """Gives the calibration images in batches, in the protocol of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, images: Mapping[str, Array]) -> None:
        self._batches = _batches(images)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _batches(images: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    for start in range(0, len(next(iter(images.values()))), _BATCH):
        yield {name: array[start : start + _BATCH] for name, array in images.items()}


def require_images(path: Path, what: str, images: Mapping[str, Array], *, at_least: int) -> int:
    """Return how many images there are, all of which fit the network.

    Raises:
        ExportError: names, dtypes, shapes, lengths or values do not fit, or there are too few.
    """
    with OrtCpuRunner(path) as runner:
        specs = runner.input_specs
    if set(images) != set(specs):
        raise ExportError(f"{what}: arrays are named {sorted(images)}, but {path} takes {sorted(specs)}")
    for name, spec in specs.items():
        _require_array(what, name, images[name], spec)
    lengths = {name: len(array) for name, array in images.items()}
    if len(set(lengths.values())) != 1:
        raise ExportError(f"{what}: the arrays hold unequal numbers of images: {lengths}")
    (num_images,) = set(lengths.values())
    if num_images < at_least:
        raise ExportError(
            f"{what}: {num_images} images are too few, at least {at_least} are needed",
            hint="some hundred training images give good ranges",
        )
    return num_images


def _require_array(what: str, name: str, array: Array, spec: TensorSpec) -> None:
    if not isinstance(array, np.ndarray):
        raise ExportError(f"{what}: {name!r} is {type(array).__name__}, not a NumPy array")
    fits = array.ndim == len(spec.shape) and all(
        size in (None, given) for size, given in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype.name != spec.dtype or not fits:
        raise ExportError(
            f"{what}: {name!r} is {array.dtype.name} {list(array.shape)}, "
            f"but the network takes {spec.dtype} {shape_text(spec.shape)}",
            hint="give images as the network takes them: scaled, normalised, channels first",
        )
    if np.issubdtype(array.dtype, np.floating):
        finite = np.isfinite(array)
        if not finite.all():
            first = int(np.argwhere(~finite)[0, 0])
            raise ExportError(f"{what}: {name!r} holds values that are not finite, first in image {first}")


def _require_labels(labels: Array | None, num_judged: int) -> None:
    if labels is None:
        return
    if labels.shape != (num_judged,) or not np.issubdtype(labels.dtype, np.integer):
        raise ExportError(
            f"labels: {labels.dtype.name} {list(labels.shape)}, but the {num_judged} judged images "
            f"need integers [{num_judged}]"
        )


def _judged(
    fp32_path: Path, int8_path: Path, images: Mapping[str, Array], labels: Array | None
) -> tuple[float, float | None]:
    """Return the share of equal classes and, with labels, the loss of accuracy; first output, axis 1."""
    classes: dict[Path, Any] = {}  # Any: NumPy's concatenate
    for path in (fp32_path, int8_path):
        found = []
        with OrtCpuRunner(path) as runner:
            for batch in _batches(images):
                logits = next(iter(runner.infer(batch).values()))
                found.append(logits.argmax(1) if logits.ndim > 1 else logits)
        classes[path] = np.concatenate(found)
    agreement = float((classes[fp32_path] == classes[int8_path]).mean())
    if labels is None:
        return agreement, None
    accuracy = {path: float((found == labels).mean()) for path, found in classes.items()}
    return agreement, accuracy[fp32_path] - accuracy[int8_path]


def _require_quality(
    path: Path, agreement: float, drop: float | None, min_agreement: float, max_drop: float
) -> None:
    hint = "give more or other calibration images, or deploy this network in fp16"
    if not agreement >= min_agreement:
        raise ParityError(
            f"{path}: INT8 names the class of fp32 on {100 * agreement:.2f} % of the images, "
            f"below {100 * min_agreement:g} %",
            hint=f"{hint}; min_top1_agreement=0 lets random weights pass",
        )
    if drop is not None and not drop <= max_drop:
        raise ParityError(
            f"{path}: INT8 loses {100 * drop:.2f} points of accuracy, above {100 * max_drop:g}", hint=hint
        )


def _fp32_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the layers with weights that no 8-bit pair feeds."""
    dequantised = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return tuple(
        layer_name(node, weights)
        for node in model.graph.node
        if node.op_type in _LAYERS and not set(node.input[:2]) <= dequantised
    )
