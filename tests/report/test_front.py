"""The Pareto front: what is shown to be beaten leaves it, what is not resolved stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from ticket_export.report.figure import accuracy_against_latency, draw_front, look_of
from ticket_export.report.front import Front, Point, front_line, front_of, fronts, fronts_json
from ticket_export.report.intervals import Spread, spread
from ticket_export.report.page import markdown, page
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.verdict import subject_lines

Manifest = dict[str, Any]
ONE_IMAGE = 1e-4


def point(subject: str, latency_s: float, *accuracies: float) -> Point:
    return Point(
        subject=subject, accuracies=dict(enumerate(accuracies)), latency_s=spread([latency_s, latency_s])
    )


def front(*points: Point, width: float = 1.02) -> Front:
    """Return a front: every speedup is a ratio of latencies, its interval a factor to either side."""
    latency_s = {one.subject: one.latency_s.mean for one in points}

    def speedup_of(one: str, other: str) -> Spread:
        ratio = latency_s[other] / latency_s[one]
        return Spread(mean=ratio, low=ratio / width, high=ratio * width)

    return front_of(points, speedup_of, one_image=ONE_IMAGE)


def test_a_subject_that_is_slower_and_less_accurate_is_dominated() -> None:
    found = front(point("dense", 4.0, 0.7, 0.7, 0.7), point("ticket@1", 2.0, 0.8, 0.8, 0.8))
    assert found.subjects == ("ticket@1",)
    assert found.dominated_by == {"dense": "ticket@1"}


def test_a_faster_subject_with_a_lower_mean_dominates_nothing() -> None:
    found = front(point("dense", 4.0, 0.7, 0.7, 0.7), point("ticket@1", 2.0, 0.69, 0.69, 0.70))
    assert found.subjects == ("dense", "ticket@1")
    assert found.dominated_by == {}


def test_equal_means_let_what_is_shown_faster_dominate() -> None:
    found = front(point("a", 4.0, 0.6, 0.7, 0.8), point("b", 3.0, 0.8, 0.7, 0.6))
    assert found.dominated_by == {"a": "b"}


def test_at_latencies_not_shown_to_differ_only_a_resolved_accuracy_dominates() -> None:
    # +0.10, +0.11, +0.12: 0.11 +- 4.303 * 0.01 / sqrt(3)
    resolved = front(point("a", 4.0, 0.80, 0.81, 0.82), point("b", 3.99, 0.70, 0.70, 0.70))
    assert resolved.dominated_by == {"b": "a"}
    open_one = front(point("a", 4.0, 0.60, 0.81, 0.92), point("b", 3.99, 0.70, 0.70, 0.70))
    assert open_one.subjects == ("a", "b")


def test_a_more_accurate_subject_that_is_shown_slower_dominates_nothing() -> None:
    found = front(point("a", 4.2, 0.80, 0.81, 0.82), point("b", 4.0, 0.70, 0.70, 0.70))
    assert found.subjects == ("a", "b")


def test_two_replicates_show_no_accuracy_and_the_front_says_by_means() -> None:
    found = front(point("a", 4.0, 0.9, 0.9), point("b", 4.0, 0.1, 0.1), point("c", 5.0, 0.2, 0.2))
    assert found.subjects == ("a", "b")
    assert found.dominated_by == {"c": "a"}
    assert found.by_means
    assert front_line("ort-cpu, fp32, batch 1", found) == (
        "Pareto front (ort-cpu, fp32, batch 1; accuracies by means, below 3 replicates): a, b"
    )


def test_three_replicates_are_not_by_means() -> None:
    found = front(point("a", 4.0, 0.9, 0.9, 0.9), point("b", 3.0, 0.1, 0.1, 0.1))
    assert not found.by_means
    assert front_line("here", found) == "Pareto front (here): a, b"


def test_subjects_without_a_common_replicate_are_compared_by_means() -> None:
    other = Point(subject="b", accuracies={5: 0.1, 6: 0.1, 7: 0.1}, latency_s=spread([4.0]))
    found = front(point("a", 4.0, 0.9, 0.9, 0.9), other)
    assert found.subjects == ("a", "b")
    assert found.by_means


def test_a_dominated_subject_names_one_of_the_front() -> None:
    found = front(point("a", 4.0, 0.1, 0.1), point("b", 3.0, 0.2, 0.2), point("c", 2.0, 0.3, 0.3))
    assert found.dominated_by == {"a": "c", "b": "c"}
    assert found.to_json() == {"front": ["c"], "dominated_by": {"a": "c", "b": "c"}, "by_means": True}


def test_the_line_leaves_out_what_a_faster_point_of_the_front_exceeds_by_means() -> None:
    found = front(
        point("dense", 4.0, 0.8, 0.8), point("a", 3.01, 0.5, 0.5), point("b", 3.0, 0.6, 0.6), width=1.1
    )
    assert found.subjects == ("dense", "a", "b")
    assert [one.subject for one in found.line] == ["b", "dense"]


@pytest.fixture(scope="module")
def report(manifests_of: Callable[..., list[Manifest]], machine: Manifest) -> Report:
    return report_from_manifests("digits", machine, manifests_of(batches=(1, 64)))


def test_a_report_has_a_front_per_setting_in_json_markdown_and_page(report: Report) -> None:
    told = [one["batch"] for one in fronts_json(report)]
    assert told == [1, 64]
    assert report.to_json()["fronts"] == fronts_json(report)
    # random@2 and uniform@2: ticket@2's paired differences are resolved, and it is not shown to be slower
    assert fronts_json(report)[1] == {
        **{"runtime": "ort-cpu", "precision": "fp32", "batch": 64, "scope": "compute", "threads": 1},
        "front": ["dense", "unstructured@2", "ticket@1", "reinit@2", "ticket@2"],
        "dominated_by": {"random@2": "ticket@2", "uniform@2": "ticket@2"},
        "by_means": False,
    }
    line = "Pareto front (ort-cpu, fp32, batch 64): dense, unstructured@2, ticket@1, reinit@2, ticket@2."
    assert line in markdown(report)
    html = page(report)
    assert line in html
    assert "On pale green: the Pareto front, dense, unstructured@2" in html
    assert "The subjects that no other dominates." in html


def test_a_report_of_two_replicates_says_that_its_front_is_by_means(
    manifests_of: Callable[..., list[Manifest]], machine: Manifest
) -> None:
    report = report_from_manifests("digits", machine, manifests_of(2, batches=(1,)))
    assert "batch 1; accuracies by means, below 3 replicates): " in markdown(report)
    [(_, found)] = fronts(report)
    assert "random@2" in found.subjects


def test_the_figure_draws_dense_level_uniform_towards_dense_and_the_front(report: Report) -> None:
    setting, found = fronts(report)[1]
    svg = accuracy_against_latency(subject_lines(report, setting), found)
    assert "<!-- Pareto front -->" in svg
    assert look_of("uniform@2").color != look_of("uniform_latency@2").color
    assert len(re.findall(f'stroke-dasharray[^"]*"?[^"]*{look_of("uniform").color}', svg)) > 0
    figure = Figure()
    axes = figure.subplots()
    draw_front(axes, found)
    line, ground = axes.lines
    dense_ms, unstructured_ms = 1000 * (2.1e-4 + 9.4e-5 * 64), 1000 * (2.1e-4 + 9.4e-5 * 64) / 1.01
    assert list(ground.get_xdata())[:2] == pytest.approx([dense_ms, unstructured_ms], rel=1e-3)
    # dense's mean is below that of unstructured@2, which is faster
    assert list(line.get_ydata()) == pytest.approx([0.979 - 1e-3 / 3, 0.980 + 1e-3 / 3, 0.981])
