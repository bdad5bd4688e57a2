"""The verb that says what this machine can run and whether it is fit to measure on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from ticket_export.errors import MissingDependency

if TYPE_CHECKING:
    from ticket_export.report.checkup import GpuState

LOAD_S = 0.5  # fifty ticks of the kernel's counters
# what a serving box has: tests/measure/test_without_torch.py measures with these alone
_MEASURING = {"numpy", "onnx", "onnxruntime", "pydantic", "pyyaml", "rich", "tabulate", "typer"}


def doctor() -> None:
    """Say what runs here, what is missing and whether it is quiet. Exits 3 if a needed package is missing."""
    from ticket_export.store.machine import declared_packages, machine_facts

    packages = declared_packages()
    missing = [name for name, needed_for, version in packages if (needed_for, version) == ("all", "-")]
    try:
        _tell(machine_facts(), packages)
    except ImportError:
        if not missing:
            raise
    if missing:
        here = "" if _MEASURING & set(missing) else " (measuring exported files needs none of them)"
        raise MissingDependency(
            f"not installed: {', '.join(missing)}{here}", hint=f"pip install {' '.join(missing)}"
        )


def _tell(machine: dict[str, Any], packages: list[tuple[str, str, str]]) -> None:  # Any: JSON values
    from ticket_export.measure.load import LoadMeter, num_cores
    from ticket_export.report import checkup
    from ticket_export.report.table import text_table
    from ticket_export.report.words import machine_pairs
    from ticket_export.runtime import offers
    from ticket_export.runtime.registry import RUNTIMES
    from ticket_export.store.process import quota_cores

    told_below = ("packages", "gpus", "governor", "smt", "turbo", "memory_bytes")
    facts = machine_pairs({key: value for key, value in machine.items() if key not in told_below})
    facts.append(("memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB"))
    typer.echo(text_table(("machine", ""), [(name, checkup.wrapped(text)) for name, text in facts]))
    typer.echo("\n" + text_table(("package", "needed for", "version"), packages))

    models = machine.get("gpus", [])
    gpus, driver, unknown = _gpus(models)
    found = [offers.offer(name, has_gpu=bool(models or gpus)) for name in RUNTIMES]
    typer.echo("\n" + text_table(("runtime", *offers.PRECISIONS), checkup.offer_rows(found)))
    if commands := checkup.command_rows(found):
        typer.echo("\n" + text_table(("missing", "to get it"), commands))

    meter = LoadMeter()
    time.sleep(LOAD_S)
    findings = [
        checkup.load_finding(meter.stop().other_cores, num_cores()),
        *checkup.quota_findings(quota_cores(), num_cores()),
        *checkup.switch_findings(machine),
        *checkup.gpu_findings(gpus, unknown),
        *checkup.build_findings(
            offers.cuda_builds(),
            driver=driver or machine.get("nvidia_driver"),
            in_use=offers.onnxruntime_in_use(),
        ),
    ]
    typer.echo("\n" + text_table(("check", "", "verdict"), [finding.line for finding in findings]))
    typer.echo("\n" + checkup.verdict(found, findings))


def _gpus(models: list[str]) -> tuple[list[GpuState], str | None, str | None]:
    """Return every GPU, the driver's version, and why nothing is told of GPUs that the kernel knows.

    Args:
        models: what the kernel knows to be there; under WSL it knows of none.
    """
    from ticket_export.measure.nvml import all_gpus, driver_version, nvml
    from ticket_export.report.checkup import GpuState

    states = []
    try:
        with nvml() as module:
            driver = driver_version(module)
            for gpu in all_gpus(module):
                found = gpu.users()  # none of them is this process: doctor opens no context
                users = None if found is None else tuple(map(str, found.others))
                states.append(GpuState(name=gpu.name, users=users, busy_fraction=gpu.utilisation_fraction()))
    except MissingDependency as error:
        return [], None, f"{', '.join(models)}, but {error.message}: {error.hint}" if models else None
    return states, driver, None
