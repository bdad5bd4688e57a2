"""The command line: exit codes, what goes to which stream, and every refusal with its value."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ticket_export.cli import main
from ticket_export.errors import StoreError
from ticket_export.report.rows import ROW_FIELDS, ExportedFile

RECIPE = """
name: tiny
seed: 0
replicates: 1
data: {source: digits, holdout_fraction: 0.2}
model: {builder: "zoo:resnet20"}
train: {epochs: 2, batch: 64, lr: 0.1}
find: {method: refill, scope: coupled, levels: 1, drop_fraction: 0.5, rewind_epoch: 0}
shrink: {}
export: {targets: [onnx], precisions: [fp32]}
measure: {runtimes: [ort-cpu], batches: [1], scope: compute, threads: 1, rounds: 5, samples: 5}
"""

Told = tuple[int, str, str]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str | Path) -> Told:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        told = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, told.out, told.err

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def _model(path: Path, *, features: int = 4) -> Path:
    """Write relu(x), [N, features] -> [N, features]."""
    node = helper.make_node("Relu", ["input"], ["logits"])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", features])
        for name in ("input", "logits")
    ]
    graph = helper.make_graph([node], "relu", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return _model(tmp_path / "dense.onnx"), _model(tmp_path / "ticket.onnx")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_python_m_is_the_same_command() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "ticket_export", "--version"], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "ticket-export 0.1.0\n"


def test_help_names_every_verb(tell: Callable[..., Told]) -> None:
    code, out, _ = tell("--help")
    assert code == 0
    verbs = [
        line.split()[0]
        for line in out.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert verbs == ["check", "plan", "run", "show", "measure", "shrink", "doctor"]


@pytest.mark.parametrize("words", ["'--help'", "'check', RECIPE", "'plan', RECIPE", "'doctor', '--help'"])
def test_answering_loads_no_torch_no_runtime_and_no_figures(words: str, recipe: Path) -> None:
    code = (
        f"import sys\nRECIPE = {str(recipe)!r}\nfrom ticket_export.cli import main\n"
        f"try:\n    main([{words}])\nexcept SystemExit as stopped:\n    assert stopped.code == 0\n"
        "heavy = {'torch', 'onnxruntime', 'matplotlib', 'sklearn', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    told = _python(code)
    assert told.returncode == 0, told.stderr


def test_an_unknown_verb_is_input(tell: Callable[..., Told]) -> None:
    code, out, err = tell("prune")
    assert (code, out) == (2, "")
    assert "prune" in err


def test_check_says_ok_on_stdout(tell: Callable[..., Told], recipe: Path) -> None:
    assert tell("check", recipe) == (0, f"{recipe}: ok\n", "")


def test_check_tells_every_problem_of_every_recipe(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(RECIPE.replace("epochs: 2", "epcohs: 2").replace("lr: 0.1", "lr: '1'"), encoding="utf-8")
    worse = tmp_path / "worse.yaml"
    worse.write_text(RECIPE.replace("levels: 1", "levels: 0"), encoding="utf-8")
    code, out, err = tell("check", wrong, recipe, worse)
    assert code == 2
    assert out == f"{recipe}: ok\n"
    for text in (
        "train.epcohs",
        "did you mean epochs",
        "train.lr",
        "'1'",
        "find.levels",
        "2 of 3 recipes are wrong",
    ):
        assert text in err
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
        "from torch import nn\ndef make():\n    print('hello')\n    return nn.Linear(2, 2)\n",
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
        ExportedFile(subject=subject, replicate=replicate, precision="fp32", path=f"export/{subject}.onnx")
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


def test_show_names_a_key_that_is_not_there(tell: Callable[..., Told], tmp_path: Path) -> None:
    code, out, err = tell("show", "abc123", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "'abc123'" in err


def test_measure_prints_the_contracts_rows_as_json(
    tell: Callable[..., Told], models: tuple[Path, Path]
) -> None:
    code, out, _ = tell("measure", *models, "--rounds", "5", "--samples", "5", "--batch", "1,3", "--json")
    assert code in (0, 1)  # 1: this machine is busy, and the rows are there all the same
    document = json.loads(out)
    assert list(document) == ["schema", "machine", "rows"]
    assert [(row["subject"], row["batch"]) for row in document["rows"]] == [
        ("dense", 1),
        ("ticket", 1),
        ("dense", 3),
        ("ticket", 3),
    ]
    assert {tuple(sorted(row)) for row in document["rows"]} == {tuple(sorted(ROW_FIELDS))}
    assert (code == 1) == any(not row["stable"] for row in document["rows"])
    assert [row["speedup"] is None for row in document["rows"]] == [True, False, True, False]
    assert document["rows"][1]["speedup"]["baseline"] == "dense"
    assert document["rows"][1]["accuracy"] is None


def test_measure_takes_names_and_the_same_file_twice(
    tell: Callable[..., Told], models: tuple[Path, Path]
) -> None:
    dense, ticket = models
    code, out, _ = tell("measure", f"a={dense}", dense, dense, ticket, "--rounds", "5", "--samples", "5")
    assert code in (0, 1)
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["a", "dense", "dense-2", "ticket"]


def test_an_unstable_measurement_is_printed_explained_and_exits_1(
    tell: Callable[..., Told], models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scripted:
        machine: dict[str, Any] = {}  # noqa: RUF012 - never written
        rows = [dict.fromkeys(ROW_FIELDS)]  # noqa: RUF012

    row = Scripted.rows[0]
    row |= {
        "subject": "dense",
        "runtime": "ort-cpu",
        "batch": 1,
        "stable": False,
        "reasons": ["rounds drift by 9 %"],
    }
    monkeypatch.setattr("ticket_export.measure.compare.compare", lambda *_, **__: Scripted)
    code, out, err = tell("measure", *models, "--json")
    assert code == 1
    assert json.loads(out)["rows"][0]["reasons"] == ["rounds drift by 9 %"]
    assert "unstable: dense, ort-cpu, batch 1: rounds drift by 9 %" in err


def test_unequal_models_are_input(
    tell: Callable[..., Told], models: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = _model(tmp_path / "wide.onnx", features=7)
    code, out, err = tell("measure", models[0], wide, "--rounds", "5", "--samples", "5")
    assert (code, out) == (2, "")
    assert "4" in err
    assert "7" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("none.onnx",), "none.onnx"),
        (("{dense}", "--batch", "1,zero"), "'1,zero'"),
        (("{dense}", "--batch", "0"), "'0'"),
        (("{dense}", "--batch", ""), "''"),
        (("{dense}", "--batch", "1,4,1"), "--batch: 1 is given twice"),
        (("{dense}", "--runtime", "ort-cpu,ort-cpu"), "--runtime: ort-cpu is given twice"),
        (("{dense}", "--runtime", "ort-cpu,tensorflow"), "'tensorflow' is not one of ort-cpu, torch"),
        (("a=",), "'a=' names no file"),
        (("/",), "/: a folder"),
        (("{dense}", "--runtime", "ort-gpu"), "ort-gpu"),
        (("{dense}", "--runtime", ","), "','"),
        (("{dense}", "--rounds", "4"), "4"),
        (("{dense}", "--scope", "kernel"), "kernel"),
        (("a={dense}", "a={dense}"), "'a'"),
    ],
)
def test_measure_refuses_wrong_input_with_its_value(
    words: tuple[str, ...], value: str, tell: Callable[..., Told], models: tuple[Path, Path]
) -> None:
    code, out, err = tell("measure", *(word.replace("{dense}", str(models[0])) for word in words))
    assert (code, out) == (2, "")
    assert value in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("--input", "3x32x32"), "'3x32x32'"),
        (("--input", "1x3x32xbig"), "'1x3x32xbig'"),
        (("--input", "1x3x0x32"), "'1x3x0x32'"),
        (("--input", "1x3x32x32", "--arg", "shortcut"), "'shortcut'"),
    ],
)
def test_shrink_refuses_wrong_input_with_its_value(
    words: tuple[str, ...], value: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    code, out, err = tell("shrink", "zoo:resnet20", "--weights", "w.npz", "--out", tmp_path / "b", *words)
    assert (code, out) == (2, "")
    assert value in err
    assert not (tmp_path / "b").exists()


def test_shrink_names_weights_that_are_not_there(tell: Callable[..., Told], tmp_path: Path) -> None:
    missing = tmp_path / "none.npz"
    code, out, err = tell(
        "shrink", "zoo:resnet20", "--weights", missing, "--input", "1x3x32x32", "--out", tmp_path / "b"
    )
    assert (code, out) == (2, "")
    assert str(missing) in err


NET = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )
"""


