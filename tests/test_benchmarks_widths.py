"""The benchmark of widths: the ticket it times, and that a finished precision is kept."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import widths as benchmark

RATIO = {"ratio": 1.5, "low": 1.4, "high": 1.6, "baseline": "dense"}
CHOICE = {
    **{"runtime": "ort-cpu", "precision": "fp32", "scope": "compute", "threads": 1, "num_rounds": 10},
    **{"params_dense": 100, "macs_dense": 2_000_000, "batches": [1], "chosen": 0},
    "machine": {"cpu": "EPYC", "num_usable_cores": 2, "packages": {"torch": "2.13.0"}},
    "candidates": [
        {
            **{"round_to": 8, "form": "term", "same_as": [[16, "term"]], "params": 50, "macs": 1_000_000},
            **{"file_bytes": 4000, "speedup": RATIO, "by_batch": {"1": RATIO}, "reasons": []},
        }
    ],
}


def test_the_ticket_has_zero_gammas_whose_betas_stay_at_half_of_the_inner_channels() -> None:
    model, _, mac_density = benchmark.pruned("resnet20-cifar")
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    zeros = {name: int((norm.weight == 0).sum()) for name, norm in norms.items()}
    assert all((count > 0) == name.endswith("bn1") for name, count in zeros.items() if name != "bn1")
    assert zeros["bn1"] == 0  # the stem sees the image
    assert len(set(zeros.values())) > 4  # irregular
    assert all(bool((norm.bias[norm.weight == 0] != 0).all()) for norm in norms.values())
    assert mac_density == pytest.approx(0.5, abs=0.02)


def test_a_precision_that_is_done_is_measured_again_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def scripted(
        given: argparse.Namespace, model: nn.Module, image: Tensor, precision: str
    ) -> dict[str, Any]:
        measured.append(precision)
        if precision == "int8" and len(measured) == 2:
            raise KeyboardInterrupt
        told = {"round_medians_s": [{"round_to 8, term": [1.0] * 5}], "seconds": 3.0}
        return {"choice": CHOICE, "ended": "now", "command": "python benchmarks/widths.py", **told}

    monkeypatch.setattr(benchmark, "measured", scripted)
    monkeypatch.setattr(benchmark, "pruned", lambda network: (nn.Linear(1, 1), torch.zeros(1), 0.4))
    words = ["widths.py", "--out", str(tmp_path), "--machine", "here"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    [path] = tmp_path.glob("widths_resnet50_here_*.json")
    assert list(json.loads(path.read_text())["precisions"]) == ["fp32"]
    benchmark.main()
    assert measured == ["fp32", "int8", "int8"]
    benchmark.main()
    assert len(measured) == 3
    told = capsys.readouterr().out
    assert "same as round_to 16, term" in told
    assert "1.50x (1.40-1.60)" in told
    monkeypatch.setattr(sys, "argv", [*words, "--force", "--precisions", "fp32"])
    benchmark.main()
    assert measured[3:] == ["fp32"]


def test_what_one_batch_alone_would_keep_is_told_by_its_own_rounds() -> None:
    grids = [{"round_to": 8, "form": "", "file_bytes": 10, "macs": 10}]
    grids.append({"round_to": 16, "form": "", "file_bytes": 12, "macs": 12})
    noise = [1.00, 1.02, 0.99, 1.01, 0.98]
    done = {
        "choice": {"candidates": grids, "chosen": 0, "batches": [1, 8]},
        "round_medians_s": [
            {"round_to 8": noise, "round_to 16": [0.9 * second for second in noise]},
            {"round_to 8": noise, "round_to 16": noise[::-1]},
        ],
    }
    assert benchmark.kept_alone(done) == ["for batch 1 alone round_to 16", "for batch 8 alone the same"]
