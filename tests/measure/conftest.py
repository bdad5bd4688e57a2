"""A scripted world for measuring without a machine, and small real files for measuring with one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ticket_export.measure.load import Load
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.fake import FakeRunner


class World:
    """A machine whose speed drifts with its own clock, and on which every placement in memory has a speed."""

    def __init__(self, seed: int, *, drift: float = 0.0, placement: float = 0.0, noise: float = 0.0) -> None:
        self._random = np.random.default_rng(seed)
        self._drift, self._placement, self._noise = drift, placement, noise
        self._phase, self._period_s = self._random.uniform(0, 6.28), self._random.uniform(0.5, 5.0)
        self._now_s = 0.0

    def runner(self, latency_s: float, **kwargs: str | int) -> FakeRunner:
        """Return a runner that takes `latency_s` but for drift, placement and noise."""
        placed = {"renewals": -1, "factor": 1.0}

        def script(_call: int) -> float:
            if runner.num_renewals != placed["renewals"]:
                placed["renewals"] = runner.num_renewals
                placed["factor"] = float(np.exp(self._random.normal(0.0, self._placement)))
            drift = 1.0 + self._drift * np.sin(self._phase + 6.28 * self._now_s / self._period_s)
            noise = 1.0 + self._noise * self._random.exponential()
            seconds = float(latency_s * placed["factor"] * drift * noise)
            self._now_s += seconds
            return seconds

        runner = FakeRunner(script, **kwargs)  # type: ignore[arg-type]
        return runner


@pytest.fixture
def real_machine() -> None:
    """Ask for this to measure with the load that the machine has."""


@pytest.fixture(autouse=True)
def _quiet_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with scripted load, so that a busy test machine does not add reasons of its own."""
    if "real_machine" in request.fixturenames:
        return
    monkeypatch.setattr("ticket_export.measure.load.LoadMeter._read", lambda _meter: (0.0, 0.0, 0.0))
    monkeypatch.setattr("ticket_export.measure.load.quota_stopped_s", lambda: 0.0)
    idle = "ticket_export.measure.pinning._busy_by_core"
    monkeypatch.setattr(idle, lambda cores: dict.fromkeys(cores, 0.0))


def make_measurement(samples_s: np.ndarray, **changes: object) -> Measurement:
    """Return a Measurement around `samples_s` [rounds, samples]; `changes` replace its other fields."""
    rounds, samples = samples_s.shape
    fields: dict[str, object] = {
        "name": "dense",
        "lead_in_s": np.zeros((rounds, 3)),
        "warmup_s": np.ones(10),
        "runtime": "ort-cpu",
        "device": "cpu",
        "precision": "fp32",
        "batch": 8,
        "scope": "compute",
        "threads": 1,
        "protocol": Protocol(rounds=rounds, samples=samples),
        "machine": {"cpu": "one", "num_cores": 2},
        "run": "run-a",
        "loads": (Load(other_cores=0.0, steal_cores=0.0),) * rounds,
        "reasons": (),
    }
    return Measurement(samples_s=samples_s, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def write_mlp(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of ONNX files: [N, channels, 8, 8] through layers of `width`, the last of `outputs`."""

    def write(
        name: str, *, width: int = 64, depth: int = 2, channels: int = 1, batch: int | str = "batch",
        dtype: type = np.float32, height: int | str = 8, outputs: int = 10,
    ) -> Path:  # fmt: skip
        random = np.random.default_rng(0)
        features = channels * 64
        sizes = [features, *[width] * (depth - 1), outputs]
        weights = [
            numpy_helper.from_array((random.standard_normal(pair) / 8).astype(dtype), f"w{index}")
            for index, pair in enumerate(itertools.pairwise(sizes))
        ]
        nodes = [helper.make_node("Flatten", ["input"], ["x0"])]
        nodes += [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(depth)]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            nodes,
            "mlp",
            [helper.make_tensor_value_info("input", kind, [batch, channels, height, 8])],
            [helper.make_tensor_value_info(f"x{depth}", kind, [batch, outputs])],
            weights,
        )
        path = tmp_path / name
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def world() -> Callable[..., World]:
    return World


@pytest.fixture
def measurement() -> Callable[..., Measurement]:
    return make_measurement
