"""Which channel classes may go: liveness from the pins backwards, carriers, rounding, and the hull.

A class is needed when it is pinned, or when a needed row reads one of its columns with a non-zero weight
and the column is not a constant that can be folded. Starting from the pins gives the least fixed point:
everything that is provably removable goes in one pass, and nothing depends on the order of removal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ticket_export.channels.classes import FIXED
from ticket_export.channels.compact import core, varying_axes
from ticket_export.channels.constants import ConstantGraph, KnownColumns
from ticket_export.channels.graph import ChannelGroup, labelled_axes
from ticket_export.channels.labelled import Contraction, LabelledGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """One weight that reads channels, over all its uses.

    Attributes:
        weight: name of the weight.
        rows [O], columns [I]: roots of the classes.
        is_nonzero [O, I]: whether any kernel tap is not zero.
        foldable [I]: the column is one constant, the same in every use.
        value [I]: that constant, float64; 0 where not foldable.
        row_is_tainted [O]: whether the row's own output depends on the input in some use.
        is_padded: whether some use adds zeros around its input.
    """

    weight: str
    rows: Tensor
    columns: Tensor
    is_nonzero: Tensor
    foldable: Tensor
    value: Tensor
    row_is_tainted: Tensor
    is_padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What stays.

    Attributes:
        kept: bool by root; `needed` are those whose values matter, the rest of `kept` are carriers, widths
            rounded up, and the last channel of a layer.
        carriers: roots kept to carry the constants of removed channels past a zero-padded border.
    """

    kept: Tensor
    needed: Tensor
    carriers: frozenset[int]


def sinks_of(graph: LabelledGraph, constants: ConstantGraph) -> list[Sink]:
    """Return one sink per weight, in graph order; a shared weight folds only what all its uses agree on."""
    uses: dict[str, list[Contraction]] = {}
    for contraction in graph.contractions:
        uses.setdefault(contraction.weight, []).append(contraction)
    sinks = []
    for weight, contractions in uses.items():
        first = contractions[0]
        seen: list[KnownColumns] = [constants.columns[contraction.node] for contraction in contractions]
        foldable = torch.stack([k.is_constant & (k.value == seen[0].value) for k in seen]).all(dim=0)
        tensor = graph.trace.tensor(weight).detach().movedim((first.row_axis, first.column_axis), (0, 1))
        sinks.append(
            Sink(
                weight=weight,
                rows=graph.classes.roots(first.rows).contiguous(),
                columns=graph.classes.roots(first.columns).contiguous(),
                is_nonzero=(tensor.flatten(2) != 0).any(dim=2) if tensor.dim() > 2 else tensor != 0,
                foldable=foldable,
                value=torch.where(foldable, seen[0].value, 0.0),
                row_is_tainted=torch.stack([k.row_is_tainted for k in seen]).any(dim=0),
                is_padded=any(contraction.is_padded for contraction in contractions),
            )
        )
    return sinks


def decide(
    graph: LabelledGraph, sinks: Sequence[Sink], groups: Sequence[ChannelGroup], *, round_to: int = 1
) -> Decision:
    """Return the smallest set of classes that keeps the function and every tensor rectangular.

    Args:
        graph: the labelled network.
        sinks: its weights with what they see (`sinks_of`).
        groups: its channel groups, for rounding.
        round_to: kept widths are rounded up to a multiple of this, capped by the width.
    """
    return _Decider(graph, sinks, groups, round_to).run()


