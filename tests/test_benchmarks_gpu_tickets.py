"""The benchmark of tickets on a GPU: its recipes, its page from scripted reports, and how it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu_tickets as benchmark
import step_processes
from tickets.page import page
from tickets.paper import PRINTED
from tickets.reading import Work, num_epochs_left
from tickets.recipes import FULL, TOY, Run, Size, runs_of

from ticket_export.channels.mask import ElementMask
from ticket_export.pipeline.networks import ELEMENTS_FILE
from ticket_export.recipe.load import load_recipe

RUNTIMES = ["ort-cuda", "torch-cudagraph"]
MACHINE = {"cpu": "EPYC", "num_usable_cores": 16, "os": "Linux", "python": "3.11", "packages": {"torch": "2"}}


def row(subject: str, accuracy: float, *, batch: int = 1, ratio: float | None = None) -> dict[str, Any]:
    speedup = None if ratio is None else {"ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio}
    return {
        **{"subject": subject, "replicate": 0, "accuracy": accuracy, "precision": "fp32", "batch": batch},
        **{"runtime": "ort-cuda", "latency_s": {"p50": 0.002}, "speedup": speedup, "stable": batch == 1},
        **{"param_density": 0.7, "mac_density": 0.6, "reasons": []},
    }


def report(*rows: dict[str, Any], costs: Mapping[str, float | None] | None = None) -> dict[str, Any]:
    search = [{"subject": s, "time_ratio": cost, "macs_ratio": 3.0} for s, cost in (costs or {}).items()]
    return {"rows": list(rows), "search_cost": search, "machine": MACHINE}


def told(part: str, seed: int, found: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any]:
    length = part.partition("_")[0]
    return {
        **{"name": f"{part}_seed{seed}", "part": part, "seed": seed, "num_results": 9, "num_done": 9},
        **{"num_epochs": 160 if length == "full" else 30, "finished": found is not None, "epochs": None},
        **{"report": found, "num_test_images": 10_000, "remaining": {}, "state": "finished", "why": ""},
        **changes,
    }


def document(*runs: Mapping[str, Any], rehearsal: bool = False) -> dict[str, Any]:
    held = {"schema": 1, "command": "python benchmarks/gpu_tickets.py", "rehearsal": rehearsal}
    return {**held, "machine": MACHINE, "runs": list(runs)}


def cells(text: str, heading: str, table: int = 0) -> list[list[str]]:
    """Return the rows of one table of a section, the head first."""
    section = text.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    tables = [block for block in section.split("\n\n") if block.startswith("|")]
    lines = [line for line in tables[table].splitlines() if not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_recipe_loads_as_it_is_written_and_has_the_papers_settings(tmp_path: Path) -> None:
    runs = runs_of(FULL, Path("cifar10.npz"), RUNTIMES)
    assert [run.name for run in runs][:4] == [
        *("epoch_seed0", "epoch_compiled_seed0", "short_layer_seed0", "short_layer_seed1"),
    ]
    assert len(runs) == 16
    for run in [*runs, *runs_of(TOY, Path("toy.npz"), ["ort-cpu"])]:
        path = tmp_path / f"{run.name}.yaml"
        path.write_text(benchmark.yaml_from_recipe(run.recipe), encoding="utf-8")
        assert load_recipe(path) == run.recipe
        assert run.recipe.replicates == 1
    by_name = {run.name: run.recipe for run in runs}
    short, full = by_name["short_layer_seed2"], by_name["full_coupled_seed0"]
    assert (short.seed, short.train.epochs, short.train.milestones, short.find.rewind_epoch) == (
        *(2, 30, (15, 22), 2),
    )
    assert (full.train.epochs, full.train.milestones, full.find.rewind_epoch) == (160, (80, 120), 8)
    assert (short.train.precision, short.train.channels_last, short.train.compile) == ("bf16", True, False)
    assert by_name["epoch_compiled_seed0"].train.compile
    assert short.model_dump()["find"] | {"scope": "layer", "round_to": 1, "levels": 5} == {
        **short.model_dump()["find"],
        **{"method": "refill", "drop_fraction": 0.2, "control_levels": "every", "controls": ("reinit",)},
    }
    coupled = by_name["short_coupled_seed0"].model_dump()["find"]
    assert coupled["controls"] == ("random", "uniform", "reinit", "depgraph")
    assert (coupled["scope"], coupled["round_to"], coupled["control_levels"]) == ("coupled", 8, "every")
    blocks = by_name["regroup_seed0"].model_dump()["find"]
    assert (blocks["num_groups"], blocks["min_rows"], blocks["levels"]) == (8, 16, 5)
    assert by_name["channel_imp_seed0"].find.method == "channel_imp"
    assert short.measure.batches == (1, 64, 256)
    assert short.export.precisions == ("fp32", "fp16")
    assert short.measure.runtimes == tuple(RUNTIMES)


def test_epochs_that_runs_share_are_counted_once(tmp_path: Path) -> None:
    work = work_of(tmp_path, FULL, ["short_layer", "short_coupled", "full_layer"])
    seen: set[str] = set()
    left = {run.name: num_epochs_left(work, run, seen) for run in work.runs}
    dense, rewound, fresh = 30, 9 * 28, 5 * 30  # four of the chain and five tickets; re-initialised ones
    assert left["short_layer_seed0"] == dense + rewound + fresh
    assert left["short_coupled_seed0"] == 15 * 28 + 10 * 30  # tickets, random, depgraph; uniform, reinit
    assert left["full_layer_seed0"] == 160 + 9 * 152 + 5 * 160
    publish(work, work.runs[0])
    assert num_epochs_left(work, work.runs[0], set()) == 0


def test_the_page_holds_the_papers_columns_beside_the_measured_ones() -> None:
    runs = [
        told(
            "short_layer",
            seed,
            report(
                row("dense", 0.940 + 0.001 * seed),
                row("ticket@1", 0.941 + 0.001 * seed, ratio=1.25),
                row("reinit@1", 0.936 + 0.001 * seed, ratio=1.2),
                row("ticket@1", 0.0, batch=64, ratio=2.0),
                row("dense", 0.0, batch=64),
                costs={"ticket@1": 2.0 + seed},
            ),
            remaining={"ticket@1": 0.80 + 0.01 * seed},
        )
        for seed in range(3)
    ]
    text = page(document(*runs))
    [head, line] = cells(text, "short_layer")
    assert dict(zip(head, line, strict=True)) == {
        "level": "1",
        "paper: remaining": "80.29 %",
        "ours: mask": "81.00 %",
        "ours: weights": "70.00 %",
        "paper: ticket": "94.14 %",
        "ours: ticket (95 %)": "94.20 % (93.95-94.45, n = 3)",  # 4.303 * 0.1 / sqrt(3) = 0.25
        "paper: re-init": "94.04 %",
        "ours: re-init (95 %)": "93.70 % (93.45-93.95, n = 3)",
        "paper: gap": "+0.10",
        "ours: gap, points (95 %)": "+0.50 (+0.49 to +0.51), wins",
    }
    against = cells(text, "short_layer", 1)
    assert against[0][-2:] == ["less dense", "less reinit"]
    assert against[1][3:5] == ["60.00 %", "+0.10 (+0.09 to +0.11), wins"]
    assert cells(text, "short_layer", 2)[1:] == [
        ["ort-cuda", "fp32", "1", "2.00 ms", "1.25x (1.12-1.38)"],
        ["ort-cuda", "fp32", "64", "2.00 ms *", "2.00x (1.80-2.20) *"],
    ]
    assert cells(text, "short_layer", 3)[1] == ["ticket@1", "3.00 (2.00-4.00, n = 3)", "3.00 (n = 3)"]
    assert cells(text, "Dense")[1] == ["30", "3", "94.10 % (93.85-94.35, n = 3)", "-"]
    assert "2022 (arXiv 2202.04736), tables A3 and A4" in text
    assert "All runs are finished." in text
    assert [printed.remaining for printed in PRINTED["refill"]] == [80.29, 64.49, 51.43, 41.24, 32.97]


@pytest.mark.parametrize(("accuracy", "seconds", "word"), [(0.945, 3.0, "met"), (0.944, 3.1, "not met")])
def test_wishes_are_met_or_not_by_what_was_measured(accuracy: float, seconds: float, word: str) -> None:
    timed = {"seconds": [9.0, seconds, 2.5], "device": "cuda:0", "on": "NVIDIA H200"}
    runs = [
        told("epoch", 0, None, epochs=timed, finished=True),
        told("full_layer", 0, report(row("dense", accuracy), row("ticket@1", 0.9, ratio=1.0))),
    ]
    text = page(document(*runs))
    assert cells(text, "Seconds per epoch")[1] == [
        *(
            "the dense training",
            f"{seconds:.2f} s",
            f"9.00, {seconds:.2f}, 2.50",
            "cuda:0 (NVIDIA H200)",
            word,
        ),
    ]
    assert cells(text, "Dense")[1] == ["160", "1", f"{100 * accuracy:.2f} % (n = 1)", word]
    assert "n = 1), not resolved" not in text
    assert cells(text, "full_layer")[1][7:] == ["-", "+0.10", "-"]  # no re-initialised one was measured
    rehearsed = page(document(*runs, rehearsal=True))
    assert cells(rehearsed, "Dense")[1][-1] == "not asked of a rehearsal"
    assert "shows that the command works, and nothing about tickets" in rehearsed


def test_what_is_not_finished_is_named_and_has_no_numbers() -> None:
    unfinished = told(
        "short_layer", 0, None, num_done=4, state="failed", why="exit code 1; MeasureError: no CUDA"
    )
    text = page(document(unfinished))
    assert "Not finished, and so not on this page: short_layer_seed0. The same command goes on" in text
    assert cells(text, "What is there")[1] == [
        *("short_layer_seed0", "failed", "4 of 9", "exit code 1; MeasureError: no CUDA"),
    ]
    assert "94.14" not in text
    assert "## Dense" not in text


def work_of(folder: Path, size: Size, only: Sequence[str]) -> Work:
    data = folder / "cifar10.npz"
    data.write_bytes(b"images")
    return Work(folder=folder / "work", runs=runs_of(size, data, ["ort-cpu"], only))


def files_of(work: Work, run: Run, *, until: int | None = None) -> dict[str, str]:
    """Return the files of a run that is done: path -> text."""
    files, nodes = {}, work.nodes(run)
    for node in nodes[:until]:
        facts: dict[str, Any] = {"num_images": 100, "device": "cpu"}
        facts["history"] = [{"seconds": second} for second in (5.0, 1.0, 2.0)]
        manifest = {"facts": facts, "machine": MACHINE}
        files[f"store/{node.stage}/{node.key}/manifest.json"] = json.dumps(manifest)
    if until is None and not run.part.only_dense:
        rows = [row("dense", 0.5), row("ticket@1", 0.6, ratio=1.5)]
        folder = f"runs/{run.name}"
        files[f"{folder}/report.json"] = json.dumps({**report(*rows), "files": []})
        keys = [f"{node.stage}/{node.key}" for node in nodes]
        files[f"{folder}/run.json"] = json.dumps({"results": keys})
    return files


def publish(work: Work, run: Run, *, until: int | None = None) -> None:
    for name, text in files_of(work, run, until=until).items():
        path = work.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_only_finished_reports_of_just_these_results_are_read(tmp_path: Path) -> None:
    work = work_of(tmp_path, TOY, ["short_layer"])
    [run] = work.runs
    assert work.told(run)["num_done"] == 0
    publish(work, run, until=2)
    found = work.told(run)
    assert (found["num_done"], found["finished"], found["report"]) == (2, False, None)
    publish(work, run)
    [finder] = [n for n in work.nodes(run) if (n.stage, n.subject) == ("find", "ticket@1")]
    keep = ElementMask({"conv.weight": torch.tensor([True, True, True, False])})
    keep.save(work.folder / "store" / "find" / finder.key / ELEMENTS_FILE)
    found = work.told(run)
    assert found["finished"]
    assert found["remaining"] == {"ticket@1": 0.75}
    assert found["num_test_images"] == 100
    assert found["epochs"] == {"seconds": [5.0, 1.0, 2.0], "device": "cpu", "on": "EPYC"}
    assert set(found["report"]) == {"rows", "search_cost", "machine"}
    (tmp_path / "cifar10.npz").write_bytes(b"other images")
    assert not Work(folder=work.folder, runs=work.runs).is_finished(run)


SCRIPT = """
import json, sys, time
from pathlib import Path
name, work = Path(sys.argv[1]).stem, Path(sys.argv[3])
with (work / "started.txt").open("a") as log:
    log.write(name + "\\n")
