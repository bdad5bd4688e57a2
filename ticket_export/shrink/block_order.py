"""The order of channels: rows of a block side by side, without an index at run time.

The channels of a group may stand in any order that all its members share. So the order in which blocks write
their rows is given to the whole group: to the norm behind, to the columns of every reader, to the rows of
every other writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.trace import named_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder:
    """A new order of channels.

    Attributes:
        old_by_new: tensor name, axis -> for every position the old position of what stands there now; axes
            that stay as they are are absent.
        kept: weight -> why its rows could not be given the order they were wanted in.
    """

    old_by_new: Mapping[tuple[str, int], Tensor]
    kept: Mapping[str, str]

    def new_positions(self, name: str, axis: int, old: Sequence[int]) -> tuple[int, ...]:
        """Return where these positions of a tensor stand now, ascending."""
        moved = self.old_by_new.get((name, axis))
        if moved is None:
            return tuple(old)
        return tuple(sorted(moved.argsort()[torch.tensor(old)].tolist()))

    def apply(self, model: nn.Module) -> None:
        """Put every tensor of the model into the new order, in place."""
        tensors = dict(named_tensors(model))
        for (name, axis), old in self.old_by_new.items():
            tensor = tensors[name]
            tensor.data = tensor.data.index_select(axis, old.to(tensor.device))


def reorder_for(
    model: nn.Module, groups: Sequence[ChannelGroup], wanted: Mapping[str, Sequence[int]]
) -> Reorder:
    """Return the order in which the rows of each wanted weight stand as it asks, where its group allows that.

    Of the writers of one group the first is served; pinned groups keep their order.

    Args:
        model: the network.
        groups: its channel groups.
        wanted: weight -> its rows in the order that it writes them.
    """
    sizes = {name: tensor.shape for name, tensor in named_tensors(model)}
    old_by_new: dict[tuple[str, int], Tensor] = {}
    kept = dict.fromkeys(wanted, "its rows belong to several channel groups")
    for group in groups:
        writers = [m for m in group.producers if m.tensor in wanted and _is_whole(m, sizes)]
        reason = group.pinned
        if reason is None and not all(member.tensor in sizes for member in group.members):
            reason = "its channels meet a constant that is no tensor of the network"
        for place, member in enumerate(writers):
            if reason is None and place == 0:
                del kept[member.tensor]
                _order_group(group, member, wanted[member.tensor], sizes, old_by_new)
            else:
                kept[member.tensor] = reason or f"{writers[0].tensor} orders the channels they both write"
    return Reorder(old_by_new=old_by_new, kept=kept)


def _is_whole(member: Member, sizes: Mapping[str, torch.Size]) -> bool:
    """Return whether the group holds each row of the weight as a channel of its own."""
    return member.axis == 0 and member.indices.shape == (sizes[member.tensor][0], 1)


def _order_group(
    group: ChannelGroup,
    first: Member,
    rows: Sequence[int],
    sizes: Mapping[str, torch.Size],
    old_by_new: dict[tuple[str, int], Tensor],
) -> None:
    channel_of_row = first.indices[:, 0].argsort()
    old_channels = channel_of_row[torch.tensor(rows)[first.indices[:, 0]]]
    if torch.equal(old_channels, torch.arange(group.width)):
        return
    for member in group.members:
        place = (member.tensor, member.axis)
        old = old_by_new.setdefault(place, torch.arange(sizes[member.tensor][member.axis]))
        old[member.indices.flatten()] = member.indices[old_channels].flatten()
