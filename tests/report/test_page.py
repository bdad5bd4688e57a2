"""The three files: self-contained, escaped, in order, and written in one step or not at all."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ticket_export.errors import StoreError
from ticket_export.report.page import markdown, page, write_report
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.table import measured_table, plain_value

Manifest = dict[str, Any]
VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Collects what a reader sees, and fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title") and data.strip():
            self.text.append(" ".join(data.split()))


def _outline(html: str) -> Outline:
    outline = Outline()
    outline.feed(html)
    outline.close()
    assert outline.open == []
    return outline


@pytest.fixture(scope="module")
def report(manifests_of: Callable[..., list[Manifest]], machine: Manifest) -> Report:
    return report_from_manifests("digits_resnet20", machine, manifests_of())


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page(report)


def test_the_page_opens_with_its_summary(html: str) -> None:
    text = " ".join(_outline(html).text).replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "ticket_export report \N{MIDDLE DOT} digits_resnet20 ticket@2 keeps 51.0 % of the MACs"
    )
    assert text.index("is 1.31\N{MULTIPLICATION SIGN} as fast as dense") < text.index("Side by side")


def test_the_page_shows_machine_versions_n_and_protocol_before_the_first_table(html: str) -> None:
    head = html[: html.index("Side by side")]
    for fact in (
        "AMD EPYC 9B14",
        "onnxruntime 1.31.1",
        "torch 2.13.0",
        "10 interleaved rounds x 50 samples",
        "63 of 63",
    ):
        assert fact in head


def test_the_page_fetches_nothing(html: str) -> None:
    assert all(link.startswith("data:image/svg+xml;base64,") for link in _outline(html).links)
    assert not re.search(r"<script|<link|@import|url\(", html)


def test_every_figure_is_a_drawing_with_a_description(html: str) -> None:
    images = _outline(html).images
    assert [(image["alt"] or "").split(".")[0] for image in images] == [
        "Accuracy against measured latency",
        "Weights, MACs and time kept",
        "Latency against batch",
        "Channels kept per group, ticket@2",
    ]
    for image in images:
        svg = base64.b64decode((image["src"] or "").partition(",")[2])
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_one_batch_has_no_curve_over_batches(
    manifests_of: Callable[..., list[Manifest]], machine: Manifest
) -> None:
    report = report_from_manifests("digits", machine, manifests_of(batches=(8,)))
    assert "Latency against batch" not in page(report)


def _only_dense(manifests: list[Manifest]) -> list[Manifest]:
    for manifest in manifests:
        if "rows" in manifest["facts"]:
            rows = manifest["facts"]["rows"]
            manifest["facts"]["rows"] = [row for row in rows if row["subject"] == "dense"]
    return manifests


def test_dense_alone_has_no_verdict_and_no_shares_of_itself(
    manifests: list[Manifest], machine: Manifest
) -> None:
    html = page(report_from_manifests("digits", machine, _only_dense(manifests)))
    assert "digits: no ticket was measured" in html
    assert "What the ticket is worth" not in html
    assert [(image["alt"] or "").split(".")[0] for image in _outline(html).images] == [
        "Accuracy against measured latency",
        "Latency against batch",
    ]


def test_two_runtimes_are_told_apart_in_tables_verdicts_and_figures(
    manifests: list[Manifest], machine: Manifest
) -> None:
    in_torch = json.loads(json.dumps([m for m in manifests if m["stage"] == "measure"]))
    for manifest in in_torch:
        manifest["facts"]["runtime"] = "torch"
    html = page(report_from_manifests("digits", machine, manifests + in_torch))
    assert "<caption>ort-cpu, fp32." in html
    assert "<caption>torch, fp32." in html
    assert html.count("less random@2, torch fp32") == 1
    assert len(_outline(html).images) == 2 * 3 + 1


def test_a_name_cannot_inject_markup(manifests: list[Manifest], machine: Manifest) -> None:
    report = report_from_manifests("<b>x</b>&", machine | {"cpu": "<script>"}, manifests)
    html = page(report)
    assert "&lt;b&gt;x&lt;/b&gt;&amp;" in html
    assert "<script>" not in html
    assert "<b>x</b>" not in html


def test_an_unstable_timing_is_boxed_with_its_reason(manifests: list[Manifest], machine: Manifest) -> None:
    latency = next(m["facts"] for m in manifests if m["facts"].get("batch") == 64)
    for row in latency["rows"][3:5]:
        row |= {"stable": False, "reasons": ["rounds drift by 9 %"]}
    report = report_from_manifests("digits", machine, manifests)
    html = page(report)
    assert "2 of 63 timings are unstable" in html
    assert html.count("<li>ort-cpu, batch 64, ticket@1: rounds drift by 9 %</li>") == 1
    assert "- ort-cpu, batch 64, ticket@1: rounds drift by 9 %\n" in markdown(report)


def test_a_reason_that_holds_for_all_is_told_once(manifests: list[Manifest], machine: Manifest) -> None:
    for manifest in manifests:
        for row in manifest["facts"].get("rows", []):
            row |= {"stable": False, "reasons": [f"reason {n}" for n in range(4)]}
    html = page(report_from_manifests("digits", machine, manifests))
    assert "<li>ort-cpu, batch 1, all subjects: reason 0</li>" in html
    assert "<li>and 4 more, beside every measurement below</li>" in html  # 3 batches x 4 reasons, 8 shown


def test_a_difference_that_is_not_shown_is_said_in_its_cell(html: str) -> None:
    row = next(line for line in html.split("<tr") if ">unstructured@2</th>" in line)
    assert row.count("no difference shown") == 3  # at each batch, 1.00x to 1.01x


def test_the_same_numbers_give_the_same_bytes(report: Report, html: str) -> None:
    assert page(report) == html


def test_markdown_has_a_table_per_batch_with_a_row_per_subject(report: Report) -> None:
    text = markdown(report)
    assert text.count("## ort-cpu, fp32, batch") == 3
    batch_64 = text.partition("batch 64, compute, 1 thread")[2].partition("##")[0]
    rows = batch_64.strip().splitlines()[2:9]
    assert [line.split("|")[1].strip() for line in rows] == list(report.subjects)
    row = next(line for line in batch_64.splitlines() if "ticket@2" in line)
    for cell in (
        "97.9 % (97.6-98.1, n = 3)",
        "48.0 %",
        "51.0 %",
        "3.84",
        "1.62x (1.57-1.67)",
        "100 %",
        "yes",
    ):
        assert f" {cell} " in row


def test_every_exported_file_is_listed_where_it_lies(
    manifests_of: Callable[..., list[Manifest]], report: Report, html: str
) -> None:
    paths = {f"export/{m['key']}/model.onnx" for m in manifests_of() if m["stage"] == "export"}
    assert [(file.subject, file.replicate) for file in report.exported][:4] == [
        ("dense", 0),
        ("dense", 1),
        ("dense", 2),
        ("ticket@1", 0),
    ]
    files = markdown(report).partition("## Exported files")[2].partition("##")[0]
    assert len(paths) == len(report.exported) == 21
    assert [files.count(path) for path in paths] == [1] * 21
    assert [html.count(path) for path in paths] == [1] * 21


def test_the_files_are_written_whole_and_json_is_the_contract(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "digits"
    paths = write_report(report, folder)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    assert json.loads(paths[0].read_text(encoding="utf-8")) == report.to_json()


def test_a_folder_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match=re.escape(str(blocked / "runs"))):
        write_report(report, blocked / "runs")


def test_the_terminal_table_of_measure_marks_the_baseline_and_the_unstable(report: Report) -> None:
    baseline, ticket = (
        dict(row)
        for row in report.rows
        if row["replicate"] == 0 and row["batch"] == 1 and row["subject"] in ("dense", "ticket@2")
    )
    ticket |= {"stable": False, "speedup": {"ratio": 1.01, "low": 0.97, "high": 1.05, "baseline": "dense"}}
    lines = measured_table([baseline, ticket]).splitlines()
    assert "baseline" in lines[2]
    assert lines[2].endswith("yes")
    assert "1.01x (0.97-1.05), no difference shown" in lines[3]
    assert lines[3].endswith("NO")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.123456789, "0.123457"),
        ({"p50": 1.5, "p90": 2.0}, "p50 1.5, p90 2"),
        (["a", "b"], "a; b"),
        (True, "True"),
    ],
)
def test_a_value_is_shown_plainly(value: object, text: str) -> None:
    assert plain_value(value) == text


def _explained(manifests: list[Manifest]) -> list[Manifest]:
    for manifest in manifests:
        if "rows" in manifest["facts"]:
            batch = manifest["facts"]["batch"]
            manifest["facts"]["causes"] = [
                {
                    "subject": subject,
                    "replicate": 0,
                    "kind": "widths",
                    "sentence": f"1.31x <measured> at {batch}.",
                    "evidence": {},
                }
                for subject in ("ticket@2", "uniform@2")
            ]
    return manifests


def test_causes_stand_beside_the_speeds_and_those_of_other_batches_and_controls_are_folded(
    manifests_of: Callable[..., list[Manifest]], machine: Manifest
) -> None:
    report = report_from_manifests("digits", machine, _explained(manifests_of()))
    html = page(report)
    _outline(html)
    part = html[html.index("Time against MACs") : html.index("What the ticket is worth")]
    table, folded = part.split("<details>")
    assert "ort-cpu, fp32, batch 64" in table
    assert "1.31&times; &lt;measured&gt; at 64." in table
    assert "batch 8" not in table
    assert "uniform@2" not in table
    assert folded.count("<li>") == 6
    text = markdown(report)
    assert "- ticket@2, ort-cpu, fp32, batch 64: 1.31x <measured> at 64." in text
    assert "causes" not in report.to_json()


def test_a_report_without_causes_has_no_such_section(report: Report, html: str) -> None:
    assert report.causes == ()
    assert "Time against MACs" not in html + markdown(report)
