"""Steps of a benchmark that are processes of their own, each with a time limit, its output in a log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

TAIL_LINES = 15
LEAST_S = 10.0  # a step that may take longer is not begun with less


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process.

    Attributes:
        name: short, in the order of value.
        words: the command after the interpreter.
        limit_s: it is ended after this long.
        needs: packages without which it is skipped.
        environment: what is added to that of this process.
        beside: whether the next step may start while it runs (it takes no timings).
        stopped_code: the exit code by which it says that it was interrupted; None where it has none.
        grace_s: how long it may take to end after an interrupt.
    """

    name: str
    words: tuple[str, ...]
    limit_s: float
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: bool = False
    stopped_code: int | None = None
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a step ended: "done", "failed", "out of time", or "skipped"; why, and the end of what it said."""

    name: str
    state: str
    seconds: float
    why: str
    tail: str


Started = tuple[Step, "subprocess.Popen[bytes]", Path, float, float]


def start(step: Step, seconds_left: float, log: Path) -> Outcome | Started:
    """Start the process of a step, or return why it is skipped."""
    missing = [name for name in step.needs if find_spec(name) is None]
    if missing:
        return _skipped(step, f"{', '.join(missing)} is not installed")
    if seconds_left < min(LEAST_S, step.limit_s):
        return _skipped(step, "no time was left; the same command goes on here")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *step.words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **step.environment},
            start_new_session=True,  # so that its own workers end with it
        )
    return step, process, log, time.monotonic(), min(step.limit_s, seconds_left)


def finish(
    step: Step, process: subprocess.Popen[bytes], log: Path, start_s: float, limit_s: float
) -> Outcome:
    """Wait for a started step; one that takes too long is ended with all of its processes."""
    state, why = "done", ""
    try:
        process.wait(timeout=max(0.1, limit_s - (time.monotonic() - start_s)))
        if process.returncode == step.stopped_code:
            state, why = "out of time", "interrupted; what it wrote stays"
        elif process.returncode != 0:
            state, why = "failed", f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        state, why = "out of time", f"ended after {limit_s:.0f} s; what it wrote stays"
        end_group(process, step.grace_s)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Outcome(
        name=step.name,
        state=state,
        seconds=time.monotonic() - start_s,
        why=why,
        tail="\n".join(lines[-TAIL_LINES:]),
    )


def end_group(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """Interrupt a process with all of its own, and kill them where that takes longer than `grace_s`."""
    if process.poll() is not None:
        return
    for sign, wait_s in ((signal.SIGINT, grace_s), (signal.SIGKILL, 5.0)):  # SIGINT: it writes its page first
        os.killpg(process.pid, sign)
        try:
            process.wait(timeout=wait_s)
            return
        except subprocess.TimeoutExpired:
            continue


def _skipped(step: Step, why: str) -> Outcome:
    return Outcome(name=step.name, state="skipped", seconds=0.0, why=why, tail="")
