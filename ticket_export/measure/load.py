"""What else the machine was doing: processor time of other processes, and time the hypervisor took."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ticket_export.store.process import busy_and_stolen_s, quota_stopped_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Cores in use by others, on average over one round; None where the system does not tell.

    Attributes:
        other_cores: cores other processes kept busy, 0 to the number of cores.
        steal_cores: cores the hypervisor gave to other guests while this one wanted them.
        quota_cores: cores that a container's limit kept from this process while it wanted them.
    """

    other_cores: float | None
    steal_cores: float | None
    quota_cores: float = 0.0


class LoadMeter:
    """Counts from the moment it is made; `stop` gives the load since then."""

    def __init__(self) -> None:
        self._start, self._stopped_s = self._read(), quota_stopped_s()

    def stop(self) -> Load:
        """Return the average load since the meter was made."""
        end, stopped_s = self._read(), quota_stopped_s() - self._stopped_s
        if end is None or self._start is None:
            return Load(other_cores=None, steal_cores=None)
        wall_s, busy_s, steal_s = (after - before for after, before in zip(end, self._start, strict=True))
        wall_s = max(wall_s, 1e-3)  # the counters tick in hundredths of a second
        return Load(
            other_cores=max(busy_s, 0.0) / wall_s,
            steal_cores=max(steal_s, 0.0) / wall_s,
            quota_cores=stopped_s / wall_s,
        )

    def _read(self) -> tuple[float, float, float] | None:
        """Return seconds: wall clock, busy in other processes, stolen."""
        system, own = busy_and_stolen_s(), os.times()
        if system is None:
            return None
        return time.perf_counter(), system[0] - own.user - own.system, system[1]


def num_cores() -> int:
    """Return the number of logical cores of the machine, at least 1."""
    return os.cpu_count() or 1
