"""Weights kept and MACs executed of networks in blocks, side by side; no layer without a block is silent."""

from __future__ import annotations

from typing import Any

import pytest

from ticket_export.report.page import markdown
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.ticket_sections import blocks as section
from ticket_export.report.ticket_tables import block_rows, layer_rows, no_block_rows

Manifest = dict[str, Any]


@pytest.fixture
def report(manifests: list[Manifest], machine: Manifest) -> Report:
    for manifest in manifests:
        facts = manifest["facts"]
        if manifest["stage"] == "find" and facts["subject"] == "ticket@2":
            facts["element_density"] = 0.21
        if manifest["stage"] == "shrink" and facts["subject"] in ("ticket@1", "ticket@2", "reinit@2"):
            facts["blocks"] = {
                "layers": {
                    "conv2": {"blocks": 2, "form": "grouped", "dense_macs": 1000, "executed_macs": 600},
                    "conv3": {"blocks": 3, "form": "blocks", "dense_macs": 1000, "executed_macs": 255},
                },
                "no_block": {"conv1": "it has 16 rows, fewer than min_rows 32"},
            }
            if facts["subject"] == "ticket@1":
                facts["blocks"]["no_block"]["conv4"] = "its blocks would keep <every> weight"
    return report_from_manifests("digits", machine, manifests)


def test_weights_kept_and_macs_executed_stand_side_by_side(report: Report) -> None:
    assert block_rows(report) == [
        ("ticket@1", "40.0 %", "71.0 %", "72.0 %"),
        ("ticket@2", "21.0 %", "48.0 %", "51.0 %"),
        ("reinit@2", "21.0 %", "48.0 %", "51.0 %"),  # under the ticket's mask
    ]


def test_a_layer_without_a_block_is_told_with_its_reason_and_where(report: Report) -> None:
    assert no_block_rows(report) == [
        ("conv1", "it has 16 rows, fewer than min_rows 32", "all"),
        ("conv4", "its blocks would keep <every> weight", "ticket@1"),
    ]
    assert "| conv1   | it has 16 rows, fewer than min_rows 32 | all" in markdown(report)
    assert "its blocks would keep &lt;every&gt; weight" in section(report)


def test_every_layer_has_its_form_and_its_macs(report: Report) -> None:
    rows = layer_rows(report)
    assert len(rows) == 3 * 3 * 2
    assert rows[:2] == [
        ("ticket@1", "0", "conv2", "2", "grouped", "60.0 %"),
        ("ticket@1", "0", "conv3", "3", "blocks", "25.5 %"),
    ]
    assert "<summary>All 18 layers</summary>" in section(report)


def test_without_blocks_there_is_no_such_section(manifests: list[Manifest], machine: Manifest) -> None:
    report = report_from_manifests("digits", machine, manifests)
    assert report.blocks == ()
    assert section(report) == ""
    assert "MACs executed" not in markdown(report)
