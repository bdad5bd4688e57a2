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
