"""How fast networks learn: the iteration of lowest validation loss, and the accuracy there.

The proxy of Frankle & Carbin (arXiv 1803.03635, section 2), found afterwards: every training runs to its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp, log
from statistics import fmean
from typing import Any

from ticket_export.report.intervals import (
    NOT_RESOLVED,
    NUM_REPLICATES_NEEDED,
    Spread,
    mean_interval,
    spread,
    word_of_interval,
)
from ticket_export.report.rows import Report
from ticket_export.report.trainings import EarlyStop
from ticket_export.report.verdict import Verdict, paired_verdict, settings

_TORCH, _TRAINED = "torch", "fp32"  # what the networks at their lowest loss are evaluated by


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyLine:
    """One subject at its lowest validation loss and at the end, over its replicates.

    Attributes:
        subject: whose networks they are.
        num_replicates: of them.
        iteration: steps done since the start of the dense training, those before the rewind point included.
        test_accuracy: there, 0 to 1.
        end_accuracy: after the last step, by the report's first runtime and precision.
    """

    subject: str
    num_replicates: int
    iteration: Spread
    test_accuracy: Spread
    end_accuracy: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Sooner:
    """How much sooner a ticket is at its lowest validation loss than another subject, paired by replicate.

    Attributes:
        ticket: like ticket@2.
        against: the other subject.
        num_replicates: that both have.
        ratio: iterations of the other over those of the ticket, geometric mean: above 1 the ticket is sooner.
        low: of the 95 % t interval over the log ratios; None where there are too few replicates.
        high: of that interval.
        word: the ticket wins when all of the interval lies above 1.
        accuracy: the verdict on the test accuracies there.
    """

    ticket: str
    against: str
    num_replicates: int
    ratio: float
    low: float | None
    high: float | None
    word: str
    accuracy: Verdict


def early_lines(report: Report) -> tuple[EarlyLine, ...]:
    """Return a line per subject that was validated within epochs, in the order of every table."""
    ends = _end_accuracies(report)
    return tuple(
        EarlyLine(
            subject=subject,
            num_replicates=len(stops),
            iteration=spread([stop.iteration for stop in stops.values()]),
            test_accuracy=spread([stop.test_accuracy for stop in stops.values()]),
            end_accuracy=spread([ends[subject, replicate] for replicate in stops]),
        )
        for subject, stops in _stops(report).items()
    )


def sooner(report: Report) -> tuple[Sooner, ...]:
    """Set every ticket against dense and against each control of its level, at their lowest losses."""
    stops = _stops(report)
    found: list[Sooner] = []
    for ticket in (subject for subject in stops if subject.startswith("ticket@")):
        level = ticket.partition("@")[2]
        others = [s for s in stops if s == "dense" or (s != ticket and s.partition("@")[2] == level)]
        one_image = 1 / report.num_test_images
        found += [_sooner(ticket, other, stops, one_image=one_image) for other in others]
    return tuple(found)


def early_stop_json(report: Report) -> list[dict[str, Any]]:  # Any: JSON values
    """Return the early stop of every subject and replicate as plain JSON values."""
    return [
        {"subject": subject, "replicate": replicate, **asdict(stop)}
        for subject, stops in _stops(report).items()
        for replicate, stop in stops.items()
    ]


def _stops(report: Report) -> dict[str, dict[int, EarlyStop]]:
    stops: dict[str, dict[int, EarlyStop]] = {}
    for training in report.trainings:
        if training.early_stop is not None:
            stops.setdefault(training.subject, {})[training.replicate] = training.early_stop
    return stops


def _end_accuracies(report: Report) -> dict[tuple[str, int], float]:
    first = settings(report)[0]
    return {
        (row["subject"], row["replicate"]): row["accuracy"]
        for row in report.rows
        if (row["runtime"], row["precision"]) == (first.runtime, first.precision)
    }


def _sooner(
    ticket: str, other: str, stops: Mapping[str, Mapping[int, EarlyStop]], *, one_image: float
) -> Sooner:
    own, others = stops[ticket], stops[other]
    accuracy = paired_verdict(
        (ticket, {replicate: stop.test_accuracy for replicate, stop in own.items()}),
        (other, {replicate: stop.test_accuracy for replicate, stop in others.items()}),
        runtime=_TORCH,
        precision=_TRAINED,
        one_image=one_image,
    )
    logs = [log(others[r].iteration / own[r].iteration) for r in sorted(own.keys() & others.keys())]
    low = high = None
    word = NOT_RESOLVED
    if len(logs) >= NUM_REPLICATES_NEEDED:
        interval = mean_interval(logs)
        low, high = exp(interval[0]), exp(interval[1])
        word = word_of_interval(*interval)
    return Sooner(
        ticket=ticket,
        against=other,
        num_replicates=len(logs),
        ratio=exp(fmean(logs)),
        low=low,
        high=high,
        word=word,
        accuracy=accuracy,
    )
