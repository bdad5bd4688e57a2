"""A CUDA runtime library without a GPU: device memory is host memory, and time passes as a script says.

It takes the same ctypes arguments as the real library and checks them as far as it can: unknown handles,
freed memory and copies beyond a buffer are errors. Work is done when it is queued, or recorded while a stream
captures.
"""
# ruff: noqa: N802 - the functions have the library's names

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

INVALID_VALUE, OUT_OF_MEMORY, CAPTURE_UNSUPPORTED = 1, 2, 900
ERROR_NAMES = {
    1: ("cudaErrorInvalidValue", "invalid argument"),
    2: ("cudaErrorMemoryAllocation", "out of memory"),
    35: ("cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    101: ("cudaErrorInvalidDevice", "invalid device ordinal"),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    900: ("cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"),
}


class ScriptedCuda:
    """Looks like `ctypes.CDLL("libcudart.so")` of one GPU.

    Attributes:
        clock_s: what the device's clock shows; work that a script gives a duration moves it on.
        launch_gap_s: how long the host takes to bring work to an idle device.
        fail: function name -> status that its next calls return.
        memory_limit: bytes of device memory.
    """

    def __init__(self, *, name: str = "Scripted GPU", sm: tuple[int, int] = (9, 0)) -> None:
        self.name, self.sm = name, sm
        self.driver_version, self.runtime_version = 12080, 12060
        self.num_devices = 1
        self.clock_s = 100.0
        self.fail: dict[str, int] = {}
        self.memory_limit = 1 << 30
        self.calls: list[str] = []
        self.live: dict[int, str] = {}  # handle -> kind; empty when everything was freed
        self.buffers: dict[int, ctypes.Array[ctypes.c_byte]] = {}
        self.sizes: dict[int, int] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.moments_s: dict[int, float] = {}
        self._next_handle = 0x1000
        for function, words in (("cudaGetErrorName", 0), ("cudaGetErrorString", 1)):
            setattr(self, function, _Text(words))

    def __getattr__(self, function: str) -> Callable[..., int]:
        body = getattr(type(self), f"_{function}", None)
        if body is None:
            raise AttributeError(function)

        def call(*arguments: Any) -> int:
            self.calls.append(function)
            if function in self.fail:
                return self.fail[function]
            return int(body(self, *arguments) or 0)

        return call

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        """Do work on a stream now, or record it."""
        assert self.live[stream] == "stream"
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()

    def array(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
        """Return the device memory at an address as an array that shares it."""
        kind = np.dtype(dtype)
        num_bytes = int(np.prod(shape)) * kind.itemsize
        assert num_bytes <= self.sizes[address], "beyond the buffer"
        return np.frombuffer(self.buffers[address], dtype=kind, count=int(np.prod(shape))).reshape(shape)

    def _new(self, kind: str) -> int:
        self._next_handle += 16
        self.live[self._next_handle] = kind
        return self._next_handle

    def _allocate(self, pointer: Any, size: ctypes.c_size_t, kind: str) -> int:
        held = sum(num_bytes for address, num_bytes in self.sizes.items() if self.live[address] == "device")
        if kind == "device" and held + size.value > self.memory_limit:
            return OUT_OF_MEMORY
        buffer = (ctypes.c_byte * size.value)()
        address = ctypes.addressof(buffer)
        self.buffers[address], self.sizes[address], self.live[address] = buffer, size.value, kind
        pointer._obj.value = address
        return 0

    def _release(self, handle: ctypes.c_void_p, kind: str) -> int:
        assert handle.value is not None
        if self.live.get(handle.value) != kind:
            return INVALID_VALUE
        del self.live[handle.value]
        self.buffers.pop(handle.value, None)
        self.sizes.pop(handle.value, None)
        return 0

    def _cudaGetDeviceCount(self, count: Any) -> None:
        count._obj.value = self.num_devices

    def _cudaSetDevice(self, index: ctypes.c_int) -> int:
        return 0 if 0 <= index.value < self.num_devices else 101

    def _cudaDeviceGetAttribute(self, value: Any, attribute: ctypes.c_int, device: ctypes.c_int) -> None:
        value._obj.value = {75: self.sm[0], 76: self.sm[1]}[attribute.value]

    def _cudaGetDeviceProperties(self, properties: Any, device: ctypes.c_int) -> None:
        assert len(properties) > 2048
        properties.value = self.name.encode()

    def _cudaDriverGetVersion(self, version: Any) -> None:
        version._obj.value = self.driver_version

    def _cudaRuntimeGetVersion(self, version: Any) -> None:
        version._obj.value = self.runtime_version

    def _cudaGetLastError(self) -> int:
        return 0

    def _cudaMalloc(self, pointer: Any, size: ctypes.c_size_t) -> int:
        return self._allocate(pointer, size, "device")

    def _cudaFree(self, pointer: ctypes.c_void_p) -> int:
        return self._release(pointer, "device")

    def _cudaHostAlloc(self, pointer: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:
        return self._allocate(pointer, size, "pinned")

    def _cudaFreeHost(self, pointer: ctypes.c_void_p) -> int:
        return self._release(pointer, "pinned")

    def _cudaStreamCreateWithFlags(self, pointer: Any, flags: ctypes.c_uint) -> None:
        assert flags.value == 1
        pointer._obj.value = self._new("stream")

    def _cudaStreamDestroy(self, stream: ctypes.c_void_p) -> int:
        return self._release(stream, "stream")

    def _cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        assert self.live[stream.value or 0] == "stream"
        return CAPTURE_UNSUPPORTED if stream.value in self.capturing else 0

    def _cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:
        ends = {1: ("device", "pinned"), 2: ("pinned", "device")}[kind.value]
        if (self.live.get(target.value), self.live.get(source.value)) != ends:
            return INVALID_VALUE
        assert size.value <= min(self.sizes[target.value], self.sizes[source.value])
        self.queue(stream.value, lambda: _copy(target.value, source.value, size.value))
        return 0

    def _cudaStreamBeginCapture(self, stream: ctypes.c_void_p, mode: ctypes.c_int) -> None:
        assert mode.value == 1
        self.capturing[stream.value or 0] = []

    def _cudaStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> None:
        graph._obj.value = self._new("graph")
        self.graphs[graph._obj.value] = self.capturing.pop(stream.value or 0)

    def _cudaGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: ctypes.c_ulonglong) -> None:
        assert flags.value == 0
        executable._obj.value = self._new("executable")
        self.graphs[executable._obj.value] = self.graphs[graph.value]

    def _cudaGraphDestroy(self, graph: ctypes.c_void_p) -> int:
        return self._release(graph, "graph")

    def _cudaGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:
        return self._release(executable, "executable")

    def _cudaGraphLaunch(self, executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        assert self.live[executable.value or 0] == "executable"
        for work in self.graphs[executable.value or 0]:
            self.queue(stream.value or 0, work)

    def _cudaEventCreate(self, pointer: Any) -> None:
        pointer._obj.value = self._new("event")

    def _cudaEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        self.queue(stream.value or 0, lambda: self.moments_s.update({event.value or 0: self.clock_s}))

    def _cudaEventSynchronize(self, event: ctypes.c_void_p) -> int:
        return 0 if event.value in self.moments_s else INVALID_VALUE

    def _cudaEventElapsedTime(self, milliseconds: Any, start: Any, end: Any) -> None:
        milliseconds._obj.value = 1000.0 * (self.moments_s[end.value] - self.moments_s[start.value])

    def _cudaEventDestroy(self, event: ctypes.c_void_p) -> int:
        return self._release(event, "event")


class _Text:
    """cudaGetErrorName or cudaGetErrorString, whose result type the caller has to set."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.restype: Any = ctypes.c_int

    def __call__(self, status: ctypes.c_int) -> Any:
        assert self.restype is ctypes.c_char_p
        return ERROR_NAMES[status.value][self.index].encode()


def _copy(target: int, source: int, num_bytes: int) -> None:
    ctypes.memmove(target, source, num_bytes)
