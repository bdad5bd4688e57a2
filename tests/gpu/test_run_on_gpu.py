"""The whole chain on the GPU, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

SMOKE = Path(__file__).parents[1] / "smoke.yaml"
SUBJECTS = {"dense", "ticket@1", "random@1", "uniform@1", "reinit@1", "unstructured@1"}


def test_the_smoke_recipe_runs_on_the_gpu_from_training_to_report(
    tmp_path: Path, device: torch.device
) -> None:
    words = ["run", str(SMOKE), "--out", str(tmp_path), "--device", str(device)]
    words += ["--set", "measure.runtimes=[ort-cpu, torch]"]
    told = subprocess.run(
        [sys.executable, "-m", "ticket_export", *words], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    rows = json.loads((tmp_path / "runs" / "smoke" / "report.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["subject"], row["runtime"]) for row in rows} == {
        (subject, runtime) for subject in SUBJECTS for runtime in ("ort-cpu", "torch")
    }
    accuracy = {(row["subject"], row["runtime"]): row["accuracy"] for row in rows}
    for subject in SUBJECTS:
        # 360 test images; TF32 may turn a close decision or two
        assert abs(accuracy[subject, "torch"] - accuracy[subject, "ort-cpu"]) <= 0.01
    assert all(row["latency_s"]["p50"] > 0 for row in rows)
    manifests = [json.loads(path.read_text("utf-8")) for path in tmp_path.glob("store/train/*/manifest.json")]
    assert {manifest["facts"]["device"] for manifest in manifests} == {str(device)}
