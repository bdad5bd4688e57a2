"""What a ticket is worth: whether it is a winning ticket, and what of it mattered.

A winning ticket is not less accurate than dense at equal epochs (Frankle & Carbin, arXiv 1803.03635). What
mattered is what its controls change: new weights under the same mask, or another mask of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from statistics import fmean
from typing import Any

from ticket_export.report.intervals import LOSES, NOT_RESOLVED, WINS
from ticket_export.report.rows import Report
from ticket_export.report.verdict import Verdict, settings, verdicts

WINNING, NOT_WINNING = "a winning ticket", "not a winning ticket"
# question -> the controls that answer it, all of which the ticket must beat
_INITIALISATION = {"initialisation": ("reinit",)}
_CHANNELS: Mapping[str, tuple[str, ...]] = _INITIALISATION | {"choice of channels": ("random", "uniform")}
_QUESTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "imp": _INITIALISATION | {"positions": ("random",), "positions and initialisation": ("random_reinit",)},
    "regroup": _INITIALISATION | {"choice of blocks": ("random", "uniform")},
}
# A question about `uniform` is answered by each of these that was measured; one of them is enough
_ALIKE: Mapping[str, tuple[str, ...]] = {"uniform": ("uniform", "uniform_latency")}
# `uniform` on a width grid may miss the ticket's MACs by half; a loss to a larger network shows no harm
_EQUAL = 1.05
_ROUNDING = 1e-9  # of differences of accuracies: far below one image


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether one thing about a ticket mattered.

    Attributes:
        question: what may have mattered, in words.
        word: it wins where it wins over every control that changes just that, it loses where it loses to one;
            all else is not resolved.
        verdicts: against each of them.
        missing: those that were not measured.
        unequal: control -> its MACs over the ticket's, of uniform_latency its measured time, where its
            verdict then decides nothing: losing to a network that costs more, or winning over one that
            costs less, decides nothing.
    """

    question: str
    word: str
    verdicts: tuple[Verdict, ...]
    missing: tuple[str, ...]
    unequal: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What one ticket is worth, by one runtime and precision.

    Attributes:
        ticket: like ticket@2.
        word: `WINNING`, `NOT_WINNING` or not resolved.
        against_dense: its accuracy less that of dense.
        param_density: weights kept, mean over its replicates.
        mac_density: MACs kept.
        extra_epochs: by how many its weights have learnt longer than those of dense, the most of its
            replicates; 0 or less at equal epochs.
        answers: what mattered; only what a measured control asks.
        is_smallest: it is the winning ticket of the highest level.
    """

    ticket: str
    word: str
    against_dense: Verdict
    param_density: float
    mac_density: float
    extra_epochs: float
    answers: tuple[Answer, ...]
    is_smallest: bool = False

    @property
    def level(self) -> int:
        """Return the ticket's level, from 1."""
        return int(self.ticket.partition("@")[2])

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return the worth as plain JSON values."""
        answers = [
            {
                "question": answer.question,
                "word": answer.word,
                "verdicts": [asdict(verdict) for verdict in answer.verdicts],
                "missing": list(answer.missing),
                "unequal": dict(answer.unequal),
            }
            for answer in self.answers
        ]
        return asdict(self) | {"level": self.level, "answers": answers}


def worths(report: Report) -> tuple[Worth, ...]:
    """Return what each ticket is worth, by level, for each runtime and precision."""
    found: list[Worth] = []
    by_place: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts(report):
        by_place.setdefault((verdict.runtime, verdict.precision), []).append(verdict)
    for own in by_place.values():
        tickets = dict.fromkeys(verdict.ticket for verdict in own)
        levels = [_worth(report, [v for v in own if v.ticket == ticket]) for ticket in tickets]
        smallest = max((w.level for w in levels if w.word == WINNING), default=None)
        found += [replace(worth, is_smallest=worth.level == smallest) for worth in levels]
    return tuple(found)


def first_worths(report: Report) -> tuple[Worth, ...]:
    """Return what each ticket is worth by the first runtime and precision, which the summary is about."""
    first = settings(report)[0]
    return tuple(
        worth
        for worth in worths(report)
        if (worth.against_dense.runtime, worth.against_dense.precision) == (first.runtime, first.precision)
    )


def questions(report: Report) -> Mapping[str, tuple[str, ...]]:
    """Return what may have mattered of tickets of the report's method, with the controls that tell."""
    return _CHANNELS if report.method is None else _QUESTIONS.get(report.method, _CHANNELS)


