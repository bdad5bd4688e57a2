"""Locks that outlive nobody: files that name their owner, taken over when the owner is dead.

A lock is created with O_EXCL and holds the owner's process, host and a token. On the same host a dead owner
is seen at once; another host's owner is taken for dead when its heartbeat, the file's modification time, is
60 s old. Works on a folder shared by several machines as long as their clocks agree to within seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ticket_export.store.process import start_ticks

HEARTBEAT_S = 10.0
ABANDONED_AFTER_S = 60.0  # of another host's heartbeat
# Creating a lock and writing its owner lie microseconds apart; one still empty after this was never finished.
_UNFINISHED_AFTER_S = 2.0
_TAKEOVER_FILE = ".takeover"

_held: set[Lock] = set()


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a lock; `start_ticks` tells it from a later process of the same number."""

    pid: int
    start_ticks: int
    host: str
    token: str


class Lock:
    """A held lock file, its heartbeat kept by a thread until `release`."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self._owner = owner
        self._released = threading.Event()
        _held.add(self)  # before the thread: an interruption while it starts leaves the lock to release_all
        self._heart = threading.Thread(target=self._beat, name=f"heartbeat {path.name}", daemon=True)
        self._heart.start()

    def is_held(self) -> bool:
        """Return whether the file still names this owner: another host may have taken a silent lock over."""
        return _owner_in(self.path) == self._owner

    def release(self) -> None:
        """Remove the file if it is still ours; a second release does nothing."""
        if self._released.is_set():
            return
        if self.is_held():  # the file first: an interruption here leaves the lock to release_all
            self.path.unlink(missing_ok=True)
        self._released.set()
        _held.discard(self)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                if self.is_held():
                    os.utime(self.path)
            except OSError:  # gone or out of reach: whoever publishes asks is_held first
                continue


def acquire(path: Path) -> Lock | None:
    """Return the lock at `path`, or None while a living owner holds it.

    Raises:
        OSError: the folder cannot be written.
    """
    owner = _this_process()
    text = json.dumps(asdict(owner))
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return Lock(path, owner) if _take_over(path, text) else None
    try:
        os.write(file, text.encode())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    return Lock(path, owner)


def release_all() -> None:
    """Release every lock of this process, before it ends without unwinding."""
    for lock in tuple(_held):
        lock.release()


def _take_over(path: Path, text: str) -> bool:
    """Replace an abandoned lock, one process at a time: two could each remove the other's new lock."""
    if not _is_abandoned(path):
        return False
    with _exclusively(path.parent / _TAKEOVER_FILE):
        if not _is_abandoned(path):  # another process was quicker
            return False
        fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
        return True


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    """Hold the system's own lock on a file, which ends with the process however it ends."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_abandoned(path: Path) -> bool:
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:  # released this moment
        return False
    owner = _owner_in(path)
    if owner is None:
        return age_s > _UNFINISHED_AFTER_S
    if owner.host == host_name():
        return not _is_alive(owner)
    return age_s > ABANDONED_AFTER_S


def _owner_in(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # gone, not written to the end, or foreign
        return None


def _is_alive(owner: Owner) -> bool:
    return start_ticks(owner.pid) == owner.start_ticks


def _this_process() -> Owner:
    pid = os.getpid()
    started = start_ticks(pid)
    assert started is not None  # this process lives
    return Owner(pid=pid, start_ticks=started, host=host_name(), token=uuid.uuid4().hex)


def host_name() -> str:
    """Return this host's name with its process namespace: containers may share the one, not the other."""
    namespace = Path("/proc/self/ns/pid")
    inner = namespace.readlink().name if namespace.is_symlink() else ""
    return f"{socket.gethostname()}/{inner}"
