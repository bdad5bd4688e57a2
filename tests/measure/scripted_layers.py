"""Networks whose layers, costs and times are written down: what the tests of causes conclude from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ticket_export.measure.layer_pairs import TimedNetwork, timed_network
from ticket_export.runtime.layers import LayerCost, LayerProfile, LayerTime, NetworkCosts


@dataclass(frozen=True)
class Scripted:
    """One layer that multiplies: its widths, its MACs and bytes in millions, its milliseconds.

    Bytes left open are in proportion to the MACs, so that no layer is nearer to memory than another.
    """

    name: str
    width_in: int
    width_out: int
    macs: float
    ms: float
    megabytes: float | None = None


def network(
    layers: Sequence[Scripted],
    others: Sequence[tuple[str, str, float]] = (),
    *,
    between_ms: float = 0.0,
) -> TimedNetwork:
    """Return the network as profiled; `others` are (name, operator, milliseconds) of any other kernel."""
    costs = NetworkCosts(
        layers=tuple(
            LayerCost(
                name=layer.name,
                op="Conv",
                macs=int(layer.macs * 1e6),
                num_bytes=int(layer.macs * 1e4 if layer.megabytes is None else layer.megabytes * 1e6),
                width_in=layer.width_in,
                width_out=layer.width_out,
            )
            for layer in layers
        ),
        layer_by_node={f"node_{layer.name}": layer.name for layer in layers},
        fused_by_node={},
    )
    times = [
        *(LayerTime(name=f"node_{layer.name}", op="Conv", seconds=layer.ms / 1000) for layer in layers),
        *(LayerTime(name=name, op=op, seconds=ms / 1000) for name, op, ms in others),
    ]
    profile = LayerProfile(layers=tuple(times), between_s=between_ms / 1000, num_runs=8)
    return timed_network(profile, costs)
