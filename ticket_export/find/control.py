"""The controls: masks that cost what the ticket costs and know nothing of its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.errors import ShrinkError
from ticket_export.shrink.surgery import small_from_mask

SCOPES = ("coupled", "inner")


def random_mask(mask: Mask, generator: torch.Generator) -> Mask:
    """Return a mask of the same widths that keeps random channels.

    Args:
        mask: the ticket's.
        generator: where the choice is drawn from, group by group in the mask's order.
    """
    keep_by_group = {}
    for name, keep_C in mask.keep_by_group.items():
        chosen = torch.randperm(len(keep_C), generator=generator)[: int(keep_C.sum())]
        keep_by_group[name] = torch.zeros_like(keep_C).index_fill_(0, chosen, True)
    return Mask(keep_by_group)


def shuffled_elements(element_mask: ElementMask, generator: torch.Generator) -> ElementMask:
    """Return an element mask that keeps as many weights of every parameter, drawn by chance.

    Source: the random tickets of Frankle & Carbin (arXiv 1803.03635), figure 1.

    Args:
        element_mask: the ticket's.
        generator: where the places are drawn from, parameter by parameter in the mask's order.
    """
    shuffled = {}
    for name, keep in element_mask.keep_by_parameter.items():
        order = torch.randperm(keep.numel(), generator=generator)
        shuffled[name] = keep.flatten()[order].view(keep.shape)
    return ElementMask(shuffled)


def shuffled_blocks(element_mask: ElementMask, generator: torch.Generator) -> ElementMask:
    """Return an element mask with the same blocks at rows and columns drawn by chance, layer by layer.

    Rows are axis 0, columns all other axes but the kernel's; a block keeps its shape.

    Args:
        element_mask: the ticket's, dense blocks of rows and columns.
        generator: as of `shuffled_elements`.
    """
    shuffled = {}
    for name, keep in element_mask.keep_by_parameter.items():
        for axis in range(min(2, keep.dim())):
            keep = keep.index_select(axis, torch.randperm(keep.shape[axis], generator=generator))
        shuffled[name] = keep
    return ElementMask(shuffled)


def uniform_mask(
    groups: Sequence[ChannelGroup],
    *,
    round_to: int,
    target_macs: int,
    macs_of: Callable[[Mask], int],
    scope: str = "coupled",
) -> Mask:
    """Return the mask of one width multiplier for all groups whose MACs are nearest to the target.

    Each group of the scope that is not pinned keeps its first `ceil(multiplier * width)` channels, rounded
    up to a multiple of `round_to` and capped by the width, as the ticket's widths are. Of two equally near
    masks the smaller is returned. Every multiplier that changes a width is a candidate; MACs grow with it, so
    a few are counted.

    Args:
        groups: the network's channel groups.
        round_to: the ticket's.
        target_macs: the ticket's.
        macs_of: counts the network that a mask leaves (`macs_of_masks`).
        scope: `coupled` for every group, `inner` for groups that one layer writes (residual streams stay).

    Raises:
        ShrinkError: round_to is below 1, or the scope is unknown.
    """
    candidates = uniform_masks(groups, round_to=round_to, scope=scope)
    low, high = 0, len(candidates) - 1  # the first candidate that costs at least the target lies in low..high
    while low < high:
        middle = (low + high) // 2
        if macs_of(candidates[middle]) < target_macs:
            low = middle + 1
        else:
            high = middle
    return min(candidates[max(0, low - 1) : low + 1], key=lambda mask: abs(macs_of(mask) - target_macs))


def uniform_masks(groups: Sequence[ChannelGroup], *, round_to: int, scope: str = "coupled") -> list[Mask]:
    """Return every different mask of one width multiplier for all groups, the narrowest first.

    Args:
        groups: the network's channel groups.
        round_to: as of `uniform_mask`.
        scope: as of `uniform_mask`.

    Raises:
        ShrinkError: round_to is below 1, or the scope is unknown.
    """
    require_round_to(round_to)
    free = [group for group in scoped_groups(groups, scope) if group.pinned is None]
    widths = {group.width for group in free}
    multipliers = sorted({Fraction(kept, width) for width in widths for kept in range(1, width + 1)})
    names = {group.name for group in free}
    masks = [_uniform(groups, names, multiplier, round_to) for multiplier in multipliers or [Fraction(1)]]
    return list({tuple(mask.kept_widths().values()): mask for mask in masks}.values())


def macs_of_masks(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> Callable[[Mask], int]:
    """Return the function that counts the MACs of one image through what a mask leaves of `model`."""
    return lambda mask: count_costs(small_from_mask(model, groups, mask), example_inputs).macs


def require_round_to(round_to: int) -> None:
    """Raise ShrinkError unless `round_to` is at least 1."""
    if round_to < 1:
        raise ShrinkError(f"round_to is {round_to}", hint="it must be at least 1")


def scoped_groups(groups: Sequence[ChannelGroup], scope: str) -> list[ChannelGroup]:
    """Return the groups that a scope decides on, pinned ones among them.

    Raises:
        ShrinkError: the scope is unknown.
    """
    if scope not in SCOPES:
        raise ShrinkError(f"the scope is {scope!r}", hint=f"it may be {', '.join(SCOPES)}")
    return [group for group in groups if scope == "coupled" or group.is_inner]


def _uniform(
    groups: Sequence[ChannelGroup], names: Collection[str], multiplier: Fraction, round_to: int
) -> Mask:
    keep_by_group = {}
    for group in groups:
        width = group.width
        if group.name in names:
            width = min(width, ceil(Fraction(ceil(multiplier * width), round_to)) * round_to)
        keep_by_group[group.name] = torch.arange(group.width) < width
    return Mask(keep_by_group)
