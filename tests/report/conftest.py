"""Manifests as a run leaves them, made by hand with known numbers."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
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


# what the chain of Refill makes each result from: role -> stage and subject
FINDERS: dict[str, dict[str, str]] = {
    "unstructured@1": {"trained": "train dense"},
    "ticket@1": {"elements": "find unstructured@1", "trained": "train dense"},
    "unstructured@2": {"trained": "train unstructured@1", "previous": "find unstructured@1"},
    "ticket@2": {"elements": "find unstructured@2", "trained": "train unstructured@1"},
    "uniform@2": {"like": "find ticket@2"},
    "random@2": {"like": "find ticket@2"},
}
TRAININGS: dict[str, dict[str, str]] = {
    "dense": {},
    "ticket@1": {"mask": "find ticket@1", "start": "train dense"},
    "unstructured@1": {"mask": "find unstructured@1", "start": "train dense"},
    "ticket@2": {"mask": "find ticket@2", "start": "train dense"},
    "unstructured@2": {"mask": "find unstructured@2", "start": "train dense"},
    "uniform@2": {"mask": "find uniform@2"},
    "random@2": {"mask": "find random@2", "start": "train dense"},
    "reinit@2": {"mask": "find ticket@2"},
}
NUM_EPOCHS, REWIND_EPOCH = 12, 2


def _key(stage: str, subject: str, replicate: int | None, more: str = "") -> str:
    return sha256(f"{stage} {subject} {replicate} {more}".encode()).hexdigest()[:12]


def _manifest(stage: str, facts: Manifest, parents: dict[str, str] | None = None, more: str = "") -> Manifest:
    subject, replicate = facts.get("subject", "all"), facts.get("replicate")
    named = {}
    for role, parent in (parents or {}).items():
        word, _, whose = parent.partition(" ")
        named[role] = f"{word}/{_key(word, whose, replicate)}"
    return {
        "schema": 1,
        "stage": stage,
        "key": _key(stage, subject, replicate, more),
        "parents": named,
        "sections": {"find": {"rewind_epoch": REWIND_EPOCH}},
        "facts": facts,
        "machine": MACHINE,
    }


def _training(subject: str, replicate: int) -> Manifest:
    accuracies, _, mac_density, _ = SUBJECTS.get(subject, SUBJECTS["unstructured@2"])
    parents = TRAININGS[subject]
    num_epochs = NUM_EPOCHS - (REWIND_EPOCH if "start" in parents else 0)
    seconds = 1.5 * (0.3 + 0.7 * mac_density)
    facts = {
        "subject": subject,
        "replicate": replicate,
        "history": [{"seconds": seconds} for _ in range(num_epochs)],
        "num_epochs": num_epochs,
        "seconds": seconds * num_epochs,
        "val_accuracy": accuracies[replicate] + 0.004,
        "early_stop": None,
        "threads": 1,
        "processes": 1,
        "device": "cpu",
        "params": int(DENSE_PARAMS * mac_density),
        "macs": int(DENSE_MACS * mac_density),
    }
    return _manifest("train", facts, parents)


def _finder(subject: str, replicate: int) -> Manifest:
    method = "magnitude" if subject.startswith("unstructured") else "refill"
    facts = {"subject": subject, "replicate": replicate, "method": method, "element_density": 0.4}
    return _manifest("find", facts, FINDERS[subject])


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
    for replicate in range(num_replicates):
        found += [_training(subject, replicate) for subject in TRAININGS]
        found += [_finder(subject, replicate) for subject in FINDERS]
        for subject in SUBJECTS:
            found += _deployed(subject, replicate)
    return found + [_latency(batch, num_replicates) for batch in batches]


def _deployed(subject: str, replicate: int) -> list[Manifest]:
    accuracies, param_density, mac_density, _ = SUBJECTS[subject]
    who: Manifest = {"subject": subject, "replicate": replicate}
    params, macs = int(DENSE_PARAMS * param_density), int(DENSE_MACS * mac_density)
    costs = {"params": params, "macs": macs, "params_dense": DENSE_PARAMS, "macs_dense": DENSE_MACS}
    exported = who | {
        "precision": "fp32",
        "file": "model.onnx",
        "file_bytes": int(4 * DENSE_PARAMS * param_density) + 20_000,
        "parity_rel_error": 3.1e-7,
        "params": params,
        "macs": macs,
        "channel_density": param_density**0.5,
        "param_density": param_density,
        "mac_density": mac_density,
        "widths": _widths(subject, replicate, param_density),
    }
    accuracy = {"kind": "accuracy", "runtime": "ort-cpu", "precision": "fp32", "num_images": 360}
    evaluated = _manifest("measure", who | accuracy | {"accuracy": accuracies[replicate]})
    if subject in ("dense", "unstructured@2"):
        return [_manifest("export", exported, {"network": f"train {subject}"}), evaluated]
    read = {"trained": f"train {subject}", "mask": TRAININGS[subject]["mask"]}
    return [
        _manifest("shrink", who | costs, read),
        _manifest("export", exported, {"network": f"shrink {subject}"}),
        evaluated,
    ]


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
    return _manifest("measure", facts | {"rows": rows}, more=str(batch))


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
