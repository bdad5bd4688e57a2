"""From real files to sentences: profiled apart from the timing, and honest where nothing can be profiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from ticket_export.errors import MeasureError
from ticket_export.measure.compare import compare
from ticket_export.measure.explain import explain, graph_speedup
from ticket_export.measure.measurement import Measurement
from ticket_export.runtime.runner import TensorSpec


def test_a_narrower_file_is_explained_layer_by_layer(write_mlp: Callable[..., Path]) -> None:
    files = {
        "dense": write_mlp("dense.onnx", width=256, depth=3),
        "ticket": write_mlp("ticket.onnx", width=100, depth=3),
    }
    comparison = compare(files, rounds=5, samples=5, batch=16)
    found = explain(files, comparison.measurements)
    assert list(found) == ["ticket"]
    evidence = found["ticket"].evidence
    assert evidence["mac_ratio"] == pytest.approx((64 + 256 + 10) * 256 / ((64 + 100 + 10) * 100))
    assert sorted(layer["name"] for layer in evidence["layers"]) == ["w0", "w1", "w2"]
    assert evidence["missing"] == [[], []]
    assert evidence["num_off_grid"] == 3
    assert f"{evidence['measured'][0]:.2f}x" in found["ticket"].sentence


def test_a_runtime_without_layer_times_leaves_the_cause_unknown(
    write_mlp: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"dense": write_mlp("dense.onnx"), "ticket": write_mlp("ticket.onnx", width=32)}
    comparison = compare(files, rounds=5, samples=5)
    monkeypatch.setattr("ticket_export.runtime.layers.PROFILERS", {})
    (found,) = explain(files, comparison.measurements).values()
    assert found.kind == "unknown"
    assert "runtime 'ort-cpu' tells no layer times" in found.sentence


def test_a_profiler_that_fails_does_not_cost_the_measurement(
    write_mlp: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"dense": write_mlp("dense.onnx"), "ticket": write_mlp("ticket.onnx", width=32)}
    comparison = compare(files, rounds=5, samples=5)

    def fail(*_: object) -> None:
        raise MeasureError("out of memory at batch 1")

    monkeypatch.setattr("ticket_export.runtime.layers.PROFILERS", {"ort-cpu": fail})
    (found,) = explain(files, comparison.measurements).values()
    assert "no layer times (out of memory at batch 1)" in found.sentence


class Launched:
    """A runner that takes 4 ms, or 1 ms as one CUDA graph."""

    input_specs = {"input": TensorSpec(name="input", dtype="float32", shape=(None, 2))}  # noqa: RUF012

    def __init__(self, cuda_graph: bool) -> None:
        self.latency_s = 0.001 if cuda_graph else 0.004

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def time_once(self, inputs: Mapping[str, np.ndarray], scope: str) -> float:
        assert inputs["input"].shape == (8, 2)
        return self.latency_s


def test_launches_are_shown_by_timing_the_ticket_as_a_graph_too(
    measurement: Callable[..., Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(_source: object, _runtime: str, *, cuda_graph: bool, **_: object) -> Launched:
        return Launched(cuda_graph)

    monkeypatch.setattr("ticket_export.measure.explain.open_runner", opened)
    samples_s = np.ones((5, 5))

    def timed(setting: str) -> Measurement:
        return measurement(samples_s, runtime="ort-cuda", device="cuda:0", settings={"cuda_graph": setting})

    assert graph_speedup(Path("a.onnx"), timed("off")) == pytest.approx(4.0)
    assert graph_speedup(Path("a.onnx"), timed("on")) is None
    assert graph_speedup(Path("a.onnx"), measurement(samples_s, settings={})) is None


def test_a_network_that_cannot_be_captured_has_no_graph_speedup(
    measurement: Callable[..., Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise MeasureError("cannot be captured")

    monkeypatch.setattr("ticket_export.measure.explain.open_runner", refused)
    found = measurement(np.ones((5, 5)), device="cuda:0", settings={"cuda_graph": "off"})
    assert graph_speedup(Path("a.onnx"), found) is None
