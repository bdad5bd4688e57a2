"""Real engines on a real GPU. Needs no torch, so that a box with TensorRT alone can run it:

python -m pytest --noconftest tests/gpu/test_tensorrt_on_gpu.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ticket_export.errors import DeviceError, MeasureError, MissingDependency, ParityError
from ticket_export.export.engine import engine_from_onnx
from ticket_export.measure.compare import compare
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.trt import TensorRtRunner
from ticket_export.runtime.trt_cuda import Cuda, DeviceMemory, Gpu
from ticket_export.runtime.trt_sidecar import read_facts
from ticket_export.runtime.trt_version import require_tensorrt

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1e-1}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Gpu:
    """The GPU that TensorRT runs on, or the end of every test of this file."""
    try:
        require_tensorrt()
        return Cuda().gpu()
    except MissingDependency as missing:
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail(f"REQUIRE_GPU=1, but {missing}")
        pytest.skip(str(missing))


def images(num_images: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(num_images)
    return {"input": generator.standard_normal((num_images, 3, 32, 32)).astype(dtype)}


def write_network(path: Path, precision: str = "fp32", *, width: int = 32, num_layers: int = 6) -> Path:
    """Write some 3x3 convolutions with ReLUs, a mean over the pixels and a classifier, opset 20."""
    generator = np.random.default_rng(0)
    kind = np.float16 if precision == "fp16" else np.float32
    weights: dict[str, np.ndarray] = {"axes": np.array([2, 3])}
    nodes, name, width_in = [], "input", 3
    if precision == "int8":
        weights |= {"zero": np.int8(0), "act_scale": np.float32(0.05), "weight_scale": np.float32(0.01)}

    def rounded(tensor: str, scale: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [tensor, scale, "zero"], [f"{tensor}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", scale, "zero"], [f"{tensor}_dq"]))
        return f"{tensor}_dq"

    for index in range(num_layers):
        spread = np.sqrt(2.0 / (9 * width_in))
        weights[f"w{index}"] = (spread * generator.standard_normal((width, width_in, 3, 3))).astype(kind)
        sources = [name, f"w{index}"]
        if precision == "int8":
            sources = [rounded(name, "act_scale"), rounded(f"w{index}", "weight_scale")]
        nodes.append(helper.make_node("Conv", sources, [f"c{index}"], pads=[1] * 4, name=f"conv{index}"))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        name, width_in = f"r{index}", width
    weights["head"] = generator.standard_normal((width, 10)).astype(kind)
    nodes.append(helper.make_node("ReduceMean", [name, "axes"], ["features"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["features", "head"], ["logits"], name="head"))
    element = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", element, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", element, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(array), word) for word, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_computes_what_its_file_computes(tmp_path: Path, gpu: Gpu, precision: str) -> None:
    file = write_network(tmp_path / "a.onnx", precision)
    engine = engine_from_onnx(file, tmp_path / "a.engine", batches=(1, 8), builds=2, tf32=False)
    facts = read_facts(engine)
    assert (facts.precision, facts.gpu) == (precision, gpu)
    assert 0.0 <= facts.parity["rel_error"] <= TOLERANCE[precision]
    assert facts.layers["0"]["count"] > 0
    assert sum(build["kept"] for build in facts.builds) == 1
    assert all(build["seconds"] > 0.0 for build in facts.builds)
    with TensorRtRunner(engine) as runner, OrtCpuRunner(file) as reference:
        for num_images in (1, 5, 8):
            x = images(num_images, np.float16 if precision == "fp16" else np.float32)
            expected = reference.infer(x)["logits"].astype(np.float64)
            difference = np.abs(runner.infer(x)["logits"] - expected).max()
            assert difference / np.abs(expected).max() <= TOLERANCE[precision]


def test_tf32_is_used_where_it_is_allowed_and_stays_within_its_bar(tmp_path: Path) -> None:
    engine = engine_from_onnx(write_network(tmp_path / "a.onnx"), tmp_path / "a.engine", builds=1)
    facts = read_facts(engine)
    assert facts.flags["tf32"] is True
    assert facts.parity["rel_error"] <= 1e-2


def test_an_impossible_bar_publishes_nothing(tmp_path: Path) -> None:
    file = write_network(tmp_path / "a.onnx", "fp16")
    with pytest.raises(ParityError, match="not written"):
        engine_from_onnx(file, tmp_path / "a.engine", builds=1, tolerance=1e-12)
    assert list(tmp_path.iterdir()) == [file]


def test_the_timing_cache_is_stored_and_loaded(tmp_path: Path) -> None:
    file, engine = write_network(tmp_path / "a.onnx"), tmp_path / "a.engine"
    engine_from_onnx(file, engine, builds=1)
    assert (tmp_path / "a.engine.timing_cache").stat().st_size > 0
    assert read_facts(engine).flags["timing_cache"] == "new"
    engine_from_onnx(file, engine, builds=1)
    assert read_facts(engine).flags["timing_cache"] == "loaded"


def test_the_graph_computes_the_same_and_is_no_slower_for_a_small_network(tmp_path: Path) -> None:
    engine = engine_from_onnx(write_network(tmp_path / "a.onnx"), tmp_path / "a.engine", builds=1)
    x, medians_s, logits = images(8), {}, {}
    for cuda_graph in (True, False):
        with TensorRtRunner(engine, cuda_graph=cuda_graph) as runner:
            samples_s = [runner.time_once(x, "compute") for _ in range(60)][10:]
            medians_s[cuda_graph] = float(np.median(samples_s))
            (execution,) = runner._session._executions.values()
            execution.load(x)
            execution.launch()
            execution._download()
            execution.stream.synchronize()
            logits[cuda_graph] = execution._host["logits"].array.copy()
            assert 0.0 < runner.time_once(x, "end_to_end") < 1.0
    np.testing.assert_array_equal(logits[True], logits[False])
    assert 1e-6 < medians_s[True] < 1.2 * medians_s[False] < 1.0


def test_more_images_take_longer_and_streams_overlap(tmp_path: Path) -> None:
    file = write_network(tmp_path / "a.onnx", width=64)
    engine = engine_from_onnx(file, tmp_path / "a.engine", batches=(1, 256), builds=1)
    with TensorRtRunner(engine) as runner:
        medians_s = {}
        for num_images in (1, 256):
            x = images(num_images)
            samples_s = [runner.time_once(x, "compute") for _ in range(40)][10:]
            medians_s[num_images] = float(np.median(samples_s))
        assert medians_s[256] > 2.0 * medians_s[1]
        one, two = (runner.throughput_once(images(1), streams=n, num_inferences=400) for n in (1, 2))
        assert two > 0.8 * one > 0.0


def test_layers_are_timed(tmp_path: Path) -> None:
    engine = engine_from_onnx(write_network(tmp_path / "a.onnx"), tmp_path / "a.engine", builds=1)
    with TensorRtRunner(engine, cuda_graph=False) as runner:
        x = images(8)
        whole_s = float(np.median([runner.time_once(x, "compute") for _ in range(30)][5:]))
        layers = runner.layer_times(x)
    assert any("conv" in layer.name for layer in layers)
    assert any(layer.op != "?" for layer in layers)
    assert 0.1 * whole_s < sum(layer.seconds for layer in layers) < 10.0 * whole_s


def test_an_engine_for_another_gpu_is_refused(tmp_path: Path) -> None:
    engine = engine_from_onnx(write_network(tmp_path / "a.onnx"), tmp_path / "a.engine", builds=1)
    sidecar = tmp_path / "a.engine.json"
    document = json.loads(sidecar.read_text(encoding="utf-8"))
    sidecar.write_text(json.dumps(document | {"gpu": document["gpu"] | {"sm": "sm10"}}), encoding="utf-8")
    with pytest.raises(MeasureError, match=r"the engine is not used: it was built for .* \(sm10\)"):
        TensorRtRunner(engine)


def test_a_file_is_built_once_and_compared_with_itself(tmp_path: Path) -> None:
    file = write_network(tmp_path / "a.onnx")
    with open_runner(file, "tensorrt", batches=(1, 8)) as runner:
        engine = runner.path  # type: ignore[attr-defined]
    built_at = engine.stat().st_mtime_ns
    found = compare({"a": file, "again": file}, runtime="tensorrt", batch=8, rounds=5, samples=20)
    assert engine.stat().st_mtime_ns == built_at
    assert 0.8 < found.speedup("again").ratio < 1.25


def test_too_large_a_request_is_told_as_memory_and_the_gpu_goes_on(tmp_path: Path) -> None:
    cuda = Cuda()
    with pytest.raises(DeviceError, match="out of memory"):
        DeviceMemory(cuda, 1 << 46)
    DeviceMemory(cuda, 1 << 20).free()
