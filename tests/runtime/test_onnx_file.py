"""Files that are not what they are taken for: one clear error each, before a runtime opens them."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ticket_export.errors import DeviceError, MeasureError
from ticket_export.runtime.failures import error_from_failure
from ticket_export.runtime.onnx_file import load_graph, precision_from_onnx
from ticket_export.runtime.registry import open_runner

MakeLinear = Callable[..., Path]


def refusal(path: Path) -> str:
    """What the runtime says to the file, in less than a second."""
    start = time.perf_counter()
    with pytest.raises(MeasureError) as caught:
        open_runner(path, "ort-cpu")
    assert time.perf_counter() - start < 1.0
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_cut_of_a_file_is_refused_by_name(linear_onnx: MakeLinear) -> None:
    path = linear_onnx()
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith(f"{path}: ")


def test_foreign_files_are_told_by_their_kind(tmp_path: Path) -> None:
    checkpoint = tmp_path / "net.onnx"
    with zipfile.ZipFile(checkpoint, "w") as file:
        file.writestr("data.pkl", b"x")
    assert "net.onnx: not an ONNX file but a zip archive, like a torch checkpoint" in refusal(checkpoint)
    for name, content in (("net.engine", b"anything"), ("net.plan", b"\x00"), ("net.onnx", b"ftrt\x00\x01")):
        (tmp_path / name).write_bytes(content)
        told = refusal(tmp_path / name)
        assert f"{name}: not an ONNX file but a TensorRT engine" in told
        assert "the runtime 'tensorrt' runs engines" in told
    text = tmp_path / "readme.onnx"
    text.write_text("# A network\n\nIt is elsewhere.\n" * 1000, encoding="utf-8")
    assert "readme.onnx: not an ONNX file" in refusal(text)
    assert "a folder" in refusal(tmp_path)


def test_a_file_above_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.write(b"\x08\x0a")
        file.truncate(3 * 2**30)  # sparse: takes no disk
    assert "huge.onnx: 3.0 GiB, but an ONNX file holds at most 2 GiB" in refusal(path)


def test_weights_in_a_file_of_their_own_must_lie_there_whole(linear_onnx: MakeLinear) -> None:
    path = linear_onnx()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = path.with_name("weights.bin")
    x = np.ones((1, 1, 2, 2), np.float32)
    with open_runner(path, "ort-cpu") as runner:
        assert runner.infer({"input": x})["logits"].shape == (1, 3)
    assert precision_from_onnx(path) == "fp32"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    told = refusal(path)
    assert f"'weights.bin' up to byte {len(whole)}, but it ends at {len(whole) - 8}" in told
    weights.unlink()
    assert "the values of 'weight' lie in 'weights.bin', which is missing" in refusal(path)


def test_a_whole_file_gives_its_graph(linear_onnx: MakeLinear) -> None:
    assert [node.op_type for node in load_graph(linear_onnx()).graph.node] == ["Flatten", "MatMul"]


def test_memory_that_runs_out_is_told_with_the_batch(tmp_path: Path) -> None:
    # [N, 1] outer [1, width]: a small input whose product is larger than any address space
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "row"], ["logits"])],
        "outer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1 << 23])],
        [
            helper.make_tensor(
                "row", TensorProto.FLOAT, [1, 1 << 23], np.zeros(1 << 23, np.float32).tobytes(), True
            )
        ],
    )
    path = tmp_path / "outer.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    x = np.zeros((1 << 23, 1), np.float32)  # product: 2**48 bytes
    with open_runner(path, "ort-cpu") as runner:
        for call in (runner.infer, lambda inputs: runner.time_once(inputs, "end_to_end")):
            with pytest.raises(
                DeviceError, match=r"outer\.onnx: ONNX Runtime: out of memory at batch 8388608"
            ):
                call({"input": x})


def test_numpys_own_refusal_of_memory_is_one_of_the_device() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty((1 << 50,), np.float64)
    told = error_from_failure("net", caught.value, {"input": np.zeros((3, 1), np.float32)})
    assert type(told) is DeviceError
    assert told.message.startswith("net: out of memory at batch 3: Unable to allocate")
