"""The plan: per tensor and axis the kept positions, in dense numbering, plus every fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ticket_export.channels.classes import FIXED
from ticket_export.channels.graph import ChannelGroup, labelled_axes
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.mask import Mask, check_mask
from ticket_export.shrink.fold import Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is kept of every tensor.

    Attributes:
        kept: tensor name -> axis -> kept positions in dense numbering, ascending; axes kept whole are absent.
        new_biases: weights whose layer gains a bias.
        folds: the constants that moved, for the report.
        form: "module" or "graph"; the second is built again from the dense model's traced graph.
        inputs: shape and dtype of the example inputs; of the graph form alone.
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    new_biases: tuple[str, ...]
    folds: tuple[Fold, ...]
    form: str = "module"
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return a JSON value that `from_json` reads back."""
        return {
            "schema": 1,
            "kept": {name: {str(a): list(p) for a, p in axes.items()} for name, axes in self.kept.items()},
            "new_biases": list(self.new_biases),
            "folds": [asdict(fold) for fold in self.folds],
            "form": self.form,
            "inputs": [{"shape": list(shape), "dtype": dtype} for shape, dtype in self.inputs],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Plan:
        """Return the plan that `to_json` described."""
        kept, folds, new_biases = value["kept"], value["folds"], value["new_biases"]
        form, inputs = value["form"], value["inputs"]
        assert isinstance(kept, dict)
        assert isinstance(folds, list)
        assert isinstance(new_biases, list)
        assert isinstance(form, str)
        assert isinstance(inputs, list)
        return cls(
            kept={name: {int(a): tuple(p) for a, p in axes.items()} for name, axes in kept.items()},
            new_biases=tuple(new_biases),
            folds=tuple(Fold(**fold) for fold in folds),
            form=form,
            inputs=tuple((tuple(x["shape"]), x["dtype"]) for x in inputs),
        )

    def sliced(self, name: str, tensor: Tensor) -> Tensor:
        """Return what the plan keeps of the tensor called `name`."""
        for axis, positions in self.kept.get(name, {}).items():
            tensor = tensor.index_select(axis, torch.tensor(positions, device=tensor.device))
        return tensor


def plan_from_kept(
    graph: LabelledGraph, kept: Tensor, *, new_biases: Sequence[str] = (), folds: Sequence[Fold] = ()
) -> Plan:
    """Return the plan that keeps exactly the classes whose root is True in `kept`."""
    positions: dict[str, dict[int, tuple[int, ...]]] = {}
    for axis in labelled_axes(graph):
        keep = kept[axis.labels] | (axis.labels <= FIXED)
        if not keep.all():
            positions.setdefault(axis.tensor, {})[axis.axis] = tuple(torch.nonzero(keep).flatten().tolist())
    return Plan(kept=positions, new_biases=tuple(new_biases), folds=tuple(folds))


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
    return Plan(kept=kept, new_biases=(), folds=())
