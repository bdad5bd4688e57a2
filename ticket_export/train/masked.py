"""Masked training: which weights are held at zero so that the dense shape trains like the small network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask


def hold_zero_from_mask(model: nn.Module, groups: Sequence[ChannelGroup], mask: Mask) -> dict[str, Tensor]:
    """Return what dropped channels own, for `train(hold_zero=...)`: parameter name -> bool, True = keep.

    Every member is held: a norm whose gamma is zero but whose beta trains would still emit beta, which the
    small network cannot. A group that the mask does not name stays whole.

    Args:
        model: the dense network.
        groups: its channel groups.
        mask: what is kept of them.
    """
    parameters = dict(model.named_parameters())
    keep_by_name: dict[str, Tensor] = {}
    for group in groups:
        if group.name not in mask.keep_by_group:
            continue
        dropped = ~mask.keep_by_group[group.name]
        for member in group.members:
            if member.tensor in parameters:
                keep = keep_by_name.setdefault(
                    member.tensor, torch.ones(parameters[member.tensor].shape, dtype=torch.bool)
                )
                keep.index_fill_(member.axis, member.indices[dropped].flatten(), False)
    return keep_by_name
