"""An ONNX file becomes an engine: several builds, each checked, the fastest by measurement kept.

TensorRT picks kernels by timing them, so two builds of one file differ. The first build starts from the
timing cache beside the engine, if there is one; the others time all anew, or they would pick the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ticket_export.errors import MeasureError, ParityError, StoreError
from ticket_export.runtime.runner import Array, cuda_index
from ticket_export.runtime.trt_cuda import Cuda
from ticket_export.runtime.trt_layers import layers_from_information, layers_summary
from ticket_export.runtime.trt_network import (
    Built,
    OnnxSource,
    builder_flags,
    checked_batches,
    engine_bytes_from_source,
    profiles_from_batches,
    read_source,
)
from ticket_export.runtime.trt_parity import (
    Reference,
    checked_sizes,
    parity_error,
    reference_from_source,
    tolerance_for,
)
from ticket_export.runtime.trt_session import Session
from ticket_export.runtime.trt_sidecar import EngineFacts, layers_path, write_facts, write_whole
from ticket_export.runtime.trt_version import polygraphy_version, require_tensorrt

MAX_BUILDS = 20
OPTIMIZATION_LEVELS = range(6)  # of IBuilderConfig.builder_optimization_level
# Enough for medians that differ less than builds do; the measurement people quote is made in measure/.
NUM_ROUNDS, NUM_SAMPLES, NUM_WARMUPS = 10, 5, 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How to build.

    Attributes:
        batches: sizes to tune for, each with a profile of its own; the engine takes up to the largest.
        builds: how many to make and choose from, 1 to 20.
        tf32: whether fp32 products may round their inputs to 10 bits, as every CUDA runtime ships.
        optimization_level: TensorRT's, 0 (quick to build) to 5 (slow to build); 3 is its default.
        cuda_graph: whether the builds are compared as CUDA graphs.
        device: "cuda" or "cuda:N".
        tolerance: largest relative error against the ONNX file; None is the gate of its precision.

    Raises:
        MeasureError: a number is out of range.
    """

    batches: tuple[int, ...] = (1, 8)
    builds: int = 3
    tf32: bool = True
    optimization_level: int = 3
    cuda_graph: bool = True
    device: str | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.builds <= MAX_BUILDS:
            raise MeasureError(f"engine: builds is {self.builds}, but must be 1 to {MAX_BUILDS}")
        if self.optimization_level not in OPTIMIZATION_LEVELS:
            raise MeasureError(f"engine: optimization_level is {self.optimization_level}, but must be 0 to 5")
        if self.tolerance is not None and not self.tolerance > 0.0:
            raise MeasureError(f"engine: tolerance is {self.tolerance}, but must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is fixed before the first build."""

    trt: Any  # Any: the module has no type information
    cuda: Cuda
    source: OnnxSource
    batches: tuple[int, ...]
    profiles: tuple[dict[str, int], ...]
    flags: dict[str, bool | int]
    reference: Reference
    tolerance: float
    settings: BuildSettings
    engine_path: Path
    stored_cache: bytes


@dataclass(slots=True, kw_only=True)
class _Candidate:
    """One build: its bytes, and what was found out about it."""

    built: Built
    session: Session
    seconds: float
    parity_rel_error: float
    median_s: dict[int, float] = field(default_factory=dict)


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    settings: BuildSettings,
    *,
    on_progress: Callable[[str], None] = _log.info,
) -> EngineFacts:
    """Write the engine of an ONNX file with its sidecar, layer list and timing cache; return the sidecar.

    The sidecar is written last, so that an interrupted build leaves nothing that would be loaded.

    Raises:
        MeasureError: the file cannot be read, or TensorRT cannot build or run it.
        ParityError: every build's outputs differ from the ONNX file's by more than the tolerance.
        DeviceError: the GPU ran out of memory or was lost.
        MissingDependency: TensorRT, Polygraphy, the CUDA runtime or a GPU is missing.
        StoreError: a file cannot be written.
    """
    if not engine_path.parent.is_dir():
        raise StoreError(f"{engine_path}: its folder does not exist", hint="give a folder that exists")
    job = _job(onnx_path, engine_path, settings)
    candidates: list[_Candidate] = []
    try:
        for index in range(settings.builds):
            on_progress(f"{onnx_path.name}: building a TensorRT engine, {index + 1} of {settings.builds}")
            candidates.append(_candidate(job, timing_cache=b"" if index else job.stored_cache))
            on_progress(
                f"{onnx_path.name}: build {index + 1} took {candidates[-1].seconds:.1f} s, "
                f"relative error {candidates[-1].parity_rel_error:.1e}"
            )
        kept = _fastest(_passing(candidates, job), job)
        return _publish(job, candidates, kept)
    finally:
        for candidate in candidates:
            candidate.session.close()


def _job(onnx_path: Path, engine_path: Path, settings: BuildSettings) -> _Job:
    source = read_source(onnx_path)
    batches = checked_batches(settings.batches, source)
    trt = require_tensorrt()
    tolerance = settings.tolerance or tolerance_for(source.precision, tf32=settings.tf32)
    cache = _cache_path(engine_path)
    return _Job(
        trt=trt,
        cuda=Cuda(cuda_index("tensorrt", settings.device)),
        source=source,
        batches=batches,
        profiles=profiles_from_batches(batches, source),
        flags=builder_flags(trt, source, tf32=settings.tf32, optimization_level=settings.optimization_level),
        reference=reference_from_source(source),
        tolerance=tolerance,
        settings=settings,
        engine_path=engine_path,
        stored_cache=cache.read_bytes() if cache.is_file() else b"",
    )


