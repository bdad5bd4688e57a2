"""onnxruntime as it is beside a GPU, on a machine without one: real sessions on the CPU in CUDA's clothes.

Every call that the runner makes is written down, and answered by a real session on the CPU wherever numbers
are asked for; what only the device does (placing nodes, running out of memory) is scripted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Value:
    """An OrtValue: an array that lies on a device."""

    def __init__(self, array: np.ndarray, device: str, index: int) -> None:
        self.array, self.device, self.index = array, device, index

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        assert array.dtype == self.array.dtype
        assert array.flags.c_contiguous
        np.copyto(self.array, array)

    def numpy(self) -> np.ndarray:
        return self.array.copy()


class ValueClass:
    @staticmethod
    def ortvalue_from_numpy(array: np.ndarray, device: str = "cpu", index: int = 0) -> Value:
        return Value(array.copy(), device, index)


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class Binding:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value | tuple[str, int]] = {}  # a tuple: the session allocates there

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str = "cpu", index: int = 0) -> None:
        self.outputs[name] = (device, index)

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()

    def get_outputs(self) -> list[Value]:
        return [value for value in self.outputs.values() if isinstance(value, Value)]


class Session:
    """A session: on the CPU behind the curtain, with a profile and failures as the script says."""

    def __init__(
        self, world: ScriptedOrt, path: str, options: Any, providers: Any, enable_fallback: int
    ) -> None:
        assert enable_fallback == 0
        ((provider, self.provider_options),) = providers
        assert provider == CUDA
        if world.open_error is not None:
            raise world.open_error
        self.world = world
        self.profile_prefix = options.profile_file_prefix if options.enable_profiling else None
        options.enable_profiling = False
        self.real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        self.runs: list[tuple[str, str | None]] = []  # (what, graph id)
        self.graphs: dict[str, tuple[list[int], list[int]]] = {}  # addresses by graph id
        world.sessions.append(self)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU] if self.world.cuda_starts else [CPU]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> Binding:
        return Binding(self)

    def run(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.runs.append(("run", None))
        return self.real.run(names, dict(feed))

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        assert binding.session is self
        graph_id = options.entries.get("gpu_graph_id")
        self.runs.append(("run_with_iobinding", graph_id))
        if self.world.run_error is not None:
            raise self.world.run_error
        assert all((value.device, value.index) == ("cuda", self.index) for value in binding.inputs.values())
        feed = {name: value.array for name, value in binding.inputs.items()}
        results = self.real.run(list(binding.outputs), feed)
        for (name, bound), result in zip(list(binding.outputs.items()), results, strict=True):
            if isinstance(bound, Value):
                np.copyto(bound.array, result)
            else:
                assert bound == ("cuda", self.index)
                binding.outputs[name] = Value(result, *bound)
        if self.provider_options["enable_cuda_graph"] == "1" and graph_id != "-1":
            self._replay(graph_id, binding)

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        del self.graphs[str(graph_annotation_id)]

    def end_profiling(self) -> str:
        path = Path(f"{self.profile_prefix}_now.json")
        path.write_text(json.dumps(self.world.profile), encoding="utf-8")
        return str(path)

    @property
    def index(self) -> int:
        return int(self.provider_options["device_id"])

    def _replay(self, graph_id: str | None, binding: Binding) -> None:
        """A graph reads and writes where its buffers lay when it was captured, and nowhere else."""
        assert graph_id is not None
        assert graph_id != "0"  # kept by ONNX Runtime for itself
        addresses = [
            [value.array.ctypes.data for value in values if isinstance(value, Value)]
            for values in (binding.inputs.values(), binding.outputs.values())
        ]
        captured = self.graphs.setdefault(graph_id, (addresses[0], addresses[1]))
        assert captured == (addresses[0], addresses[1])


class ScriptedOrt:
    """The onnxruntime module."""

    __version__ = "1.99"
    OrtValue = ValueClass
    RunOptions = RunOptions
    SessionOptions = onnxruntime.SessionOptions
    ExecutionMode = onnxruntime.ExecutionMode
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.providers = [CUDA, CPU]
        self.cuda_starts = True
        self.open_error: Exception | None = None
        self.run_error: Exception | None = None
        self.num_preloads = 0
        self.profile: list[dict[str, Any]] = []

    def get_available_providers(self) -> list[str]:
        return self.providers

    def preload_dlls(self) -> None:
        self.num_preloads += 1
        print("Failed to load libcudnn.so.9")  # as the real one does, into the data on stdout

    @property
    def InferenceSession(self) -> Callable[..., Session]:  # noqa: N802 - onnxruntime's own name
        def opened(path: str, options: Any, *, providers: Any, enable_fallback: int) -> Session:
            return Session(self, path, options, providers, enable_fallback)

        return opened


def node_event(name: str, op: str, provider: str, **outputs: list[int]) -> dict[str, Any]:
    """One node of a profile, as ONNX Runtime 1.31 writes it."""
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": 10,
        "args": {
            "op_name": op,
            "provider": provider,
            "output_type_shape": [{kind: shape} for kind, shape in outputs.items()],
        },
    }