def _worth(report: Report, own: Sequence[Verdict]) -> Worth:
    ticket = own[0].ticket
    by_kind = {verdict.against.partition("@")[0]: verdict for verdict in own}
    rows = [row for row in report.rows if row["subject"] == ticket]
    ratios = {verdict.against: _cost_ratio(report, verdict) for verdict in own}
    answers = (
        _answer(question, controls, by_kind, ratios)
        for question, controls in questions(report).items()
        if any(one in by_kind for kind in controls for one in _ALIKE.get(kind, (kind,)))
    )
    return Worth(
        ticket=ticket,
        word=_winning_word(by_kind["dense"], one_image=1 / report.num_test_images),
        against_dense=by_kind["dense"],
        param_density=fmean(row["param_density"] for row in rows),
        mac_density=fmean(row["mac_density"] for row in rows),
        extra_epochs=_extra_epochs(report, ticket),
        answers=tuple(answers),
    )


def _cost_ratio(report: Report, verdict: Verdict) -> float:
    """Return what the other costs over the ticket: MACs, or of `uniform_latency` the mean time of batches."""
    by_subject = {
        subject: [
            row
            for row in report.rows
            if (row["subject"], row["runtime"], row["precision"])
            == (subject, verdict.runtime, verdict.precision)
        ]
        for subject in (verdict.ticket, verdict.against)
    }
    if not verdict.against.startswith("uniform_latency@"):
        ticket, other = (fmean(row["macs"] for row in rows) for rows in by_subject.values())
        return other / ticket
    ticket, other = (fmean(log(row["latency_s"]["p50"]) for row in rows) for rows in by_subject.values())
    return exp(other - ticket)


def _winning_word(verdict: Verdict, *, one_image: float) -> str:
    if verdict.low is None or verdict.high is None:
        return NOT_RESOLVED
    if verdict.high < 0:
        return NOT_WINNING
    # one image less is no loss, as one image more is no win
    return WINNING if verdict.low >= -one_image - _ROUNDING else NOT_RESOLVED


def _answer(
    question: str,
    controls: Sequence[str],
    by_kind: Mapping[str, Verdict],
    cost_ratio: Mapping[str, float],
) -> Answer:
    measured = {
        kind: [by_kind[one] for one in _ALIKE.get(kind, (kind,)) if one in by_kind] for kind in controls
    }
    found = tuple(verdict for verdicts in measured.values() for verdict in verdicts)
    missing = tuple(kind for kind, verdicts in measured.items() if not verdicts)
    unequal = {
        verdict.against: cost_ratio[verdict.against]
        for verdict in found
        if (verdict.word == LOSES and cost_ratio[verdict.against] > _EQUAL)
        or (verdict.word == WINS and cost_ratio[verdict.against] < 1 / _EQUAL)
    }
    words = {NOT_RESOLVED if verdict.against in unequal else verdict.word for verdict in found}
    word = WINS if words == {WINS} and not missing else LOSES if LOSES in words else NOT_RESOLVED
    return Answer(question=question, word=word, verdicts=found, missing=missing, unequal=unequal)


def _extra_epochs(report: Report, ticket: str) -> float:
    learnt = {(one.subject, one.replicate): one.num_epochs_learnt for one in report.trainings}
    extra = [
        epochs - learnt["dense", replicate]
        for (subject, replicate), epochs in learnt.items()
        if subject == ticket and ("dense", replicate) in learnt
    ]
    return max(extra, default=0.0)
