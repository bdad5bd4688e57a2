"""The CUDA runtime library by ctypes: memory, streams, events and graphs without torch.

Polygraphy's own wrapper has no events, graphs or pinned memory, does not look where CUDA 13's wheels put the
library, and tells a failed call as a number. Signatures: docs.nvidia.com/cuda/cuda-runtime-api. Only what
CUDA 11.4, 12 and 13 share is called; `cudaGraphInstantiate` changed its arguments in 12, so it is not.
"""

from __future__ import annotations

import ctypes
import functools
import re
import site
import sys
from ctypes import byref, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ticket_export.errors import DeviceError, MeasureError, MissingDependency
from ticket_export.runtime.runner import Array

# cudaError_t of driver_types.h
OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE, INVALID_DEVICE = 2, 35, 100, 101
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76  # cudaDeviceAttr
NON_BLOCKING = 1  # cudaStreamNonBlocking: does not wait for the legacy stream, which other libraries may use
CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal, as trtexec captures
PROPERTIES_BYTES = 8192  # larger than cudaDeviceProp of any version; the name is its first 256 bytes
LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
INSTALL_HINT = "pip install nvidia-cuda-runtime-cu12, or put the folder of libcudart.so on LD_LIBRARY_PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Which GPU an engine was built for or is to run on.

    Attributes:
        name: the product's name, e.g. "NVIDIA H200".
        sm: its compute capability as "sm90".
        driver: version of the kernel driver, None where the system does not tell.
        cuda_driver: newest CUDA version the driver knows, e.g. "12.8".
        cuda_runtime: version of the CUDA runtime library in use.
    """

    name: str
    sm: str
    driver: str | None
    cuda_driver: str
    cuda_runtime: str


class Cuda:
    """The CUDA runtime with one GPU as the current device of this thread.

    Args:
        index: which GPU, from 0.

    Raises:
        MissingDependency: no CUDA runtime library, no GPU, or a driver too old for the library.
        MeasureError: no GPU with that index.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._library = _cudart()
        self.call("cudaSetDevice", c_int(index))

    def call(self, function: str, *arguments: Any) -> None:  # Any: ctypes values and references
        """Call a function of the library; on return it has succeeded.

        Raises:
            DeviceError: memory ran out, or the device refused the call or is lost.
        """
        status = int(getattr(self._library, function)(*arguments))
        if status != 0:
            raise self._error(function, status)

    def gpu(self) -> Gpu:
        """Return what the device and its software are."""
        major, minor = c_int(), c_int()
        self.call("cudaDeviceGetAttribute", byref(major), c_int(COMPUTE_MAJOR), c_int(self.index))
        self.call("cudaDeviceGetAttribute", byref(minor), c_int(COMPUTE_MINOR), c_int(self.index))
        properties = (c_char * PROPERTIES_BYTES)()
        self.call("cudaGetDeviceProperties", properties, c_int(self.index))
        driver, runtime = c_int(), c_int()
        self.call("cudaDriverGetVersion", byref(driver))
        self.call("cudaRuntimeGetVersion", byref(runtime))
        return Gpu(
            name=properties.value.decode("utf-8", errors="replace"),
            sm=f"sm{major.value}{minor.value}",
            driver=_kernel_driver(),
            cuda_driver=_version_text(driver.value),
            cuda_runtime=_version_text(runtime.value),
        )

    def _error(self, function: str, status: int) -> Exception:
        name = _text(self._library.cudaGetErrorName, status)
        words = f"cuda:{self.index}: {function}: {name} ({_text(self._library.cudaGetErrorString, status)})"
        self._library.cudaGetLastError()  # the error of this call must not be told again by the next one
        if status in (INSUFFICIENT_DRIVER, NO_DEVICE):
            return MissingDependency(words, hint="a GPU of NVIDIA and its driver; nvidia-smi shows both")
        if status == INVALID_DEVICE:
            return MeasureError(words, hint="nvidia-smi -L lists the GPUs, counted from 0")
        if status == OUT_OF_MEMORY:
            return DeviceError(words, hint="a smaller batch, or end what else holds memory of this GPU")
        return DeviceError(words, hint="nvidia-smi and dmesg tell whether the GPU is lost; then run again")


class DeviceMemory:
    """Bytes on the GPU; freed with `free`."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self._cuda = cuda
        self.num_bytes = num_bytes
        pointer = c_void_p()
        cuda.call("cudaMalloc", byref(pointer), c_size_t(max(num_bytes, 1)))
        self.address = int(pointer.value or 0)

    def free(self) -> None:
        """Give the bytes back."""
        self._cuda.call("cudaFree", c_void_p(self.address))


class PinnedArray:
    """A NumPy array in page-locked host memory, which the device copies from and to without a detour."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        pointer = c_void_p()
        cuda.call("cudaHostAlloc", byref(pointer), c_size_t(max(num_bytes, 1)), c_uint(0))
        self.address = int(pointer.value or 0)
        memory = (ctypes.c_byte * num_bytes).from_address(self.address)
        self.array: Array = np.ndarray(shape, dtype=dtype, buffer=memoryview(memory))

    def free(self) -> None:
        """Give the memory back; `array` must not be used afterwards."""
        self._cuda.call("cudaFreeHost", c_void_p(self.address))


