"""An ONNX file becomes a TensorRT engine: checked against it, the fastest of several, or not published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ticket_export.errors import ExportError
from ticket_export.runtime.onnx_file import ENGINE_SUFFIXES
from ticket_export.runtime.trt_build import BuildSettings, build_engine


def engine_from_onnx(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    batches: Sequence[int] = (1, 8),
    builds: int = 3,
    tf32: bool = True,
    optimization_level: int = 3,
    device: str | None = None,
    tolerance: float | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a TensorRT engine that computes what the ONNX file computes, and return its path.

    The file decides the precision: fp32, fp16, or INT8 by its Q/DQ pairs. fp32 products round their
    inputs to TF32's 10 bits unless `tf32` is off; the sidecar says which. There is one profile per batch,
    tuned for it ("opt" in the sidecar) and taking every size above the batch before it. Of `builds` builds
    the fastest one that agrees with the file in ONNX Runtime is kept: within 1e-2 (TF32), 1e-4 (fp32 without
    it), 2e-2 (fp16) or 1e-1 (INT8, against the INT8 file), relative to the largest output.

    Beside the engine lie `<engine>.json` (GPU, driver, versions, shapes, batches, flags, hashes, seconds and
    error of every build), `<engine>.layers.json` (the engine inspector's list) and `<engine>.timing_cache`
    (with which the next build is quick). The sidecar is written last; an engine without it is never loaded.

    Args:
        onnx_path: an exported file; its batch alone may be free.
        engine_path: the file to write, `.engine` or `.plan`; an existing one is replaced.
        batches: sizes to tune for, 1 to 65536; the engine takes any up to the largest.
        builds: how many to make and choose from, 1 to 20.
        tf32: whether fp32 products may use TF32, as they may in ONNX Runtime and torch as these ship.
        optimization_level: TensorRT's effort, 0 to 5.
        device: "cuda" or "cuda:N"; None is the first GPU.
        tolerance: largest relative error that passes, instead of the precision's own.
        on_progress: told in words what is being done; None logs it.

    Raises:
        ExportError: `engine_path` has another suffix.
        MeasureError: the file cannot be read or built, or a number is out of range.
        ParityError: no build computes what the file computes; nothing was written.
        DeviceError: the GPU ran out of memory or was lost.
        MissingDependency: TensorRT, Polygraphy, the CUDA runtime or a GPU is missing.
        StoreError: a file cannot be written.
    """
    path = Path(engine_path)
    if path.suffix not in ENGINE_SUFFIXES:
        raise ExportError(f"{path}: an engine's name ends with {' or '.join(sorted(ENGINE_SUFFIXES))}")
    settings = BuildSettings(
        batches=tuple(batches),
        builds=builds,
        tf32=tf32,
        optimization_level=optimization_level,
        device=device,
        tolerance=tolerance,
    )
    progress = {} if on_progress is None else {"on_progress": on_progress}
    build_engine(Path(onnx_path), path, settings, **progress)
    return path
