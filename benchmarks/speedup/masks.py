"""Which channels and weights the subjects of a speedup keep, at equal MACs or equal counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import ticket_export as te
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.find.imp import prunable_weights


def inner_groups(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Return the groups that a single layer writes, without the first layer's, which sees the image."""
    first = groups[0].name
    return [group for group in groups if group.is_inner and group.pinned is None and group.name != first]


def mask_of_cost(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    shares: Sequence[float],
    *,
    round_to: int,
    target_macs: int,
    macs_of: Callable[[Mask], int],
) -> Mask:
    """Return the mask whose widths are `shares` times one common factor, at MACs nearest to the target.

    Widths are rounded to the nearest multiple of `round_to`; the channels of the largest l1 norm stay.

    Args:
        model: the dense network.
        groups: those that shrink.
        shares: of each group's channels, before the factor.
        round_to: 1 for none.
        target_macs: of one image.
        macs_of: counts the network that a mask leaves.
    """
    order = [_by_norm(model, group) for group in groups]

    def mask_at(factor: float) -> Mask:
        keep_by_group = {}
        for group, share, best_first in zip(groups, shares, order, strict=True):
            steps = max(1, round(factor * share * group.width / round_to))
            keep = torch.zeros(group.width, dtype=torch.bool)
            kept = best_first[: min(group.width, steps * round_to)]
            keep_by_group[group.name] = keep.index_fill_(0, kept, True)
        return Mask(keep_by_group)

    low, high = 0.1, 2.0 / min(shares)
    for _ in range(14):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if macs_of(mask_at(middle)) < target_macs else (low, middle)
    return min((mask_at(low), mask_at(high)), key=lambda mask: abs(macs_of(mask) - target_macs))


def _by_norm(model: nn.Module, group: ChannelGroup) -> Tensor:
    tensors = model.state_dict()
    norm_C = torch.zeros(group.width)
    for member in group.producers:
        rows = tensors[member.tensor].movedim(member.axis, 0)[member.indices.flatten()]
        norm_C += rows.abs().flatten(1).sum(dim=1).view(group.width, -1).sum(dim=1)
    return norm_C.argsort(descending=True, stable=True)


def unstructured(model: nn.Module, keep_fraction: float) -> nn.Module:
    """Set all but the largest weights of every layer to zero, in place; nothing is removed."""
    tensors = dict(model.named_parameters())
    weights = {name: tensors[name].detach() for name in prunable_weights(model)}
    mask = te.magnitude_mask(weights, keep_fraction=keep_fraction, scope="layer")
    with torch.no_grad():
        for name, keep in mask.keep_by_parameter.items():
            tensors[name].mul_(keep)
    return model
