"""The CUDA runner's calls, in order and with their arguments, against a scripted onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from scripted_cuda import CPU, CUDA, ScriptedOrt, node_event

from ticket_export.errors import DeviceError, MeasureError, MissingDependency
from ticket_export.measure.compare import compare
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.ort_cuda import OrtCudaRunner, nodes_on_cpu
from ticket_export.runtime.registry import open_runner

MakeLinear = Callable[..., Path]
WEIGHT_FO = np.arange(12, dtype=np.float32).reshape(4, 3) / 7.0


def images(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_images, 1, 2, 2)).astype(np.float32)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> ScriptedOrt:
    scripted = ScriptedOrt()
    monkeypatch.setitem(sys.modules, "onnxruntime", scripted)  # type: ignore[arg-type]
    return scripted


def runs(ort: ScriptedOrt) -> list[tuple[str, str | None]]:
    """The runs of the session that is timed, which is the first one opened."""
    return ort.sessions[0].runs


def test_the_provider_gets_what_the_settings_state(ort: ScriptedOrt, linear_onnx: MakeLinear) -> None:
    with open_runner(linear_onnx(), "ort-cuda", device="cuda:1", threads=2) as runner:
        assert ort.sessions[0].provider_options == {
            "device_id": "1",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "1",
            "enable_cuda_graph": "0",
        }
        assert runner.settings == {
            "conv_search": "exhaustive", "tf32": "on", "cuda_graph": "off", "layout": "NCHW",
        }  # fmt: skip
        assert (runner.name, runner.device, runner.precision, runner.threads) == (
            "ort-cuda", "cuda:1", "fp32", 2,
        )  # fmt: skip
        assert runner.input_specs["input"].shape == (None, 1, 2, 2)
        assert runner.output_specs["logits"].shape == (None, 3)
    with OrtCudaRunner(linear_onnx(), tf32=False, cuda_graph=True) as runner:
        assert ort.sessions[1].provider_options["use_tf32"] == "0"
        assert ort.sessions[1].provider_options["enable_cuda_graph"] == "1"
        assert (runner.settings["tf32"], runner.settings["cuda_graph"]) == ("off", "on")


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_every_run_computes_on_the_inputs_given_and_into_buffers_on_the_device(
    ort: ScriptedOrt, linear_onnx: MakeLinear, cuda_graph: bool
) -> None:
    with open_runner(linear_onnx(), "ort-cuda", cuda_graph=cuda_graph) as runner:
        for seed, num_images in ((0, 2), (1, 2), (2, 5), (3, 2)):
            x = images(num_images, seed)
            expected = x.reshape(num_images, 4) @ WEIGHT_FO
            np.testing.assert_allclose(runner.infer({"input": x})["logits"], expected, rtol=1e-5)
            transposed = np.asfortranarray(x)
            np.testing.assert_allclose(runner.infer({"input": transposed})["logits"], expected, rtol=1e-5)
            for scope in ("compute", "end_to_end"):
                assert 0.0 < runner.time_once({"input": x}, scope) < 0.1
        assert all(what == "run_with_iobinding" for what, _ in runs(ort))


def test_a_graph_is_captured_once_per_shape_after_a_run_without_capture(
    ort: ScriptedOrt, linear_onnx: MakeLinear
) -> None:
    with open_runner(linear_onnx(), "ort-cuda", cuda_graph=True) as runner:
        for num_images in (2, 5, 2):
            runner.time_once({"input": images(num_images)}, "compute")
        ids = [graph_id for _, graph_id in runs(ort)]
        # per new shape: one run without capture, one that captures; then one timed run
        assert ids == ["-1", "1", "1", "-1", "2", "2", "1"]
        runner.renew()
        runner.time_once({"input": images(2)}, "compute")
        # new buffers are a new graph: the old ones would read and write the old buffers, so they go
        assert set(ort.sessions[0].graphs) == {"3"}
        assert [graph_id for _, graph_id in runs(ort)][len(ids) :] == ["-1", "3", "3"]


def test_the_first_run_at_a_shape_is_not_timed(
    ort: ScriptedOrt, linear_onnx: MakeLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    real = time.perf_counter
    seen: list[int] = []

    def clock() -> float:
        seen.append(len(ort.sessions[0].runs))
        return real()

    with open_runner(linear_onnx(), "ort-cuda") as runner:
        monkeypatch.setattr("ticket_export.runtime.ort_cuda.time.perf_counter", clock)
        runner.time_once({"input": images(2)}, "compute")
        runner.time_once({"input": images(2)}, "end_to_end")
    assert seen == [2, 3, 3, 4]  # two runs make the binding; one run lies between the two readings


def test_placement_is_seen_once_with_a_quick_search(ort: ScriptedOrt, linear_onnx: MakeLinear) -> None:
    ort.profile = [node_event("MatMul_1", "MatMul", CUDA, float=[2, 3])]
    with open_runner(linear_onnx(), "ort-cuda", cuda_graph=True) as runner:
        runner.infer({"input": images(2)})
        runner.infer({"input": images(3)})
    timed, placed = ort.sessions
    assert placed.provider_options == timed.provider_options | {
        "cudnn_conv_algo_search": "DEFAULT",
        "enable_cuda_graph": "0",
    }
    assert placed.profile_prefix is not None
    assert timed.profile_prefix is None
    assert not Path(placed.profile_prefix).parent.exists()


def test_nodes_on_the_cpu_are_named_and_refused_before_anything_is_timed(
    ort: ScriptedOrt, linear_onnx: MakeLinear
) -> None:
    ort.profile = [
        node_event("Shape_0", "Shape", CPU, int64=[4]),
        node_event("Conv_1", "Conv", CUDA, float=[2, 3]),
        node_event("Resize_2", "Resize", CPU, float=[2, 3]),
        node_event("Resize_2", "Resize", CPU, float=[2, 3]),
    ]
    with open_runner(linear_onnx(), "ort-cuda") as runner:
        for call in (runner.infer, lambda inputs: runner.time_once(inputs, "compute")):
            with pytest.raises(MeasureError, match=r"runs 1 of its nodes on the CPU: Resize 'Resize_2'\n"):
                call({"input": images(2)})
    assert runs(ort) == []


@pytest.mark.parametrize(
    ("outputs", "counts"),
    [
        ({"int64": [4]}, False),
        ({"int64": []}, False),
        ({"bool": []}, False),
        ({"int64": [1000]}, True),
        ({"int64": [2, 2]}, True),
        ({"float": [1]}, True),
        ({"int64": [4], "float": [2]}, True),
        ({}, True),
    ],
)
def test_a_node_that_gives_sizes_may_run_on_the_cpu_and_no_other(
    outputs: dict[str, list[int]], counts: bool
) -> None:
    assert nodes_on_cpu([node_event("n", "Op", CPU, **outputs)]) == (["Op 'n'"] if counts else [])
    assert nodes_on_cpu([node_event("n", "Op", CUDA, **outputs)]) == []


def test_a_real_profile_shows_the_nodes_and_their_provider(linear_onnx: MakeLinear, tmp_path: Path) -> None:
    import json

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "real")
    session = onnxruntime.InferenceSession(str(linear_onnx()), options, providers=[CPU])
    session.run(None, {"input": images(2)})
    profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    assert [word.split()[0] for word in nodes_on_cpu(profile)] == ["Flatten", "MatMul"]


def test_a_session_that_fell_back_to_the_cpu_is_refused(ort: ScriptedOrt, linear_onnx: MakeLinear) -> None:
    ort.cuda_starts = False
    with pytest.raises(
        MissingDependency, match=r"could not start its CUDA provider on cuda:0(.|\n)*nvidia-smi"
    ):
        open_runner(linear_onnx(), "ort-cuda")


def test_onnxruntime_without_a_cuda_provider_names_the_install_command(
    ort: ScriptedOrt, linear_onnx: MakeLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort.providers = [CPU]
    with pytest.raises(
        MissingDependency, match=r"no CUDA provider(.|\n)*pip install --force-reinstall \"onnxruntime-gpu"
    ):
        open_runner(linear_onnx(), "ort-cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingDependency, match=r"is not installed(.|\n)*pip install --force-reinstall \"onnxruntime-gpu"
    ):
        open_runner(linear_onnx(), "ort-cuda")


def test_the_onnxruntime_of_this_machine_runs_on_a_gpu_or_names_the_install_command(
    linear_onnx: MakeLinear,
) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider; tests/gpu runs it")
    with pytest.raises(MissingDependency, match=r"no CUDA provider") as caught:
        open_runner(linear_onnx(), "ort-cuda")
    assert caught.value.exit_code == 3


def test_libraries_are_loaded_beforehand_and_nothing_is_printed_as_data(
    ort: ScriptedOrt, linear_onnx: MakeLinear, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_runner(linear_onnx(), "ort-cuda"):
        assert ort.num_preloads == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "Failed to load libcudnn.so.9\n")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", DeviceError, "out of memory at batch 7"),
        (
            "bfc_arena.cc: Failed to allocate memory for requested buffer",
            DeviceError,
            "out of memory at batch 7",
        ),
        ("CUDNN_STATUS_ALLOC_FAILED", DeviceError, "out of memory at batch 7"),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", DeviceError, "the device failed"),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", DeviceError, "the device failed"),
        (
            "Non-zero status code returned while running Conv",
            MeasureError,
            r"linear\.onnx: ONNX Runtime: failed",
        ),
    ],
)
def test_what_the_session_says_becomes_an_error_of_the_right_kind(
    ort: ScriptedOrt, linear_onnx: MakeLinear, text: str, kind: type[MeasureError], words: str
) -> None:
    ort.run_error = RuntimeError(text)
    with open_runner(linear_onnx(), "ort-cuda") as runner:
        for call in (runner.infer, lambda inputs: runner.time_once(inputs, "end_to_end")):
            with pytest.raises(MeasureError, match=words) as caught:
                call({"input": images(7)})
            assert type(caught.value) is kind
    ort.open_error = RuntimeError(text)
    with pytest.raises(MeasureError, match=r"linear\.onnx: ONNX Runtime"):
        open_runner(linear_onnx(), "ort-cuda")


def test_inputs_devices_files_and_modules_that_do_not_fit_are_refused(
    ort: ScriptedOrt, linear_onnx: MakeLinear, tmp_path: Path
) -> None:
    path = linear_onnx()
    for device in ("cpu", "cuda:x", "cuda:", "cuda:-1"):
        with pytest.raises(MeasureError, match=f"'ort-cuda' runs on a CUDA device, got '{device}'"):
            open_runner(path, "ort-cuda", device=device)
    with pytest.raises(MeasureError, match=r"gone\.onnx: no such file"):
        open_runner(tmp_path / "gone.onnx", "ort-cuda")
    with pytest.raises(MeasureError, match="runs an ONNX file, got a dict"):
        open_runner({}, "ort-cuda")  # type: ignore[arg-type]
    with open_runner(path, "ort-cuda", device="cuda") as runner:
        assert runner.device == "cuda:0"
        with pytest.raises(MeasureError, match=r"float64 \[2, 1, 2, 2\], but"):
            runner.infer({"input": images(2).astype(np.float64)})
        with pytest.raises(MeasureError, match="scope 'gpu' is not one of"):
            runner.time_once({"input": images(2)}, "gpu")
        path.write_bytes(path.read_bytes() + b"\x00")
        with pytest.raises(MeasureError, match="has changed since the measurement began"):
            runner.renew()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_pair_is_measured_in_rounds(ort: ScriptedOrt, linear_onnx: MakeLinear, cuda_graph: bool) -> None:
    path = linear_onnx()
    runners: dict[str, Any] = {
        name: open_runner(path, "ort-cuda", cuda_graph=cuda_graph) for name in ("dense", "ticket")
    }
    measured = measure_interleaved(runners, batch=3, protocol=Protocol(rounds=5, samples=5))
    assert measured["ticket"].samples_s.shape == (5, 5)
    assert measured["ticket"].device == "cuda:0"
    assert measured["ticket"].settings["cuda_graph"] == ("on" if cuda_graph else "off")


def test_compare_leaves_the_choice_of_a_graph(ort: ScriptedOrt, linear_onnx: MakeLinear) -> None:
    told = {}
    for choice in (None, True):
        comparison = compare(
            {"dense": linear_onnx()}, runtime="ort-cuda", rounds=5, samples=5, cuda_graph=choice
        )
        told[choice] = comparison.measurements["dense"].settings["cuda_graph"]
    assert told == {None: "off", True: "on"}
