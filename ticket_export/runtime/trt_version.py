"""Which TensorRT is here, and what its generation has: one code path for 8.6, 10.x and 11.x.

What differs, read from the bindings of 8.6.1, 10.12.0 and 11.4.0 (tests/runtime/tensorrt_api.json):

- strongly typed networks, where the file's own types decide: from 10 on; 11 has no others. 8.6 needs the
  builder flags FP16 and INT8 instead, which 11 has not.
- profiles that several contexts share, which several streams need: a preview feature in 8.6, always in 11.
- the inspector's list of inputs and outputs: "Bindings" in older versions, "I/O Tensors" in 11.
"""

from __future__ import annotations

import collections
import logging
from typing import Any

from ticket_export.errors import DeviceError, MeasureError, MissingDependency
from ticket_export.runtime.failures import is_device_lost, is_out_of_memory

INSTALL_HINT = "pip install ticket-export[tensorrt]"
_NUM_MESSAGES = 40


class _Messages(logging.Handler):
    """Keeps the last warnings and errors of Polygraphy and TensorRT, for the text of our own errors."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.last: collections.deque[str] = collections.deque(maxlen=_NUM_MESSAGES)

    def emit(self, record: logging.LogRecord) -> None:
        self.last.append(" ".join(record.getMessage().split()))


_messages = _Messages()


def require_tensorrt() -> Any:  # Any: the module has no type information
    """Return the module `tensorrt`, with its and Polygraphy's messages kept from the terminal.

    They go to the logger "Polygraphy"; the last ones are told in the error of a call that fails.

    Raises:
        MissingDependency: TensorRT or Polygraphy is not installed, or its libraries cannot be loaded.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise MissingDependency(f"tensorrt cannot be imported: {error}", hint=INSTALL_HINT) from error
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise MissingDependency("polygraphy is not installed", hint=INSTALL_HINT) from error
    if version_numbers(tensorrt) < (8, 6):
        raise MissingDependency(
            f"TensorRT {tensorrt.__version__} is older than 8.6", hint="pip install tensorrt>=8.6"
        )
    G_LOGGER.colors = False  # else it prints that the package `colored` is missing
    G_LOGGER.use_python_logging_system = True  # else it prints to stdout, where --json belongs
    logger = logging.getLogger("Polygraphy")
    if _messages not in logger.handlers:
        logger.addHandler(_messages)
        logger.propagate = False
    return tensorrt


def version_numbers(trt: Any) -> tuple[int, int]:  # Any: the module
    """Return (major, minor) of the module `tensorrt`."""
    major, minor, *_ = str(trt.__version__).split(".")
    return int(major), int(minor)


def has_strong_types(trt: Any) -> bool:  # Any: the module
    """Return whether networks can take every type from the file; else builder flags are needed."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def polygraphy_version() -> str:
    """Return the version of Polygraphy, which `require_tensorrt` has found."""
    import polygraphy

    return str(polygraphy.__version__)


def forget_messages() -> None:
    """Drop what was logged before, so that the next error tells its own messages only."""
    _messages.last.clear()


def last_messages() -> list[str]:
    """Return the warnings and errors logged since `forget_messages`, oldest first."""
    return list(_messages.last)


def failure(what: str, *, hint: str | None = None) -> MeasureError:
    """Return the error for a TensorRT call that failed, with what TensorRT logged about it.

    A DeviceError when memory ran out or the GPU failed, which TensorRT tells in its log alone: the call
    itself returns nothing, or false.

    Args:
        what: who failed and at what, e.g. "a.onnx: TensorRT 10.12 cannot build an engine".
        hint: the next step, unless the GPU is the reason.
    """
    messages = last_messages()
    told = "; ".join(messages[-3:]) if messages else "TensorRT logged no reason"
    if any(is_out_of_memory(message) for message in messages):
        return DeviceError(f"{what}: the GPU is out of memory: {told}", hint="a smaller batch, or a free GPU")
    if any(is_device_lost(message) for message in messages):
        return DeviceError(
            f"{what}: the GPU failed: {told}", hint="look at nvidia-smi and dmesg, then run the command again"
        )
    return MeasureError(f"{what}: {told}", hint=hint)
