"""Which channel classes may go: liveness from the pins backwards, carriers, rounding, and the hull.

A class is needed when it is pinned, or when a needed row reads one of its columns with a non-zero weight
and the column is not a constant that can be folded. Starting from the pins gives the least fixed point:
everything that is provably removable goes in one pass, and nothing depends on the order of removal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ticket_export.channels.branches import branch_around
from ticket_export.channels.classes import FIXED
from ticket_export.channels.compact import core, varying_axes
from ticket_export.channels.constants import ConstantGraph, KnownColumns
from ticket_export.channels.graph import ChannelGroup, labelled_axes
from ticket_export.channels.labelled import Contraction, LabelledGraph, parts_of
from ticket_export.shrink.layers import can_add_term


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """One weight that reads channels, over all its uses; one group of it where the convolution is grouped.

    Attributes:
        weight: name of the weight.
        first_row: position of the first row of `rows` in the weight; 0 unless it is grouped.
        rows [O], columns [I]: roots of the classes.
        is_nonzero [O, I]: whether any kernel tap is not zero.
        foldable [I]: the column is one constant, the same in every use, and the layer can take it.
        value [I]: that constant, float64; 0 where not foldable.
        row_is_tainted [O]: whether the row's own output depends on the input in some use.
        is_padded: whether some use adds zeros around its input.
        takes_term: whether the layer can add the response to a padded constant as a term of its own.
    """

    weight: str
    first_row: int
    rows: Tensor
    columns: Tensor
    is_nonzero: Tensor
    foldable: Tensor
    value: Tensor
    row_is_tainted: Tensor
    is_padded: bool
    takes_term: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What stays.

    Attributes:
        kept: bool by root; `needed` are those whose values matter, the rest of `kept` are carriers, widths
            rounded up, and the last channel of a layer.
        carriers: roots kept to carry the constants of removed channels past a zero-padded border.
        emptied: paths of the branches that go, because nothing is kept of a group inside them.
    """

    kept: Tensor
    needed: Tensor
    carriers: frozenset[int]
    emptied: tuple[str, ...] = ()


def sinks_of(graph: LabelledGraph, constants: ConstantGraph) -> list[Sink]:
    """Return the sinks in graph order; a shared weight folds only what all its uses agree on."""
    uses: dict[str, list[Contraction]] = {}
    for contraction in graph.contractions:
        uses.setdefault(contraction.weight, []).append(contraction)
    return [
        sink for contractions in uses.values() for sink in _sinks_of_weight(graph, constants, contractions)
    ]


def _sinks_of_weight(
    graph: LabelledGraph, constants: ConstantGraph, uses: Sequence[Contraction]
) -> Iterator[Sink]:
    first = uses[0]
    seen: list[KnownColumns] = [constants.columns[contraction.node] for contraction in uses]
    foldable = torch.stack([k.is_constant & (k.value == seen[0].value) for k in seen]).all(dim=0)
    layer = graph.trace.layer_of(first.weight)
    if layer is None and any(contraction.bias is None for contraction in uses):
        foldable &= seen[0].value == 0  # a bare parameter has no bias to take a shift
    value = torch.where(foldable, seen[0].value, 0.0)
    row_is_tainted = torch.stack([k.row_is_tainted for k in seen]).any(dim=0)
    rows, columns = (graph.classes.roots(t).contiguous() for t in (first.rows, first.columns))
    tensor = graph.trace.tensor(first.weight).detach().movedim((first.row_axis, first.column_axis), (0, 1))
    is_nonzero = (tensor.flatten(2) != 0).any(dim=2) if tensor.dim() > 2 else tensor != 0
    num_rows, num_columns = len(rows) // first.groups, len(columns) // first.groups
    for group in range(first.groups):
        its_rows = slice(group * num_rows, (group + 1) * num_rows)
        its_columns = slice(group * num_columns, (group + 1) * num_columns)
        yield Sink(
            weight=first.weight,
            first_row=its_rows.start,
            rows=rows[its_rows],
            columns=columns[its_columns],
            is_nonzero=is_nonzero[its_rows],
            foldable=foldable[its_columns],
            value=value[its_columns],
            row_is_tainted=row_is_tainted[its_rows],
            is_padded=any(contraction.is_padded for contraction in uses),
            takes_term=can_add_term(layer),
        )


def decide(
    graph: LabelledGraph,
    sinks: Sequence[Sink],
    groups: Sequence[ChannelGroup],
    *,
    round_to: int = 1,
    padded_constants: str = "auto",
) -> Decision:
    """Return the smallest set of classes that keeps the function and every tensor rectangular.

    Args:
        graph: the labelled network.
        sinks: its weights with what they see (`sinks_of`).
        groups: its channel groups, for rounding.
        round_to: kept widths are rounded up to a multiple of this, capped by the width.
        padded_constants: where constants at zero-padded borders go: "carrier", "term", or "auto" (a carrier
            where no rounded width grows by it, else a term).
    """
    return _Decider(graph, sinks, groups, round_to, padded_constants).run()


def has_dead_layer(sinks: Sequence[Sink], decision: Decision) -> bool:
    """Return whether some weight is left of which no needed row depends on the input."""
    lives: dict[str, bool] = {}
    for sink in sinks:
        if branch_around([sink.weight], decision.emptied) is not None:
            continue
        alive = bool((decision.needed[sink.rows] & sink.row_is_tainted).any())
        lives[sink.weight] = lives.get(sink.weight, False) or alive
    return not all(lives.values())


