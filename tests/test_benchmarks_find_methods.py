"""The comparison of finders: its recipes load, its page tells the numbers it was given, its figure reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.text import Annotation

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import find_methods as benchmark
from finding.figure import figure_of
from finding.page import ABOUT, page
from finding.reading import names_of
from finding.variants import CONTROLS, VARIANTS, Variant

ACCURACIES = {
    "random": (0.68, 0.69, 0.70),
    "dense": (0.700, 0.702, 0.704),
    "coupled": (0.690, 0.696, 0.702),  # 1.0, 0.6 and 0.2 points below dense
    "channel_imp": (0.690, 0.690, 0.690),
    "imp": (0.710, 0.711, 0.712),
}
TIMES: Mapping[str, tuple[float | None, ...]] = {
    "random": (5.0, 5.0, 4.0),
    "dense": (1.0, 1.0, 1.0),
    "coupled": (5.0, 4.0, 4.0),
    "channel_imp": (3.0, 2.8, 2.6),
    "imp": (4.0, 4.0, 4.0),
}
EPOCHS_TIMES_MACS = {"random": 4.0, "dense": 1.0, "coupled": 4.8, "channel_imp": 2.4, "imp": 4.0}
FACTS = {
    **{"cpu": "EPYC", "num_usable_cores": 2, "packages": {"torch": "2.13.0"}},
    **{"os": "Linux", "python": "3.11"},
}
SIZES = argparse.Namespace(
    data=Path("data_that_is_not_there.npz"), replicates=3, train_limit=10000, epochs=10, precision="fp32"
)


def row(name: str, replicate: int, batch: int, ratio: float) -> dict[str, Any]:
    held = {"ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio, "baseline": "dense"}
    return {
        "subject": name, "replicate": replicate, "batch": batch, "runtime": "ort-cpu", "precision": "fp32",
        "scope": "compute", "threads": 1, "latency_s": {"p50": 0.004 * batch / ratio, "p90": 1.0},
        "speedup": None if name == "dense" else held, "stable": True, "reasons": [], "num_rounds": 10,
        "num_samples": 20,
    }  # fmt: skip


def scripted(num_replicates: int = 3) -> dict[str, Any]:
    networks = [
        {
            "name": name, "replicate": replicate, "accuracy": accuracies[replicate], "param_density": 0.25,
            "mac_density": 0.5, "time_ratio": TIMES[name][replicate], "macs_ratio": EPOCHS_TIMES_MACS[name],
        }
        for name, accuracies in ACCURACIES.items()
        for replicate in range(num_replicates)
    ]  # fmt: skip
    rows = [
        row(name, replicate, batch, 2.0**replicate if name == "coupled" else 1.0)
        for replicate in range(num_replicates)
        for batch in (1, 64)
        for name in ACCURACIES
    ]
    return {"schema": 1, "machine": FACTS, "networks": networks, "rows": rows}


def cells(text: str, name: str) -> list[list[str]]:
    """Return the rows of all tables that begin with a name."""
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return [row for row in found if row[0] == name]


def labels(axes: Any) -> dict[str, Annotation]:
    return {text.get_text(): text for text in axes.texts if text.get_text()}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_recipe_of_a_variant_loads_and_differs_in_its_finder_alone(variant: Variant) -> None:
    recipe = benchmark.recipe_of(variant, SIZES)
    assert recipe.find.method == variant.find["method"]
    assert recipe.find.rewind_epoch == 1
    assert tuple(recipe.find.controls) == variant.controls
    sizes = recipe.replicates, recipe.data.train_limit, recipe.train.epochs, recipe.train.schedule
    assert sizes == (3, 10000, 10, "one_cycle")
    assert recipe.data.path == "data_that_is_not_there.npz"


def test_every_network_has_a_name_of_its_own_and_words() -> None:
    names = ["dense", *[variant.name for variant in VARIANTS], *CONTROLS]
    assert len(set(names)) == len(names)
    assert list(ABOUT) == names
    coupled, inner = (next(v for v in VARIANTS if v.name == name) for name in ("coupled", "inner"))
    assert [coupled.row_name(subject) for subject in ("dense", "ticket@3", "random@3", "unstructured@3")] == [
        "dense", "coupled", "random", None
    ]  # fmt: skip
    assert inner.row_name("ticket@3") == "inner"
    assert inner.row_name("random@3") is None


def test_dense_stands_first_and_controls_last() -> None:
    assert names_of(scripted()) == ["dense", "coupled", "channel_imp", "imp", "random"]


def test_differences_are_paired_by_replicate_with_a_t_interval() -> None:
    text = page(scripted(), "python benchmarks/find_methods.py --epochs 10", "nothing")
    table, controls = cells(text, "coupled")
    assert table[1] == "69.6 % (69.0-70.2, n = 3)"
    # -1.0, -0.6, -0.2: sd 0.4, 4.303 * 0.4 / sqrt(3) = 0.99
    assert table[2] == "-0.60 (-1.59 to +0.39), not resolved"
    # +1.0, +0.6, +0.2
    assert controls[1] == "+0.60 (-0.39 to +1.59), not resolved"
    imp, against_random, against_coupled = cells(text, "imp")
    # +1.0, +0.9, +0.8: sd 0.1, 4.303 * 0.1 / sqrt(3) = 0.25
    assert imp[2] == "+0.90 (+0.65 to +1.15), wins"
    # +3.0, +2.1, +1.2: sd 0.9, 4.303 * 0.9 / sqrt(3) = 2.24
    assert against_random[1] == "+2.10 (-0.14 to +4.34), not resolved"
    # -2.0, -1.5, -1.0: sd 0.5, 4.303 * 0.5 / sqrt(3) = 1.24
    assert against_coupled[1:] == ["-1.50 (-2.74 to -0.26), loses", "50.0 %"]


def test_a_speedup_is_the_geometric_mean_of_the_replicates_within_the_span_of_their_intervals() -> None:
    text = page(scripted(), "command", "nothing")
    assert cells(text, "coupled")[0][5:7] == ["2.00x (0.90-4.40), no difference shown"] * 2
    assert cells(text, "dense")[0][5:7] == ["baseline, 4.00 ms", "baseline, 256 ms"]


def test_costs_are_told_in_dense_trainings_and_compared_by_replicate() -> None:
    document = scripted()
    text = page(document, "command", "nothing")
    assert cells(text, "channel_imp")[0][7:] == ["2.80 (2.60-3.00)", "2.40"]
    # 3/4, 2.8/4, 2.6/4 and 3/5, 2.8/4, 2.6/4
    assert "over imp: 0.70x (0.65-0.75, n = 3) of the time, 0.60x (n = 3) of the epochs x MACs" in text
    assert "over coupled: 0.65x (0.60-0.70, n = 3) of the time, 0.50x (n = 3) of the epochs x MACs" in text
    document["networks"][-1]["time_ratio"] = None  # imp in replicate 2
    text = page(document, "command", "nothing")
    assert cells(text, "imp")[0][7:] == ["-", "4.00"]
    assert "over imp: - of the time, 0.60x" in text


def test_unstable_timings_are_starred_and_each_reason_is_told_where_it_belongs() -> None:
    document = scripted()
    assert "None of the 30 timings gives a reason to distrust it." in page(document, "command", "nothing")
    for one in document["rows"]:
        if (one["batch"], one["replicate"]) == (64, 1):
            own = (
                ["rounds vary by 8%"] if one["subject"] == "dense" else ["baseline dense: rounds vary by 8%"]
            )
            own += ["busy neighbour"] if one["subject"] == "imp" else []
            one |= {"stable": False, "reasons": own}
    text = page(document, "command", "nothing")
    assert "5 of 30 timings" in text
    assert [line for line in text.splitlines() if line.startswith("- batch")] == [
        "- batch 64, dense, replicate 1: rounds vary by 8%",
        "- batch 64, imp, replicate 1: busy neighbour",
    ]
    assert cells(text, "imp")[0][5:7] == [
        "1.00x (0.90-1.10), no difference shown", "1.00x (0.90-1.10), no difference shown *"
    ]  # fmt: skip


def test_one_replicate_shows_differences_without_an_interval() -> None:
    text = page(scripted(1), "command", "nothing")
    assert cells(text, "coupled")[0][1:3] == ["69.0 % (n = 1)", "-1.00, not resolved"]
    assert "over imp: 0.75x (n = 1) of the time" in text
    figure = figure_of(scripted(1))
    assert not figure.axes[0].collections  # no bars


def test_the_figure_puts_every_network_at_its_mean_latency_and_accuracy() -> None:
    small, large, costs = figure_of(scripted()).axes
    assert (small.get_title(loc="left"), large.get_title(loc="left")) == ("batch 1", "batch 64")
    # 4, 2 and 1 ms
    assert labels(small)["coupled"].xy == pytest.approx((7 / 3, 0.696))
    assert labels(large)["coupled"].xy == pytest.approx((64 * 7 / 3, 0.696))
    assert sorted(labels(large)) == sorted(ACCURACIES)
    assert small.get_xscale() == "log"
    assert [text.get_text() for text in costs.get_yticklabels()] == names_of(scripted())[1:]
    widths = [round(bar.get_width(), 2) for bar in costs.patches]
    assert widths == [4.33, 4.8, 2.8, 2.4, 4.0, 4.0, 4.67, 4.0]


def test_labels_of_a_crowd_cover_neither_each_other_nor_the_frame() -> None:
    document = scripted(1)
    names = ["dense", *[variant.name for variant in VARIANTS], *CONTROLS]
    document["networks"] = [
        document["networks"][0] | {"name": name, "accuracy": 0.7 + 0.001 * (place % 4)}
        for place, name in enumerate(names)
    ]
    document["rows"] = [row(name, 0, 1, 1.0 + 0.002 * place) for place, name in enumerate(names)]
    figure = figure_of(document)
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in labels(axes).values()]
    assert len(boxes) == len(names)
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)  # itself
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_all_networks_of_a_replicate_are_timed_together_with_dense_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[tuple[list[str], int]] = []

    def compare(paths: Mapping[str, Path], *, batch: int, samples: int) -> SimpleNamespace:
        timed.append((list(paths), batch))
        return SimpleNamespace(rows=[{"subject": name, "replicate": None} for name in paths])

    monkeypatch.setattr(benchmark.te, "compare", compare)
    found = [
        benchmark.Found(
            name=name, replicate=replicate, accuracy=0.5, param_density=1.0, mac_density=1.0, time_ratio=1.0,
            macs_ratio=1.0, path=Path(f"{name}_{replicate}.onnx"),
        )
        for replicate in (0, 1)
        for name in ("coupled", "dense")
    ]  # fmt: skip
    rows = list(benchmark.timed(found, argparse.Namespace(batches=[1, 64], samples=20)))
    assert timed == [(["dense", "coupled"], batch) for _ in (0, 1) for batch in (1, 64)]
    assert [each["replicate"] for each in rows] == [0] * 4 + [1] * 4
    document = benchmark.document_of(found, rows, FACTS)
    assert "path" not in document["networks"][0]


def test_a_run_writes_its_page_its_numbers_and_both_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = scripted()
    found = [benchmark.Found(**network, path=Path("model.onnx")) for network in document["networks"]]

    def run_variant(variant: Variant, arguments: argparse.Namespace) -> list[benchmark.Found]:
        return [one for one in found if one.name in ("dense", variant.name, *variant.controls)]

    def timed(own: object, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
        yield from document["rows"]

    monkeypatch.setattr(benchmark, "run_variant", run_variant)
    monkeypatch.setattr(benchmark, "timed", timed)
    given = ["--data", "/somewhere/cifar10.npz", "--out", str(tmp_path), "--machine", "here"]
    monkeypatch.setattr(sys, "argv", ["find_methods.py", *given, "--only", "coupled", "imp"])
    benchmark.main()
    [numbers] = tmp_path.glob("*.json")
    kept = {network["name"] for network in json.loads(numbers.read_text())["networks"]}
    assert kept == {"dense", "coupled", "random", "imp"}
    text = numbers.with_suffix(".md").read_text()
    assert "`python benchmarks/find_methods.py --data cifar10.npz --out FOLDER --machine here " in text
    assert "--epochs 10 " in text
    assert "--only coupled imp " in text
    assert str(tmp_path) not in text
    assert numbers.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    drawn = numbers.with_suffix(".svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in kept)  # matplotlib notes what its outlines spell
