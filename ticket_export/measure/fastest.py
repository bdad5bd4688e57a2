"""The fastest of several equal networks, by intervals: no other one may be shown to be faster.

Equal networks differ in size alone, so where the intervals leave a choice, the smallest wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ticket_export.errors import MeasureError
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.speedup import Speedup, mean_interval, require_equal

Measured = Mapping[str, Measurement]


def speedup_over_batches(runs: Sequence[Measured], baseline: str, subject: str) -> Speedup:
    """Return the geometric mean over several runs of how many times faster `subject` is than `baseline`.

    The unit stays the round: the log ratios of the runs' first rounds are averaged, those of their second
    rounds, and so on; the interval is Student's t over these means.

    Args:
        runs: one interleaved run per batch, each by subject name; of equal numbers of rounds.
        baseline: a name in every run.
        subject: another one.

    Raises:
        MeasureError: there is no run, or two runs or two subjects are not comparable.
    """
    if len({run[baseline].num_rounds for run in runs}) != 1:
        counts = sorted({run[baseline].num_rounds for run in runs})
        raise MeasureError(f"a mean over runs needs equal numbers of rounds, got {counts}")
    logs = []
    for run in runs:
        require_equal(run[baseline], run[subject])
        logs.append(np.log(run[baseline].round_medians_s) - np.log(run[subject].round_medians_s))
    log_ratios = np.mean(logs, axis=0)
    center, half_width = mean_interval(log_ratios)
    return Speedup(
        ratio=math.exp(center),
        low=math.exp(center - half_width),
        high=math.exp(center + half_width),
        baseline=baseline,
        num_rounds=len(log_ratios),
        rounds_won_fraction=float(np.mean(log_ratios > 0.0)),
    )


def not_shown_slower(runs: Sequence[Measured], names: Sequence[str]) -> list[str]:
    """Return those of `names` than which no other is shown to be faster; never empty.

    `a` is shown to be faster than `b` when the 95 % interval of their paired ratio lies above 1. The name
    with the smallest mean time is always among them.

    Args:
        runs: as in `speedup_over_batches`.
        names: at least one.
    """
    return [
        name
        for name in names
        if not any(speedup_over_batches(runs, name, other).low > 1.0 for other in names if other != name)
    ]


def fastest(runs: Sequence[Measured], size_by_name: Mapping[str, Sequence[int]]) -> str:
    """Return the smallest network than which no other is shown to be faster.

    Args:
        runs: as in `speedup_over_batches`.
        size_by_name: what is compared, in the order of preference -> its sizes, the first that differs
            decides; of equal ones the first name is returned.
    """
    return min(not_shown_slower(runs, list(size_by_name)), key=lambda name: tuple(size_by_name[name]))
