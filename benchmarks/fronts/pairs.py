"""Two networks against one another at equal measured latency: the ratio of latencies, and the accuracies."""

from __future__ import annotations

from typing import Any

from fronts.reading import Document
from fronts.timing import Timed

from ticket_export.report import words
from ticket_export.report.intervals import LOSES, WINS, Spread
from ticket_export.report.verdict import Verdict, speed_word

# as much as equal MACs may differ in a report (report/worth.py)
EQUAL_WITHIN = 1.05


def pair_json(timed: Timed, verdict: Verdict, batch: int) -> dict[str, Any]:  # Any: JSON
    """Return one comparison as JSON values: `speedup` is how many times faster the first is."""
    held = timed.speedup_of(verdict.ticket, verdict.against)
    fields = ("num_replicates", "difference", "low", "high", "word")
    return {
        **{"one": verdict.ticket, "other": verdict.against, "batch": batch},
        "speedup": {"ratio": held.mean, "low": held.low, "high": held.high},
        "accuracy": {field: getattr(verdict, field) for field in fields},
    }


def verdict_of(pair: Document) -> Verdict:
    """Return the verdict of a comparison: the accuracy of the first less that of the second."""
    return Verdict(ticket=pair["one"], against=pair["other"], runtime="", precision="", **pair["accuracy"])


def latency_words(pair: Document) -> str:
    """Say how the latencies compare: `equal within 5 %: 1.01x (0.99-1.03)`."""
    held = pair["speedup"]
    within = held["low"] >= 1 / EQUAL_WITHIN and held["high"] <= EQUAL_WITHIN
    spread = Spread(mean=held["ratio"], low=held["low"], high=held["high"])
    word = "equal within 5 %" if within else speed_word(spread)
    return f"{word}: {spread.mean:.2f}x ({spread.low:.2f}-{spread.high:.2f})"


def accuracy_words(pair: Document) -> str:
    """Say how the accuracies compare, in points: `+0.63 (+0.05 to +1.21), n = 3: wins`."""
    verdict = verdict_of(pair)
    text = f"{words.points(verdict)}, n = {verdict.num_replicates}: {words.verdict_words(verdict)}"
    note = unequal_note(pair)
    return f"{text}; {note}" if note else text


def unequal_note(pair: Document) -> str:
    """Say why a verdict decides nothing at equal latency; empty where that is not so."""
    word, ratio = pair["accuracy"]["word"], pair["speedup"]["ratio"]
    if word == WINS and ratio < 1 / EQUAL_WITHIN:
        return "it is slower, so winning decides nothing"
    if word == LOSES and ratio > EQUAL_WITHIN:
        return "it is faster, so losing decides nothing"
    return ""


def pair_line(pair: Document) -> str:
    """Write one comparison in a line."""
    return (
        f"{pair['one']} against {pair['other']}, batch {pair['batch']}: latency {latency_words(pair)}; "
        f"accuracy, points: {accuracy_words(pair)}"
    )
