"""A module becomes one ONNX file: dynamic batch, checked, equal to its source, or not published at all."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ticket_export.errors import ExportError, ParityError, StoreError
from ticket_export.export.parity import check_parity
from ticket_export.runtime.torch_eager import input_names, output_names

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32",)
MAX_BYTES = 2**31 - 1  # a protobuf message cannot be larger, and weights beside the file are not one file
PARITY_BATCH = 8
# the exporter's records per node that hold paths and source lines of this machine: not for a published file
PRIVATE_RECORDS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def onnx_from_module(
    model: nn.Module,
    path: str | Path,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    precision: str = "fp32",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `model` in eval mode as one ONNX file that computes the same, and return its path.

    The file has a dynamic batch and nothing else dynamic, passes `onnx.checker` with shape inference, and
    agrees with the module at batches 1, 3 and 8 within 1e-4; it appears only when all of that holds. The
    module is not changed. The measured error is in the metadata as `ticket_export.parity_rel_error`.

    Args:
        model: any module that `torch.export` can trace, with fp32 parameters.
        path: the file to write; an existing one is replaced.
        example_inputs: one tensor [N, ...] or a sequence of them, axis 0 the batch; N may be 1.
        precision: "fp32".
        metadata: texts to store in the file, e.g. the recipe and key it belongs to.

    Raises:
        ExportError: unknown precision, parameters of another dtype, a network that cannot be traced with a
            free batch, or a file that fails the checker.
        ParityError: the file does not compute what the module computes.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    _require_precision(model, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, when a traced graph is copied
        module = copy.deepcopy(model).cpu().eval()
    inputs = _tracing_inputs(example_inputs)
    check_inputs, expected = _reference(module, inputs)
    names = (input_names(len(inputs)), output_names(len(expected)))
    proto = _traced(module, inputs, names)
    _require_one_file(proto, path)
    _require_batch_alone_is_dynamic(proto, path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _make_publishable(proto, metadata, path)
        _write(proto, partial, path)
        error = check_parity(
            partial,
            {name: tensor.numpy() for name, tensor in zip(names[0], check_inputs, strict=True)},
            {name: tensor.numpy() for name, tensor in zip(names[1], expected, strict=True)},
        )
        _add_metadata(proto, {"ticket_export.parity_rel_error": f"{error:.3e}"})
        _write(proto, partial, path)
        partial.replace(path)
    except ParityError as error:
        raise ParityError(str(error.message).replace(str(partial), str(path)), hint=error.hint) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _require_precision(model: nn.Module, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ExportError(f"export: precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ExportError(
                f"export: precision is fp32, but parameter {name!r} is {parameter.dtype}",
                hint="export model.float()",
            )


def _tracing_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return CPU inputs of at least 2 rows: tracing with a batch of 1 would fix the batch at 1."""
    tensors = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not tensors or any(tensor.ndim < 1 or len(tensor) == 0 for tensor in tensors):
        shapes = [list(tensor.shape) for tensor in tensors]
        raise ExportError(
            f"export: example_inputs need a batch axis of at least one row, got shapes {shapes}"
        )
    return tuple(_rows(tensor.detach().cpu(), max(2, len(tensor))) for tensor in tensors)


def _rows(tensor: Tensor, num_rows: int) -> Tensor:
    """Return the first `num_rows` rows of the tensor repeated."""
    repeats = -(-num_rows // len(tensor))
    return torch.cat([tensor] * repeats)[:num_rows]


def _reference(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs of PARITY_BATCH rows, noisy where floating, and the module's outputs for them."""
    generator = torch.Generator().manual_seed(0)
    check_inputs = []
    for tensor in inputs:
        rows = _rows(tensor, PARITY_BATCH)
        if rows.is_floating_point():  # integers stay: only the caller knows which are valid
            rows = rows + torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
        check_inputs.append(rows)
    with torch.no_grad():
        outputs = module(*check_inputs)
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(tensors, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ExportError(f"export: the module returns {type(outputs).__name__}, not a tensor or several")
    return check_inputs, list(tensors)


def _traced(
    module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[list[str], list[str]]
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    with _quiet_and_uncollected():
        try:
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                input_names=names[0],
                output_names=names[1],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        except Exception as error:  # the exporter raises its own and torch.export's many kinds
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(
                f"export: {type(module).__name__} cannot be exported: {first_line}",
                hint="torch.export.export(model, example_inputs) with a dynamic axis 0 shows the full reason",
            ) from error
    if program is None:
        raise ExportError(f"export: the exporter returned nothing for {type(module).__name__}")
    return program.model_proto


@contextmanager
def _quiet_and_uncollected() -> Iterator[None]:
    """Silence the exporter's own deprecations, and keep the garbage collector from walking its graphs.

    Tracing makes some hundred thousand objects that live until the end; a full collection in the middle costs
    0.27 s of 1.5 s for a ResNet-20 and frees nothing.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # what the exporter says to itself: torch 2.13 pickles tree specs in a way torch deprecates
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # several inputs share the batch axis on purpose
            warnings.filterwarnings("ignore", message=".*axis name: batch will not", category=UserWarning)
            yield
    finally:
        if was_on:
            gc.enable()


def _require_one_file(proto: onnx.ModelProto, path: Path) -> None:
    size = proto.ByteSize()
    if size > MAX_BYTES:
        raise ExportError(f"{path}: {size} bytes do not fit one ONNX file (limit {MAX_BYTES})")


def _require_batch_alone_is_dynamic(proto: onnx.ModelProto, path: Path) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        free = [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if free != [0]:
            raise ExportError(
                f"{path}: axes {free} of {value.name!r} are dynamic, but it must be axis 0 alone, the batch",
                hint="every input and output needs the batch first, and the network may not fix its size",
            )


def _make_publishable(proto: onnx.ModelProto, metadata: Mapping[str, str] | None, path: Path) -> None:
    """Strip what is private to this machine, add the metadata and check the model."""
    import onnx

    for node in proto.graph.node:
        kept = [record for record in node.metadata_props if record.key not in PRIVATE_RECORDS]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    _add_metadata(proto, {"ticket_export.precision": "fp32", **(metadata or {})})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: fails onnx.checker: {error}") from error


def _write(proto: onnx.ModelProto, partial: Path, path: Path) -> None:
    try:
        partial.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror}", hint="give a folder that exists and has space"
        ) from error


def _add_metadata(proto: onnx.ModelProto, texts: Mapping[str, str]) -> None:
    for key, value in texts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
