"""Manifests as a run leaves them, made by hand with known numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Manifest = dict[str, Any]

MACHINE = {
    "fingerprint": "0123456789ab",
    "cpu": "AMD EPYC 9B14",
    "num_cores": 2,
    "num_usable_cores": 2,
    "isa": ["avx2", "avx512f"],
    "os": "Linux x86_64",
    "packages": {"numpy": "2.4.6", "onnx": "1.23.2", "onnxruntime": "1.31.1", "torch": "2.13.0"},
    "memory_bytes": 8 * 2**30,
    "kernel": "6.1.0",
    "python": "3.11.7",
}
DENSE_PARAMS, DENSE_MACS = 272_474, 2_600_000
# per subject: (accuracy of each replicate, weights kept, MACs kept, speedup at batch 1 and at batch 64)
SUBJECTS: dict[str, tuple[tuple[float, ...], float, float, tuple[float, float]]] = {
    "dense": ((0.981, 0.983, 0.978), 1.0, 1.0, (1.0, 1.0)),
    "ticket@1": ((0.980, 0.984, 0.977), 0.71, 0.72, (1.12, 1.31)),
    "ticket@2": ((0.979, 0.981, 0.976), 0.48, 0.51, (1.31, 1.62)),
    "unstructured@2": ((0.982, 0.981, 0.980), 0.40, 1.0, (1.00, 1.01)),
    "uniform@2": ((0.975, 0.979, 0.972), 0.46, 0.49, (1.30, 1.66)),
    "random@2": ((0.966, 0.969, 0.962), 0.48, 0.51, (1.30, 1.62)),
    "reinit@2": ((0.968, 0.974, 0.975), 0.48, 0.51, (1.31, 1.61)),
}
GROUPS = (
    {"conv1": 16}
    | {f"layer{stage}.{block}.conv1": 8 * 2**stage for stage in (1, 2, 3) for block in (0, 1, 2)}
    | {"layer1.add": 16, "layer2.add": 32, "layer3.add": 64}
)


def _manifest(stage: str, facts: Manifest) -> Manifest:
    return {"schema": 1, "stage": stage, "key": "0" * 12, "facts": facts, "machine": MACHINE}


def _widths(subject: str, replicate: int, kept: float) -> dict[str, dict[str, int]]:
    if subject in ("dense", "unstructured@2"):
        kept = 1.0
    return {
        group: {
            "before": width,
            "after": min(width, 8 * max(1, round(kept**0.5 * width / 8 + 0.2 * (i % 3) - 0.2 * replicate))),
        }
        for i, (group, width) in enumerate(GROUPS.items())
    }


def make_manifests(num_replicates: int = 3, batches: tuple[int, ...] = (1, 8, 64)) -> list[Manifest]:
    found = []
    for subject, (accuracies, param_density, mac_density, _) in SUBJECTS.items():
        for replicate, accuracy in enumerate(accuracies[:num_replicates]):
            who = {"subject": subject, "replicate": replicate}
            history = [{"seconds": 1.5 * (0.3 + 0.7 * mac_density)} for _ in range(12)]
            found += [
                _manifest(
                    "train", who | {"history": history, "val_accuracy": accuracy + 0.004, "threads": 1}
                ),
                _manifest(
                    "export",
                    who
                    | {
                        "precision": "fp32",
                        "file": "model.onnx",
                        "file_bytes": int(4 * DENSE_PARAMS * param_density) + 20_000,
                        "parity_rel_error": 3.1e-7,
                        "params": int(DENSE_PARAMS * param_density),
                        "macs": int(DENSE_MACS * mac_density),
                        "channel_density": param_density**0.5,
                        "param_density": param_density,
                        "mac_density": mac_density,
                        "widths": _widths(subject, replicate, param_density),
                    },
                ),
                _manifest(
                    "measure",
                    who
                    | {
                        "kind": "accuracy",
                        "runtime": "ort-cpu",
                        "precision": "fp32",
                        "accuracy": accuracy,
                        "num_images": 360,
                    },
                ),
            ]
    return found + [_latency(batch, num_replicates) for batch in batches]


def _latency(batch: int, num_replicates: int) -> Manifest:
    dense_s = 2.1e-4 + 9.4e-5 * batch
    rows = []
    for subject, (accuracies, _, _, (at_1, at_64)) in SUBJECTS.items():
        ratio = at_1 + (at_64 - at_1) * min(1.0, (batch - 1) / 63)
        for replicate in range(len(accuracies[:num_replicates])):
            own = ratio * (1 + 0.01 * (replicate - 1)) if subject != "dense" else 1.0
            speedup = {"ratio": own, "low": own * 0.98, "high": own * 1.02, "baseline": "dense"}
            rows.append(
                {
                    "subject": subject,
                    "replicate": replicate,
                    "latency_s": {"p50": dense_s / own, "p90": dense_s / own * 1.04},
                    "throughput_per_s": batch * own / dense_s,
                    "speedup": None if subject == "dense" else speedup,
                    "stable": True,
                    "reasons": [],
                    "num_rounds": 10,
                    "num_samples": 50,
                    "rounds_won_fraction": None if subject == "dense" else 1.0,
                }
            )
    facts = {
        "kind": "latency",
        "runtime": "ort-cpu",
        "precision": "fp32",
        "batch": batch,
        "scope": "compute",
        "threads": 1,
    }
    return _manifest("measure", facts | {"rows": rows})


@pytest.fixture
def manifests() -> list[Manifest]:
    """Three replicates of seven subjects at batches 1, 8 and 64."""
    return make_manifests()


@pytest.fixture(scope="session")
def manifests_of() -> Callable[..., list[Manifest]]:
    """The same, for any number of replicates and any batches."""
    return make_manifests


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    return MACHINE
