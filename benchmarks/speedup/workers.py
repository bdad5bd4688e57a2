"""Cells run in processes of their own: a crash, a lost device or a full memory costs one cell alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speedup.cells import Cell, read_cell, write_failure

from ticket_export.errors import MissingDependency

START_AFRESH = 75  # a worker ends with it after a failure: the next cell gets a device without its remains
INTERRUPTED = 130
CURRENT = "current.txt"  # the key of the cell that the worker is at
POLL_S = 0.5


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    is_done: Callable[[Mapping[str, Any] | None], bool],  # Any: JSON
    measure: Callable[[Cell], Mapping[str, Any]],  # Any: JSON
    since_s: float,
) -> int:
    """Measure every cell that is not done, and return the exit code of a worker.

    A cell that fails is written as failed; one that failed after `since_s` is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place, cell in enumerate(cells):
        held = read_cell(folder, cell)
        if is_done(held) or _failed_since(held, since_s):
            continue
        (folder / CURRENT).write_text(cell.key, encoding="utf-8")
        start_s = time.monotonic()
        try:
            measure(cell)
        except Exception as error:  # foreign libraries raise their own; each is told in the cell's place
            write_failure(folder, cell, error)
            _tell(f"[{place + 1}/{len(cells)}] {cell.key}: failed: {error}")
            if isinstance(error, MissingDependency):  # nothing was opened that could linger
                continue
            return START_AFRESH
        except KeyboardInterrupt:
            return INTERRUPTED
        _tell(f"[{place + 1}/{len(cells)}] {cell.key}: {time.monotonic() - start_s:.0f} s")
    (folder / CURRENT).unlink(missing_ok=True)
    return 0


def watch(
    command: Sequence[str],
    cells: Sequence[Cell],
    folder: Path,
    *,
    cell_limit_s: float,
    after: Callable[[], None],
) -> None:
    """Run workers until every cell is done or failed; `after` is called as cells come in.

    Args:
        command: starts one worker.
        cells: all cells, in the worker's order.
        folder: where cells are written.
        cell_limit_s: a worker that is longer at one cell is ended, and the cell has failed.
        after: writes the page.

    Raises:
        KeyboardInterrupt: the worker is ended first; finished cells stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_key = {cell.key: cell for cell in cells}
    for _ in range(len(cells) + 1):  # every worker but the last fails at one cell
        (folder / CURRENT).unlink(missing_ok=True)
        worker = subprocess.Popen(command)
        try:
            ended = _until_the_end(worker, folder, cell_limit_s, after)
        except KeyboardInterrupt:
            _end(worker)
            raise
        after()
        if worker.returncode == 0:
            return
        if worker.returncode != START_AFRESH or ended is not None:
            key = _current(folder)
            if key not in by_key:
                raise RuntimeError(f"the worker ended with {worker.returncode} before its first cell")
            write_failure(folder, by_key[key], ended or _death(worker.returncode))
            after()


def _until_the_end(
    worker: subprocess.Popen[bytes], folder: Path, cell_limit_s: float, after: Callable[[], None]
) -> str | None:
    """Wait for the worker and return why it had to be ended, or None."""
    key, since_s = None, time.monotonic()
    while worker.poll() is None:
        time.sleep(POLL_S)
        now = _current(folder)
        if now != key:
            if key is not None:
                after()
            key, since_s = now, time.monotonic()
        if key is not None and time.monotonic() - since_s > cell_limit_s:
            _end(worker)
            return f"took longer than {cell_limit_s:g} s and was ended"
    return None


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(timeout=10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _current(folder: Path) -> str | None:
    try:
        return (folder / CURRENT).read_text(encoding="utf-8")
    except OSError:
        return None


def _failed_since(held: Mapping[str, Any] | None, since_s: float) -> bool:  # Any: JSON
    return held is not None and held["state"] == "failed" and held["at"] >= since_s


def _death(returncode: int) -> str:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        memory = " (a system out of memory sends it)" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{memory}"
    return f"the process ended with exit code {returncode}"


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
