"""The benchmark of latency tables: networks it draws, what it says of their errors, and what it keeps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import scripted_tables
import torch
from tiny_net import make

from ticket_export.channels.graph import channel_groups
from ticket_export.pipeline import profiling

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import latency_table as benchmark

RECIPE = Path(__file__).parent / "smoke.yaml"
NETWORK = ("model.builder=" + str(Path(__file__).parent / "tiny_net.py:make"), "model.args={width: 64}")


def held(predicted_s: float, measured_s: float, share: float = 0.5) -> benchmark.Held:
    return benchmark.Held(
        name="n", predicted_s=predicted_s, measured_s=measured_s, predicted_share=0.5, share=share,
        share_low=share, share_high=share, stable=True,
    )  # fmt: skip


def test_networks_have_independent_widths_of_the_grid() -> None:
    groups = channel_groups(make(64).eval(), torch.zeros(2, 1, 8, 8))
    drawn = benchmark.drawn(groups, 60)
    assert drawn == benchmark.drawn(groups, 60)
    pairs = {(widths["stem"], widths["conv1"]) for widths in drawn.values()}
    assert {stem for stem, _ in pairs} == set(range(8, 65, 8))
    assert len(pairs) > 30
    assert {widths["linear"] for widths in drawn.values()} == {4}


def test_errors_are_told_as_median_most_and_largest() -> None:
    found = [held(1.01, 1.0), held(0.98, 1.0), held(1.1, 1.0, share=0.45)]
    assert [round(one.error, 6) for one in found] == [0.01, -0.02, 0.1]
    told = benchmark.error_sentence(found)
    assert "errs by 2.0 % (median)" in told
    assert "10.0 % (largest)" in told
    assert "share of dense by 0.0, 4.0 and 5.0 points; n = 3 networks" in told


def test_a_scripted_machine_is_predicted_exactly_and_not_timed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = scripted_tables.install(monkeypatch)
    monkeypatch.setattr(benchmark, "network_opener", profiling.network_opener)
    sets = [word for value in (*NETWORK, "measure.runtimes=[torch]") for word in ("--set", value)]
    words = [str(RECIPE), *sets, "--out", str(tmp_path / "results"), "--store", str(tmp_path / "out")]
    words += ["--networks", "9", "--rounds", "5", "--block-s", "0.001"]
    benchmark.main(words)
    [path] = (tmp_path / "results").glob("*.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert path.name.startswith("latency_table_make_torch_fp32_b1_local_")
    assert len(document["networks"]) == 9
    assert all(abs(network["error"]) < 1e-6 for network in document["networks"])
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "errs by 0.0 % (median)" in page
    assert f"]({path.stem}.svg)" in page
    assert path.with_suffix(".svg").read_text(encoding="utf-8").count("<svg") == 1
    opened.clear()
    benchmark.main(words)
    assert opened == []
