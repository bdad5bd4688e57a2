"""The benchmark of widths under a latency budget, on a machine that computes channels in lines of eight."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import scripted_tables

from ticket_export.pipeline import profiling

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import budget_widths as benchmark
from budgets.page import choice_sentence, filled_sentence, page

RECIPE = Path(__file__).parent / "smoke.yaml"
NETWORK = ("model.builder=" + str(Path(__file__).parent / "tiny_net.py:make"), "model.args={width: 64}")
SHARES = (0.6, 0.8)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The numbers of a run on the scripted machine, with page and figure beside them."""
    folder = tmp_path_factory.mktemp("budget-widths")
    sets = [word for value in (*NETWORK, "measure.runtimes=[torch]") for word in ("--set", value)]
    words = [str(RECIPE), *sets, "--out", str(folder / "results"), "--store", str(folder / "out")]
    words += ["--shares", *map(str, SHARES), "--densities", "0.4"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        scripted_tables.install(monkeypatch)
        monkeypatch.setattr(benchmark, "network_opener", profiling.network_opener)
        benchmark.main(words)
    [path] = (folder / "results").glob("*.json")
    return path


@pytest.fixture(scope="module")
def document(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


def test_widths_by_latency_keep_the_most_of_all_that_are_no_slower(document: dict[str, Any]) -> None:
    for share in SHARES:
        own = {one["by"]: one for one in document["choices"] if one["asked"] == share}
        assert list(own) == ["latency", "MACs", "uniform"]
        best = own["latency"]
        assert best["predicted"] <= share
        for other in own.values():
            assert other["predicted"] <= best["predicted"] * (1 + 1e-6)
            assert other["kept_importance"] <= best["kept_importance"] + 1e-5
            assert other["measured"]["share"] == pytest.approx(other["predicted"], rel=1e-4)
        assert len(set(own["uniform"]["widths"].values())) == 1


def test_uniform_networks_are_met_at_their_own_latency(document: dict[str, Any]) -> None:
    own = {one["asked"]: one for one in document["choices"] if one["by"] == "uniform"}
    met = [asked for asked, one in own.items() if one["predicted"] == pytest.approx(asked, abs=1e-5)]
    assert len(met) == len(own) - len([share for share in SHARES if share not in met])
    assert met


def test_free_channels_cost_nothing_on_the_machine_of_the_table(document: dict[str, Any]) -> None:
    [one] = document["filled"]
    assert one["density"] == 0.4
    assert one["channels_before"] < one["channels_after"]
    assert one["channels_after"] % 8 == 0
    assert one["importance_before"] < one["importance_after"]
    assert one["macs"] > 1
    assert one["predicted"] == pytest.approx(1.0)
    assert one["measured"]["share"] == pytest.approx(1.0)
    assert one["of_dense"]["share"] < 1


def test_the_page_holds_every_choice_and_the_figure_lies_beside_it(
    results: Path, document: dict[str, Any]
) -> None:
    told = results.with_suffix(".md").read_text(encoding="utf-8")
    assert results.name.startswith("budget_widths_make_torch_fp32_b1_local_")
    assert "UNTRAINED weights" in told
    budgets = {one["asked"] for one in document["choices"]}
    assert told.count("| by latency ") == len(budgets) > len(SHARES)
    assert f"]({results.stem}.svg)" in told
    assert results.with_suffix(".svg").read_text(encoding="utf-8").count("<svg") == 1
    assert told == page(document).replace("FIGURE", f"{results.stem}.svg")


def one(by: str, importance: float, measured: float, stable: bool = True) -> dict[str, Any]:
    timed = {"share": measured, "low": measured - 0.01, "high": measured + 0.01, "stable": stable}
    told = {"by": by, "asked": 0.5, "kept_importance": importance, "predicted": 0.5, "measured": timed}
    return told


def test_a_gain_of_a_slower_network_is_told_apart() -> None:
    told = choice_sentence(
        [one("latency", 0.92, 0.53), one("MACs", 0.9, 0.5, stable=False), one("uniform", 0.91, 0.52)]
    )
    assert (
        "2.00 to 2.00 points of kept importance more than widths by MACs, no slower: more in 1 of 1" in told
    )
    assert "in 0 of them without being measured slower; and 1.00 to 1.00" in told
    assert "uniform, no slower: more in 1 of 1 budgets, in 1 of them without being measured slower" in told
    assert "+3.0 to +3.0 points from the asked share of dense, 1 of 1 within 5 points" in told
    assert "1 of 3 timings are unstable." in told


def test_networks_that_are_not_as_fast_by_the_table_are_not_compared() -> None:
    told = choice_sentence([one("latency", 0.92, 0.5), one("uniform", 0.5, 0.3) | {"predicted": 0.3}])
    assert "keep nothing that can be set against widths uniform, no slower: none comes near" in told


def test_free_channels_that_cost_time_are_counted() -> None:
    filled = [
        {
            "channels_before": 100,
            "channels_after": 120,
            "measured": {"share": share, "low": share - 0.01, "high": share + 0.01, "stable": True},
        }
        for share in (0.9, 1.0, 1.05)
    ]
    told = filled_sentence(filled)
    assert "grow by 20 to 20 % of its channels" in told
    assert "0.900 to 1.050 times as long: shown to be slower in 1 and faster in 1 of 3." in told
    assert told.endswith("0 of 3 timings are unstable.")
