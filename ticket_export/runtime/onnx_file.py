"""What an ONNX file is before a runtime opens it: whole, ours to read, and of which precision. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ticket_export.errors import MeasureError, MissingDependency

if TYPE_CHECKING:
    import onnx

QUANTISED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
MAX_BYTES = 2**31 - 1  # protobuf encodes no longer message, and neither onnx nor ONNX Runtime reads one
ENGINE_SUFFIXES = frozenset({".engine", ".plan"})
# first bytes of files that are taken for ONNX by mistake
FOREIGN = {
    b"PK\x03\x04": "a zip archive, like a torch checkpoint or an .npz",
    b"ftrt": "a TensorRT engine",
    b"ptrt": "a TensorRT engine",
    b"TFL3": "a TensorFlow Lite file",
    b"\x89HDF": "an HDF5 file",
}


def load_graph(path: Path) -> onnx.ModelProto:
    """Return the model in a file without its external weights, which lie beside it whole.

    Raises:
        MeasureError: the file is missing, too large, of another kind, damaged, or its weights are missing.
        MissingDependency: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency("onnx is not installed", hint="pip install onnx") from error
    _require_readable(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise MeasureError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError is private to the protobuf build in use
        raise MeasureError(
            f"{path}: not an ONNX file, or cut short ({error})", hint="export it again"
        ) from error
    if not model.graph.node:
        raise MeasureError(f"{path}: not an ONNX file (its graph has no nodes)")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _require_external(tensor, path)
    return model


def precision_from_onnx(path: Path) -> str:
    """Return what an ONNX file computes in: "int8", "fp16", "bf16", "fp64" or "fp32".

    A file with quantising operators is "int8", any other one with fp16 weights "fp16", also where layers that
    lose too much in it stay in fp32. The rest is named after the floating type that most of its weights have,
    or after its first floating input when it has no such weights.

    Raises:
        MeasureError: the file is missing or is not ONNX.
        MissingDependency: onnx is not installed.
    """
    model = load_graph(path)
    if any(node.op_type in QUANTISED_OPS for node in model.graph.node):
        return "int8"
    # ONNX TensorProto.DataType: FLOAT 1, FLOAT16 10, DOUBLE 11, BFLOAT16 16
    names = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}
    num_elements = dict.fromkeys(names, 0)
    for weight in model.graph.initializer:
        if weight.data_type in names:
            num_elements[weight.data_type] += int(np.prod(weight.dims, dtype=np.int64))
    if num_elements[10]:
        return names[10]
    if any(num_elements.values()):
        return names[max(num_elements, key=lambda kind: num_elements[kind])]
    kinds = [value.type.tensor_type.elem_type for value in model.graph.input]
    return next((names[kind] for kind in kinds if kind in names), "fp32")


def _require_readable(path: Path) -> None:
    """Refuse, without reading it, a file that cannot be ONNX."""
    if not path.is_file():
        state = "a folder" if path.is_dir() else "no such file"
        raise MeasureError(f"{path}: {state}", hint="give the path of an exported .onnx file")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise MeasureError(f"{path}: cannot be read: {error.strerror}") from error
    kind = next((kind for magic, kind in FOREIGN.items() if magic in (start[:4], start[4:8])), None)
    if path.suffix in ENGINE_SUFFIXES:
        kind = "a TensorRT engine"
    if kind is not None:
        runs_engines = (
            "the runtime 'tensorrt' runs engines" if "engine" in kind else "export the network first"
        )
        raise MeasureError(f"{path}: not an ONNX file but {kind}", hint=runs_engines)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise MeasureError(
            f"{path}: {size / 2**30:.1f} GiB, but an ONNX file holds at most 2 GiB",
            hint="export it with its weights in a file of their own",
        )


def _require_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Pass when the file that holds a tensor's values lies beside the model and is long enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = path.parent / entries.get("location", "")
    where = f"{path}: the values of {tensor.name!r} lie in {place.name!r}"
    if not place.is_file():
        raise MeasureError(f"{where}, which is missing", hint="keep the two files in one folder")
    end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
    if place.stat().st_size < end:
        raise MeasureError(
            f"{where} up to byte {end}, but it ends at {place.stat().st_size}", hint="export it again"
        )
