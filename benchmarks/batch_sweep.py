"""Latency and throughput over the batch, in powers of two until throughput no longer grows.

Run:  python benchmarks/batch_sweep.py --out FOLDER [--network resnet50] [--runtime ort-cpu] ...

Every batch is one interleaved run of all subjects (benchmarks/subjects.py). The sweep ends when every subject
gained less than 5 % throughput in two doublings running, when twice the batch would not fit into 80 % of the
memory, or at --max-batch. Finished batches are kept and skipped by the same command. The folder receives
`batch_sweep_<machine>_<yyyy-mm>.md`, `.json` and `.svg`, and in `batch_sweep_<machine>_cells/` every batch
with its raw samples.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from result_files import write_results
from speedup.cells import Cell, Settings, measure_cell, read_cell
from speedup.networks import NETWORKS
from speedup.page import how_measured, reasons_told, table
from speedup.plots import batch_curves
from speedup.saturation import (
    all_saturated,
    available_host_bytes,
    device_bytes,
    memory_reason,
    peak_host_bytes,
    saturated_batch,
)
from speedup.workers import run_cells, watch
from speedup_sweep import is_done, shown_command
from subjects import SUBJECTS, prepare

from ticket_export.runtime.offers import PRECISIONS
from ticket_export.runtime.registry import MODULE_RUNTIMES, RUNTIMES

Document = Mapping[str, Any]  # Any: JSON


def main() -> None:
    arguments = _arguments()
    settings = Settings(
        subjects=tuple(arguments.subjects),
        threads=arguments.threads,
        rounds=arguments.rounds,
        samples=None,
        block_s=arguments.block_s,
        scope=arguments.scope,
        device=arguments.device,
        profile=False,
        engine_batches=(1, arguments.max_batch),
        engine_builds=1,
    )
    cells = [_cell(arguments, 2**power) for power in range(arguments.max_batch.bit_length())]
    folder = arguments.out / f"batch_sweep_{arguments.machine}_cells"
    if arguments.worker is not None:
        sys.exit(_work(cells, folder, arguments, settings))
    prepare(
        arguments.cache, arguments.network, arguments.density, names=arguments.subjects,
        forms=() if arguments.runtime in MODULE_RUNTIMES else (_cell(arguments, 1).form,),
        tell=lambda words: print(words, file=sys.stderr, flush=True),
    )  # fmt: skip
    command = [sys.executable, *sys.argv, "--worker", repr(time.time())]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the worker would live on
    try:
        watch(
            command, cells, folder, cell_limit_s=arguments.cell_limit_s,
            after=lambda: _write(cells, folder, arguments),
        )  # fmt: skip
    except KeyboardInterrupt:
        print(f"interrupted; finished batches are in {folder}", file=sys.stderr)
        sys.exit(130)
    print(_write(cells, folder, arguments))


def _cell(arguments: argparse.Namespace, batch: int) -> Cell:
    return Cell(
        turn=1,
        network=arguments.network,
        density=arguments.density,
        runtime=arguments.runtime,
        precision=arguments.precision,
        batch=batch,
    )


def _work(cells: Sequence[Cell], folder: Path, arguments: argparse.Namespace, settings: Settings) -> int:
    """Measure batch after batch until there is a reason to stop."""
    before_bytes = _used()[0]
    for place, cell in enumerate(cells):
        if stop_reason(_documents(cells[:place], folder)) is not None:
            return 0
        code = run_cells(
            [cell],
            folder,
            is_done=lambda held: is_done(held, settings),
            measure=lambda one: measure_cell(
                folder, arguments.cache, one, settings, extra={"memory": _memory(before_bytes)}
            ),
            since_s=arguments.worker,
        )
        if code:
            return code
    return 0


def _used() -> tuple[int, int]:
    return device_bytes() or (peak_host_bytes(), available_host_bytes())


def _memory(before_bytes: int) -> Any:  # Any: a function that is called when the cell is measured
    def told() -> dict[str, int]:
        used_bytes, total_bytes = _used()
        return {"before_bytes": before_bytes, "used_bytes": used_bytes, "total_bytes": total_bytes}

    return told


def stop_reason(documents: Sequence[Document]) -> str | None:
    """Return why no larger batch is to be measured, in words, or None when one is."""
    if not documents:
        return None
    last = documents[-1]
    if last["state"] == "failed":
        return f"batch {last['cell']['batch']} failed: {last['error']}"
    done = [document for document in documents if document["state"] == "done"]
    if all_saturated(throughputs(done)):
        return "no subject gained 5 % in either of the last two doublings"
    memory = last["memory"]
    return memory_reason(memory["before_bytes"], memory["used_bytes"], memory["total_bytes"])


def throughputs(done: Sequence[Document]) -> dict[str, list[float]]:
    """Return images per second by subject, batch after batch."""
    found: dict[str, list[float]] = {}
    for document in done:
        for row in document["rows"]:
            found.setdefault(row["subject"], []).append(per_second(document, row))
    return found


def _documents(cells: Sequence[Cell], folder: Path) -> list[Document]:
    return [held for cell in cells if (held := read_cell(folder, cell)) is not None]


def _write(cells: Sequence[Cell], folder: Path, arguments: argparse.Namespace) -> Path | None:
    documents = _documents(cells, folder)
    done = [document for document in documents if document["state"] == "done"]
    if not done:
        return None
    ending = stop_reason(documents) or f"batch {cells[-1].batch} was to be the last"
    path = write_results(
        arguments.out, "batch_sweep", arguments.machine, page_of(done, shown_command(), ending),
        {"schema": 1, "ending": ending, "cells": documents},
    )  # fmt: skip
    path.with_suffix(".svg").write_text(batch_curves(done), encoding="utf-8")
    return path


def page_of(done: Sequence[Document], command: str, ending: str) -> str:
    """Return the Markdown of all batches so far."""
    cell = done[0]["cell"]
    batches = [document["cell"]["batch"] for document in done]
    by_subject = throughputs(done)
    saturated = {subject: saturated_batch(batches, per_s) for subject, per_s in by_subject.items()}
    ends = [
        f"- {subject}: {'not saturated' if batch is None else f'saturated from batch {batch}'}"
        for subject, batch in saturated.items()
    ]
    title = f"{cell['network']}, density {cell['density']:g}, {cell['runtime']}, {cell['precision']}"
    parts = [
        f"# Throughput over the batch: {title}",
        f"`{command}`",
        f"The sweep ended because {ending}. A subject is saturated at the first batch from which two "
        "doublings gained less than 5 % throughput each. Figure: the file of the same name ending in `.svg`.",
        how_measured(done[0]),
        "## Saturation",
        "\n".join(ends),
        "## Median latency of the batch, ms",
        _by_batch(done, lambda document, row: f"{1000 * row['latency_s']['p50']:.3g}"),
        "## Images per second, by the median",
        _by_batch(done, lambda document, row: f"{per_second(document, row):.4g}"),
        "## Speedup over dense (95 %)",
        _by_batch(done, lambda document, row: _ratio(row) + ("" if row["stable"] else " *")),
        reasons_told(done),
    ]
    return "\n\n".join(parts) + "\n"


def _by_batch(done: Sequence[Document], told: Callable[[Document, Document], str]) -> str:
    lines = []
    for place, first in enumerate(done[0]["rows"]):
        line = {"subject": first["subject"], "MACs fewer": f"{first['macs_ratio']:.2f}x"}
        for document in done:
            line[f"batch {document['cell']['batch']}"] = told(document, document["rows"][place])
        lines.append(line)
    return table(lines)


def per_second(document: Document, row: Document) -> float:
    """Return images per second by the median, which a single interruption does not move."""
    return float(document["cell"]["batch"] / row["latency_s"]["p50"])


def _ratio(row: Document) -> str:
    if row["speedup"] is None:
        return "1"
    held = row["speedup"]
    return f"{held['ratio']:.2f}x ({held['low']:.2f}-{held['high']:.2f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--cache", type=Path, default=Path("out/subjects"), help="folder of built networks")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnet50")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--runtime", choices=tuple(RUNTIMES), default="ort-cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS,
                        default=["dense", "ticket-r1", "ticket-r16", "uniform-r16"])  # fmt: skip
    parser.add_argument("--scope", choices=("compute", "end_to_end"), default="compute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block-s", type=float, default=0.3, help="seconds of a subject's turn in a round")
    parser.add_argument("--max-batch", type=int, default=1024)
    parser.add_argument("--device", help="of the torch runtimes, e.g. cuda:0")
    parser.add_argument("--cell-limit-s", type=float, default=1800.0)
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.subjects[0] != "dense":
        parser.error("the first subject is the baseline: dense")
    if arguments.max_batch < 1:
        parser.error(f"--max-batch is {arguments.max_batch}; it must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
