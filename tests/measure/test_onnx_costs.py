"""MACs, bytes and widths of a file, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ticket_export.errors import MeasureError
from ticket_export.measure.onnx_costs import costs_from_onnx


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    shape: Sequence[int | str] = ("batch", 4, 6, 6),
) -> Path:
    """Write nodes from "input" to "logits"; shapes inside are for shape inference to find."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_convolutions_and_products_are_counted_at_the_batch_asked_for(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "a.weight"], ["x1"], name="node_a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x1"], ["x2"], name="node_relu"),
        helper.make_node("Conv", ["x2", "b.weight"], ["x3"], name="node_b", group=8),
        helper.make_node("GlobalAveragePool", ["x3"], ["x4"]),
        helper.make_node("Flatten", ["x4"], ["x5"]),
        helper.make_node("Gemm", ["x5", "c.weight"], ["logits"], name="node_c", transB=1),
    ]
    weights = {"a.weight": ones(8, 4, 3, 3), "b.weight": ones(8, 1, 3, 3), "c.weight": ones(600, 8)}
    costs = costs_from_onnx(write(tmp_path / "net.onnx", nodes, weights), batch=5)
    assert [(layer.name, layer.op, layer.macs) for layer in costs.layers] == [
        ("a", "Conv", 5 * 8 * 36 * 4 * 9),
        ("b", "Conv", 5 * 8 * 16 * 9),
        ("c", "Gemm", 5 * 600 * 8),
    ]
    assert [(layer.width_in, layer.width_out, layer.depthwise) for layer in costs.layers] == [
        (4, 8, False),
        (8, 8, True),
        (8, 600, False),
    ]
    assert costs.layers[0].num_bytes == 4 * (5 * 4 * 36 + 8 * 36 + 5 * 8 * 36)
    assert costs.macs == sum(layer.macs for layer in costs.layers)
    assert (costs.layer_by_node["node_a"], costs.layer_by_node["x1"]) == ("a", "a")
    assert (costs.fused_by_node["node_relu"], costs.fused_by_node["x2"]) == ("a", "a")


def test_a_quantised_weight_is_named_after_its_owner(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["a.weight_quantized", "scale"], ["w"]),
        helper.make_node("Conv", ["input", "w"], ["logits"], name="conv"),
    ]
    weights = {"a.weight_quantized": np.ones((8, 4, 1, 1), np.int8), "scale": np.float32(0.1).reshape(())}
    (layer,) = costs_from_onnx(write(tmp_path / "net.onnx", nodes, weights), batch=1).layers
    assert (layer.name, layer.macs) == ("a", 8 * 36 * 4)


def test_a_weight_used_twice_is_two_layers_and_anonymous_ones_bear_the_nodes_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["input", "a.weight"], ["x"], name="first"),
        helper.make_node("Conv", ["x", "a.weight"], ["y"], name="second"),
        helper.make_node("Transpose", ["y"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["y", "t"], ["logits"], name="scores"),
    ]
    costs = costs_from_onnx(write(tmp_path / "net.onnx", nodes, {"a.weight": ones(4, 4, 1, 1)}), batch=2)
    assert [layer.name for layer in costs.layers] == ["a", "a#2", "scores"]
    assert costs.layers[2].macs == 2 * 4 * 6 * 6 * 6


def test_layers_whose_shapes_are_unknown_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Strange", ["input"], ["x"], domain="elsewhere"),
        helper.make_node("Conv", ["x", "a.weight"], ["logits"], name="conv"),
    ]
    path = tmp_path / "net.onnx"
    write(path, nodes, {"a.weight": ones(4, 4, 1, 1)})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(model, path)
    costs = costs_from_onnx(path, batch=1)
    assert (costs.layers, costs.uncounted) == ((), ("a",))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"none\.onnx"):
        costs_from_onnx(tmp_path / "none.onnx", batch=1)
