"""How an error is told: on stderr, with its next step, without a traceback."""

from __future__ import annotations

import typer

from ticket_export.errors import TicketExportError


def say_error(error: TicketExportError) -> None:
    """Print the error and its hint on stderr."""
    typer.echo(f"error: {error}", err=True)
