"""From real files to sentences: profiled apart from the timing, and honest where nothing can be profiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ticket_export.errors import MeasureError
from ticket_export.measure.compare import compare
from ticket_export.measure.explain import explain


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
