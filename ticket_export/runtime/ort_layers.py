"""Layer times from ONNX Runtime's own profile of a session: one entry per node that it really runs.

The profile is a JSON list of events. On the CPU an event `<node>_kernel_time` is the node's time. On CUDA
that event is only the launch; the device's time is in events of the category "Kernel", which stand behind
the event of their node, and which only a build with `--enable_cuda_profiling` writes (onnxruntime pull
requests 8406 and 9875).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ticket_export.errors import MeasureError
from ticket_export.runtime.failures import error_from_failure
from ticket_export.runtime.layers import LayerProfile, LayerTime, calm_s
from ticket_export.runtime.ort import session_options
from ticket_export.runtime.ort_cuda import onnxruntime_with_cuda
from ticket_export.runtime.runner import Array

KERNEL_SUFFIX = "_kernel_time"
Event = Mapping[str, Any]  # Any: JSON values


class SessionProfiler:
    """A file in a session of its own that writes down every kernel.

    Args:
        path: an ONNX file.
        inputs: one array [N, ...] per input, in the file's order.
        provider: the execution provider that must run it.
        provider_options: its options, such as device_id.
        threads: CPU threads of one inference.

    Raises:
        MeasureError: the file cannot be opened by that provider.
        MissingDependency: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[Array],
        *,
        provider: str = "CPUExecutionProvider",
        provider_options: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        options = session_options(threads)
        import onnxruntime

        if provider == "CUDAExecutionProvider":
            onnxruntime_with_cuda()
        self._path, self._provider = path, provider
        self._folder = tempfile.TemporaryDirectory(prefix="ticket-export-profile-")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[(provider, dict(provider_options or {}))],
                enable_fallback=0,  # else a provider that cannot start is replaced by the CPU's
            )
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            self._folder.cleanup()
            raise error_from_failure(f"{path}: ONNX Runtime", error, {}) from error
        names = [node.name for node in self._session.get_inputs()]
        self._feed = dict(zip(names, inputs, strict=True))

    def run(self, times: int) -> None:
        """Run the network `times` times.

        Raises:
            MeasureError: the session fails.
        """
        try:
            for _ in range(times):
                self._session.run(None, self._feed)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise error_from_failure(f"{self._path}: ONNX Runtime", error, self._feed) from error

    def finish(self, skipped_runs: int) -> LayerProfile:
        """Return the time of every node that ran.

        Raises:
            MeasureError: the profile holds no kernel times.
        """
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        on_device = self._provider != "CPUExecutionProvider"
        profile = profile_from_events(events, on_device=on_device, skipped_runs=skipped_runs)
        if not profile.layers:
            raise MeasureError(
                f"{self._path}: the profile of {self._provider} holds no kernel times",
                hint="this onnxruntime may be built without --enable_cuda_profiling; the runtimes tensorrt "
                "and torch tell layer times too",
            )
        return profile

    def close(self) -> None:
        """Free the session, which may still write its profile, and then the folder of the profile."""
        self._session = None
        self._folder.cleanup()


def profile_from_events(events: Sequence[Event], *, on_device: bool, skipped_runs: int) -> LayerProfile:
    """Return the layers of a session's profile, in the order they run.

    Args:
        events: the profile as parsed.
        on_device: add up the "Kernel" events behind a node instead of taking the node's own time.
        skipped_runs: leading inferences that do not count.
    """
    whole_s = [event["dur"] / 1e6 for event in events if event["name"] == "model_run"]
    num_runs = len(whole_s) - skipped_runs
    if num_runs < 1:
        return LayerProfile(layers=(), between_s=None, num_runs=0)
    calls_s: dict[tuple[str, str], list[float]] = {}
    place: tuple[str, str] | None = None
    for event in events:
        name, arguments = event["name"], event.get("args", {})
        if event["cat"] == "Node" and name.endswith(KERNEL_SUFFIX):
            place = (name.removesuffix(KERNEL_SUFFIX), arguments.get("op_name", ""))
            calls_s.setdefault(place, []).append(0.0 if on_device else event["dur"] / 1e6)
        elif event["cat"] == "Kernel" and on_device and place is not None:
            calls_s[place][-1] += event["dur"] / 1e6
    runs_s = {layer: _per_run(seconds, len(whole_s))[skipped_runs:] for layer, seconds in calls_s.items()}
    if not any(map(sum, runs_s.values())):
        return LayerProfile(layers=(), between_s=None, num_runs=num_runs)
    between_s = [
        whole - sum(layer) for whole, *layer in zip(whole_s[skipped_runs:], *runs_s.values(), strict=True)
    ]
    return LayerProfile(
        layers=tuple(
            LayerTime(name=name, op=op, seconds=calm_s(seconds)) for (name, op), seconds in runs_s.items()
        ),
        # the event of a run on a device spans its launches, not its kernels
        between_s=None if on_device else max(0.0, calm_s(between_s)),
        num_runs=num_runs,
    )


def _per_run(seconds: Sequence[float], num_runs: int) -> list[float]:
    """Add up the calls of each run; a node in a loop is called several times."""
    calls = max(1, len(seconds) // num_runs)
    return [sum(seconds[start : start + calls]) for start in range(0, calls * num_runs, calls)]
