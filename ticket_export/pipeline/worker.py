"""Worker processes: one line of settings in, lines of events out, gone at once when the parent is.

A worker that finds its standard input closed has lost its parent: it gives its locks back and ends, in the
middle of whatever it does. Nothing is lost: results are published whole, and trainings leave checkpoints.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import ticket_export
from ticket_export import errors
from ticket_export.errors import TicketExportError, WorkerDiedError
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.nodes import InputHashes, Node, longest_chain_first, nodes_until
from ticket_export.pipeline.work import Emit, Event, work
from ticket_export.recipe.schema import Recipe
from ticket_export.stages import StageWord
from ticket_export.store.lock import release_all
from ticket_export.store.store import Store

if TYPE_CHECKING:
    from ticket_export.pipeline.together import Lead

# The folder of the package comes last, so that it shadows nothing where the package is installed.
_CODE = (
    f"import sys; sys.path.append({str(Path(ticket_export.__file__).parents[1])!r}); "
    "from ticket_export.pipeline import worker_main; worker_main()"
)
_STOP_S = 5.0  # a worker ends within milliseconds of losing its input; only a stopped process takes longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a worker is told.

    Attributes:
        recipe: as JSON values.
        out: the output folder.
        device: where to train.
        threads: of torch.
        until: the last stage wanted.
        machine: the fingerprint of the parent's, where timings are made.
        inputs: the hashes of the recipe's files, computed once by the parent.
        keys: of every result up to `until`, as the parent sees them.
        wave: what waits for this many timings, one behind another, is made now.
    """

    recipe: dict[str, Any]  # Any: JSON values
    out: str
    device: str
    threads: int
    until: StageWord
    machine: str
    inputs: dict[str, str | None]
    keys: list[str]
    wave: int = 0


def worker_main() -> None:
    """Be a worker: read the settings from standard input, make results, write events to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes our input
    events = _take_standard_output()
    settings = Settings(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()

    def emit(event: Any) -> None:  # Any: JSON values
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        work_as_told(settings, emit)
    except TicketExportError as error:
        emit(event_from_error(error))
        sys.exit(error.exit_code)
    except Exception as error:  # a mistake of ours: the parent shows where it happened
        emit(event_from_error(error))
        sys.exit(1)


def work_as_told(settings: Settings, emit: Emit, lead: Lead | None = None) -> None:
    """Make every result of a wave that can be made beside others; timings are left to the parent."""
    from ticket_export.pipeline.context import Context

    recipe, nodes = nodes_as_told(settings)
    wanted = [node for node in nodes if not node.is_timed and node.wave == settings.wave]
    store = Store(settings.out)
    with Context(recipe, store, device=settings.device, threads=settings.threads) as context:
        work(longest_chain_first(wanted), store, context, emit, lead)


def nodes_as_told(settings: Settings) -> tuple[Recipe, tuple[Node, ...]]:
    """Return the recipe and every result up to `until`, which are the ones of whoever wrote the settings.

    Raises:
        WorkerDiedError: this process names its results otherwise.
    """
    recipe = Recipe.model_validate_json(json.dumps(settings.recipe), strict=True)
    every = nodes_of(recipe, InputHashes(**settings.inputs), settings.machine)
    nodes = nodes_until(every, settings.until)
    if [node.key for node in nodes] != settings.keys:  # else each waits for the other for ever
        raise WorkerDiedError(
            "a worker process names its results otherwise than the process that started it: "
            "the package has changed since the run began, or is another on that machine",
            hint="run the same command again, with one version on all machines; what was done is kept",
        )
    return recipe, nodes


def work_in_processes(settings: Settings, workers: int, emit: Emit) -> None:
    """Start `workers` processes, pass their events on, and return when all are done.

    Raises:
        TicketExportError: what a worker told, or that one died; the others are stopped first.
    """
    events: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()  # Any: JSON values
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for index in range(workers):
            processes.append(_start(settings))
            reader = threading.Thread(target=_read_events, args=(index, processes[index], events))
            readers.append(reader)
            reader.start()
        running = workers
        while running:
            index, event = events.get()
            if event is None:
                running -= 1
                _require_success(processes[index])
            elif event["event"] == "error":
                raise error_from_event(event)
            else:
                emit(event)
    finally:
        _stop(processes)
        for reader in readers:
            reader.join()


def _start(settings: Settings) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(settings.threads)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(settings)) + "\n")
    process.stdin.flush()
    return process


def _read_events(
    index: int,
    process: subprocess.Popen[str],
    events: queue.SimpleQueue[tuple[int, dict[str, Any] | None]],  # Any: JSON values
) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.endswith("\n"):  # a killed worker may leave half a line
                events.put((index, json.loads(line)))
    events.put((index, None))


def _require_success(process: subprocess.Popen[str]) -> None:
    code = process.wait()
    if code < 0:
        name = signal.Signals(-code).name
        raise WorkerDiedError(
            f"a worker process was killed by {name}",
            hint="run the same command again; if memory ran out, use fewer processes (--workers 1)",
        )
    if code > 0:
        raise WorkerDiedError(
            f"a worker process ended with exit code {code} and said nothing more",
            hint="run the same command again; what was done is kept",
        )


def event_from_error(error: BaseException) -> dict[str, Any]:  # Any: JSON values
    """Return an error as JSON values, for another process to raise; a mistake of ours with its trace."""
    if isinstance(error, TicketExportError):
        kind = type(error).__name__
        return {"event": "error", "kind": kind, "message": error.message, "hint": error.hint}
    trace = "".join(traceback.format_exception(error))
    return {"event": "error", "kind": None, "message": repr(error), "trace": trace}


def error_from_event(event: Event) -> Exception:
    """Return the error that another process told."""
    if event["kind"] is None:
        return RuntimeError(f"a worker process failed: {event['message']}\n{event['trace']}")
    kind: type[TicketExportError] = getattr(errors, event["kind"])
    return kind(event["message"], hint=event["hint"])


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        try:
            process.stdin.close()
        except BrokenPipeError:  # it is gone already
            continue
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    release_all()
    os._exit(0)


def _take_standard_output() -> IO[str]:
    """Return a file for events and send everything else printed to standard error: exporters print."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events
