"""Folding the constants of removed channels into what stays; all arithmetic in float64.

A constant that an unpadded layer reads becomes a shift of its output: into the running mean of the norm that
follows, else into the bias. Zero padding meets the kernel where the constant does not, so at a padded
convolution the constants of one tensor collapse into one carrier channel: with c_i the constants, v the
carrier's and W_i the kernel columns, the carrier's column becomes W_v + sum_i (c_i / v) W_i. That is exact at
the borders and at every resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.labelled import Contraction, LabelledGraph
from ticket_export.shrink.removable import Decision, Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One constant that moved.

    Attributes:
        kind: "running_mean", "bias", "new_bias" or "carrier".
        weight: the layer that read the constants.
        target: the tensor that holds them now.
        num_channels: how many removed channels it stands for.
    """

    kind: str
    weight: str
    target: str
    num_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedTensors:
    """Dense-shaped float64 tensors that replace the model's, and the biases it lacks.

    Attributes:
        tensors: name -> new value, dense shape.
        new_biases: weight name -> bias [O] of a layer that had none.
        folds: what was moved where.
    """

    tensors: Mapping[str, Tensor]
    new_biases: Mapping[str, Tensor]
    folds: Sequence[Fold]


def fold_constants(graph: LabelledGraph, sinks: Sequence[Sink], decision: Decision) -> FoldedTensors:
    """Return the tensors that make the function independent of everything `decision` removes."""
    return _Folder(graph, decision).run(sinks)


class _Folder:
    def __init__(self, graph: LabelledGraph, decision: Decision) -> None:
        self.graph = graph
        self.decision = decision
        self.tensors: dict[str, Tensor] = {}
        self.new_biases: dict[str, Tensor] = {}
        self.folds: list[Fold] = []
        self.uses: dict[str, list[Contraction]] = {}
        for contraction in graph.contractions:
            self.uses.setdefault(contraction.weight, []).append(contraction)
        self.num_readers = _num_readers(graph)

    def run(self, sinks: Sequence[Sink]) -> FoldedTensors:
        for sink in sinks:
            self._clear_rows_nobody_needs(sink)
            removed = sink.foldable & (sink.value != 0) & ~self.decision.kept[sink.columns]
            read = sink.is_nonzero[self.decision.kept[sink.rows]].any(dim=0)
            if (removed & read).any():
                if sink.is_padded:
                    self._into_carrier(sink, removed & read)
                else:
                    self._into_shift(sink, removed & read)
        return FoldedTensors(tensors=self.tensors, new_biases=self.new_biases, folds=self.folds)

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = self.graph.trace.tensor(name).detach().to(torch.float64).clone()
        return self.tensors[name]

    def _matrix(self, sink: Sink) -> Tensor:
        """Return the weight as a view [O, I, ...] that writes through."""
        first = self.uses[sink.weight][0]
        return self._tensor(sink.weight).movedim((first.row_axis, first.column_axis), (0, 1))

    def _clear_rows_nobody_needs(self, sink: Sink) -> None:
        # a carrier or a width filler whose row depends on the input is cancelled further down (or read by
        # nobody); zero, it reads nothing either, so what it read can go
        idle = self.decision.kept[sink.rows] & ~self.decision.needed[sink.rows] & sink.row_is_tainted
        if (idle[:, None] & sink.is_nonzero).any():
            self._matrix(sink)[idle] = 0.0

    def _into_carrier(self, sink: Sink, removed: Tensor) -> None:
        usable = sink.foldable & (sink.value != 0) & self.decision.kept[sink.columns]
        carrier = int(torch.where(usable, sink.value.abs(), -1.0).argmax())
        weight = self._matrix(sink)
        share = sink.value[removed] / sink.value[carrier]
        weight[:, carrier] += (weight[:, removed].movedim(1, -1) * share).sum(dim=-1)
        self.folds.append(
            Fold(kind="carrier", weight=sink.weight, target=sink.weight, num_channels=int(removed.sum()))
        )

    def _into_shift(self, sink: Sink, removed: Tensor) -> None:
        taps = (
            self._matrix(sink)[:, removed].flatten(2).sum(dim=2)
            if self._matrix(sink).dim() > 2
            else (self._matrix(sink)[:, removed])
        )
        shift_O = taps @ sink.value[removed]
        count = int(removed.sum())
        shifted_biases: set[str] = set()
        for contraction in self.uses[sink.weight]:
            mean = self._own_running_mean(contraction.node)
            if mean is not None:
                self._tensor(mean).sub_(shift_O)
                self.folds.append(
                    Fold(kind="running_mean", weight=sink.weight, target=mean, num_channels=count)
                )
            elif contraction.bias is not None:
                if contraction.bias not in shifted_biases:
                    shifted_biases.add(contraction.bias)
                    self._tensor(contraction.bias).add_(shift_O)
                    self.folds.append(
                        Fold(kind="bias", weight=sink.weight, target=contraction.bias, num_channels=count)
                    )
            elif sink.weight not in self.new_biases:
                self.new_biases[sink.weight] = shift_O
                bias = sink.weight.removesuffix("weight") + "bias"
                self.folds.append(Fold(kind="new_bias", weight=sink.weight, target=bias, num_channels=count))

    def _own_running_mean(self, node: Node) -> str | None:
        users = list(node.users)
        if len(users) != 1 or ops.op_name(users[0]) not in ops.BATCH_NORMS:
            return None
        mean = users[0].args[3]
        if not isinstance(mean, Node) or mean.op != "get_attr" or self.num_readers[str(mean.target)] != 1:
            return None
        return str(mean.target)


def _num_readers(graph: LabelledGraph) -> dict[str, int]:
    readers: dict[str, int] = {}
    for node in graph.trace.module.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    return readers
