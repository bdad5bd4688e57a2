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

import numpy as np
from speedup.networks import images
from subjects import NUM_STATISTICS, Subject, prepare

from ticket_export.errors import TicketExportError
from ticket_export.measure.compare import latency_row
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement, save_measurements
from ticket_export.measure.protocol import Protocol, require_cores
from ticket_export.measure.speedup import speedup
from ticket_export.runtime.agreement import relative_error
from ticket_export.runtime.registry import MODULE_RUNTIMES, open_runner
from ticket_export.store.machine import machine_facts

SCHEMA = 1
GPU_FILE_RUNTIMES = ("tensorrt", "ort-cuda")


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
    def form(self) -> str:
        """The form of the files it runs, of `subjects.FORMS`."""
        on_gpu = self.runtime in GPU_FILE_RUNTIMES
        return "int8-symmetric" if on_gpu and self.precision == "int8" else self.precision

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
    profile: bool
    engine_batches: tuple[int, ...]
    engine_builds: int

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
        if not (precision == "int8" and runtime in MODULE_RUNTIMES)
        for batch in batches
    ]


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
        forms=() if cell.runtime in MODULE_RUNTIMES else (cell.form,),
    )  # fmt: skip
    sources = {name: _source(subject, cell, settings) for name, subject in subjects.items()}
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(opened) for name, opened in _runners(subjects, sources, cell, settings)
        }
        parity = {name: _parity(runner, subjects[name], cell.batch) for name, runner in runners.items()}
        measured = measure_interleaved(runners, batch=cell.batch, protocol=settings.protocol(cell.turn))
        more = {key: call() for key, call in (extra or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_measurements(folder / f"{cell.key}.npz", measured)
    baseline = next(iter(measured.values()))
    causes, cause_error = {}, None
    if settings.profile:
        try:
            causes = _causes(sources, measured, cell)
        except Exception as error:  # a profiler's; the timings are worth as much without
            cause_error = f"{type(error).__name__}: {error}"
    rows = []
    for name, measurement in measured.items():
        facts = subjects[name].facts
        rows.append(
            {
                "subject": name,
                **{key: facts[key] for key in ("params", "nonzero", "macs", "macs_ratio")},
                **latency_row(measurement, baseline),
                "round_medians_s": measurement.round_medians_s.tolist(),
                **parity[name],
                "file": {} if cell.runtime in MODULE_RUNTIMES else _recorded(subjects[name], cell),
                "settings": dict(measurement.settings),
                "gpu": gpu_facts(measurement),
                "cause": causes.get(name),
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
        "images": next(iter(subjects.values())).facts["images"],
        "calibration": _calibration(subjects, cell),
        "cause_error": cause_error,
        **more,
        "rows": rows,
    }
    write_cell(folder, cell, document)
    return document


def _source(subject: Subject, cell: Cell, settings: Settings) -> Any:  # Any: a path or a module
    if cell.runtime in MODULE_RUNTIMES:
        module = subject.module()
        return module.half() if cell.precision == "fp16" else module
    if cell.runtime == "tensorrt":
        return _engine(subject, cell.form, settings)
    return subject.onnx(cell.form)


def _runners(
    subjects: Mapping[str, Subject], sources: Mapping[str, Any], cell: Cell, settings: Settings
) -> Iterator[tuple[str, Any]]:  # Any: a Runner
    options: dict[str, Any] = {"threads": settings.threads}
    if cell.runtime in MODULE_RUNTIMES:
        options |= {"example_inputs": _example(cell), "device": settings.device}
    for name in subjects:
        yield name, open_runner(sources[name], cell.runtime, **options)


def _example(cell: Cell) -> tuple[Any, ...]:  # Any: arrays
    return (images(cell.network, NUM_STATISTICS)[0].numpy(),)


def _engine(subject: Subject, form: str, settings: Settings) -> Path:
    """Return the engine of a file, built on this machine the first time it is asked for."""
    sizes = "-".join(str(batch) for batch in settings.engine_batches)
    folder = subject.folder / f"engines-{machine_facts()['fingerprint']}"
    path = folder / f"{form}_b{sizes}_best-of-{settings.engine_builds}.engine"
    if not path.is_file():
        from ticket_export.export.engine import engine_from_onnx

        folder.mkdir(exist_ok=True)
        engine_from_onnx(
            subject.onnx(form), path, batches=settings.engine_batches, builds=settings.engine_builds
        )
    return path


def _parity(runner: Any, subject: Subject, batch: int) -> dict[str, float]:  # Any: a Runner
    """Return how far the runner's outputs on images are from torch's in fp32, at the batch that is timed."""
    x_NCHW = images(subject.network, NUM_STATISTICS)[0].numpy()
    expected_NK = subject.logits()
    rows = np.arange(batch) % len(x_NCHW)
    (actual_NK,) = runner.infer({name: x_NCHW[rows] for name in runner.input_specs}).values()
    same = actual_NK.argmax(axis=1) == expected_NK[rows].argmax(axis=1)
    return {
        "parity_rel_error": relative_error(actual_NK, expected_NK[rows]),
        "top1_agreement": float(same.mean()),
    }


def gpu_facts(measurement: Measurement) -> dict[str, Any]:  # Any: JSON
    """Return what the GPU did while the subject was timed; empty on a CPU."""
    if not measurement.gpu:
        return {}
    facts: dict[str, Any] = {"energy_per_image_j": measurement.energy_per_image_j}  # Any: JSON
    for name in ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
        known = [value for block in measurement.gpu if (value := getattr(block, name)) is not None]
        facts[name] = float(np.mean(known)) if known else None
    facts["throttled"] = sorted({reason for block in measurement.gpu for reason in block.throttled})
    return facts


def _causes(
    sources: Mapping[str, Any],
    measured: Mapping[str, Measurement],
    cell: Cell,
) -> dict[str, dict[str, Any]]:  # Any: modules and paths; JSON
    """Return why each subject is as fast as it is, by the runtime's own profile of it."""
    from ticket_export.measure.cause import Ratio, Tried
    from ticket_export.measure.explain import explain

    baseline = next(iter(measured))
    options = {"example_inputs": _example(cell)} if cell.runtime in MODULE_RUNTIMES else {}
    tickets = [name for name in measured if name.startswith("ticket-r")]
    tried = []
    for name in tickets[1:]:
        ratio = speedup(measured[baseline], measured[name])
        tried.append(
            Tried(
                label=f"round_to: {name.removeprefix('ticket-r')}",
                speedup=Ratio(ratio=ratio.ratio, low=ratio.low, high=ratio.high),
            )
        )
    found = {}
    # what other roundings gave is advice for the first ticket alone
    for names, others in ((tickets[:1], tried), ([n for n in measured if n not in tickets[:1]], [])):
        held = [baseline, *(name for name in names if name != baseline)]
        if len(held) > 1:
            found |= explain(
                {name: sources[name] for name in held},
                {name: measured[name] for name in held},
                tried=others,
                **options,
            )
    return {name: why.to_json() for name, why in found.items()}


def _recorded(subject: Subject, cell: Cell) -> dict[str, str]:
    """Return what the file itself says of its errors."""
    import onnx

    proto = onnx.load(subject.onnx(cell.form), load_external_data=False)
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
