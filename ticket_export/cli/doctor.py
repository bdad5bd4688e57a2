"""The verb that says what this machine offers."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from ticket_export.errors import MissingDependency


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
