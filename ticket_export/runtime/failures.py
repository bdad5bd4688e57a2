"""What went wrong inside a runtime, told as the project's own error."""

from __future__ import annotations

from collections.abc import Mapping

from ticket_export.errors import DeviceError, MeasureError
from ticket_export.runtime.runner import Array

# what allocators say: ONNX Runtime's arenas, the C++ library, torch on both devices, TensorRT, CUDA, numpy
_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "can't allocate memory",
    "outofmemory",
    "insufficient memory",
    "cudaerrormemoryallocation",
    "not enough memory",
    "unable to allocate",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
# what is said when the device itself fails: nothing on it can be trusted afterwards
_DEVICE_LOST = (
    "cuda error",
    "cuda failure",
    "cuda_error",
    "cuda runtime (",
    "cuda driver (",
    "cudaerror",
    "cublas failure",
    "cudnn failure",
    "xid",
)


def is_out_of_memory(words: str) -> bool:
    """Return whether a runtime's words say that memory ran out."""
    return any(word in words.lower() for word in _OUT_OF_MEMORY)


def is_device_lost(words: str) -> bool:
    """Return whether a runtime's words say that the device itself failed."""
    return any(word in words.lower() for word in _DEVICE_LOST)


def error_from_failure(owner: str, error: Exception, inputs: Mapping[str, Array]) -> MeasureError:
    """Return the error to raise for a runtime's own one, with the batch when memory ran out.

    Args:
        owner: whose failure it is, e.g. the file, for the error's text.
        error: what the runtime raised.
        inputs: what it was given, arrays [N, ...] by name.
    """
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError) or is_out_of_memory(words):
        batch = max((len(array) for array in inputs.values() if array.ndim), default=0)
        return DeviceError(
            f"{owner}: out of memory at batch {batch}: {words}", hint="measure a smaller batch"
        )
    if is_device_lost(words):
        return DeviceError(
            f"{owner}: the device failed: {words}",
            hint="look at nvidia-smi and the kernel's log, then run the same command again",
        )
    return MeasureError(f"{owner}: failed: {words}")
