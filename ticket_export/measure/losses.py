"""Where a ticket's time goes beyond what its MACs cost in the dense network, split so that nothing is left.

With r = MACs of the ticket / MACs of dense, a ticket as fast as its MACs promise takes r times the dense
time. What it takes beyond that is, exactly, the sum over all layers and pauses of (ticket time - r x dense
time). For a layer that multiplies, r_i being its own ratio, this is

    (ticket time - r_i x dense time)   its kernel runs slower per MAC than dense's: widths, memory, kernels
  + (r_i - r) x dense time             it shrinks less than the network: the floor

The second part adds up to zero over a network whose layers all run at one rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ticket_export.measure.layer_pairs import LayerPair, TimedLayer, TimedNetwork, pairs_of, seconds_by_op
from ticket_export.runtime.layers import LayerTime

KINDS = (
    "floor",  # layers that shrink less than the network
    "widths",  # kernels that left the grid of channels and run slower per MAC than dense's
    "memory",  # kernels bound by memory that run slower per MAC, and layers without MACs, such as MaxPool
    "kernels",  # all other kernels that shrank and run slower per MAC
    "reformat",  # changes of layout the runtime adds, and layers that dense has fused into others
    "launch",  # time between the kernels
    "noise",  # layers equal in both networks that took unequal time
)
FIXED_FRACTION = 0.95  # a layer that keeps at least this share of its MACs counts as not shrunk
NEAR_BEST = 0.5  # a kernel that moves its bytes at less than half the best rate waits for something else
SHARE_OF_TIME_FOR_RATES = 0.01  # rates of layers below this share of the time are mostly the clock's ticks


@dataclass(frozen=True, slots=True, kw_only=True)
class BestRates:
    """The best rates of any layer in two profiles: what this machine has shown, not its data sheet."""

    macs_per_s: float
    bytes_per_s: float

    def says_memory_sets_the_pace(self, layer: TimedLayer) -> bool:
        """Return whether at these rates its bytes take longer than its MACs, and half its time or more."""
        bytes_s = layer.cost.num_bytes / self.bytes_per_s if self.bytes_per_s else 0.0
        macs_s = layer.cost.macs / self.macs_per_s if self.macs_per_s else 0.0
        return bytes_s > macs_s and bytes_s >= NEAR_BEST * layer.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """One layer in both networks.

    Attributes:
        pair: the layer.
        rate_s: seconds it takes beyond its own share of MACs: its kernel runs slower per MAC than dense's.
        floor_s: seconds it takes because it shrinks less than the network.
        kind: "fixed", "widths", "memory", "kernels" or "alone" (in one network only).
    """

    pair: LayerPair
    rate_s: float
    floor_s: float
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a ticket's profiled time consists of.

    Attributes:
        dense, ticket: the two profiles.
        mac_fraction: MACs of the ticket / MACs of dense, r.
        layers: one per layer of either network, slowest per MAC against dense first.
        seconds_by_kind: see KINDS; with `mac_fraction` x dense seconds they add up to the ticket's seconds. A
            negative one is a gain.
        best: the best rates seen in the two profiles, which decide what is bound by memory.
    """

    dense: TimedNetwork
    ticket: TimedNetwork
    mac_fraction: float
    layers: tuple[LayerLoss, ...]
    seconds_by_kind: dict[str, float]
    best: BestRates

    @property
    def shares(self) -> dict[str, float]:
        """Each kind's seconds as a fraction of the ticket's time."""
        return {kind: seconds / self.ticket.whole_s for kind, seconds in self.seconds_by_kind.items()}

    @property
    def placed_fraction(self) -> float:
        """Share of the ticket's time in layers that were found in both networks, pauses and others aside."""
        found = sum(loss.pair.ticket.seconds for loss in self.layers if loss.pair.ticket and loss.pair.dense)
        odd_s = sum(layer.seconds for layer in (*self.ticket.others, *self.ticket.reformats))
        return found / (found + odd_s) if found + odd_s else 0.0

    @property
    def bound(self) -> float:
        """The speedup that would be seen if every layer kept dense's rate: only the floor is paid."""
        return self.dense.whole_s / (
            self.mac_fraction * self.dense.whole_s + max(self.seconds_by_kind["floor"], 0.0)
        )

    def of_kind(self, kind: str) -> list[LayerPair]:
        """Return the pairs of one kind, in the order of `layers`; both sides are there unless "alone"."""
        return [loss.pair for loss in self.layers if loss.kind == kind]


