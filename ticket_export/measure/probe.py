"""Small networks that are timed to price one layer: the layer between two 1x1 ones, and those ones alone.

A layer's price is the sandwich less half of the ends at either of its widths. Median error on 14 random
ResNet-20 (ort-cpu fp32, batch 1, 2 cores of an EPYC, busy; each network by a line through the others): 2.0 %
so, 2.8 % by one-layer sessions, 2.9 % by whole sandwiches, 3.2 % by the runtime's own clock per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ticket_export.errors import MissingDependency
from ticket_export.measure.layer_kind import LayerKind

if TYPE_CHECKING:
    import onnx

ENDS = 16  # channels that go in and out of every probe
IMAGE_CHANNELS = 3  # a layer of no more reads the image itself, in the runtime's outer layout
_SCALE = 0.02  # of int8, for activations and weights of about unit size


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLayer:
    """One layer of a probe; a ReLU follows each."""

    kind: LayerKind
    width_in: int
    width_out: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[out, in] of a linear layer, else [out, in per group, height, width]."""
        if self.kind.op == "linear":
            return (self.width_out, self.width_in)
        return (self.width_out, 1 if self.kind.depthwise else self.width_in, *self.kind.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A network to be timed.

    Attributes:
        name: tells it from all other probes, in this and any later process.
        layers: in the order they run.
    """

    name: str
    layers: tuple[ProbeLayer, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return _shape(self.layers[0].kind, self.layers[0].width_in, self.layers[0].kind.in_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """For one image."""
        return _shape(self.layers[-1].kind, self.layers[-1].width_out, self.layers[-1].kind.out_size)


def sandwich(kind: LayerKind, width_in: int, width_out: int) -> Probe:
    """Return the probe that holds the layer between 1x1 ones; one that reads an image has none before it."""
    head = ProbeLayer(kind=_end(kind.op, kind.in_size), width_in=ENDS, width_out=width_in)
    layer = ProbeLayer(kind=kind, width_in=width_in, width_out=width_out)
    tail = ProbeLayer(kind=_end(kind.op, kind.out_size), width_in=width_out, width_out=ENDS)
    layers = (layer, tail) if reads_image(width_in) else (head, layer, tail)
    return Probe(name=f"{kind}: {width_in} to {width_out}", layers=layers)


def ends(op: str, size: tuple[int, int], width: int) -> Probe:
    """Return the probe of the two 1x1 layers around `width` channels, with nothing between them."""
    kind = _end(op, size)
    return Probe(
        name=f"ends, {kind}: {width}",
        layers=(
            ProbeLayer(kind=kind, width_in=ENDS, width_out=width),
            ProbeLayer(kind=kind, width_in=width, width_out=ENDS),
        ),
    )


def ends_of(kind: LayerKind, width_in: int, width_out: int) -> tuple[Probe, ...]:
    """Return the probes of which half each is taken off the sandwich."""
    behind = ends(kind.op, kind.out_size, width_out)
    return (behind,) if reads_image(width_in) else (ends(kind.op, kind.in_size, width_in), behind)


def reads_image(width_in: int) -> bool:
    """Return whether a layer with so few channels is taken to be a network's first."""
    return width_in <= IMAGE_CHANNELS


def _end(op: str, size: tuple[int, int]) -> LayerKind:
    return LayerKind(op=op, kernel=(1, 1), stride=(1, 1), padding=(0, 0), in_size=size)


def _shape(kind: LayerKind, width: int, size: tuple[int, int]) -> tuple[int, ...]:
    if kind.op == "conv":
        return (width, *size)
    return (width,) if size[0] == 1 else (size[0], width)


def write_probe(probe: Probe, path: Path, precision: str, activations: str = "uint8") -> Path:
    """Write a probe as ONNX in one precision and return the path; int8 is written as Q/DQ pairs.

    Args:
        probe: what to write.
        path: the file.
        precision: "fp32", "fp16" or "int8".
        activations: of int8, "uint8" or "int8".

    Raises:
        MissingDependency: onnx is not installed.
    """
    try:
        import onnx
        from onnx import helper
    except ImportError as error:
        raise MissingDependency("onnx is not installed", hint="pip install onnx") from error
    writer = _Writer(precision, activations)
    read = writer.rounded("input")
    for layer in probe.layers:
        read = writer.layer(read, layer)
    writer.nodes[-1].output[0] = "output"
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info(name, kind, ["batch", *shape])
        for name, shape in (("input", probe.input_shape), ("output", probe.output_shape))
    ]
    graph = helper.make_graph(writer.nodes, "probe", values[:1], values[1:], writer.weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


class _Writer:
    """Nodes and weights as they are added.

    In int8 activations start at 0 and weights are symmetric, as calibration leaves them behind a ReLU: only
    then does ONNX Runtime fuse convolution, ReLU and Q/DQ into one integer kernel.
    """

    def __init__(self, precision: str, activations: str) -> None:
        from onnx import numpy_helper

        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._dtype = np.float16 if precision == "fp16" else np.float32
        self._random = np.random.default_rng(0)
        self._int8 = precision == "int8"
        if self._int8:
            zero = np.array(0, np.int8 if activations == "int8" else np.uint8)
            self.weights += [
                numpy_helper.from_array(np.array(_SCALE, np.float32), "scale"),
                numpy_helper.from_array(zero, "zero"),
                numpy_helper.from_array(np.array(0, np.int8), "zero_weight"),
            ]

    def rounded(self, name: str) -> str:
        """Put a Q/DQ pair behind a tensor, in int8, and return the name of what is read then."""
        from onnx import helper

        if not self._int8:
            return name
        self.nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"])
        )
        return f"{name}_dq"

    def layer(self, read: str, layer: ProbeLayer) -> str:
        """Add a layer and its ReLU and return the name of the output."""
        from onnx import helper

        place, kind = len(self.nodes), layer.kind
        shape = layer.weight_shape
        values = self._random.standard_normal(shape) * (2.0 / max(1, int(np.prod(shape[1:])))) ** 0.5
        weight = self._weight(f"weight_{place}", values)
        out = f"layer_{place}"
        if kind.op == "conv":
            groups = layer.width_in if kind.depthwise else 1
            self.nodes.append(
                helper.make_node(
                    "Conv",
                    [read, weight, self._bias(place, layer.width_out)],
                    [out],
                    kernel_shape=kind.kernel,
                    strides=kind.stride,
                    pads=[*kind.padding, *kind.padding],
                    group=groups,
                )
            )
        elif kind.in_size[0] == 1:
            inputs = [read, weight, self._bias(place, layer.width_out)]
            self.nodes.append(helper.make_node("Gemm", inputs, [out], transB=1))
        else:
            self.nodes.append(helper.make_node("Transpose", [weight], [f"{weight}_t"], perm=[1, 0]))
            self.nodes.append(helper.make_node("MatMul", [read, f"{weight}_t"], [out]))
        self.nodes.append(helper.make_node("Relu", [out], [f"relu_{place}"]))
        return self.rounded(f"relu_{place}")

    def _weight(self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
        from onnx import helper, numpy_helper

        if not self._int8:
            self.weights.append(numpy_helper.from_array(values.astype(self._dtype), name))
            return name
        steps = np.clip(np.round(values / _SCALE), -127, 127).astype(np.int8)
        self.weights.append(numpy_helper.from_array(steps, name))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [name, "scale", "zero_weight"], [f"{name}_dq"])
        )
        return f"{name}_dq"

    def _bias(self, place: int, width: int) -> str:
        """Add a bias, as norms leave one behind when they are folded; int8 kernels want it in whole steps."""
        from onnx import helper, numpy_helper

        name = f"bias_{place}"
        values = 0.1 * self._random.standard_normal(width)
        if not self._int8:
            self.weights.append(numpy_helper.from_array(values.astype(self._dtype), name))
            return name
        steps = np.round(values / _SCALE**2).astype(np.int32)
        self.weights += [
            numpy_helper.from_array(steps, name),
            numpy_helper.from_array(np.array(_SCALE**2, np.float32), f"{name}_scale"),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [f"{name}_dq"]))
        return f"{name}_dq"
