"""Where an inference's time goes, layer by layer, in the words of the runtime that ran it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer as the runtime executes it, after its own fusing.

    Attributes:
        name: the runtime's own name; a fused layer may name several nodes of the file.
        op: what it does in the runtime's word, e.g. "Conv" or "Reorder".
        seconds: median over the profiled inferences, all calls of the layer within one inference added up.
    """

    name: str
    op: str
    seconds: float
