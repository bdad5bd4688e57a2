"""A run while it runs: bars on a terminal, one line per finished step elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress:
    """Tells the events of a pipeline on `console`, and counts the steps made and skipped.

    Attributes:
        num_steps: how many steps there are in all.
        num_made: steps finished since it was entered.
        num_skipped: steps found done.
    """

    def __init__(self, console: Console, *, num_steps: int) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
        )
        self.num_steps, self.num_made, self.num_skipped = num_steps, 0, 0
        self._console = console
        self._bars = Bars(*columns, console=console, transient=True)
        self._task_by_key: dict[str, TaskID] = {}
        self._damaged: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:  # Any: JSON values
        """Tell one event: `skip`, `damaged`, `start`, `progress` (of epochs or of rounds) or `done`."""
        key, name = event["key"], step_name(event)
        match event["event"]:
            case "skip":
                self.num_skipped += 1
            case "damaged" if key not in self._damaged:  # every process that looks sees it
                self._damaged.add(key)
                self._say(f"damaged, made again: {event['reason']}")
            case "start" if key not in self._task_by_key:  # a killed task starts again
                self._task_by_key[key] = self._bars.add_task(name, total=None, note="")
            case "progress" if "epoch" in event:
                note = f"{event['eta_s']:.0f} s left"
                if event["loss"] is not None:  # a GPU tells none in its first epoch
                    note = f"loss {event['loss']:.3f}, accuracy {100 * event['accuracy']:.1f} %, {note}"
                self._move(key, event["epoch"], event["epochs"], note)
            case "progress" if "round" in event:
                note = f"round {event['round']} of {event['rounds']}"
                self._move(key, event["round"], event["rounds"], note)
            case "done":
                self.num_made += 1
                if key in self._task_by_key:
                    self._bars.remove_task(self._task_by_key.pop(key))
                place = f"{self.num_made + self.num_skipped:>{len(str(self.num_steps))}}/{self.num_steps}"
                self._say(f"{place} {name}" + (f", {event['seconds']:.1f} s" if "seconds" in event else ""))

    def _move(self, key: str, completed: float, total: int, note: str) -> None:
        if key in self._task_by_key:
            self._bars.update(self._task_by_key[key], completed=completed, total=total, note=note)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def step_name(event: Mapping[str, Any]) -> str:  # Any: JSON values
    """Return what a step is called: stage, subject, replicate, and runtime and batch where it has them."""
    words = [event["stage"]]
    words += (
        [event["subject"]] if event["replicate"] is None else [event["subject"], f"#{event['replicate']}"]
    )
    words += [str(event["runtime"])] if "runtime" in event else []
    words += [f"batch {event['batch']}"] if "batch" in event else []
    return " ".join(words)
