"""The command line: the only room that reads arguments, prints or exits.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 a check failed, 2 the input is
wrong, 3 hardware, disk or an extra is missing, 130 interrupted.
"""

from __future__ import annotations

from ticket_export.cli.app import main

__all__ = ["main"]
