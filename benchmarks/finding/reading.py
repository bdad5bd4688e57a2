"""What the page and the figure read from a document: its networks in order, and their values by replicate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from finding.variants import CONTROLS

from ticket_export.report.intervals import Spread, spread
from ticket_export.report.verdict import speedup_spread

Document: TypeAlias = Mapping[str, Any]  # Any: JSON


def names_of(document: Document) -> list[str]:
    """Return the names of all networks: dense, then tickets, then controls, each as they were found."""
    names = list(dict.fromkeys(network["name"] for network in document["networks"]))
    return sorted(names, key=lambda name: 0 if name == "dense" else 2 if name in CONTROLS else 1)


def tickets_of(document: Document) -> list[str]:
    """Return the names of the tickets."""
    return [name for name in names_of(document) if name != "dense" and name not in CONTROLS]


def values_of(document: Document, name: str, field: str) -> dict[int, Any]:  # Any: JSON
    """Return one field of a network by replicate."""
    own = [network for network in document["networks"] if network["name"] == name]
    return {network["replicate"]: network[field] for network in own}


def rows_of(document: Document, name: str, batch: int) -> list[Mapping[str, Any]]:  # Any: JSON
    """Return the timings of a network at a batch, one per replicate."""
    return [row for row in document["rows"] if (row["subject"], row["batch"]) == (name, batch)]


def batches_of(document: Document) -> list[int]:
    """Return the batches that were timed, smallest first."""
    return sorted({row["batch"] for row in document["rows"]})


def cost_of(document: Document, name: str, field: str) -> Spread | None:
    """Return the search cost over the replicates; None where one of them does not know it."""
    costs = list(values_of(document, name, field).values())
    return None if None in costs else spread(costs)


def cost_ratio(document: Document, names: tuple[str, str], field: str) -> tuple[Spread, int] | None:
    """Return the search cost of the first over the second's, by replicate, and of how many replicates.

    None where they share no replicate, or where one does not know its cost.
    """
    over, under = (values_of(document, name, field) for name in names)
    shared = sorted(over.keys() & under.keys())
    if not shared or None in [costs[replicate] for costs in (over, under) for replicate in shared]:
        return None
    return spread([over[replicate] / under[replicate] for replicate in shared]), len(shared)


def speedup_of(rows: list[Mapping[str, Any]]) -> Spread | None:  # Any: JSON
    """Return the geometric mean over the replicates; low and high span their 95 % intervals."""
    held = [row["speedup"] for row in rows if row["speedup"] is not None]
    return speedup_spread(held) if held else None
