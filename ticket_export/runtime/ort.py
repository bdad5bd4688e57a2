"""ONNX Runtime on the CPU: the embedded default runtime. Imports no torch.

Session settings and why: worker threads that wait must not spin, or the waiting subjects of an interleaved
run would take the cores from the one being timed (onnxruntime.ai, "Thread management": allow_spinning); one
operator at a time, so that `threads` is the whole parallelism.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.runtime.failures import error_from_failure
from ticket_export.runtime.onnx_file import precision_from_onnx
from ticket_export.runtime.runner import Array, TensorSpec, require_inputs, require_scope, require_threads

if TYPE_CHECKING:
    import onnxruntime

DTYPE_FROM_ORT = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OrtCpuRunner:
    """An ONNX file in an ONNX Runtime session on the CPU, with buffers kept per input shape."""

    name = "ort-cpu"
    device = "cpu"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        require_threads(threads)
        self.threads = threads
        self.settings: dict[str, str] = {"optimization": "all", "spinning": "off"}
        self.precision = precision_from_onnx(path)
        self._path = path
        self._stamp = file_stamp(path)
        self._session = _open_session(path, threads)
        self.input_specs = specs_from_nodes(self._session.get_inputs(), "input", path)
        self.output_specs = specs_from_nodes(self._session.get_outputs(), "output", path)
        self._output_names = list(self.output_specs)
        self._bound: dict[tuple[tuple[int, ...], ...], _Binding] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bound.clear()
        del self._session

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Args:
            inputs: arrays [N, ...] by input name, of the dtypes and shapes of `input_specs`.

        Raises:
            MeasureError: the inputs do not fit, or the session fails on them.
            DeviceError: memory runs out.
        """
        require_inputs(str(self._path), self.input_specs, inputs)
        with self._told(inputs):
            outputs = self._session.run(self._output_names, dict(inputs))
        return dict(zip(self._output_names, outputs, strict=True))

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the seconds of one inference.

        Args:
            inputs: arrays [N, ...] by input name.
            scope: "compute" runs on bound input and output buffers, so nothing is copied or allocated while
                the clock runs; "end_to_end" is one `session.run` from NumPy arrays to NumPy arrays.

        Raises:
            MeasureError: unknown scope, the inputs do not fit, or the session fails on them.
            DeviceError: memory runs out.
        """
        require_scope(scope)
        if scope == "end_to_end":
            require_inputs(str(self._path), self.input_specs, inputs)
            feed = dict(inputs)
            with self._told(inputs):
                start = time.perf_counter()
                self._session.run(self._output_names, feed)
                return time.perf_counter() - start
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in self._bound:
            self._bound[shapes] = _Binding(self._session, self.infer(inputs), inputs)
        with self._told(inputs):
            return self._bound[shapes].time_once(inputs)

    def renew(self) -> None:
        """Open the file in a new session with new buffers; the old ones go only then, so that memory moves.

        Raises:
            MeasureError: the file has changed or gone since it was opened.
        """
        if file_stamp(self._path) != self._stamp:
            raise MeasureError(f"{self._path}: has changed since the measurement began")
        self._session = _open_session(self._path, self.threads)
        self._bound.clear()

    @contextmanager
    def _told(self, inputs: Mapping[str, Array]) -> Iterator[None]:
        """Turn the session's errors into the project's own."""
        try:
            yield
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise error_from_failure(f"{self._path}: ONNX Runtime", error, inputs) from error


class _Binding:
    """Input and output buffers bound to a session for one set of input shapes."""

    def __init__(
        self, session: onnxruntime.InferenceSession, outputs: Mapping[str, Array], inputs: Mapping[str, Array]
    ) -> None:
        import onnxruntime

        self._session = session
        self._binding = session.io_binding()
        # on the CPU an OrtValue shares the memory of its NumPy array, so writing the array feeds the session
        self._inputs = {name: np.ascontiguousarray(array).copy() for name, array in inputs.items()}
        for name, array in self._inputs.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        self._outputs = {name: np.empty_like(array, order="C") for name, array in outputs.items()}
        for name, array in self._outputs.items():
            self._binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def time_once(self, inputs: Mapping[str, Array]) -> float:
        for name, array in inputs.items():
            np.copyto(self._inputs[name], array, casting="no")
        run, binding = self._session.run_with_iobinding, self._binding
        start = time.perf_counter()
        run(binding)
        return time.perf_counter() - start


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the settings that every session of this package has: `threads` cores, none of them spinning.

    Raises:
        MissingDependency: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime is not installed", hint="pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: they come back as exceptions with the same text
    return options


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = session_options(threads)
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        words = " ".join(str(error).split())
        raise MeasureError(f"{path}: ONNX Runtime cannot open it: {words}") from error


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is written or replaced; zeros when it is gone."""
    if not path.exists():
        return (0, 0, 0)
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def specs_from_nodes(nodes: list[onnxruntime.NodeArg], side: str, path: Path) -> dict[str, TensorSpec]:
    """Return the specs of a session's inputs or outputs, by name.

    Args:
        nodes: what the session gives.
        side: "input" or "output", for the error's text.
        path: the session's file.

    Raises:
        MeasureError: one is of a type that no array has here.
    """
    specs = {}
    for node in nodes:
        if node.type not in DTYPE_FROM_ORT:
            known = ", ".join(DTYPE_FROM_ORT)
            raise MeasureError(f"{path}: {side} {node.name!r} is {node.type}, not one of {known}")
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        specs[node.name] = TensorSpec(name=node.name, dtype=DTYPE_FROM_ORT[node.type], shape=shape)
    return specs
