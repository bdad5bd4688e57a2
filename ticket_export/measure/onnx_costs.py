"""What each layer of an ONNX file has to compute and to move, by shape inference; nothing is run.

Torch-free: it reads the file that is measured, so the numbers are those of what ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_export.errors import MeasureError
from ticket_export.runtime.layers import LayerCost, NetworkCosts
from ticket_export.runtime.onnx_file import load_graph

if TYPE_CHECKING:
    import onnx

MULTIPLYING_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# between a weight and the layer that uses it: what quantising and converting put there
_WEIGHT_CARRIERS = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Reshape", "Identity"}
)
_SMALL_ELEMENTS = 1024  # initializers up to here may be shapes, which shape inference must read


def costs_from_onnx(path: str | Path, batch: int) -> NetworkCosts:
    """Return MACs, bytes and widths of every layer of the file that multiplies, at a batch size.

    Args:
        path: an ONNX file with a free or equal batch axis.
        batch: images per inference.

    Raises:
        MeasureError: the file is missing, damaged, or its shapes contradict each other.
        MissingDependency: onnx is not installed.
    """
    path = Path(path)
    model = load_graph(path)
    import onnx

    sources = {weight.name for weight in model.graph.initializer}
    _fix_batch(model, batch)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except Exception as error:  # the C++ checker's errors share no base class but Exception
        raise MeasureError(f"{path}: its shapes cannot be inferred: {error}") from error
    return _costs(inferred.graph, sources)


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Set axis 0 of every input, drop old shapes, and turn large weights into inputs of their shape."""
    from onnx import helper

    graph = model.graph
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    large = [weight for weight in graph.initializer if math.prod(weight.dims) > _SMALL_ELEMENTS]
    small = [weight for weight in graph.initializer if math.prod(weight.dims) <= _SMALL_ELEMENTS]
    known = {value.name for value in graph.input}
    graph.input.extend(
        helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        for weight in large
        if weight.name not in known
    )
    del graph.initializer[:]
    graph.initializer.extend(small)


def _costs(graph: onnx.GraphProto, sources: set[str]) -> NetworkCosts:
    shapes, item_bytes = _tensors(graph)
    producer = {output: node for node in graph.node for output in node.output}
    layers: list[LayerCost] = []
    uncounted: list[str] = []
    layer_by_node: dict[str, str] = {}
    fused_by_node: dict[str, str] = {}
    taken: dict[str, int] = {}
    index = -1
    for node in graph.node:
        # ONNX Runtime calls a node without a name by its operator and place; constants have no place there
        index += node.op_type != "Constant"
        names = (node.name or f"{node.op_type}_{index}", *node.output)
        if node.op_type not in MULTIPLYING_OPS:
            found = (layer_by_node.get(read, fused_by_node.get(read)) for read in node.input)
            owner = next((name for name in found if name is not None), None)
            if owner is not None:
                fused_by_node |= dict.fromkeys(names, owner)
            continue
        name = _layer_name(node, producer, sources)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:  # one weight, used twice
            name = f"{name}#{taken[name]}"
        layer_by_node |= dict.fromkeys(names, name)
        cost = _cost(name, node, shapes, item_bytes)
        if cost is None:
            uncounted.append(name)
        else:
            layers.append(cost)
    return NetworkCosts(
        layers=tuple(layers),
        layer_by_node=layer_by_node,
        fused_by_node=fused_by_node,
        uncounted=tuple(uncounted),
    )


def _tensors(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return shape and bytes per element of every tensor whose shape is fully known."""
    from onnx import helper

    shapes: dict[str, tuple[int, ...]] = {}
    item_bytes: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
            item_bytes[value.name] = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    for weight in graph.initializer:
        shapes[weight.name] = tuple(weight.dims)
        item_bytes[weight.name] = helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
    return shapes, item_bytes


def _layer_name(node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto], sources: set[str]) -> str:
    """Return the owner of the node's weight: `layer1.0.conv1` for `layer1.0.conv1.weight`."""
    for read in node.input[:2]:
        name = read
        while name not in sources and name in producer and producer[name].op_type in _WEIGHT_CARRIERS:
            name = producer[name].input[0]
        if name in sources:
            return str(name).removesuffix("_quantized").removesuffix(".weight")
    return str(node.name or node.output[0])


def _cost(
    name: str, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], item_bytes: Mapping[str, int]
) -> LayerCost | None:
    tensors = [*node.input[:2], node.output[0]]
    if any(tensor not in shapes for tensor in tensors):
        return None
    read, weight, written = (shapes[tensor] for tensor in tensors)
    depthwise = False
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        wide = written if node.op_type == "Conv" else read
        macs = math.prod(wide) * math.prod(weight[1:])
        width_in, width_out = read[1], written[1]
        depthwise = groups > 1 and groups == read[1]
    else:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = read[0] if transposed else read[-1]
        macs = math.prod(written) * inner
        width_in, width_out = inner, written[-1]
    num_bytes = sum(math.prod(shapes[tensor]) * item_bytes[tensor] for tensor in tensors)
    return LayerCost(
        name=name, op=node.op_type, macs=macs, num_bytes=num_bytes, width_in=width_in, width_out=width_out,
        depthwise=depthwise,
    )  # fmt: skip
