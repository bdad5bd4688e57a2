"""Cores for the threads of one inference: the quietest ones, held while the measuring run lasts.

Held, so that the kernel does not move an inference between sockets, kinds of core or SMT siblings, and so
that the record says where it ran. On two plain cores it neither helps nor hurts: a ResNet-20 (32x32, batch 1,
0.40 ms, onnxruntime 1.31.1, 10 rounds of 20 ms) against itself was called different, held and free, in 2 and
1 of 40 runs on a quiet machine, in 7 and 6 of 80 beside a busy neighbour and in 2 and 6 of 80 beside two; the
medians of the intervals' half widths were 0.8 and 0.8 %, 1.4 and 1.4 %, 1.1 and 1.0 %.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ticket_export.store.process import busy_s_by_core

PROBE_S = 0.1  # ten ticks of the kernel's counters: busy or not, which is all that is asked
_SYSTEM = Path("/sys/devices/system/cpu")
_TASKS = Path("/proc/self/task")


@contextmanager
def pinned(threads: int, device: str) -> Iterator[tuple[int, ...] | None]:
    """Keep every thread of this process on the `threads` quietest cores; give the old ones back at the end.

    Sessions that were opened before have their threads moved too, and threads that start meanwhile inherit
    the cores of the thread that starts them.

    Args:
        threads: CPU threads of one inference, each with a core of its own.
        device: where the network runs. Only "cpu" is pinned: a GPU's driver has threads beside the one
            that launches, and one core for all of them would be timed.

    Yields:
        The logical cores, ascending; None when nothing is pinned, because of the device or because the
        system does not let a process choose.
    """
    if device != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    cores = quietest_cores(threads)
    before = {task: os.sched_getaffinity(task) for task in _tasks()}
    home = os.sched_getaffinity(0)
    try:
        _move({task: set(cores) for task in before})
        yield cores
    finally:
        _move({task: before.get(task, home) for task in _tasks()})


def quietest_cores(threads: int) -> tuple[int, ...]:
    """Return the `threads` cores with the least to do that this process may use, ascending.

    Strong cores go before weak ones, cores of one socket before a mix, and a second thread of a core that is
    already taken (SMT) comes last. Takes `PROBE_S`.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) <= threads:
        return tuple(allowed)
    busy = _busy_by_core(allowed)
    by_socket: dict[str, list[int]] = {}
    for core in allowed:
        by_socket.setdefault(_fact(core, "topology/physical_package_id"), []).append(core)
    choices = [_pick(cores, threads, busy) for cores in by_socket.values() if len(cores) >= threads]
    choices = choices or [_pick(allowed, threads, busy)]
    best = min(choices, key=lambda cores: (sum(busy[core] for core in cores), cores))
    return tuple(sorted(best))


def _pick(cores: list[int], threads: int, busy: Mapping[int, float]) -> list[int]:
    picked: list[int] = []
    siblings: set[str] = set()
    while len(picked) < threads:
        left = [core for core in cores if core not in picked]
        core = min(
            left,
            key=lambda core: (_siblings(core) in siblings, -_capacity(core), round(busy[core], 1), core),
        )
        picked.append(core)
        siblings.add(_siblings(core))
    return picked


def _busy_by_core(cores: list[int]) -> dict[int, float]:
    """Return how busy each core was during `PROBE_S`, 0 to 1; 0 where the system does not tell."""
    before = busy_s_by_core()
    start_s = time.perf_counter()
    time.sleep(PROBE_S)
    wall_s = time.perf_counter() - start_s
    after = busy_s_by_core()
    return {core: (after.get(core, 0.0) - before.get(core, 0.0)) / wall_s for core in cores}


def _siblings(core: int) -> str:
    return _fact(core, "topology/thread_siblings_list") or str(core)


def _capacity(core: int) -> int:
    """Return what the core can do, 1024 for the strongest kind; all alike where the system does not tell."""
    text = _fact(core, "cpu_capacity")
    return int(text) if text.isdecimal() else 1024


def _fact(core: int, name: str) -> str:
    with suppress(OSError):
        return (_SYSTEM / f"cpu{core}" / name).read_text(encoding="ascii").strip()
    return ""


def _tasks() -> list[int]:
    """Return the threads of this process; without /proc only the calling one, which is named 0."""
    if not _TASKS.is_dir():
        return [0]
    return [int(task.name) for task in _TASKS.iterdir()]


def _move(cores_by_task: Mapping[int, set[int]]) -> None:
    for task, cores in cores_by_task.items():
        with suppress(ProcessLookupError):  # it ended since it was listed
            os.sched_setaffinity(task, cores)
