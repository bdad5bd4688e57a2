"""The sweep of speedups: what it measures, keeps, tells and draws."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu_proof
from speedup.cells import Cell, Settings, cells_of, measure_cell, read_cell, write_failure
from speedup.masks import inner_groups, mask_of_cost, unstructured
from speedup.networks import NETWORKS, images
from speedup.page import called_different, overlaps, page_of
from speedup.plots import speedup_against_macs
from speedup.saturation import is_saturated, memory_reason, saturated_batch
from speedup.workers import START_AFRESH, run_cells, watch
from speedup_figure import draw, points_of
from speedup_sweep import is_done

import ticket_export as te
from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import Mask
from ticket_export.errors import DeviceError
from ticket_export.find.imp import prunable_weights
from ticket_export.measure.measurement import load_measurements
from ticket_export.shrink.surgery import small_from_mask

NETWORK = "resnet20-cifar"


def cell(batch: int = 1, turn: int = 1) -> Cell:
    return Cell(turn=turn, network=NETWORK, density=0.5, runtime="ort-cpu", precision="fp32", batch=batch)


def settings(**changes: Any) -> Settings:
    held: dict[str, Any] = {
        "subjects": ("dense", "dense-again"), "threads": 1, "rounds": 5, "samples": 5, "block_s": 0.01,
        "scope": "compute", "device": None, "profile": False, "engine_batches": (1,), "engine_builds": 1,
    }  # fmt: skip
    return Settings(**held | changes)


def row(subject: str, ratio: float | None, half_width: float = 0.05, **changes: Any) -> dict[str, Any]:
    speedup = None
    if ratio is not None:
        speedup = {"ratio": ratio, "low": ratio - half_width, "high": ratio + half_width, "baseline": "dense"}
    return {
        "subject": subject, "params": 10**6, "nonzero": 10**6, "macs": 10**8, "macs_ratio": 2.0,
        "latency_s": {"p50": 0.01, "p90": 0.011}, "throughput_per_s": 100.0, "speedup": speedup,
        "stable": True, "reasons": [], "num_rounds": 5, "num_samples": 5, "parity_rel_error": 1e-7,
        "top1_agreement": 1.0, "cause": None, "file": {}, **changes,
    }  # fmt: skip


def document(one: Cell, *rows: dict[str, Any]) -> dict[str, Any]:
    machine = {
        "cpu": "a CPU", "num_cores": 2, "num_usable_cores": 2, "isa": ["avx2"], "os": "Linux",
        "python": "3.11", "packages": {"onnxruntime": "1"},
    }  # fmt: skip
    from dataclasses import asdict

    return {
        "schema": 1, "cell": asdict(one), "state": "done", "machine": machine, "device": "cpu",
        "settings": {"scope": "compute", "threads": 1}, "images": "8 images", "rows": list(rows),
    }  # fmt: skip


def test_a_sweep_has_a_cell_for_every_combination_but_int8_in_torch() -> None:
    cells = cells_of(
        turns=2, networks=[NETWORK], densities=[0.5], runtimes=["ort-cpu", "torch"],
        precisions=["fp32", "int8"], batches=[1, 8],
    )  # fmt: skip
    assert len(cells) == 2 * (2 + 1) * 2
    assert {(one.runtime, one.precision) for one in cells} == {
        ("ort-cpu", "fp32"), ("ort-cpu", "int8"), ("torch", "fp32"),
    }  # fmt: skip
    assert len({one.key for one in cells}) == len(cells)


def test_gpu_runtimes_take_int8_around_zero_and_processors_unsigned() -> None:
    forms = {
        runtime: Cell(turn=1, network=NETWORK, density=0.5, runtime=runtime, precision="int8", batch=1).form
        for runtime in ("ort-cpu", "ort-cuda", "tensorrt")
    }
    assert forms == {"ort-cpu": "int8", "ort-cuda": "int8-symmetric", "tensorrt": "int8-symmetric"}


def test_irregular_and_uniform_widths_meet_the_same_macs() -> None:
    model = NETWORKS[NETWORK].built()
    image = images(NETWORK, 1)[0]
    groups = te.channel_groups(model, image)
    inner = inner_groups(groups)
    assert groups[0].name not in {group.name for group in inner}

    def macs_of(mask: Mask) -> int:
        return count_costs(small_from_mask(model, groups, mask), image).macs

    target = macs_of(Mask({g.name: torch.arange(g.width) < g.width // 2 for g in inner}))
    draws = torch.rand(len(inner), generator=torch.Generator().manual_seed(0)).tolist()
    for shares in ([1.0] * len(inner), [0.5 + share for share in draws]):
        mask = mask_of_cost(model, inner, shares, round_to=1, target_macs=target, macs_of=macs_of)
        assert abs(macs_of(mask) / target - 1) < 0.03
    rounded = mask_of_cost(model, inner, [1.0] * len(inner), round_to=8, target_macs=target, macs_of=macs_of)
    assert {kept % 8 for kept in rounded.kept_widths().values()} == {0}


def test_unstructured_zeros_leave_the_share_of_every_prunable_layer() -> None:
    model = unstructured(NETWORKS[NETWORK].built(), 0.1)
    tensors = dict(model.named_parameters())
    for name in prunable_weights(model):
        share = int(torch.count_nonzero(tensors[name])) / tensors[name].numel()
        assert 0.1 <= share < 0.11, name


def test_a_cell_holds_every_sample_its_parity_and_its_control(tmp_path: Path) -> None:
    measured = measure_cell(tmp_path / "cells", tmp_path / "cache", cell(), settings())
    held = read_cell(tmp_path / "cells", cell())
    assert held is not None
    assert [one["subject"] for one in held["rows"]] == ["dense", "dense-again"]
    assert held["rows"] == json.loads(json.dumps(measured["rows"]))
    for one in held["rows"]:
        assert one["macs_ratio"] == 1.0
        assert one["parity_rel_error"] < 1e-4
        assert one["top1_agreement"] == 1.0
    samples = load_measurements(tmp_path / "cells" / f"{cell().key}.npz")
    assert {name: one.samples_s.shape for name, one in samples.items()} == {
        "dense": (5, 5), "dense-again": (5, 5),
    }  # fmt: skip
    assert is_done(held, settings())
    assert not is_done(held, settings(rounds=6))
    other = {**held, "machine": {**held["machine"], "fingerprint": "another"}}
    assert not is_done(other, settings())


def test_a_failed_cell_is_written_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    cells = [cell(1), cell(2), cell(4)]
    calls: list[int] = []

    def measure(one: Cell) -> dict[str, Any]:
        calls.append(one.batch)
        if one.batch == 2 and calls.count(2) == 1:
            raise DeviceError("out of memory at batch 2")
        made = document(one, row("dense", None))
        (tmp_path / f"{one.key}.json").write_text(json.dumps(made), encoding="utf-8")
        return made

    def run(since_s: float) -> int:
        return run_cells(
            cells, tmp_path, since_s=since_s, measure=measure,
            is_done=lambda held: held is not None and held["state"] == "done",
        )  # fmt: skip

    began_s = time.time()
    assert run(began_s) == START_AFRESH
    held = read_cell(tmp_path, cell(2))
    assert held is not None
    assert (held["state"], held["error"]) == ("failed", "DeviceError: out of memory at batch 2")
    assert run(began_s) == 0  # the same sweep goes on behind it
    assert calls == [1, 2, 4]
    assert run(time.time()) == 0  # a new run tries it again
    assert calls == [1, 2, 4, 2]
    assert read_cell(tmp_path, cell(2))["state"] == "done"  # type: ignore[index]


WORKER = """
import json, os, signal, sys, time
folder, keys = sys.argv[1], sys.argv[2:]
for key in keys:
    path = os.path.join(folder, key + ".json")
    if os.path.exists(path):
        continue
    with open(os.path.join(folder, "current.txt"), "w") as file:
        file.write(key)
    if "_b2_" in key:
        os.kill(os.getpid(), signal.SIGKILL)
    if "_b4_" in key:
        time.sleep(60)
    with open(path, "w") as file:
        json.dump({"schema": 1, "state": "done"}, file)