def _candidate(job: _Job, *, timing_cache: bytes) -> _Candidate:
    start = time.perf_counter()
    built = engine_bytes_from_source(
        job.trt, job.source, profiles=job.profiles, flags=job.flags, timing_cache=timing_cache
    )
    seconds = time.perf_counter() - start
    session = Session(
        job.trt,
        built.engine_bytes,
        job.cuda,
        name=job.engine_path.name,
        cuda_graph=job.settings.cuda_graph,
    )
    try:
        error = parity_error(session, job.reference, checked_sizes(job.batches, job.source))
    except BaseException:
        session.close()
        raise
    return _Candidate(
        built=built,
        session=session,
        seconds=seconds,
        parity_rel_error=error,
    )


def _passing(candidates: Sequence[_Candidate], job: _Job) -> list[_Candidate]:
    """Return the builds whose outputs are those of the file."""
    passing = [c for c in candidates if c.parity_rel_error <= job.tolerance]  # a NaN does not pass
    if not passing:
        told = ", ".join(f"{candidate.parity_rel_error:.2e}" for candidate in candidates)
        raise ParityError(
            f"{job.engine_path}: not written: relative error {told} of TensorRT {job.trt.__version__} "
            f"against {job.source.path.name} in ONNX Runtime is above {job.tolerance:g}",
            hint="polygraphy run FILE.onnx --trt --onnxrt --trt-outputs mark all --onnx-outputs mark all",
        )
    return passing


def _fastest(candidates: list[_Candidate], job: _Job) -> _Candidate:
    """Time the builds in turns at every batch, and return the one with the least product of medians."""
    if len(candidates) == 1:
        return candidates[0]
    for batch in job.batches:
        inputs = {
            name: array.astype(candidates[0].session.input_specs[name].dtype)
            for name, array in job.reference.inputs_at(batch).items()
        }
        samples_s = _interleaved([c.session for c in candidates], inputs)
        for candidate, row_s in zip(candidates, samples_s, strict=True):
            candidate.median_s[batch] = float(np.median(row_s))
            candidate.session.drop_executions()
    return min(candidates, key=lambda c: float(np.sum(np.log(list(c.median_s.values())))))


def _interleaved(sessions: Sequence[Session], inputs: Mapping[str, Array]) -> list[list[float]]:
    """Return the seconds of NUM_ROUNDS * NUM_SAMPLES inferences of each, in turns of NUM_SAMPLES."""
    executions = [session.execution(inputs) for session in sessions]
    for execution in executions:
        for _ in range(NUM_WARMUPS):
            execution.compute_seconds(inputs)
    samples_s: list[list[float]] = [[] for _ in executions]
    for round_index in range(NUM_ROUNDS):
        turns = list(zip(executions, samples_s, strict=True))
        for execution, row_s in turns if round_index % 2 else reversed(turns):
            row_s.extend(execution.compute_seconds(inputs) for _ in range(NUM_SAMPLES))
    return samples_s


def _publish(job: _Job, candidates: Sequence[_Candidate], kept: _Candidate) -> EngineFacts:
    """Write all files, the sidecar last."""
    layers = layers_from_information(kept.session.information())
    facts = EngineFacts(
        engine_sha256=hashlib.sha256(kept.built.engine_bytes).hexdigest(),
        source=job.source.path.name,
        source_sha256=job.source.sha256,
        precision=job.source.precision,
        batches=job.batches,
        profiles=job.profiles,
        inputs=tuple(kept.session.input_specs.values()),
        outputs=tuple(kept.session.output_specs.values()),
        gpu=job.cuda.gpu(),
        tensorrt=str(job.trt.__version__),
        polygraphy=polygraphy_version(),
        flags={
            **job.flags,
            "cuda_graph": job.settings.cuda_graph,
            "timing_cache": "loaded" if candidates[0].built.cache_loaded else "new",
        },
        builds=[_told(candidate, kept) for candidate in candidates],
        build_seconds=sum(candidate.seconds for candidate in candidates),
        spread_fraction=_spread(candidates),
        parity={
            "rel_error": kept.parity_rel_error,
            "tolerance": job.tolerance,
            "batches": list(checked_sizes(job.batches, job.source)),
            "reference": job.reference.made_by,
        },
        layers=layers_summary(layers["layers"]),
    )
    write_whole(job.engine_path, kept.built.engine_bytes)
    document = {"schema": 1, "engine_sha256": facts.engine_sha256, **layers}
    write_whole(layers_path(job.engine_path), json.dumps(document, indent=1).encode() + b"\n")
    write_whole(_cache_path(job.engine_path), kept.built.timing_cache)
    write_facts(job.engine_path, facts)
    return facts


def _told(candidate: _Candidate, kept: _Candidate) -> dict[str, Any]:  # Any: JSON values
    error = candidate.parity_rel_error
    return {
        "seconds": candidate.seconds,
        "parity_rel_error": error if np.isfinite(error) else None,
        "median_s": {str(batch): median_s for batch, median_s in candidate.median_s.items()},
        "kept": candidate is kept,
    }


def _spread(candidates: Sequence[_Candidate]) -> dict[str, float] | None:
    """Return by how much the slowest build is slower than the fastest, per batch."""
    timed = [candidate.median_s for candidate in candidates if candidate.median_s]
    if not timed:
        return None
    return {str(b): max(m[b] for m in timed) / min(m[b] for m in timed) - 1.0 for b in timed[0]}


def _cache_path(engine_path: Path) -> Path:
    return engine_path.with_name(f"{engine_path.name}.timing_cache")
