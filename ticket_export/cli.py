"""The command line: the only file that reads arguments, prints or exits.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 a check failed, 2 the input is
wrong, 3 hardware, disk or an extra is missing, 130 interrupted.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ticket_export.errors import (
    MeasureError,
    MissingDependency,
    RecipeError,
    ShrinkError,
    TicketExportError,
)

if TYPE_CHECKING:
    from ticket_export.pipeline.nodes import Node
    from ticket_export.recipe.schema import Recipe
    from ticket_export.report.rows import Report

app = typer.Typer(
    name="ticket-export",
    help="From a lottery ticket to a faster engine, with proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help needs no rich and answers at once
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="such as recipes/digits_resnet20.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="replace a value of the recipe; may be repeated"),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="where the store and the reports live")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="where to train: cpu, cuda, mps")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; a mistake the user can mend is told without a traceback.

    Args:
        arguments: the words after the program's name; None reads them from `sys.argv`.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="ticket-export")
    except TicketExportError as error:
        _say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _say_error(error: TicketExportError) -> None:
    typer.echo(f"error: {error}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        from ticket_export import __version__

        typer.echo(f"ticket-export {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="one or more recipe files")],
    overrides: Overrides = None,
) -> None:
    """Say whether recipes are right, all problems at once. Reads nothing but the recipes."""
    from ticket_export.recipe.load import load_recipe

    failed = 0
    for path in recipes:
        try:
            load_recipe(path, overrides or ())
        except RecipeError as error:
            _say_error(error)
            failed += 1
        else:
            typer.echo(f"{path}: ok")
    if failed:
        if len(recipes) > 1:
            typer.echo(f"{failed} of {len(recipes)} recipes are wrong", err=True)
        raise typer.Exit(RecipeError.exit_code)


@app.command()
def plan(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    out: OutFolder = Path("out"),
) -> None:
    """List what a run would do, and what is done. Reads the files a recipe names, writes nothing."""
    from ticket_export.pipeline import plan as plan_recipe
    from ticket_export.recipe.load import load_recipe
    from ticket_export.report.table import text_table

    with redirect_stdout(sys.stderr):  # a foreign builder may print
        nodes = plan_recipe(load_recipe(recipe_path, overrides or ()), out)
    rows = [
        (
            node.stage,
            node.subject,
            "all" if node.replicate is None else node.replicate,
            node.key,
            "done" if node.done else "to do",
        )
        for node in nodes
    ]
    typer.echo(text_table(("stage", "subject", "replicate", "key", "state"), rows))
    num_done = sum(node.done for node in nodes)
    typer.echo(f"{len(nodes)} steps: {num_done} done, {len(nodes) - num_done} to do", err=True)


@app.command()
def run(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="stop after train, find, shrink, export, measure or report"),
    ] = None,
    out: OutFolder = Path("out"),
    device: Device = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="training processes [default: the cores, at most 4; 1 on a GPU]")
    ] = None,
) -> None:
    """Do what a recipe says, skip what is done, report."""
    from rich.console import Console

    from ticket_export.pipeline import run as run_recipe
    from ticket_export.recipe.load import load_recipe
    from ticket_export.report.progress import Progress
    from ticket_export.store.machine import num_usable_cores

    recipe = load_recipe(recipe_path, overrides or ())
    if workers is None:
        workers = min(num_usable_cores(), 4) if device == "cpu" else 1
    try:
        console = Console(stderr=True, highlight=False)
        with (
            Progress(console, num_steps=_num_steps(recipe, until)) as progress,
            redirect_stdout(sys.stderr),  # a foreign builder may print
        ):
            report = run_recipe(recipe, out, workers=workers, device=device, until=until, emit=progress)
    except KeyboardInterrupt:
        typer.echo("stopped; nothing is lost: the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    num_others = progress.num_steps - progress.num_made - progress.num_skipped
    others = f", {num_others} made by another run" if report is not None and num_others else ""
    typer.echo(f"{progress.num_made} steps made, {progress.num_skipped} skipped{others}", err=True)
    if report is not None:
        typer.echo(report.summary)
        typer.echo(f"report: {out / 'runs' / recipe.name / 'report.html'}")
        _say_files(report, out / "store")


def _say_files(report: Report, store: Path) -> None:
    """Print where dense and the last ticket lie, for `measure`; the report lists them all."""
    from ticket_export.report.verdict import last_ticket

    for file in report.exported:
        if file.subject in ("dense", last_ticket(report)) and file.replicate == 0:
            typer.echo(f"{file.subject}: {store / file.path}")


def _num_steps(recipe: Recipe, until: str | None) -> int:
    """Count the steps of a run; contents of files and the machine change keys, not how many there are."""
    from ticket_export.pipeline.nodes import InputHashes, nodes_of

    nodes = nodes_of(recipe, InputHashes(data=None, weights=None, builder=None), "")
    wanted: set[Node] = set()
    for node in reversed(nodes):  # parents come before children
        if until in (None, "report", node.stage) or node in wanted:
            wanted |= {node, *node.parents.values()}
    return len(wanted) + (until in (None, "report"))


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="as `plan` prints it; its first digits will do")],
    out: OutFolder = Path("out"),
) -> None:
    """Print the manifest of one stored result. Its files are checked against their hashes first."""
    from ticket_export.store.store import Store

    store = Store(out)
    manifest = store.find(key)
    typer.echo(json.dumps(manifest, indent=2))
    typer.echo(f"files: {store.path(manifest['stage'], manifest['key'])}", err=True)


@app.command()
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


@app.command()
def shrink(
    builder: Annotated[str, typer.Argument(metavar="BUILDER", help="zoo:NAME, pkg.mod:fn, file.py:fn, ...")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help=".safetensors, .pt (weights only) or .npz")],
    input_shape: Annotated[str, typer.Option("--input", metavar="SHAPE", help="such as 1x3x32x32")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="where the bundle is written")],
    arguments: Annotated[
        list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="an argument of the builder")
    ] = None,
    round_to: Annotated[int, typer.Option(help="keep widths that are multiples of this")] = 1,
    onnx: Annotated[bool, typer.Option("--onnx", help="export model.onnx beside the bundle")] = False,
) -> None:
    """Cut dead channels out, same function, smaller file. The result is saved as a bundle."""
    shape, builder_arguments = _shape(input_shape), _plain_arguments(arguments or ())
    import torch

    from ticket_export.models.load import build
    from ticket_export.report.table import shrunk_table
    from ticket_export.shrink.bundle import save_bundle
    from ticket_export.shrink.exact import shrink as shrink_network
    from ticket_export.store.store import disk_errors_told

    with redirect_stdout(sys.stderr):  # a foreign builder may print
        model = build(builder, builder_arguments, weights, image_shape=shape[1:]).eval()
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shrunk = shrink_network(model, (example,), round_to=round_to)
    with disk_errors_told(out):
        origin = {"builder": builder, "args": builder_arguments, "input_shapes": [list(shape[1:])]}
        save_bundle(shrunk, out, origin=origin)
    typer.echo(shrunk_table(shrunk.report))
    if onnx:
        from ticket_export.export.onnx import onnx_from_module

        typer.echo(f"onnx: {onnx_from_module(shrunk.model, out / 'model.onnx', (example,))}")
    typer.echo(f"bundle: {out}")


def _shape(text: str) -> tuple[int, int, int, int]:
    sizes = [int(size) if size.isdecimal() else 0 for size in text.lower().split("x")]
    if len(sizes) != 4 or 0 in sizes:
        raise ShrinkError(
            f"--input: {text!r} is not batch x channels x height x width", hint="--input 1x3x32x32"
        )
    num_images, channels, height, width = sizes
    return num_images, channels, height, width


def _plain_arguments(words: Sequence[str]) -> dict[str, object]:
    from ticket_export.recipe.strict_yaml import plain_from_yaml

    for word in words:
        if not re.fullmatch(r"\w+=.+", word):
            raise ShrinkError(f"--arg: {word!r} is not KEY=VALUE", hint="for example --arg shortcut=pad")
    plain, problems = plain_from_yaml("\n".join(word.replace("=", ": ", 1) for word in words), "--arg")
    if problems:
        raise ShrinkError(f"--arg: {problems[0]}")
    return dict(plain) if isinstance(plain, dict) else {}


@app.command()
def doctor() -> None:
    """Say what this machine offers: packages, devices. Exits 3 when a needed package is missing."""
    from ticket_export.report.table import text_table
    from ticket_export.report.words import machine_pairs
    from ticket_export.store.machine import declared_packages, machine_facts

    facts = machine_pairs({key: value for key, value in machine_facts().items() if key != "packages"})
    typer.echo(text_table(("machine", ""), [*facts, ("accelerator", _accelerator())]))
    packages = declared_packages()
    typer.echo()
    typer.echo(text_table(("package", "needed for", "version"), packages))
    missing = [name for name, needed_for, found in packages if (needed_for, found) == ("all", "-")]
    if missing:
        raise MissingDependency(
            f"not installed: {', '.join(missing)}", hint=f"pip install {' '.join(missing)}"
        )


def _accelerator() -> str:
    if find_spec("torch") is None:
        return "unknown without torch"
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    return "none (cpu only)" if device is None else f"{device.type}, {torch.accelerator.device_count()} of it"
