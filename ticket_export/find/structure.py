"""What is left of a network that is cut again and again, in the numbering of the whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.channels.trace import named_tensors
from ticket_export.errors import ShrinkError
from ticket_export.shrink.plan import Plan
from ticket_export.shrink.surgery import small_from_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """The channels that are still there.

    Attributes:
        groups: of the whole network.
        lengths: tensor name -> its shape in the whole network.
        mask: what is kept of each group.
    """

    groups: tuple[ChannelGroup, ...]
    lengths: Mapping[str, tuple[int, ...]]
    mask: Mask

    @classmethod
    def of_whole(cls, model: nn.Module, groups: Sequence[ChannelGroup]) -> Structure:
        """Return the structure of the whole network."""
        whole = {group.name: torch.ones(group.width, dtype=torch.bool) for group in groups}
        lengths = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
        return cls(groups=tuple(groups), lengths=lengths, mask=Mask(whole))

    def kept(self, tensor: str, axis: int) -> Tensor:
        """Return bool over an axis of the whole network's tensor: True where the small one has a position."""
        keep = torch.ones(self.lengths[tensor][axis], dtype=torch.bool)
        for group in self.groups:
            gone_C = ~self.mask.keep_by_group[group.name]
            for member in group.members:
                if (member.tensor, member.axis) == (tensor, axis):
                    keep[member.indices[gone_C].flatten()] = False
        return keep

    def cut(self, plan: Plan) -> Structure:
        """Return what is left when `plan` is applied to the small network.

        Args:
            plan: in the small network's numbering; its tensors have the whole network's names.
        """
        keep_by_group = {}
        for group in self.groups:
            member = group.members[0]
            keep = self.kept(member.tensor, member.axis)
            positions = plan.kept.get(member.tensor, {}).get(member.axis)
            if positions is not None:
                before = torch.nonzero(keep).flatten()
                chosen = before[torch.tensor(positions, dtype=torch.int64)]
                keep = torch.zeros_like(keep).index_fill_(0, chosen, True)
            keep_by_group[group.name] = self.mask.keep_by_group[group.name] & keep[member.indices].all(1)
        return replace(self, mask=Mask(keep_by_group))

    def network(self, whole: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the small network with these weights.

        Args:
            whole: the whole network; its weights do not matter, and it is not changed.
            weights: the small network's state dict.

        Raises:
            ShrinkError: they are of another network.
        """
        small = small_from_mask(whole, self.groups, self.mask)
        try:
            small.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ShrinkError(
                f"the weights do not fit what is kept of {type(whole).__name__}: {error}",
                hint="the network cannot be cut by leaving out channels alone; search another one",
            ) from error
        return small
