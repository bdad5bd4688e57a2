"""The runtimes by name. Each is imported when it is opened, so that a serving box needs only its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ticket_export.errors import MeasureError
from ticket_export.runtime.runner import Array, Runner

if TYPE_CHECKING:
    import torch

    Source: TypeAlias = Path | str | torch.nn.Module


def _open_ort_cpu(
    source: Source, *, threads: int, device: str | None, example_inputs: Sequence[Array] | None
) -> Runner:
    from ticket_export.runtime.ort import OrtCpuRunner

    if not isinstance(source, (str, Path)):
        raise MeasureError(
            f"runtime 'ort-cpu' runs an ONNX file, got a {type(source).__name__}",
            hint="export it first: te.onnx_from_module(model, path, example_inputs)",
        )
    if device not in (None, "cpu"):
        raise MeasureError(f"runtime 'ort-cpu' runs on the CPU, got device {device!r}")
    return OrtCpuRunner(Path(source), threads=threads)


def _open_torch(
    source: Source, *, threads: int, device: str | None, example_inputs: Sequence[Array] | None
) -> Runner:
    if isinstance(source, (str, Path)):
        raise MeasureError(
            f"runtime 'torch' runs an nn.Module, got the file {source}",
            hint="measure exported files with ort-cpu",
        )
    if example_inputs is None:
        raise MeasureError(
            "runtime 'torch' needs example_inputs: a module does not say which shapes and dtypes it takes",
            hint="pass example_inputs=(array,), one array [N, ...] per input",
        )
    from ticket_export.runtime.torch_eager import TorchRunner

    return TorchRunner(source, example_inputs=example_inputs, threads=threads, device=device)


RUNTIMES: dict[str, Callable[..., Runner]] = {
    "ort-cpu": _open_ort_cpu,
    "torch": _open_torch,
}


def open_runner(
    source: Source,
    runtime: str,
    *,
    threads: int = 1,
    device: str | None = None,
    example_inputs: Sequence[Array] | None = None,
) -> Runner:
    """Return a Runner that holds `source` ready to run; use it as a context manager.

    Args:
        source: the path of an ONNX file (ort-cpu) or an nn.Module (torch).
        runtime: a key of RUNTIMES.
        threads: CPU threads of one inference, at least 1.
        device: "cpu", "cuda:0", ...; None is the runtime's own.
        example_inputs: one array [N, ...] per input; the torch runtime takes shapes and dtypes from it.

    Raises:
        MeasureError: unknown runtime, a source it cannot run, or a file that is missing or damaged.
        MissingDependency: the runtime's package is not installed.
    """
    if runtime not in RUNTIMES:
        raise MeasureError(f"runtime {runtime!r} is not one of {', '.join(RUNTIMES)}")
    return RUNTIMES[runtime](source, threads=threads, device=device, example_inputs=example_inputs)
