"""`python -m ticket_export` is the same command as `ticket-export`."""

from __future__ import annotations

from ticket_export.cli import main

if __name__ == "__main__":
    main()
