"""Whether the exact shrink is exact: many networks, each under several laws of zeros, cell after cell.

Run:  python benchmarks/shrink_coverage.py --out FOLDER [--only NETWORK ...] [--laws LAW ...]

Every cell is shrunk and compared with the dense network on inputs that the shrink has not seen, at batch 1
and 3 and at a second resolution. A cell is written to FOLDER/cells.jsonl as soon as it is done; run again,
and the rest follows. `--retry` runs those again that are not exact, `--stale` those of another commit,
`--force` all. A cell that takes longer than `--limit` seconds or kills its process is a cell of the table
too. `--results` writes `shrink_coverage_<machine>_<yyyy-mm>.md` and `.json` there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from result_files import write_results
from shrink_cells.networks import LAWS, NETWORKS, Cell, cells
from shrink_cells.table import Lines, by_network, every_cell, problems, summary
from shrink_cells.trial import BARS, serve

import ticket_export
from ticket_export.store.machine import machine_facts


class Worker:
    """One process that answers cells; another takes its place when it hangs or dies."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def facts_of(self, cell: Cell) -> dict[str, Any]:  # Any: JSON
        """Return the cell's facts, or that it took too long or ended its process."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        assert self.connection is not None
        self.connection.send(cell)
        try:
            if self.connection.poll(self.limit_s):
                facts: dict[str, Any] = self.connection.recv()
                return facts
        except (EOFError, ConnectionResetError):  # the latter when it never read the cell
            self.process.join()
            status = f"its process ended with {self.process.exitcode}"
            self.process = None
            return {"status": "crash", "error": status}
        self.process.kill()
        self.process.join()
        self.process = None
        return {"status": "timeout", "error": f"longer than {self.limit_s:g} s"}

    def close(self) -> None:
        """End the process."""
        if self.process is not None and self.connection is not None:
            self.connection.send(None)
            self.process.join()


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the newest line of every cell; a line cut short by an interruption counts as not written."""
    lines: dict[str, dict[str, Any]] = {}
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            lines[line["key"]] = line
    return lines


def commit() -> str:
    """Return the commit of the package that is tested, with `+` where its files differ from it."""
    root = Path(ticket_export.__file__).parents[1]

    def git(*words: str) -> str:
        told = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return told.stdout.strip()

    changed = git("status", "--porcelain", "--", "ticket_export", "tests/shrink/pruning_laws.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def run(todo: Sequence[Cell], file: Path, limit_s: float, version: str) -> None:
    """Do the cells in turn and write each down."""
    worker = Worker(limit_s)
    for position, cell in enumerate(todo, start=1):
        start_s = time.perf_counter()
        line = {"key": cell.key, **asdict(cell), **worker.facts_of(cell)}
        line |= {"cell_seconds": time.perf_counter() - start_s, "commit": version}
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        error = f"{line['rel_error']:.1e}" if "rel_error" in line else line.get("error", "")
        print(
            f"[{position}/{len(todo)}] {cell.key}: {line['status']} {error} ({line['cell_seconds']:.0f} s)",
            flush=True,
        )
    worker.close()


def markdown(lines: Lines, command: str) -> str:
    """Return the page."""
    table = list(cells())
    facts = machine_facts()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm"))
    counts = Counter(lines[cell.key]["commit"] for cell in table if cell.key in lines)
    commits = [f"{version} ({count} cells)" for version, count in counts.most_common()]
    head = (
        "# Coverage of the exact shrink\n\n"
        f"`{command}`; {facts['cpu']}, one thread; {versions}; ticket_export at {', '.join(commits)}.\n\n"
        "A cell is exact when max|a-b| / max|b| over all outputs is at most "
        f"{BARS['float32']:g} in float32 and {BARS['float64']:g} in float64, on inputs the shrink has not "
        "seen. Biases kept: betas, running means and variances as of a trained network, no layer scale or "
        "head at its trivial start; zero: every bias, beta and running mean is zero. Seconds are of one "
        "`shrink` with its own verification, beside other work on the machine: upper bounds. fp32 noise: the "
        "relative error of the dense network itself against its own float64, a floor of what can be shown; "
        "scale: the largest output; varies: how far an output moves from one image to another, as a share of "
        "its size. maxvit_t has windows of 2 instead of 7, which would need 224 pixels."
    )
    return "\n\n".join(
        (
            head,
            summary(table, lines),
            f"## Not exact\n\n{problems(table, lines)}",
            f"## Networks\n\n{by_network(table, lines)}",
            f"## Cells\n\n{every_cell(table, lines)}",
        )
    )


def written(lines: Lines, folder: Path, machine: str, command: str) -> Path:
    """Write the page and the cells behind it."""
    known = [cell.key for cell in cells()]
    document = {
        "schema": 1,
        "command": command,
        "machine": machine_facts(),
        "cells": [lines[key] for key in known if key in lines],
    }
    return write_results(folder, "shrink_coverage", machine, markdown(lines, command) + "\n", document)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of cells.jsonl")
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="parts of names, e.g. resnet50 timm:")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=LAWS)
    parser.add_argument("--retry", action="store_true", help="run cells again that are not exact")
    parser.add_argument("--stale", action="store_true", help="run cells again that tested another commit")
    parser.add_argument("--force", action="store_true", help="run all chosen cells again")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one cell")
    parser.add_argument("--results", type=Path, help="folder for the page and the numbers")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    arguments = parser.parse_args()
    wanted = arguments.only or [""]
    networks = {key for key in NETWORKS if any(part in key for part in wanted)}
    if not networks:
        parser.error(f"no network is named like {' or '.join(wanted)}")
    file = arguments.out / "cells.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, version = read(file), commit()

    def is_due(cell: Cell) -> bool:
        line = lines.get(cell.key)
        if cell.network not in networks or cell.law not in arguments.laws:
            return False
        if line is None or arguments.force:
            return True
        again = arguments.retry and line["status"] != "exact"
        return again or (arguments.stale and line["commit"] != version)

    run([cell for cell in cells() if is_due(cell)], file, arguments.limit, version)
    if arguments.results is not None:
        command = (
            "python benchmarks/shrink_coverage.py --out FOLDER --results FOLDER "
            f"--limit {arguments.limit:g} --machine {arguments.machine}"
        )
        print(written(read(file), arguments.results, arguments.machine, command))


if __name__ == "__main__":
    main()
