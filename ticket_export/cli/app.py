"""The program: its verbs in the order of the help, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from ticket_export.cli.doctor import doctor
from ticket_export.cli.export import export
from ticket_export.cli.measure import measure
from ticket_export.cli.messages import say_error
from ticket_export.cli.profile import profile
from ticket_export.cli.recipes import check, plan, run, show
from ticket_export.cli.shrink import shrink
from ticket_export.errors import TicketExportError

app = typer.Typer(
    name="ticket-export",
    help="From a lottery ticket to a faster engine, with proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help needs no rich and answers at once
    pretty_exceptions_enable=False,
)

for verb in (check, plan, run, show, profile, measure, shrink, export, doctor):
    app.command()(verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; a mistake the user can mend is told without a traceback.

    Args:
        arguments: the words after the program's name; None reads them from `sys.argv`.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="ticket-export")
    except TicketExportError as error:
        say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


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
