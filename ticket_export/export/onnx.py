"""A module becomes one ONNX file: dynamic batch, checked, equal to its source, or not published at all."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ticket_export.errors import ExportError
from ticket_export.export.parity import FP16_TOLERANCE, FP32_TOLERANCE, check_parity
from ticket_export.export.precision import fp16_from_onnx
from ticket_export.export.publish import (
    PRECISION,
    partial_of,
    publish_model,
    require_valid,
    set_metadata,
    write_model,
)
from ticket_export.export.quantize import (
    MIN_CALIBRATION_IMAGES,
    MIN_TOP1_AGREEMENT,
    int8_from_onnx,
    require_images,
)
from ticket_export.runtime.offers import PRECISIONS
from ticket_export.runtime.runner import Array
from ticket_export.runtime.torch_eager import input_names, output_names

if TYPE_CHECKING:
    import onnx

PARITY_BATCH = 8
# the exporter's records per node that hold paths and source lines of this machine: not for a published file
PRIVATE_RECORDS = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def onnx_from_module(
    model: nn.Module,
    path: str | Path,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    precision: str = "fp32",
    calibration: Mapping[str, Array] | Tensor | None = None,
    fp16_tolerance: float = FP16_TOLERANCE,
    min_top1_agreement: float = MIN_TOP1_AGREEMENT,
    activations: str = "uint8",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `model` in eval mode as one ONNX file that computes the same, and return its path.

    The file has a dynamic batch and nothing else dynamic, passes `onnx.checker` with shape inference, and
    agrees with the module: within 1e-4 in fp32, within `fp16_tolerance` in fp16, in INT8 by the class it
    names. It appears only when all of that holds, and takes and gives fp32 in every precision. The module is
    not changed. Its metadata holds `ticket_export.parity_rel_error`, against the module, and in fp16 and INT8
    `ticket_export.precision_rel_error`, against the fp32 file, and `ticket_export.fp32_layers`.

    Args:
        model: any module that `torch.export` can trace, with fp32 parameters.
        path: the file to write; an existing one is replaced.
        example_inputs: one tensor [N, ...] or a sequence of them, axis 0 the batch; N may be 1.
        precision: "fp32", "fp16" or "int8".
        calibration: for int8, real images as the network takes them: a tensor, or arrays by input name.
        fp16_tolerance: see `fp16_from_onnx`.
        min_top1_agreement: see `int8_from_onnx`.
        activations: see `int8_from_onnx`.
        metadata: texts to store in the file, e.g. the recipe and key it belongs to.

    Raises:
        ExportError: unknown precision, parameters of another dtype, unfit calibration images, a network that
            cannot be traced with a free batch, or a file that fails the checker.
        ParityError: the file does not compute what the module computes.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    _require_precision(model, precision, has_calibration=calibration is not None)
    module = _copied(model)
    inputs = _tracing_inputs(example_inputs)
    given, answered = _reference(module, inputs)
    proto = _publishable(module, inputs, (list(given), list(answered)), metadata, path)
    if precision == "fp32":
        with partial_of(path) as partial:
            publish_model(proto, path, partial, given, answered, FP32_TOLERANCE)
        return path
    with partial_of(path.with_name(f"{path.name}.fp32"), named=path) as fp32:
        require_valid(proto, path)
        write_model(proto, fp32, path)
        check_parity(fp32, given, answered)
        if precision == "fp16":
            fp16_from_onnx(fp32, path, check_inputs=given, source_outputs=answered, tolerance=fp16_tolerance)
        else:
            images = _calibration_arrays(calibration, list(given), fp32)
            _write_int8(module, fp32, path, images, min_top1_agreement, activations)
    return path


def _write_int8(
    module: nn.Module,
    fp32_path: Path,
    path: Path,
    images: Mapping[str, Array],
    min_top1_agreement: float,
    activations: str,
) -> None:
    first = {name: images[name][:PARITY_BATCH] for name in images}  # noise would leave the calibrated ranges
    int8_from_onnx(
        fp32_path,
        path,
        images,
        min_top1_agreement=min_top1_agreement,
        activations=activations,
        check_inputs=first,
        source_outputs=_outputs(module, first),
    )


def _copied(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, when a traced graph is copied
        return copy.deepcopy(model).cpu().eval()


def _publishable(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[list[str], list[str]],
    metadata: Mapping[str, str] | None,
    path: Path,
) -> onnx.ModelProto:
    """Return the traced fp32 model with its metadata and without what is private to this machine."""
    proto = _traced(module, inputs, names)
    _require_batch_alone_is_dynamic(proto, path)
    _strip_private(proto)
    set_metadata(proto, {PRECISION: "fp32", **(metadata or {})})
    return proto


def _calibration_arrays(
    calibration: Mapping[str, Array] | Tensor | None, names: Sequence[str], fp32_path: Path
) -> Mapping[str, Array]:
    assert calibration is not None  # required before anything was traced
    if isinstance(calibration, Tensor):
        calibration = {names[0]: calibration.detach().cpu().numpy()}
    require_images(fp32_path, "calibration", calibration, at_least=MIN_CALIBRATION_IMAGES)
    return {name: calibration[name] for name in names}  # in the order the module takes them


def _require_precision(model: nn.Module, precision: str, *, has_calibration: bool) -> None:
    if precision not in PRECISIONS:
        raise ExportError(f"export: precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not has_calibration:
        raise ExportError(
            "export: precision int8 needs calibration images",
            hint="pass calibration=x, some hundred training images as the network takes them",
        )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ExportError(
                f"export: every precision starts from fp32, but parameter {name!r} is {parameter.dtype}",
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


def _reference(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return inputs of PARITY_BATCH rows, noisy where floating, and the module's outputs, by name."""
    generator = torch.Generator().manual_seed(0)
    given = {}
    for name, tensor in zip(input_names(len(inputs)), inputs, strict=True):
        rows = _rows(tensor, PARITY_BATCH)
        if rows.is_floating_point():  # integers stay: only the caller knows which are valid
            rows = rows + torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
        given[name] = rows.numpy()
    return given, _outputs(module, given)


def _outputs(module: nn.Module, given: Mapping[str, Array]) -> dict[str, Array]:
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(array) for array in given.values()))
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(tensors, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ExportError(f"export: the module returns {type(outputs).__name__}, not a tensor or several")
    return {name: tensor.numpy() for name, tensor in zip(output_names(len(tensors)), tensors, strict=True)}


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


def _require_batch_alone_is_dynamic(proto: onnx.ModelProto, path: Path) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        free = [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if free != [0]:
            raise ExportError(
                f"{path}: axes {free} of {value.name!r} are dynamic, but it must be axis 0 alone, the batch",
                hint="every input and output needs the batch first, and the network may not fix its size",
            )


def _strip_private(proto: onnx.ModelProto) -> None:
    """Take away what names paths and source lines of this machine."""
    for node in proto.graph.node:
        kept = [record for record in node.metadata_props if record.key not in PRIVATE_RECORDS]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
