"""The runtimes by name. Each is imported when it is opened, so that a serving box needs only its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ticket_export.errors import MeasureError
from ticket_export.runtime.runner import Array, Runner

if TYPE_CHECKING:
    import torch

    Source: TypeAlias = Path | str | torch.nn.Module

# these run the source itself, all others an exported file
MODULE_RUNTIMES = frozenset({"torch", "torch-compile", "torch-cudagraph"})
# what a module can be cast to; quantised networks exist as files only
MODULE_PRECISIONS = frozenset({"fp32", "fp16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `open_runner` was asked for, as its arguments say."""

    runtime: str
    source: Source
    threads: int
    device: str | None
    example_inputs: Sequence[Array] | None
    cuda_graph: bool | None
    batches: Sequence[int]


def _open_ort_cpu(request: Request) -> Runner:
    path = onnx_path(request)
    if request.device not in (None, "cpu"):
        raise MeasureError(f"runtime 'ort-cpu' runs on the CPU, got device {request.device!r}")
    _require_no_graph_choice(request)
    from ticket_export.runtime.ort import OrtCpuRunner

    return OrtCpuRunner(path, threads=request.threads)


def _open_ort_cuda(request: Request) -> Runner:
    path = onnx_path(request)
    from ticket_export.runtime.ort_cuda import OrtCudaRunner

    return OrtCudaRunner(
        path, threads=request.threads, device=request.device, cuda_graph=bool(request.cuda_graph)
    )


def _open_tensorrt(request: Request) -> Runner:
    path = onnx_path(request)
    from ticket_export.runtime.trt import open_tensorrt

    return open_tensorrt(
        path,
        threads=request.threads,
        device=request.device,
        batches=request.batches,
        cuda_graph=request.cuda_graph is not False,
    )


def _open_torch(request: Request) -> Runner:
    module, example_inputs = _module(request)
    from ticket_export.runtime.torch_eager import TorchRunner

    return TorchRunner(module, example_inputs=example_inputs, threads=request.threads, device=request.device)


def _open_torch_compile(request: Request) -> Runner:
    module, example_inputs = _module(request)
    from ticket_export.runtime.torch_compile import Compiled
    from ticket_export.runtime.torch_eager import TorchRunner

    return TorchRunner(
        module,
        example_inputs=example_inputs,
        threads=request.threads,
        device=request.device,
        name=request.runtime,
        form=Compiled,
    )


def _open_torch_cudagraph(request: Request) -> Runner:
    module, example_inputs = _module(request)
    from ticket_export.runtime.torch_cudagraph import Graphed
    from ticket_export.runtime.torch_eager import TorchRunner

    return TorchRunner(
        module,
        example_inputs=example_inputs,
        threads=request.threads,
        device="cuda:0" if request.device is None else request.device,
        name=request.runtime,
        form=Graphed,
    )


RUNTIMES: dict[str, Callable[[Request], Runner]] = {
    "ort-cpu": _open_ort_cpu,
    "ort-cuda": _open_ort_cuda,
    "tensorrt": _open_tensorrt,
    "torch": _open_torch,
    "torch-compile": _open_torch_compile,
    "torch-cudagraph": _open_torch_cudagraph,
}


def open_runner(
    source: Source,
    runtime: str,
    *,
    threads: int = 1,
    device: str | None = None,
    example_inputs: Sequence[Array] | None = None,
    cuda_graph: bool | None = None,
    batches: Sequence[int] = (1, 8),
) -> Runner:
    """Return a Runner that holds `source` ready to run; use it as a context manager.

    Args:
        source: the path of an ONNX file, or of an engine (tensorrt), or an nn.Module for the runtimes in
            MODULE_RUNTIMES.
        runtime: a key of RUNTIMES.
        threads: CPU threads of one inference, at least 1.
        device: "cpu", "cuda:0", ...; None is the runtime's own.
        example_inputs: one array [N, ...] per input; the torch runtimes take shapes and dtypes from it.
        cuda_graph: whether the network is launched as one CUDA graph, where the runtime leaves the choice;
            None is the runtime's own.
        batches: sizes that a runtime which builds an engine tunes it for; the others take any.

    Raises:
        MeasureError: unknown runtime, a source it cannot run, a choice it does not have, or a file that is
            missing or damaged.
        DeviceError: the device is out of memory or fails.
        MissingDependency: the runtime's package or its device is missing.
        ParityError: an engine was built that does not compute what its file computes.
    """
    if runtime not in RUNTIMES:
        raise MeasureError(f"runtime {runtime!r} is not one of {', '.join(RUNTIMES)}")
    return RUNTIMES[runtime](
        Request(
            runtime=runtime,
            source=source,
            threads=threads,
            device=device,
            example_inputs=example_inputs,
            cuda_graph=cuda_graph,
            batches=batches,
        )
    )


def onnx_path(request: Request) -> Path:
    """Return the path of the file to run.

    Raises:
        MeasureError: the source is a module.
    """
    if not isinstance(request.source, (str, Path)):
        raise MeasureError(
            f"runtime {request.runtime!r} runs an ONNX file, got a {type(request.source).__name__}",
            hint="export it first: te.onnx_from_module(model, path, example_inputs)",
        )
    return Path(request.source)


def _module(request: Request) -> tuple[torch.nn.Module, Sequence[Array]]:
    """Return the module to run and its example inputs."""
    if isinstance(request.source, (str, Path)):
        raise MeasureError(
            f"runtime {request.runtime!r} runs an nn.Module, got the file {request.source}",
            hint="measure exported files with ort-cpu, ort-cuda or tensorrt",
        )
    if request.example_inputs is None:
        raise MeasureError(
            f"runtime {request.runtime!r} needs example_inputs: a module does not say which shapes and "
            "dtypes it takes",
            hint="pass example_inputs=(array,), one array [N, ...] per input",
        )
    _require_no_graph_choice(request)
    return request.source, request.example_inputs


def _require_no_graph_choice(request: Request) -> None:
    if request.cuda_graph is not None:
        raise MeasureError(
            f"runtime {request.runtime!r} leaves no choice of a CUDA graph, got {request.cuda_graph}",
            hint="ort-cuda and tensorrt leave it; torch with one is the runtime 'torch-cudagraph'",
        )
