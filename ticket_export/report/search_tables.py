"""Searches of supernets as a table: a line per event."""

from __future__ import annotations

from collections.abc import Sequence

from ticket_export.report import words
from ticket_export.report.searches import Search
from ticket_export.report.sections import cards, typeset
from ticket_export.report.table import markdown_table

HEADS = (
    *("Subject", "Replicate", "Epoch", "Target", "Channels", "Branches", "Blocks", "Zeroed", "Cut out"),
    *("Came back", "MACs", "Error"),
)
NOTE = (
    "Each event of a search ranks the hidden channels of all branches by the scales of their norms. Target: "
    "the share of the channels, or of the budget's cost, that should be gone. Channels, branches and blocks: "
    "what was chosen. Zeroed channels train on and may come back at a later event; those cut out are gone. "
    "Error: of the exact cut, max|a-b| / max|b|, the larger of the trained and of the averaged network's."
)


def search_rows(searches: Sequence[Search]) -> list[tuple[str, ...]]:
    """Return a row of `HEADS` per event."""
    return [
        (
            search.subject,
            str(search.replicate),
            str(event["epoch"]),
            words.percent(event["target"]),
            *(f"{event[name]:,}" for name in ("kept_channels", "kept_branches", "kept_blocks", "zeroed")),
            *(f"{event[name]:,}" for name in ("removed", "reactivated", "macs")),
            f"{max(event['rel_error'], event['average_rel_error']):.1e}",
        )
        for search in searches
        for event in search.events
    ]


def markdown(searches: Sequence[Search]) -> list[str]:
    """Return the section of `report.md`; empty without searches."""
    return ["## Search", NOTE, markdown_table(HEADS, search_rows(searches))] if searches else []


def section(searches: Sequence[Search]) -> str:
    """Return the section of `report.html`; empty without searches."""
    if not searches:
        return ""
    return f"<h2>Search</h2>\n<p class='note'>{typeset(NOTE)}</p>{cards(HEADS, search_rows(searches))}"
