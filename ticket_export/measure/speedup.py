"""How much faster, with an interval, or a refusal.

The unit is the round: one log ratio of medians per round and a 95 % t interval over the rounds. Samples
within a round share whatever the machine was doing, so an interval over pooled samples claims far too much
(simulated in tests/measure/test_coverage.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ticket_export.errors import MeasureError
from ticket_export.measure.measurement import Measurement

CONFIDENCE = 0.95
NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """baseline time / subject time: above 1 the subject is faster.

    Attributes:
        ratio: geometric mean over the rounds of (baseline median / subject median).
        low, high: ends of the 95 % t interval over the rounds.
        baseline: the baseline's name.
        num_rounds: rounds the interval rests on.
        rounds_won_fraction: share of the rounds in which the subject's median was the smaller one.
    """

    ratio: float
    low: float
    high: float
    baseline: str
    num_rounds: int
    rounds_won_fraction: float

    @property
    def verdict(self) -> str:
        """One of "faster", "slower" and, when the interval holds 1, "no difference shown"."""
        if self.low > 1.0:
            return "faster"
        return "slower" if self.high < 1.0 else NO_DIFFERENCE

    def __str__(self) -> str:
        interval = f"95 %: {self.low:.2f}-{self.high:.2f}, n = {self.num_rounds} rounds"
        text = f"{self.ratio:.2f}x ({interval})"
        return text if self.verdict != NO_DIFFERENCE else f"{NO_DIFFERENCE}: {text}"

    def to_json(self) -> dict[str, float | str]:
        """Return the `speedup` field of a report row: ratio, low, high, baseline."""
        return {"ratio": self.ratio, "low": self.low, "high": self.high, "baseline": self.baseline}


def speedup(baseline: Measurement, subject: Measurement) -> Speedup:
    """Return how many times faster `subject` ran than `baseline`, with a 95 % interval over the rounds.

    Raises:
        MeasureError: the two differ in runtime, device, precision, settings, batch, scope, threads, protocol
            or machine, or were not timed in the same interleaved rounds.
    """
    require_equal(baseline, subject)
    log_ratios = np.log(baseline.round_medians_s) - np.log(subject.round_medians_s)
    center, half_width = mean_interval(log_ratios)
    return Speedup(
        ratio=math.exp(center),
        low=math.exp(center - half_width),
        high=math.exp(center + half_width),
        baseline=baseline.name,
        num_rounds=len(log_ratios),
        rounds_won_fraction=float(np.mean(log_ratios > 0.0)),
    )


def require_equal(baseline: Measurement, subject: Measurement) -> None:
    """Pass when the two Measurements may be divided by one another.

    Raises:
        MeasureError: naming the first thing that differs, and both values.
    """
    pair = f"{subject.name!r} against {baseline.name!r}"
    for field in ("runtime", "device", "precision", "settings", "batch", "scope", "threads"):
        _require_same(field, getattr(baseline, field), getattr(subject, field), pair)
    for field in sorted({*baseline.machine, *subject.machine}):
        _require_same(f"machine {field}", baseline.machine.get(field), subject.machine.get(field), pair)
    for field in baseline.protocol.__slots__:
        _require_same(
            f"protocol {field}", getattr(baseline.protocol, field), getattr(subject.protocol, field), pair
        )
    _require_same("measuring run", baseline.run, subject.run, pair)


def _require_same(what: str, baseline: object, subject: object, pair: str) -> None:
    if baseline != subject:
        raise MeasureError(
            f"cannot compare {pair}: {what} is {subject!r} against {baseline!r}",
            hint="measure both in one interleaved run of equal runtime, precision, batch and protocol",
        )


def mean_interval(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    """Return the mean of `values` [n] and the half width of its 95 % t interval, n >= 2."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), student_t_quantile((1.0 + CONFIDENCE) / 2.0, len(values) - 1) * spread


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return t with P(T <= t) = `probability` for Student's t with a whole number of degrees of freedom.

    The distribution has a closed form for whole degrees (Abramowitz & Stegun, 26.7.3 and 26.7.4); it is
    inverted by bisection, so that measuring needs no SciPy.

    Args:
        probability: in (0, 1).
        degrees: at least 1.
    """
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, degrees)
    low, high = 0.0, 1.0
    while _student_t_probability(high, degrees) < probability:
        high *= 2.0
    for _ in range(200):  # halves the bracket to the last bit of a float
        middle = (low + high) / 2.0
        if _student_t_probability(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def _student_t_probability(t: float, degrees: int) -> float:
    """Return P(T <= t) for t >= 0."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (1.0, 1.0) if degrees % 2 == 0 else (cosine, cosine)
    for k in range(2 if degrees % 2 == 0 else 3, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if degrees % 2 == 0:
        within = sine * total
    elif degrees == 1:
        within = 2.0 * angle / math.pi
    else:
        within = 2.0 * (angle + sine * total) / math.pi
    return 0.5 + within / 2.0
