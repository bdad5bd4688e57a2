"""All networks of all runs timed in the same rounds, and what that shows of any two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import onnx
from fronts.reading import Key, Network

from ticket_export.measure.compare import Comparison, latency_row
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.speedup import speedup
from ticket_export.report.intervals import Spread, mean_interval
from ticket_export.report.verdict import speedup_spread

Shape: TypeAlias = tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]


def shape_of(path: Path) -> Shape:
    """Return what decides how long a file takes: its operators in order, and the sizes of their weights."""
    graph = onnx.load(path).graph
    sizes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    return tuple(
        (node.op_type, tuple(sizes[name] for name in node.input if name in sizes)) for node in graph.node
    )


def representatives(networks: Sequence[Network]) -> dict[Key, Key]:
    """Return which replicate is timed for each: one for all where their widths are equal, else each."""
    timed: dict[Key, Key] = {}
    for name in dict.fromkeys(network.name for network in networks):
        own = [network for network in networks if network.name == name]
        first = (name, own[0].replicate)
        alike = len({shape_of(network.path) for network in own}) == 1
        for network in own:
            key = (name, network.replicate)
            timed[key] = first if alike else key
    return timed


def label_of(key: Key) -> str:
    """Return what a network is called in the measuring run."""
    return f"{key[0]} #{key[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One interleaved run of all networks.

    Attributes:
        comparison: by `label_of` of what was timed; the first is the baseline.
        timed: network and replicate -> the network and replicate that stands for it.
    """

    comparison: Comparison
    timed: Mapping[Key, Key]

    def keys_of(self, name: str) -> list[Key]:
        """Return what was timed of a network."""
        return list(dict.fromkeys(key for own, key in self.timed.items() if own[0] == name))

    def measurement(self, key: Key) -> Measurement:
        """Return the timings of one of `keys_of`."""
        return self.comparison.measurements[label_of(key)]

    def latency_of(self, name: str) -> Spread:
        """Return the median latency, mean over what was timed; low and high span the 95 % intervals.

        An interval is Student's t over the logarithms of the medians of the rounds.
        """
        found = [self.measurement(key) for key in self.keys_of(name)]
        ends = [mean_interval([log(each) for each in one.round_medians_s]) for one in found]
        return Spread(
            mean=fmean(one.p50_s for one in found),
            low=exp(min(low for low, _ in ends)),
            high=exp(max(high for _, high in ends)),
        )

    def speedup_of(self, one: str, other: str) -> Spread:
        """Return how many times faster the first is than the second, measured in the same rounds.

        Replicate by replicate; of networks that share none, all against all. The geometric mean, within the
        span of the 95 % intervals.
        """
        replicates = [{own[1] for own in self.timed if own[0] == name} for name in (one, other)]
        shared = replicates[0] & replicates[1]
        pairs = {(self.timed[one, each], self.timed[other, each]) for each in shared} or {
            (ours, theirs) for ours in self.keys_of(one) for theirs in self.keys_of(other)
        }
        return speedup_spread(
            [
                speedup(self.measurement(theirs), self.measurement(ours)).to_json()
                for ours, theirs in sorted(pairs)
            ]
        )

    def rows(self) -> list[dict[str, Any]]:  # Any: JSON
        """Return a row per timed network, as `measure` has it, with the medians of all rounds in turn."""
        baseline = self.comparison.measurements[self.comparison.baseline]
        found = []
        for name, replicate in dict.fromkeys(self.timed.values()):
            own = self.measurement((name, replicate))
            found.append(
                {
                    "subject": name,
                    "replicate": replicate,
                    **latency_row(own, baseline),
                    "round_medians_s": own.round_medians_s.tolist(),
                }
            )
        return found
