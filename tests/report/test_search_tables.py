"""Searches of supernets in reports: a line per event, a search told once."""

from __future__ import annotations

from typing import Any

from ticket_export.report.lineage import lineage_from_manifests
from ticket_export.report.search_tables import HEADS, markdown, search_rows, section
from ticket_export.report.searches import searches_of

EVENT = {
    **{"epoch": 2, "target": 0.25, "kept_channels": 1200, "kept_branches": 26, "kept_blocks": 9},
    **{"zeroed": 30, "removed": 12, "reactivated": 3, "rel_error": 2e-7, "average_rel_error": 3e-7},
    "macs": 1_000_000,
}


def manifest(stage: str, key: str, subject: str, **rest: Any) -> dict[str, Any]:
    facts = {"subject": subject, "replicate": 0, **rest.pop("facts", {})}
    return {"stage": stage, "key": key, "parents": {}, "facts": facts, **rest}


def chain(subject: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    name = subject.partition("@")[0]
    return [
        manifest("find", f"f{name}", subject, facts=facts),
        manifest("train", f"t{name}", subject, parents={"mask": f"find/f{name}"}),
        manifest("export", f"e{name}", subject, parents={"network": f"train/t{name}"}),
    ]


def searches(facts: dict[str, Any]) -> Any:
    made = chain("ticket@1", facts) + chain("searched@1", facts) + chain("no_reactivation@1", facts)
    return searches_of(
        lineage_from_manifests(made), [("searched@1", 0), ("no_reactivation@1", 0), ("ticket@1", 0)]
    )


def test_each_search_has_a_line_per_event_and_searched_shares_the_tickets() -> None:
    found = searches({"events": [EVENT, {**EVENT, "epoch": 4}]})
    assert [(one.subject, len(one.events)) for one in found] == [("ticket@1", 2), ("no_reactivation@1", 2)]
    assert search_rows(found)[0] == (
        *("ticket@1", "0", "2", "25.0 %", "1,200", "26", "9", "30", "12", "3", "1,000,000", "3.0e-07"),
    )


def test_reports_without_a_search_have_no_section_of_it() -> None:
    found = searches({})
    assert (found, markdown(found), section(found)) == ((), [], "")


def test_both_pages_hold_the_table() -> None:
    found = searches({"events": [EVENT]})
    assert all(head in markdown(found)[-1] for head in HEADS)
    assert "1,200" in section(found)