"""


def test_a_worker_that_dies_or_hangs_costs_its_cell_alone(tmp_path: Path) -> None:
    cells = [cell(1), cell(2), cell(4), cell(8)]
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), *(one.key for one in cells)]
    num_pages: list[int] = []
    watch(command, cells, tmp_path, cell_limit_s=1.5, after=lambda: num_pages.append(1))
    states = {one.batch: read_cell(tmp_path, one) for one in cells}
    assert {batch: held["state"] for batch, held in states.items() if held} == {
        1: "done", 2: "failed", 4: "failed", 8: "done",
    }  # fmt: skip
    assert "SIGKILL" in states[2]["error"]  # type: ignore[index]
    assert "longer than 1.5 s" in states[4]["error"]  # type: ignore[index]
    assert num_pages


def test_overlapping_intervals_and_false_differences_are_counted() -> None:
    first = document(cell(), row("dense", None), row("dense-again", 1.0), row("ticket-r1", 1.5))
    second = document(cell(turn=2), row("dense", None), row("dense-again", 1.2), row("ticket-r1", 1.52))
    num_overlapping, num_all, apart = overlaps([first, second])
    assert (num_overlapping, num_all) == (1, 2)
    assert len(apart) == 1
    assert "dense-again" in apart[0]
    assert called_different([first, second]) == (1, 2)


def test_the_page_tells_ratios_reasons_causes_and_failures(tmp_path: Path) -> None:
    why = {"kind": "floor", "sentence": "a third of the time did not shrink", "evidence": {}}
    loud = row("ticket-r16", 1.9, stable=False, reasons=["busy neighbour: 1.5 cores"], cause=why)
    write_failure(tmp_path, cell(8), "the process was ended by SIGKILL")
    failed = read_cell(tmp_path, cell(8))
    assert failed is not None
    page = page_of([document(cell(), row("dense", None), loud), failed], command="python x", num_cells=3)
    for words in (
        "1 of 3 cells are measured, 1 failed", "1.90x (1.85-1.95) *", "busy neighbour: 1.5 cores", "2.00x",
        "a third of the time did not shrink", "ended by SIGKILL", "avx2", "n = 5 x 5",
    ):  # fmt: skip
        assert words in page


def test_the_figure_draws_every_row_but_the_baseline_and_its_control(tmp_path: Path) -> None:
    why = {"kind": "memory", "sentence": "", "evidence": {}}
    rows = [row("dense", None), row("dense-again", 1.0), row("ticket-r1", 1.5, cause=why)]
    rows += [row(name, 1.4) for name in ("ticket-r8", "uniform-r16", "depgraph-r16", "unstructured-90")]
    found = [document(cell(), *rows), document(cell(turn=2), *rows)]
    points = points_of(found)
    assert [(point.label, point.cause) for point in points][:2] == [("r1", "memory"), ("r8", "unknown")]
    assert len(points) == 5
    svg, png = draw(found, tmp_path / "figure")
    assert svg.read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert draw([], tmp_path / "none") == []
    figure = speedup_against_macs(points, "a machine", "a note")
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"layers bound by memory (1)", "not known: no profile (4)", "a note"} <= told
    written = {text.get_text() for text in figure.axes[0].texts}
    assert {"r1: memory", "r8", "uniform-r16", "depgraph-r16", "unstructured-90"} <= written


def test_two_doublings_below_five_per_cent_are_saturation() -> None:
    assert not is_saturated([100, 104])
    assert is_saturated([100, 104, 108])
    assert not is_saturated([100, 104, 120])
    assert saturated_batch([1, 2, 4, 8, 16], [100, 150, 200, 205, 206]) == 4
    assert saturated_batch([1, 2], [100, 100]) is None


def test_memory_that_would_not_hold_twice_the_batch_is_a_reason() -> None:
    gib = 2**30
    assert memory_reason(2 * gib, 4 * gib, 16 * gib) is None
    reason = memory_reason(2 * gib, 8 * gib, 16 * gib)
    assert reason is not None
    assert "14.0 GiB of 16.0 GiB" in reason


def proof_arguments(tmp_path: Path, device: str) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path, cache=tmp_path / "cache", machine="m", device=device)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_proof_covers_every_runtime_and_ends_with_its_page(tmp_path: Path, device: str) -> None:
    steps = gpu_proof.steps_of(proof_arguments(tmp_path, device))
    words = [" ".join(step.words) for step in steps]
    runtimes = ("torch", "torch-compile", "ort-cpu") if device == "cpu" else (
        "tensorrt", "ort-cuda", "torch", "torch-compile", "torch-cudagraph",
    )  # fmt: skip
    for runtime in runtimes:
        assert any(f"--runtimes {runtime} " in one for one in words), runtime
    assert "--page-only" in words[-1]
    assert any("paper_protocol.py" in one for one in words)
    needs_gpu = [step.environment for step in steps if "pytest" in step.words]
    assert needs_gpu == [{} if device == "cpu" else {"REQUIRE_GPU": "1"}]
    if device == "cuda":
        assert {f"--batches {' '.join(('1', '8', '64', '256'))}" in one for one in words if "tensorrt" in one}


def test_a_step_is_skipped_fails_or_is_ended_with_its_reason(tmp_path: Path) -> None:
    steps = [
        gpu_proof.Step(name="absent", words=("-c", "1"), limit_s=20, needs=("no_such_package",)),
        gpu_proof.Step(name="beside", words=("-c", "print('built')"), limit_s=20, beside=True),
        gpu_proof.Step(name="broken", words=("-c", "raise SystemExit('why it broke')"), limit_s=20),
        gpu_proof.Step(name="slow", words=("-c", "import time; time.sleep(60)"), limit_s=1),
        gpu_proof.Step(name="page", words=("-c", "print('written')"), limit_s=20),
    ]
    outcomes = gpu_proof.run_all(steps, 90, tmp_path, proof_arguments(tmp_path, "cpu"))
    assert {one.name: one.state for one in outcomes} == {
        "absent": "skipped", "beside": "done", "broken": "failed", "slow": "out of time", "page": "done",
    }  # fmt: skip
    page = next(tmp_path.glob("gpu_proof_rehearsal_m_*.md")).read_text(encoding="utf-8")
    for words in ("no_such_package is not installed", "why it broke", "ended after 1 s"):
        assert words in page
