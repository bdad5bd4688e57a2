"""torch: the module itself, as the source that exported files are compared with, in one of its forms.

It owns a copy in eval mode, so the caller's module is never changed. What runs is a form of that copy: eager,
compiled (torch_compile.py) or captured as a CUDA graph (torch_cudagraph.py). All forms run under the same
settings, which are stated:

- layout: channels_last on a GPU, where cuDNN's tensor-core kernels read it and would otherwise transpose
  every convolution's operands; contiguous on a CPU, where oneDNN lays tensors out as it likes.
- tf32, on a GPU in fp32: as the process has set torch; as torch ships, on for convolutions and off for other
  products (ONNX Runtime and TensorRT have it on for both).
- conv_search: on a GPU cuDNN tries its algorithms in the first run at a shape (`cudnn.benchmark`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from types import TracebackType
from typing import ClassVar, Protocol, Self, TypeAlias

import torch

from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.runtime.failures import error_from_failure
from ticket_export.runtime.offers import CUDA_TORCH
from ticket_export.runtime.runner import Array, TensorSpec, require_inputs, require_scope, require_threads

PRECISION_FROM_DTYPE = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
}

Outputs: TypeAlias = torch.Tensor | Sequence[torch.Tensor]


class Form(Protocol):
    """How a module is executed."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What the form adds to the settings that all torch runners share."""

    def ready(self, arguments: list[torch.Tensor]) -> Callable[[], Outputs]:
        """Return what runs the module on `arguments`; what a first run at a shape needs is done."""

    def renew(self) -> None:
        """Follow the module's weights to new places in memory."""


class Eager:
    """The module as it is."""

    settings: ClassVar[Mapping[str, str]] = {}

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self._module = module

    def ready(self, arguments: list[torch.Tensor]) -> Callable[[], Outputs]:
        """Return a call of the module."""
        return partial(self._module, *arguments)

    def renew(self) -> None:
        """Pass: the module looks its weights up in every call."""


