"""Why a measured speedup is not the ratio of MACs: one sentence per pair, from layer times.

The ticket's time is split by `losses`: what its MACs would cost at dense's rate, and what comes on top by
kind. The sentence names the kinds that matter, largest first, with their numbers; advice is given as
measured only where it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ticket_export.measure.layer_pairs import LayerPair
from ticket_export.measure.losses import Losses, rate

# Two profiles of one file, taken in turns, differ by 0.3 % in the median of 24 and by 5.5 % at most, beside
# seven busy processes on two cores (ResNet-18 and ResNet-50, batch 1): smaller things are not told.
AGREE_FRACTION = 0.10  # measured and MAC ratio this close to each other are called equal
NAMED_SHARE = 0.05  # kinds below this share of the ticket's time are not named
SECOND_SHARE = 0.5  # a second kind is named when it costs at least this share of the first
ROUGH_FRACTION = 0.15  # a profile whose own ratio is this far from the measured one is called rough
PLACED_LIMIT = 0.5  # below this share of kernel time found in both networks nothing is concluded
LAUNCH_RATIO = 1.1  # a CUDA graph that makes it this much faster shows that launches are waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A measured ratio and the ends of its 95 % interval."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A variant of the ticket that was measured against the same dense network, e.g. "round_to: 16"."""

    label: str
    speedup: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a ticket is as fast as it is.

    Attributes:
        kind: "as_macs", "faster_than_macs", a kind of `losses.KINDS`, "mixed" (nothing alone matters),
            "unresolved" (the interval is too wide to tell) or "unknown" (no layer times, or too few of them
            could be placed).
        sentence: for people, one sentence without a full stop inside.
        evidence: the numbers it rests on, JSON values; shares are fractions of the ticket's time.
    """

    kind: str
    sentence: str
    evidence: Mapping[str, Any]  # Any: JSON values

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return kind, sentence and evidence as JSON values."""
        return {"kind": self.kind, "sentence": self.sentence, "evidence": dict(self.evidence)}


def cause(
    found: Losses,
    measured: Ratio,
    *,
    grid: int,
    graph_speedup: float | None = None,
    tried: Sequence[Tried] = (),
) -> Cause:
    """Say why `measured` is not the ratio of MACs, or that it is.

    Args:
        found: the split of the ticket's profiled time.
        measured: dense latency / ticket latency, timed without a profiler.
        grid: multiple of channels that the kernels want, as given to `losses`.
        graph_speedup: how many times faster the ticket runs from a CUDA graph than without, where measured.
        tried: variants of the ticket that were measured; only these are ever recommended as faster.
    """
    kind, sentence = _verdict(found, measured, grid, graph_speedup, tried)
    evidence = _evidence(found, measured, grid, graph_speedup, tried)
    return Cause(kind=kind, sentence=f"{sentence}.", evidence=evidence)


def _verdict(
    found: Losses, measured: Ratio, grid: int, graph_speedup: float | None, tried: Sequence[Tried]
) -> tuple[str, str]:
    """Return kind and sentence; the first test that holds decides."""
    macs = 1.0 / found.mac_fraction
    opening = f"{measured.ratio:.2f}x measured where the MACs are {macs:.2f}x fewer"
    if found.placed_fraction < PLACED_LIMIT:
        lost = f"only {found.placed_fraction:.0%} of its kernel time could be placed in layers of both files"
        return "unknown", f"{opening}; why is not known: {lost}"
    if abs(measured.ratio / macs - 1.0) <= AGREE_FRACTION:
        what = "the same MACs" if abs(macs - 1.0) < 0.005 else f"{macs:.2f}x fewer MACs"
        told = f"{measured.ratio:.2f}x measured and {what}: the time follows the MACs"
        return "as_macs", told + _next(found, measured, grid, tried, "as_macs")
    if measured.low <= macs <= measured.high:
        told = f"{measured} measured, an interval that holds the {macs:.2f}x of its MACs"
        return "unresolved", f"{told}; measure it on a quieter machine"
    if graph_speedup is not None and graph_speedup >= LAUNCH_RATIO:
        told = f"{opening}: it waits for launches, a CUDA graph makes it {graph_speedup:.2f}x faster"
        return "launch", told + _next(found, measured, grid, tried, "launch")
    if measured.ratio > macs:
        return "faster_than_macs", _faster(found, opening) + _rough(found, measured)
    shares = {kind: share for kind, share in found.shares.items() if kind != "noise"}
    ranked = sorted(shares, key=lambda kind: -shares[kind])
    first = ranked[0]
    if shares[first] < NAMED_SHARE:
        told = f"{opening}: no single thing costs {share_text(NAMED_SHARE)} of its time"
        return "mixed", told + _rough(found, measured)
    limit = max(SECOND_SHARE * shares[first], NAMED_SHARE)
    named = [first, *(kind for kind in ranked[1:] if shares[kind] >= limit)]
    clauses = [f"{share_text(shares[kind])} of its time {_CLAUSES[kind](found, grid)}" for kind in named]
    told = f"{opening}: {', and '.join(clauses)}{_rough(found, measured)}"
    return first, told + _next(found, measured, grid, tried, first)


