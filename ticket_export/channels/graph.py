"""Channel groups: which slices of which tensors must be kept or dropped together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_export.channels.branches import branch_around
from ticket_export.channels.classes import FIXED
from ticket_export.channels.compact import core, varying_axes
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.trace import trace
from ticket_export.seeds import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The slices of one tensor that belong to the channels of a group.

    Attributes:
        tensor: name in the model's `state_dict`.
        axis: the axis of that tensor that holds the channels.
        indices: int64 [width, k], the positions on `axis` that channel c owns (k > 1 after a flatten).
        role: "producer" (rows of a convolution or linear layer), "consumer" (its columns) or "per_channel"
            (biases, norm parameters and statistics, scales).
    """

    tensor: str
    axis: int
    indices: Tensor
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """A maximal set of tensor slices that must be kept or dropped together, channel by channel.

    Attributes:
        name: the module path of the first producer, e.g. "layer1.0.conv1".
        width: number of channels.
        members: every slice that goes with a channel.
        pinned: why the group must stay whole, or None when it may shrink.
        branch: path of the submodule that goes with the last channel; None where one channel must stay.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    pinned: str | None
    branch: str | None = None

    @property
    def producers(self) -> tuple[Member, ...]:
        """Return the members whose rows write these channels."""
        return tuple(member for member in self.members if member.role == "producer")

    @property
    def is_inner(self) -> bool:
        """Return whether exactly one layer writes these channels, so that no add joins it with another."""
        return len(self.producers) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledAxis:
    """One axis of one tensor with the label of each position."""

    tensor: str
    axis: int
    role: str
    labels: Tensor


def channel_groups(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> list[ChannelGroup]:
    """Return the channel groups of `model` in the order in which the graph first writes them.

    Args:
        model: any module that `torch.export` accepts; it is not changed.
        example_inputs: a tensor or a tuple of tensors, axis 0 is the batch.

    Raises:
        ShrinkError: the model cannot be traced with these inputs.
    """
    return groups_from_labels(label(trace(model, example_inputs)))


def labelled_axes(graph: LabelledGraph) -> list[LabelledAxis]:
    """Return every tensor axis that carries channels, with the roots of its labels, in graph order."""
    axes: list[LabelledAxis] = []
    for role, table in (("producer", graph.weight_rows), ("consumer", graph.weight_columns)):
        for name, (axis, labels) in table.items():
            its_role = "per_channel" if name in graph.depthwise else role
            axes.append(
                LabelledAxis(tensor=name, axis=axis, role=its_role, labels=graph.classes.roots(labels))
            )
    for name, labels in graph.leaves.items():
        roots = graph.classes.roots(labels)
        varying = varying_axes(roots)
        for axis in varying if len(varying) == 1 else _only_long_axis(roots):
            line = core(roots).movedim(axis, 0).reshape(-1)
            spread = line.expand(roots.shape[axis])
            axes.append(LabelledAxis(tensor=name, axis=axis, role="per_channel", labels=spread))
    return axes


def _only_long_axis(labels: Tensor) -> list[int]:
    """Return the one axis longer than 1, where all its positions share a class; none if there are several."""
    long = [axis for axis, size in enumerate(labels.shape) if size > 1]
    return long if len(long) == 1 else []


def groups_from_labels(graph: LabelledGraph) -> list[ChannelGroup]:
    """Return the classes of a labelled graph, gathered into groups of channels with the same members."""
    axes = [axis for axis in labelled_axes(graph) if axis.labels.numel()]
    signature = _signatures(axes, graph.classes.num_labels)
    pins = graph.classes.pin_by_root()
    for labels, reason in graph.equal_counts:
        for root in set(graph.classes.roots(labels).tolist()):
            pins.setdefault(root, reason)
    roots_by_signature: dict[int, dict[int, None]] = {}
    for axis in axes:  # graph order: the first producer names the group and orders its channels
        for root, mark in zip(axis.labels.tolist(), signature[axis.labels].tolist(), strict=True):
            if root > FIXED:
                roots_by_signature.setdefault(mark, {})[root] = None
    groups: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for roots in roots_by_signature.values():
        ordered = list(roots)
        group_members = _members(axes, ordered, graph.classes.num_labels)
        name = group_members[0].tensor.rpartition(".")[0] or group_members[0].tensor
        taken[name] = taken.get(name, 0) + 1
        unique_name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        pinned = next((pins[root] for root in ordered if root in pins), None)
        branch = branch_around((member.tensor for member in group_members), graph.trace.branches)
        groups.append(
            ChannelGroup(
                name=unique_name,
                width=len(ordered),
                members=group_members,
                pinned=pinned,
                branch=branch if pinned is None else None,
            )
        )
    return groups


def _signatures(axes: Sequence[LabelledAxis], num_labels: int) -> Tensor:
    """Return per root a number that tells which tensor axes hold it, and how often."""
    generator = stream(0, "channel-signature")
    total = torch.zeros(num_labels, dtype=torch.int64)
    for axis in axes:
        mark = torch.randint(1, 2**62, (1,), generator=generator)
        total.index_add_(0, axis.labels, mark.expand(axis.labels.shape).contiguous())
    return total


def _members(axes: Sequence[LabelledAxis], roots: Sequence[int], num_labels: int) -> tuple[Member, ...]:
    channel_of_root = torch.full((num_labels,), -1)
    channel_of_root[torch.tensor(roots)] = torch.arange(len(roots))
    members = []
    for axis in axes:
        channels = channel_of_root[axis.labels]
        positions = torch.nonzero(channels >= 0).flatten()
        if positions.numel():
            order = torch.sort(channels[positions], stable=True).indices
            indices = positions[order].reshape(len(roots), -1)
            members.append(Member(tensor=axis.tensor, axis=axis.axis, indices=indices, role=axis.role))
    return tuple(members)
