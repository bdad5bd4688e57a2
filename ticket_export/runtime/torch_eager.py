"""torch, eager: the module itself, as the source that exported files are compared with.

The only runtime that imports torch. It owns a copy in eval mode, so the caller's module is never changed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Self

import torch

from ticket_export.errors import MeasureError
from ticket_export.runtime.runner import Array, TensorSpec, require_inputs, require_scope, require_threads

PRECISION_FROM_DTYPE = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
}


class TorchRunner:
    """An nn.Module in eval mode on one device, without gradients."""

    name = "torch"

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        example_inputs: Sequence[Array],
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        require_threads(threads)
        self.threads = threads
        self.settings: dict[str, str] = {}
        self.device = "cpu" if device is None else device
        self._device = torch.device(self.device)
        self._module = copy.deepcopy(module).eval().to(self._device)
        self._dtype, self.precision = _precision(self._module)
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
        del self._module

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
            MeasureError: the inputs do not fit the specs.
        """
        require_inputs("torch", self.input_specs, inputs)
        with torch.inference_mode(), _threads(self.threads):
            return self._host_outputs(self._module(*self._on_device(inputs)))

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the seconds of one inference: the host's clock on a CPU, device events on a GPU.

        Raises:
            MeasureError: unknown scope, or the inputs do not fit.
        """
        require_scope(scope)
        require_inputs("torch", self.input_specs, inputs)
        with torch.inference_mode(), _threads(self.threads):
            if scope == "end_to_end":
                start = time.perf_counter()
                # the copy back to the host waits for the device
                self._host_outputs(self._module(*self._on_device(inputs)))
                return time.perf_counter() - start
            arguments = self._on_device(inputs)
            if self._device.type == "cuda":
                return _seconds_by_events(self._module, arguments)
            start = time.perf_counter()
            self._module(*arguments)
            return time.perf_counter() - start

    def renew(self) -> None:
        """Copy the module, so that its weights lie elsewhere in memory."""
        self._module = copy.deepcopy(self._module)

    def _on_device(self, inputs: Mapping[str, Array]) -> list[torch.Tensor]:
        """Return the inputs where the module is, floating ones in its dtype: NumPy has no bfloat16."""
        tensors = [torch.from_numpy(inputs[name]) for name in self.input_specs]
        return [
            tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)
            for tensor in tensors
        ]

    @staticmethod
    def _host_outputs(outputs: torch.Tensor | Sequence[torch.Tensor]) -> dict[str, Array]:
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


def _seconds_by_events(module: torch.nn.Module, arguments: list[torch.Tensor]) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()  # the copies of the inputs are over before the clock starts
    start.record()
    module(*arguments)
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
