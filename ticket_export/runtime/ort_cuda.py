"""ONNX Runtime on an NVIDIA GPU, with every buffer on the device. Imports no torch.

What is timed: the host's clock around one `run_with_iobinding`, which enqueues the whole network and returns
only when the device has finished (ONNX Runtime synchronises its stream at the end of a run unless told not
to). The device's own events cannot be set into that stream, which belongs to the session. The seconds hence
hold the enqueueing and one synchronisation, some 10 us, as a caller's do. In "compute" the inputs lie on the
device before the clock starts and the outputs stay there; "end_to_end" adds the copies from and to the
host.

What is chosen, and stated in `settings`: cuDNN searches exhaustively among its algorithms, in the first run
at a shape and never in a timed one; TF32 as told; layout NCHW, the provider's default.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.runtime.failures import error_from_failure
from ticket_export.runtime.offers import ONLY_GPU_ORT
from ticket_export.runtime.onnx_file import precision_from_onnx
from ticket_export.runtime.ort import file_stamp, session_options, specs_from_nodes
from ticket_export.runtime.runner import (
    Array,
    cuda_index,
    require_inputs,
    require_scope,
    require_threads,
)

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "CUDAExecutionProvider"
_GRAPH_ID = "gpu_graph_id"  # a captured graph per id; -1 runs without capturing
_NO_CAPTURE = "-1"
# what sizes are computed in: such nodes belong on the CPU, which allocates by their results
_SIZE_TYPES = frozenset({"int64", "int32", "bool"})
_MAX_SIZES = 8  # sizes of one tensor: no tensor has more axes


class OrtCudaRunner:
    """An ONNX file in an ONNX Runtime session on one GPU, with device buffers kept per input shape.

    Args:
        path: an ONNX file.
        threads: CPU threads of the session, for what prepares the launches.
        device: "cuda" or "cuda:<index>"; None is the first one.
        tf32: whether fp32 products may be taken in TF32, as is the default of every CUDA runtime.
        cuda_graph: whether the network is launched as one captured CUDA graph.

    Raises:
        MeasureError: the file or the device's name is wrong.
        DeviceError: the device is out of memory or fails.
        MissingDependency: no ONNX Runtime with a working CUDA provider is installed.
    """

    name = "ort-cuda"

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        device: str | None = None,
        tf32: bool = True,
        cuda_graph: bool = False,
    ) -> None:
        require_threads(threads)
        self.threads = threads
        self._index = cuda_index(self.name, device)
        self.device = f"cuda:{self._index}"
        self._ort = onnxruntime_with_cuda()
        self.precision = precision_from_onnx(path)
        self._path, self._stamp = path, file_stamp(path)
        self._cuda_graph = cuda_graph
        self._provider_options = {
            "device_id": str(self._index),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "1" if tf32 else "0",
            "enable_cuda_graph": "1" if cuda_graph else "0",
        }
        self.settings = {
            "conv_search": "exhaustive",
            "tf32": "on" if tf32 else "off",
            "cuda_graph": "on" if cuda_graph else "off",
            "layout": "NCHW",
        }
        self._session = self._open(self._provider_options)
        self.input_specs = specs_from_nodes(self._session.get_inputs(), "input", path)
        self.output_specs = specs_from_nodes(self._session.get_outputs(), "output", path)
        self._bound: dict[tuple[tuple[int, ...], ...], _DeviceBinding] = {}
        self._num_graphs = 0
        self._placement_seen = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bound.clear()
        del self._session

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, copied to the host.

        Args:
            inputs: arrays [N, ...] by input name, of the dtypes and shapes of `input_specs`.

        Raises:
            MeasureError: the inputs do not fit, or a node that computes more than sizes runs on the CPU.
            DeviceError: the device is out of memory or fails.
        """
        arrays = self._checked(inputs)
        with self._told(arrays):
            binding = self._binding(arrays)
            binding.place(arrays)
            binding.run()
            return binding.outputs()

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the seconds of one inference by the host's clock; the top of this file says what they hold.

        Raises:
            MeasureError: unknown scope, the inputs do not fit, or a node runs on the CPU.
            DeviceError: the device is out of memory or fails.
        """
        require_scope(scope)
        arrays = self._checked(inputs)
        with self._told(arrays):
            binding = self._binding(arrays)
            if scope == "end_to_end":
                start = time.perf_counter()
                binding.place(arrays)
                binding.run()
                binding.outputs()
                return time.perf_counter() - start
            binding.place(arrays)
            start = time.perf_counter()
            binding.run()
            return time.perf_counter() - start

    def renew(self) -> None:
        """Give up the device buffers, so that the next run takes new ones.

        The session stays: a new one would search its algorithms again, seconds before each turn.

        Raises:
            MeasureError: the file has changed or gone since it was opened.
        """
        if file_stamp(self._path) != self._stamp:
            raise MeasureError(f"{self._path}: has changed since the measurement began")
        for binding in self._bound.values():
            binding.release()
        self._bound.clear()

    def _checked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        require_inputs(str(self._path), self.input_specs, inputs)
        return {name: np.ascontiguousarray(array) for name, array in inputs.items()}

    def _binding(self, inputs: Mapping[str, Array]) -> _DeviceBinding:
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in self._bound:
            self._require_placement(inputs)
            self._num_graphs += 1
            graph_id = str(self._num_graphs) if self._cuda_graph else None
            self._bound[shapes] = _DeviceBinding(
                self._ort,
                self._session,
                inputs,
                list(self.output_specs),
                index=self._index,
                graph_id=graph_id,
            )
        return self._bound[shapes]

    def _require_placement(self, inputs: Mapping[str, Array]) -> None:
        """Refuse a network of which ONNX Runtime runs a part on the CPU, seen in a profile of one run."""
        if self._placement_seen:
            return
        with tempfile.TemporaryDirectory() as folder:
            # where a node runs does not depend on the algorithm, and the search takes seconds
            quick = {
                **self._provider_options,
                "cudnn_conv_algo_search": "DEFAULT",
                "enable_cuda_graph": "0",
            }
            session = self._open(quick, profile=Path(folder) / "placement")
            session.run(list(self.output_specs), dict(inputs))
            profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        strangers = nodes_on_cpu(profile)
        if strangers:
            shown = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
            raise MeasureError(
                f"{self._path}: ONNX Runtime runs {len(strangers)} of its nodes on the CPU: {shown}",
                hint="it has no CUDA kernel for them: measure with tensorrt, or export without them",
            )
        self._placement_seen = True

    def _open(
        self, provider_options: Mapping[str, str], profile: Path | None = None
    ) -> onnxruntime.InferenceSession:
        options = session_options(self.threads)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        with self._told({}):
            session = self._ort.InferenceSession(
                str(self._path),
                options,
                providers=[(PROVIDER, dict(provider_options))],
                enable_fallback=0,  # else a provider that cannot start is replaced by the CPU's
            )
        if PROVIDER not in session.get_providers():
            raise MissingDependency(
                f"runtime 'ort-cuda': ONNX Runtime {self._ort.__version__} could not start its CUDA provider "
                f"on {self.device}; its own message is above",
                hint=f"check the driver with nvidia-smi and the CUDA libraries with {ONLY_GPU_ORT}",
            )
        return session

    @contextmanager
    def _told(self, inputs: Mapping[str, Array]) -> Iterator[None]:
        """Turn the session's errors into the project's own."""
        try:
            yield
        except (MeasureError, MissingDependency):
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise error_from_failure(f"{self._path}: ONNX Runtime", error, inputs) from error


class _DeviceBinding:
    """Input and output buffers on the device, bound to a session for one set of input shapes."""

    def __init__(
        self,
        ort: ModuleType,
        session: onnxruntime.InferenceSession,
        inputs: Mapping[str, Array],
        outputs: list[str],
        *,
        index: int,
        graph_id: str | None,
    ) -> None:
        self._session = session
        self._graph_id = graph_id
        self._binding = session.io_binding()
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", index) for name, array in inputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        # the first run tells the sizes of the outputs; a graph needs them to stay where they are
        for name in outputs:
            self._binding.bind_output(name, "cuda", index)
        self._options = ort.RunOptions()
        if graph_id is not None:
            self._options.add_run_config_entry(_GRAPH_ID, _NO_CAPTURE)
        self.run()
        self._outputs = dict(zip(outputs, self._binding.get_outputs(), strict=True))
        self._binding.clear_binding_outputs()
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        if graph_id is not None:
            self._options = ort.RunOptions()
            self._options.add_run_config_entry(_GRAPH_ID, graph_id)
        self.run()  # captures the graph, or runs once into the outputs it keeps

    def place(self, inputs: Mapping[str, Array]) -> None:
        """Copy the inputs into their buffers on the device; returns when they are there."""
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)

    def run(self) -> None:
        """Run the network from buffer to buffer; returns when the device has finished."""
        self._session.run_with_iobinding(self._binding, self._options)

    def release(self) -> None:
        """Give up the captured graph; an older ONNX Runtime keeps it as long as the session."""
        if self._graph_id is not None and hasattr(self._session, "release_captured_graph"):
            self._session.release_captured_graph(int(self._graph_id))

    def outputs(self) -> dict[str, Array]:
        """Return the outputs of the last run, copied to the host."""
        return {name: value.numpy() for name, value in self._outputs.items()}


def nodes_on_cpu(profile: list[dict[str, Any]]) -> list[str]:  # Any: JSON values
    """Return "operator 'name'" of each node that ran on the CPU and gives more than sizes.

    Args:
        profile: the events of an ONNX Runtime session's profile.
    """
    found = {}
    for event in profile:
        facts = event.get("args", {})
        if event.get("cat") != "Node" or facts.get("provider") != "CPUExecutionProvider":
            continue
        given = [(kind, shape) for each in facts.get("output_type_shape", []) for kind, shape in each.items()]
        if not given or not all(_is_sizes(kind, shape) for kind, shape in given):
            name = event["name"].removesuffix("_kernel_time")
            found[name] = f"{facts['op_name']} {name!r}"
    return list(found.values())


def _is_sizes(kind: str, shape: list[int]) -> bool:
    return kind in _SIZE_TYPES and len(shape) <= 1 and sum(shape) <= _MAX_SIZES


def onnxruntime_with_cuda() -> ModuleType:
    """Return the onnxruntime module, its CUDA libraries loaded.

    Raises:
        MissingDependency: it is not installed, or is the one for CPUs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            "runtime 'ort-cuda': onnxruntime is not installed", hint=ONLY_GPU_ORT
        ) from error
    if PROVIDER not in onnxruntime.get_available_providers():
        raise MissingDependency(
            f"runtime 'ort-cuda': onnxruntime {onnxruntime.__version__} has no CUDA provider",
            hint=ONLY_GPU_ORT,
        )
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21; finds the CUDA wheels that pip installed
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            onnxruntime.preload_dlls()
    module: ModuleType = onnxruntime
    return module
