"""The verbs that work on recipes and on the store: check, plan, run, show."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticket_export.cli.messages import say_error
from ticket_export.errors import RecipeError

if TYPE_CHECKING:
    from ticket_export.pipeline.nodes import Node
    from ticket_export.pipeline.torchrun import Place
    from ticket_export.recipe.schema import Recipe
    from ticket_export.report.progress import Progress
    from ticket_export.report.rows import Report

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="such as recipes/digits_resnet20.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="replace a value of the recipe; may be repeated"),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="where the store and the reports live")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="where to train: cpu, cuda, mps")]


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
            say_error(error)
            failed += 1
        else:
            typer.echo(f"{path}: ok")
    if failed:
        if len(recipes) > 1:
            typer.echo(f"{failed} of {len(recipes)} recipes are wrong", err=True)
        raise typer.Exit(RecipeError.exit_code)


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
        int | None,
        typer.Option(
            help="training processes [default: the cores, at most 4; 1 on a GPU and under torchrun; "
            "on Ray as many as fit]"
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(metavar="ENGINE", help="here, or ray: the cluster of RAY_ADDRESS, or one started here"),
    ] = "here",
    gpus_per_task: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="of a GPU, for each task of Ray [default: 1 with --device cuda]"),
    ] = None,
) -> None:
    """Do what a recipe says, skip what is done, report. Under torchrun all processes share each training."""
    from rich.console import Console

    from ticket_export.pipeline.torchrun import place_in_torchrun

    if (place := place_in_torchrun()).rank > 0:
        _follow(place)
        return
    from ticket_export.pipeline import run as run_recipe
    from ticket_export.recipe.load import load_recipe
    from ticket_export.report.progress import Progress
    from ticket_export.store.machine import num_usable_cores

    recipe = load_recipe(recipe_path, overrides or ())
    if workers is None and on == "here":
        workers = min(num_usable_cores(), 4) if device == "cpu" and place.num_processes == 1 else 1
    try:
        with (
            Progress(Console(stderr=True, highlight=False), num_steps=_num_steps(recipe, until)) as progress,
            redirect_stdout(sys.stderr),  # a foreign builder may print
        ):
            report = run_recipe(
                recipe,
                out,
                workers=workers,
                device=device,
                until=until,
                on=on,
                gpus_per_task=gpus_per_task,
                emit=progress,
            )
    except KeyboardInterrupt:
        typer.echo("stopped; nothing is lost: the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    _say_done(progress, report, out, recipe.name)


def _say_done(progress: Progress, report: Report | None, out: Path, name: str) -> None:
    num_others = progress.num_steps - progress.num_made - progress.num_skipped
    others = f", {num_others} made by another run" if report is not None and num_others else ""
    typer.echo(f"{progress.num_made} steps made, {progress.num_skipped} skipped{others}", err=True)
    if report is not None:
        typer.echo(report.summary)
        typer.echo(f"report: {out / 'runs' / name / 'report.html'}")
        _say_files(report, out / "store")


def _follow(place: Place) -> None:
    """Share the first process's trainings; it alone says anything."""
    from ticket_export.pipeline.together import follow

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        follow(place)


def _say_files(report: Report, store: Path) -> None:
    """Print where dense and the last ticket lie, for `measure`; the report lists them all."""
    from ticket_export.report.verdict import last_ticket

    several = len({file.precision for file in report.exported}) > 1
    for file in report.exported:
        if file.subject in ("dense", last_ticket(report)) and file.replicate == 0:
            name = f"{file.subject} {file.precision}" if several else file.subject
            typer.echo(f"{name}: {store / file.path}")


def _num_steps(recipe: Recipe, until: str | None) -> int:
    """Count the steps of a run; contents of files and the machine change keys, not how many there are."""
    from ticket_export.pipeline.graph import nodes_of
    from ticket_export.pipeline.nodes import InputHashes

    nodes = nodes_of(recipe, InputHashes(data=None, weights=None, builder=None), "")
    wanted: set[Node] = set()
    for node in reversed(nodes):  # parents come before children
        if until in (None, "report", node.stage) or node in wanted:
            wanted |= {node, *node.parents.values()}
    return len(wanted) + (until in (None, "report"))


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
