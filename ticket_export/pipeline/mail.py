"""Messages between the processes of one run, which torchrun started."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ticket_export.errors import WorkerDiedError
from ticket_export.pipeline.torchrun import KeyStore, Place
from ticket_export.pipeline.work import Event
from ticket_export.pipeline.worker import event_from_error

_FAILURE = "failure"
_WATCH_S = 0.5


class Mail:
    """Messages between the processes, each written once under its own name.

    Read by polling, not by collectives: those have timeouts, and the first process may measure for hours.
    """

    def __init__(self, store: KeyStore, place: Place) -> None:
        self._store = store
        self._place = place

    def write(self, name: str, message: object) -> None:
        """Write a message, JSON values, for any number of readers."""
        with _reached():
            self._store.set(name, json.dumps(message))

    def read(self, name: str) -> Any:  # Any: JSON values
        """Return a message, once it is there.

        Raises:
            Failed: a process has failed instead.
            WorkerDiedError: the processes have lost each other.
        """
        begun_s = time.monotonic()
        while not self.has(name):
            if self.has(_FAILURE):
                raise Failed
            # Short waits end at once; who waits for a measurement disturbs it once a second
            time.sleep(min(1.0, 0.01 + 0.05 * (time.monotonic() - begun_s)))
        with _reached():
            return json.loads(self._store.get(name))

    def has(self, name: str) -> bool:
        """Return whether a message is there."""
        with _reached():
            return self._store.check([name])

    def fail(self, error: BaseException) -> Event:
        """Tell all that this process has failed, and return what the first to fail told."""
        mine = json.dumps({**event_from_error(error), "rank": self._place.rank})
        with _reached():
            told: Event = json.loads(self._store.compare_set(_FAILURE, "", mine))
        return told


class Failed(Exception):  # noqa: N818 - no error of its own: `Mail.fail` returns the one that was told
    """Another process has failed, which ends this one too."""


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are
        raise WorkerDiedError(
            f"the processes that train together have lost each other: {error}",
            hint="run the same command again; what was done is kept",
        ) from error


@contextmanager
def watching(mail: Mail, act: Callable[[], None]) -> Iterator[None]:
    """Call `act`, in a thread, when a process fails while this one is inside."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_WATCH_S):
            try:
                failed = mail.has(_FAILURE)
            except WorkerDiedError:
                failed = True
            if failed:
                act()
                return

    thread = threading.Thread(target=watch, name="watch of the others", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
