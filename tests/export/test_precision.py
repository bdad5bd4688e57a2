from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ticket_export.errors import ExportError, ParityError
from ticket_export.export import precision
from ticket_export.export.half import HalfGraph, half_from_array
from ticket_export.export.onnx import onnx_from_module
from ticket_export.export.precision import fp16_from_onnx
from ticket_export.export.publish import metadata_of
from ticket_export.runtime.onnx_file import precision_from_onnx
from ticket_export.runtime.ort import OrtCpuRunner

# N images, C channels, H W pixels
X = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)


class Chain(nn.Module):
    """Three convolutions; `scale` multiplies what the second gives, and the third divides it again."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.third, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.second.parameters():
                parameter.mul_(scale)
            self.third.weight.div_(scale)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(torch.relu(self.third(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fp16")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return onnx_from_module(Chain(1.0), folder / "plain.onnx", torch.from_numpy(X), metadata={"recipe": "r"})


@pytest.fixture(scope="module")
def overflowing(folder: Path) -> Path:
    """The second layer gives values around 300,000; fp16 ends at 65,504."""
    return onnx_from_module(Chain(1e6), folder / "overflowing.onnx", torch.from_numpy(X))


@pytest.fixture(scope="module")
def vanishing(folder: Path) -> Path:
    """The second layer's weights are around 1e-9; the smallest number of fp16 is 6e-8."""
    return onnx_from_module(Chain(1e-8), folder / "vanishing.onnx", torch.from_numpy(X))


def run(path: Path, x_NCHW: np.ndarray) -> np.ndarray:
    with OrtCpuRunner(path) as runner:
        return np.asarray(runner.infer({"input": x_NCHW})["logits"])


def weight_types(path: Path) -> dict[str, int]:
    return {weight.name: weight.data_type for weight in onnx.load(path).graph.initializer}


def test_weights_are_fp16_and_the_signature_stays_as_it_was(plain: Path, tmp_path: Path) -> None:
    found = fp16_from_onnx(plain, tmp_path / "half.onnx", check_inputs={"input": X})
    types = {kind for kind in weight_types(found.path).values() if kind != TensorProto.INT64}
    assert types == {TensorProto.FLOAT16}
    with OrtCpuRunner(plain) as source, OrtCpuRunner(found.path) as half:
        assert half.input_specs == source.input_specs
        assert half.output_specs == source.output_specs
        assert half.precision == "fp16"
    assert found.fp32_layers == ()
    assert 1e-5 < found.precision_rel_error < 2e-3


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_stays_free(plain: Path, tmp_path: Path, batch: int) -> None:
    found = fp16_from_onnx(plain, tmp_path / "half.onnx")
    expected = run(plain, X[:batch])
    assert np.abs(run(found.path, X[:batch]) - expected).max() < 5e-3 * np.abs(expected).max()