class Stream:
    """A queue of work on the GPU."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        pointer = c_void_p()
        cuda.call("cudaStreamCreateWithFlags", byref(pointer), c_uint(NON_BLOCKING))
        self.handle = int(pointer.value or 0)

    def copy(self, *, target: int, source: int, num_bytes: int, kind: int) -> None:
        """Queue a copy between two addresses; kind is HOST_TO_DEVICE or DEVICE_TO_HOST."""
        self._cuda.call(
            "cudaMemcpyAsync",
            c_void_p(target),
            c_void_p(source),
            c_size_t(num_bytes),
            c_int(kind),
            c_void_p(self.handle),
        )

    def synchronize(self) -> None:
        """Wait until everything queued is done."""
        self._cuda.call("cudaStreamSynchronize", c_void_p(self.handle))

    def begin_capture(self) -> None:
        """From now on, queued work is recorded instead of done."""
        self._cuda.call("cudaStreamBeginCapture", c_void_p(self.handle), c_int(CAPTURE_THREAD_LOCAL))

    def end_capture(self) -> Graph:
        """Return what was queued since `begin_capture` as a graph.

        Raises:
            DeviceError: the work cannot be recorded.
        """
        pointer = c_void_p()
        self._cuda.call("cudaStreamEndCapture", c_void_p(self.handle), byref(pointer))
        return Graph(self._cuda, pointer)

    def free(self) -> None:
        """Destroy the queue."""
        self._cuda.call("cudaStreamDestroy", c_void_p(self.handle))


class Graph:
    """Recorded work that one call launches as a whole."""

    def __init__(self, cuda: Cuda, graph: c_void_p) -> None:
        self._cuda = cuda
        self._executable = c_void_p()
        try:
            cuda.call("cudaGraphInstantiateWithFlags", byref(self._executable), graph, c_ulonglong(0))
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Queue the whole graph."""
        self._cuda.call("cudaGraphLaunch", self._executable, c_void_p(stream.handle))

    def free(self) -> None:
        """Destroy the graph."""
        self._cuda.call("cudaGraphExecDestroy", self._executable)


class Event:
    """A moment on the GPU's own clock."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._handle = c_void_p()
        cuda.call("cudaEventCreate", byref(self._handle))

    def record(self, stream: Stream) -> None:
        """Queue the event: it happens when all work queued before it is done."""
        self._cuda.call("cudaEventRecord", self._handle, c_void_p(stream.handle))

    def synchronize(self) -> None:
        """Wait until it has happened."""
        self._cuda.call("cudaEventSynchronize", self._handle)

    def seconds_since(self, start: Event) -> float:
        """Return the seconds between two events that have happened (resolution about 0.5 us)."""
        milliseconds = c_float()
        self._cuda.call("cudaEventElapsedTime", byref(milliseconds), start._handle, self._handle)
        return float(milliseconds.value) / 1000.0

    def free(self) -> None:
        """Destroy the event."""
        self._cuda.call("cudaEventDestroy", self._handle)


@functools.cache
def _cudart() -> ctypes.CDLL:
    """Return the first CUDA runtime library that loads and that the driver is new enough for."""
    driver_too_old = None
    for name in (*LIBRARIES, *_libraries_of_wheels()):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if int(library.cudaGetDeviceCount(byref(c_int()))) != INSUFFICIENT_DRIVER:
            return _declared(library)
        driver_too_old = driver_too_old or name
    if driver_too_old is not None:
        raise MissingDependency(
            f"{driver_too_old}: the GPU's driver is missing or older than this CUDA runtime library",
            hint=f"a newer driver, or an older library: {INSTALL_HINT}",
        )
    raise MissingDependency("no CUDA runtime library (libcudart.so) was found", hint=INSTALL_HINT)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Say which functions do not return a status."""
    for function in (library.cudaGetErrorName, library.cudaGetErrorString):
        function.restype = c_char_p
    return library


def _libraries_of_wheels() -> list[str]:
    """Return the library's files where pip puts them: nvidia/cuda_runtime (CUDA 12), nvidia/cu13, torch."""
    folders = dict.fromkeys([*sys.path, *site.getsitepackages(), site.getusersitepackages()])
    return [
        str(file)
        for folder in folders
        if folder and Path(folder).is_dir()
        for file in sorted(Path(folder).glob("nvidia/*/lib/libcudart.so*"), reverse=True)
    ]


def _text(function: Any, status: int) -> str:  # Any: a ctypes function
    return (function(c_int(status)) or b"?").decode()


def _version_text(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _kernel_driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    if not file.is_file():
        return None
    words = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text(encoding="utf-8", errors="replace"))
    return words[1] if words else None
