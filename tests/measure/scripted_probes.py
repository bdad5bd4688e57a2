"""Probes that take what a formula says, and compute nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ticket_export.measure.layer_kind import LayerKind
from ticket_export.measure.probe import Probe, ProbeLayer
from ticket_export.runtime.fake import FakeRunner
from ticket_export.runtime.runner import TensorSpec

RUN_S = 5e-5
CONV = LayerKind(op="conv", kernel=(3, 3), stride=(1, 1), padding=(1, 1), in_size=(8, 8))
STRIDED = LayerKind(op="conv", kernel=(3, 3), stride=(2, 2), padding=(1, 1), in_size=(8, 8))
DEPTHWISE = LayerKind(op="conv", kernel=(3, 3), stride=(1, 1), padding=(1, 1), in_size=(8, 8), depthwise=True)
LINEAR = LayerKind(op="linear", kernel=(1, 1), stride=(1, 1), padding=(0, 0), in_size=(1, 1))


def in_lines_of_8(layer: ProbeLayer) -> float:
    """A machine that computes channels in lines of 8, and copies nothing for free at the ends."""
    if layer.kind.kernel == (1, 1) and layer.kind.op == "conv":
        return 1e-7 * max(layer.width_in, layer.width_out)
    lines_in, lines_out = -(-layer.width_in // 8), -(-layer.width_out // 8)
    return 1e-6 * lines_out * (1 if layer.kind.depthwise else lines_in)


class ScriptedProbes:
    """Opens probes and remembers their names; all are twice as slow after the first `slower_after`."""

    def __init__(
        self,
        layer_s: Callable[[ProbeLayer], float] = in_lines_of_8,
        *,
        fails_after: int | None = None,
        slower_after: int | None = None,
        claims: Mapping[str, str | int] | None = None,
    ) -> None:
        self.opened: list[str] = []
        self._slower_after = slower_after
        self._layer_s, self._fails_after, self._claims = layer_s, fails_after, dict(claims or {})

    def __call__(self, probe: Probe) -> FakeRunner:
        if self._fails_after is not None and len(self.opened) >= self._fails_after:
            raise KeyboardInterrupt
        self.opened.append(probe.name)
        seconds = RUN_S + sum(map(self._layer_s, probe.layers))
        if self._slower_after is not None and len(self.opened) > self._slower_after:
            seconds *= 2
        spec = TensorSpec(name="input", dtype="float32", shape=(None, *probe.input_shape))
        return FakeRunner(lambda _: seconds, spec=spec, **self._claims)  # type: ignore[arg-type]
