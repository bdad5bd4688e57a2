"""The iteration of lowest validation loss, and the accuracy there."""

from __future__ import annotations

from typing import Any

import pytest

from ticket_export.report.early_stop import Sooner, early_lines, sooner
from ticket_export.report.page import markdown
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.ticket_sections import early_stop as section
from ticket_export.report.ticket_tables import sooner_rows

Manifest = dict[str, Any]

ITERATIONS = {
    "dense": (600, 620, 590),
    "ticket@1": (600, 300, 590),
    "ticket@2": (300, 320, 310),
    "reinit@2": (750, 800, 775),  # 2.5 times those of the ticket
    "random@2": (150, 160, 155),
}
ACCURACIES = {"ticket@2": (0.970, 0.974, 0.966), "reinit@2": (0.960, 0.963, 0.957)}


@pytest.fixture
def stopped(manifests: list[Manifest]) -> list[Manifest]:
    for manifest in manifests:
        facts = manifest["facts"]
        if manifest["stage"] == "train" and facts["subject"] in ITERATIONS:
            replicate = facts["replicate"]
            accuracies = ACCURACIES.get(facts["subject"], (0.95, 0.95, 0.95))
            facts["early_stop"] = {
                "iteration": ITERATIONS[facts["subject"]][replicate],
                "val_loss": 0.1,
                "val_accuracy": 0.97,
                "test_accuracy": accuracies[replicate],
            }
    return manifests


@pytest.fixture
def report(stopped: list[Manifest], machine: Manifest) -> Report:
    return report_from_manifests("digits", machine, stopped)


def _against(report: Report, other: str, ticket: str = "ticket@2") -> Sooner:
    return next(one for one in sooner(report) if (one.ticket, one.against) == (ticket, other))


def test_a_line_has_the_iteration_and_both_accuracies(report: Report) -> None:
    lines = {line.subject: line for line in early_lines(report)}
    assert list(lines) == ["dense", "ticket@1", "ticket@2", "random@2", "reinit@2"]
    line = lines["ticket@2"]
    assert (line.iteration.low, line.iteration.mean, line.iteration.high) == (300, 310, 320)
    assert line.test_accuracy.mean == pytest.approx(0.970)
    assert line.end_accuracy.mean == pytest.approx((0.979 + 0.981 + 0.976) / 3)


def test_a_ticket_is_sooner_by_the_ratio_of_paired_iterations(report: Report) -> None:
    found = _against(report, "reinit@2")
    assert (found.ratio, found.low, found.high) == pytest.approx((2.5, 2.5, 2.5))
    assert (found.word, found.num_replicates) == ("wins", 3)
    assert found.accuracy.difference == pytest.approx(0.01)
    assert found.accuracy.word == "wins"


def test_a_ticket_that_learns_slower_loses(report: Report) -> None:
    found = _against(report, "random@2")
    assert found.ratio == pytest.approx(0.5)
    assert found.word == "loses"


def test_an_interval_over_log_ratios_that_holds_one_is_not_resolved(report: Report) -> None:
    found = _against(report, "dense", "ticket@1")
    # log ratios 0, log(620 / 300), 0: their mean is a third of it
    assert found.ratio == pytest.approx((620 / 300) ** (1 / 3))
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1 < found.ratio < found.high
    assert found.low * found.high == pytest.approx(found.ratio**2)
    assert found.word == "not resolved"


def test_a_ticket_meets_dense_and_the_controls_of_its_level(report: Report) -> None:
    assert [(one.ticket, one.against) for one in sooner(report)] == [
        ("ticket@1", "dense"),
        ("ticket@2", "dense"),
        ("ticket@2", "random@2"),
        ("ticket@2", "reinit@2"),
    ]


def test_two_replicates_resolve_nothing(stopped: list[Manifest], machine: Manifest) -> None:
    for manifest in stopped:
        if manifest["stage"] == "train" and manifest["facts"]["replicate"] == 2:
            manifest["facts"]["early_stop"] = None
    found = _against(report_from_manifests("digits", machine, stopped), "reinit@2")
    assert found.ratio == pytest.approx(2.5)
    assert (found.num_replicates, found.low, found.word) == (2, None, "not resolved")
    assert found.accuracy.word == "not resolved"


def test_the_tables_name_the_numbers(report: Report) -> None:
    part = markdown(report).partition("## At the lowest validation loss")[2].partition("\n## ")[0]
    row = next(line for line in part.splitlines() if line.startswith("| ticket@2"))
    assert [cell.strip() for cell in row.split("|")[2:5]] == [
        "310 (300-320, n = 3)",
        "97.0 % (96.6-97.4, n = 3)",
        "97.9 % (97.6-98.1, n = 3)",
    ]
    assert ("ticket@2", "reinit@2", "2.50x (2.50-2.50)", "wins") in [row[:4] for row in sooner_rows(report)]
    assert "2.50&times; (2.50&ndash;2.50)" in section(report)


def test_without_validations_within_epochs_there_is_no_such_section(
    manifests: list[Manifest], machine: Manifest
) -> None:
    report = report_from_manifests("digits", machine, manifests)
    assert section(report) == ""
    assert "lowest validation loss" not in markdown(report)
    assert report.to_json()["early_stop"] == []


def test_report_json_holds_the_early_stop_of_every_replicate(report: Report) -> None:
    found = report.to_json()["early_stop"]
    assert len(found) == 5 * 3
    assert found[0] == {
        "subject": "dense",
        "replicate": 0,
        "iteration": 600,
        "val_loss": 0.1,
        "val_accuracy": 0.97,
        "test_accuracy": 0.95,
    }
