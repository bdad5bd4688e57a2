"""Refill: whole channels from an element mask, in three scopes.

Source: Chen et al. 2022 (arXiv 2202.04736), algorithm 2.
The paper keeps, per layer, the output filters whose surviving weights have the largest l1 norm, as many
as the layer's remaining fraction says, and fills them up. Filters of layers that are joined by an add
then disagree, and most cannot be removed: the scopes say what to do about that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.errors import ShrinkError

SCOPES = ("layer", "inner", "coupled")


def refill(
    element_mask: ElementMask,
    weights: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    scope: str = "coupled",
    round_to: int = 1,
) -> Mask:
    """Return the channels that the element mask, refilled, keeps; every group is in the mask.

    `k = ceil(remaining fraction * width)` channels of a group stay, at least 1: those whose surviving
    weights have the largest l1 norm; of equal ones the first. The remaining fraction is that of the
    group's producers that the element mask covers. Pinned groups, and groups without such a producer,
    stay whole.

    Args:
        element_mask: what magnitude pruning kept.
        weights: the trained weights it was taken from, every producer among them.
        groups: the network's channel groups.
        scope: `coupled` gives a group one score, summed over all its producers, so that each dropped
            channel can be removed; `inner` does so only for groups with one producer (the residual
            streams stay whole); `layer` lets each producer choose its own rows, as the paper does, and
            drops a channel only where every producer drops it.
        round_to: kept widths are rounded up to a multiple of it, capped by the width; the next best
            channels fill.

    Raises:
        ShrinkError: the scope or round_to is out of range, or mask, weights and groups do not fit.
    """
    if scope not in SCOPES:
        raise ShrinkError(f"the refill scope is {scope!r}", hint=f"it may be {', '.join(SCOPES)}")
    if round_to < 1:
        raise ShrinkError(f"round_to is {round_to}", hint="it must be at least 1")
    return Mask({group.name: _keep(group, element_mask, weights, scope, round_to) for group in groups})


def refill_rows(
    element_mask: ElementMask, weights: Mapping[str, Tensor], groups: Sequence[ChannelGroup]
) -> ElementMask:
    """Return the paper's mask: each layer keeps its k best rows whole and no other weight.

    Rows of pinned groups stay whole. This is what masked training of the `layer` scope holds at zero.

    Args:
        element_mask: what magnitude pruning kept.
        weights: the trained weights it was taken from.
        groups: the network's channel groups; they tell the axis of the rows and what is pinned.

    Raises:
        ShrinkError: mask and weights do not fit.
    """
    producers = {member.tensor: (member, group) for group in groups for member in group.producers}
    kept = {}
    for name, keep in element_mask.keep_by_parameter.items():
        member, group = producers.get(name, (None, None))
        axis = 0 if member is None else member.axis
        if group is not None and group.pinned is not None:
            rows = torch.ones(keep.shape[axis], dtype=torch.bool)
        else:
            score_C, surviving, total = _row_scores(name, axis, element_mask, weights)
            rows = _best(score_C, _num_kept(surviving, total, len(score_C)))
        shape = [1] * keep.dim()
        shape[axis] = -1
        kept[name] = rows.view(shape).expand(keep.shape).clone()
    return ElementMask(kept)


def _keep(
    group: ChannelGroup, element_mask: ElementMask, weights: Mapping[str, Tensor], scope: str, round_to: int
) -> Tensor:
    pruned = [m for m in group.producers if m.tensor in element_mask.keep_by_parameter]
    if group.pinned is not None or not pruned or (scope == "inner" and not group.is_inner):
        return torch.ones(group.width, dtype=torch.bool)
    scores = {member.tensor: _channel_scores(member, element_mask, weights) for member in group.producers}
    total_C = torch.stack([score_C for score_C, _, _ in scores.values()]).sum(0)
    if scope == "layer":
        keep_C = torch.zeros(group.width, dtype=torch.bool)
        for member in group.producers:
            score_C, surviving, total = scores[member.tensor]
            keep_C |= _best(score_C, _num_kept(surviving, total, group.width))
        # Already chosen channels first, then the best of the rest up to the multiple
        total_C = torch.where(keep_C, torch.inf, total_C)
        num_kept = int(keep_C.sum())
    else:
        surviving = sum(scores[member.tensor][1] for member in pruned)
        num_kept = _num_kept(surviving, sum(scores[member.tensor][2] for member in pruned), group.width)
    return _best(total_C, min(group.width, -(-num_kept // round_to) * round_to))


def _num_kept(surviving: int, total: int, width: int) -> int:
    return max(1, -(-surviving * width // total))  # the ceiling in whole numbers: no rounding noise


def _best(score_C: Tensor, num_kept: int) -> Tensor:
    order = torch.sort(score_C, descending=True, stable=True).indices  # stable: of equals, the first
    keep_C = torch.zeros(len(score_C), dtype=torch.bool)
    keep_C[order[:num_kept]] = True
    return keep_C


def _channel_scores(
    member: Member, element_mask: ElementMask, weights: Mapping[str, Tensor]
) -> tuple[Tensor, int, int]:
    row_scores, surviving, total = _row_scores(member.tensor, member.axis, element_mask, weights)
    return row_scores[member.indices].sum(1), surviving, total


def _row_scores(
    name: str, axis: int, element_mask: ElementMask, weights: Mapping[str, Tensor]
) -> tuple[Tensor, int, int]:
    """Return the l1 norm of each row's survivors (float64), their number and that of all weights."""
    if name not in weights:
        raise ShrinkError(f"refill needs the weight {name!r}, which is not among the {len(weights)} given")
    weight = weights[name].detach().cpu().double()
    keep = element_mask.keep_by_parameter.get(name, torch.ones(weight.shape, dtype=torch.bool))
    if keep.shape != weight.shape:
        raise ShrinkError(
            f"the element mask of {name!r} is {tuple(keep.shape)}, the weight {tuple(weight.shape)}"
        )
    surviving = weight.abs() * keep
    rows = surviving.movedim(axis, 0).flatten(1).sum(1) if weight.dim() > 1 else surviving
    return rows, int(keep.sum()), keep.numel()
