"""Winning tickets, the smallest of them, and what of a ticket mattered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ticket_export.report import sentences
from ticket_export.report.page import markdown
from ticket_export.report.reading import reading
from ticket_export.report.rows import Report, report_from_manifests
from ticket_export.report.ticket_sections import worth as section
from ticket_export.report.worth import Worth, first_worths

Manifest = dict[str, Any]
Accuracies = dict[str, tuple[float, ...]]
MakeReport = Callable[..., Report]

DENSE = (0.981, 0.983, 0.978)  # as the manifests have them, of 360 images


def _facts_of(manifests: list[Manifest], stage: str, subject: str) -> list[Manifest]:
    found = [m for m in manifests if m["stage"] == stage and m["facts"].get("subject") == subject]
    assert found
    return found


def _measured(manifests: list[Manifest], *left_out: str) -> None:
    for manifest in manifests:
        rows = manifest["facts"].get("rows", [])
        rows[:] = [row for row in rows if row["subject"] not in left_out]


@pytest.fixture
def report_of(manifests: list[Manifest], machine: Manifest) -> MakeReport:
    def make(accuracies: Accuracies | None = None, change: Callable[..., None] | None = None) -> Report:
        for manifest in manifests:
            facts = manifest["facts"]
            if facts.get("kind") == "accuracy" and facts["subject"] in (accuracies or {}):
                facts["accuracy"] = (accuracies or {})[facts["subject"]][facts["replicate"]]
        if change is not None:
            change(manifests)
        return report_from_manifests("digits", machine, manifests)

    return make


def _worth(report: Report, ticket: str = "ticket@2") -> Worth:
    return next(worth for worth in first_worths(report) if worth.ticket == ticket)


def _moved(points: float, spread: float = 0.0) -> tuple[float, ...]:
    return tuple(accuracy + (points + spread * (r - 1)) / 100 for r, accuracy in enumerate(DENSE))


@pytest.mark.parametrize(
    ("accuracies", "word", "verdict"),
    [
        (_moved(1.0, 0.1), "a winning ticket", "wins"),
        (_moved(0.0), "a winning ticket", "not resolved"),  # equal to the image, thrice
        (_moved(0.3, 0.2), "a winning ticket", "not resolved"),  # down to 0.20 below: less than one image
        (_moved(0.2, 0.2), "not resolved", "not resolved"),  # down to 0.30 below: more than one image
        (_moved(-0.2, 0.1), "not resolved", "not resolved"),
        (_moved(-1.0, 0.1), "not a winning ticket", "loses"),
    ],
)
def test_a_winning_ticket_ends_no_more_than_one_image_below_dense(
    report_of: MakeReport, accuracies: tuple[float, ...], word: str, verdict: str
) -> None:
    worth = _worth(report_of({"ticket@2": accuracies}))
    assert (worth.word, worth.against_dense.word) == (word, verdict)


def test_two_replicates_make_no_winning_ticket(
    manifests_of: Callable[..., list[Manifest]], machine: Manifest
) -> None:
    report = report_from_manifests("digits", machine, manifests_of(num_replicates=2))
    assert {worth.word for worth in first_worths(report)} == {"not resolved"}
    told = sentences.worth_sentence(_worth(report))
    assert told.startswith(
        "Whether ticket@2 is a winning ticket is not resolved below 3 replicates: -0.20 points against dense "
        "(n = 2). Whether its initialisation mattered is not resolved: below 3 replicates against reinit@2 "
    )


def test_the_smallest_winning_ticket_is_the_one_of_the_highest_level(report_of: MakeReport) -> None:
    report = report_of({"ticket@1": _moved(0.5, 0.1), "ticket@2": _moved(0.4, 0.1)})
    assert [worth.is_smallest for worth in first_worths(report)] == [False, True]
    assert sentences.tickets_sentence(report) == (
        "The smallest ticket that is shown not to lose to dense is ticket@2, with 48.0 % of the weights and "
        "51.0 % of the MACs; winning tickets too: ticket@1."
    )


def test_a_larger_ticket_is_the_smallest_where_the_next_one_loses(report_of: MakeReport) -> None:
    report = report_of({"ticket@1": _moved(0.5, 0.1), "ticket@2": _moved(-1.0, 0.1)})
    assert [worth.is_smallest for worth in first_worths(report)] == [True, False]
    sentence = sentences.tickets_sentence(report)
    assert "is ticket@1, with 71.0 % of the weights" in sentence
    assert sentence.endswith("; shown to lose: ticket@2.")
    assert sentence in report.summary
    assert sentence in markdown(report)


def test_the_initialisation_matters_only_where_new_weights_lose(report_of: MakeReport) -> None:
    worse = {"reinit@2": tuple(accuracy - 0.02 for accuracy in (0.979, 0.981, 0.976))}
    answer = _worth(report_of(worse)).answers[0]
    assert (answer.question, answer.word) == ("initialisation", "wins")
    assert [verdict.against for verdict in answer.verdicts] == ["reinit@2"]
    better = {"reinit@2": tuple(accuracy + 0.02 for accuracy in (0.979, 0.981, 0.976))}
    report = report_of(better)
    assert _worth(report).answers[0].word == "loses"
    assert "Its initialisation did harm: it loses to reinit@2 (-2.00" in markdown(report)


def test_the_choice_of_channels_matters_only_where_the_ticket_wins_over_both(report_of: MakeReport) -> None:
    assert _worth(report_of()).answers[1].word == "wins"
    report = report_of({"uniform@2": (0.979, 0.981, 0.976)})
    answer = _worth(report).answers[1]
    assert (answer.word, [verdict.word for verdict in answer.verdicts]) == (
        "not resolved",
        ["wins", "not resolved"],
    )
    assert (
        "Whether its choice of channels mattered is not resolved: it wins over random@2 (+1.30, 95 %: +1.02 "
        "to +1.58); is not resolved against uniform@2 (+0.00, 95 %: -0.28 to +0.28, at most 0.28 apart)."
    ) in sentences.worth_sentence(_worth(report))


@pytest.mark.parametrize(("macs", "word"), [(1.0, "loses"), (1.04, "loses"), (1.4, "not resolved")])
def test_losing_to_a_control_that_executes_more_decides_nothing(
    report_of: MakeReport, macs: float, word: str
) -> None:
    def change(manifests: list[Manifest]) -> None:
        [ticket, *_] = _facts_of(manifests, "export", "ticket@2")
        for manifest in _facts_of(manifests, "export", "uniform@2"):
            manifest["facts"]["macs"] = round(ticket["facts"]["macs"] * macs)

    report = report_of({"uniform@2": (0.991, 0.993, 0.988)}, change)
    answer = _worth(report).answers[1]
    assert answer.verdicts[1].word == "loses"
    assert answer.word == word
    told = "uniform@2 executes 1.40x the MACs, so losing to it decides nothing"
    assert (told in sentences.worth_sentence(_worth(report))) == (word == "not resolved")
    assert ("so losing to it decides nothing" in section(report)) == (word == "not resolved")


def test_a_control_that_was_not_measured_leaves_the_choice_open(report_of: MakeReport) -> None:
    report = report_of(change=lambda manifests: _measured(manifests, "uniform@2", "reinit@2"))
    (answer,) = _worth(report).answers
    assert (answer.word, answer.missing) == ("not resolved", ("uniform",))
    assert sentences.worth_sentence(_worth(report)).endswith("; uniform was not measured.")
    assert "uniform was not measured" in section(report)


def test_a_level_without_controls_answers_nothing(report_of: MakeReport) -> None:
    report = report_of()
    assert _worth(report, "ticket@1").answers == ()
    assert section(report).partition(">ticket@2<")[0].count("no control measured") == 2


def _to_imp(manifests: list[Manifest]) -> None:
    """The tickets of imp are trained under the element mask itself."""
    by_key = {(m["stage"], m["facts"].get("subject"), m["facts"].get("replicate")): m for m in manifests}
    for level in (1, 2):
        for training in _facts_of(manifests, "train", f"ticket@{level}"):
            elements = by_key["find", f"unstructured@{level}", training["facts"]["replicate"]]
            training["parents"]["mask"] = f"find/{elements['key']}"
    _measured(manifests, "uniform@2")


def test_of_single_weights_the_positions_are_what_is_chosen(report_of: MakeReport) -> None:
    report = report_of(change=_to_imp)
    assert report.method == "imp"
    assert [(answer.question, answer.word) for answer in _worth(report).answers] == [
        ("initialisation", "not resolved"),
        ("positions", "wins"),
    ]
    assert "Its positions mattered: it wins over random@2" in markdown(report)
    assert "random keeps as many single weights of every layer" in dict(reading(report))["Subjects"]


def test_blocks_are_what_regroup_chooses(report_of: MakeReport) -> None:
    def change(manifests: list[Manifest]) -> None:
        for manifest in manifests:
            if manifest["facts"].get("method") == "refill":
                manifest["facts"]["method"] = "regroup"

    report = report_of(change=change)
    assert [answer.question for answer in _worth(report).answers] == ["initialisation", "choice of blocks"]
    assert "reinit keeps the ticket's blocks" in dict(reading(report))["Subjects"]


def test_a_ticket_that_learnt_longer_than_dense_is_told_apart(report_of: MakeReport) -> None:
    def change(manifests: list[Manifest]) -> None:
        for training in _facts_of(manifests, "train", "ticket@2"):
            replicate = training["facts"]["replicate"]
            parent = _facts_of(manifests, "train", "unstructured@1")[replicate]
            training["parents"] = {
                "mask": training["parents"]["mask"],
                "weights": f"train/{parent['key']}",
            }

    report = report_of({"ticket@2": _moved(0.5, 0.1)}, change)
    # rewound to epoch 2, trained for 10, then for 10 more; dense for 12
    assert [worth.extra_epochs for worth in first_worths(report)] == [0, 10]
    told = "not at equal epochs: its weights have learnt for up to 10 more"
    assert told in sentences.worth_sentence(_worth(report))
    assert told in report.summary
    assert told not in sentences.worth_sentence(_worth(report, "ticket@1"))


def test_report_json_tells_what_each_ticket_is_worth(report_of: MakeReport) -> None:
    first, second = report_of({"ticket@1": _moved(0.5, 0.1)}).to_json()["tickets"]
    assert (first["ticket"], first["level"], first["word"]) == ("ticket@1", 1, "a winning ticket")
    assert (first["is_smallest"], second["is_smallest"]) == (True, False)
    assert second["against_dense"]["difference"] == pytest.approx(-0.002)
    assert [(answer["question"], answer["word"]) for answer in second["answers"]] == [
        ("initialisation", "not resolved"),
        ("choice of channels", "wins"),
    ]
    assert [verdict["against"] for verdict in second["answers"][1]["verdicts"]] == ["random@2", "uniform@2"]


def test_many_verdicts_are_folded_away(manifests: list[Manifest], machine: Manifest) -> None:
    in_torch = [
        dict(m, facts=dict(m["facts"], runtime="torch")) for m in manifests if m["stage"] == "measure"
    ]
    eager = [dict(m, facts=dict(m["facts"], runtime="torch-compile")) for m in in_torch]
    assert "Against dense and every control" in section(report_from_manifests("digits", machine, manifests))
    part = section(report_from_manifests("digits", machine, manifests + in_torch + eager))
    assert "<summary>All 18 verdicts</summary>" in part
    assert "Against dense and every control" not in part


def test_only_the_subjects_of_the_run_are_explained(report_of: MakeReport) -> None:
    told = dict(reading(report_of()))["Subjects"]
    assert "reinit keeps the ticket's channels with new weights." in told
    assert "random_reinit" not in told
    assert "search is" not in told
