"""What is read of processes: when each started, and that the dead and the undead did not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ticket_export.store import process
from ticket_export.store.process import busy_and_stolen_s, start_ticks


def test_a_process_keeps_its_start_and_a_later_one_starts_later() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mine, its = start_ticks(os.getpid()), start_ticks(other.pid)
        assert mine is not None
        assert its is not None
        assert its > mine
        assert start_ticks(os.getpid()) == mine


def test_a_dead_process_and_a_zombie_have_no_start() -> None:
    other = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(other.pid) is None  # a zombie
    other.wait()
    assert start_ticks(other.pid) is None


def test_without_proc_the_living_are_told_from_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()
    monkeypatch.setattr(process, "_PROC", Path("/nowhere"))
    assert start_ticks(os.getpid()) == 0
    assert start_ticks(other.pid) is None
    assert busy_and_stolen_s() is None


def test_busy_seconds_grow_with_work() -> None:
    before = busy_and_stolen_s()
    sum(range(5_000_000))
    after = busy_and_stolen_s()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    assert after[1] >= before[1] >= 0


@pytest.mark.parametrize(
    ("files", "cores", "stopped_s"),
    [
        ({}, None, 0.0),
        ({"cpu.max": "max 100000", "cpu.stat": "usage_usec 5\nthrottled_usec 0"}, None, 0.0),
        ({"cpu.max": "150000 100000", "cpu.stat": "nr_throttled 3\nthrottled_usec 2500000"}, 1.5, 2.5),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/cpu.stat": "nr_throttled 1\nthrottled_time 1500000000",
            },
            2.0,
            1.5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 0.0),
        ({"cpu.max": "max 100000", "user.slice/mine/cpu.max": "50000 100000"}, 0.5, 0.0),
    ],
)
def test_a_containers_limit_and_what_it_cost_are_read_from_its_group(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    files: dict[str, str],
    cores: float | None,
    stopped_s: float,
) -> None:
    own = tmp_path / "proc" / "self" / "cgroup"
    for path, text in [(own, "0::/user.slice/mine"), *((tmp_path / "cg" / n, t) for n, t in files.items())]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    monkeypatch.setattr(process, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(process, "_CGROUP", tmp_path / "cg")
    assert process.quota_cores() == cores
    assert process.quota_stopped_s() == stopped_s
