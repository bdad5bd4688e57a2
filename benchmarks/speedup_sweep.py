"""Speedups over dense: networks x densities x runtimes x precisions x batches, one interleaved run per cell.

Run:  python benchmarks/speedup_sweep.py --out FOLDER [--repeat 2] [--networks ...] [--runtimes ...] ...
      python benchmarks/speedup_sweep.py --out FOLDER --self 40 --networks resnet20-cifar --batches 1

A cell times all subjects (benchmarks/subjects.py) in the same rounds. Finished cells are skipped, so the
same command goes on after Ctrl-C or a crash; failed cells are tried again. `--repeat N` sweeps N times and
tells in how many rows the intervals of two sweeps overlap. `--self N` times dense against itself N times and
counts how often it is called different. The folder receives `speedup_<machine>_<yyyy-mm>.md` and `.json` and,
in `speedup_<machine>_cells/`, every cell with its raw samples.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from result_files import write_results
from speedup.cells import Settings, cells_of, measure_cell, read_cell
from speedup.networks import NETWORKS
from speedup.page import page_of
from speedup.workers import run_cells, watch
from speedup_figure import draw
from subjects import SUBJECTS, prepare

from ticket_export.runtime.offers import PRECISIONS
from ticket_export.runtime.registry import MODULE_RUNTIMES, RUNTIMES
from ticket_export.store.machine import machine_facts


def main() -> None:
    arguments = _arguments()
    settings = Settings(
        subjects=tuple(arguments.subjects),
        threads=arguments.threads,
        rounds=arguments.rounds,
        samples=arguments.samples,
        block_s=arguments.block_s,
        scope=arguments.scope,
        device=arguments.device,
        profile=not (arguments.no_profile or arguments.self_runs),
        engine_batches=tuple(sorted(arguments.engine_batches or arguments.batches)),
        engine_builds=arguments.engine_builds,
    )
    cells = cells_of(
        turns=arguments.self_runs or arguments.repeat,
        networks=arguments.networks,
        densities=arguments.densities,
        runtimes=arguments.runtimes,
        precisions=arguments.precisions,
        batches=arguments.batches,
    )
    theme = "speedup_self" if arguments.self_runs else "speedup"
    folder = arguments.out / f"{theme}_{arguments.machine}_cells"
    if arguments.worker is not None:
        sys.exit(
            run_cells(
                cells,
                folder,
                is_done=lambda held: is_done(held, settings),
                measure=lambda cell: measure_cell(folder, arguments.cache, cell, settings),
                since_s=arguments.worker,
            )
        )
    command = [sys.executable, *sys.argv, "--worker", repr(time.time())]

    def finished() -> Path:
        path = write()
        documents = [held for cell in cells if (held := read_cell(folder, cell)) is not None]
        for figure in draw(documents, path.with_suffix("")):
            print(figure)
        return path

    def write() -> Path:
        documents = [held for cell in cells if (held := read_cell(folder, cell)) is not None]
        page = page_of(documents, command=shown_command(), num_cells=len(cells))
        return write_results(arguments.out, theme, arguments.machine, page, {"schema": 1, "cells": documents})

    if arguments.page_only:
        print(finished())
        return
    _prepare(arguments, settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the worker would live on
    try:
        watch(command, cells, folder, cell_limit_s=arguments.cell_limit_s, after=write)
    except KeyboardInterrupt:
        print(f"interrupted; finished cells are in {folder}, the same command goes on", file=sys.stderr)
        write()
        sys.exit(130)
    print(finished())
    sys.exit(any((read_cell(folder, cell) or {}).get("state") == "failed" for cell in cells))


def is_done(held: Mapping[str, Any] | None, settings: Settings) -> bool:  # Any: JSON
    """Tell whether a cell was measured with these settings on a machine like this one."""
    if held is None or held["state"] != "done":
        return False
    same = held["settings"] == json.loads(json.dumps(asdict(settings)))
    return same and bool(held["machine"]["fingerprint"] == machine_facts()["fingerprint"])


def _prepare(arguments: argparse.Namespace, settings: Settings) -> None:
    """Build and convert before anything is timed; what cannot be made fails again in its cells, by name."""
    for network in arguments.networks:
        for density in arguments.densities:
            for form in forms_of(arguments):
                try:
                    prepare(
                        arguments.cache, network, density, names=settings.subjects, forms=(form,),
                        tell=lambda words: print(words, file=sys.stderr, flush=True),
                    )  # fmt: skip
                except Exception as error:  # told by the cells; the others can still be measured
                    print(f"{network} {form}: {type(error).__name__}: {error}", file=sys.stderr)


def forms_of(arguments: argparse.Namespace) -> list[str]:
    """Return the forms of files that the cells will run, each once."""
    cells = cells_of(
        turns=1, networks=["any"], densities=[1.0], runtimes=arguments.runtimes,
        precisions=arguments.precisions, batches=[1],
    )  # fmt: skip
    return list(dict.fromkeys("fp32" if cell.runtime in MODULE_RUNTIMES else cell.form for cell in cells))


def shown_command() -> str:
    """Return the command of this process without the folders of this machine."""
    return f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(_without_paths(sys.argv[1:]))}"


def _without_paths(words: Sequence[str]) -> list[str]:
    """Name folders of this machine by their part in the command alone."""
    named = {"--out": "FOLDER", "--cache": "CACHE"}
    return [named.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--cache", type=Path, default=Path("out/subjects"), help="folder of built networks")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=["resnet50"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.5])
    parser.add_argument("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=["ort-cpu"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--scope", choices=("compute", "end_to_end"), default="compute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--samples", type=int, help="per subject and round, at least 5 [default: by time]")
    parser.add_argument("--block-s", type=float, default=0.3, help="seconds of a subject's turn in a round")
    parser.add_argument("--no-profile", action="store_true", help="take no layer times, tell no causes")
    parser.add_argument("--engine-batches", nargs="+", type=int, help="of one engine [default: --batches]")
    parser.add_argument("--engine-builds", type=int, default=3, help="TensorRT builds to choose from")
    parser.add_argument("--page-only", action="store_true", help="write the page of what is there")
    parser.add_argument("--device", help="of the torch runtimes, e.g. cuda:0")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="sweep N times and compare")
    parser.add_argument("--self", dest="self_runs", type=int, metavar="N", help="time dense against itself")
    parser.add_argument("--cell-limit-s", type=float, default=1800.0)
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.self_runs:
        arguments.subjects = ["dense", "dense-again"]
    if arguments.subjects[0] != "dense":
        parser.error("the first subject is the baseline: dense")
    return arguments


if __name__ == "__main__":
    main()
