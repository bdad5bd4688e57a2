"""One run in the processes that torchrun started: the first makes everything, the others share its trainings.

    first    claim -> "train this, here" -> ready? -> train -> equal? -> publish -> ...          -> "end"
    others   wait .................... -> "ready"  -> train -> sums  -> wait ................... -> end

The first to fail says so, and all end: the others in the middle of whatever they do, with exit code 0, so
that torchrun leaves the first one the time to tell what happened. Whoever trains outside of these blocks
trains alone, though torchrun's variables are there.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ticket_export.errors import TrainError, WorkerDiedError
from ticket_export.pipeline.mail import Mail, watching
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.torchrun import (
    KeyStore,
    Place,
    abort_group,
    alone,
    close_group,
    device_at,
    meeting_place,
    process_group,
)
from ticket_export.pipeline.work import Event, step_of
from ticket_export.pipeline.worker import Settings, error_from_event, nodes_as_told
from ticket_export.store.key import sha256_of_file
from ticket_export.store.store import Claim, Store

if TYPE_CHECKING:
    from ticket_export.pipeline.context import Context

_LEAVING_S = 5.0  # until all have heard the end


class Lead:
    """The first process's hold on the others."""

    def __init__(self, mail: Mail, place: Place, store: KeyStore) -> None:
        self._mail = mail
        self._place = place
        self._store = store
        self._num_trainings = 0

    def share(self, settings: Settings) -> None:
        """Tell the others what the run makes."""
        self._mail.write("settings", asdict(settings))

    @contextmanager
    def sharing(self, node: Node, claim: Claim, context: Context) -> Iterator[None]:
        """Let the others train the same node inside; whatever is no training is made here alone.

        Raises:
            TrainError: they ended with other weights.
        """
        if node.stage != "train":
            yield
            return
        name = f"training-{self._num_trainings}"
        self._num_trainings += 1
        self._mail.write(name, {"key": node.key, "scratch": str(claim.scratch.absolute())})
        for rank in self._others:  # before the group forms: who fails now would be waited for
            self._mail.read(f"{name}-ready-{rank}")
        with (
            process_group(self._place, self._store, context.device, context.threads),
            watching(self._mail, abort_group),
        ):
            yield
            sums = _sums(claim.folder)
            for rank in self._others:
                theirs = self._mail.read(f"{name}-sums-{rank}")
                if theirs != sums:
                    raise _unequal(node, rank, sums, theirs)

    def end(self) -> None:
        """Let the others end, and wait until they have heard it."""
        self._mail.write(f"training-{self._num_trainings}", None)
        self.wait_for_others()

    def wait_for_others(self) -> None:
        """Wait a moment until all have left: where this process holds the messages, they end with it."""
        deadline_s = time.monotonic() + _LEAVING_S
        while time.monotonic() < deadline_s:
            if all(self._mail.has(f"left-{rank}") for rank in self._others):
                return
            time.sleep(0.01)

    @property
    def _others(self) -> range:
        return range(1, self._place.num_processes)


@contextmanager
def leading(place: Place) -> Iterator[Lead | None]:
    """Hold the others until the block ends, then let them end; None where this process is alone.

    Raises:
        TicketExportError: whatever another process told when it failed.
        WorkerDiedError: the others did not come, or were lost.
    """
    if place.num_processes == 1:
        with alone():
            yield None
        return
    store = meeting_place()
    mail = Mail(store, place)
    lead = Lead(mail, place, store)
    with alone():
        try:
            yield lead
        except BaseException as error:
            told = mail.fail(error)
            lead.wait_for_others()
            if told["rank"] == place.rank:
                raise
            raise error_from_event(told) from None
        lead.end()
        close_group()


def follow(place: Place) -> None:
    """Share the first process's trainings until it ends the run; where one fails, this process ends at once.

    Raises:
        WorkerDiedError: the first process did not come, or was lost.
    """
    # Ctrl-C reaches the first process, which ends the others
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = meeting_place()
    mail = Mail(store, place)
    with alone():
        try:
            share_trainings(mail, place, store)
        except BaseException as error:
            mail.fail(error)  # unless another has: then it is heard, and nobody waits for this one
            mail.write(f"left-{place.rank}", None)
            abort_group()
            sys.exit(0)
        mail.write(f"left-{place.rank}", None)
        close_group()
    signal.signal(signal.SIGINT, before)


def share_trainings(mail: Mail, place: Place, store: KeyStore) -> None:
    """Train what the first process trains, with results that are compared and thrown away, until the end."""
    from ticket_export.pipeline.context import Context

    settings = Settings(**mail.read("settings"))
    recipe, nodes = nodes_as_told(settings)
    node_by_key = {node.key: node for node in nodes}
    device = device_at(place, settings.device.partition(":")[0])
    with Context(recipe, Store(settings.out), device=device, threads=settings.threads) as context:
        for number in count():
            name = f"training-{number}"
            told = mail.read(name)
            if told is None:
                return
            device_here = context.device  # a device that is missing is told before anyone waits for it
            mail.write(f"{name}-ready-{place.rank}", None)
            with (
                tempfile.TemporaryDirectory() as folder,
                process_group(place, store, device_here, context.threads),
                watching(mail, lambda: _leave(mail, place)),
            ):
                node = node_by_key[told["key"]]
                step_of(node)(context, node, Path(folder), Path(told["scratch"]), _say_nothing)
                mail.write(f"{name}-sums-{place.rank}", _sums(Path(folder)))


def _say_nothing(event: Event) -> None:
    """Leave the telling to the first process."""


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _unequal(node: Node, rank: int, sums: Mapping[str, str], theirs: Mapping[str, str]) -> TrainError:
    names = sorted(name for name in {*sums, *theirs} if sums.get(name) != theirs.get(name))
    return TrainError(
        f"{node}: processes 0 and {rank} trained together and ended with different {', '.join(names)}",
        hint="run it in one process, without torchrun, or on devices of one kind",
    )


def _leave(mail: Mail, place: Place) -> NoReturn:
    """End this process in the middle of whatever it does; it holds no lock, and publishes nothing."""
    try:
        mail.write(f"left-{place.rank}", None)
    except WorkerDiedError:  # nobody is left to hear it
        os._exit(WorkerDiedError.exit_code)
    os._exit(0)
