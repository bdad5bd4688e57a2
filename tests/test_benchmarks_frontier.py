"""Accuracy against measured latency over runs: what is read and timed, pairs, fronts, page and figure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.colors import to_hex
from onnx import TensorProto, helper, numpy_helper

from ticket_export.errors import MeasureError, StoreError
from ticket_export.measure.compare import Comparison
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol
from ticket_export.report.figure import FRONT_LINE, look_of
from ticket_export.runtime.fake import FakeRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import frontier as benchmark
from fronts.figure import figure_of
from fronts.page import page
from fronts.pairs import accuracy_words, latency_words, pair_line
from fronts.reading import Source, collect
from fronts.timing import Timed, representatives

SOURCE = Source(runtime="ort-cpu", precision="fp32", accuracy_by="ort-cpu")
Subjects = Mapping[str, tuple[tuple[float, ...], tuple[int, ...]]]  # accuracy and width of each replicate
DENSE = ((0.700, 0.700, 0.701), (8, 8, 8))
REFILL: Subjects = {
    "dense": DENSE,
    "ticket@1": ((0.650, 0.660, 0.670), (4, 4, 4)),
    "uniform@1": ((0.600, 0.600, 0.610), (4, 4, 4)),
}
SUPERNET: Subjects = {"dense": DENSE, "ticket@1": ((0.680, 0.690, 0.701), (4, 3, 2))}


def write_network(path: Path, width: int, seed: int) -> None:
    """Write a network of one hidden layer: [N, 1, 2, 2] -> [N, 2]."""
    generator = np.random.default_rng(seed)
    shapes = {"inner": (4, width), "outer": (width, 2)}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "inner"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "outer"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def make_run(out: Path, name: str, subjects: Subjects, num_images: int = 1000) -> Path:
    """Write what a finished run leaves: report, run.json, exported files and an accuracy in the store."""
    rows, files = [], []
    for subject, (accuracies, widths) in subjects.items():
        for replicate, (accuracy, width) in enumerate(zip(accuracies, widths, strict=True)):
            key = "dense" if subject == "dense" else f"{name}-{subject}"
            told = f"export/{key}-{replicate}/model.onnx"
            write_network(out / "store" / told, width, seed=sum(f"{key}{replicate}".encode()))
            row = {"subject": subject, "replicate": replicate, "runtime": "ort-cpu", "precision": "fp32"}
            row |= {"accuracy": accuracy, "param_density": width / 8, "mac_density": width / 8}
            rows += [row | {"batch": batch} for batch in (1, 64)]
            file = {"subject": subject, "replicate": replicate, "runtime": None, "precision": "fp32"}
            files.append(file | {"path": told})
    folder = out / "runs" / name
    stored = out / "store" / "measure" / name
    for place in (folder, stored):
        place.mkdir(parents=True)
    facts = {"kind": "accuracy", "num_images": num_images}
    (stored / "manifest.json").write_text(json.dumps({"facts": facts}))
    results = ["export/dense-0", f"measure/{name}"]
    (folder / "run.json").write_text(json.dumps({"results": results}))
    (folder / "report.json").write_text(json.dumps({"rows": rows, "files": files}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "refill": make_run(tmp_path / "one", "refill", REFILL),
        "supernet": make_run(tmp_path / "two", "supernet", SUPERNET),
    }


def scripted(paths: Mapping[str, Path], *, batch: int, **_: Any) -> Comparison:
    """Return measurements of networks that take a millisecond per image and hidden unit."""
    widths = {
        name: next(w.dims[1] for w in onnx.load(path).graph.initializer if w.name == "inner")
        for name, path in paths.items()
    }
    runners = {
        name: FakeRunner(lambda _, width=width: 1e-3 * batch * width, name="ort-cpu")
        for name, width in widths.items()
    }
    protocol = Protocol(rounds=5, samples=5, warmup_cap_s=1e-6)
    measured = measure_interleaved(runners, batch=batch, protocol=protocol)
    # how busy the machine is while a test runs is no matter of the test
    calm = {name: replace(measurement, reasons=()) for name, measurement in measured.items()}
    return Comparison(measurements=calm, file_bytes=dict.fromkeys(calm, 1))


def arguments_of(folders: Mapping[str, Path], **changes: Any) -> argparse.Namespace:
    values = {
        **{"runs": [f"{name}={folder}" for name, folder in folders.items()], "pair": [], "batches": [1, 64]},
        **{"title": "tiny", "runtime": "ort-cpu", "precision": "fp32", "accuracy_by": "ort-cpu"},
        **{
            "scope": "compute",
            "threads": 1,
            "rounds": 5,
            "samples": 5,
            "machine": "here",
            "theme": "frontier",
        },
    }
    return argparse.Namespace(**values | changes)


@pytest.fixture
def document(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(benchmark.te, "compare", scripted)
    pairs = [
        ("supernet:ticket@1", "refill:ticket@1"),
        ("refill:ticket@1", "refill:uniform@1"),
        ("refill:ticket@1", "refill:dense"),
    ]
    arguments = arguments_of(folders, pair=pairs)
    collected = collect(folders, SOURCE)
    by_batch = {batch: benchmark.timed(collected, batch, arguments) for batch in (1, 64)}
    return benchmark.document_of(collected, by_batch, arguments)


def held(document: Mapping[str, Any], name: str, place: int = 0) -> dict[str, Any]:
    return next(each for each in document["batches"][place]["networks"] if each["name"] == name)


def test_a_network_that_runs_of_two_stores_share_is_one_and_dense_stands_first(
    folders: dict[str, Path],
) -> None:
    collected = collect(folders, SOURCE)
    names = list(dict.fromkeys(network.name for network in collected.networks))
    assert names == ["dense", "refill:ticket@1", "refill:uniform@1", "supernet:ticket@1"]
    assert len(collected.networks) == 4 * 3
    assert collected.name_of("supernet:dense") == collected.name_of("refill:dense") == "dense"
    assert collected.num_test_images == 1000
    ticket = next(network for network in collected.networks if network.name == "supernet:ticket@1")
    assert (ticket.kind, ticket.dense, ticket.replicate, ticket.accuracy) == ("ticket@1", "dense", 0, 0.680)
    assert ticket.path.is_file()


def test_another_dense_network_keeps_the_name_of_its_run(tmp_path: Path) -> None:
    wide: Subjects = {"dense": ((0.8,), (16,)), "uniform@1": ((0.7,), (8,))}
    folders = {
        "first": make_run(tmp_path / "a", "first", REFILL),
        "wide": make_run(tmp_path / "b", "wide", wide),
    }
    networks = collect(folders, SOURCE).networks
    assert {network.name: network.dense for network in networks if network.kind != "ticket@1"} == {
        "dense": "dense",
        "first:uniform@1": "dense",
        "wide:dense": "wide:dense",
        "wide:uniform@1": "wide:dense",
    }


def test_runs_of_unequal_test_sets_are_refused(tmp_path: Path) -> None:
    folders = {
        "a": make_run(tmp_path / "a", "a", REFILL, num_images=1000),
        "b": make_run(tmp_path / "b", "b", REFILL, num_images=360),
    }
    with pytest.raises(MeasureError, match="a: 1,000, b: 360"):
        collect(folders, SOURCE)


def test_what_a_run_lacks_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no accuracy by tensorrt fp16 is reported, only by ort-cpu fp32"):
        collect(folders, Source(runtime="ort-cpu", precision="fp16", accuracy_by="tensorrt"))
    with pytest.raises(StoreError, match="nowhere"):
        collect({"nowhere": tmp_path / "runs" / "nowhere"}, SOURCE)
    next((tmp_path / "two" / "store").glob("export/supernet-ticket@1-2/model.onnx")).unlink()
    with pytest.raises(StoreError, match=r"ticket@1, replicate 2: its fp32 file for ort-cpu"):
        collect(folders, SOURCE)
    with pytest.raises(MeasureError, match=r"'refill:ticket@7' is no network"):
        collect({"refill": folders["refill"]}, SOURCE).name_of("refill:ticket@7")


def test_one_replicate_is_timed_for_all_of_equal_widths_and_each_of_unequal_ones(
    folders: dict[str, Path],
) -> None:
    timed = representatives(collect(folders, SOURCE).networks)
    assert {timed["refill:ticket@1", replicate] for replicate in range(3)} == {("refill:ticket@1", 0)}
    assert timed["supernet:ticket@1", 1] == ("supernet:ticket@1", 1)
    assert timed["supernet:ticket@1", 2] == ("supernet:ticket@1", 2)


def test_all_are_timed_in_one_run_per_batch_with_the_first_dense_as_the_baseline(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], int]] = []

    def compare(paths: Mapping[str, Path], *, batch: int, **rest: Any) -> Comparison:
        asked.append((list(paths), batch))
        return scripted(paths, batch=batch)

    monkeypatch.setattr(benchmark.te, "compare", compare)
    collected = collect(folders, SOURCE)
    found = benchmark.timed(collected, 64, arguments_of(folders))
    supernet = [f"supernet:ticket@1 #{replicate}" for replicate in range(3)]
    assert asked == [(["dense #0", "refill:ticket@1 #0", "refill:uniform@1 #0", *supernet], 64)]
    # 8 over 4, 3 and 2: the geometric mean, within the span of the replicates
    speedup = found.speedup_of("supernet:ticket@1", "dense")
    assert speedup.mean == pytest.approx((8 / 4 * 8 / 3 * 8 / 2) ** (1 / 3))
    assert (speedup.low, speedup.high) == pytest.approx((2.0, 4.0))
    latency = found.latency_of("supernet:ticket@1")
    assert (latency.mean, latency.low, latency.high) == pytest.approx((64e-3 * 3, 64e-3 * 2, 64e-3 * 4))


def test_networks_without_a_common_replicate_are_compared_all_against_all() -> None:
    comparison = Comparison(
        measurements=measure_interleaved(
            {name: FakeRunner(lambda n, s=s: s) for name, s in (("a #0", 4.0), ("b #1", 2.0), ("b #2", 1.0))},
            batch=1,
            protocol=Protocol(rounds=5, samples=5, warmup_cap_s=1e-6),
        ),
        file_bytes={},
    )
    keys = [("a", 0), ("b", 1), ("b", 2)]
    found = Timed(comparison=comparison, timed=dict(zip(keys, keys, strict=True)))
    assert found.speedup_of("b", "a").mean == pytest.approx(8**0.5)
    assert found.speedup_of("a", "a").mean == 1.0


def test_a_pair_tells_the_latency_ratio_and_the_paired_difference_with_intervals(
    document: dict[str, Any],
) -> None:
    faster, equal, unequal = document["pairs"][::2]
    # +0.030, +0.030, +0.031: at least one image of 1000 to either side
    assert accuracy_words(faster) == "+3.03 (+2.89 to +3.18), n = 3: wins"
    assert latency_words(faster) == "no difference shown: 1.39x (1.00-2.00)"
    assert latency_words(equal) == "equal within 5 %: 1.00x (1.00-1.00)"
    # +0.05, +0.06, +0.06: 0.0567 +- 4.303 * 0.00577 / sqrt(3)
    assert accuracy_words(equal) == "+5.67 (+4.23 to +7.10), n = 3: wins"
    assert latency_words(unequal) == "faster: 2.00x (2.00-2.00)"
    assert accuracy_words(unequal).endswith("n = 3: loses; it is faster, so losing decides nothing")
    assert pair_line(equal).startswith(
        "refill:ticket@1 against refill:uniform@1, batch 1: latency equal within 5 %"
    )


def test_a_win_of_a_slower_network_decides_nothing(document: dict[str, Any]) -> None:
    pair = document["pairs"][4]
    pair = pair | {"speedup": {"ratio": 0.5, "low": 0.49, "high": 0.51}}
    pair["accuracy"] |= {"difference": 0.1, "low": 0.09, "high": 0.11, "word": "wins"}
    assert latency_words(pair) == "slower: 0.50x (0.49-0.51)"
    assert accuracy_words(pair).endswith("wins; it is slower, so winning decides nothing")


def test_two_replicates_resolve_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.te, "compare", scripted)
    few = {name: (accuracies[:2], widths[:2]) for name, (accuracies, widths) in REFILL.items()}
    folders = {"refill": make_run(tmp_path, "refill", few)}
    arguments = arguments_of(folders, pair=[("refill:ticket@1", "refill:uniform@1")])
    collected = collect(folders, SOURCE)
    document = benchmark.document_of(collected, {1: benchmark.timed(collected, 1, arguments)}, arguments)
    assert accuracy_words(document["pairs"][0]) == "+5.50, n = 2: not resolved below 3 replicates"
    text = page(document, "command", "nothing")
    assert "accuracies by means, below 3 replicates" in text
    assert "| 65.5 % (n = 2)" in text
    axes = figure_of(document).axes[0]
    assert not axes.collections  # no bars of accuracy


def test_the_front_names_what_nothing_is_shown_to_beat(document: dict[str, Any]) -> None:
    batch = document["batches"][0]
    # the supernet's replicates span 2x to 4x: faster than dense, not shown to be faster than the ticket, but
    # shown to be more accurate than it
    assert batch["front"] == {
        "front": ["dense", "supernet:ticket@1"],
        "dominated_by": {"refill:ticket@1": "supernet:ticket@1", "refill:uniform@1": "supernet:ticket@1"},
        "by_means": False,
    }
    line = "Pareto front (ort-cpu, fp32, batch 1): dense, supernet:ticket@1"
    assert batch["front_line"] == line
    text = page(document, "python benchmarks/frontier.py --runs A", "nothing")
    assert f"**{line}.**" in text
    assert f"- {line}. Dominated: " in text
    assert "refill:uniform@1 by supernet:ticket@1" in text


def test_the_page_tells_accuracies_latencies_and_which_replicates_were_timed(
    document: dict[str, Any],
) -> None:
    text = page(document, "python benchmarks/frontier.py --runs A", "nothing")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    ticket = next(row for row in rows if row[0] == "refill:ticket@1")
    # 0.66 +- 4.303 * 0.01 / sqrt(3); the difference is that of -0.050, -0.040, -0.031
    assert ticket[1:5] == [
        "66.0 % (63.5-68.5, n = 3)", "-4.03 (-6.39 to -1.67), loses", "50.0 %", "50.0 %"
    ]  # fmt: skip
    assert ticket[5:7] == ["4.00 (4.00-4.00)", "2.00x (2.00-2.00)"]
    assert "as their widths are equal: dense, refill:ticket@1 and refill:uniform@1. Every replicate:" in text
    assert "1,000 test images" in text
    pairs = [row for row in rows if row[:2] == ["refill:ticket@1", "refill:uniform@1"]]
    assert [row[2] for row in pairs] == ["1", "64"]


def test_the_figure_has_a_panel_per_batch_lines_for_dense_and_uniform_and_the_front_in_its_legend(
    document: dict[str, Any],
) -> None:
    figure = figure_of(document)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 64"]
    axes = figure.axes[0]
    lines = {to_hex(line.get_color()): line for line in axes.lines if line.get_linestyle() != "None"}
    front = lines[FRONT_LINE["color"]]
    assert list(front.get_ydata()) == pytest.approx([0.6903333, 0.7003333])
    uniform = next(
        line
        for line in axes.lines
        if to_hex(line.get_color()) == look_of("uniform@1").color and len(set(line.get_ydata())) == 2
    )
    assert list(uniform.get_xdata()) == pytest.approx([4.0, 8.0])
    level = next(line for line in axes.lines if list(line.get_xdata()) == [0, 1])  # from side to side
    assert list(level.get_ydata()) == pytest.approx([0.7003333] * 2)
    labels = {text.get_text(): text for text in axes.texts if text.get_text()}
    assert sorted(labels) == sorted(network["name"] for network in document["batches"][0]["networks"])
    assert labels["dense"].xy == pytest.approx((8.0, 0.7003333))
    [legend] = figure.legends
    assert "Pareto front (ort-cpu, fp32, batch 64): dense, supernet:ticket@1" in legend.get_title().get_text()
    assert {"dense", "ticket", "uniform"} <= {text.get_text() for text in legend.get_texts()}


def test_an_unstable_timing_is_open_in_the_figure_and_starred_on_the_page(document: dict[str, Any]) -> None:
    next(row for row in document["rows"] if row["subject"] == "dense").update(
        stable=False, reasons=["busy neighbour"]
    )
    held(document, "dense")["stable"] = False
    text = page(document, "command", "nothing")
    assert "- batch 1, dense, replicate 0: busy neighbour" in text
    assert text.count("baseline *") == 1
    faces = {
        line.get_markerfacecolor() for line in figure_of(document).axes[0].lines if line.get_marker() == "o"
    }
    assert "white" in faces


def test_two_runs_of_one_name_are_refused_and_a_name_can_be_given(tmp_path: Path) -> None:
    twice = argparse.Namespace(runs=["a/runs/x", "b/runs/x"])
    with pytest.raises(MeasureError, match="two runs are called 'x'"):
        benchmark.folders_of(twice)
    named = argparse.Namespace(runs=["a/runs/x", "y=b/runs/x"])
    assert benchmark.folders_of(named) == {"x": Path("a/runs/x"), "y": Path("b/runs/x")}


def test_real_files_are_timed_and_page_numbers_and_pictures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "store", "refill", {name: REFILL[name] for name in ("dense", "ticket@1")})
    out = tmp_path / "results"
    given = [
        "--runs",
        str(folder),
        "--pair",
        "refill:ticket@1",
        "dense",
        "--out",
        str(out),
        "--machine",
        "here",
    ]
    sizes = ["--batches", "2", "--rounds", "5", "--samples", "5"]
    monkeypatch.setattr(sys, "argv", ["frontier.py", *given, *sizes])
    assert benchmark.main() == 0
    printed = capsys.readouterr().out
    assert "Pareto front (ort-cpu, fp32, batch 2): dense" in printed
    assert "refill:ticket@1 against dense, batch 2: latency " in printed
    [numbers] = out.glob("frontier_here_*.json")
    document = json.loads(numbers.read_text())
    assert [(row["subject"], row["replicate"], row["batch"]) for row in document["rows"]] == [
        ("dense", 0, 2), ("refill:ticket@1", 0, 2)
    ]  # fmt: skip
    assert all(len(row["round_medians_s"]) == 5 for row in document["rows"])
    text = numbers.with_suffix(".md").read_text()
    assert "--runs refill=OUT/runs/refill " in text
    assert "--rounds 5 --samples 5 --pair refill:ticket@1 dense`" in text
    assert str(tmp_path) not in text + numbers.read_text()
    assert numbers.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "<!-- refill:ticket@1 -->" in numbers.with_suffix(".svg").read_text()


def test_a_missing_run_exits_with_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--runs", str(tmp_path / "runs" / "none"), "--out", str(tmp_path), "--machine", "here"]
    monkeypatch.setattr(sys, "argv", ["frontier.py", *given])
    assert benchmark.main() == StoreError.exit_code
    assert "give OUT/runs/NAME of a run that is finished" in capsys.readouterr().err
