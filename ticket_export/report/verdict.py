"""What the rows show, over replicates: one line per subject and one verdict per comparison.

A ticket never stands alone: its accuracy is set against dense and against every control of its level,
replicate by replicate. There are three verdicts: it wins, it loses, or it is not resolved. An interval that
holds zero resolves no more than how far apart the two can at most be; fewer than three replicates, not even
that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean
from typing import Any

from ticket_export.errors import MeasureError
from ticket_export.report.intervals import (
    NOT_RESOLVED,
    NUM_REPLICATES_NEEDED,
    Spread,
    mean_interval,
    spread,
    word_of_interval,
)
from ticket_export.report.order import precision_order
from ticket_export.report.rows import Report, Row
from ticket_export.report.trainings import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The conditions under which latencies may be compared."""

    runtime: str
    precision: str
    batch: int
    scope: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectLine:
    """One subject under one setting, over its replicates.

    Attributes:
        accuracy: fraction of the test images, 0 to 1.
        latency_s: medians of the replicates, in seconds per batch.
        speedup: geometric mean over the replicates; low and high span the 95 % intervals of all of them.
            None for the baseline.
        rounds_won_fraction: mean over the replicates; None for the baseline.
        reasons: why it is not stable, each reason once.
    """

    subject: str
    setting: Setting
    num_replicates: int
    accuracy: Spread
    params: float
    macs: float
    channel_density: float
    param_density: float
    mac_density: float
    latency_s: Spread
    speedup: Spread | None
    rounds_won_fraction: float | None
    stable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A ticket's accuracy less another subject's, by replicate, with a 95 % interval (fractions).

    The interval is Student's t over the replicates, and never narrower than one test image to either side.
    `low` and `high` are None where there are too few replicates; `word` is one of `VERDICTS`.
    """

    ticket: str
    against: str
    runtime: str
    precision: str
    num_replicates: int
    difference: float
    low: float | None
    high: float | None
    word: str

    @property
    def apart(self) -> float | None:
        """Return by how much the two accuracies can at most differ; None where that is not known."""
        return None if self.low is None or self.high is None else max(-self.low, self.high)


def settings(report: Report) -> tuple[Setting, ...]:
    """Return the settings of a report: by runtime, precision and batch."""
    found = {setting_of(row) for row in report.rows}
    return tuple(sorted(found, key=_setting_order))


def _setting_order(setting: Setting) -> tuple[object, ...]:
    precision = precision_order(setting.precision)
    return (setting.runtime, precision, setting.batch, setting.scope, setting.threads)


def subject_lines(report: Report, setting: Setting) -> tuple[SubjectLine, ...]:
    """Return one line per subject under `setting`, dense first."""
    rows = [row for row in report.rows if setting_of(row) == setting]
    return tuple(
        _line(subject, setting, [row for row in rows if row["subject"] == subject])
        for subject in report.subjects
        if any(row["subject"] == subject for row in rows)
    )


def verdicts(report: Report) -> tuple[Verdict, ...]:
    """Set every ticket against dense and against each control of its own level, per runtime and precision."""
    found = []
    for runtime, precision in dict.fromkeys((s.runtime, s.precision) for s in settings(report)):
        accuracies: dict[str, dict[int, float]] = {}
        for row in report.rows:
            if (row["runtime"], row["precision"]) == (runtime, precision):
                accuracies.setdefault(row["subject"], {})[row["replicate"]] = row["accuracy"]
        for ticket in (subject for subject in accuracies if subject.startswith("ticket@")):
            level = ticket.partition("@")[2]
            others = [s for s in accuracies if s == "dense" or (s != ticket and s.partition("@")[2] == level)]
            found += [
                paired_verdict(
                    (ticket, accuracies[ticket]),
                    (other, accuracies[other]),
                    runtime=runtime,
                    precision=precision,
                    one_image=1 / report.num_test_images,
                )
                for other in others
            ]
    return tuple(found)


def epoch_cost(trainings: Sequence[Training], subject: str) -> tuple[float, float | None]:
    """Return a subject's seconds per epoch and their ratio to dense, means over its replicates.

    The ratio is None where dense was not trained on as many threads.
    """
    own = [training for training in trainings if training.subject == subject]
    dense = {(t.replicate, t.threads): t.epoch_s for t in trainings if t.subject == "dense"}
    ratios = [t.epoch_s / dense[t.replicate, t.threads] for t in own if dense.get((t.replicate, t.threads))]
    return fmean(t.epoch_s for t in own), fmean(ratios) if len(ratios) == len(own) else None


def last_ticket(report: Report) -> str | None:
    """Return the ticket of the last level, the one the controls belong to; None when there is no ticket."""
    tickets = [subject for subject in report.subjects if subject.startswith("ticket@")]
    return tickets[-1] if tickets else None


def speed_word(speedup: Spread) -> str:
    """Say what an interval of speedups allows: faster, slower or no difference shown."""
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else "no difference shown"


def setting_of(row: Row) -> Setting:
    """Return the setting that a row was measured under."""
    return Setting(**{field: row[field] for field in ("runtime", "precision", "batch", "scope", "threads")})


def _line(subject: str, setting: Setting, rows: Sequence[Row]) -> SubjectLine:
    def mean(value: Callable[[Row], float]) -> float:
        return fmean(value(row) for row in rows)

    speedups = [row["speedup"] for row in rows if row["speedup"] is not None]
    return SubjectLine(
        subject=subject,
        setting=setting,
        num_replicates=len(rows),
        accuracy=spread([row["accuracy"] for row in rows]),
        params=mean(lambda row: row["params"]),
        macs=mean(lambda row: row["macs"]),
        channel_density=mean(lambda row: row["channel_density"]),
        param_density=mean(lambda row: row["param_density"]),
        mac_density=mean(lambda row: row["mac_density"]),
        latency_s=spread([row["latency_s"]["p50"] for row in rows]),
        speedup=speedup_spread(speedups) if speedups else None,
        rounds_won_fraction=mean(lambda row: row["rounds_won_fraction"]) if speedups else None,
        stable=all(row["stable"] for row in rows),
        reasons=tuple(dict.fromkeys(reason for row in rows for reason in row["reasons"])),
    )


def speedup_spread(speedups: Sequence[Mapping[str, Any]]) -> Spread:  # Any: JSON values
    """Return the geometric mean of the `speedup` of several rows within the span of their intervals."""
    return Spread(
        mean=exp(fmean(log(speedup["ratio"]) for speedup in speedups)),
        low=min(speedup["low"] for speedup in speedups),
        high=max(speedup["high"] for speedup in speedups),
    )


def paired_verdict(
    ticket: tuple[str, Mapping[int, float]],
    other: tuple[str, Mapping[int, float]],
    *,
    runtime: str,
    precision: str,
    one_image: float,
) -> Verdict:
    """Return the verdict on two subjects, each a name and its accuracy by replicate.

    Args:
        ticket: whose accuracy is the one that wins or loses.
        other: what it is set against.
        runtime: both were evaluated by.
        precision: of both.
        one_image: the share of one test image.

    Raises:
        MeasureError: they share no replicate.
    """
    replicates = sorted(ticket[1].keys() & other[1].keys())
    if not replicates:
        raise MeasureError(
            f"{ticket[0]} and {other[0]} share no replicate", hint="run both with the same replicates"
        )
    differences = [ticket[1][r] - other[1][r] for r in replicates]
    difference = fmean(differences)
    low = high = None
    word = NOT_RESOLVED
    if len(differences) >= NUM_REPLICATES_NEEDED:
        low, high = mean_interval(differences)
        # replicates that agree to the image have no variance; one image more or less is still not a result
        low, high = min(low, difference - one_image), max(high, difference + one_image)
        word = word_of_interval(low, high)
    return Verdict(
        ticket=ticket[0],
        against=other[0],
        runtime=runtime,
        precision=precision,
        num_replicates=len(replicates),
        difference=difference,
        low=low,
        high=high,
        word=word,
    )
