"""What the engine inspector tells about an engine's layers, in one form for every TensorRT."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Layers that only change how a tensor lies in memory: the price of widths or types that do not fit a kernel.
REFORMAT_KIND = "Reformat"
REFORMAT_WORDS = ("reformatting copynode", "reformat")
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
    """Return the number of layers, by kind, and how many of them only change a memory format."""
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