class _Decider:
    def __init__(
        self, graph: LabelledGraph, sinks: Sequence[Sink], groups: Sequence[ChannelGroup], round_to: int
    ) -> None:
        self.graph = graph
        self.sinks = sinks
        self.groups = groups
        self.round_to = round_to
        self.needed = torch.zeros(graph.classes.num_labels, dtype=torch.bool)
        self.needed[list(graph.classes.pin_by_root())] = True
        self.needed[: FIXED + 1] = True
        self.extra = torch.zeros_like(self.needed)
        self.carriers: set[int] = set()
        self.axes = [axis.labels for axis in labelled_axes(graph)]
        self.grids = self._tensors_with_two_channel_axes()

    def run(self) -> Decision:
        while True:
            before = (int(self.needed.sum()), int(self.extra.sum()))
            self._spread_need()
            self._keep_hulls()
            self._keep_one_channel_per_tensor()
            self._keep_carriers()
            self._round_widths_up()
            if before == (int(self.needed.sum()), int(self.extra.sum())):
                return Decision(kept=self.kept, needed=self.needed, carriers=frozenset(self.carriers))

    @property
    def kept(self) -> Tensor:
        return self.needed | self.extra

    def _spread_need(self) -> None:
        while True:
            before = int(self.needed.sum())
            for sink in reversed(self.sinks):
                row_matters = self.needed[sink.rows]
                if row_matters.any():
                    read = (sink.is_nonzero if row_matters.all() else sink.is_nonzero[row_matters]).any(dim=0)
                    self.needed[sink.columns[read & ~sink.foldable]] = True
            if int(self.needed.sum()) == before:
                return

    # ------------------------------------------------------------------ tensors stay rectangular

    def _tensors_with_two_channel_axes(self) -> list[Tensor]:
        grids = []
        labels = [part for value in self.graph.values.values() for part in _parts(value)]
        for tensor in [*labels, *self.graph.leaves.values()]:
            roots = self.graph.classes.roots(tensor)
            if len(varying_axes(roots)) > 1:
                grids.append(core(roots))
        return grids

    def _keep_hulls(self) -> None:
        """Keep the product of what every axis keeps: a tensor has no holes."""
        for grid in self.grids:
            kept = self.kept[grid]
            hull = torch.ones((), dtype=torch.bool)
            for axis in range(grid.dim()):
                others = [other for other in range(grid.dim()) if other != axis]
                hull = hull & (kept.amax(dim=others, keepdim=True) if others else kept)
            self.needed[grid[hull.expand(grid.shape) & ~kept]] = True

    def _keep_one_channel_per_tensor(self) -> None:
        for roots in self.axes:
            if len(roots) and not self.kept[roots].any():
                self.extra[roots[0]] = True

    # ------------------------------------------------------------------ constants at zero-padded borders

    def _keep_carriers(self) -> None:
        while True:
            needy = [sink for sink in self.sinks if sink.is_padded and self._lacks_carrier(sink)]
            if not needy:
                return
            served: dict[int, list[float]] = {}
            for sink in needy:
                usable = torch.nonzero(sink.foldable & (sink.value != 0)).flatten()
                for column in usable.tolist():
                    served.setdefault(int(sink.columns[column]), []).append(abs(float(sink.value[column])))
            # the class that serves most weights, then the one whose smallest constant is largest
            best = max(served, key=lambda root: (len(served[root]), min(served[root]), -root))
            self.extra[best] = True
            self.carriers.add(best)

    def _lacks_carrier(self, sink: Sink) -> bool:
        row_matters = self.needed[sink.rows]
        read = sink.is_nonzero[row_matters].any(dim=0)
        constant = sink.foldable & (sink.value != 0)
        is_kept = self.kept[sink.columns]
        return bool((read & constant & ~is_kept).any()) and not bool((constant & is_kept).any())

    # ------------------------------------------------------------------ widths the hardware likes

    def _round_widths_up(self) -> None:
        if self.round_to <= 1:
            return
        for group in self.groups:
            if group.pinned is not None or not group.producers:
                continue
            roots = self._roots(group)
            num_kept = int(self.kept[roots].sum())
            target = min(group.width, -(-num_kept // self.round_to) * self.round_to)
            if num_kept and target > num_kept:
                score_C = self._norms(group)
                score_C[self.kept[roots]] = -1.0
                best = torch.sort(score_C, descending=True, stable=True).indices[: target - num_kept]
                self.extra[roots[best]] = True

    def _roots(self, group: ChannelGroup) -> Tensor:
        member = group.producers[0]
        labels = self.graph.classes.roots(self.graph.weight_rows[member.tensor][1])
        return labels[member.indices[:, 0]]

    def _norms(self, group: ChannelGroup) -> Tensor:
        total = torch.zeros(group.width, dtype=torch.float64)
        for member in group.producers:
            rows = self.graph.trace.tensor(member.tensor).detach().movedim(member.axis, 0)
            l1 = rows.flatten(1).abs().sum(dim=1, dtype=torch.float64)
            total += l1[member.indices].sum(dim=1)
        return total


def _parts(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
