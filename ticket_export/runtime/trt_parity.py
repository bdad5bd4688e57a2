"""Does an engine compute what its ONNX file computes? Asked of ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ticket_export.runtime.agreement import relative_error
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.runner import Array
from ticket_export.runtime.trt_network import OnnxSource
from ticket_export.runtime.trt_session import Session

# Largest max|a - b| / max|b| that passes. fp32 and fp16 are the gates of every export here. TF32 rounds the
# inputs of products to fp16's 10 bits, sums stay fp32. INT8: both sides round to 8 bits, but not every value
# to the same side.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1e-1}
TF32_TOLERANCE = 1e-2
NUM_IMAGES = 8  # distinct ones; larger batches repeat them
SMALL_BATCHES = (1, 3)


@dataclass(frozen=True, slots=True)
class Reference:
    """Inputs, and what the ONNX file answers to them, [NUM_IMAGES, ...] by name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]

    def inputs_at(self, batch: int) -> dict[str, Array]:
        """Return the inputs repeated to `batch` images."""
        return {name: _rows(array, batch) for name, array in self.inputs.items()}

    def outputs_at(self, batch: int) -> dict[str, Array]:
        """Return the answers to `inputs_at(batch)`."""
        return {name: _rows(array, batch) for name, array in self.outputs.items()}

    @property
    def made_by(self) -> str:
        """Who gave the answers, with the version."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}, CPU"


def tolerance_for(precision: str, *, tf32: bool) -> float:
    """Return the largest relative error at which an engine of that precision is published."""
    return TF32_TOLERANCE if tf32 and precision == "fp32" else TOLERANCES[precision]


def reference_from_source(source: OnnxSource) -> Reference:
    """Return noise images (zeros where an input is not floating) and the ONNX file's answers.

    Raises:
        MeasureError: ONNX Runtime cannot open or run the file.
    """
    num_images = source.fixed_batch or NUM_IMAGES
    generator = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    with OrtCpuRunner(source.path) as runner:
        for name, spec in runner.input_specs.items():
            shape = (num_images, *(int(size or 0) for size in spec.shape[1:]))
            kind = np.dtype(spec.dtype)
            floating = np.issubdtype(kind, np.floating)  # an integer may be an index: 0 is always one
            noise = generator.standard_normal(shape) if floating else np.zeros(shape)
            inputs[name] = noise.astype(kind)
        return Reference(inputs, runner.infer(inputs))


def parity_error(session: Session, reference: Reference, batches: Iterable[int]) -> float:
    """Return the largest relative error of the engine's outputs at each of the batches.

    NaN where an output is not finite; infinite where one is missing or misshapen.
    """
    errors = []
    for batch in batches:
        expected = reference.outputs_at(batch)
        inputs = {
            name: array.astype(session.input_specs[name].dtype)  # TensorRT 8.6 takes int64 as int32
            for name, array in reference.inputs_at(batch).items()
        }
        actual = session.execution(inputs).infer(inputs)
        session.drop_executions()  # each context has scratch memory for the engine's largest batch
        for name, answer in expected.items():
            if name not in actual or actual[name].shape != answer.shape:
                return float("inf")
            errors.append(relative_error(actual[name], answer))
    return float(np.max(errors))  # unlike max(), keeps a NaN wherever it stands


def checked_sizes(batches: tuple[int, ...], source: OnnxSource) -> tuple[int, ...]:
    """Return the batches to check: every listed one, and 1 and 3 where the engine takes them."""
    if source.fixed_batch is not None:
        return batches
    return tuple(sorted({*batches, *(size for size in SMALL_BATCHES if size <= batches[-1])}))


def _rows(array: Array, num_rows: int) -> Array:
    repeats = -(-num_rows // len(array))
    return np.concatenate([array] * repeats)[:num_rows]
