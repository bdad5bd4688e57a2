"""Weights kept and MACs executed of networks in blocks, side by side; no layer without a block is silent."""

from __future__ import annotations

from typing import Any

import pytest

from ticket_export.report.page import markdown
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.ticket_sections import blocks as section
from ticket_export.report.ticket_tables import block_rows, layer_rows, whole_rows

Manifest = dict[str, Any]


def _layer(blocks: int, form: str, executed_macs: int, reason: str) -> Manifest:
    facts = {"blocks": blocks, "form": form, "reason": reason}
    return facts | {"dense_macs": 1000, "executed_macs": executed_macs}


@pytest.fixture
def report(manifests: list[Manifest], machine: Manifest) -> Report:
    for manifest in manifests:
        facts = manifest["facts"]
        if manifest["stage"] == "find" and facts["subject"] == "ticket@2":
            facts["imp_density"] = 0.21
        if manifest["stage"] == "shrink" and facts["subject"] in ("ticket@1", "ticket@2", "reinit@2"):
            facts["param_density"] = 0.2
            facts["blocks"] = {
                "layers": {
                    "conv1": _layer(1, "dense", 1000, "its blocks hold every row and every input channel"),
                    "conv2": _layer(2, "grouped", 600, "as it was"),
                    "conv3": _layer(3, "blocks", 255, "its channels stand in its blocks' order"),
                },
                "no_block": {"conv1.weight": "it has 16 rows, fewer than min_rows 32"},
            }
            if facts["subject"] == "ticket@1":
                reason = "its 3 blocks would execute <110.0 %> of its MACs"
                facts["blocks"]["layers"]["conv4"] = _layer(3, "dense", 1000, reason)
    return report_from_manifests("digits", machine, manifests)


def test_weights_kept_and_macs_executed_stand_side_by_side(report: Report) -> None:
    assert block_rows(report) == [
        ("ticket@1", "-", "20.0 %", "71.0 %", "72.0 %"),
        ("ticket@2", "21.0 %", "20.0 %", "48.0 %", "51.0 %"),
        ("reinit@2", "21.0 %", "20.0 %", "48.0 %", "51.0 %"),  # under the ticket's mask
    ]


def test_a_layer_that_runs_whole_is_told_once_with_its_reason_and_where(report: Report) -> None:
    assert whole_rows(report) == [
        ("conv1", "it has 16 rows, fewer than min_rows 32", "all"),
        ("conv4", "its 3 blocks would execute <110.0 %> of its MACs", "ticket@1"),
    ]
    assert "| conv1   | it has 16 rows, fewer than min_rows 32 " in markdown(report)
    assert "would execute &lt;110.0&nbsp;%&gt; of its MACs" in section(report)


def test_every_layer_has_its_form_and_its_macs(report: Report) -> None:
    rows = layer_rows(report)
    assert len(rows) == 3 * 3 * 3 + 3
    assert rows[1:3] == [
        ("ticket@1", "0", "conv2", "2", "grouped", "60.0 %", "as it was"),
        ("ticket@1", "0", "conv3", "3", "blocks", "25.5 %", "its channels stand in its blocks' order"),
    ]
    assert "<summary>All 30 layers</summary>" in section(report)


def test_without_blocks_there_is_no_such_section(manifests: list[Manifest], machine: Manifest) -> None:
    report = report_from_manifests("digits", machine, manifests)
    assert report.blocks == ()
    assert section(report) == ""
    assert "MACs executed" not in markdown(report)