def test_shrink_saves_a_smaller_network_that_computes_the_same(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    import onnxruntime
    import torch

    import ticket_export as te

    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    net = scope["net"]().eval()
    with torch.no_grad():
        net[0].weight[5:] = 0.0  # three filters that emit their bias alone
        net[0].bias[5:] = torch.tensor([0.5, -0.5, 0.25])
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
    out = tmp_path / "small"
    code, told, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.npz"),
        *("--input", "1x3x8x8", "--out", out, "--onnx"),
    )
    assert code == 0, err
    num_dense = sum(parameter.numel() for parameter in net.parameters())
    num_kept = int(
        next(line for line in told.splitlines() if line.startswith("weights")).split()[2].replace(",", "")
    )
    assert num_kept < num_dense
    origin = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["origin"]
    assert origin == {"builder": f"{tmp_path / 'net.py'}:net", "args": {}, "input_shapes": [[3, 8, 8]]}
    small = te.load_bundle(out, scope["net"]())
    assert sum(parameter.numel() for parameter in small.parameters()) == num_kept
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = net(images).detach().numpy()
    logits = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"input": images.numpy()})[0]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(small.eval()(images).detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_bundle_that_cannot_be_written_is_told(tell: Callable[..., Told], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("print('hello')\n" + NET, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    np.savez(tmp_path / "w.npz", **{n: tensor.numpy() for n, tensor in scope["net"]().state_dict().items()})
    taken = tmp_path / "taken"
    taken.touch()
    code, out, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.npz"),
        *("--input", "1x3x8x8", "--out", taken),
    )
    assert (code, out) == (3, "")
    assert err.startswith("hello\n")  # what a builder prints is no data
    assert str(taken) in err
    assert "choose another folder with --out" in err


def test_doctor_lists_machine_and_packages(tell: Callable[..., Told]) -> None:
    code, out, _ = tell("doctor")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["onnxruntime"][0] == "all"
    assert rows["onnxruntime"][1][0].isdigit()
    assert rows["polygraphy"][0] == "[tensorrt]"
    assert "cpu" in rows


def test_doctor_exits_3_when_a_needed_package_is_missing(
    tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def version(name: str, *, found: Callable[[str], str] = metadata.version) -> str:
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)
    code, _, err = tell("doctor")
    assert code == 3
    assert "not installed: accelerate" in err
    assert "hint: pip install accelerate" in err
