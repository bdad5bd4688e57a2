"""The plan: per tensor and axis the kept positions, in dense numbering, plus every fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ticket_export.channels.classes import FIXED
from ticket_export.channels.graph import ChannelGroup, labelled_axes
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.mask import Mask, check_mask
from ticket_export.shrink.fold import Fold, FoldedTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is kept of every tensor.

    Attributes:
        kept: tensor name -> axis -> kept positions in dense numbering, ascending; axes kept whole are absent.
        grouped: weight of a grouped convolution -> (number of groups, kept inputs), both in dense numbering.
        bare_norms: path of a norm without tensors -> its new number of channels.
        new_biases: weights whose layer gains a bias.
        terms: weights whose layer adds a border term.
        live_rows: weight -> the rows it computes, among those kept; the others are zero (`residual="index"`).
        standard: layers that computed their weight, and became torch's own before the cut.
        folds: the constants that moved, for the report.
        form: "module" or "graph"; the second is built again from the dense model's traced graph.
        inputs: shape and dtype of the example inputs; of the graph form alone, as what follows.
        open_size: whether the graph leaves height and width open.
        constants: operation -> (operand, shape of the constant that takes its place; None for an added zero).
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    grouped: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    bare_norms: Mapping[str, int] = field(default_factory=dict)
    new_biases: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    live_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    standard: tuple[str, ...] = ()
    folds: tuple[Fold, ...] = ()
    form: str = "module"
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()
    open_size: bool = True
    constants: Mapping[str, tuple[str, tuple[int, ...] | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return a JSON value that `from_json` reads back."""
        return {
            "schema": 2,
            "kept": {name: {str(a): list(p) for a, p in axes.items()} for name, axes in self.kept.items()},
            "grouped": {
                name: {"groups": g, "inputs": list(kept)} for name, (g, kept) in self.grouped.items()
            },
            "bare_norms": dict(self.bare_norms),
            "new_biases": list(self.new_biases),
            "terms": list(self.terms),
            "live_rows": {name: list(rows) for name, rows in self.live_rows.items()},
            "standard": list(self.standard),
            "folds": [asdict(fold) for fold in self.folds],
            "form": self.form,
            "inputs": [{"shape": list(shape), "dtype": dtype} for shape, dtype in self.inputs],
            "open_size": self.open_size,
            "constants": {
                node: {"operand": operand, "shape": None if shape is None else list(shape)}
                for node, (operand, shape) in self.constants.items()
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` described."""
        return cls(
            kept={name: {int(a): tuple(p) for a, p in axes.items()} for name, axes in value["kept"].items()},
            grouped={
                name: (entry["groups"], tuple(entry["inputs"])) for name, entry in value["grouped"].items()
            },
            bare_norms=dict(value["bare_norms"]),
            new_biases=tuple(value["new_biases"]),
            terms=tuple(value["terms"]),
            live_rows={name: tuple(rows) for name, rows in value["live_rows"].items()},
            standard=tuple(value["standard"]),
            folds=tuple(Fold(**fold) for fold in value["folds"]),
            form=value["form"],
            inputs=tuple((tuple(x["shape"]), x["dtype"]) for x in value["inputs"]),
            open_size=value["open_size"],
            constants={
                node: (entry["operand"], None if entry["shape"] is None else tuple(entry["shape"]))
                for node, entry in value["constants"].items()
            },
        )

    def sliced(self, name: str, tensor: Tensor) -> Tensor:
        """Return what the plan keeps of the tensor called `name`."""
        axes = self.kept.get(name, {})
        if name in self.grouped:
            return self._sliced_groups(name, tensor, axes.get(0, tuple(range(tensor.shape[0]))))
        for axis, positions in axes.items():
            tensor = tensor.index_select(
                axis, torch.tensor(positions, dtype=torch.int64, device=tensor.device)
            )
        return tensor

    def _sliced_groups(self, name: str, weight: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the kept rows of a grouped weight [O, I / groups, ...], each with its own group's inputs."""
        num_groups, inputs = self.grouped[name]
        rows_per_group, inputs_per_group = weight.shape[0] // num_groups, weight.shape[1]
        kept: dict[int, list[int]] = {}
        for channel in inputs:
            kept.setdefault(channel // inputs_per_group, []).append(channel % inputs_per_group)
        columns = torch.tensor([kept[row // rows_per_group] for row in rows], device=weight.device)
        picked = weight[torch.tensor(rows, device=weight.device)]
        view = (*columns.shape, *([1] * (weight.dim() - 2)))
        return picked.gather(1, columns.reshape(view).expand(*columns.shape, *weight.shape[2:]))

    def groups_of(self, name: str, inputs_per_group: int) -> int | None:
        """Return how many groups a grouped weight keeps, or None where the plan leaves it alone."""
        if name not in self.grouped:
            return None
        return len({channel // inputs_per_group for channel in self.grouped[name][1]})


def plan_from_kept(graph: LabelledGraph, kept: Tensor, folded: FoldedTensors) -> Plan:
    """Return the plan that keeps exactly the classes whose root is True in `kept`, and what was folded."""
    positions: dict[str, dict[int, tuple[int, ...]]] = {}
    for axis in labelled_axes(graph):
        keep = kept[axis.labels] | (axis.labels <= FIXED)
        if not keep.all():
            positions.setdefault(axis.tensor, {})[axis.axis] = _positions(keep)
    grouped = {}
    for weight, (num_groups, labels) in graph.grouped_columns.items():
        keep = kept[graph.classes.roots(labels)]
        if not keep.all() or weight in positions:
            grouped[weight] = (num_groups, _positions(keep))
    return Plan(
        kept=positions,
        grouped=grouped,
        new_biases=tuple(sorted(folded.new_biases)),
        terms=tuple(sorted(folded.terms)),
        folds=tuple(folded.folds),
    )


def _positions(keep: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(keep).flatten().tolist())


def plan_from_mask(groups: Sequence[ChannelGroup], mask: Mask) -> Plan:
    """Return the plan that cuts exactly what `mask` drops, with nothing folded.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    check_mask(groups, mask)
    dropped: dict[str, dict[int, list[Tensor]]] = {}
    lengths: dict[tuple[str, int], int] = {}
    for group in groups:
        for member in group.members:
            place = (member.tensor, member.axis)
            lengths[place] = lengths.get(place, 0) + member.indices.numel()
            keep_C = mask.keep_by_group.get(group.name)
            if keep_C is not None and not keep_C.all():
                axes = dropped.setdefault(member.tensor, {})
                axes.setdefault(member.axis, []).append(member.indices[~keep_C].flatten())
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in dropped.items():
        for axis, parts in axes.items():
            gone = set(torch.cat(parts).tolist())
            kept.setdefault(name, {})[axis] = tuple(i for i in range(lengths[name, axis]) if i not in gone)
    return Plan(kept=kept)
