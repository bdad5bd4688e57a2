"""What a shrink did, in words: like groups share a line, every group that stays has its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from ticket_export.report.shrunk import common_name, like_names, near_zero_text, shrunk_text
from ticket_export.shrink.account import GroupChange, ShrinkReport
from ticket_export.shrink.exact import shrink
from ticket_export.shrink.near_zero import NearZeroReport, Zeroed


def _change(before: int, after: int, how: str) -> GroupChange:
    return GroupChange(before=before, after=after, how=how)


@pytest.fixture
def report() -> ShrinkReport:
    halved = GroupChange(
        before=64, after=33, how="31 constant, folded into a carrier, 32 alive, 1 carrying constants"
    )
    other = GroupChange(before=64, after=34, how="30 dead, 34 alive")
    whole = GroupChange(before=256, after=256, how="256 alive")
    pinned = GroupChange(before=10, after=10, how="kept whole: model output")
    widths: Mapping[str, GroupChange] = {
        **{f"layer1.{block}.conv1": halved for block in range(12)},
        "layer1.12.conv1": other,
        **{
            f"layer2.{block}.conv1": _change(128, 64, f"{60 - block} dead, {4 + block} constant")
            for block in (0, 7, 3)
        },
        "layer1.0.conv3": whole,
        "layer1.1.conv3": whole,
        "stem": GroupChange(before=64, after=64, how="64 alive"),
        "fc": pinned,
    }
    some = shrink(nn.Linear(2, 2), torch.zeros(1, 2)).report
    return replace(
        some,
        **{"params": 1_500, "params_dense": 2_000, "macs": 300_000, "macs_dense": 1_200_000},
        **{"bytes": 6_000, "bytes_dense": 8_000, "widths": widths, "rel_error": 3.2e-7, "num_carriers": 14},
        **{"num_terms": 0, "num_folds": 1, "num_constants": 0, "open_size": True},
    )


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_costs_stand_first_with_the_share_that_is_kept(report: ShrinkReport) -> None:
    rows = _rows(shrunk_text(report))
    assert rows[0] == ["before", "after", "kept"]
    assert ["weights", "2,000", "1,500", "75.0", "%"] in rows
    assert ["bytes", "8,000", "6,000", "75.0", "%"] in rows
    assert ["MACs", "per", "image", "1,200,000", "300,000", "25.0", "%"] in rows


def test_groups_alike_but_for_their_numbers_share_a_line(report: ShrinkReport) -> None:
    rows = _rows(shrunk_text(report))
    assert ["layer1.*.conv1", "x12", "64", "33", "31", "constant,"] in [row[:6] for row in rows]
    assert ["layer1.12.conv1", "64", "34", "30", "dead,"] in [row[:5] for row in rows]
    assert sum(row[:1] == ["layer1.*.conv1"] for row in rows) == 1


def test_numbers_of_groups_on_one_line_become_spans(report: ShrinkReport) -> None:
    rows = _rows(shrunk_text(report))
    assert ["layer2.*.conv1", "x3", "128", "64", "53-60", "dead,", "4-11", "constant"] in rows
    alone = [row for row in _rows(shrunk_text(report, every_group=True)) if row[:1] == ["layer2.7.conv1"]]
    assert alone == [["layer2.7.conv1", "128", "64", "53", "dead,", "11", "constant"]]


def test_groups_that_stay_are_listed_by_their_reason(report: ShrinkReport) -> None:
    lines = [line.strip() for line in shrunk_text(report).splitlines()]
    assert "unchanged: 4 groups" in lines
    assert "every channel is needed: layer1.*.conv3 (2 x 256), stem (64)" in lines
    assert "model output: fc (10)" in lines


def test_every_group_has_a_line_when_asked_for(report: ShrinkReport) -> None:
    text = shrunk_text(report, every_group=True)
    named = [row[0] for row in _rows(text) if row and row[0] in report.widths]
    assert named == list(report.widths)
    assert "unchanged" not in text
    assert ["fc", "10", "10", "kept", "whole:", "model", "output"] in _rows(text)


def test_the_proof_the_form_and_the_batch_close_the_text(report: ShrinkReport) -> None:
    assert shrunk_text(report).splitlines()[-2:] == [
        "checked: relative error 3.2e-07 (max|a-b| / max|b|), any batch",
        "module form, 14 carrier channels, 1 fold",
    ]
    fixed = replace(
        report, dynamic_batch=False, open_size=False, form="graph", num_carriers=0, num_constants=2
    )
    assert shrunk_text(replace(fixed, num_terms=1)).splitlines()[-2:] == [
        "checked: relative error 3.2e-07 (max|a-b| / max|b|), this batch only, as the network fixes it, "
        "this size only",
        "graph form, 1 added term, 1 fold, 2 operands that became constant",
    ]


def test_operations_unknown_to_the_analysis_are_named(report: ShrinkReport) -> None:
    assert "unknown to the analysis" not in shrunk_text(report)
    text = shrunk_text(replace(report, unknown_ops=("fft_rfft", "topk")))
    assert "unknown to the analysis, so that their channels stay: fft_rfft, topk" in text


def test_nothing_removed_is_said(report: ShrinkReport) -> None:
    stays = {name: change for name, change in report.widths.items() if change.after == change.before}
    text = shrunk_text(replace(report, widths=stays))
    assert "no group has a channel that may go" in text
    assert "unchanged: 4 groups" in text
    assert "no group has a channel that may go" in shrunk_text(replace(report, widths={}))


def test_a_long_list_of_names_ends_with_how_many_are_left(report: ShrinkReport) -> None:
    names = ["".join(chr(ord("a") + int(digit)) for digit in f"{number:03}") for number in range(100)]
    widths = {name: GroupChange(before=8, after=8, how="8 alive") for name in names}
    (line,) = [
        line for line in shrunk_text(replace(report, widths=widths)).splitlines() if "is needed" in line
    ]
    num_shown = line.count("(8)")
    assert line.endswith(f" and {100 - num_shown} more")
    assert 100 <= len(line) <= 130


def test_names_go_together_by_one_number_alone() -> None:
    names = ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "fc", "layer1.0.conv2", "layer1.1.conv2"]
    assert like_names(names) == [
        ["layer1.0.conv1", "layer1.1.conv1"],
        ["layer2.0.conv1"],
        ["layer1.0.conv2", "layer1.1.conv2"],
        ["fc"],
    ]
    assert like_names([]) == []


def test_a_channel_kept_for_the_width_is_a_reason_to_stay(report: ShrinkReport) -> None:
    widths = {"a": GroupChange(before=8, after=8, how="6 alive, 2 kept for the width")}
    assert "  6 alive, 2 kept for the width: a (8)" in shrunk_text(replace(report, widths=widths))


def test_a_common_name_has_a_star_where_numbers_differ() -> None:
    assert common_name(["layer1.0.conv1"]) == "layer1.0.conv1"
    assert common_name(["layer1.0.conv1", "layer1.10.conv1"]) == "layer1.*.conv1"
    assert common_name(["layer1.0.conv1", "layer2.0.conv1"]) == "layer*.0.conv1"


def test_near_zeros_are_told_by_tensor_and_in_all() -> None:
    report = NearZeroReport(
        threshold=1e-6,
        tensors=(
            Zeroed(tensor="conv.weight", kind="rows", num_zeroed=3, width=8, largest=9.5e-7),
            Zeroed(tensor="bn.weight", kind="gammas", num_zeroed=1, width=8, largest=1e-9),
        ),
        moved=2.5e-6,
        same_top1_fraction=0.875,
        num_samples=8,
    )
    text = near_zero_text(report)
    assert ["conv.weight", "rows", "3", "of", "8", "9.50e-07"] in _rows(text)
    assert "nearly zero (at or below 1e-06): 3 rows and 1 gamma set to zero, the largest 9.50e-07" in text
    assert "outputs moved by 2.5e-06 (max|a-b| / max|b|) on 8 random inputs, top-1 the same on 87.5 %" in text
    assert "top-1" not in near_zero_text(replace(report, same_top1_fraction=None))
    nothing = near_zero_text(replace(report, tensors=()))
    assert nothing == "nothing is nearly zero: no row or gamma lies between 0 and 1e-06"
