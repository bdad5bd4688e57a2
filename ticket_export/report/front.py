"""The Pareto front of accuracy against measured latency: which subjects no other is shown to beat in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, TypeAlias

from ticket_export.report.intervals import NUM_REPLICATES_NEEDED, WINS, Spread, spread
from ticket_export.report.rows import Report
from ticket_export.report.verdict import Setting, paired_verdict, setting_of, settings, subject_lines

SpeedupOf: TypeAlias = Callable[[str, str], Spread]
BASELINE = Spread(mean=1.0, low=1.0, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One subject of a front.

    Attributes:
        subject: its name.
        accuracies: by replicate, fractions of the test images.
        latency_s: median latency of a batch, over its replicates.
    """

    subject: str
    accuracies: Mapping[int, float]
    latency_s: Spread

    @property
    def accuracy(self) -> Spread:
        """Return its mean accuracy, with the lowest and the highest of its replicates."""
        return spread(list(self.accuracies.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The subjects that no other dominates, and by which one the rest are.

    Attributes:
        points: all subjects, the slowest first.
        dominated_by: subject -> one that dominates it, on the front itself where there is such a one.
        by_means: two of the subjects share too few replicates for an interval of their accuracies.
    """

    points: tuple[Point, ...]
    dominated_by: Mapping[str, str]
    by_means: bool

    @property
    def on_it(self) -> tuple[Point, ...]:
        """Return the points on the front, the slowest first."""
        return tuple(point for point in self.points if point.subject not in self.dominated_by)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return the subjects on the front, the slowest first."""
        return tuple(point.subject for point in self.on_it)

    @property
    def line(self) -> tuple[Point, ...]:
        """Return the points that a drawn front joins: by means, each is above all faster ones."""
        highest, found = -1.0, []
        for point in reversed(self.on_it):
            if point.accuracy.mean > highest:
                highest = point.accuracy.mean
                found.append(point)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return the front as plain JSON values."""
        return {
            "front": list(self.subjects),
            "dominated_by": dict(self.dominated_by),
            "by_means": self.by_means,
        }


def front_of(points: Sequence[Point], speedup_of: SpeedupOf, *, one_image: float) -> Front:
    """Return the front of subjects that were timed together.

    A subject leaves the front only for another one that is shown to be faster (their speedup's interval lies
    above 1) with a mean accuracy no lower, or that is shown to be more accurate (the 95 % interval of their
    paired difference lies above 0) and is not shown to be slower. Fewer than three replicates in common show
    no accuracy to be higher, so such fronts rest on means of accuracies, and `by_means` says so.

    Args:
        points: one per subject.
        speedup_of: how many times faster the first subject is than the second, with its interval.
        one_image: the share of one test image.
    """
    ordered = tuple(sorted(points, key=lambda point: -point.latency_s.mean))
    dominators = {
        point.subject: [
            other.subject
            for other in ordered
            if other is not point and _dominates(other, point, speedup_of, one_image)
        ]
        for point in ordered
    }
    return Front(
        points=ordered,
        dominated_by={
            subject: next((name for name in found if not dominators[name]), found[0])
            for subject, found in dominators.items()
            if found
        },
        by_means=any(
            len(one.accuracies.keys() & other.accuracies.keys()) < NUM_REPLICATES_NEEDED
            for one, other in combinations(ordered, 2)
        ),
    )


def _dominates(one: Point, other: Point, speedup_of: SpeedupOf, one_image: float) -> bool:
    # means decide the accuracy of what is faster: intervals over few replicates are so wide that a fast
    # subject would drive everything off the front; intervals of timings are narrow
    speedup = speedup_of(one.subject, other.subject)
    if speedup.low > 1:
        return one.accuracy.mean >= other.accuracy.mean
    if not one.accuracies.keys() & other.accuracies.keys():
        return False
    verdict = paired_verdict(
        (one.subject, one.accuracies),
        (other.subject, other.accuracies),
        runtime="",
        precision="",
        one_image=one_image,
    )
    return verdict.word == WINS and speedup.high >= 1


def fronts(report: Report) -> tuple[tuple[Setting, Front], ...]:
    """Return the front of every setting of a report: by runtime, precision and batch.

    Each speedup is over dense: two subjects' intervals that do not meet show which is faster.
    """
    return tuple((setting, _front(report, setting)) for setting in settings(report))


def _front(report: Report, setting: Setting) -> Front:
    lines = {line.subject: line for line in subject_lines(report, setting)}
    rows = [row for row in report.rows if setting_of(row) == setting]

    def speedup_of(one: str, other: str) -> Spread:
        ours, theirs = lines[one].speedup or BASELINE, lines[other].speedup or BASELINE
        return Spread(mean=ours.mean / theirs.mean, low=ours.low / theirs.high, high=ours.high / theirs.low)

    points = [
        Point(
            subject=subject,
            accuracies={row["replicate"]: row["accuracy"] for row in rows if row["subject"] == subject},
            latency_s=line.latency_s,
        )
        for subject, line in lines.items()
    ]
    return front_of(points, speedup_of, one_image=1 / report.num_test_images)


def fronts_json(report: Report) -> list[dict[str, Any]]:  # Any: JSON values
    """Return the `fronts` of `report.json`: a setting each, its front, and what dominates the rest."""
    return [asdict(setting) | front.to_json() for setting, front in fronts(report)]


def front_line(where: str, front: Front) -> str:
    """Name a front in one line: `Pareto front (ort-cpu, fp32, batch 1): dense, ticket@3`."""
    means = f"; accuracies by means, below {NUM_REPLICATES_NEEDED} replicates" if front.by_means else ""
    return f"Pareto front ({where}{means}): {', '.join(front.subjects)}"


def setting_front_line(setting: Setting, front: Front) -> str:
    """Name the front of one setting of a report in one line."""
    return front_line(f"{setting.runtime}, {setting.precision}, batch {setting.batch}", front)
