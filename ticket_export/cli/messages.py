"""What is told beside the data: errors with their next step, and what the package logs, both on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ticket_export.errors import TicketExportError


def say_error(error: TicketExportError) -> None:
    """Print the error and its hint on stderr, without a traceback."""
    typer.echo(f"error: {error}", err=True)


@contextmanager
def log_told() -> Iterator[None]:
    """Print on stderr what the package logs inside, such as a prefix left off the names of weights."""
    logger, handler = logging.getLogger("ticket_export"), _ToStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)
