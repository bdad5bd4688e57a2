"""The verb that prices layers: what every width of a network's layers takes on this machine."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ticket_export.cli.recipes import Device, OutFolder, Overrides, RecipePath

if TYPE_CHECKING:
    from ticket_export.measure.latency_table import LatencyTable
    from ticket_export.pipeline.tables import StoredTable

_MOST_STAIRS = 8  # in one line


def profile(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    out: OutFolder = Path("out"),
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on stdout instead of tables")] = False,
) -> None:
    """Measure what every width of a network's layers takes here: the table that latency budgets read."""
    from rich.console import Console

    from ticket_export.pipeline.tables import profile as profile_recipe
    from ticket_export.recipe.load import load_recipe
    from ticket_export.report.progress import Progress
    from ticket_export.store.machine import num_usable_cores

    recipe = load_recipe(recipe_path, overrides or ())
    num_tables = len(recipe.measure.runtimes) * len(recipe.export.precisions) * len(recipe.measure.batches)
    try:
        console = Console(stderr=True, highlight=False)
        with (
            Progress(console, num_steps=num_tables) as progress,
            redirect_stdout(sys.stderr),  # a foreign builder may print
        ):
            tables = profile_recipe(recipe, out, device=device, threads=num_usable_cores(), emit=progress)
    except KeyboardInterrupt:
        typer.echo("stopped; nothing is lost: the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({"schema": 1, "tables": [_summary(stored) for stored in tables]}))
        return
    for stored in tables:
        typer.echo(_text(stored))


def _summary(stored: StoredTable) -> dict[str, Any]:  # Any: JSON values
    """Return what is told of a table, as JSON values."""
    from ticket_export.measure.staircase import staircase

    table = stored.table
    calibration = table.calibration
    assert calibration is not None  # the step makes both
    return {
        "runtime": table.runtime,
        "precision": table.precision,
        "batch": table.batch,
        "threads": table.threads,
        "scope": table.scope,
        "path": str(stored.path),
        "key": stored.key,
        "found": stored.found,
        "num_cells": table.num_cells,
        "calibration": {
            "median_error": calibration.median_error,
            "largest_error": calibration.largest_error,
            "num_networks": len(calibration.networks),
            "offset_s": calibration.offset_s,
            "scale": calibration.scale,
        },
        "staircases": [
            {
                "layer": str(kind),
                "width_in": found.width_in,
                "widths": list(found.widths),
                "seconds": list(found.seconds),
                "stairs": list(found.stairs),
            }
            for kind, found in ((kind, staircase(table, kind)) for kind in table.cells)
        ],
    }


def _text(stored: StoredTable) -> str:
    """Return a table's staircases and its error on whole networks."""
    from ticket_export.report.table import text_table

    told, table = _summary(stored), stored.table
    calibration = told["calibration"]
    rows = [
        (
            found["layer"],
            f"{found['width_in']} to {found['widths'][-1]}",
            f"{1e3 * found['seconds'][-1]:.4f}",
            f"{len(found['stairs'])} of {len(found['widths'])}",
            _stairs(found["stairs"]),
        )
        for found in told["staircases"]
    ]
    return "\n".join(
        (
            _title(table),
            text_table(("layer", "widths", "ms", "stairs", "up to width"), rows),
            f"whole networks: predicted within {100 * calibration['median_error']:.1f} % (median), "
            f"{100 * calibration['largest_error']:.1f} % (largest), n = {calibration['num_networks']}, "
            "each by the fit of the others",
            f"{told['num_cells']} cells, {'found' if stored.found else 'measured'}: {stored.path}",
        )
    )


def _title(table: LatencyTable) -> str:
    threads = f"{table.threads} thread{'s' if table.threads > 1 else ''}"
    return f"{table.runtime}, {table.precision}, batch {table.batch}, {threads}, {table.scope}"


def _stairs(widths: list[int]) -> str:
    shown = [str(width) for width in widths]
    if len(shown) > _MOST_STAIRS:
        shown = [*shown[: _MOST_STAIRS - 1], "...", shown[-1]]
    return ", ".join(shown)
