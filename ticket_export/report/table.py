"""Tables in text and markdown; milliseconds appear here and nowhere below."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def text_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table for a terminal: columns aligned, every value printed as it is."""
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
