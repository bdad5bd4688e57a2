"""What else the machine was doing: processor time of other processes, and time the hypervisor took."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Cores in use by others, on average over one round.

    Attributes:
        other_cores: cores other processes kept busy, 0 to the number of cores.
        steal_cores: cores the hypervisor gave to other guests while this one wanted them.
    """

    other_cores: float
    steal_cores: float


class LoadMeter:
    """Counts from the moment it is made; `stop` gives the load since then."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._read()

    def stop(self) -> Load:
        """Return the average load since the meter was made."""
        wall_s, busy_s, steal_s = (
            after - before for after, before in zip(self._read(), self._start, strict=True)
        )
        wall_s = max(wall_s, 1e-3)  # the counters tick in hundredths of a second
        return Load(other_cores=max(busy_s, 0.0) / wall_s, steal_cores=max(steal_s, 0.0) / wall_s)

    def _read(self) -> tuple[float, float, float]:
        """Return seconds: wall clock, busy in other processes, stolen."""
        system, own = psutil.cpu_times(), self._process.cpu_times()
        # Linux names all of these; other systems have a subset
        busy = sum(getattr(system, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        return time.perf_counter(), busy - own.user - own.system, getattr(system, "steal", 0.0)


def num_cores() -> int:
    """Return the number of logical cores of the machine, at least 1."""
    return psutil.cpu_count() or 1