scripted = json.loads((work / "scripted.json").read_text())[name]
if "fails" in scripted:
    raise SystemExit(scripted["fails"])
stopped = work / f"{name}.stopped"
if scripted.get("waits") and not stopped.exists():
    try:
        stopped.touch()
        time.sleep(60)
    except KeyboardInterrupt:
        raise SystemExit(130)
for path, text in scripted["files"].items():
    (work / path).parent.mkdir(parents=True, exist_ok=True)
    (work / path).write_text(text)
"""
Pieces = Callable[..., "str | int | None"]


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pieces:
    """Run the benchmark for a piece with scripted runs, and return its exit code."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setattr(benchmark, "PROGRAM", (str(script),))
    monkeypatch.setattr(step_processes, "LEAST_S", 0.1)

    def piece(minutes: float, only: Sequence[str], **scripted: dict[str, Any]) -> str | int | None:
        work = work_of(tmp_path, TOY, only)
        work.folder.mkdir(exist_ok=True)
        told_of = {
            run.name: {"files": files_of(work, run), **scripted.get(run.part.name, {})} for run in work.runs
        }
        (work.folder / "scripted.json").write_text(json.dumps(told_of), encoding="utf-8")
        places = ["--data", str(tmp_path / "cifar10.npz"), "--work", str(work.folder), "--machine", "here"]
        words = [*places, "--out", str(tmp_path / "results"), "--device", "cpu", "--minutes", str(minutes)]
        monkeypatch.setattr(sys, "argv", ["gpu_tickets.py", *words, "--only", *only])
        with pytest.raises(SystemExit) as stopped:
            benchmark.main()
        return stopped.value.code

    return piece


