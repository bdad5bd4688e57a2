"""The verb that times models side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ticket_export.cli.inputs import comma_list, sizes_as_given
from ticket_export.cli.messages import log_told
from ticket_export.errors import MeasureError, TicketExportError

if TYPE_CHECKING:
    from ticket_export.measure.cause import Cause
    from ticket_export.measure.compare import Comparison

_Word = TypeVar("_Word", str, int)


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
    why: Annotated[
        bool, typer.Option("--why", help="profile each model's layers too and say why it is so fast")
    ] = False,
    raw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="keep every timing; several cells: FILE_RUNTIME_BATCH.npz"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows of report.json instead")] = False,
) -> None:
    """Time models side by side, with intervals. Exits 1 when a measurement is unstable.

    When a runtime or batch fails, what was measured before is printed, and the exit code is the failure's.
    """
    from ticket_export.measure.compare import compare

    path_by_name = _named_models(models)
    sizes = _each_once("--batch", sizes_as_given("--batch", batch, MeasureError))
    places = [(name, size) for name in _runtimes(runtime) for size in sizes]
    files = _raw_files(raw, places)
    timed = partial(
        compare,
        path_by_name,
        scope=scope,
        threads=threads,
        rounds=rounds,
        samples=samples,
        batches=sizes,
    )
    cells: list[_Cell] = []
    stop: TicketExportError | KeyboardInterrupt | None = None
    for name, size in places:
        models_told = "1 model" if len(models) == 1 else f"{len(models)} models"
        typer.echo(f"timing {models_told}, {name}, batch {size}, {rounds} rounds", err=True)
        try:
            with log_told():  # building an engine takes minutes
                cells.append(_Cell(timed(runtime=name, batch=size), {}))
            if raw is not None:
                _save(files[name, size], cells[-1].comparison)
            if why:
                cells[-1] = _explained(cells[-1].comparison, path_by_name)
        except (TicketExportError, KeyboardInterrupt) as error:
            stop = error
            break
    if cells:
        _tell(cells, why=why, as_json=as_json)
    if stop is not None:
        raise stop
    if not all(row["stable"] for cell in cells for row in cell.comparison.rows):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One runtime and batch: what was timed, and with --why the cause of each model but the baseline."""

    comparison: Comparison
    causes: Mapping[str, Cause]


def _explained(comparison: Comparison, path_by_name: Mapping[str, Path]) -> _Cell:
    from ticket_export.measure.explain import explain

    typer.echo("profiling the layers, apart from the timing", err=True)
    return _Cell(comparison, explain(path_by_name, comparison.measurements))


def _tell_energy(comparison: Comparison) -> None:
    """Print what an image costs, where the device counts it."""
    from ticket_export.report.words import energy_words

    measured = comparison.measurements
    known = {name: m.energy_per_image_j for name, m in measured.items() if m.energy_per_image_j is not None}
    if known:
        first = measured[comparison.baseline]
        typer.echo(f"energy, {first.runtime}, batch {first.batch}: {energy_words(known)}")


def _save(path: Path, comparison: Comparison) -> None:
    from ticket_export.measure.measurement import save_measurements

    save_measurements(path, comparison.measurements)
    typer.echo(f"every timing is in {path}", err=True)


def _tell(cells: Sequence[_Cell], *, why: bool, as_json: bool) -> None:
    """Print data on stdout: the table or the document; and on stderr what is unstable."""
    rows = [row for cell in cells for row in cell.comparison.rows]
    causes = [
        {"subject": name, "runtime": row["runtime"], "precision": row["precision"], "batch": row["batch"]}
        | found.to_json()
        for cell in cells
        for row in cell.comparison.rows[:1]
        for name, found in cell.causes.items()
    ]
    if as_json:
        document = {"schema": 1, "machine": cells[0].comparison.machine, "rows": rows}
        typer.echo(json.dumps(document | ({"causes": causes} if why else {}), indent=2))
    else:
        from ticket_export.report.causes import cause_text
        from ticket_export.report.table import measured_table

        typer.echo(measured_table(rows))
        for cell in cells:
            _tell_energy(cell.comparison)
        for found in causes:
            typer.echo(f"\n{cause_text(found)}")
    for row in rows:
        if not row["stable"]:
            reasons = "; ".join(row["reasons"])
            typer.echo(
                f"unstable: {row['subject']}, {row['runtime']}, batch {row['batch']}: {reasons}", err=True
            )


def _raw_files(raw: Path | None, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Path]:
    """Return the file of each cell's timings, known to be writable before the first is timed."""
    if raw is None:
        return {}
    if raw.suffix != ".npz":
        raise MeasureError(f"--raw: {raw} is not named .npz", hint="for example --raw samples.npz")
    if not raw.parent.is_dir():
        raise MeasureError(f"--raw: {raw.parent} is no folder", hint=f"mkdir -p {raw.parent}")
    if len(places) == 1:
        return {places[0]: raw}
    return {(name, size): raw.with_name(f"{raw.stem}_{name}_{size}.npz") for name, size in places}


def _runtimes(text: str) -> list[str]:
    """Return the runtimes named, all of them known before the first is timed."""
    from ticket_export.runtime.registry import MODULE_RUNTIMES, RUNTIMES

    names = comma_list(text)
    wrong = [name for name in names if name not in RUNTIMES]
    if wrong or not names:
        raise MeasureError(
            f"--runtime: {(wrong or [text])[0]!r} is not one of {', '.join(RUNTIMES)}",
            hint="for example --runtime ort-cpu",
        )
    modules = [name for name in names if name in MODULE_RUNTIMES]
    if modules:
        raise MeasureError(
            f"--runtime: {modules[0]!r} runs modules, and a file is none",
            hint="measure files in ort-cpu, ort-cuda or tensorrt; a recipe's run times modules: "
            "measure.runtimes",
        )
    return _each_once("--runtime", names)


def _each_once(option: str, words: list[_Word]) -> list[_Word]:
    for place, word in enumerate(words):
        if word in words[:place]:
            raise MeasureError(f"{option}: {word} is given twice", hint="name each one once")
    return words


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
