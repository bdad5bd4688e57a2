"""`measure` on the command line: what it prints, its exit codes, and every refusal with its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ticket_export.errors import DeviceError
from ticket_export.measure.compare import compare
from ticket_export.measure.measurement import load_measurements
from ticket_export.report.rows import ROW_FIELDS

Told = tuple[int, str, str]


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
    tell: Callable[..., Told], models: tuple[Path, Path], relu_model: Callable[..., Path]
) -> None:
    wide = relu_model("wide", features=7)
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
        (("{dense}", "--runtime", "ort-cpu,tensorflow"), "'tensorflow' is not one of ort-cpu, ort-cuda, "),
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


def test_why_prints_a_sentence_and_the_layers_behind_the_table(
    tell: Callable[..., Told], models: tuple[Path, Path]
) -> None:
    code, out, err = tell("measure", *models, "--rounds", "5", "--samples", "5", "--why")
    assert code in (0, 1)
    lines = out.splitlines()
    assert lines[4] == ""  # head, rule, two models
    assert lines[5].startswith("ticket, ort-cpu, fp32, batch 1: ")
    assert "profiling the layers, apart from the timing" in err


def test_why_adds_causes_to_the_document_and_nothing_else(
    tell: Callable[..., Told], models: tuple[Path, Path]
) -> None:
    _, out, _ = tell("measure", *models, "--rounds", "5", "--samples", "5", "--why", "--json")
    document = json.loads(out)
    assert list(document) == ["schema", "machine", "rows", "causes"]
    assert {tuple(sorted(row)) for row in document["rows"]} == {tuple(sorted(ROW_FIELDS))}
    (cause,) = document["causes"]
    assert (cause["subject"], cause["runtime"], cause["batch"]) == ("ticket", "ort-cpu", 1)
    assert set(cause) >= {"kind", "sentence", "evidence"}


def test_raw_keeps_every_timing_in_one_file_per_cell(
    tell: Callable[..., Told], models: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ("measure", *models, "--rounds", "5", "--samples", "6")
    tell(*words, "--raw", tmp_path / "one.npz")
    (shape,) = {m.samples_s.shape for m in load_measurements(tmp_path / "one.npz").values()}
    assert shape == (5, 6)
    tell(*words, "--batch", "1,3", "--raw", tmp_path / "two.npz")
    for batch in (1, 3):
        stored = load_measurements(tmp_path / f"two_ort-cpu_{batch}.npz")
        assert [(name, m.batch) for name, m in stored.items()] == [("dense", batch), ("ticket", batch)]
    assert not (tmp_path / "two.npz").exists()


@pytest.mark.parametrize(("file", "words"), [("t.json", "not named .npz"), ("no/t.npz", "no is no folder")])
def test_raw_is_refused_before_anything_is_timed(
    file: str, words: str, tell: Callable[..., Told], models: tuple[Path, Path], tmp_path: Path
) -> None:
    code, out, err = tell("measure", *models, "--raw", tmp_path / file)
    assert (code, out) == (2, "")
    assert words in err
    assert "timing" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeviceError("out of memory at batch 8"), DeviceError.exit_code), (KeyboardInterrupt(), 130)],
)
@pytest.mark.parametrize("form", ["table", "json"])
def test_a_cell_that_fails_leaves_the_finished_ones_printed(
    error: BaseException,
    code: int,
    form: str,
    tell: Callable[..., Told],
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = compare

    def failing(*arguments: Any, batch: int, **options: Any) -> Any:
        if batch == 8:
            raise error
        return real(*arguments, batch=batch, **options)

    monkeypatch.setattr("ticket_export.measure.compare.compare", failing)
    words = ("--rounds", "5", "--samples", "5", "--batch", "1,8,16", *(["--json"] if form == "json" else []))
    told, out, err = tell("measure", *models, *words)
    assert told == code
    assert "batch 16" not in err
    if form == "json":
        assert [row["batch"] for row in json.loads(out)["rows"]] == [1, 1]
    else:
        assert [line.split()[0] for line in out.splitlines()[2:]] == ["dense", "ticket"]


def test_the_runtimes_of_modules_are_refused_before_anything_is_timed(
    tell: Callable[..., Told], models: tuple[Path, Path]
) -> None:
    code, out, err = tell("measure", *models, "--runtime", "ort-cpu,torch-compile")
    assert (code, out) == (2, "")
    assert "'torch-compile' runs modules, and a file is none" in err
    assert "measure.runtimes" in err
    assert "timing" not in err


def test_energy_per_image_is_told_where_the_device_counts_it(
    tell: Callable[..., Told], models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("--rounds", "5", "--samples", "5")
    assert "energy" not in tell("measure", *models, *quick)[1]
    told = {"dense": 1.239e-3, "ticket": 8.1e-4}
    monkeypatch.setattr(
        "ticket_export.measure.measurement.Measurement.energy_per_image_j", property(lambda m: told[m.name])
    )
    assert tell("measure", *models, *quick)[1].splitlines()[-1] == (
        "energy, ort-cpu, batch 1: dense 1.24 mJ, ticket 0.81 mJ per image (the GPU's board, host excluded)"
    )
