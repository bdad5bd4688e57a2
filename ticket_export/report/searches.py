"""What searches of supernets did, event by event, as their trainings noted it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ticket_export.report.lineage import Lineage
from ticket_export.report.order import subject_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The events of the search that one network came from; their fields are those of `SearchEvent`."""

    subject: str
    replicate: int
    events: tuple[Mapping[str, Any], ...]  # Any: JSON numbers

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return plain JSON values."""
        return asdict(self) | {"events": [dict(event) for event in self.events]}


def searches_of(lineage: Lineage, subjects: Iterable[tuple[str, int]]) -> tuple[Search, ...]:
    """Return the searches of the measured networks, each search once: `searched` shares the ticket's.

    Raises:
        StoreError: the finder of a network is not among the results.
    """
    found = []
    for subject, replicate in sorted(set(subjects), key=lambda who: (subject_order(who[0]), who[1])):
        if subject.partition("@")[0] not in ("ticket", "no_reactivation"):
            continue
        finder = lineage.finder(subject, replicate)
        if finder is not None and "events" in finder["facts"]:
            events = tuple(finder["facts"]["events"])
            found.append(Search(subject=subject, replicate=replicate, events=events))
    return tuple(found)
