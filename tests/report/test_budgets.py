"""What the report says of budgets and free channels, and of the control at equal latency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ticket_export.report import sentences
from ticket_export.report.budget_tables import budget_rows, free_rows, section
from ticket_export.report.page import markdown, page
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.search_cost import cost_lines
from ticket_export.report.worth import Worth, first_worths

Manifest = dict[str, Any]

LATENCY = {
    "target": {"latency_fraction": 0.5},
    "predicted": 0.487,
    "reached": 0.511,
    "measured": {"share": 0.511, "low": 0.502, "high": 0.52},
    "kept_importance": 0.873,
    "gap": 0.0,
    "tries": [{"predicted": 0.5}, {"predicted": 0.487}],
}
MACS = {
    "target": {"mac_fraction": 0.5},
    "predicted": 0.4991,
    "reached": 0.4991,
    "kept_importance": 0.9,
    "gap": 0.0,
}
FREE = {
    "channels_before": 301,
    "channels_after": 344,
    "predicted": 1.0,
    "measured": {"share": 1.004, "low": 0.991, "high": 1.017},
}


def found(manifests: list[Manifest], machine: Manifest, by_level: dict[str, Manifest]) -> Report:
    for manifest in manifests:
        if manifest["stage"] == "find" and manifest["facts"]["subject"] in by_level:
            manifest["facts"].update(by_level[manifest["facts"]["subject"]])
    return report_from_manifests("digits", machine, manifests)


def test_asked_predicted_and_reached_stand_side_by_side(manifests: list[Manifest], machine: Manifest) -> None:
    report = found(manifests, machine, {"ticket@1": MACS, "ticket@2": LATENCY})
    assert budget_rows(report.budgets)[0] == (
        *("ticket@1", "0", "MACs", "50.0 %", "49.9 %", "49.9 %", "90.0 %", "1"),
    )
    timed = ("ticket@2", "2", "latency", "50.0 %", "48.7 %", "51.1 % (50.2-52.0)", "87.3 %", "2")
    assert budget_rows(report.budgets)[-1] == timed
    assert len(budget_rows(report.budgets)) == 6  # two levels of three replicates
    assert "51.1 % (50.2-52.0)" in markdown(report)
    assert "<h2>Budgets</h2>" in page(report)
    assert report.to_json()["budgets"][-1] == {
        "subject": "ticket@2",
        "replicate": 2,
        "kind": "latency_fraction",
        "asked": 0.5,
        "predicted": 0.487,
        "reached": 0.511,
        "measured": {"share": 0.511, "low": 0.502, "high": 0.52},
        "kept_importance": 0.873,
        "num_tries": 2,
    }


def test_free_channels_are_told_with_what_they_cost(manifests: list[Manifest], machine: Manifest) -> None:
    nothing = {**FREE, "channels_after": 301, "measured": None}
    by_level = {"ticket@1": {"free_channels": nothing}, "ticket@2": {"free_channels": FREE}}
    report = found(manifests, machine, by_level)
    assert free_rows(report.budgets)[0] == ("ticket@1", "0", "301", "301", "100.0 %", "none was free")
    assert free_rows(report.budgets)[-1] == ("ticket@2", "2", "301", "344", "100.0 %", "100.4 % (99.1-101.7)")
    assert budget_rows(report.budgets) == []
    assert "none was free" in section(report.budgets)
    assert report.to_json()["free_channels"][-1]["channels_after"] == 344


def test_a_run_without_budgets_has_no_such_section(manifests: list[Manifest], machine: Manifest) -> None:
    report = report_from_manifests("digits", machine, manifests)
    assert section(report.budgets) == ""
    assert "## Budgets" not in markdown(report)
    assert "<h2>Budgets</h2>" not in page(report)
    assert (report.to_json()["budgets"], report.to_json()["free_channels"]) == ([], [])


def renamed(manifests: list[Manifest], *, seconds: float | None = None) -> list[Manifest]:
    """Return the manifests with uniform_latency for uniform, which then takes `seconds` of ticket@2."""

    def name(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: name(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [name(inner) for inner in value]
        return "uniform_latency@2" if value == "uniform@2" else value

    found = [name(manifest) for manifest in manifests]
    for manifest in found:
        rows = {
            (row["subject"], row["replicate"]): row
            for row in manifest["facts"].get("rows", [])
            if seconds is not None
        }
        for (subject, replicate), row in rows.items():
            if subject == "uniform_latency@2":
                p50 = rows["ticket@2", replicate]["latency_s"]["p50"]
                row["latency_s"] = {**row["latency_s"], "p50": p50 * (seconds or 0)}
    return found


def _worth(report: Report) -> Worth:
    return next(worth for worth in first_worths(report) if worth.ticket == "ticket@2")


def test_uniform_at_equal_latency_answers_for_uniform(manifests: list[Manifest], machine: Manifest) -> None:
    report = report_from_manifests("digits", machine, renamed(manifests))
    answer = _worth(report).answers[1]
    assert [verdict.against for verdict in answer.verdicts] == ["uniform_latency@2", "random@2"][::-1]
    assert (answer.word, answer.missing) == ("wins", ())
    assert "uniform_latency shrinks every layer alike" in markdown(report)


@pytest.mark.parametrize(("seconds", "word"), [(1.0, "loses"), (1.04, "loses"), (1.3, "not resolved")])
def test_losing_to_a_slower_uniform_network_decides_nothing(
    manifests: list[Manifest], machine: Manifest, seconds: float, word: str
) -> None:
    changed = renamed(manifests, seconds=seconds)
    for manifest in changed:
        facts = manifest["facts"]
        if facts.get("kind") == "accuracy" and facts["subject"] == "uniform_latency@2":
            facts["accuracy"] = (0.991, 0.993, 0.988)[facts["replicate"]]
    report = report_from_manifests("digits", machine, changed)
    assert _worth(report).answers[1].word == word
    told = "uniform_latency@2 takes 1.30x the time, so losing to it decides nothing"
    assert (told in sentences.worth_sentence(_worth(report))) == (word == "not resolved")


def test_the_search_of_the_ticket_is_no_cost_of_uniform_at_its_latency(
    manifests_of: Callable[..., list[Manifest]], machine: Manifest
) -> None:
    report = report_from_manifests("digits", machine, renamed(manifests_of()))
    line = next(line for line in cost_lines(report.search_costs) if line.subject == "uniform_latency@2")
    assert line.trained == "own 12"
