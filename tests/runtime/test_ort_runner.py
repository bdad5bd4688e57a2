from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.runtime.onnx_file import precision_from_onnx
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import TensorSpec

MakeLinear = Callable[..., Path]
WEIGHT_FO = np.arange(12, dtype=np.float32).reshape(4, 3) / 7.0


def images(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_images, 1, 2, 2)).astype(np.float32)


@pytest.mark.parametrize("num_images", [1, 3, 7])
def test_infer_computes_what_the_file_says_at_any_batch(linear_onnx: MakeLinear, num_images: int) -> None:
    x = images(num_images)
    with open_runner(linear_onnx(), "ort-cpu") as runner:
        logits = runner.infer({"input": x})["logits"]
    np.testing.assert_allclose(logits, x.reshape(num_images, 4) @ WEIGHT_FO, rtol=1e-6)


def test_specs_and_facts_are_read_from_the_file(linear_onnx: MakeLinear) -> None:
    with open_runner(linear_onnx(), "ort-cpu", threads=2) as runner:
        assert runner.input_specs == {
            "input": TensorSpec(name="input", dtype="float32", shape=(None, 1, 2, 2))
        }
        assert runner.output_specs == {"logits": TensorSpec(name="logits", dtype="float32", shape=(None, 3))}
        assert (runner.name, runner.device, runner.precision, runner.threads) == ("ort-cpu", "cpu", "fp32", 2)


@pytest.mark.parametrize("scope", ["compute", "end_to_end"])
def test_the_clock_lies_within_the_callers_own(linear_onnx: MakeLinear, scope: str) -> None:
    with open_runner(linear_onnx(), "ort-cpu") as runner:
        runner.time_once({"input": images(2)}, scope)
        start = time.perf_counter()
        seconds = runner.time_once({"input": images(2)}, scope)
        assert 0.0 < seconds < time.perf_counter() - start


def test_timed_runs_compute_on_the_inputs_given_each_time(linear_onnx: MakeLinear) -> None:
    with OrtCpuRunner(linear_onnx()) as runner:
        for seed in range(3):
            x = images(2, seed)
            runner.time_once({"input": x}, "compute")
            (binding,) = runner._bound.values()
            np.testing.assert_allclose(binding._outputs["logits"], x.reshape(2, 4) @ WEIGHT_FO, rtol=1e-5)


def test_each_batch_has_its_own_buffers(linear_onnx: MakeLinear) -> None:
    with OrtCpuRunner(linear_onnx()) as runner:
        runner.time_once({"input": images(2)}, "compute")
        runner.time_once({"input": images(5)}, "compute")
        shapes = sorted(binding._outputs["logits"].shape for binding in runner._bound.values())
        assert shapes == [(2, 3), (5, 3)]


def test_sessions_that_wait_do_not_spin(linear_onnx: MakeLinear) -> None:
    with OrtCpuRunner(linear_onnx(), threads=2) as runner:
        options = runner._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
        runner.time_once({"input": images(2)}, "compute")
        before = os.times()
        time.sleep(0.3)
        after = os.times()
    assert (after.user + after.system) - (before.user + before.system) < 0.1


def test_renew_opens_a_new_session_with_new_buffers_that_computes_the_same(linear_onnx: MakeLinear) -> None:
    x = images(2)
    with OrtCpuRunner(linear_onnx()) as runner:
        first = runner.infer({"input": x})["logits"]
        runner.time_once({"input": x}, "compute")
        session = runner._session
        runner.renew()
        assert runner._session is not session
        assert runner._bound == {}
        np.testing.assert_array_equal(runner.infer({"input": x})["logits"], first)


def test_renew_refuses_a_file_that_changed_meanwhile(linear_onnx: MakeLinear) -> None:
    path = linear_onnx()
    with OrtCpuRunner(path) as runner:
        linear_onnx(weight_FO=np.ones((4, 5), dtype=np.float32))
        with pytest.raises(MeasureError, match=r"linear\.onnx: has changed"):
            runner.renew()
        path.unlink()
        with pytest.raises(MeasureError, match=r"linear\.onnx: has changed"):
            runner.renew()


@pytest.mark.parametrize(
    ("dtype", "precision"), [(np.float32, "fp32"), (np.float16, "fp16"), (np.float64, "fp64")]
)
def test_precision_is_the_type_of_the_weights(linear_onnx: MakeLinear, dtype: type, precision: str) -> None:
    assert precision_from_onnx(linear_onnx(dtype=dtype)) == precision


def test_a_file_with_quantising_operators_is_int8(quantised_onnx: Path) -> None:
    assert precision_from_onnx(quantised_onnx) == "int8"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"input": np.zeros((2, 1, 2, 2))}, r"float64 \[2, 1, 2, 2\], but .* float32 \[N, 1, 2, 2\]"),
        ({"input": np.zeros((2, 1, 3, 2), np.float32)}, r"float32 \[2, 1, 3, 2\]"),
        ({"input": np.zeros((1, 2, 2), np.float32)}, r"float32 \[1, 2, 2\]"),
        ({"x": np.zeros((2, 1, 2, 2), np.float32)}, r"inputs are \['x'\], but the network takes \['input'\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_their_value(
    linear_onnx: MakeLinear, inputs: dict[str, np.ndarray], words: str
) -> None:
    with open_runner(linear_onnx(), "ort-cpu") as runner:
        for call in (runner.infer, lambda x: runner.time_once(x, "compute")):
            with pytest.raises(MeasureError, match=words):
                call(inputs)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"nowhere\.onnx: no such file"):
        open_runner(tmp_path / "nowhere.onnx", "ort-cpu")
    for content in (b"", b"not a protobuf at all", b"PK\x03\x04"):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(MeasureError, match=r"bad\.onnx: not an ONNX file"):
            open_runner(tmp_path / "bad.onnx", "ort-cpu")


def test_a_truncated_file_is_refused_by_name(linear_onnx: MakeLinear) -> None:
    path = linear_onnx()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MeasureError, match=r"linear\.onnx"):
        open_runner(path, "ort-cpu")


def test_unknown_runtime_scope_threads_and_device_are_refused(linear_onnx: MakeLinear) -> None:
    path = linear_onnx()
    with pytest.raises(MeasureError, match="'npu' is not one of ort-cpu, ort-cuda, "):
        open_runner(path, "npu")
    with pytest.raises(MeasureError, match="threads is 0"):
        open_runner(path, "ort-cpu", threads=0)
    with pytest.raises(MeasureError, match="device 'cuda:0'"):
        open_runner(path, "ort-cpu", device="cuda:0")
    with (
        open_runner(path, "ort-cpu") as runner,
        pytest.raises(MeasureError, match="scope 'gpu' is not one of compute, end_to_end"),
    ):
        runner.time_once({"input": images(1)}, "gpu")


def test_a_missing_runtime_names_the_install_command(
    linear_onnx: MakeLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = linear_onnx()
    for package in ("onnxruntime", "onnx"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingDependency, match=f"pip install {package}"):
                open_runner(path, "ort-cpu")
