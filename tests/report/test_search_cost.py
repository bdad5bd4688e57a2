"""What finding a network cost, in dense trainings: everything its training depends on, and no more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ticket_export.errors import StoreError
from ticket_export.report.page import markdown
from ticket_export.report.reading import reading
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.search_cost import SearchCost
from ticket_export.report.ticket_sections import search_cost as section

Manifest = dict[str, Any]


def _cost(report: Report, subject: str, replicate: int = 1) -> SearchCost:
    return next(c for c in report.search_costs if (c.subject, c.replicate) == (subject, replicate))


def _only(manifests: list[Manifest], stage: str, subject: str, replicate: int = 1) -> Manifest:
    (found,) = (
        m
        for m in manifests
        if (m["stage"], m["facts"].get("subject"), m["facts"].get("replicate")) == (stage, subject, replicate)
    )
    return found


def _name(manifest: Manifest) -> str:
    return f"{manifest['stage']}/{manifest['key']}"


@pytest.fixture
def report(manifests: list[Manifest], machine: Manifest) -> Report:
    return report_from_manifests("digits", machine, manifests)


def test_dense_costs_one_dense_training(report: Report) -> None:
    cost = _cost(report, "dense")
    assert (cost.time_ratio, cost.macs_ratio) == (1.0, 1.0)
    assert [(one.subject, one.num_epochs) for one in cost.trained] == [("dense", 12)]


def test_a_ticket_costs_the_trainings_behind_its_mask_and_its_start_and_its_own(report: Report) -> None:
    cost = _cost(report, "ticket@2")
    assert [one.subject for one in cost.trained] == ["dense", "unstructured@1", "ticket@2"]
    # 12 epochs dense, 10 under the element mask at dense MACs, 10 at 51 % of them
    assert cost.macs_ratio == pytest.approx((12 + 10 + 10 * 0.51) / 12, rel=1e-6)
    assert cost.time_ratio == pytest.approx((12 + 10 + 10 * (0.3 + 0.7 * 0.51)) / 12, rel=1e-6)
    assert cost.seconds == pytest.approx(1.5 * (12 + 10 + 10 * (0.3 + 0.7 * 0.51)))


@pytest.mark.parametrize(
    ("subject", "trained"),
    [
        ("ticket@1", ["dense", "ticket@1"]),
        ("unstructured@2", ["dense", "unstructured@1", "unstructured@2"]),
        ("random@2", ["dense", "unstructured@1", "random@2"]),
        ("reinit@2", ["dense", "unstructured@1", "reinit@2"]),
        ("uniform@2", ["uniform@2"]),  # it needs the ticket's MACs alone, which is a number
    ],
)
def test_a_control_costs_what_it_takes_from_the_ticket(
    report: Report, subject: str, trained: list[str]
) -> None:
    assert sorted(one.subject for one in _cost(report, subject).trained) == sorted(trained)
    assert _cost(report, subject).trained[-1].subject == subject


def test_the_peer_needs_dense_and_not_the_search(manifests: list[Manifest], machine: Manifest) -> None:
    for replicate in range(3):
        finder = _only(manifests, "find", "uniform@2", replicate)
        finder["parents"]["trained"] = _name(_only(manifests, "train", "dense", replicate))
    text = json.dumps(manifests).replace("uniform@2", "depgraph@2")
    cost = _cost(report_from_manifests("digits", machine, json.loads(text)), "depgraph@2")
    assert [one.subject for one in cost.trained] == ["dense", "depgraph@2"]


def test_a_teacher_is_part_of_the_cost(manifests: list[Manifest], machine: Manifest) -> None:
    dense = _only(manifests, "train", "dense")
    _only(manifests, "train", "uniform@2")["parents"]["teacher"] = _name(dense)
    cost = _cost(report_from_manifests("digits", machine, manifests), "uniform@2")
    assert [one.subject for one in cost.trained] == ["dense", "uniform@2"]


@pytest.mark.parametrize(
    ("rewind", "epochs"),
    [({"rewind_epoch": 3}, [3]), ({"rewind_epoch": 2, "rewind_step": 40}, [3]), ({"rewind_epoch": 0}, [])],
)
def test_a_dense_training_that_gives_the_rewind_point_alone_counts_up_to_it(
    manifests: list[Manifest], machine: Manifest, rewind: dict[str, int], epochs: list[int]
) -> None:
    for replicate in range(3):
        dense = _only(manifests, "train", "dense", replicate)
        dense["sections"] = {"find": rewind}
        _only(manifests, "find", "ticket@1", replicate)["parents"] = {"start": _name(dense)}
    report = report_from_manifests("digits", machine, manifests)
    cost = _cost(report, "ticket@1")
    assert [one.num_epochs for one in cost.trained] == [*epochs, 10]
    assert cost.macs_ratio == pytest.approx((sum(epochs) + 10 * 0.72) / 12, rel=1e-6)
    assert cost.seconds == pytest.approx(1.5 * (sum(epochs) + 10 * (0.3 + 0.7 * 0.72)))
    assert [one.num_epochs for one in _cost(report, "ticket@2").trained] == [12, 10, 10]


def test_a_search_that_stops_early_is_a_fraction_of_a_dense_training(
    manifests: list[Manifest], machine: Manifest
) -> None:
    for replicate in range(3):
        search = json.loads(json.dumps(_only(manifests, "train", "dense", replicate)))
        search["key"] = f"5ea4c400000{replicate}"
        search["facts"] |= {"subject": "search@1", "num_epochs": 3, "seconds": 4.5}
        manifests.append(search)
        _only(manifests, "find", "ticket@1", replicate)["parents"] = {"trained": _name(search)}
        training = _only(manifests, "train", "ticket@1", replicate)
        training["parents"] = {"mask": training["parents"]["mask"], "weights": _name(search)}
    report = report_from_manifests("digits", machine, manifests)
    cost = _cost(report, "ticket@1")
    assert [(one.subject, one.num_epochs) for one in cost.trained] == [("search@1", 3), ("ticket@1", 10)]
    assert cost.macs_ratio == pytest.approx((3 + 10 * 0.72) / 12, rel=1e-6)
    assert "| ticket@1       | search@1 3 + own 10 " in markdown(report)
    assert "search@1" not in report.subjects
    assert "search is a training that only prepares its ticket" in dict(reading(report))["Subjects"]


@pytest.mark.parametrize(
    ("field", "value"), [("threads", 2), ("device", "cuda:0"), ("processes", 2), ("machine", "another")]
)
def test_times_of_unequal_trainings_are_not_compared(
    manifests: list[Manifest], machine: Manifest, field: str, value: object
) -> None:
    for replicate in range(3):
        training = _only(manifests, "train", "unstructured@1", replicate)
        if field == "machine":
            training["machine"] = {**machine, "fingerprint": value}
        else:
            training["facts"][field] = value
    report = report_from_manifests("digits", machine, manifests)
    assert _cost(report, "ticket@2").time_ratio is None
    assert _cost(report, "ticket@1").time_ratio is not None
    assert _cost(report, "ticket@2").macs_ratio == pytest.approx((12 + 10 + 10 * 0.51) / 12, rel=1e-6)
    row = next(line for line in section(report).split("<tr") if ">ticket@2</th>" in line)
    assert '"Time"><span>-</span>' in row
    assert "2.3 dense trainings" in row


def test_the_costs_are_told_in_dense_trainings(report: Report) -> None:
    table = markdown(report).partition("## What finding it cost")[2]
    row = next(line for line in table.splitlines() if line.startswith("| ticket@2"))
    assert [cell.strip() for cell in row.split("|")[2:5]] == [
        "dense 12 + unstructured@1 10 + own 10",
        "2.4 dense trainings (n = 3)",
        "2.3 dense trainings (n = 3)",
    ]
    dense = next(line for line in table.splitlines() if line.startswith("| dense"))
    assert "1.0 dense training (n = 3)" in dense


def test_levels_of_one_kind_are_told_together(manifests: list[Manifest], machine: Manifest) -> None:
    for replicate in range(3):
        finder = _only(manifests, "find", "ticket@2", replicate)
        finder["parents"]["trained"] = _name(_only(manifests, "train", "unstructured@2", replicate))
    report = report_from_manifests("digits", machine, manifests)
    assert "dense 12 + unstructured@1-2 20 + own 10" in markdown(report)


def test_report_json_holds_the_cost_of_every_replicate(report: Report) -> None:
    costs = report.to_json()["search_cost"]
    assert len(costs) == 7 * 3
    found = next(cost for cost in costs if (cost["subject"], cost["replicate"]) == ("ticket@1", 2))
    assert found["macs_ratio"] == pytest.approx((12 + 10 * 0.72) / 12, rel=1e-6)
    assert [one["subject"] for one in found["trained"]] == ["dense", "ticket@1"]


def test_a_result_whose_origin_is_missing_is_named(manifests: list[Manifest], machine: Manifest) -> None:
    lost = _only(manifests, "train", "unstructured@1", 2)
    kept = [manifest for manifest in manifests if manifest is not lost]
    with pytest.raises(StoreError, match=rf"find .*@2, replicate 2: its parent 'trained', {_name(lost)}"):
        report_from_manifests("digits", machine, kept)


def test_a_training_of_an_old_store_has_the_epochs_of_its_history(
    manifests: list[Manifest], machine: Manifest
) -> None:
    for manifest in manifests:
        for field in ("num_epochs", "processes", "early_stop"):
            manifest["facts"].pop(field, None)
    cost = _cost(report_from_manifests("digits", machine, manifests), "ticket@2")
    assert [one.num_epochs for one in cost.trained] == [12, 10, 10]
    assert cost.time_ratio == pytest.approx((12 + 10 + 10 * (0.3 + 0.7 * 0.51)) / 12, rel=1e-6)
