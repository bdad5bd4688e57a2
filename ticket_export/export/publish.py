"""How an ONNX file comes to be: one file, checked, its facts in its metadata, or nothing at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx

from ticket_export.errors import ExportError, StoreError, TicketExportError
from ticket_export.export.parity import check_parity
from ticket_export.runtime.onnx_file import MAX_BYTES
from ticket_export.runtime.runner import Array

PREFIX = "ticket_export."
PRECISION = f"{PREFIX}precision"
PARITY = f"{PREFIX}parity_rel_error"  # the file against its torch source
PRECISION_ERROR = f"{PREFIX}precision_rel_error"  # the file against its own fp32 file
FP32_LAYERS = f"{PREFIX}fp32_layers"  # a JSON list
TOP1_AGREEMENT = f"{PREFIX}top1_agreement"
CALIBRATION_IMAGES = f"{PREFIX}calibration_images"


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the texts stored in a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(model: onnx.ModelProto, texts: Mapping[str, str]) -> None:
    """Store the texts in the model; what was under the same keys is replaced."""
    kept = {**metadata_of(model), **texts}
    del model.metadata_props[:]
    for key, value in kept.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def require_valid(model: onnx.ModelProto, path: Path) -> None:
    """Pass for a model that fits one file and the checker accepts, shapes included.

    Raises:
        ExportError: it does not.
    """
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise ExportError(f"{path}: {size} bytes do not fit one ONNX file (limit {MAX_BYTES})")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: fails onnx.checker: {error}") from error


@contextmanager
def partial_of(path: Path, *, named: Path | None = None) -> Iterator[Path]:
    """Give a name beside `path` to write to, gone afterwards; errors name `path`, or `named`, instead."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    except TicketExportError as error:
        if str(partial) not in error.message:
            raise
        raise type(error)(error.message.replace(str(partial), str(named or path)), hint=error.hint) from error
    finally:
        partial.unlink(missing_ok=True)


def write_model(model: onnx.ModelProto, partial: Path, path: Path) -> None:
    """Write a model to `partial`, which is to become `path`.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        partial.write_bytes(model.SerializeToString())
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror}", hint="give a folder that exists and has space"
        ) from error


def layer_name(node: onnx.NodeProto, weights: Mapping[str, object]) -> str:
    """Return what a reader knows a node by: its weight without `.weight`, else the node's own name."""
    names = [str(name) for name in node.input[1:] if name in weights]
    return names[0].removesuffix(".weight") if names else str(node.name)


def publish_model(
    model: onnx.ModelProto,
    path: Path,
    partial: Path,
    inputs: Mapping[str, Array],
    source_outputs: Mapping[str, Array] | None,
    tolerance: float,
) -> float | None:
    """Make a converted model the file `path` once it is valid; return its error against the torch source.

    Args:
        model: with its metadata, to which the error against the source is added.
        path: the file.
        partial: written first.
        inputs: arrays [N, ...] by input name.
        source_outputs: the torch source's outputs for them; None checks and returns nothing.
        tolerance: largest relative error against the source that passes.

    Raises:
        ExportError: it fails the checker.
        ParityError: the error is above the tolerance.
        StoreError: the file cannot be written.
    """
    require_valid(model, path)
    write_model(model, partial, path)
    error = None
    if source_outputs is not None:
        error = check_parity(partial, inputs, source_outputs, tolerance=tolerance)
        set_metadata(model, {PARITY: f"{error:.3e}"})
        write_model(model, partial, path)
    partial.replace(path)
    return error
