"""Why a measurement is not to be trusted, in words with numbers; no reason means stable.

The limits are about the numbers that are reported (medians per round, their ratio), not about single samples:
an interrupt now and then is normal and a median does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ticket_export.measure.gpu import GpuBlock
from ticket_export.measure.load import Load

ROUND_CV_LIMIT = 0.05
TREND_LIMIT = 0.05
TAIL_LIMIT = 1.5
STEAL_LIMIT_CORES = 0.05
NEIGHBOUR_SLACK_CORES = 0.15  # what an idle desktop takes, and the ticks of the counters
CLOCK_LIMIT = 0.75  # nvbench discards a batch whose mean SM clock is below this share of the default one
THROTTLED_LIMIT = 0.10  # a moment at the power cap is normal and a median does not see it


def stability_reasons(
    samples_s: npt.NDArray[np.float64],
    *,
    warmup_drift_fraction: float,
    drift_limit: float,
    loads: Sequence[Load],
    threads: int,
    num_cores: int,
    gpu: Sequence[GpuBlock] = (),
) -> tuple[str, ...]:
    """Return every reason to distrust the samples, each one sentence with its number and its limit.

    Args:
        samples_s: [rounds, samples] seconds.
        warmup_drift_fraction: relative difference of the last two warm-up windows.
        drift_limit: what that difference had to fall below.
        loads: the load of others, one per round.
        threads: CPU threads of one inference.
        num_cores: logical cores of the machine.
        gpu: what the GPU did, one per round; empty on a CPU.
    """
    found = [
        _warmup(warmup_drift_fraction, drift_limit),
        _round_spread(samples_s),
        _trend(samples_s),
        _tail(samples_s),
        _neighbour(loads, threads=threads, num_cores=num_cores),
        _steal(loads),
        _quota(loads),
        _low_clock(gpu),
        _throttled(gpu),
        _gpu_neighbour(gpu),
    ]
    return tuple(reason for reason in found if reason is not None)


def _warmup(drift_fraction: float, limit: float) -> str | None:
    if drift_fraction < limit:
        return None
    return f"warm-up never settled: its last two windows differ by {drift_fraction:.1%} (limit {limit:.1%})"


def _round_spread(samples_s: npt.NDArray[np.float64]) -> str | None:
    medians_s = np.median(samples_s, axis=1)
    variation = float(np.std(medians_s, ddof=1) / np.mean(medians_s))
    if variation <= ROUND_CV_LIMIT:
        return None
    return f"the medians of the rounds vary by {variation:.1%} (limit {ROUND_CV_LIMIT:.0%})"


def _trend(samples_s: npt.NDArray[np.float64]) -> str | None:
    medians_s = np.median(samples_s, axis=1)
    half = len(medians_s) // 2
    before_s, after_s = medians_s[:half], medians_s[-half:]
    change = float(np.mean(after_s) / np.mean(before_s)) - 1.0
    # rounds that merely scatter differ in their halves too: a trend is more than two standard errors of that
    error_s = np.sqrt((np.var(before_s, ddof=1) + np.var(after_s, ddof=1)) / half)
    if abs(change) <= TREND_LIMIT or abs(np.mean(after_s) - np.mean(before_s)) <= 2.0 * error_s:
        return None
    word = "slower" if change > 0 else "faster"
    limit = f"limit {TREND_LIMIT:.0%}"
    return f"the second half of the rounds is {abs(change):.1%} {word} than the first ({limit})"


def _tail(samples_s: npt.NDArray[np.float64]) -> str | None:
    p50_s, p90_s = np.quantile(samples_s, [0.5, 0.9])
    if p90_s <= TAIL_LIMIT * p50_s:
        return None
    return f"one sample in ten takes {p90_s / p50_s:.1f}x the median or more (limit {TAIL_LIMIT:.1f}x)"


def _neighbour(loads: Sequence[Load], *, threads: int, num_cores: int) -> str | None:
    """Give a reason when others ran on cores that the inference needed.

    A neighbour on the remaining cores is seen by the interval: beside one busy core, one thread on two cores
    has an interval up to twice as wide, and 37 of 40 runs of a file against itself show no difference.
    """
    known = [load.other_cores for load in loads if load.other_cores is not None]
    if len(known) < len(loads):
        return "busy neighbour not ruled out: this system does not tell the load of other processes"
    other_cores = float(np.mean(known))
    limit = num_cores - threads + NEIGHBOUR_SLACK_CORES
    if other_cores <= limit:
        return None
    return (
        f"busy neighbour: other processes used {other_cores:.2f} of {num_cores} cores during the rounds "
        f"(limit {limit:.2f} with {threads} thread{'s' if threads > 1 else ''})"
    )


def _steal(loads: Sequence[Load]) -> str | None:
    steal_cores = float(np.mean([load.steal_cores or 0.0 for load in loads]))
    if steal_cores <= STEAL_LIMIT_CORES:
        return None
    return (
        f"the hypervisor took {steal_cores:.2f} cores for other guests during the rounds "
        f"(limit {STEAL_LIMIT_CORES:.2f})"
    )


def _quota(loads: Sequence[Load]) -> str | None:
    quota_cores = float(np.mean([load.quota_cores for load in loads]))
    if quota_cores <= STEAL_LIMIT_CORES:
        return None
    return (
        f"the container's CPU limit kept {quota_cores:.2f} cores from this process during the rounds "
        f"(limit {STEAL_LIMIT_CORES:.2f})"
    )


def _low_clock(gpu: Sequence[GpuBlock]) -> str | None:
    """Give a reason when the SM clock fell, unless someone has set it: a set clock is low, but steady."""
    known = [
        (block.sm_clock_mhz / block.max_sm_clock_mhz, block.sm_clock_mhz, index)
        for index, block in enumerate(gpu, start=1)
        if block.sm_clock_mhz is not None and block.max_sm_clock_mhz and not block.user_clocks
    ]
    if not known or min(known)[0] >= CLOCK_LIMIT:
        return None
    share, clock_mhz, index = min(known)
    return (
        f"the SM clock fell to {clock_mhz:.0f} MHz in round {index}, {share:.0%} of its maximum "
        f"(limit {CLOCK_LIMIT:.0%})"
    )


def _throttled(gpu: Sequence[GpuBlock]) -> str | None:
    num_samples = sum(block.num_samples for block in gpu)
    words = sorted({word for block in gpu for word in block.throttled})
    shares = {word: sum(block.throttled.get(word, 0) for block in gpu) / num_samples for word in words}
    over = {word: share for word, share in shares.items() if share > THROTTLED_LIMIT}
    if not over:
        return None
    told = ", ".join(f"{word} in {share:.0%}" for word, share in over.items())
    return f"the GPU held its clocks down: {told} of {num_samples} samples (limit {THROTTLED_LIMIT:.0%})"


def _gpu_neighbour(gpu: Sequence[GpuBlock]) -> str | None:
    rounds = [index for index, block in enumerate(gpu, start=1) if block.other_processes]
    if not rounds:
        return None
    return f"busy neighbour: another process held the GPU in {len(rounds)} of {len(gpu)} rounds (limit 0)"
