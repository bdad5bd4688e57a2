"""The verb that times models side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ticket_export.errors import MeasureError


def measure(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL...", help="the first is the baseline")],
    runtime: Annotated[str, typer.Option(metavar="NAMES", help="one or more, joined by commas")] = "ort-cpu",
    batch: Annotated[str, typer.Option(metavar="SIZES", help="one or more, joined by commas")] = "1",
    scope: Annotated[str, typer.Option(help="compute, or end_to_end with the copies")] = "compute",
    threads: Annotated[int, typer.Option(help="threads of the runtime, on a CPU")] = 1,
    rounds: Annotated[int, typer.Option(help="rounds, at least 5, each timing every model")] = 10,
    samples: Annotated[
        int | None, typer.Option(help="timings per model and round [default: as fit into 12 s]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows of report.json instead")] = False,
) -> None:
    """Time models side by side, with intervals. Exits 1 when a measurement is unstable."""
    from ticket_export.measure.compare import compare

    path_by_name = _named_models(models)
    sizes = _batches(batch)
    timed = partial(compare, path_by_name, scope=scope, threads=threads, rounds=rounds, samples=samples)
    comparisons = []
    for name in _runtimes(runtime):
        for size in sizes:
            models_told = "1 model" if len(models) == 1 else f"{len(models)} models"
            typer.echo(f"timing {models_told}, {name}, batch {size}, {rounds} rounds", err=True)
            comparisons.append(timed(runtime=name, batch=size))
    rows = [row for comparison in comparisons for row in comparison.rows]
    if as_json:
        document = {"schema": 1, "machine": comparisons[0].machine, "rows": rows}
        typer.echo(json.dumps(document, indent=2))
    else:
        from ticket_export.report.table import measured_table

        typer.echo(measured_table(rows))
    unstable = [row for row in rows if not row["stable"]]
    for row in unstable:
        reasons = "; ".join(row["reasons"])
        typer.echo(f"unstable: {row['subject']}, {row['runtime']}, batch {row['batch']}: {reasons}", err=True)
    if unstable:
        raise typer.Exit(1)


def _comma_list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _runtimes(text: str) -> list[str]:
    """Return the runtimes named, all of them known before the first is timed."""
    from ticket_export.runtime.registry import RUNTIMES

    names = _comma_list(text)
    wrong = [name for name in names if name not in RUNTIMES]
    if wrong or not names:
        raise MeasureError(
            f"--runtime: {(wrong or [text])[0]!r} is not one of {', '.join(RUNTIMES)}",
            hint="for example --runtime ort-cpu",
        )
    return _each_once("--runtime", names)


def _each_once(option: str, words: list[str]) -> list[str]:
    for place, word in enumerate(words):
        if word in words[:place]:
            raise MeasureError(f"{option}: {word} is given twice", hint="name each one once")
    return words


def _batches(text: str) -> list[int]:
    sizes = _comma_list(text)
    if not sizes or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise MeasureError(f"--batch: {text!r} is not a list of sizes", hint="for example --batch 1,8,64")
    return [int(size) for size in _each_once("--batch", sizes)]


def _named_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Map each model's name to its file; the name is given as NAME=FILE or is the file's stem."""
    path_by_name: dict[str, Path] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if equals and not file:
            raise MeasureError(f"{argument!r} names no file", hint="write NAME=FILE.onnx")
        if equals and name and "/" not in name and not Path(argument).exists():
            if name in path_by_name:
                raise MeasureError(
                    f"the name {name!r} is given twice", hint="give each model a name of its own"
                )
            path_by_name[name] = Path(file)
            continue
        stem, number = Path(argument).stem, 2
        name = stem
        while name in path_by_name:
            name, number = f"{stem}-{number}", number + 1
        path_by_name[name] = Path(argument)
    return path_by_name
