"""The TensorRT runner on a scripted GPU: what it computes, times, copies, frees and refuses."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripted_tensorrt import VERSIONS, Script, install

from ticket_export.errors import DeviceError, MeasureError, ParityError
from ticket_export.measure.compare import compare
from ticket_export.runtime import trt_build
from ticket_export.runtime.layers import LayerTime, profile_layers
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import TensorSpec
from ticket_export.runtime.trt import TensorRtRunner, open_tensorrt
from ticket_export.runtime.trt_build import BuildSettings, build_engine

MakeLinear = Callable[..., Path]
NEW = VERSIONS[-1]
WEIGHT_FO = np.arange(12, dtype=np.float32).reshape(4, 3) / 7.0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(trt_build, "NUM_ROUNDS", 2)  # which build is the fastest is another file's question
    return install(monkeypatch, NEW)


@pytest.fixture
def engine(script: Script, linear_onnx: MakeLinear, tmp_path: Path) -> Path:
    """A `linear.onnx` and the engine of it, for batches up to 8."""
    build_engine(linear_onnx(), tmp_path / "a.engine", BuildSettings(builds=1))
    script.cuda.calls.clear()
    script.deserialized = 0
    return tmp_path / "a.engine"


def images(num_images: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"input": generator.standard_normal((num_images, 1, 2, 2)).astype(np.float32)}


@pytest.mark.parametrize("version", VERSIONS)
def test_infer_computes_what_the_file_says_at_any_covered_batch(
    linear_onnx: MakeLinear, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    script = install(monkeypatch, version)
    with open_runner(linear_onnx(), "tensorrt") as runner:
        for num_images in (1, 3, 8):
            x = images(num_images, seed=num_images)
            expected = x["input"].reshape(num_images, 4) @ WEIGHT_FO
            np.testing.assert_allclose(runner.infer(x)["logits"], expected, rtol=1e-6)
    assert script.cuda.live == {}


def test_specs_and_settings_are_read_from_the_engine(engine: Path) -> None:
    with TensorRtRunner(engine, threads=2, device="cuda") as runner:
        assert runner.input_specs == {
            "input": TensorSpec(name="input", dtype="float32", shape=(None, 1, 2, 2))
        }
        assert runner.output_specs == {"logits": TensorSpec(name="logits", dtype="float32", shape=(None, 3))}
        assert (runner.name, runner.device, runner.precision, runner.threads) == (
            "tensorrt",
            "cuda:0",
            "fp32",
            2,
        )
        assert runner.settings == {
            "tensorrt": NEW,
            "cuda_graph": "on",
            "tf32": "on",
            "builder_optimization_level": "3",
            "builds": "1",
        }


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_compute_is_timed_by_the_devices_events_around_one_inference(
    engine: Path, script: Script, cuda_graph: bool
) -> None:
    script.latency_s = lambda build, batch: 0.001 * batch
    with TensorRtRunner(engine, cuda_graph=cuda_graph) as runner:
        assert runner.settings["cuda_graph"] == ("on" if cuda_graph else "off")
        assert runner.time_once(images(2), "compute") == pytest.approx(0.002, rel=1e-3)
        assert runner.time_once(images(8), "compute") == pytest.approx(0.008, rel=1e-3)
    assert script.cuda.calls.count("cudaGraphLaunch") == (4 if cuda_graph else 0)  # one before each timed one


def test_an_inference_is_queued_before_the_clock_starts(engine: Path, script: Script) -> None:
    with TensorRtRunner(engine) as runner:
        runner.time_once(images(2), "compute")
        x = images(2)
        script.cuda.calls.clear()
        runner.time_once(x, "compute")
    order = [name for name in script.cuda.calls if name in ("cudaGraphLaunch", "cudaEventRecord")]
    assert order == ["cudaGraphLaunch", "cudaEventRecord", "cudaGraphLaunch", "cudaEventRecord"]


def test_arrays_are_copied_to_the_device_when_they_are_other_ones(engine: Path, script: Script) -> None:
    with TensorRtRunner(engine) as runner:
        x = images(2)
        for expected, inputs in [(1, x), (0, x), (0, dict(x)), (1, images(2, seed=1)), (1, x)]:
            script.cuda.calls.clear()
            runner.time_once(inputs, "compute")
            assert script.cuda.calls.count("cudaMemcpyAsync") == expected
        (execution,) = runner._session._executions.values()
        on_device = execution._device["logits"]
        told = script.cuda.array(on_device.address, (2, 3), "float32")
        np.testing.assert_allclose(told, x["input"].reshape(2, 4) @ WEIGHT_FO, rtol=1e-6)


def test_end_to_end_copies_both_ways_each_time_within_the_callers_clock(engine: Path, script: Script) -> None:
    with TensorRtRunner(engine) as runner:
        x = images(2)
        runner.time_once(x, "end_to_end")
        script.cuda.calls.clear()
        start = time.perf_counter()
        seconds = runner.time_once(x, "end_to_end")
        assert 0.0 < seconds < time.perf_counter() - start
        assert script.cuda.calls.count("cudaMemcpyAsync") == 2
        assert script.cuda.calls.count("cudaGraphLaunch") == 1


def test_several_streams_have_their_own_buffers_and_take_turns(engine: Path, script: Script) -> None:
    with TensorRtRunner(engine) as runner:
        per_s = runner.throughput_once(images(4), streams=3, num_inferences=7)
        assert 0.0 < per_s < 1e7
        assert sum(kind == "stream" for kind in script.cuda.live.values()) == 3
        assert script.cuda.calls.count("cudaGraphLaunch") == 3 + 7
        with pytest.raises(MeasureError, match="2 inferences on 3 streams"):
            runner.throughput_once(images(4), streams=3, num_inferences=2)
        with pytest.raises(MeasureError, match="64 inferences on 17 streams"):
            runner.throughput_once(images(4), streams=17)


def test_layers_are_timed_by_name_with_their_kind(engine: Path, script: Script) -> None:
    with TensorRtRunner(engine) as runner:
        assert runner.layer_times(images(2), num_inferences=5) == [
            LayerTime(name="Flatten", op="Flatten", seconds=0.00025),
            LayerTime(name="MatMul", op="MatMul", seconds=0.00025),
        ]
        assert "cudaGraphLaunch" not in script.cuda.calls
        assert runner.time_once(images(2), "compute") > 0.0  # with a graph again
        assert "cudaGraphLaunch" in script.cuda.calls


def test_two_files_are_profiled_in_turns(script: Script, linear_onnx: MakeLinear) -> None:
    sources = {"dense": linear_onnx("dense.onnx"), "ticket": linear_onnx("ticket.onnx")}
    profiles = profile_layers(sources, "tensorrt", list(images(4).values()), device="cuda:0")
    assert list(profiles) == ["dense", "ticket"]
    for profile in profiles.values():
        assert [layer.seconds for layer in profile.layers] == pytest.approx([2.5e-4, 2.5e-4])
        assert profile.num_runs >= 8
    assert script.cuda.live == {}


def test_renew_loads_the_engine_anew_and_frees_the_old(engine: Path, script: Script) -> None:
    with TensorRtRunner(engine) as runner:
        x = images(2)
        before = runner.infer(x)["logits"]
        session, live = runner._session, len(script.cuda.live)
        runner.renew()
        assert runner._session is not session
        assert script.deserialized == 2
        np.testing.assert_array_equal(runner.infer(x)["logits"], before)
        assert len(script.cuda.live) == live
    assert script.cuda.live == {}


def test_inputs_that_do_not_fit_are_refused(engine: Path) -> None:
    with TensorRtRunner(engine) as runner:
        with pytest.raises(MeasureError, match=r"no optimisation profile covers input \[9, 1, 2, 2\]"):
            runner.infer(images(9))
        with pytest.raises(MeasureError, match=r"takes float32 \[N, 1, 2, 2\]"):
            runner.infer({"input": np.zeros((2, 1, 2, 3), np.float32)})
        with pytest.raises(MeasureError, match="scope 'kernel'"):
            runner.time_once(images(2), "kernel")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e, s: setattr(s.cuda, "sm", (8, 0)), r"built for Scripted GPU \(sm90\), here is .*sm80"),
        (lambda e, s: setattr(s.cuda, "name", "Other GPU"), "here is Other GPU"),
        (lambda e, s: e.write_bytes(e.read_bytes()[:-1] + b"x"), "its bytes are not the ones"),
        (lambda e, s: e.write_bytes(b""), "its bytes are not the ones"),
        (lambda e, s: e.with_name("a.engine.json").unlink(), r"a\.engine\.json is missing"),
        (lambda e, s: e.with_name("a.engine.json").write_text("{"), r"a\.engine\.json is damaged"),
        (lambda e, s: e.with_name("a.engine.json").write_text("[]"), r"a\.engine\.json is damaged"),
        (lambda e, s: e.with_name("a.engine.json").write_text('{"schema": 2}'), "another schema than 1"),
        (lambda e, s: e.with_name("linear.onnx").write_bytes(b"new"), r"linear\.onnx has changed"),
        (lambda e, s: e.unlink(), "no such file"),
    ],
)
def test_a_stale_or_foreign_engine_is_refused_before_it_is_loaded(
    engine: Path, script: Script, change: Callable[[Path, Script], None], words: str
) -> None:
    change(engine, script)
    with pytest.raises(MeasureError, match=words) as caught:
        TensorRtRunner(engine)
    assert "te.engine_from_onnx(" in str(caught.value.hint)
    assert script.deserialized == 0


def test_an_engine_of_another_version_is_refused_with_the_batches_to_build(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = install(monkeypatch, VERSIONS[1])
    with pytest.raises(MeasureError, match=r"built by TensorRT 11\.4\.0\.106, here is 10\.12") as caught:
        TensorRtRunner(engine)
    assert (
        caught.value.hint == "build it here: te.engine_from_onnx('linear.onnx', 'a.engine', batches=(1, 8))"
    )
    assert script.deserialized == 0


def test_a_gpu_without_memory_is_told_with_exit_code_3_and_frees_what_it_held(
    engine: Path, script: Script
) -> None:
    with TensorRtRunner(engine) as runner:
        runner.infer(images(1))
        held = dict(script.cuda.live)
        script.cuda.memory_limit = 150  # bytes
        with pytest.raises(
            DeviceError, match=r"cudaMalloc: cudaErrorMemoryAllocation \(out of memory\)"
        ) as caught:
            runner.infer(images(8))
        assert caught.value.exit_code == 3
        assert "a smaller batch" in str(caught.value.hint)
        assert script.cuda.live == held  # the smaller batch still runs
        assert runner.infer(images(1))["logits"].shape == (1, 3)


def test_a_lost_gpu_is_told_with_exit_code_3_and_closing_does_not_hide_it(
    engine: Path, script: Script
) -> None:
    runner = TensorRtRunner(engine)
    runner.time_once(images(2), "compute")
    script.cuda.fail = dict.fromkeys(
        ("cudaGraphLaunch", "cudaFree", "cudaFreeHost", "cudaEventDestroy", "cudaStreamDestroy"), 700
    )
    with pytest.raises(DeviceError, match="cudaGraphLaunch: cudaErrorIllegalAddress") as caught, runner:
        runner.time_once(images(2), "compute")
    assert caught.value.exit_code == 3


def test_an_onnx_file_is_built_once_and_again_only_when_something_changed(
    script: Script, linear_onnx: MakeLinear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = linear_onnx()
    engine = tmp_path / f"linear.fp32.sm90.trt{NEW}.engine"

    def builds(*batches: int) -> int:
        before = len(script.builder_flags)
        with open_runner(file, "tensorrt", batches=batches) as runner:
            runner.infer(images(batches[-1]))
        return len(script.builder_flags) - before

    assert builds(1, 8) == 3
    assert engine.is_file()
    assert builds(8) == 0
    assert builds(4) == 3  # tuned for 4 too, and still for the others
    assert json.loads(engine.with_name(f"{engine.name}.json").read_text())["batches"] == [1, 4, 8]
    assert builds(1, 4, 8) == 0
    engine.write_bytes(b"half")
    assert builds(1) == 3
    linear_onnx(weight_FO=WEIGHT_FO * 2)
    assert builds(1) == 3
    script.cuda.sm = (8, 9)
    assert builds(1) == 3
    assert len(list(tmp_path.glob("linear.fp32.*.engine"))) == 2


def test_builds_of_several_processes_take_turns(
    script: Script, linear_onnx: MakeLinear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told: list[str] = []
    with (tmp_path / f"ticket-export-engine-{os.getuid()}.lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def progress(line: str) -> None:
            told.append(line)
            if "another process" in line:
                assert not script.builder_flags  # nothing was built beside the other one
                fcntl.flock(other, fcntl.LOCK_UN)

        with open_tensorrt(linear_onnx(), on_progress=progress):
            pass
    assert told[0] == "waiting for an engine that another process builds"
    assert len(script.builder_flags) == 3


def test_a_file_whose_engine_differs_is_not_measured(script: Script, linear_onnx: MakeLinear) -> None:
    script.bias = lambda build: 1.0
    with pytest.raises(ParityError, match="not written"):
        open_runner(linear_onnx(), "tensorrt")


def test_two_files_are_compared_in_one_run_with_one_build_for_all_batches(
    script: Script, linear_onnx: MakeLinear
) -> None:
    script.latency_s = lambda build, batch: 1e-3 if build < 3 else 5e-4  # the second file's builds
    models = {"dense": linear_onnx("dense.onnx"), "ticket": linear_onnx("ticket.onnx")}
    for batch in (1, 8):
        found = compare(models, runtime="tensorrt", batch=batch, rounds=5, samples=5, batches=(1, 8))
        assert found.speedup("ticket").ratio == pytest.approx(2.0, rel=1e-3)
        assert found.measurements["dense"].runtime == "tensorrt"
    assert len(script.builder_flags) == 6


def test_a_module_and_a_wrong_device_are_refused(script: Script, linear_onnx: MakeLinear) -> None:
    with pytest.raises(MeasureError, match="runtime 'tensorrt' runs an ONNX file, got a Identity"):
        open_runner(__import__("torch").nn.Identity(), "tensorrt")
    with pytest.raises(MeasureError, match="runs on a CUDA device, got 'cpu'"):
        open_runner(linear_onnx(), "tensorrt", device="cpu")
    with pytest.raises(MeasureError, match="invalid device ordinal"):
        open_runner(linear_onnx(), "tensorrt", device="cuda:1")


def test_the_graph_can_be_switched_off(script: Script, linear_onnx: MakeLinear) -> None:
    with open_runner(linear_onnx(), "tensorrt", cuda_graph=False) as runner:
        assert runner.settings["cuda_graph"] == "off"
        script.cuda.calls.clear()
        runner.time_once(images(2), "compute")
    assert "cudaGraphLaunch" not in script.cuda.calls
