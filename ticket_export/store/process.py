"""What the operating system tells of processes, read without a package: a serving box has none for it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def start_ticks(pid: int) -> int | None:
    """Return when a living process started, in clock ticks after boot; None when it is dead or a zombie.

    Where the system has no /proc the answer for a living process is 0: numbers used twice are not told apart.
    """
    if not _PROC.joinpath("self", "stat").exists():
        return _start_without_proc(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _start_without_proc(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # alive, and someone else's
        return 0
    return 0


def busy_and_stolen_s() -> tuple[float, float] | None:
    """Return seconds of all cores since boot: busy, and taken by the hypervisor; None if unknown."""
    return _cpu_times_s().get("cpu")


def busy_s_by_core() -> dict[int, float]:
    """Return seconds since boot in which each logical core was busy; empty if unknown."""
    return {int(name[3:]): busy_s for name, (busy_s, _) in _cpu_times_s().items() if name != "cpu"}


def _cpu_times_s() -> dict[str, tuple[float, float]]:
    """Return seconds busy and stolen by the kernel's names: "cpu" for all cores, "cpu0", "cpu1", ..."""
    path = _PROC / "stat"
    if not path.exists():
        return {}
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    times_s = {}
    for line in path.read_text(encoding="ascii").splitlines():
        if not line.startswith("cpu"):
            break
        name, *numbers = line.split()
        ticks = dict(zip(names, map(int, numbers), strict=False))
        busy = sum(ticks[name] for name in ("user", "nice", "system", "irq", "softirq"))
        times_s[name] = (busy * tick_s, ticks.get("steal", 0) * tick_s)
    return times_s


def quota_cores() -> float | None:
    """Return how many cores a container lets this process use at a time; None without such a limit."""
    quota, _, period = _cgroup_text("cpu.max").partition(" ")
    if not quota:  # cgroup version 1
        quota = _cgroup_text("cpu/cpu.cfs_quota_us")
        period = _cgroup_text("cpu/cpu.cfs_period_us")
    if not (quota.isdecimal() and period.isdecimal()):  # "max", "-1", or no such file
        return None
    return int(quota) / int(period)


def quota_stopped_s() -> float:
    """Return the seconds, summed over the cores, for which that limit stopped this process's group so far."""
    counts = dict(
        line.split(maxsplit=1)
        for name in ("cpu/cpu.stat", "cpu.stat")
        for line in _cgroup_text(name).splitlines()
    )
    if "throttled_usec" in counts:
        return int(counts["throttled_usec"]) / 1e6
    return int(counts.get("throttled_time", 0)) / 1e9


def _cgroup_text(name: str) -> str:
    """Return a file of this process's control group, or of the container's root; "" without one."""
    own = ""
    with suppress(OSError):
        own = (_PROC / "self" / "cgroup").read_text(encoding="ascii").rpartition("::/")[2].strip()
    for folder in (_CGROUP / own, _CGROUP):
        with suppress(OSError):
            return (folder / name).read_text(encoding="ascii").strip()
    return ""
