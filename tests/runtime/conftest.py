"""Hand-made ONNX files: no exporter between the test and the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

WEIGHT_FO = np.arange(12, dtype=np.float32).reshape(4, 3) / 7.0  # F features in, O out


def write_linear(
    path: Path, *, dtype: type = np.float32, batch: int | str = "batch", weight_FO: np.ndarray = WEIGHT_FO
) -> Path:
    """Write logits = flatten(input) @ weight for images [N, 1, 2, 2]."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("input", kind, [batch, 1, 2, 2])],
        [helper.make_tensor_value_info("logits", kind, [batch, weight_FO.shape[1]])],
        [numpy_helper.from_array(weight_FO.astype(dtype), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def write_quantised(path: Path) -> Path:
    """Write a network that rounds its input to eighths through a Q/DQ pair."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
        ],
        "quantised",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [
            numpy_helper.from_array(np.float32(0.125), "scale"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def linear_onnx(tmp_path: Path) -> Callable[..., Path]:
    return lambda name="linear.onnx", **kwargs: write_linear(tmp_path / name, **kwargs)


@pytest.fixture
def quantised_onnx(tmp_path: Path) -> Path:
    return write_quantised(tmp_path / "quantised.onnx")
