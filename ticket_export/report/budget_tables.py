"""Budgets as tables: asked, predicted, reached; and channels that were free."""

from __future__ import annotations

from collections.abc import Sequence

from ticket_export.report import words
from ticket_export.report.budgets import Budgets, Measured
from ticket_export.report.sections import cards, typeset
from ticket_export.report.table import markdown_table

_OF_DENSE = {"param_fraction": "weights", "mac_fraction": "MACs", "latency_fraction": "latency"}
HEADS = ("Subject", "Replicate", "Budget", "Asked", "Predicted", "Reached", "Kept importance", "Tries")
FREE_HEADS = ("Subject", "Replicate", "Channels before", "Channels after", "Latency, predicted", "measured")
NOTE = (
    "Shares of dense. Predicted: the sum over the layers, by their counts or by the machine's latency table. "
    "Reached: counted, or timed beside dense in the same rounds, with its 95 % interval, before the network "
    "was trained; a latency more than 2 points off is chosen again, three tries at most. Kept importance: "
    "the geometric mean over channel groups of the share of their scores that is kept."
)
FREE_NOTE = (
    "Free channels: after the widths were chosen, groups grow to the widest widths that the latency table "
    "prices the same. Latency: of the wider network over the one before it, timed in the same rounds, with "
    "its 95 % interval."
)


def budget_rows(budgets: Budgets) -> list[tuple[str, ...]]:
    """Return a row of `HEADS` per ticket and replicate with a budget."""
    return [
        (
            one.subject,
            str(one.replicate),
            _OF_DENSE[one.kind],
            words.percent(one.asked),
            words.percent(one.predicted),
            words.percent(one.reached) if one.measured is None else _share(one.measured),
            words.percent(one.kept_importance),
            str(one.num_tries),
        )
        for one in budgets.budgets
    ]


def free_rows(budgets: Budgets) -> list[tuple[str, ...]]:
    """Return a row of `FREE_HEADS` per ticket and replicate with free channels."""
    return [
        (
            one.subject,
            str(one.replicate),
            f"{one.channels_before:,}",
            f"{one.channels_after:,}",
            words.percent(one.predicted),
            "none was free" if one.measured is None else _share(one.measured),
        )
        for one in budgets.free_channels
    ]


def _share(found: Measured) -> str:
    return f"{words.percent(found.share)} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def markdown(budgets: Budgets) -> list[str]:
    """Return the section of `report.md`; empty without budgets."""
    parts = []
    for note, heads, rows in _tables(budgets):
        parts += [note, markdown_table(heads, rows)]
    return ["## Budgets", *parts] if parts else []


def section(budgets: Budgets) -> str:
    """Return the section of `report.html`; empty without budgets."""
    parts = [
        f"<p class='note'>{typeset(note)}</p>{cards(heads, rows)}" for note, heads, rows in _tables(budgets)
    ]
    return "\n".join(["<h2>Budgets</h2>", *parts]) if parts else ""


def _tables(budgets: Budgets) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    tables = [(NOTE, HEADS, budget_rows(budgets)), (FREE_NOTE, FREE_HEADS, free_rows(budgets))]
    return [(note, heads, rows) for note, heads, rows in tables if rows]
