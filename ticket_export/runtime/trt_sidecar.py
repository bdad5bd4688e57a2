"""What an engine is: the file `<engine>.json` beside it, written last and asked first.

An engine is native code for one GPU model and one TensorRT version. Nothing of it is loaded before its
sidecar says that it is ours: these bytes were built for this GPU, by this version, from this file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticket_export.errors import MeasureError, StoreError
from ticket_export.runtime.runner import TensorSpec
from ticket_export.runtime.trt_cuda import Gpu

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The sidecar's fields.

    Attributes:
        engine_sha256: of the engine's bytes.
        source: name of the ONNX file it was built from.
        source_sha256: of that file's bytes.
        precision: what the ONNX file computes in: "fp32", "fp16" or "int8".
        batches: the sizes it is tuned for; the largest is the largest it takes.
        profiles: one {"min", "opt", "max"} per optimisation profile, in images.
        inputs: name, dtype and shape of each input, None where free.
        outputs: likewise.
        gpu: the GPU and its driver.
        tensorrt: version of TensorRT.
        polygraphy: version of Polygraphy.
        flags: what the builder was told: strong types, FP16, INT8, TF32, optimisation level, ...
        builds: every build that was tried: seconds, parity, median seconds per batch, and which one was kept.
        build_seconds: of all builds together.
        spread_fraction: slowest over fastest build, less 1, per batch; None after a single build.
        parity: largest relative error against the ONNX file, the tolerance, and how it was measured.
        layers: by profile, how many layers it has, by kind, and how many only change the memory format.
    """

    engine_sha256: str
    source: str
    source_sha256: str
    precision: str
    batches: tuple[int, ...]
    profiles: tuple[Mapping[str, int], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gpu: Gpu
    tensorrt: str
    polygraphy: str
    flags: Mapping[str, bool | int | str]
    builds: Sequence[Mapping[str, Any]]  # Any: JSON values
    build_seconds: float
    spread_fraction: Mapping[str, float] | None
    parity: Mapping[str, Any]  # Any: JSON values
    layers: Mapping[str, Any]  # Any: JSON values


def sidecar_path(engine_path: Path) -> Path:
    """Return where the facts of an engine lie."""
    return engine_path.with_name(f"{engine_path.name}.json")


def layers_path(engine_path: Path) -> Path:
    """Return where the list of an engine's layers lies."""
    return engine_path.with_name(f"{engine_path.name}.layers.json")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal text.

    Raises:
        MeasureError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MeasureError(f"{path}: cannot be read: {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror}", hint="give a folder that exists and has space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_facts(engine_path: Path, facts: EngineFacts) -> None:
    """Write the sidecar; from now on the engine beside it is taken."""
    document = {"schema": SCHEMA, **dataclasses.asdict(facts)}
    write_whole(sidecar_path(engine_path), json.dumps(document, indent=2).encode() + b"\n")


def read_facts(engine_path: Path) -> EngineFacts:
    """Return the facts of an engine.

    Raises:
        MeasureError: the sidecar is missing, damaged or of another schema.
    """
    path = sidecar_path(engine_path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("schema") != SCHEMA:
            raise _unusable(engine_path, f"{path.name} has another schema than {SCHEMA}")
        for side in ("inputs", "outputs"):
            document[side] = tuple(
                TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in document[side]
            )
        for field in ("batches", "profiles"):
            document[field] = tuple(document[field])
        return EngineFacts(**{**document, "gpu": Gpu(**document["gpu"])})
    except FileNotFoundError as error:
        raise _unusable(
            engine_path, f"{path.name} is missing, so nothing tells which GPU and file it is for"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unusable(engine_path, f"{path.name} is damaged: {error}") from error


def require_usable(
    engine_path: Path, *, tensorrt: str, gpu: Gpu, source_path: Path | None = None
) -> tuple[EngineFacts, bytes]:
    """Return the facts and the bytes of an engine that may be loaded here.

    Args:
        engine_path: the engine's file.
        tensorrt: version of the TensorRT that is to load it.
        gpu: the GPU it is to run on.
        source_path: the ONNX file it must have been built from; None asks the file of that name beside the
            engine, if there is one.

    Raises:
        MeasureError: the engine or its sidecar is missing or changed, or it was built for another GPU, by
            another TensorRT or from another file. Nothing of the engine has been loaded.
    """
    if not engine_path.is_file():
        raise MeasureError(f"{engine_path}: no such file", hint="te.engine_from_onnx(onnx, engine) builds it")
    facts = read_facts(engine_path)
    if facts.tensorrt != tensorrt:
        raise _unusable(
            engine_path, f"it was built by TensorRT {facts.tensorrt}, here is {tensorrt}", facts=facts
        )
    if (facts.gpu.sm, facts.gpu.name) != (gpu.sm, gpu.name):
        built, here = f"{facts.gpu.name} ({facts.gpu.sm})", f"{gpu.name} ({gpu.sm})"
        raise _unusable(engine_path, f"it was built for {built}, here is {here}", facts=facts)
    engine_bytes = engine_path.read_bytes()
    if hashlib.sha256(engine_bytes).hexdigest() != facts.engine_sha256:
        raise _unusable(engine_path, "its bytes are not the ones that were built", facts=facts)
    beside = engine_path.with_name(facts.source)
    source = source_path or (beside if beside.is_file() else None)
    if source is not None and sha256_of(source) != facts.source_sha256:
        raise _unusable(engine_path, f"{source} has changed since it was built from it", facts=facts)
    return facts, engine_bytes


def _unusable(engine_path: Path, reason: str, *, facts: EngineFacts | None = None) -> MeasureError:
    source, batches = ("model.onnx", "(1, 8)") if facts is None else (facts.source, str(facts.batches))
    return MeasureError(
        f"{engine_path}: the engine is not used: {reason}",
        hint=f"build it here: te.engine_from_onnx({source!r}, {engine_path.name!r}, batches={batches})",
    )
