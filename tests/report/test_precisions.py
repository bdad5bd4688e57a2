from __future__ import annotations

from typing import Any

import pytest

from ticket_export.report import sections, table
from ticket_export.report.page import markdown
from ticket_export.report.rows import Report, report_from_manifests

Manifest = dict[str, Any]
FACTS_BY_PRECISION: dict[str, Manifest] = {
    "fp32": {},
    "fp16": {"precision_rel_error": 8.1e-4, "fp32_layers": ["layer1.0.conv1", "fc"]},
    "int8": {"precision_rel_error": 0.11, "fp32_layers": [], "top1_agreement": 0.993},
}


@pytest.fixture
def report(manifests: list[Manifest], machine: Manifest) -> Report:
    """The known run with every file, accuracy and latency in three precisions, coarsest first."""
    found = []
    for precision, own in reversed(FACTS_BY_PRECISION.items()):
        for manifest in manifests:
            if manifest["stage"] == "train" and precision != "fp32":
                continue
            facts = dict(manifest["facts"])
            if manifest["stage"] in ("export", "measure"):
                facts["precision"] = precision
            if manifest["stage"] == "export":
                facts |= own
            found.append(manifest | {"facts": facts})
    return report_from_manifests("digits", machine, found)


def test_layers_kept_in_fp32_and_both_errors_stand_beside_each_other(report: Report) -> None:
    rows = table.precision_rows(report)
    assert len(rows) == 7 * 3 * 3
    assert [row[2] for row in rows[:3]] == ["fp32", "fp16", "int8"]
    assert rows[0][3:8] == ("98.1 %", "3.1e-07", "-", "-", "-")
    assert rows[1][3:8] == ("98.1 %", "3.1e-07", "8.1e-04", "-", "layer1.0.conv1, fc")
    assert rows[2][3:8] == ("98.1 %", "3.1e-07", "1.1e-01", "99.3 %", "none")


def test_they_are_in_the_markdown_the_page_and_the_json(report: Report) -> None:
    assert "layer1.0.conv1, fc" in markdown(report).partition("## Precisions")[2]
    assert "layer1.0.conv1, fc" in sections.precisions(report)
    kept = [file["fp32_layers"] for file in report.to_json()["files"][:3]]
    assert kept == [[], ["layer1.0.conv1", "fc"], []]


def test_fp32_comes_first_everywhere(report: Report) -> None:
    assert list(dict.fromkeys(row["precision"] for row in report.rows)) == ["fp32", "fp16", "int8"]
    assert "Measured by ort-cpu, fp32" in report.summary


def test_a_run_in_fp32_alone_has_no_such_section(manifests: list[Manifest], machine: Manifest) -> None:
    plain = report_from_manifests("digits", machine, manifests)
    assert table.precision_rows(plain) == []
    assert sections.precisions(plain) == ""
    assert "## Precisions" not in markdown(plain)
