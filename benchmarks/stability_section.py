"""Which timings of a page are to be distrusted, and why: one section, the same on every page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def stability(rows: Sequence[Mapping[str, Any]]) -> str:  # Any: JSON
    """Return the section: each reason where it belongs, those of a baseline only at the baseline."""
    unstable = [row for row in rows if not row["stable"]]
    if not unstable:
        return f"## Stability\n\nNone of the {len(rows)} timings gives a reason to distrust it."
    note = (
        f"{len(unstable)} of {len(rows)} timings give a reason to distrust them. A speedup is no stabler "
        "than its baseline: where dense is told, all networks that were timed with it are marked."
    )
    told = []
    for row in unstable:
        own = [reason for reason in row["reasons"] if not reason.startswith("baseline ")]
        if own:
            told.append(
                f"- batch {row['batch']}, {row['subject']}, replicate {row['replicate']}: {'; '.join(own)}"
            )
    return "\n".join(["## Stability", "", note, "", *told])
