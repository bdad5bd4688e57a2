"""Locks: one owner, dead owners replaced at once, living ones never."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ticket_export.store import lock as locks
from ticket_export.store.lock import Owner, acquire, host_name, release_all

HOLD = """
import sys, time
from pathlib import Path
from ticket_export.store.lock import acquire
lock = acquire(Path(sys.argv[1]))
print("held" if lock else "refused", flush=True)
time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from ticket_export.store.lock import acquire
sys.stdin.readline()
print("held" if acquire(Path(sys.argv[1])) else "refused", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "abc.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_owner(path: Path, owner: Owner, *, age_s: float) -> None:
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_lock_has_one_owner_until_it_is_released(path: Path) -> None:
    first = acquire(path)
    assert first is not None
    assert acquire(path) is None
    first.release()
    assert not path.exists()
    second = acquire(path)
    assert second is not None
    first.release()  # a second release must not remove the next owner's lock
    assert second.is_held()
    second.release()


def test_a_living_process_keeps_its_lock(path: Path, holder: subprocess.Popen[str]) -> None:
    assert acquire(path) is None
    assert json.loads(path.read_text())["pid"] == holder.pid


def test_a_killed_process_loses_its_lock_at_once_even_before_it_is_reaped(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead and still a zombie
    lock = acquire(path)
    assert lock is not None
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_later_process_with_the_same_number_is_not_the_owner(path: Path) -> None:
    earlier = Owner(pid=os.getpid(), start_ticks=1, host=host_name(), token="t")
    write_owner(path, earlier, age_s=0)
    lock = acquire(path)
    assert lock is not None
    lock.release()


@pytest.mark.parametrize(("age_s", "taken"), [(50.0, False), (70.0, True)])
def test_another_hosts_lock_is_taken_over_when_its_heartbeat_is_a_minute_old(
    path: Path, age_s: float, taken: bool
) -> None:
    write_owner(path, Owner(pid=1, start_ticks=1, host="elsewhere/pid:[1]", token="t"), age_s=age_s)
    lock = acquire(path)
    assert (lock is not None) == taken
    if lock is not None:
        lock.release()


@pytest.mark.parametrize(("age_s", "taken"), [(0.0, False), (3.0, True)])
def test_a_lock_that_was_never_finished_is_taken_over_after_a_moment(
    path: Path, age_s: float, taken: bool
) -> None:
    path.write_text('{"pid": 1')
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    lock = acquire(path)
    assert (lock is not None) == taken
    if lock is not None:
        lock.release()


def test_of_many_processes_one_takes_a_dead_ones_lock_over(path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    write_owner(path, Owner(pid=dead.pid, start_ticks=1, host=host_name(), token="t"), age_s=0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes if process.stdout is not None]
    for process in processes:
        process.communicate("end\n")
    assert sorted(said) == ["held\n"] + ["refused\n"] * 5


def test_the_heartbeat_moves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    lock = acquire(path)
    assert lock is not None
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 5
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    lock.release()


def test_a_lock_that_was_taken_over_is_neither_held_nor_removed(path: Path) -> None:
    lock = acquire(path)
    assert lock is not None
    other = replace(Owner(**json.loads(path.read_text())), token="other")
    write_owner(path, other, age_s=0)
    assert not lock.is_held()
    lock.release()
    assert path.exists()


def test_all_locks_of_a_process_can_be_released(tmp_path: Path) -> None:
    paths = [tmp_path / "a.lock", tmp_path / "b.lock"]
    assert all(acquire(path) for path in paths)
    release_all()
    assert not any(path.exists() for path in paths)


def test_a_folder_that_is_missing_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        acquire(tmp_path / "nowhere" / "a.lock")


def test_a_release_that_is_interrupted_can_be_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = acquire(path)
    assert lock is not None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lock.release()
    assert path.exists()
    release_all()
    assert not path.exists()
