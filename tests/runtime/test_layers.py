"""Layer times out of ONNX Runtime's profile, scripted and real, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ticket_export.errors import MeasureError
from ticket_export.runtime.layers import LayerProfile, LayerTime, calm_s, profile_layers
from ticket_export.runtime.ort_layers import profile_from_events

Event = dict[str, Any]


def run_event(microseconds: int) -> Event:
    return {"cat": "Session", "name": "model_run", "dur": microseconds, "args": {}}


def node_event(name: str, op: str, microseconds: int) -> Event:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": microseconds,
        "args": {"op_name": op, "provider": "CPUExecutionProvider"},
    }


def kernel_event(microseconds: int) -> Event:
    return {"cat": "Kernel", "name": "sgemm", "dur": microseconds, "args": {"op_name": "Conv"}}


def test_a_layer_is_what_its_calmer_runs_say_and_the_first_runs_do_not_count() -> None:
    events: list[Event] = []
    for conv, relu in ((900, 90), (20, 4), (10, 2), (12, 2), (30, 2)):
        events += [node_event("conv", "Conv", conv), node_event("relu", "Relu", relu)]
        events += [run_event(conv + relu + 5)]
    profile = profile_from_events(events, on_device=False, skipped_runs=1)
    assert [(layer.name, layer.op) for layer in profile.layers] == [("conv", "Conv"), ("relu", "Relu")]
    assert profile.layers[0].seconds == pytest.approx(11e-6)  # the lower half of 10 12 20 30
    assert profile.layers_s == pytest.approx(13e-6)
    assert profile.between_s == pytest.approx(5e-6)
    assert profile.num_runs == 4


def test_the_calls_of_a_node_in_a_loop_add_up_within_a_run() -> None:
    one_run = [node_event("body", "Conv", 3), node_event("body", "Conv", 4), run_event(9)]
    profile = profile_from_events(one_run * 4, on_device=False, skipped_runs=0)
    assert [layer.seconds for layer in profile.layers] == [pytest.approx(7e-6)]
    assert profile.between_s == pytest.approx(2e-6)


def test_on_a_device_the_kernels_behind_a_node_are_its_time_and_its_launch_is_not() -> None:
    one_run = [
        node_event("conv", "Conv", 500),
        *(kernel_event(7), kernel_event(5)),
        node_event("relu", "Relu", 400),
        kernel_event(2),
        run_event(900),
    ]
    profile = profile_from_events(one_run * 3, on_device=True, skipped_runs=1)
    assert {layer.name: layer.seconds for layer in profile.layers} == {
        "conv": pytest.approx(12e-6),
        "relu": pytest.approx(2e-6),
    }
    assert profile.between_s is None


def test_a_device_profile_without_kernels_tells_nothing_instead_of_launch_times() -> None:
    events = [node_event("conv", "Conv", 500), run_event(900)] * 3
    assert profile_from_events(events, on_device=True, skipped_runs=0).layers == ()


def test_a_real_file_is_profiled_node_by_node(linear_onnx: Callable[..., Path]) -> None:
    x = np.ones((3, 1, 2, 2), np.float32)
    found = profile_layers({"a": linear_onnx("a.onnx"), "b": linear_onnx("b.onnx")}, "ort-cpu", [x])
    assert list(found) == ["a", "b"]
    for profile in found.values():
        assert {layer.op for layer in profile.layers} & {"MatMul", "Gemm"}
        assert all(0.0 <= layer.seconds < 0.1 for layer in profile.layers)
        assert profile.num_runs >= 10


def test_no_profile_is_left_in_the_working_folder(
    linear_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = linear_onnx()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    profile_layers({"a": path}, "ort-cpu", [np.ones((1, 1, 2, 2), np.float32)])
    assert sorted(tmp_path.iterdir()) == before


def test_runtimes_without_layer_times_and_wrong_sources_are_refused(linear_onnx: Callable[..., Path]) -> None:
    x = [np.ones((1, 1, 2, 2), np.float32)]
    with pytest.raises(MeasureError, match="'torch-compile' tells no layer times"):
        profile_layers({"a": linear_onnx()}, "torch-compile", x)
    with pytest.raises(MeasureError, match=r"runs an nn\.Module, got the file"):
        profile_layers({"a": linear_onnx()}, "torch", x)
    with pytest.raises(MeasureError, match="from an exported file, got a int"):
        profile_layers({"a": 3}, "ort-cpu", x)  # type: ignore[dict-item]
    with pytest.raises(MeasureError, match="input"):
        profile_layers({"a": linear_onnx()}, "ort-cpu", [np.ones((1, 1, 3, 2), np.float32)])


def test_a_neighbour_that_disturbs_half_of_the_runs_is_not_seen() -> None:
    assert calm_s([1.0, 2.0, 90.0, 100.0]) == 1.5
    assert calm_s([3.0]) == 3.0


def test_a_profile_survives_json() -> None:
    layers = (LayerTime(name="conv", op="Conv", seconds=2e-6),)
    for between_s in (None, 3e-6):
        profile = LayerProfile(layers=layers, between_s=between_s, num_runs=8)
        assert LayerProfile.from_json(profile.to_json()) == profile
