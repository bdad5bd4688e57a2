"""In what order subjects and precisions stand in every table and figure."""

from __future__ import annotations

PRECISION_ORDER = ("fp32", "fp16", "int8")
_KIND_ORDER = (
    *("dense", "search", "ticket", "searched", "no_reactivation", "unstructured"),
    *("uniform", "uniform_latency", "depgraph", "random", "reinit", "random_reinit"),
)


def subject_order(subject: str) -> tuple[int, int, str]:
    """Return the sort key of a subject: dense, tickets by level, then each control by level."""
    kind, _, level = subject.partition("@")
    rank = _KIND_ORDER.index(kind) if kind in _KIND_ORDER else len(_KIND_ORDER)
    return rank, int(level) if level.isdecimal() else 0, kind


def precision_order(precision: str) -> int:
    """Return the sort key of a precision: fp32 first, the coarsest last."""
    known = precision in PRECISION_ORDER
    return PRECISION_ORDER.index(precision) if known else len(PRECISION_ORDER)
