"""Layer times from ONNX Runtime's own profile of a session: one entry per node that it really runs.

The profile is a JSON list of events. On the CPU an event `<node>_kernel_time` is the node's time. On CUDA
that event is only the launch; the device's time is in events of the category "Kernel", which stand behind
the event of their node, and which only a build with `--enable_cuda_profiling` writes (onnxruntime pull
requests 8406 and 9875).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ticket_export.errors import MeasureError
from ticket_export.runtime.layers import WARMUP_RUNS, LayerProfile, LayerTime, median_s, num_runs_that_fit
from ticket_export.runtime.ort import session_options
from ticket_export.runtime.runner import Array

KERNEL_SUFFIX = "_kernel_time"
Event = Mapping[str, Any]  # Any: JSON values


def profile_session(
    path: Path,
    inputs: Sequence[Array],
    *,
    provider: str = "CPUExecutionProvider",
    threads: int = 1,
) -> LayerProfile:
    """Run a file in a session of its own that profiles, and return the time of every node.

    Args:
        path: an ONNX file.
        inputs: one array [N, ...] per input, in the file's order.
        provider: the execution provider that must run it.
        threads: CPU threads of one inference.

    Raises:
        MeasureError: the file cannot be run by that provider, or its profile holds no device times.
        MissingDependency: onnxruntime is not installed.
    """
    options = session_options(threads)
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise MeasureError(f"{path}: this onnxruntime has no {provider}, so it tells no layer times")
    with tempfile.TemporaryDirectory(prefix="ticket-export-profile-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
            names = [node.name for node in session.get_inputs()]
            feed = dict(zip(names, inputs, strict=True))
            for _ in range(WARMUP_RUNS):
                start = time.perf_counter()
                session.run(None, feed)
                run_s = time.perf_counter() - start
            for _ in range(num_runs_that_fit(run_s)):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise MeasureError(f"{path}: ONNX Runtime cannot profile it: {error}") from error
    profile = profile_from_events(events, on_device=provider != "CPUExecutionProvider")
    if not profile.layers:
        raise MeasureError(
            f"{path}: the profile of {provider} holds no kernel times",
            hint="released wheels may be built without --enable_cuda_profiling; layer times then come from "
            "the runtimes tensorrt and torch",
        )
    return profile


def profile_from_events(
    events: Sequence[Event], *, on_device: bool, warmup_runs: int = WARMUP_RUNS
) -> LayerProfile:
    """Return the layers of a session's profile, in the order they run.

    Args:
        events: the profile as parsed.
        on_device: add up the "Kernel" events behind a node instead of taking the node's own time.
        warmup_runs: leading inferences that do not count.
    """
    whole_s = [event["dur"] / 1e6 for event in events if event["name"] == "model_run"]
    num_runs = len(whole_s) - warmup_runs
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
    runs_s = {layer: _per_run(seconds, len(whole_s))[warmup_runs:] for layer, seconds in calls_s.items()}
    if not any(map(sum, runs_s.values())):
        return LayerProfile(layers=(), between_s=None, num_runs=num_runs)
    between_s = [
        whole - sum(layer) for whole, *layer in zip(whole_s[warmup_runs:], *runs_s.values(), strict=True)
    ]
    return LayerProfile(
        layers=tuple(
            LayerTime(name=name, op=op, seconds=median_s(seconds)) for (name, op), seconds in runs_s.items()
        ),
        # the event of a run on a device spans its launches, not its kernels
        between_s=None if on_device else max(0.0, median_s(between_s)),
        num_runs=num_runs,
    )


def _per_run(seconds: Sequence[float], num_runs: int) -> list[float]:
    """Add up the calls of each run; a node in a loop is called several times."""
    calls = max(1, len(seconds) // num_runs)
    return [sum(seconds[start : start + calls]) for start in range(0, calls * num_runs, calls)]
