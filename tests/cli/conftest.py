"""What the tests of the command line share: a way to run it, a tiny recipe, tiny models to time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ticket_export.cli import main

RECIPE = """
name: tiny
seed: 0
replicates: 1
data: {source: digits, holdout_fraction: 0.2}
model: {builder: "zoo:resnet20"}
train: {epochs: 2, batch: 64, lr: 0.1}
find: {method: refill, scope: coupled, levels: 1, drop_fraction: 0.5, rewind_epoch: 0}
shrink: {}
export: {targets: [onnx], precisions: [fp32]}
measure: {runtimes: [ort-cpu], batches: [1], scope: compute, threads: 1, rounds: 5, samples: 5}
"""

Told = tuple[int, str, str]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str | Path) -> Told:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        told = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, told.out, told.err

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def relu_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes relu(x), [N, features] -> [N, features], as NAME.onnx."""

    def write(name: str, *, features: int = 4) -> Path:
        node = helper.make_node("Relu", ["input"], ["logits"])
        values = [
            helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", features])
            for value in ("input", "logits")
        ]
        graph = helper.make_graph([node], "relu", values[:1], values[1:])
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        return path

    return write


@pytest.fixture
def models(relu_model: Callable[..., Path]) -> tuple[Path, Path]:
    return relu_model("dense"), relu_model("ticket")
