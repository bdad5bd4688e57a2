"""What the stages cost on this machine: shrinking, training, writing a report, exporting one network.

Run:  python benchmarks/stage_costs.py --out FOLDER [--only PART ...] [--rounds N]

Every case is called once more than it is timed: the first call, which pays for imports and first use, is told
apart. What other processes took of the machine meanwhile stands under each table; seconds on a shared machine
are an upper bound. The folder receives `stage_costs_<machine>_<yyyy-mm>.md` and `.json`, which holds every
sample.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costs.export import export_costs
from costs.line import Line
from costs.report import report_costs
from costs.shrink import shrink_costs
from costs.train import parallel_train_costs, train_costs
from result_files import write_results
from tabulate import tabulate

from ticket_export.measure.load import LoadMeter
from ticket_export.store.machine import machine_facts

PARTS: Mapping[str, Callable[[int], list[Line]]] = {
    "shrink": shrink_costs,
    "train": train_costs,
    "parallel_train": parallel_train_costs,
    "report": report_costs,
    "export": export_costs,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table, how it was made, and the cores that other processes kept busy meanwhile."""

    name: str
    lines: Sequence[Line]
    other_cores: float | None
    seconds: float

    @property
    def markdown(self) -> str:
        """The table under its heading."""
        what = inspect.cleandoc(PARTS[self.name].__doc__ or "")
        table = tabulate(
            [line.shown for line in self.lines], headers="keys", tablefmt="github", disable_numparse=True
        )
        load = (
            "unknown"
            if self.other_cores is None
            else f"{self.other_cores:.2f} of {machine_facts()['num_cores']}"
        )
        return f"## {self.name}\n\n{what}\n\n{table}\n\nCores busy with other work meanwhile: {load}."

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Return every sample."""
        raw = [dict(line.raw) for line in self.lines]
        return {"lines": raw, "other_cores": self.other_cores, "seconds": self.seconds}


def made(name: str, num_rounds: int) -> Part:
    meter, start_s = LoadMeter(), time.perf_counter()
    lines = PARTS[name](num_rounds)
    return Part(
        name=name, lines=lines, other_cores=meter.stop().other_cores, seconds=time.perf_counter() - start_s
    )


def written(parts: Sequence[Part], num_rounds: int, out: Path, machine: str, command: str) -> str:
    """Write both files and return the markdown."""
    facts = machine_facts()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    head = (
        f"# What the stages cost\n\n`{command}`, on {facts['num_usable_cores']} cores, {facts['cpu']} "
        f"({facts['os']}, Python {facts['python']}, {packages}). One thread unless "
        f"told; median and range of n = {num_rounds} calls after the first."
    )
    markdown = "\n\n".join((head, *(part.markdown for part in parts))) + "\n"
    document = {
        "schema": 1,
        "command": command,
        "num_rounds": num_rounds,
        "machine": facts,
        "parts": {part.name: part.to_json() for part in parts},
    }
    write_results(out, "stage_costs", machine, markdown, document)
    return markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each case")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}, it must be at least 1")
    command = (
        f"python benchmarks/stage_costs.py --only {' '.join(arguments.only)} --rounds {arguments.rounds}"
    )
    parts = [made(name, arguments.rounds) for name in arguments.only]
    print(written(parts, arguments.rounds, arguments.out, arguments.machine, command))


if __name__ == "__main__":
    main()