def page_in(folder: Path) -> str:
    [path] = (folder / "results").glob("gpu_tickets_rehearsal_here_*.md")
    return path.read_text(encoding="utf-8")


def test_a_piece_that_is_used_up_says_that_the_same_command_goes_on(
    tmp_path: Path, pieces: Pieces, capsys: pytest.CaptureFixture[str]
) -> None:
    started, parts = tmp_path / "work" / "started.txt", ("channel_imp", "regroup")
    assert pieces(3 / 60, parts, channel_imp={"waits": True}) == 130
    told = capsys.readouterr().err
    assert "the minutes are used up; the same command goes on from here: 2 of 2 runs are not finished" in told
    assert started.read_text().split() == ["toy_channel_imp_seed0"]
    named = "Not finished, and so not on this page: toy_channel_imp_seed0, toy_regroup_seed0."
    assert named in page_in(tmp_path)
    assert pieces(1, parts, channel_imp={"waits": True}) == 0
    assert started.read_text().split() == [*["toy_channel_imp_seed0"] * 2, "toy_regroup_seed0"]
    text = page_in(tmp_path)
    assert "All runs are finished." in text
    assert cells(text, "regroup")[1][5] == "60.00 % (n = 1)"
    assert pieces(1, parts) == 0
    assert len(started.read_text().split()) == 3  # nothing is started again


