"""Layer times of eager torch: torch's own profiler, with every leaf module named.

A module's time is that of all kernels started inside it: the device's on a GPU, the operators' on a CPU.
Operators outside any leaf module, such as the addition of two streams, appear under their own names.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ticket_export.errors import MeasureError
from ticket_export.runtime.layers import LayerCost, LayerProfile, LayerTime, NetworkCosts, calm_s
from ticket_export.runtime.runner import Array

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

_OURS = "ticket_export."
_WHOLE = f"{_OURS}inference"
_LAYER = f"{_OURS}layer "
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ModuleProfiler:
    """A copy of a module whose leaves tell the profiler their names.

    Args:
        module: run in eval mode, without gradients; it is not changed.
        inputs: one array [N, ...] per input.
        threads: intra-op threads on a CPU.
        device: as torch names it; None is the CPU.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Array], *, threads: int = 1, device: str | None = None
    ) -> None:
        self._device = torch.device(device or "cpu")
        self._module = copy.deepcopy(module).eval().to(self._device)
        self._op_by_name: dict[str, str] = {}
        for name, leaf in _leaves(self._module):
            self._op_by_name[name] = type(leaf).__name__
            _tell_profiler(leaf, name)
        dtype = next((p.dtype for p in self._module.parameters() if p.is_floating_point()), torch.float32)
        self._inputs = [_on(self._device, dtype, array) for array in inputs]
        self._threads = threads
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes to stderr by itself
        self._runs: list[tuple[float, dict[tuple[str, str], float]]] = []

    def run(self, times: int) -> None:
        """Run the module `times` times under the profiler."""
        on_gpu = self._device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU]
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with (
            torch.inference_mode(),
            _threads(self._threads),
            torch.profiler.profile(activities=activities) as told,
        ):
            for _ in range(times):
                with torch.profiler.record_function(_WHOLE):
                    self._module(*self._inputs)
                if on_gpu:
                    torch.cuda.synchronize(self._device)
        wholes = [
            event for event in told.events() if event.name == _WHOLE and event.device_type.name == "CPU"
        ]
        self._runs += [_layers_of_run(whole, on_gpu=on_gpu) for whole in wholes]

    def finish(self, skipped_runs: int) -> LayerProfile:
        """Return the time of every leaf module and of every operator outside of them.

        Raises:
            MeasureError: the profiler saw no kernel.
        """
        runs = self._runs[skipped_runs:]
        places = dict.fromkeys(place for _, layers in runs for place in layers)
        if not any(sum(layers.values()) for _, layers in runs):
            raise MeasureError(f"torch: the profiler saw no kernels on {self._device}")
        layers = tuple(
            LayerTime(
                name=name,
                op=self._op_by_name.get(name, op),
                seconds=calm_s([layers.get((name, op), 0.0) for _, layers in runs]),
            )
            for name, op in places
        )
        between_s = [whole_s - sum(layers.values()) for whole_s, layers in runs]
        return LayerProfile(
            layers=layers,
            # on a GPU the host's range ends before the kernels do: only the measured latency tells
            between_s=None if self._device.type == "cuda" else max(0.0, calm_s(between_s)),
            num_runs=len(runs),
        )

    def close(self) -> None:
        """Free the copy of the module."""
        del self._module


def costs_of_module(module: nn.Module, inputs: Sequence[Array]) -> NetworkCosts:
    """Return MACs, bytes and widths of every convolution and linear layer, by one run on the CPU.

    Args:
        module: not changed.
        inputs: one array [N, ...] per input; the costs are for this N.
    """
    own = copy.deepcopy(module).eval().cpu().float()
    layers: list[LayerCost] = []

    def note(name: str, leaf: nn.Module, given: Tensor, got: Tensor) -> None:
        weight = leaf.weight
        assert isinstance(weight, Tensor)
        kernel = math.prod(weight.shape[1:])
        axis = 1 if isinstance(leaf, _CONVOLUTIONS) else -1
        layers.append(
            LayerCost(
                name=name,
                op=type(leaf).__name__,
                macs=got.numel() * kernel,
                num_bytes=(given.numel() + weight.numel() + got.numel()) * 4,
                width_in=given.shape[axis],
                width_out=got.shape[axis],
                depthwise=axis == 1 and getattr(leaf, "groups", 1) == given.shape[1] > 1,
            )
        )

    for name, leaf in _leaves(own):
        if isinstance(leaf, (*_CONVOLUTIONS, nn.Linear)):
            leaf.register_forward_hook(lambda one, given, got, name=name: note(name, one, given[0], got))
    with torch.inference_mode():
        own(*(_on(torch.device("cpu"), torch.float32, array) for array in inputs))
    names = {layer.name: layer.name for layer in layers}
    return NetworkCosts(layers=tuple(layers), layer_by_node=names, fused_by_node={})


def _leaves(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, leaf) for name, leaf in module.named_modules() if not list(leaf.children()) and name]


def _tell_profiler(leaf: nn.Module, name: str) -> None:
    """Open a named range around every call of the leaf."""
    ranges: list[Any] = []  # Any: torch's record_function has no public type to hold it open

    def before(_module: nn.Module, _given: object) -> None:
        ranges.append(torch.profiler.record_function(f"{_LAYER}{name}"))
        ranges[-1].__enter__()

    def after(_module: nn.Module, _given: object, _got: object) -> None:
        ranges.pop().__exit__(None, None, None)

    leaf.register_forward_pre_hook(before)
    leaf.register_forward_hook(after)


def _layers_of_run(whole: FunctionEvent, *, on_gpu: bool) -> tuple[float, dict[tuple[str, str], float]]:
    """Return the seconds of a whole inference and of each layer in it."""
    seconds = _kernel_s if on_gpu else _host_s
    found: dict[tuple[str, str], float] = {}
    for child in whole.cpu_children:
        name = child.name.removeprefix(_LAYER)
        place = (name, name if child.name == name else "")
        found[place] = found.get(place, 0.0) + seconds(child)
    return seconds(whole), found


def _host_s(event: FunctionEvent) -> float:
    return float(event.cpu_time_total) / 1e6


def _kernel_s(event: FunctionEvent) -> float:
    """Return the device seconds of all kernels started within an event.

    The ranges themselves also appear on the device, and would count their kernels twice.
    """
    own = 0.0 if event.name.startswith(_OURS) else sum(kernel.duration for kernel in event.kernels) / 1e6
    return float(own + sum(_kernel_s(child) for child in event.cpu_children))


def _on(device: torch.device, dtype: torch.dtype, array: Array) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