def no_layer_times(measured: Ratio, reason: str, macs: float | None = None) -> Cause:
    """Return the cause of a pair without a profile: that it is not known, and why not."""
    fewer = "" if macs is None else f" where the MACs are {macs:.2f}x fewer"
    return Cause(
        kind="unknown",
        sentence=f"{measured.ratio:.2f}x measured{fewer}; why is not known: no layer times ({reason}).",
        evidence={"mac_ratio": macs, "measured": [measured.ratio, measured.low, measured.high]},
    )


def _layers(count: int, kind: str = "") -> str:
    return f"{count} {kind} layer{'' if count == 1 else 's'}".replace("  ", " ")


def share_text(fraction: float) -> str:
    """Write a share of the time: `12 %`."""
    return f"{100 * fraction:.0f} %"


def _widths(found: Losses, grid: int) -> str:
    pairs = found.of_kind("widths")
    before, after = _rates(pairs)
    return (
        f"is lost in {len(pairs)} of {_layers(len(found.ticket.layers))} whose widths are off the grid of "
        f"{grid} channels: they run {after} GMAC/s, dense's {before}"
    )


def _reformat(found: Losses, grid: int) -> str:
    own, dense = found.ticket, found.dense
    unfused = {layer.op for layer in own.others} - {layer.op for layer in dense.others}
    more = f" and {', '.join(sorted(unfused))} that dense has fused" if unfused else ""
    cause = " because of those widths" if found.of_kind("widths") else ""
    return (
        f"goes to {len(own.reformats)} changes of layout (dense: {len(dense.reformats)}){more}{cause}"
        if own.reformats
        else f"goes to {', '.join(sorted(unfused)) or 'layers'} that dense has fused{cause}"
    )


def _memory(found: Losses, grid: int) -> str:
    pairs = found.of_kind("memory")
    lost = {loss.pair.name: loss.rate_s for loss in found.layers if loss.kind == "memory"}
    worst = [name for name, seconds in sorted(lost.items(), key=lambda item: -item[1]) if seconds > 0][:3]
    ops = sorted({layer.op for layer in found.ticket.others if layer.op})[:3]
    if not worst:
        return f"goes to layers without multiplications ({', '.join(ops)}), which move memory"
    bytes_before = sum(pair.dense.cost.num_bytes for pair in pairs if pair.dense)
    bytes_after = sum(pair.ticket.cost.num_bytes for pair in pairs if pair.ticket)
    fewer = f"{bytes_before / bytes_after:.1f}x fewer bytes"
    return f"is lost where memory sets the pace ({', '.join(worst)}; {fewer})"


def _floor(found: Losses, grid: int) -> str:
    fixed = found.of_kind("fixed")
    time = sum(pair.dense.seconds for pair in fixed if pair.dense) / found.dense.whole_s
    macs = sum(pair.dense.cost.macs for pair in fixed if pair.dense) / max(found.dense.macs, 1)
    if not fixed or time <= macs:
        return (
            "is lost because its MACs went where dense was fast: at dense's rate in every layer it would be "
            f"{found.bound:.2f}x"
        )
    names = ", ".join(pair.name for pair in fixed[:3]) + (", ..." if len(fixed) > 3 else "")
    return (
        f"is the floor that both share: {_layers(len(fixed))} it does not shrink ({names}) took "
        f"{share_text(time)} of dense's time and {share_text(macs)} of its MACs, so that more than "
        f"{found.bound:.2f}x is out of reach"
    )


def _kernels(found: Losses, grid: int) -> str:
    pairs = found.of_kind("kernels")
    before, after = _rates(pairs)
    return f"is lost in {_layers(len(pairs), 'smaller')} at {after} GMAC/s, dense's run {before}"


def _launch(found: Losses, grid: int) -> str:
    own = found.ticket.between_s / found.ticket.whole_s
    dense = found.dense.between_s / found.dense.whole_s
    return f"passes between the kernels ({share_text(own)} in all, {share_text(dense)} of dense's)"


