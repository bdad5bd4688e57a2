"""Intervals, verdicts and the words they allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ticket_export.errors import MeasureError
from ticket_export.report import sentences, words
from ticket_export.report.intervals import VERDICTS, Spread, mean_interval
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.verdict import (
    Verdict,
    epoch_cost,
    settings,
    speed_word,
    subject_lines,
    verdicts,
)

Manifest = dict[str, Any]
MakeReport = Callable[..., Report]


@pytest.fixture
def report_of(manifests_of: Callable[..., list[Manifest]], machine: Manifest) -> MakeReport:
    def make(change: Callable[[Manifest], None] | None = None, **shape: Any) -> Report:
        manifests = manifests_of(**shape)
        for manifest in manifests:
            if change is not None:
                change(manifest["facts"])
        return report_from_manifests("digits", machine, manifests)

    return make


def _by_other(report: Report, ticket: str = "ticket@2") -> dict[str, Verdict]:
    return {verdict.against: verdict for verdict in verdicts(report) if verdict.ticket == ticket}


def _accuracies(values: dict[str, tuple[float, ...]]) -> Callable[[Manifest], None]:
    def change(facts: Manifest) -> None:
        if facts.get("kind") == "accuracy" and facts["subject"] in values:
            facts["accuracy"] = values[facts["subject"]][facts["replicate"]]

    return change


def test_the_interval_of_one_two_three_is_the_textbooks() -> None:
    # mean 2, s = 1, t(2) = 4.303: 2 +- 4.303 / sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48434, 2 + 2.48434), abs=1e-5)


def test_an_interval_of_one_value_is_refused() -> None:
    with pytest.raises(MeasureError, match="got 1"):
        mean_interval([0.5])


def test_the_widest_table_entry_serves_more_values_than_it_was_made_for() -> None:
    low, high = mean_interval([0.0, 1.0] * 50)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 2.042 * 0.502519 / 10, rel=1e-4)


def test_a_control_is_beaten_when_the_whole_paired_interval_is_above_zero(report_of: MakeReport) -> None:
    random = _by_other(report_of())["random@2"]
    assert random.word == "wins"
    assert random.difference == pytest.approx(0.013)
    # the differences are .013, .012, .014: 0.013 +- 4.303 * 0.001 / sqrt(3), but at least one of 360 images
    assert (random.low, random.high) == pytest.approx((0.013 - 1 / 360, 0.013 + 1 / 360), abs=1e-6)


def test_an_interval_that_holds_zero_is_not_resolved_and_tells_how_far_apart_they_can_be(
    report_of: MakeReport,
) -> None:
    reinit = _by_other(report_of())["reinit@2"]
    assert reinit.low is not None
    assert reinit.high is not None
    assert reinit.low < 0 < reinit.difference < reinit.high
    assert reinit.word == "not resolved"
    assert reinit.apart == reinit.high
    assert words.verdict_words(reinit) == "not resolved, at most 1.88 apart"


def test_there_are_three_verdicts_and_no_other(report_of: MakeReport) -> None:
    change = _accuracies({"uniform@2": (0.989, 0.991, 0.987)})
    assert {verdict.word for verdict in verdicts(report_of(change))} == set(VERDICTS)
    assert VERDICTS == ("wins", "loses", "not resolved")


def test_a_ticket_that_is_worse_than_chance_loses(report_of: MakeReport) -> None:
    change = _accuracies({"random@2": (0.989, 0.991, 0.987)})
    assert _by_other(report_of(change))["random@2"].word == "loses"


def test_equal_differences_below_one_image_are_no_win(report_of: MakeReport) -> None:
    # three equal differences have no variance: without the floor of one image the interval would be a point
    change = _accuracies({"random@2": (0.978, 0.980, 0.975)})
    assert _by_other(report_of(change))["random@2"].word == "not resolved"


@pytest.mark.parametrize("num_replicates", [1, 2])
def test_fewer_than_three_replicates_resolve_nothing(report_of: MakeReport, num_replicates: int) -> None:
    report = report_of(num_replicates=num_replicates)
    found = verdicts(report)
    assert {verdict.word for verdict in found} == {"not resolved"}
    assert {(verdict.low, verdict.high) for verdict in found} == {(None, None)}
    assert "wins" not in report.summary
    assert "ticket@2 is not resolved below 3 replicates against unstructured@2" in report.summary
    assert {words.verdict_words(verdict) for verdict in found} == {"not resolved below 3 replicates"}


def test_a_ticket_meets_dense_and_the_controls_of_its_own_level_alone(report_of: MakeReport) -> None:
    report = report_of()
    assert list(_by_other(report, "ticket@1")) == ["dense"]
    assert list(_by_other(report)) == ["dense", "unstructured@2", "uniform@2", "random@2", "reinit@2"]


def test_a_line_spans_the_intervals_of_all_replicates(report_of: MakeReport) -> None:
    report = report_of(batches=(64,))
    (setting,) = settings(report)
    line = next(line for line in subject_lines(report, setting) if line.subject == "ticket@2")
    assert line.speedup is not None
    # the replicates run 0.99, 1 and 1.01 times 1.62, each with +- 2 %
    assert line.speedup.low == pytest.approx(1.62 * 0.99 * 0.98)
    assert line.speedup.high == pytest.approx(1.62 * 1.01 * 1.02)
    assert line.speedup.mean == pytest.approx(1.62 * (0.99 * 1.01) ** (1 / 3))
    assert (line.accuracy.low, line.accuracy.high) == (0.976, 0.981)
    assert line.num_replicates == 3


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.01, 1.2, "faster"),
        (0.98, 1.02, "no difference shown"),
        (0.6, 0.7, "slower"),
        (1.0, 1.2, "no difference shown"),
    ],
)
def test_speed_is_named_by_its_whole_interval(low: float, high: float, word: str) -> None:
    assert speed_word(Spread(mean=(low * high) ** 0.5, low=low, high=high)) == word


def test_the_summary_gives_each_number_its_n_and_interval(report_of: MakeReport) -> None:
    first, tickets, mattered, second, third, fourth = report_of().summary.splitlines()
    assert first == (
        "ticket@2 keeps 51.0 % of the MACs and 48.0 % of the weights, is 1.31x as fast as dense "
        "(95 %: 1.27-1.35) at batch 1 and 1.62x as fast as dense (95 %: 1.57-1.67) at batch 64, and reaches "
        "97.9 % accuracy against 98.1 % (-0.20 points, 95 %: -0.48 to +0.08, n = 3: not resolved, "
        "at most 0.48 apart)."
    )
    assert tickets == "No ticket is shown not to lose to dense; not resolved: ticket@1 and ticket@2."
    assert mattered == (
        "ticket@2: its choice of channels mattered; whether its initialisation mattered is not resolved."
    )
    assert "ticket@2 wins over uniform@2 (+0.33, 95 %: +0.05 to +0.62) and random@2 (+1.30" in second
    assert (
        "; is not resolved against unstructured@2 (-0.23, 95 %: -0.75 to +0.28, at most 0.75 apart) "
        in second
    )
    assert second.endswith("and reinit@2 (+0.63, 95 %: -0.62 to +1.88, at most 1.88 apart).")
    assert third == (
        "unstructured@2 has 40.0 % of the weights left and every channel: it is 1.00x as fast as dense "
        "(95 %: 0.97-1.03, no difference shown) at batch 1 and 1.01x as fast as dense (95 %: 0.98-1.04, no "
        "difference shown) at batch 64."
    )
    assert fourth.startswith(
        "Measured by ort-cpu, fp32, compute, threads: 1, 10 interleaved rounds of 50 samples"
    )


def test_the_peer_is_a_control_by_its_own_name(manifests: list[Manifest], machine: Manifest) -> None:
    text = json.dumps(manifests).replace("random@2", "depgraph@2")
    report = report_from_manifests("digits", machine, json.loads(text))
    assert report.subjects[-2:] == ("depgraph@2", "reinit@2")
    assert "and depgraph@2 (+1.30" in sentences.control_sentence(report)


def test_a_slower_ticket_is_called_slower(report_of: MakeReport) -> None:
    def change(facts: Manifest) -> None:
        for row in facts.get("rows", []):
            if row["subject"] == "ticket@2":
                row["speedup"] |= {"ratio": 0.64, "low": 0.62, "high": 0.66}

    assert "is 0.64x as fast as dense (95 %: 0.62-0.66, slower) at batch 1" in report_of(change).summary


def test_without_controls_the_summary_says_what_is_not_known(
    manifests: list[Manifest], machine: Manifest
) -> None:
    for manifest in manifests:
        if "rows" in manifest["facts"]:
            manifest["facts"]["rows"] = [
                row for row in manifest["facts"]["rows"] if row["subject"] in ("dense", "ticket@1")
            ]
    summary = report_from_manifests("digits", machine, manifests).summary
    assert "No control of ticket@1 was measured" in summary
    assert "not resolved" in summary


def test_unstable_timings_are_counted_and_their_reason_told(report_of: MakeReport) -> None:
    def change(facts: Manifest) -> None:
        if facts.get("batch") == 8:
            facts["rows"][0] |= {"stable": False, "reasons": ["others used 41 % of the CPU"]}

    summary = report_of(change).summary
    assert "1 of 63 timings are unstable: ort-cpu, batch 8, dense: others used 41 % of the CPU." in summary


def test_the_cost_of_an_epoch_is_compared_on_equal_threads_only(report_of: MakeReport) -> None:
    epoch_s, ratio = epoch_cost(report_of().trainings, "ticket@2")
    assert epoch_s == pytest.approx(1.5 * (0.3 + 0.7 * 0.51))
    assert ratio == pytest.approx(0.3 + 0.7 * 0.51)

    def change(facts: Manifest) -> None:
        if "history" in facts and facts["subject"] == "dense":
            facts["threads"] = 4

    assert epoch_cost(report_of(change).trainings, "ticket@2")[1] is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.42e-4, "0.142"), (3.0678e-3, "3.07"), (0.0415, "41.5"), (1.2345, "1234")]
)
def test_milliseconds_have_three_digits(seconds: float, text: str) -> None:
    assert words.milliseconds(seconds) == text
