"""One layer with group-wise zeros as ONNX, in every form that `regroup_forms.py` times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# N images, O I output and input channels, H W pixels, G groups, K columns of a group, T taps of a kernel

Floats = npt.NDArray[np.float32]
KERNEL = 3
CHANNEL_FORMS, TAP_FORMS = ("blocks", "grouped"), ("taps", "taps_conv")
FORMS = (*CHANNEL_FORMS, *TAP_FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A weight that is zero outside of its blocks.

    Attributes:
        weight: [O, I, kh, kw]; rows g * O/G to (g+1) * O/G are group g.
        columns: [G, K] positions of each group, ascending: of input channels, or of the flattened I * taps.
        whole_channels: which of the two.
    """

    weight: Floats
    columns: npt.NDArray[np.int64]
    whole_channels: bool

    def blocks(self) -> list[Floats]:
        """Return for each group its weights [rows, columns, taps of a column]."""
        num_groups = len(self.columns)
        rows = self.weight.reshape(num_groups, -1, *self.weight.shape[1:])
        flat = (
            rows.reshape(*rows.shape[:3], -1) if self.whole_channels else rows.reshape(*rows.shape[:2], -1, 1)
        )
        return [own[:, columns] for own, columns in zip(flat, self.columns, strict=True)]


def random_layer(width: int, groups: int, density: float, *, whole_channels: bool, seed: int) -> Layer:
    """Return a layer of `width` channels in and out whose groups keep random columns, `density` of them."""
    random = np.random.default_rng(seed)
    column_size = KERNEL**2 if whole_channels else 1
    num_columns = width * KERNEL**2 // column_size
    num_kept = max(1, round(density * num_columns))
    columns_GK = np.stack([np.sort(random.permutation(num_columns)[:num_kept]) for _ in range(groups)])
    keep = np.zeros((groups, width // groups, num_columns, column_size), dtype=np.float32)
    for own, columns in zip(keep, columns_GK, strict=True):
        own[:, columns] = 1.0
    scale = (2.0 / (num_kept * column_size)) ** 0.5
    weight = random.standard_normal((width, width, KERNEL, KERNEL)) * scale
    masked = weight.astype(np.float32) * keep.reshape(weight.shape)
    return Layer(weight=masked, columns=columns_GK, whole_channels=whole_channels)


class _Graph:
    """Nodes and weights of a network as they are added."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], **attributes: object) -> str:
        """Add a node of one output and return the output's name."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: npt.ArrayLike, dtype: type = np.int64) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def convolution(self, read: str, weight_OIHW: Floats, *, group: int = 1) -> str:
        """Add a convolution that keeps height and width."""
        weight = self.constant(weight_OIHW, np.float32)
        return self.add("Conv", [read, weight], pads=[weight_OIHW.shape[2] // 2] * 4, group=group)

    def unfolded(self, read: str, width: int) -> str:
        """Add what turns [N, I, H, W] into [N, T * I, H, W]: for each tap the shifted image."""
        edge = KERNEL // 2
        pads = self.constant([0, 0, edge, edge, 0, 0, edge, edge])
        padded = self.add("Pad", [read, pads])
        shifted = [
            self.add(
                "Slice",
                [
                    padded,
                    self.constant([row, column]),
                    self.constant([row + self.size, column + self.size]),
                    self.constant([2, 3]),
                ],
            )
            for row in range(KERNEL)
            for column in range(KERNEL)
        ]
        return self.add("Concat", shifted, axis=1)


def _dense(graph: _Graph, read: str, layer: Layer) -> str:
    return graph.convolution(read, layer.weight)


def _blocks(graph: _Graph, read: str, layer: Layer) -> str:
    parts = []
    for columns, block in zip(layer.columns, layer.blocks(), strict=True):
        gathered = graph.add("Gather", [read, graph.constant(columns)], axis=1)
        parts.append(graph.convolution(gathered, block.reshape(*block.shape[:2], KERNEL, KERNEL)))
    return graph.add("Concat", parts, axis=1)


def _grouped(graph: _Graph, read: str, layer: Layer) -> str:
    gathered = graph.add("Gather", [read, graph.constant(layer.columns.reshape(-1))], axis=1)
    weight = np.concatenate(layer.blocks())
    return graph.convolution(
        gathered, weight.reshape(*weight.shape[:2], KERNEL, KERNEL), group=len(layer.columns)
    )


def _unfolded_columns(layer: Layer) -> npt.NDArray[np.int64]:
    """Return the columns in the unfolded image, which has the channels of the first tap first."""
    channels, taps = np.divmod(layer.columns, KERNEL**2)
    return taps * layer.weight.shape[1] + channels


def _taps(graph: _Graph, read: str, layer: Layer) -> str:
    width = len(layer.weight)
    image = graph.unfolded(read, width)
    flat = graph.add("Reshape", [image, graph.constant([0, width * KERNEL**2, graph.size**2])])
    gathered = graph.add("Gather", [flat, graph.constant(_unfolded_columns(layer))], axis=1)
    weight = graph.constant(np.stack(layer.blocks())[..., 0], np.float32)
    product = graph.add("MatMul", [weight, gathered])
    return graph.add("Reshape", [product, graph.constant([-1, width, graph.size, graph.size])])


def _taps_conv(graph: _Graph, read: str, layer: Layer) -> str:
    image = graph.unfolded(read, len(layer.weight))
    columns = _unfolded_columns(layer).reshape(-1)
    gathered = graph.add("Gather", [image, graph.constant(columns)], axis=1)
    weight = np.concatenate(layer.blocks())[..., None]
    return graph.convolution(gathered, weight, group=len(layer.columns))


WRITERS: Mapping[str, Callable[[_Graph, str, Layer], str]] = {
    "dense": _dense, "blocks": _blocks, "grouped": _grouped, "taps": _taps, "taps_conv": _taps_conv,
}  # fmt: skip


def write_network(path: Path, form: str, layers: Sequence[Layer], *, size: int) -> Path:
    """Write the layers one after the other, each with ReLU, as ONNX."""
    graph = _Graph(size)
    read, width = "input", len(layers[0].weight)
    for layer in layers:
        read = graph.add("Relu", [WRITERS[form](graph, read, layer)])
    graph.nodes[-1].output[0] = "logits"
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width, size, size])
        for name in ("input", "logits")
    ]
    proto = helper.make_graph(graph.nodes, form, values[:1], values[1:], graph.weights)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(proto, opset_imports=opset, ir_version=10), path)
    return path
