"""Folding the constants of removed channels into what stays; all arithmetic in float64.

A constant that an unpadded layer reads becomes a shift of its output: into the running mean of the norm that
follows, else into the bias. Zero padding meets the kernel where the constant does not, so at a padded
convolution the constants of one tensor collapse into one carrier channel: with c_i the constants, v the
carrier's and W_i the kernel columns, the carrier's column becomes W_v + sum_i (c_i / v) W_i. Or no channel
carries them, and the layer adds the response of the kernel sum_i c_i W_i to an image of ones. Both are exact
at the borders and at every resolution.
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
        kind: "running_mean", "bias", "new_bias", "carrier" or "term".
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
        terms: weight name -> kernel [O, 1, *kernel] whose response to ones the layer adds.
        folds: what was moved where.
    """

    tensors: Mapping[str, Tensor]
    new_biases: Mapping[str, Tensor]
    terms: Mapping[str, Tensor]
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
        self.terms: dict[str, Tensor] = {}
        self.folds: dict[tuple[str, str, str], int] = {}  # (kind, weight, target) -> number of channels
        self.uses: dict[str, list[Contraction]] = {}
        for contraction in graph.contractions:
            self.uses.setdefault(contraction.weight, []).append(contraction)
        self.num_readers = _num_readers(graph)

    def run(self, sinks: Sequence[Sink]) -> FoldedTensors:
        for sink in sinks:
            idle = self._idle_rows(sink)
            if (idle[:, None] & sink.is_nonzero).any():
                self._matrix(sink)[idle] = 0.0
            is_kept = self.decision.kept[sink.columns]
            read = sink.is_nonzero[self.decision.kept[sink.rows] & ~idle].any(dim=0)
            folded = read & sink.foldable & (sink.value != 0) & ~is_kept
            if not folded.any():
                continue
            if not sink.is_padded:
                self._into_shift(sink, folded)
            elif (sink.foldable & (sink.value != 0) & is_kept).any():
                self._into_carrier(sink, folded)
            else:
                self._into_term(sink, folded)
        folds = [Fold(kind=k, weight=w, target=t, num_channels=n) for (k, w, t), n in self.folds.items()]
        return FoldedTensors(tensors=self.tensors, new_biases=self.new_biases, terms=self.terms, folds=folds)

    def _idle_rows(self, sink: Sink) -> Tensor:
        # a carrier or a width filler whose row depends on the input is cancelled further down (or read by
        # nobody); zero, it reads nothing either, so what it read can go
        return self.decision.kept[sink.rows] & ~self.decision.needed[sink.rows] & sink.row_is_tainted

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = self.graph.trace.tensor(name).detach().to(torch.float64).clone()
        return self.tensors[name]

    def _matrix(self, sink: Sink) -> Tensor:
        """Return the sink's rows of the weight as a view [O, I, ...] that writes through."""
        first = self.uses[sink.weight][0]
        whole = self._tensor(sink.weight).movedim((first.row_axis, first.column_axis), (0, 1))
        return whole[sink.first_row : sink.first_row + len(sink.rows)]

    def _note(self, kind: str, sink: Sink, target: str, folded: Tensor) -> None:
        place = (kind, sink.weight, target)
        self.folds[place] = self.folds.get(place, 0) + int(folded.sum())

    def _into_carrier(self, sink: Sink, folded: Tensor) -> None:
        usable = sink.foldable & (sink.value != 0) & self.decision.kept[sink.columns]
        carrier = int(torch.where(usable, sink.value.abs(), -1.0).argmax())
        weight = self._matrix(sink)
        share = sink.value[folded] / sink.value[carrier]
        weight[:, carrier] += (weight[:, folded].movedim(1, -1) * share).sum(dim=-1)
        self._note("carrier", sink, sink.weight, folded)

    def _into_term(self, sink: Sink, folded: Tensor) -> None:
        weight = self._matrix(sink)
        kernel = (weight[:, folded].movedim(1, -1) * sink.value[folded]).sum(dim=-1)
        if sink.weight not in self.terms:
            whole = self._tensor(sink.weight)
            self.terms[sink.weight] = whole.new_zeros(whole.shape[0], 1, *whole.shape[2:])
        self.terms[sink.weight][sink.first_row : sink.first_row + len(sink.rows), 0] = kernel
        self._note("term", sink, sink.weight.removesuffix("weight") + "border", folded)

    def _into_shift(self, sink: Sink, folded: Tensor) -> None:
        columns = self._matrix(sink)[:, folded]
        taps = columns.flatten(2).sum(dim=2) if columns.dim() > 2 else columns
        shift_O = taps @ sink.value[folded]
        rows = slice(sink.first_row, sink.first_row + len(sink.rows))
        shifted_biases: set[str] = set()
        for contraction in self.uses[sink.weight]:
            mean = self._own_running_mean(contraction.node)
            if mean is not None:
                self._tensor(mean)[rows] -= shift_O
                self._note("running_mean", sink, mean, folded)
            elif contraction.bias is None:
                if sink.weight not in self.new_biases:
                    num_rows = self.graph.trace.tensor(sink.weight).shape[contraction.row_axis]
                    self.new_biases[sink.weight] = torch.zeros(num_rows, dtype=torch.float64)
                self.new_biases[sink.weight][rows] = shift_O
                self._note("new_bias", sink, sink.weight.removesuffix("weight") + "bias", folded)
            elif contraction.bias not in shifted_biases:
                shifted_biases.add(contraction.bias)
                self._tensor(contraction.bias)[rows] += shift_O
                self._note("bias", sink, contraction.bias, folded)

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
