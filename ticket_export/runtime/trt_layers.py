"""An engine's layers: what the inspector tells about them, and how long each takes."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ticket_export.runtime.layers import LayerProfile, LayerTime, calm_s
from ticket_export.runtime.runner import Array
from ticket_export.runtime.trt_session import Session

# Layers that only change how a tensor lies in memory: the price of widths or types that do not fit a kernel.
REFORMAT_KIND = "Reformat"
REFORMAT_WORDS = ("reformatting copynode", "reformat")
_PROFILE = re.compile(r"\[profile (\d+)\]$")
IO_KEYS = ("I/O Tensors", "Bindings")  # TensorRT 11 renamed the second into the first


def layers_from_information(text: str) -> dict[str, list[Any]]:  # Any: JSON values
    """Return {"layers": [...], "io_tensors": [...]} from the inspector's JSON.

    A layer is an object with at least "Name"; the rest ("LayerType", "Inputs", "Outputs", "TacticName", ...)
    is there when the engine was built with detailed profiling verbosity, as ours are.
    """
    document = json.loads(text)
    layers = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in document["Layers"]]
    return {"layers": layers, "io_tensors": next((document[key] for key in IO_KEYS if key in document), [])}


def layers_summary(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:  # Any: JSON values
    """Return for each profile, by its index, the number of layers, by kind, and how many only reformat.

    Every profile has layers of its own: names end with "[profile 1]" and so on, those of the first do not.
    """
    by_profile: dict[str, list[dict[str, Any]]] = {}  # Any: JSON values
    for layer in layers:
        found = _PROFILE.search(str(layer.get("Name", "")))
        by_profile.setdefault(found[1] if found else "0", []).append(layer)
    return {profile: _profile_summary(own) for profile, own in sorted(by_profile.items())}


def _profile_summary(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:  # Any: JSON values
    kinds = collections.Counter(str(layer.get("LayerType", "?")) for layer in layers)
    return {
        "count": len(layers),
        "by_kind": dict(kinds.most_common()),
        "reformats": sum(is_reformat(layer) for layer in layers),
    }


def is_reformat(layer: dict[str, Any]) -> bool:  # Any: JSON values
    """Return whether a layer only changes how a tensor lies in memory."""
    name = str(layer.get("Name", "")).lower()
    return layer.get("LayerType") == REFORMAT_KIND or name.startswith(REFORMAT_WORDS)


def kinds_by_name(layers_file: Path) -> dict[str, str]:
    """Return each layer's kind by its name; nothing where the list is missing or damaged."""
    try:
        layers = json.loads(layers_file.read_text(encoding="utf-8"))["layers"]
        return {str(layer["Name"]): str(layer.get("LayerType", "?")) for layer in layers}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class EngineProfiler:
    """One engine under TensorRT's IProfiler, at fixed inputs, without a CUDA graph.

    Args:
        session: the engine.
        inputs: arrays [N, ...] by input name.
        layers_file: the inspector's list, which tells each layer's kind.
    """

    def __init__(self, session: Session, inputs: Mapping[str, Array], layers_file: Path) -> None:
        self._session = session
        self._execution, self._profiler = session.profiled_execution(inputs)
        self._kinds = kinds_by_name(layers_file)
        self._runs: list[list[tuple[str, float]]] = []

    def run(self, times: int) -> None:
        """Run the engine `times` times."""
        self._runs += [self._execution.layer_calls(self._profiler) for _ in range(times)]

    def finish(self, skipped_runs: int) -> LayerProfile:
        """Free the buffers, and return the medians over all runs but the first `skipped_runs`."""
        self._execution.free()
        runs = self._runs[skipped_runs:]
        names = list(dict.fromkeys(name for run in runs for name, _ in run))
        totals_s = {name: [sum(s for called, s in run if called == name) for run in runs] for name in names}
        layers = tuple(
            LayerTime(name=name, op=self._kinds.get(name, "?"), seconds=calm_s(totals_s[name]))
            for name in names
        )
        return LayerProfile(layers=layers, between_s=None, num_runs=len(runs))

    def close(self) -> None:
        """Free the engine: the runner that made the profiler cannot run afterwards."""
        self._execution.free()
        self._session.close()