def losses(dense: TimedNetwork, ticket: TimedNetwork, *, grid: int) -> Losses:
    """Split the ticket's profiled time.

    Args:
        dense: profile of the baseline.
        ticket: profile of the subject, by the same runtime at the same batch.
        grid: multiple that the runtime's kernels want channels to be; see `width_grid`.
    """
    mac_fraction = ticket.macs / dense.macs if dense.macs else 1.0
    best = _best_rates((*dense.layers, *ticket.layers), max(dense.whole_s, ticket.whole_s))
    found = [_layer_loss(pair, mac_fraction, grid, best) for pair in pairs_of(dense, ticket)]
    seconds = dict.fromkeys(KINDS, 0.0)
    for loss in found:
        seconds["floor"] += loss.floor_s
        seconds["noise" if loss.kind in ("fixed", "alone") else loss.kind] += loss.rate_s
    dense_ops, ticket_ops = seconds_by_op(dense.others), seconds_by_op(ticket.others)
    for op in {*dense_ops, *ticket_ops}:
        # an operator that dense never runs by itself is fused there: its being alone is the runtime's doing
        kind = "memory" if op in dense_ops else "reformat"
        seconds[kind] += ticket_ops.get(op, 0.0) - mac_fraction * dense_ops.get(op, 0.0)
    seconds["reformat"] += _sum_s(ticket.reformats) - mac_fraction * _sum_s(dense.reformats)
    seconds["launch"] += ticket.between_s - mac_fraction * dense.between_s
    return Losses(
        dense=dense,
        ticket=ticket,
        mac_fraction=mac_fraction,
        layers=tuple(sorted(found, key=lambda loss: -loss.rate_s)),
        seconds_by_kind=seconds,
        best=best,
    )


def width_grid(runtime: str, *, device: str, precision: str, instruction_sets: Iterable[str] = ()) -> int:
    """Return the multiple of channels that the runtime's kernels are written for.

    ONNX Runtime's blocked layout on a CPU packs 16 channels with AVX-512 and 8 without (`NchwcBlockSize` in
    onnxruntime/core/mlas/lib/platform.cpp); its int8 kernels take multiples of 4, and further rounding gains
    nothing (benchmarks/layers.py, 2-core EPYC). Eager torch on a CPU has none: 47 channels take as long per
    MAC as 48. On an NVIDIA GPU tensor cores want multiples of 8 in fp16, 16 in int8 and 4 in TF32 (NVIDIA,
    "Matrix Multiplication Background", requirements by precision); TensorRT packs int8 channels by 32
    (TensorRT issue 1310).

    Args:
        runtime: its registered name.
        device: where it runs, e.g. "cpu" or "cuda:0".
        precision: what it computes in.
        instruction_sets: of the CPU.
    """
    if device == "cpu":
        if runtime != "ort-cpu":
            return 1
        if precision == "int8":
            return 4
        return 16 if any(name.startswith("avx512") for name in instruction_sets) else 8
    if precision == "int8":
        return 32 if runtime == "tensorrt" else 16
    return 8 if precision in ("fp16", "bf16") else 4


def off_grid(pair: LayerPair, grid: int) -> bool:
    """Return whether the ticket's widths left a grid that dense's were on."""
    if pair.dense is None or pair.ticket is None:
        return False
    before, after = pair.dense.cost, pair.ticket.cost
    return any(
        now % grid != 0 and was % grid == 0
        for was, now in ((before.width_in, after.width_in), (before.width_out, after.width_out))
    )


def rate(layers: Sequence[TimedLayer]) -> float:
    """Return MACs per second over some layers."""
    seconds = sum(layer.seconds for layer in layers)
    return sum(layer.cost.macs for layer in layers) / seconds if seconds else 0.0


def _layer_loss(pair: LayerPair, mac_fraction: float, grid: int, best: BestRates) -> LayerLoss:
    if pair.dense is None or pair.ticket is None:
        there_s = 0.0 if pair.ticket is None else pair.ticket.seconds
        dense_s = 0.0 if pair.dense is None else pair.dense.seconds
        return LayerLoss(pair=pair, rate_s=0.0, floor_s=there_s - mac_fraction * dense_s, kind="alone")
    own_fraction = pair.ticket.cost.macs / pair.dense.cost.macs
    floor_s = (own_fraction - mac_fraction) * pair.dense.seconds
    rate_s = pair.ticket.seconds - own_fraction * pair.dense.seconds
    if own_fraction >= FIXED_FRACTION:
        kind = "fixed"
    elif off_grid(pair, grid):
        kind = "widths"
    else:
        kind = "memory" if best.says_memory_sets_the_pace(pair.ticket) else "kernels"
    return LayerLoss(pair=pair, rate_s=rate_s, floor_s=floor_s, kind=kind)


def _best_rates(layers: Sequence[TimedLayer], whole_s: float) -> BestRates:
    """Return the best rates over the layers long enough to trust."""
    long = [layer for layer in layers if layer.seconds >= SHARE_OF_TIME_FOR_RATES * whole_s]
    return BestRates(
        macs_per_s=max((layer.cost.macs / layer.seconds for layer in long), default=0.0),
        bytes_per_s=max((layer.cost.num_bytes / layer.seconds for layer in long), default=0.0),
    )


def _sum_s(layers: Iterable[LayerTime]) -> float:
    return sum(layer.seconds for layer in layers)
