"""Seconds that a report takes."""

from __future__ import annotations

import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from costs.line import Line, timed

from ticket_export.report.page import write_report
from ticket_export.report.rows import ExportedFile, Report, Training, Width
from ticket_export.store.machine import machine_facts

REPORTED = {
    "dense": 1.0,
    "ticket@1": 0.67,
    "ticket@2": 0.49,
    "uniform@2": 0.66,
    "random@2": 0.49,
    "reinit@2": 0.49,
}
NUM_REPLICATES, BATCHES = 5, (1, 64)


def report_costs(num_rounds: int) -> list[Line]:
    """Write one report: six subjects, five replicates, two batches; 60 rows with made-up numbers."""
    report = made_up_report()
    with tempfile.TemporaryDirectory() as folder:
        timing = timed(lambda: write_report(report, Path(folder)), num_rounds)
        num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    shown = {"rows": str(len(report.rows)), **timing.shown, "files, kB": f"{num_bytes / 1e3:.0f}"}
    return [Line(shown=shown, raw={"num_rows": len(report.rows), **asdict(timing), "num_bytes": num_bytes})]


def made_up_report() -> Report:
    numbers = random.Random(0)
    who = [(subject, replicate) for subject in REPORTED for replicate in range(NUM_REPLICATES)]
    widths = tuple(
        Width(group=f"layer{i // 7}.{i % 7}.conv1", before=64, after=8 + 8 * (i % 7)) for i in range(21)
    )
    return Report(
        name="benchmark",
        machine=machine_facts(),
        rows=tuple(
            _row(subject, replicate, batch, numbers) for subject, replicate in who for batch in BATCHES
        ),
        widths={subject: dict.fromkeys(range(NUM_REPLICATES), widths) for subject in REPORTED},
        trainings=tuple(
            Training(
                subject=s,
                replicate=r,
                num_epochs=16,
                num_epochs_learnt=16,
                epoch_s=1.0,
                val_accuracy=0.98,
                threads=1,
            )
            for s, r in who
        ),
        exported=tuple(
            ExportedFile(
                subject=s,
                replicate=r,
                precision="fp32",
                runtime=None,
                path=f"export/{'0' * 12}/model.onnx",
                file_bytes=1_100_000,
                parity_rel_error=3e-7,
            )
            for s, r in who
        ),
        choices=(),
        num_test_images=360,
    )


def _row(subject: str, replicate: int, batch: int, numbers: random.Random) -> dict[str, Any]:  # Any: JSON
    kept = REPORTED[subject]
    ratio = 1 / kept + numbers.uniform(-0.02, 0.02)
    is_dense = subject == "dense"
    speedup = {"ratio": ratio, "low": ratio - 0.02, "high": ratio + 0.02, "baseline": "dense"}
    latency_s = 1e-3 * batch * kept
    return {
        "subject": subject,
        "replicate": replicate,
        "accuracy": numbers.uniform(0.97, 0.99),
        "params": int(272_474 * kept),
        "macs": int(2_600_000 * kept),
        "channel_density": kept,
        "param_density": kept,
        "mac_density": kept,
        "runtime": "ort-cpu",
        "precision": "fp32",
        "batch": batch,
        "scope": "compute",
        "threads": 1,
        "latency_s": {"p50": latency_s, "p90": 1.05 * latency_s},
        "throughput_per_s": batch / latency_s,
        "speedup": None if is_dense else speedup,
        "stable": True,
        "reasons": [],
        "num_rounds": 10,
        "num_samples": 50,
        "rounds_won_fraction": None if is_dense else 1.0,
        "parity_rel_error": 3e-7,
        "file_bytes": int(1_100_000 * kept),
    }
