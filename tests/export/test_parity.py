from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ticket_export.errors import ExportError, MeasureError, ParityError
from ticket_export.export.parity import check_parity
from ticket_export.runtime.agreement import relative_error

WEIGHT_FO = np.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.25]], dtype=np.float32)
X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def write(path: Path, *, flattened_rows: int = -1, output: str = "logits") -> Path:
    """Write x @ weight, passed through a reshape to [rows, 2]."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "weight"], ["y"]),
            helper.make_node("Reshape", ["y", "shape"], [output]),
        ],
        "linear",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(WEIGHT_FO, "weight"),
            numpy_helper.from_array(np.array([flattened_rows, 2]), "shape"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_an_equal_file_passes_with_its_relative_error(tmp_path: Path) -> None:
    error = check_parity(write(tmp_path / "a.onnx"), {"input": X}, {"logits": X @ WEIGHT_FO})
    assert 0.0 <= error < 1e-6


def test_the_error_is_the_largest_difference_over_the_largest_value(tmp_path: Path) -> None:
    expected = X @ WEIGHT_FO
    expected[5, 1] += 0.01
    error = check_parity(write(tmp_path / "a.onnx"), {"input": X}, {"logits": expected}, tolerance=0.1)
    assert error == pytest.approx(0.01 / np.abs(expected).max(), rel=1e-3)


def test_above_the_tolerance_the_file_and_the_error_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"a\.onnx: relative error 1\.00e-02 .* above 0\.0001"):
        check_parity(write(tmp_path / "a.onnx"), {"input": X}, {"logits": 1.0101 * (X @ WEIGHT_FO)})


def test_one_differing_image_is_enough(tmp_path: Path) -> None:
    for row in range(6):
        expected = X @ WEIGHT_FO
        expected[row] *= 1.01
        with pytest.raises(ParityError, match="relative error"):
            check_parity(write(tmp_path / "a.onnx"), {"input": X}, {"logits": expected}, tolerance=1e-5)


def test_a_batch_that_tracing_has_fixed_is_found(tmp_path: Path) -> None:
    fixed = write(tmp_path / "fixed.onnx", flattened_rows=6)
    with pytest.raises(MeasureError, match=r"fixed\.onnx: ONNX Runtime: failed"):
        check_parity(fixed, {"input": X}, {"logits": X @ WEIGHT_FO})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_check_that_cannot_be_computed_has_failed(tmp_path: Path, value: float) -> None:
    expected = X @ WEIGHT_FO
    expected[0, 0] = value
    with pytest.raises(ParityError, match="relative error nan"):
        check_parity(write(tmp_path / "a.onnx"), {"input": X}, {"logits": expected})


def test_other_outputs_shapes_and_too_few_images_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    expected = X @ WEIGHT_FO
    with pytest.raises(ParityError, match=r"outputs are \['logits'\], the source's are \['boxes'\]"):
        check_parity(path, {"input": X}, {"boxes": expected})
    with pytest.raises(ParityError, match=r"'logits' is \[1, 2\] at batch 1, the source's is \[1, 1\]"):
        check_parity(path, {"input": X}, {"logits": expected[:, :1]})
    with pytest.raises(ExportError, match="at least 4 images, got 3"):
        check_parity(path, {"input": X[:3]}, {"logits": expected[:3]})
    with pytest.raises(ExportError, match="'input': 6, 'logits': 5"):
        check_parity(path, {"input": X}, {"logits": expected[:5]})


def test_relative_error_of_zeros() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    assert relative_error(zeros, zeros) == 0.0
    assert relative_error(ones, zeros) == float("inf")
    assert relative_error(zeros, ones) == 1.0
