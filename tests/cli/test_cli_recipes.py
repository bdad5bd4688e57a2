"""The verbs of recipes on the command line: exit codes, what goes to which stream, every refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ticket_export.errors import StoreError
from ticket_export.pipeline.torchrun import Place
from ticket_export.report.rows import ExportedFile

Told = tuple[int, str, str]


def test_check_says_ok_on_stdout(tell: Callable[..., Told], recipe: Path) -> None:
    assert tell("check", recipe) == (0, f"{recipe}: ok\n", "")


def test_check_tells_every_problem_of_every_recipe(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = recipe.read_text(encoding="utf-8")
    wrong.write_text(text.replace("epochs: 2", "epcohs: 2").replace("lr: 0.1", "lr: '1'"), encoding="utf-8")
    worse = tmp_path / "worse.yaml"
    worse.write_text(text.replace("levels: 1", "levels: 0"), encoding="utf-8")
    code, out, err = tell("check", wrong, recipe, worse)
    assert code == 2
    assert out == f"{recipe}: ok\n"
    for told in (
        "train.epcohs",
        "did you mean epochs",
        "train.lr",
        "'1'",
        "find.levels",
        "2 of 3 recipes are wrong",
    ):
        assert told in err
    assert "Traceback" not in err


def test_check_takes_overrides(tell: Callable[..., Told], recipe: Path) -> None:
    assert tell("check", recipe, "--set", "train.lr=1e-3")[0] == 0
    code, _, err = tell("check", recipe, "--set", "train.lrr=1e-3")
    assert code == 2
    assert "train.lrr" in err


def test_a_missing_recipe_is_input_and_named(tell: Callable[..., Told], tmp_path: Path) -> None:
    code, _, err = tell("check", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml" in err


def test_plan_lists_the_chain_and_writes_nothing(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path
) -> None:
    code, out, err = tell("plan", recipe, "--out", tmp_path / "out")
    assert code == 0
    stages = [line.split()[0] for line in out.splitlines()[2:]]
    assert stages[0] == "train"
    assert set(stages) == {"train", "find", "shrink", "export", "measure"}
    assert err == f"{len(stages)} steps: 0 done, {len(stages)} to do\n"
    assert not (tmp_path / "out").exists()


def test_plan_looks_into_the_files_that_a_recipe_names(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path
) -> None:
    images = {f"{part}_x": np.zeros((8, 3, 8, 8), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_y": np.arange(8) % 2 for part in ("train", "test")}
    path = tmp_path / "images.npz"
    np.savez(path, **images, **labels)  # type: ignore[arg-type]  # numpy's stub mistakes the names
    words = ("plan", recipe, "--out", tmp_path / "out", "--set", "data.source=arrays")
    assert tell(*words, "--set", f"data.path={path}")[0] == 0
    normalise = ("--set", "data.mean=[0.5]", "--set", "data.std=[1.0]")
    code, out, err = tell(*words, "--set", f"data.path={path}", *normalise)
    assert (code, out) == (2, "")
    assert "data.mean holds 1 value, but the images have 3 channels (3x8x8)" in err
    path.write_bytes(path.read_bytes()[:-30])
    code, out, err = tell(*words, "--set", f"data.path={path}")
    assert (code, out) == (2, "")
    assert f"{path} cannot be read" in err


def test_plan_tries_a_foreign_builder_and_its_prints_are_no_data(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path
) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\ndef make():\n    print('hello')\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))\n",
        encoding="utf-8",
    )
    words = ("plan", recipe, "--out", tmp_path / "out", "--set")
    code, out, err = tell(*words, f"model.builder={net}:make")
    assert code == 0
    assert "hello" not in out
    assert "hello" in err
    code, out, err = tell(*words, f"model.builder={net}:take")
    assert (code, out) == (2, "")
    assert "there is no function 'take'" in err


def test_more_threads_than_cores_are_refused_before_anything_is_trained(
    tell: Callable[..., Told], recipe: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    for words in (
        ("run", recipe, "--out", tmp_path / "out", "--set", "measure.threads=1000"),
        ("plan", recipe, "--out", tmp_path / "out", "--set", "measure.threads=1000"),
        ("measure", *models, "--threads", "1000"),
    ):
        code, out, err = tell(*words)
        assert (code, out) == (2, "")
        assert "threads is 1000, but this process may use" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("runtime", ["ort-cuda", "tensorrt"])
def test_a_runtime_that_is_not_installed_is_told_before_anything_is_trained(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ticket_export.runtime.offers.installed", lambda name: None)
    for verb in ("run", "plan"):
        words = (verb, recipe, "--out", tmp_path / "out", "--set", f"measure.runtimes=[{runtime}]")
        code, out, err = tell(*words)
        assert (code, out) == (3, "")
        assert f"runtime '{runtime}' needs onnx and " in err
        assert "pip install onnx; pip" in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_stage_is_input(tell: Callable[..., Told], recipe: Path, tmp_path: Path) -> None:
    code, _, err = tell("run", recipe, "--until", "finnd", "--out", tmp_path / "out")
    assert code == 2
    assert "finnd" in err


def test_an_interrupted_run_says_how_to_go_on(
    tell: Callable[..., Told], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ticket_export.pipeline.run", interrupted)
    code, out, err = tell("run", recipe)
    assert (code, out) == (130, "")
    assert "the same command goes on from here" in err


def test_an_error_is_told_with_its_hint_and_its_code(
    tell: Callable[..., Told], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("out/store: the disk is full", hint="free some space")

    monkeypatch.setattr("ticket_export.pipeline.run", full)
    assert tell("run", recipe) == (3, "", "error: out/store: the disk is full\nhint: free some space\n")


def test_a_run_ends_with_its_summary_the_report_and_the_files_to_measure(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = ("dense", "ticket@1", "ticket@2", "random@2")
    files = [
        ExportedFile(
            subject=subject,
            replicate=replicate,
            precision="fp32",
            runtime=None,
            path=f"export/{subject}.onnx",
            file_bytes=1000,
            parity_rel_error=1e-7,
        )
        for subject in subjects
        for replicate in (0, 1)
    ]

    def run(*_: object, **__: object) -> SimpleNamespace:
        print("printed by a builder")
        return SimpleNamespace(summary="Faster.", subjects=subjects, exported=files)

    monkeypatch.setattr("ticket_export.pipeline.run", run)
    code, out, err = tell("run", recipe, "--out", tmp_path)
    assert code == 0
    assert err == "printed by a builder\n0 steps made, 0 skipped, 11 made by another run\n"
    assert out.splitlines() == [
        "Faster.",
        f"report: {tmp_path / 'runs' / 'tiny' / 'report.html'}",
        f"dense: {tmp_path / 'store' / 'export' / 'dense.onnx'}",
        f"ticket@2: {tmp_path / 'store' / 'export' / 'ticket@2.onnx'}",
    ]


def test_progress_goes_to_stderr_a_line_per_step(
    tell: Callable[..., Told], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, emit: Callable[[dict[str, Any]], None], **__: object) -> None:
        step = {"stage": "train", "subject": "dense", "replicate": 0, "key": "0" * 12}
        emit(step | {"event": "skip", "subject": "[bold]"})
        emit(step | {"event": "start"})
        emit(
            step
            | {"event": "progress", "epoch": 0.5, "epochs": 2, "loss": 1.0, "accuracy": 0.5, "eta_s": 3.0}
        )
        emit(step | {"event": "progress", "round": 3, "rounds": 10})
        emit(step | {"event": "done", "seconds": 4.25})
        for _ in range(2):  # told by each process that looks
            emit(step | {"event": "damaged", "reason": "weights.safetensors: sha256 differs"})

    monkeypatch.setattr("ticket_export.pipeline.run", run)
    code, out, err = tell("run", recipe)
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        " 2/11 train dense #0, 4.2 s",
        "damaged, made again: weights.safetensors: sha256 differs",
        "1 steps made, 1 skipped",
    ]


def test_under_torchrun_the_first_process_alone_says_anything(
    tell: Callable[..., Told], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    followed: list[Place] = []

    def follow(place: Place) -> None:
        print("printed by a builder")
        followed.append(place)

    monkeypatch.setattr("ticket_export.pipeline.together.follow", follow)
    assert tell("run", recipe, "--set", "train.epcohs=3") == (0, "", "")  # the first one tells that
    assert followed == [Place(rank=1, local_rank=1, num_processes=2, num_here=2)]


def test_under_torchrun_one_worker_is_the_default(
    tell: Callable[..., Told], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ticket_export.pipeline.run", lambda *_, workers, **__: asked.append(workers))
    monkeypatch.setattr("ticket_export.store.machine.num_usable_cores", lambda: 4)
    tell("run", recipe)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    tell("run", recipe)
    tell("run", recipe, "--workers", "3")  # which the pipeline refuses
    assert asked == [4, 1, 3]


def test_show_names_a_key_that_is_not_there(tell: Callable[..., Told], tmp_path: Path) -> None:
    code, out, err = tell("show", "abc123", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "'abc123'" in err
