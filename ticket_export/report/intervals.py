"""Values over replicates: how they spread, the interval of their mean, and the verdict that it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from ticket_export.errors import MeasureError

VERDICTS = WINS, LOSES, NOT_RESOLVED = ("wins", "loses", "not resolved")
NUM_REPLICATES_NEEDED = 3  # fewer leave a t interval that says nothing: with two, t is 12.7

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean over replicates and the lowest and highest of them."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the mean of values, their lowest and their highest."""
    return Spread(mean=fmean(values), low=min(values), high=max(values))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of two or more values; above 31 it is a little too wide."""
    if len(values) < 2:
        raise MeasureError(f"an interval needs at least 2 values, got {len(values)}", hint="add replicates")
    half = _T_975[min(len(values) - 1, len(_T_975)) - 1] * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def word_of_interval(low: float, high: float) -> str:
    """Return the verdict that the interval of a difference, or of a log ratio, allows."""
    return WINS if low > 0 else LOSES if high < 0 else NOT_RESOLVED
