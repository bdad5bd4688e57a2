"""When a batch sweep has seen enough: throughput that no longer grows, or memory that would not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

GAIN_FRACTION = 0.05  # a doubling that gives less than this, twice in a row, is saturation
MEMORY_FRACTION = 0.8


def is_saturated(throughputs_per_s: Sequence[float]) -> bool:
    """Tell whether each of the last two doublings of the batch gained less than 5 %."""
    if len(throughputs_per_s) < 3:
        return False
    pairs = zip(throughputs_per_s[-3:-1], throughputs_per_s[-2:], strict=True)
    return all(after < (1.0 + GAIN_FRACTION) * before for before, after in pairs)


def saturated_batch(batches: Sequence[int], throughputs_per_s: Sequence[float]) -> int | None:
    """Return the batch from which two doublings gained less than 5 % each, or None where none did."""
    for end in range(3, len(batches) + 1):
        if is_saturated(throughputs_per_s[:end]):
            return batches[end - 3]
    return None


def all_saturated(throughputs_by_subject: Mapping[str, Sequence[float]]) -> bool:
    """Tell whether every subject is."""
    return all(is_saturated(throughputs) for throughputs in throughputs_by_subject.values())


def memory_reason(used_before_bytes: int, used_bytes: int, total_bytes: int) -> str | None:
    """Return why the doubled batch would not fit, in words, or None when it should.

    What a batch took is taken to double; what was there before the first batch stays.

    Args:
        used_before_bytes: before the first batch.
        used_bytes: at the largest batch so far.
        total_bytes: what there is.
    """
    needed_bytes = used_before_bytes + 2 * max(0, used_bytes - used_before_bytes)
    if needed_bytes <= MEMORY_FRACTION * total_bytes:
        return None
    return (
        f"twice the batch would need about {needed_bytes / 2**30:.1f} GiB of {total_bytes / 2**30:.1f} GiB "
        f"(limit {MEMORY_FRACTION:.0%})"
    )


def peak_host_bytes() -> int:
    """Return the largest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def available_host_bytes() -> int:
    """Return the memory of the machine, or what a container's limit leaves of it."""
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, int(limit.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return total


def device_bytes() -> tuple[int, int] | None:
    """Return bytes used and in all of the first GPU, by its driver; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free, total