def test_a_run_that_fails_is_told_and_the_next_one_goes_on(
    tmp_path: Path, pieces: Pieces, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("epoch", "channel_imp", "regroup")
    assert pieces(1, parts, channel_imp={"fails": "MeasureError: no CUDA"}) == 1
    assert "toy_channel_imp_seed0 failed: exit code 1\nMeasureError: no CUDA" in capsys.readouterr().err
    states = {line[0]: line[1:] for line in cells(page_in(tmp_path), "What is there")[1:]}
    # three results are those of regroup too: the dense training among them
    assert states["toy_channel_imp_seed0"] == ["failed", "3 of 10", "exit code 1; MeasureError: no CUDA"]
    assert states["toy_regroup_seed0"][0] == states["toy_epoch_seed0"][0] == "finished"


def test_networks_are_timed_on_the_gpu_where_its_runtimes_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"torch": "2", "onnx": "1", "onnxruntime": "1"}
    monkeypatch.setattr("ticket_export.runtime.offers.installed", installed.get)
    assert benchmark.runtimes_here("cuda") == ["torch-cudagraph"]
    assert benchmark.runtimes_here("cpu") == ["ort-cpu"]
    installed["onnxruntime-gpu"] = "1"
    assert benchmark.runtimes_here("cuda:1") == ["ort-cuda", "torch-cudagraph"]
    installed.clear()
    assert benchmark.runtimes_here("cuda") == ["ort-cpu"]
