"""An engine in memory, and its execution at one set of input shapes: buffers, stream, graph, clocks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ticket_export.errors import DeviceError, MeasureError, TicketExportError
from ticket_export.runtime import trt_cuda as cuda_library
from ticket_export.runtime.runner import Array, TensorSpec
from ticket_export.runtime.trt_cuda import Cuda, DeviceMemory, Event, Graph, PinnedArray, Stream
from ticket_export.runtime.trt_version import failure, forget_messages

# TensorRT's DataType by name; the types NumPy lacks (BF16, FP8, INT4, ...) are not inputs or outputs here
DTYPE_FROM_TENSORRT = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
Owned = TypeVar("Owned", DeviceMemory, PinnedArray, Stream, Graph, Event)
NO_GRAPH_HINT = "TensorRtRunner(path, cuda_graph=False) runs it without, for every subject of a comparison"


class Session:
    """A deserialised engine on one GPU.

    Args:
        trt: the module `tensorrt`.
        engine_bytes: a serialised engine that this TensorRT built for this GPU.
        cuda: the GPU.
        name: who owns it, for the text of errors.
        cuda_graph: whether timed inferences are launched as one graph.

    Raises:
        MeasureError: TensorRT does not take the bytes, or an input or output has a type NumPy lacks.
        DeviceError: the GPU has too little memory.
    """

    def __init__(
        self,
        trt: Any,  # Any: the module has no type information
        engine_bytes: bytes,
        cuda: Cuda,
        *,
        name: str,
        cuda_graph: bool = True,
    ) -> None:
        self.cuda_graph = cuda_graph
        self.name = name
        self.cuda = cuda
        self._trt = trt
        self.engine = _engine_from_bytes(engine_bytes, name)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {word: self.engine.get_tensor_mode(word) for word in names}
        self.input_specs = {w: self._spec(w) for w in names if modes[w] == trt.TensorIOMode.INPUT}
        self.output_specs = {w: self._spec(w) for w in names if modes[w] == trt.TensorIOMode.OUTPUT}
        self._executions: dict[tuple[tuple[tuple[int, ...], ...], int], Execution] = {}

    def execution(self, inputs: Mapping[str, Array], *, lane: int = 0) -> Execution:
        """Return what runs inputs of these shapes, made at the first call; each lane has its own stream.

        Raises:
            MeasureError: no optimisation profile of the engine covers the shapes.
            DeviceError: the GPU has too little memory.
        """
        shapes = {name: tuple(inputs[name].shape) for name in self.input_specs}
        key = (tuple(shapes.values()), lane)
        if key not in self._executions:
            profile = self.profile_for(shapes)
            self._executions[key] = Execution(self, shapes, profile, graph=self.cuda_graph)
        return self._executions[key]

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the index of the optimisation profile for the shapes, one tuned for exactly them first.

        Raises:
            MeasureError: none covers them.
        """
        covering = []
        for index in range(self.engine.num_optimization_profiles):
            limits = [self._limits(name, index) for name in shapes]
            inside = all(
                all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
                for (least, _, most), shape in zip(limits, shapes.values(), strict=True)
            )
            if inside:
                tuned = all(opt == shape for (_, opt, _), shape in zip(limits, shapes.values(), strict=True))
                covering.append((not tuned, index))
        if not covering:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise MeasureError(
                f"{self.name}: no optimisation profile covers {told}",
                hint="build the engine for this batch: te.engine_from_onnx(onnx, engine, batches=(1, 8))",
            )
        return min(covering)[1]

    def information(self) -> str:
        """Return what the engine inspector tells about the layers of every profile, as JSON text."""
        inspector = self.engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def profiled_execution(self, inputs: Mapping[str, Array]) -> tuple[Execution, Any]:  # Any: an IProfiler
        """Return an execution of its own, without a graph, and the IProfiler with its layers' `calls`."""
        base = self._trt.IProfiler

        class Profiler(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)
                self.calls: list[tuple[str, float]] = []

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.calls.append((layer_name, float(ms) / 1000.0))

        shapes = {name: tuple(inputs[name].shape) for name in self.input_specs}
        execution = Execution(self, shapes, self.profile_for(shapes), graph=False)
        execution.load(inputs)
        profiler = Profiler()
        execution.context.enqueue_emits_profile = False  # else the host waits for every layer
        execution.context.profiler = profiler
        return execution, profiler

    def drop_executions(self) -> None:
        """Free buffers, streams and contexts; a GPU that is lost has freed them already."""
        for execution in self._executions.values():
            with contextlib.suppress(DeviceError):
                execution.free()
        self._executions.clear()

    def close(self) -> None:
        """Free the engine and everything that belongs to it."""
        self.drop_executions()
        self.engine = None

    def _limits(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        least, opt, most = self.engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(opt), tuple(most)

    def _spec(self, name: str) -> TensorSpec:
        kind = self.engine.get_tensor_dtype(name).name
        if kind not in DTYPE_FROM_TENSORRT:
            known = ", ".join(DTYPE_FROM_TENSORRT)
            raise MeasureError(f"{self.name}: tensor {name!r} is {kind}, not one of {known}")
        shape = tuple(None if size < 0 else int(size) for size in self.engine.get_tensor_shape(name))
        return TensorSpec(name=name, dtype=DTYPE_FROM_TENSORRT[kind], shape=shape)


class Execution:
    """One engine at fixed input shapes: a context, a stream, pinned and device buffers, and the graph."""

    def __init__(
        self, session: Session, shapes: Mapping[str, tuple[int, ...]], profile: int, *, graph: bool
    ) -> None:
        self.name = session.name
        self._cuda = session.cuda
        self._owned: list[DeviceMemory | PinnedArray | Stream | Graph | Event] = []
        self._seen: Mapping[str, Array] | None = None
        self._graph: Graph | None = None
        try:
            self.stream = self._own(Stream(self._cuda))
            self._start, self._end = self._own(Event(self._cuda)), self._own(Event(self._cuda))
            self.context = self._new_context(session, shapes, profile)
            self._host: dict[str, PinnedArray] = {}
            self._device: dict[str, DeviceMemory] = {}
            for spec in (*session.input_specs.values(), *session.output_specs.values()):
                self._place(spec)
            self._output_names = list(session.output_specs)
            self._enqueue()  # TensorRT finishes a shape's set-up in its first run, which cannot be recorded
            self.stream.synchronize()
            if graph:
                self._graph = self._own(self._captured())
        except TicketExportError:
            with contextlib.suppress(DeviceError):
                self.free()
            raise

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, as arrays of their own."""
        self._seen = None
        self._upload(inputs)
        self._enqueue()
        self._download()
        self.stream.synchronize()
        return {name: self._host[name].array.copy() for name in self._output_names}

    def compute_seconds(self, inputs: Mapping[str, Array]) -> float:
        """Return the seconds of one inference by the device's events, without copies.

        An untimed inference is queued right before, so that the device is busy while the host queues the
        timed one: the events then lie around work alone, and not around the host's way to the device.
        Arrays that are the same objects as at the call before are not copied again.
        """
        if self._seen is None or any(self._seen[name] is not inputs[name] for name in self._seen):
            self._upload(inputs)
            self.stream.synchronize()
            self._seen = dict(inputs)
        self.launch()
        self._start.record(self.stream)
        self.launch()
        self._end.record(self.stream)
        self._end.synchronize()
        return self._end.seconds_since(self._start)

    def end_to_end_seconds(self, inputs: Mapping[str, Array]) -> float:
        """Return the seconds from NumPy arrays to NumPy arrays by the host's clock, through pinned ones."""
        self._seen = None
        self.stream.synchronize()
        start = time.perf_counter()
        self._upload(inputs)
        self.launch()
        self._download()
        self.stream.synchronize()
        for name in self._output_names:
            self._host[name].array.copy()
        return time.perf_counter() - start

    def load(self, inputs: Mapping[str, Array]) -> None:
        """Place inputs on the device for `launch`."""
        self._seen = None
        self._upload(inputs)
        self.stream.synchronize()

    def launch(self) -> None:
        """Queue one inference on what lies in the buffers, as a graph if there is one."""
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self._enqueue()

    def layer_calls(self, profiler: Any) -> list[tuple[str, float]]:  # Any: an IProfiler
        """Return (layer, seconds) of one inference of a profiled execution, in the order of execution."""
        profiler.calls.clear()
        self._enqueue()
        self.stream.synchronize()
        if not self.context.report_to_profiler():
            raise failure(f"{self.name}: TensorRT cannot profile the layers")
        return list(profiler.calls)

    def free(self) -> None:
        """Destroy graph, events, stream and buffers."""
        self.context = None
        while self._owned:
            self._owned.pop().free()

    def _own(self, thing: Owned) -> Owned:
        self._owned.append(thing)
        return thing

    def _new_context(self, session: Session, shapes: Mapping[str, tuple[int, ...]], profile: int) -> Any:
        forget_messages()
        context = session.engine.create_execution_context()
        if context is None:
            raise failure(f"{self.name}: TensorRT cannot make an execution context")
        if not context.set_optimization_profile_async(profile, self.stream.handle):
            raise failure(f"{self.name}: TensorRT refuses optimisation profile {profile}")
        self.stream.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise failure(f"{self.name}: TensorRT refuses input {name!r} of shape {list(shape)}")
        return context

    def _place(self, spec: TensorSpec) -> None:
        """Give one input or output its pinned and its device buffer."""
        shape = tuple(int(size) for size in self.context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise MeasureError(f"{self.name}: the shape of {spec.name!r} depends on the data: {list(shape)}")
        host = self._own(PinnedArray(self._cuda, shape, np.dtype(spec.dtype)))
        device = self._own(DeviceMemory(self._cuda, host.array.nbytes))
        self._host[spec.name], self._device[spec.name] = host, device
        if not self.context.set_tensor_address(spec.name, device.address):
            raise failure(f"{self.name}: TensorRT refuses the buffer of {spec.name!r}")

    def _captured(self) -> Graph:
        self.stream.begin_capture()
        problem: TicketExportError | None = None
        graph: Graph | None = None
        try:
            self._enqueue()
        except MeasureError as error:
            problem = error
        try:  # always ended: a stream left capturing would refuse everything after
            graph = self.stream.end_capture()
        except DeviceError as error:
            problem = problem or error
        if problem is None and graph is not None:
            return graph
        if graph is not None:
            graph.free()
        told = "nothing was recorded" if problem is None else problem.message
        raise MeasureError(
            f"{self.name}: cannot be recorded as a CUDA graph: {told}", hint=NO_GRAPH_HINT
        ) from problem

    def _enqueue(self) -> None:
        forget_messages()
        if not self.context.execute_async_v3(self.stream.handle):
            raise failure(f"{self.name}: TensorRT cannot run the engine")

    def _upload(self, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            host, device = self._host[name], self._device[name]
            np.copyto(host.array, array, casting="no")
            self.stream.copy(
                target=device.address,
                source=host.address,
                num_bytes=device.num_bytes,
                kind=cuda_library.HOST_TO_DEVICE,
            )

    def _download(self) -> None:
        for name in self._output_names:
            host, device = self._host[name], self._device[name]
            self.stream.copy(
                target=host.address,
                source=device.address,
                num_bytes=device.num_bytes,
                kind=cuda_library.DEVICE_TO_HOST,
            )


def throughput_seconds(executions: Sequence[Execution], *, num_inferences: int) -> float:
    """Return the seconds of `num_inferences` inferences that take turns on the executions' streams."""
    for execution in executions:
        execution.stream.synchronize()
    start = time.perf_counter()
    for index in range(num_inferences):
        executions[index % len(executions)].launch()
    for execution in executions:
        execution.stream.synchronize()
    return time.perf_counter() - start


def _engine_from_bytes(engine_bytes: bytes, name: str) -> Any:  # Any: TensorRT's objects have no types
    from polygraphy.backend.trt import engine_from_bytes

    forget_messages()
    try:
        return engine_from_bytes(engine_bytes)
    except Exception as error:  # Polygraphy's own, or pybind11's TypeError where CUDA makes no runtime
        raise failure(f"{name}: TensorRT cannot load the engine", hint="build it again") from error
