"""What budgets asked for, what prices of layers promised and what was reached, as finders noted it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ticket_export.report.artefacts import Manifest
from ticket_export.report.lineage import Lineage
from ticket_export.report.order import subject_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A latency as a share of another, with its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How a finder kept to its budget; `measured` is None where costs are counted."""

    subject: str
    replicate: int
    kind: str
    asked: float
    predicted: float
    reached: float
    measured: Measured | None
    kept_importance: float
    num_tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeChannels:
    """What a finder added at no cost; `measured` is None where nothing was free."""

    subject: str
    replicate: int
    channels_before: int
    channels_after: int
    predicted: float
    measured: Measured | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Of all measured networks; both empty where no finder had a budget or free channels."""

    budgets: tuple[Budget, ...] = ()
    free_channels: tuple[FreeChannels, ...] = ()

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return plain JSON values."""
        return {
            "budgets": [asdict(one) for one in self.budgets],
            "free_channels": [asdict(one) for one in self.free_channels],
        }


def budgets_of(lineage: Lineage, subjects: Iterable[tuple[str, int]]) -> Budgets:
    """Return what the finders of the tickets among `subjects` noted of their budgets.

    Raises:
        StoreError: the finder of one is not among the results.
    """
    budgets, free = [], []
    for subject, replicate in sorted(set(subjects), key=lambda who: (subject_order(who[0]), who[1])):
        finder = lineage.finder(subject, replicate) if subject.startswith("ticket@") else None
        if finder is None:
            continue
        facts = finder["facts"]
        if "predicted" in facts:
            budgets.append(_budget(subject, replicate, facts))
        if "free_channels" in facts:
            found = facts["free_channels"]
            free.append(
                FreeChannels(
                    subject=subject,
                    replicate=replicate,
                    **{**found, "measured": _measured(found["measured"])},
                )
            )
    return Budgets(budgets=tuple(budgets), free_channels=tuple(free))


def _budget(subject: str, replicate: int, facts: Manifest) -> Budget:
    ((kind, asked),) = facts["target"].items()
    return Budget(
        subject=subject,
        replicate=replicate,
        kind=kind,
        asked=asked,
        predicted=facts["predicted"],
        reached=facts["reached"],
        measured=_measured(facts.get("measured")),
        kept_importance=facts["kept_importance"],
        num_tries=len(facts.get("tries", (None,))),
    )


def _measured(value: Mapping[str, float] | None) -> Measured | None:
    return None if value is None else Measured(**value)
