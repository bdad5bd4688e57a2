"""TensorRT: an engine on one GPU behind the Runner protocol. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ticket_export.errors import MeasureError
from ticket_export.runtime.layers import WARMUP_RUNS, LayerTime
from ticket_export.runtime.onnx_file import ENGINE_SUFFIXES
from ticket_export.runtime.runner import Array, cuda_index, require_inputs, require_scope, require_threads
from ticket_export.runtime.trt_build import BuildSettings, build_engine
from ticket_export.runtime.trt_cuda import Cuda
from ticket_export.runtime.trt_layers import EngineProfiler
from ticket_export.runtime.trt_network import checked_batches, read_source
from ticket_export.runtime.trt_session import Session, throughput_seconds
from ticket_export.runtime.trt_sidecar import layers_path, require_usable
from ticket_export.runtime.trt_version import require_tensorrt

MAX_STREAMS = 16

_log = logging.getLogger(__name__)


class TensorRtRunner:
    """A built engine, its bytes checked against its sidecar before anything of it is loaded.

    Args:
        engine_path: an engine that `te.engine_from_onnx` wrote, with its sidecar `<engine>.json`.
        threads: told in reports; the engine runs on the GPU.
        device: "cuda" or "cuda:N"; None is the first GPU.
        cuda_graph: whether timed inferences are launched as one CUDA graph, as a server would. Without it a
            small network is bound by the host, which launches every kernel by itself.
        source_path: the ONNX file that the engine must have been built from, where that is known.

    Raises:
        MeasureError: the engine was built for another GPU, by another TensorRT, from another file, or is
            damaged; or `device` is no GPU of this machine.
        DeviceError: the GPU has too little memory.
        MissingDependency: TensorRT, Polygraphy, the CUDA runtime or a GPU is missing.
    """

    name = "tensorrt"

    def __init__(
        self,
        engine_path: Path,
        *,
        threads: int = 1,
        device: str | None = None,
        cuda_graph: bool = True,
        source_path: Path | None = None,
    ) -> None:
        require_threads(threads)
        self.threads = threads
        self._trt = require_tensorrt()
        self._cuda = Cuda(cuda_index("tensorrt", device))
        self.device = f"cuda:{self._cuda.index}"
        self.path = engine_path
        self.facts, self._engine_bytes = require_usable(
            engine_path,
            tensorrt=str(self._trt.__version__),
            gpu=self._cuda.gpu(),
            source_path=source_path,
        )
        self.precision = self.facts.precision
        self._cuda_graph = cuda_graph
        self.settings: dict[str, str] = {
            "tensorrt": self.facts.tensorrt,
            "cuda_graph": "on" if cuda_graph else "off",
            "tf32": "on" if self.facts.flags["tf32"] else "off",
            "builder_optimization_level": str(self.facts.flags["builder_optimization_level"]),
            "builds": str(len(self.facts.builds)),
        }
        self._session = self._open()
        self.input_specs = self._session.input_specs
        self.output_specs = self._session.output_specs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name.

        Raises:
            MeasureError: the inputs do not fit, or no profile of the engine covers their batch.
            DeviceError: the GPU ran out of memory or was lost.
        """
        require_inputs(str(self.path), self.input_specs, inputs)
        return self._session.execution(inputs).infer(inputs)

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the seconds of one inference.

        Args:
            inputs: arrays [N, ...] by input name. Those of the call before are taken to hold the same values
                if they are the same objects.
            scope: "compute" is the work on the device by its own events, as one CUDA graph unless that is
                switched off; "end_to_end" is from NumPy arrays to NumPy arrays through pinned buffers.

        Raises:
            MeasureError: unknown scope, or the inputs do not fit.
            DeviceError: the GPU ran out of memory or was lost.
        """
        require_scope(scope)
        require_inputs(str(self.path), self.input_specs, inputs)
        execution = self._session.execution(inputs)
        if scope == "end_to_end":
            return execution.end_to_end_seconds(inputs)
        return execution.compute_seconds(inputs)

    def throughput_once(
        self, inputs: Mapping[str, Array], *, streams: int = 2, num_inferences: int = 64
    ) -> float:
        """Return inferences per second when `num_inferences` take turns on several streams, without copies.

        Args:
            inputs: arrays [N, ...] by input name; every stream has its own copy on the device.
            streams: how many inferences may overlap, 1 to 16.
            num_inferences: at least `streams`.

        Raises:
            MeasureError: a number is out of range, or the inputs do not fit.
            DeviceError: the GPU ran out of memory or was lost.
        """
        if not 1 <= streams <= MAX_STREAMS or num_inferences < streams:
            raise MeasureError(
                f"tensorrt: {num_inferences} inferences on {streams} streams; streams must be 1 to "
                f"{MAX_STREAMS}, with at least one inference each"
            )
        require_inputs(str(self.path), self.input_specs, inputs)
        executions = [self._session.execution(inputs, lane=lane) for lane in range(streams)]
        for execution in executions:
            execution.load(inputs)
        throughput_seconds(executions, num_inferences=streams)  # every graph has been launched once
        return num_inferences / throughput_seconds(executions, num_inferences=num_inferences)

    def profiler(self, inputs: Mapping[str, Array]) -> EngineProfiler:
        """Return what profiles the layers at these inputs; timing in between starts with new buffers.

        Raises:
            MeasureError: the inputs do not fit.
            DeviceError: the GPU ran out of memory or was lost.
        """
        require_inputs(str(self.path), self.input_specs, inputs)
        self._session.drop_executions()
        return EngineProfiler(self._session, inputs, layers_path(self.path))

    def layer_times(self, inputs: Mapping[str, Array], *, num_inferences: int = 20) -> list[LayerTime]:
        """Return the seconds of every layer, in the order of execution, without the CUDA graph.

        Events around every layer slow the whole down: the sum is more than `time_once` tells.

        Raises:
            MeasureError: the inputs do not fit, or TensorRT cannot profile.
            DeviceError: the GPU ran out of memory or was lost.
        """
        profiler = self.profiler(inputs)
        profiler.run(WARMUP_RUNS + num_inferences)
        return list(profiler.finish(WARMUP_RUNS).layers)

    def renew(self) -> None:
        """Load the engine anew; the old one goes only then, so that memory moves."""
        before, self._session = self._session, self._open()
        before.close()

    def _open(self) -> Session:
        return Session(
            self._trt,
            self._engine_bytes,
            self._cuda,
            name=str(self.path),
            cuda_graph=self._cuda_graph,
        )


def open_tensorrt(
    path: Path,
    *,
    threads: int = 1,
    device: str | None = None,
    batches: Sequence[int] = (1,),
    cuda_graph: bool = True,
    builds: int = 3,
    on_progress: Callable[[str], None] = _log.info,
) -> TensorRtRunner:
    """Return a runner for an engine, or for an ONNX file whose engine is built first, once.

    The engine lies beside the ONNX file as `<stem>.<precision>.<sm>.trt<version>.engine` and is taken again
    as long as the file, the GPU and TensorRT are the same and it covers the batches. For further batches it
    is built anew for all of them.

    Args:
        path: `.engine` or `.plan` with its sidecar, or `.onnx`.
        threads: told in reports.
        device: "cuda" or "cuda:N"; None is the first GPU.
        batches: sizes that it is to be tuned for; for an engine, only checked when they are run.
        cuda_graph: see TensorRtRunner.
        builds: how many to make and choose from, if it has to be built.
        on_progress: told in words what takes time.

    Raises:
        MeasureError, ParityError, DeviceError, MissingDependency, StoreError: as `build_engine` and
            TensorRtRunner.
    """
    if path.suffix in ENGINE_SUFFIXES:
        return TensorRtRunner(path, threads=threads, device=device, cuda_graph=cuda_graph)
    trt = require_tensorrt()
    cuda = Cuda(cuda_index("tensorrt", device))
    source = read_source(path)
    wanted = set(checked_batches(batches, source))
    version, gpu = str(trt.__version__), cuda.gpu()
    engine_path = path.with_name(f"{path.stem}.{source.precision}.{gpu.sm}.trt{version}.engine")
    with _one_build_at_a_time(on_progress):
        covered: set[int] = set()
        with contextlib.suppress(MeasureError):  # none there, or one that is stale: built below
            facts, _ = require_usable(engine_path, tensorrt=version, gpu=gpu, source_path=path)
            covered = set(facts.batches)
        if not wanted <= covered:
            settings = BuildSettings(batches=tuple(sorted(wanted | covered)), builds=builds, device=device)
            build_engine(path, engine_path, settings, on_progress=on_progress)
    return TensorRtRunner(
        engine_path, threads=threads, device=device, cuda_graph=cuda_graph, source_path=path
    )


@contextlib.contextmanager
def _one_build_at_a_time(on_progress: Callable[[str], None]) -> Iterator[None]:
    """Hold this user's lock for builds on this machine; the system gives it back when the process ends.

    A build chooses kernels by timing them, which another build beside it would disturb; and two processes
    that want the same engine share one build.
    """
    path = Path(tempfile.gettempdir()) / f"ticket-export-engine-{os.getuid()}.lock"
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("waiting for an engine that another process builds")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
