"""One cell of a sweep: all subjects of one network, density, runtime, precision and batch in one run.

A cell is two files: `<key>.json` with its rows or its error, and `<key>.npz` with every raw sample.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subjects import Subject, images, prepare

from ticket_export.errors import TicketExportError
from ticket_export.measure.compare import latency_row
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import save_measurements
from ticket_export.measure.protocol import Protocol, require_cores
from ticket_export.runtime.registry import open_runner

SCHEMA = 1
TORCH_RUNTIMES = ("torch", "torch-compile", "torch-cudagraph")
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """What one interleaved run measures; `turn` counts the sweeps over all cells from 1."""

    turn: int
    network: str
    density: float
    runtime: str
    precision: str
    batch: int

    @property
    def key(self) -> str:
        """The stem of its files."""
        words = (self.network, f"d{self.density:g}", self.runtime, self.precision, f"b{self.batch}")
        return "_".join((*words, f"run{self.turn}"))

    @property
    def place(self) -> tuple[str, float, str, str, int]:
        """What it is, whichever turn."""
        return (self.network, self.density, self.runtime, self.precision, self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How cells are measured, the same for a whole sweep."""

    subjects: tuple[str, ...]
    threads: int
    rounds: int
    samples: int | None
    block_s: float
    scope: str
    device: str | None

    def protocol(self, turn: int) -> Protocol:
        """Return the protocol of one turn: each has inputs and orders of its own."""
        return Protocol(
            rounds=self.rounds,
            samples=self.samples,
            scope=self.scope,
            threads=self.threads,
            block_s=self.block_s,
            seed=turn,
        )


def cells_of(
    *,
    turns: int,
    networks: Sequence[str],
    densities: Sequence[float],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int],
) -> list[Cell]:
    """Return the cells of a sweep, turn after turn; torch runs no INT8 files, so it has no such cells."""
    return [
        Cell(turn=turn, network=network, density=density, runtime=runtime, precision=precision, batch=batch)
        for turn in range(1, turns + 1)
        for network in networks
        for density in densities
        for runtime in runtimes
        for precision in precisions
        if not (precision == "int8" and runtime in TORCH_RUNTIMES)
        for batch in batches
    ]


def state_of(folder: Path, cell: Cell) -> str:
    """Return "done", "failed" or "open"."""
    document = read_cell(folder, cell)
    return "open" if document is None else str(document["state"])


def read_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:  # Any: JSON
    """Return the document of a cell, or None when it has none, or a damaged one."""
    try:
        document: dict[str, Any] = json.loads((folder / f"{cell.key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if document.get("schema") == SCHEMA else None


def write_cell(folder: Path, cell: Cell, document: Mapping[str, Any]) -> None:  # Any: JSON
    """Write the document of a cell; the file appears only when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.key}.json"
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    text = json.dumps({"schema": SCHEMA, "cell": asdict(cell), **document}, indent=1)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def write_failure(folder: Path, cell: Cell, error: BaseException | str) -> None:
    """Write that the cell failed, and why, in its place."""
    if isinstance(error, str):
        told, trace = error, ""
    else:
        told = f"{type(error).__name__}: {error}"
        trace = "" if isinstance(error, TicketExportError) else "".join(traceback.format_exception(error))
    write_cell(folder, cell, {"state": "failed", "error": told, "trace": trace, "at": time.time()})


def measure_cell(
    folder: Path,
    cache_folder: Path,
    cell: Cell,
    settings: Settings,
    *,
    extra: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:  # Any: JSON
    """Time all subjects of the cell in one interleaved run, write both files and return the document.

    Args:
        folder: receives the two files.
        cache_folder: of the built networks.
        cell: what to measure.
        settings: how.
        extra: key of the document -> what is called for it while the subjects are still open.

    Raises:
        Exception: whatever the runtime raises; the caller writes it as the cell's failure.
    """
    require_cores(settings.threads)
    start_s = time.time()
    subjects = prepare(
        cache_folder, cell.network, cell.density, names=settings.subjects,
        precisions=() if cell.runtime in TORCH_RUNTIMES else (cell.precision,),
    )  # fmt: skip
    with ExitStack() as stack:
        runners = {name: stack.enter_context(opened) for name, opened in _runners(subjects, cell, settings)}
        measured = measure_interleaved(runners, batch=cell.batch, protocol=settings.protocol(cell.turn))
        more = {key: call() for key, call in (extra or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_measurements(folder / f"{cell.key}.npz", measured)
    baseline = next(iter(measured.values()))
    rows = []
    for name, measurement in measured.items():
        facts = subjects[name].facts
        rows.append(
            {
                "subject": name,
                **{key: facts[key] for key in ("params", "nonzero", "macs", "macs_ratio")},
                **latency_row(measurement, baseline),
                "round_medians_s": measurement.round_medians_s.tolist(),
                "parity": {} if cell.runtime in TORCH_RUNTIMES else _recorded(subjects[name], cell),
            }
        )
    document = {
        "state": "done",
        "at": start_s,
        "seconds": time.time() - start_s,
        "settings": asdict(settings),
        "machine": dict(baseline.machine),
        "device": baseline.device,
        "loads": [asdict(load) for load in baseline.loads],
        "calibration": _calibration(subjects, cell),
        **more,
        "rows": rows,
    }
    write_cell(folder, cell, document)
    return document


def _runners(
    subjects: Mapping[str, Subject], cell: Cell, settings: Settings
) -> Iterator[tuple[str, Any]]:  # Any: a Runner
    for name, subject in subjects.items():
        source: Any = subject.onnx(cell.precision)
        options: dict[str, Any] = {"threads": settings.threads}
        if cell.runtime in TORCH_RUNTIMES:
            source = subject.module()
            if cell.precision == "fp16":
                source = source.half()
            image, _ = images(cell.network, 1)
            options |= {"example_inputs": (image.numpy(),), "device": settings.device}
        elif cell.runtime == "tensorrt":
            source = engine_of(subject, cell.precision)
        yield name, open_runner(source, cell.runtime, **options)


def engine_of(subject: Subject, precision: str) -> Path:
    """Return the engine of a subject, as `build_engine` left it beside its file."""
    return subject.folder / f"{precision}.engine"


def _recorded(subject: Subject, cell: Cell) -> dict[str, str]:
    """Return what the file itself says of its errors."""
    import onnx

    proto = onnx.load(subject.onnx(cell.precision), load_external_data=False)
    start = "ticket_export."
    return {
        entry.key.removeprefix(start): entry.value
        for entry in proto.metadata_props
        if entry.key.startswith(start) and entry.key != f"{start}widths"
    }


def _calibration(subjects: Mapping[str, Subject], cell: Cell) -> str | None:
    path = next(iter(subjects.values())).folder / "calibration.txt"
    if cell.precision != "int8" or not path.is_file():
        return None
    return path.read_text(encoding="utf-8").strip()
