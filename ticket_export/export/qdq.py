"""Q/DQ pairs moved to where ONNX Runtime and TensorRT fuse them, and ranges made symmetric for TensorRT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ticket_export.errors import ExportError

ACTIVATIONS = ("uint8", "int8")
_RECTIFIERS = frozenset({"Clip", "Relu"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_LAYERS = frozenset({"Conv", "ConvTranspose"}) | _PRODUCTS


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the pairs that keep layers apart.

    A pair between a layer and its rectifier costs a rounding and a pass over memory: both runtimes fold the
    rectifier into the layer when the pair stands behind it. The last product's output stays exact.
    """
    edited = _Pairs(model)
    for node in edited.model.graph.node:
        if node.op_type in _RECTIFIERS:
            edited.read_exact(node, 0)
    for value in edited.model.graph.output:
        edited.give_exact(value.name)
    return edited.without_dead_pairs()


def signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of `fused` with its uint8 activations as int8, symmetric around 0, for TensorRT.

    A range [low, high] becomes [-m, m], m the larger size. Of the two inputs of a residual add one is read
    exact, a layer's own output: TensorRT then adds inside that layer (NVIDIA's TensorRT documentation,
    "Q/DQ Layer-Placement Recommendations"). A model that is symmetric already comes back equal.

    Raises:
        ExportError: a pair has no constant scale and zero point.
    """
    edited = _Pairs(model)
    for node in edited.model.graph.node:
        if node.op_type == "Add" and all(edited.exact_name(name) is not None for name in node.input):
            layers = [place for place in (0, 1) if edited.is_layer(node.input[place])]
            for place in layers[:1]:
                edited.read_exact(node, place)
    symmetric = edited.without_dead_pairs()
    weights = {tensor.name: tensor for tensor in symmetric.graph.initializer}
    done: set[str] = set()
    for node in symmetric.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[2] in done:
            continue
        scale, zero = (_constant(weights, name, node) for name in node.input[1:3])
        if zero.dtype != np.uint8:
            continue
        done.add(node.input[2])
        size = np.maximum(zero.astype(np.float32), 255.0 - zero.astype(np.float32))
        weights[node.input[1]].CopyFrom(
            numpy_helper.from_array((scale * size / 127.0).astype(np.float32), node.input[1])
        )
        weights[node.input[2]].CopyFrom(
            numpy_helper.from_array(np.zeros_like(zero, dtype=np.int8), node.input[2])
        )
    return symmetric


def _constant(
    weights: Mapping[str, onnx.TensorProto], name: str, node: onnx.NodeProto
) -> npt.NDArray[np.generic]:
    if name not in weights:
        raise ExportError(f"{node.name}: its scale or zero point {name!r} is not a constant of the file")
    array: npt.NDArray[np.generic] = numpy_helper.to_array(weights[name])
    return array


class _Pairs:
    """A copy of a model whose nodes are made to read past Q/DQ pairs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._maker = {name: node for node in self.model.graph.node for name in node.output}

    def exact_name(self, name: str) -> str | None:
        """Return what a pair that gives `name` was made from; None where there is no pair."""
        dequantise = self._maker.get(name)
        if dequantise is None or dequantise.op_type != "DequantizeLinear":
            return None
        quantise = self._maker.get(dequantise.input[0])
        if quantise is None or quantise.op_type != "QuantizeLinear":
            return None
        return str(quantise.input[0])

    def is_layer(self, name: str) -> bool:
        """Return whether `name` is a layer's output through a pair, read by nothing else."""
        exact = self.exact_name(name)
        readers = Counter(read for node in self.model.graph.node for read in node.input)
        return (
            exact is not None
            and exact in self._maker
            and self._maker[exact].op_type in _LAYERS
            and readers[name] == 1
        )

    def read_exact(self, node: onnx.NodeProto, place: int) -> None:
        """Make a node read an input past the pair before it, where there is one."""
        exact = self.exact_name(node.input[place])
        if exact is not None:
            node.input[place] = exact

    def give_exact(self, output: str) -> None:
        """Make a product give an output of the model itself, where a pair stood between."""
        exact = self.exact_name(output)
        maker = None if exact is None else self._maker.get(exact)
        if maker is None or maker.op_type not in _PRODUCTS:
            return
        for node in self.model.graph.node:
            node.input[:] = [output if name == exact else name for name in node.input]
        self._maker[output].output[0] = f"{output}/unused"
        maker.output[0] = output

    def without_dead_pairs(self) -> onnx.ModelProto:
        """Return the model without pairs that nothing reads, and without the shapes told of its values."""
        graph = self.model.graph
        shown = {value.name for value in graph.output}
        while True:
            read = {name for node in graph.node for name in node.input} | shown
            dead = [
                node
                for node in graph.node
                if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not read & set(node.output)
            ]
            if not dead:
                break
            for node in dead:
                graph.node.remove(node)
        read = {name for node in graph.node for name in node.input} | shown
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
            graph.initializer.remove(tensor)
        del graph.value_info[:]
        return self.model
