"""Does the exported file compute what its source computes? Asked of the file itself, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ticket_export.errors import ExportError, ParityError
from ticket_export.runtime.agreement import relative_error
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.runner import Array, Runner

FP32_TOLERANCE = 1e-4
FP16_TOLERANCE = 2e-2
SMALL_BATCHES = (1, 3)  # 1 shows a batch that tracing has fixed, 3 one that it has rounded


def check_parity(
    onnx_path: str | Path,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    *,
    tolerance: float = FP32_TOLERANCE,
) -> float:
    """Return max|a - b| / max|b| of an ONNX file against its source, at batch 1, at 3 and at the whole batch.

    Args:
        onnx_path: the exported file, run by ONNX Runtime on the CPU.
        inputs: arrays [N, ...] by input name, N >= 4, so that the whole batch is a third batch size.
        expected: the source's outputs [N, ...] for them by output name, b in the formula. Images of a batch
            must not depend on one another, as in eval mode.
        tolerance: largest relative error that passes.

    Raises:
        ParityError: the error is above the tolerance, not a number, or an output is missing or misshapen.
        ExportError: N is below 4, or the arrays differ in N.
        MeasureError: the file cannot be opened or does not take the inputs.
    """
    worst = error_at_every_batch(onnx_path, inputs, expected)
    if not worst <= tolerance:  # written so that a NaN fails
        raise ParityError(
            f"{onnx_path}: relative error {worst:.2e} against its source is above {tolerance:g}",
            hint="compare the outputs of source and file layer by layer to find the first that differs",
        )
    return worst


def error_at_every_batch(
    onnx_path: str | Path, inputs: Mapping[str, Array], expected: Mapping[str, Array]
) -> float:
    """Return the largest `relative_error` over batch 1, 3 and the whole; NaN if an output is not finite.

    Raises:
        ParityError: an output is missing or misshapen.
        ExportError: fewer than 4 images, or arrays of unequal lengths.
        MeasureError: the file cannot be opened or does not take the inputs.
    """
    num_images = _common_length({**inputs, **expected}, Path(onnx_path))
    errors = []
    with OrtCpuRunner(Path(onnx_path)) as runner:
        for batch in (*SMALL_BATCHES, num_images):
            first_inputs = {name: array[:batch] for name, array in inputs.items()}
            first_expected = {name: array[:batch] for name, array in expected.items()}
            errors.append(_error_at(runner, first_inputs, first_expected, Path(onnx_path), batch))
    return float(np.max(errors))  # unlike max(), keeps a NaN wherever it stands


def _error_at(
    runner: Runner,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    path: Path,
    batch: int,
) -> float:
    actual = runner.infer(inputs)
    if set(actual) != set(expected):
        raise ParityError(f"{path}: outputs are {sorted(actual)}, the source's are {sorted(expected)}")
    errors = []
    for name, reference in expected.items():
        if actual[name].shape != reference.shape:
            raise ParityError(
                f"{path}: output {name!r} is {list(actual[name].shape)} at batch {batch}, "
                f"the source's is {list(reference.shape)}"
            )
        errors.append(relative_error(actual[name], reference))
    return float(np.max(errors))


def _common_length(arrays: Mapping[str, Array], path: Path) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ExportError(f"{path}: parity needs arrays of one length, got {lengths}")
    (num_images,) = set(lengths.values())
    if num_images <= max(SMALL_BATCHES):
        raise ExportError(
            f"{path}: parity needs at least {max(SMALL_BATCHES) + 1} images, got {num_images}",
            hint="give more images: the whole batch is the third batch size of the check",
        )
    return num_images
