"""What it took to find and train a network, in units of one dense training of the same replicate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ticket_export.report.artefacts import Manifest
from ticket_export.report.intervals import Spread, spread
from ticket_export.report.lineage import Lineage, num_epochs
from ticket_export.report.order import subject_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One training that was needed: of what, for how many of its epochs, at how many MACs per image.

    `seconds` is the share of those epochs.
    """

    subject: str
    num_epochs: float
    macs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchCost:
    """What one network cost, everything that its training depends on included.

    Attributes:
        subject: whose.
        replicate: from 0.
        trained: the trainings: those it depends on, the dense one too where it does, and its own last.
        seconds: of all of them.
        time_ratio: `seconds` over those of the dense training; None where they ran on other threads, devices,
            processes or machines than it.
        macs_ratio: epochs times MACs of all of them over those of the dense training; the images of an epoch
            are the same for all. A number without a machine's noise.
    """

    subject: str
    replicate: int
    trained: tuple[Trained, ...]
    seconds: float
    time_ratio: float | None
    macs_ratio: float

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return the cost as plain JSON values."""
        return asdict(self) | {"trained": [asdict(one) for one in self.trained]}


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """The costs of one subject over its replicates, in dense trainings; `trained` says of what."""

    subject: str
    num_replicates: int
    trained: str
    times: Spread | None
    macs: Spread


def search_costs(lineage: Lineage, subjects: Iterable[tuple[str, int]]) -> tuple[SearchCost, ...]:
    """Return the cost of each subject and replicate, in the order of every table.

    Raises:
        StoreError: a training that one depends on is not among the results.
    """
    ordered = sorted(set(subjects), key=lambda who: (subject_order(who[0]), who[1]))
    return tuple(_cost(lineage, subject, replicate) for subject, replicate in ordered)


def _cost(lineage: Lineage, subject: str, replicate: int) -> SearchCost:
    dense = lineage.training("dense", replicate)
    behind = lineage.trainings_behind(lineage.training(subject, replicate))
    trained = tuple(
        Trained(
            subject=one["facts"]["subject"],
            num_epochs=epochs,
            macs=one["facts"].get("trained_macs", one["facts"]["macs"]),  # a search trains ever less
            seconds=one["facts"]["seconds"] * epochs / num_epochs(one),
        )
        for one, epochs in behind
    )
    seconds = sum(one.seconds for one in trained)
    comparable = all(_place(one) == _place(dense) for one, _ in behind)
    return SearchCost(
        subject=subject,
        replicate=replicate,
        trained=trained,
        seconds=seconds,
        time_ratio=seconds / dense["facts"]["seconds"] if comparable else None,
        macs_ratio=sum(one.num_epochs * one.macs for one in trained)
        / (num_epochs(dense) * dense["facts"]["macs"]),
    )


def _place(training: Manifest) -> tuple[object, ...]:
    """Return what must be equal where seconds are compared."""
    facts = training["facts"]
    processes = facts.get("processes", 1)  # stores of before do not say: there was one
    return facts["threads"], facts["device"], processes, training["machine"]["fingerprint"]


def cost_lines(costs: Sequence[SearchCost]) -> list[CostLine]:
    """Return a line per subject."""
    lines = []
    for subject in dict.fromkeys(cost.subject for cost in costs):
        own = [cost for cost in costs if cost.subject == subject]
        times = [cost.time_ratio for cost in own if cost.time_ratio is not None]
        lines.append(
            CostLine(
                subject=subject,
                num_replicates=len(own),
                trained=", or ".join(dict.fromkeys(_trained_words(cost.trained) for cost in own)),
                times=spread(times) if len(times) == len(own) else None,
                macs=spread([cost.macs_ratio for cost in own]),
            )
        )
    return lines


def _trained_words(trained: Sequence[Trained]) -> str:
    """Write what was trained for how many epochs: `dense 12 + unstructured@1-3 36 + own 12`."""
    levels_by_kind: dict[str, list[str]] = {}
    epochs_by_kind: dict[str, float] = {}
    for one in trained[:-1]:
        kind, _, level = one.subject.partition("@")
        levels_by_kind.setdefault(kind, []).append(level)
        epochs_by_kind[kind] = epochs_by_kind.get(kind, 0.0) + one.num_epochs
    parts = [f"{_levels(kind, levels)} {epochs_by_kind[kind]:g}" for kind, levels in levels_by_kind.items()]
    return " + ".join([*parts, f"own {trained[-1].num_epochs:g}"])


def _levels(kind: str, levels: Sequence[str]) -> str:
    if levels == [""]:
        return kind
    return f"{kind}@{levels[0]}" + (f"-{levels[-1]}" if len(levels) > 1 else "")