def test_the_file_is_one_valid_and_tells_its_source_its_error_and_no_path(
    plain: Path, tmp_path: Path
) -> None:
    found = fp16_from_onnx(plain, tmp_path / "half.onnx", metadata={"key": "0a1b"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.onnx"]
    model = onnx.load(found.path)
    onnx.checker.check_model(model, full_check=True)
    texts = metadata_of(model)
    assert (texts["recipe"], texts["key"], texts["ticket_export.precision"]) == ("r", "0a1b", "fp16")
    assert float(texts["ticket_export.precision_rel_error"]) == pytest.approx(
        found.precision_rel_error, rel=1e-3
    )
    assert "ticket_export.parity_rel_error" not in texts  # that of the fp32 file is not this one's
    assert json.loads(texts["ticket_export.fp32_layers"]) == []
    assert str(plain.parent).encode() not in found.path.read_bytes()
    assert found.path.stat().st_size < 0.75 * plain.stat().st_size


def test_layers_that_overflow_and_those_between_them_stay_fp32_and_are_named(
    overflowing: Path, tmp_path: Path
) -> None:
    found = fp16_from_onnx(overflowing, tmp_path / "half.onnx", check_inputs={"input": X})
    assert [name for name in found.fp32_layers if "relu" not in name] == ["second", "third"]
    assert len(found.fp32_layers) == 3  # the rectifier between the two reads what they give
    assert found.precision_rel_error < 2e-2
    kinds = weight_types(found.path)
    assert kinds["second.weight"] == kinds["third.weight"] == TensorProto.FLOAT
    assert kinds["first.weight"] == kinds["last.weight"] == TensorProto.FLOAT16
    texts = metadata_of(onnx.load(found.path))
    assert tuple(json.loads(texts["ticket_export.fp32_layers"])) == found.fp32_layers
    assert precision_from_onnx(found.path) == "fp16"
    between = {node.op_type for node in onnx.load(found.path).graph.node}
    assert between == {"Cast", "Conv", "Relu", "ReduceMean", "Gemm"}


def test_no_cast_lies_between_neighbours_in_fp32(overflowing: Path, tmp_path: Path) -> None:
    found = fp16_from_onnx(overflowing, tmp_path / "half.onnx", check_inputs={"input": X})
    maker = {name: node for node in onnx.load(found.path).graph.node for name in node.output}
    (third,) = (n for n in maker.values() if "third.weight" in n.input)
    rectifier = maker[third.input[0]]
    assert rectifier.op_type == "Relu"
    assert "second.weight" in maker[rectifier.input[0]].input


def test_weights_too_small_for_fp16_stay_fp32(vanishing: Path, tmp_path: Path) -> None:
    found = fp16_from_onnx(vanishing, tmp_path / "half.onnx", check_inputs={"input": X})
    assert "second" in found.fp32_layers
    assert "first" not in found.fp32_layers
    assert weight_types(found.path)["second.weight"] == TensorProto.FLOAT
    assert found.precision_rel_error < 2e-2


def test_the_gate_sees_an_overflow_that_onnx_runtime_on_the_cpu_does_not(overflowing: Path) -> None:
    graph = HalfGraph(onnx.load(overflowing), overflowing)
    onnx.save(graph.rounded(), overflowing.with_name("rounded.onnx"))
    onnx.save(graph.converted(), overflowing.with_name("converted.onnx"))
    assert not np.isfinite(run(overflowing.with_name("rounded.onnx"), X)).all()
    assert np.isfinite(run(overflowing.with_name("converted.onnx"), X)).all()


def test_a_network_that_fp16_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            nn.init.constant_(self.linear.weight, 1e6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    source = onnx_from_module(One(), tmp_path / "one.onnx", torch.ones(1, 4))
    half = tmp_path / "half.onnx"
    half.write_bytes(b"the file before")
    with pytest.raises(ParityError, match=rf"{half}: in fp16 .* above 0\.02 unless every layer stays fp32"):
        fp16_from_onnx(source, half)
    assert half.read_bytes() == b"the file before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["half.onnx", "one.onnx"]


def test_a_tighter_tolerance_keeps_more_layers(plain: Path, tmp_path: Path) -> None:
    loose = fp16_from_onnx(plain, tmp_path / "a.onnx", check_inputs={"input": X})
    tolerance = loose.precision_rel_error / 2
    tight = fp16_from_onnx(plain, tmp_path / "b.onnx", check_inputs={"input": X}, tolerance=tolerance)
    assert len(loose.fp32_layers) < len(tight.fp32_layers)
    assert tight.precision_rel_error <= tolerance


def test_no_kept_layer_can_be_left_out(
    overflowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fp16_from_onnx(overflowing, tmp_path / "half.onnx", check_inputs={"input": X})
    graph = HalfGraph(onnx.load(overflowing), overflowing)
    kept = [
        node.name
        for node in graph.model.graph.node
        if precision.layer_name(node, graph.weights) in found.fp32_layers
    ]
    for name in kept:
        onnx.save(graph.rounded([other for other in kept if other != name]), tmp_path / "less.onnx")
        difference = run(tmp_path / "less.onnx", X) - run(overflowing, X)
        assert not np.abs(difference).max() <= 2e-2 * np.abs(run(overflowing, X)).max()


def test_the_error_against_torch_is_apart_from_the_error_against_fp32(tmp_path: Path) -> None:
    path = onnx_from_module(Chain(1.0), tmp_path / "half.onnx", torch.from_numpy(X), precision="fp16")
    texts = metadata_of(onnx.load(path))
    parity = float(texts["ticket_export.parity_rel_error"])
    assert 1e-5 < parity < 2e-3
    assert 1e-5 < float(texts["ticket_export.precision_rel_error"]) < 2e-3
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.onnx"]
    net = Chain(1.0).eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(X)).numpy()
    assert np.abs(run(path, X) - expected).max() < 2e-3 * np.abs(expected).max()


def test_other_precisions_and_files_that_are_not_onnx_are_refused(plain: Path, tmp_path: Path) -> None:
    half = fp16_from_onnx(plain, tmp_path / "half.onnx").path
    with pytest.raises(ExportError, match=r"half\.onnx: its precision is fp16, but conversion starts"):
        fp16_from_onnx(half, tmp_path / "again.onnx")
    with pytest.raises(ExportError, match=r"absent\.onnx: no such file"):
        fp16_from_onnx(tmp_path / "absent.onnx", tmp_path / "again.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.onnx"]


def test_values_keep_being_finite_and_other_than_zero() -> None:
    values = np.array([0.0, 1e-12, -1e-12, 1.0, 3e38, -3e38, np.inf], np.float32)
    half = half_from_array(values)
    assert half.dtype == np.float16
    assert half[0] == 0.0
    assert half[1] == -half[2] == pytest.approx(6e-8, rel=0.02)
    assert (half[3], half[4], half[5], half[6]) == (1.0, 65504.0, -65504.0, np.inf)


def graph_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[object],
    shape_out: list[object] | None = None,
) -> HalfGraph:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out or shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return HalfGraph(model, Path("g.onnx"))


def test_the_scales_of_a_resize_stay_fp32_and_its_images_do_not() -> None:
    scales = np.array([1.0, 1.0, 2.0, 2.0], np.float32)
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    model = graph_of([resize], {"scales": scales}, ["n", 1, 4, 4], ["n", 1, 8, 8]).converted()
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Resize", "Cast"]
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT


def test_a_weight_read_in_both_types_is_there_in_both() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["y"], name="kept"),
    ]
    graph = graph_of(nodes, {"w": np.ones(3, np.float32)}, ["n", 3])
    model = graph.converted(["kept"])
    onnx.checker.check_model(model, full_check=True)
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    assert types == {"w": TensorProto.FLOAT, "w/fp16": TensorProto.FLOAT16}


def test_a_constant_node_becomes_a_weight_and_a_cast_to_float_one_to_fp16() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=2.0),
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "c"], ["y"]),
    ]
    model = graph_of(nodes, {}, ["n", 3]).converted()
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node if node.op_type != "Cast"] == ["Mul"]
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT16


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ExportError, match=r"g\.onnx: If holds a graph of its own"):
        graph_of([node], {"condition": np.array(True)}, ["n", 3])


def test_attention_as_torch_writes_it_opens_in_onnx_runtime(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.attention(x, x, x, need_weights=False)[0].mean(1)

    # in fp16, a transpose of the batch right before a product ends ONNX Runtime 1.31's process
    path = onnx_from_module(Attention(), tmp_path / "a.onnx", torch.randn(2, 5, 8), precision="fp16")
    assert precision_from_onnx(path) == "fp16"