_CLAUSES: Mapping[str, Callable[[Losses, int], str]] = {
    "widths": _widths,
    "reformat": _reformat,
    "memory": _memory,
    "floor": _floor,
    "kernels": _kernels,
    "launch": _launch,
}
_TRY = {
    "widths": "try round_to: {grid}",
    "reformat": "try round_to: {grid}",
    "memory": "try a precision with fewer bytes",
    "kernels": "try a larger batch",
    "launch": "try a CUDA graph or a larger batch",
    "floor": "try a scope that shrinks those layers too",
}


def _next(found: Losses, measured: Ratio, grid: int, tried: Sequence[Tried], kind: str) -> str:
    """Return what to do: a variant measured to be faster, that none is, or what to try."""
    best = max(tried, key=lambda variant: variant.speedup.ratio, default=None)
    if best is not None and best.speedup.low > measured.ratio:
        return f"; {best.label} was measured at {best.speedup}"
    if best is not None and kind in ("widths", "reformat"):
        return f"; nothing tried is faster (best: {best.label}, {best.speedup})"
    if kind == "reformat" and not found.of_kind("widths"):
        return ""
    return f"; {_TRY[kind].format(grid=grid)} (not measured)" if kind in _TRY else ""


def _faster(found: Losses, opening: str) -> str:
    kind, seconds = min(found.seconds_by_kind.items(), key=lambda item: item[1])
    share = share_text(-seconds / found.ticket.whole_s)
    if kind in ("widths", "memory", "kernels") and found.of_kind(kind):
        before, after = _rates(found.of_kind(kind))
        return f"{opening}: its layers run {after} GMAC/s, dense's {before}, which saves {share} of its time"
    words = {"floor": "its MACs went where dense was slow", "launch": "less time passes between the kernels"}
    return f"{opening}: {words.get(kind, 'it changes layouts less often')}, which saves {share} of its time"


def _rough(found: Losses, measured: Ratio) -> str:
    own = found.dense.whole_s / found.ticket.whole_s
    noise = found.shares["noise"]
    if abs(own / measured.ratio - 1.0) > ROUGH_FRACTION:
        return f" (rough: the profile itself shows {own:.2f}x)"
    if abs(noise) > NAMED_SHARE:
        return f" (rough: layers equal in both differ by {share_text(abs(noise))} of its time)"
    return ""


def _rates(pairs: Sequence[LayerPair]) -> tuple[str, str]:
    """Return dense's and the ticket's GMAC/s over some layers, as text."""
    before = rate([pair.dense for pair in pairs if pair.dense])
    after = rate([pair.ticket for pair in pairs if pair.ticket])
    digits = 0 if min(before, after) >= 10e9 else 1
    return f"{before / 1e9:.{digits}f}", f"{after / 1e9:.{digits}f}"


def _evidence(
    found: Losses, measured: Ratio, grid: int, graph_speedup: float | None, tried: Sequence[Tried]
) -> dict[str, Any]:  # Any: JSON values
    dense, ticket = found.dense, found.ticket
    return {
        "mac_ratio": 1.0 / found.mac_fraction,
        "measured": [measured.ratio, measured.low, measured.high],
        "profile_ratio": dense.whole_s / ticket.whole_s,
        "bound": found.bound,
        "share_by_macs": found.mac_fraction * dense.whole_s / ticket.whole_s,
        "shares": found.shares,
        "seconds": found.seconds_by_kind,
        "placed_fraction": found.placed_fraction,
        "grid": grid,
        "num_layers": len(ticket.layers),
        "num_off_grid": len(found.of_kind("widths")),
        "num_reformats": [len(dense.reformats), len(ticket.reformats)],
        "graph_speedup": graph_speedup,
        "tried": [[v.label, v.speedup.ratio, v.speedup.low, v.speedup.high] for v in tried],
        "profiled_s": [dense.whole_s, ticket.whole_s],
        "missing": [list(dense.missing), list(ticket.missing)],
        "layers": [_layer_json(loss.pair, loss.rate_s, loss.kind) for loss in found.layers],
    }


def _layer_json(pair: LayerPair, lost_s: float, kind: str) -> dict[str, Any]:  # Any: JSON values
    sides = (pair.dense, pair.ticket)
    return {
        "name": pair.name,
        "kind": kind,
        "lost_s": lost_s,
        "width_in": [None if side is None else side.cost.width_in for side in sides],
        "width_out": [None if side is None else side.cost.width_out for side in sides],
        "macs": [None if side is None else side.cost.macs for side in sides],
        "seconds": [None if side is None else side.seconds for side in sides],
    }