class TorchRunner:
    """An nn.Module in eval mode on one device, without gradients.

    Args:
        module: copied; every floating parameter of one dtype.
        example_inputs: one array [N, ...] per input.
        threads: CPU threads of one inference.
        device: "cpu", "cuda:0", ...; None is the CPU.
        name: the runtime's registered name.
        form: how the module is executed.

    Raises:
        MeasureError: parameters of several or unknown dtypes.
        MissingDependency: torch sees no such device.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        example_inputs: Sequence[Array],
        threads: int = 1,
        device: str | None = None,
        name: str = "torch",
        form: Callable[[torch.nn.Module, torch.device], Form] = Eager,
    ) -> None:
        require_threads(threads)
        self.name = name
        self.threads = threads
        self.device = "cpu" if device is None else device
        self._device = torch.device(self.device)
        self._on_gpu = self._device.type == "cuda"
        _require_device(name, self._device)
        self._module = copy.deepcopy(module).eval().to(self._device)
        self._layout = torch.channels_last if self._on_gpu else torch.contiguous_format
        self._module.to(memory_format=self._layout)  # type: ignore[call-overload]  # its stub wants a dtype too
        self._dtype, self.precision = _precision(self._module)
        self._form = form(self._module, self._device)
        self.settings = {**_settings(self._device, self.precision), **self._form.settings}
        names = input_names(len(example_inputs))
        self.input_specs = {
            name: TensorSpec(name=name, dtype=array.dtype.name, shape=(None, *array.shape[1:]))
            for name, array in zip(names, example_inputs, strict=True)
        }
        self._example_inputs = dict(zip(names, example_inputs, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._module, self._form

    @cached_property
    def output_specs(self) -> dict[str, TensorSpec]:
        """The outputs, as the module answers the example inputs; the batch is axis 0 where it is as long."""
        num_images = len(next(iter(self._example_inputs.values())))
        specs = {}
        for name, array in self.infer(self._example_inputs).items():
            batch = (None,) if array.shape[:1] == (num_images,) else array.shape[:1]
            specs[name] = TensorSpec(name=name, dtype=array.dtype.name, shape=(*batch, *array.shape[1:]))
        return specs

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name: "logits" for one output, else "output_0", "output_1", ...

        Raises:
            MeasureError: the inputs do not fit the specs, or the module fails on them.
            DeviceError: the device is out of memory or fails.
        """
        require_inputs(self.name, self.input_specs, inputs)
        with self._running(inputs):
            return self._host_outputs(self._form.ready(self._on_device(inputs))())

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the seconds of one inference: the host's clock on a CPU, device events on a GPU.

        A first run at a shape, which compiles, captures or searches, happens before the clock starts.

        Raises:
            MeasureError: unknown scope, the inputs do not fit, or the module fails on them.
            DeviceError: the device is out of memory or fails.
        """
        require_scope(scope)
        require_inputs(self.name, self.input_specs, inputs)
        with self._running(inputs):
            run = self._form.ready(self._on_device(inputs))
            if scope == "end_to_end":
                start = time.perf_counter()
                # the copy back to the host waits for the device
                self._host_outputs(self._form.ready(self._on_device(inputs))())
                return time.perf_counter() - start
            if self._on_gpu:
                return _seconds_by_events(run)
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

    def renew(self) -> None:
        """Copy every weight to another place in memory."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        copies = [tensor.data.clone() for tensor in tensors]  # all before the first old one is given up
        for tensor, placed in zip(tensors, copies, strict=True):
            tensor.data = placed
        self._form.renew()

    @contextmanager
    def _running(self, inputs: Mapping[str, Array]) -> Iterator[None]:
        """Run under the runner's settings, and turn torch's errors into the project's own."""
        try:
            with torch.inference_mode(), _threads(self.threads), _gpu_settings(self._device):
                yield
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # torch's errors for memory and devices are RuntimeErrors
            raise error_from_failure(self.name, error, inputs) from error

    def _on_device(self, inputs: Mapping[str, Array]) -> list[torch.Tensor]:
        """Return the inputs where the module is, floating ones in its dtype: NumPy has no bfloat16."""
        return [self._placed(torch.from_numpy(inputs[name])) for name in self.input_specs]

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        layout = self._layout if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(self._device, dtype).contiguous(memory_format=layout)

    @staticmethod
    def _host_outputs(outputs: Outputs) -> dict[str, Array]:
        tensors = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        arrays = [
            (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy() for tensor in tensors
        ]
        return dict(zip(output_names(len(arrays)), arrays, strict=True))


def input_names(count: int) -> list[str]:
    """Return the inputs' names in torch runners and exported files: "input", or "input_0", "input_1", ..."""
    return ["input"] if count == 1 else [f"input_{index}" for index in range(count)]


def output_names(count: int) -> list[str]:
    """Return the outputs' names in torch runners and exported files: "logits", or "output_0", ..."""
    return ["logits"] if count == 1 else [f"output_{index}" for index in range(count)]


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Run with `threads` intra-op threads; the setting is process-wide, so it is put back."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


@contextmanager
def _gpu_settings(device: torch.device) -> Iterator[None]:
    """Run on `device` with cuDNN's search on; it is process-wide, so it is put back."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def _settings(device: torch.device, precision: str) -> dict[str, str]:
    if device.type != "cuda":
        return {"layout": "contiguous"}
    told = {"layout": "channels_last", "conv_search": "cudnn.benchmark"}
    if precision == "fp32":
        places = {
            "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]  # made at import
            "products": torch.backends.cuda.matmul.fp32_precision,
        }
        on = [place for place, word in places.items() if word == "tf32"]
        told["tf32"] = f"on for {' and '.join(on)}" if on else "off"
    return told


def _require_device(name: str, device: torch.device) -> None:
    if device.type != "cuda":
        return
    if torch.cuda.is_available() and (device.index or 0) >= torch.cuda.device_count():
        raise MissingDependency(
            f"runtime {name!r}: {device} is not one of the {torch.cuda.device_count()} CUDA devices here",
            hint="name one that nvidia-smi lists",
        )
    if not torch.cuda.is_available():
        raise MissingDependency(
            f"runtime {name!r}: torch {torch.__version__} sees no CUDA device",
            hint=f"look at nvidia-smi; if it shows one: {CUDA_TORCH}",
        )


def _seconds_by_events(run: Callable[[], Outputs]) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()  # the copies of the inputs are over before the clock starts
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000.0


def _precision(module: torch.nn.Module) -> tuple[torch.dtype, str]:
    """Return the dtype of all floating parameters, and its word; fp32 for a module without any."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if not dtypes:
        return torch.float32, "fp32"
    if len(dtypes) > 1:
        raise MeasureError(f"torch: parameters have several dtypes: {sorted(map(str, dtypes))}")
    (dtype,) = dtypes
    if dtype not in PRECISION_FROM_DTYPE:
        known = ", ".join(map(str, PRECISION_FROM_DTYPE))
        raise MeasureError(f"torch: parameters are {dtype}, not one of {known}")
    return dtype, PRECISION_FROM_DTYPE[dtype]