class _Decider:
    def __init__(
        self,
        graph: LabelledGraph,
        sinks: Sequence[Sink],
        groups: Sequence[ChannelGroup],
        round_to: int,
        padded_constants: str,
    ) -> None:
        self.graph = graph
        self.sinks = sinks
        self.round_to = round_to
        self.padded_constants = padded_constants
        self.needed = torch.zeros(graph.classes.num_labels, dtype=torch.bool)
        self.needed[list(graph.classes.pin_by_root())] = True
        self.needed[: FIXED + 1] = True
        self.extra = torch.zeros_like(self.needed)
        self.carriers: set[int] = set()
        self.in_branches = [group for group in groups if group.branch is not None]
        may_empty = {(m.tensor, m.axis) for group in self.in_branches for m in group.members}
        may_empty -= {(m.tensor, m.axis) for group in groups if group.branch is None for m in group.members}
        self.axes = [
            axis.labels for axis in labelled_axes(graph) if (axis.tensor, axis.axis) not in may_empty
        ]
        self.grids = self._tensors_with_two_channel_axes()
        may_round = [group for group in groups if group.pinned is None and group.producers and round_to > 1]
        self.rounded = [(self._roots(group), self._norms(group)) for group in may_round]

    def run(self) -> Decision:
        while True:
            before = (int(self.needed.sum()), int(self.extra.sum()))
            self._spread_need()
            self._keep_hulls()
            self._keep_one_channel_per_tensor()
            self._keep_equal_groups()
            self._keep_carriers()
            self._round_widths_up()
            if before == (int(self.needed.sum()), int(self.extra.sum())):
                return Decision(
                    kept=self.kept,
                    needed=self.needed,
                    carriers=frozenset(self.carriers),
                    emptied=self._emptied(),
                )

    @property
    def kept(self) -> Tensor:
        return self.needed | self.extra

    def _emptied(self) -> tuple[str, ...]:
        gone = [group.branch for group in self.in_branches if not self.kept[self._roots(group)].any()]
        return tuple(dict.fromkeys(branch for branch in gone if branch is not None))

    def _spread_need(self) -> None:
        while True:
            before = int(self.needed.sum())
            for sink in reversed(self.sinks):
                # a carrier or a filler that is constant keeps its value too
                row_matters = self.needed[sink.rows] | (self.extra[sink.rows] & ~sink.row_is_tainted)
                if row_matters.any():
                    read = (sink.is_nonzero if row_matters.all() else sink.is_nonzero[row_matters]).any(dim=0)
                    self.needed[sink.columns[read & ~sink.foldable]] = True
            if int(self.needed.sum()) == before:
                return

    # ------------------------------------------------------------------ tensors stay rectangular

    def _tensors_with_two_channel_axes(self) -> list[Tensor]:
        grids = []
        labels = [part for value in self.graph.values.values() for part in parts_of(value)]
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

    def _keep_equal_groups(self) -> None:
        """Keep equal numbers of inputs and of outputs in every group of a grouped convolution that stays."""
        for weight, (num_groups, labels) in self.graph.grouped_columns.items():
            sides = [
                self.graph.classes.roots(side).reshape(num_groups, -1)
                for side in (labels, self.graph.weight_rows[weight][1])
            ]
            lives = torch.stack([self.kept[roots].any(dim=1) for roots in sides]).any(dim=0)
            if not lives.any():
                lives[0] = True
            for roots in sides:
                kept = self.kept[roots]
                target = max(1, int(kept.sum(dim=1).max()))
                # the first channels that would go fill the group up
                is_filler = ~kept & ((~kept).cumsum(dim=1) <= (target - kept.sum(dim=1, keepdim=True)))
                self.extra[roots[is_filler & lives[:, None]]] = True

    # ------------------------------------------------------------------ constants at zero-padded borders

    def _keep_carriers(self) -> None:
        needy = self._needy_sinks()
        while needy:
            served: dict[int, list[float]] = {}
            for sink in needy:
                for column in torch.nonzero(sink.foldable & (sink.value != 0)).flatten().tolist():
                    root = int(sink.columns[column])
                    if not sink.takes_term or self._may_carry(root):
                        served.setdefault(root, []).append(abs(float(sink.value[column])))
            if not served:
                return  # what is left becomes added terms
            # the class that serves most weights, then the one whose smallest constant is largest
            best = max(served, key=lambda root: (len(served[root]), min(served[root]), -root))
            self.extra[best] = True
            self.carriers.add(best)
            needy = [sink for sink in needy if self._lacks_carrier(sink)]

    def _may_carry(self, root: int) -> bool:
        """Return whether a carrier is wanted here rather than a term: it must not widen a rounded group."""
        if self.padded_constants != "auto" or self.round_to == 1:
            return self.padded_constants != "term"
        group = next((roots for roots, _ in self.rounded if (roots == root).any()), None)
        return group is None or int(self.kept[group].sum()) % self.round_to != 0

    def _needy_sinks(self) -> list[Sink]:
        return [sink for sink in self.sinks if sink.is_padded and self._lacks_carrier(sink)]

    def _lacks_carrier(self, sink: Sink) -> bool:
        row_matters = self.needed[sink.rows]
        read = sink.is_nonzero[row_matters].any(dim=0)
        constant = sink.foldable & (sink.value != 0)
        is_kept = self.kept[sink.columns]
        return bool((read & constant & ~is_kept).any()) and not bool((constant & is_kept).any())

    # ------------------------------------------------------------------ widths the hardware likes

    def _round_widths_up(self) -> None:
        for roots, score_C in self.rounded:
            num_kept = int(self.kept[roots].sum())
            target = min(len(roots), -(-num_kept // self.round_to) * self.round_to)
            if num_kept and target > num_kept:
                open_score_C = torch.where(self.kept[roots], -1.0, score_C)
                best = torch.sort(open_score_C, descending=True, stable=True).indices[: target - num_kept]
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
