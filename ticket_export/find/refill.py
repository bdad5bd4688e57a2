"""Refill: whole channels from an element mask, in three scopes.

Source: Chen et al. 2022 (arXiv 2202.04736), algorithm 2.
The paper keeps, per layer, the output filters whose surviving weights have the largest l1 norm, as many
as the layer's remaining share says, and fills them up. Filters of layers that are joined by an add
then disagree, and most cannot be removed: the scopes say what to do about that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import torch
from torch import Tensor

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.best import best_channels, mask_from_widths, rounded_up, there

SCOPES = ("layer", "inner", "coupled")
SCORES = ("l1", "l2", "count")
_ROUNDING = 1e-9  # of a product of shares; less than one weight of any layer


def refill(
    element_mask: ElementMask,
    weights: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    scope: str = "coupled",
    round_to: int = 1,
    score: str = "l1",
    score_by_group: Mapping[str, Tensor] | None = None,
    extra_fraction: float = 0.0,
) -> Mask:
    """Return the channels that the element mask, refilled, keeps; every group is in the mask.

    `k = ceil(remaining share * width)` channels of a group stay, at least 1: those whose surviving
    weights have the largest score; of equal ones the first. The remaining share is that of the
    group's producers that the element mask covers. Pinned groups, and groups without such a producer,
    stay whole.

    Args:
        element_mask: what magnitude pruning kept.
        weights: the trained weights it was taken from, every producer among them. A saliency per weight
            may stand in their place.
        groups: the network's channel groups.
        scope: `coupled` gives a group one score, summed over all its producers, so that each dropped
            channel can be removed; `inner` does so only for groups with one producer (the residual
            streams stay whole); `layer` lets each producer choose its own rows, as the paper does, and
            drops a channel only where every producer drops it.
        round_to: kept widths are rounded up to a multiple of it, capped by the width; the next best
            channels fill.
        score: of a row's surviving weights: `l1` (the paper), `l2`, or their `count`.
        score_by_group: group name -> [width], in place of `score`; scopes `inner` and `coupled` alone.
        extra_fraction: share of the dropped channels that is kept beside: Refill+. In [0, 1).

    Raises:
        ShrinkError: an argument is out of range, or mask, weights and groups do not fit.
    """
    _require(scope, round_to, score, extra_fraction)
    if scope == "layer":
        if score_by_group is not None:
            raise ShrinkError("scores of groups do not decide on rows", hint="use scope inner or coupled")
        return Mask(
            {
                group.name: _keep_by_layer(group, element_mask, weights, score, extra_fraction, round_to)
                for group in groups
            }
        )
    if score_by_group is None:
        score_by_group = channel_scores(element_mask, weights, groups, score=score)
    shares = remaining_shares(element_mask, groups, scope=scope, extra_fraction=extra_fraction)
    return mask_from_shares(shares, score_by_group, groups, round_to=round_to)


def refill_rows(
    element_mask: ElementMask,
    weights: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    score: str = "l1",
    extra_fraction: float = 0.0,
) -> ElementMask:
    """Return the paper's mask: each layer keeps its k best rows whole and no other weight.

    Rows of pinned groups stay whole. This is what masked training of the `layer` scope holds at zero.

    Args:
        element_mask: what magnitude pruning kept.
        weights: the trained weights it was taken from.
        groups: the network's channel groups; they tell the axis of the rows and what is pinned.
        score: as of `refill`.
        extra_fraction: as of `refill`.

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
            score_C = _row_scores(name, axis, element_mask, weights, score)
            share = _with_extra(int(keep.sum()) / keep.numel(), extra_fraction)
            rows = best_channels(score_C, _num_kept(share, len(score_C)))
        shape = [1] * keep.dim()
        shape[axis] = -1
        kept[name] = rows.view(shape).expand(keep.shape).clone()
    return ElementMask(kept)


def remaining_shares(
    element_mask: ElementMask,
    groups: Sequence[ChannelGroup],
    *,
    scope: str,
    alive: ElementMask | None = None,
    extra_fraction: float = 0.0,
) -> dict[str, float]:
    """Return the share of each group's weights that the element mask keeps; what stays whole is left out.

    Args:
        element_mask: what magnitude pruning kept.
        groups: the network's channel groups.
        scope: `inner` or `coupled`.
        alive: the weights that were there to be pruned; None = all.
        extra_fraction: as of `refill`.
    """
    shares = {}
    for group in groups:
        covered = [m.tensor for m in group.producers if m.tensor in element_mask.keep_by_parameter]
        if group.pinned is not None or not covered or (scope == "inner" and not group.is_inner):
            continue
        surviving = sum(int(element_mask.keep_by_parameter[name].sum()) for name in covered)
        if alive is None:
            total = sum(element_mask.keep_by_parameter[name].numel() for name in covered)
        else:
            total = sum(int(alive.keep_by_parameter[name].sum()) for name in covered)
        shares[group.name] = _with_extra(surviving / total, extra_fraction)
    return shares


def channel_scores(
    element_mask: ElementMask,
    weights: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    score: str = "l1",
) -> dict[str, Tensor]:
    """Return group name -> score per channel, float64 [width], summed over all producers.

    Raises:
        ShrinkError: mask, weights and groups do not fit.
    """
    return {
        group.name: torch.stack(
            [_member_scores(member, element_mask, weights, score) for member in group.producers]
        ).sum(0)
        for group in groups
        if group.pinned is None and group.producers
    }


def mask_from_shares(
    share_by_group: Mapping[str, float],
    score_by_group: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    round_to: int = 1,
    within: Mask | None = None,
) -> Mask:
    """Keep the `ceil(share * width)` best channels of each group that has a share, the others whole.

    Args:
        share_by_group: of the dense width, in (0, 1].
        score_by_group: group name -> [width]; of equal scores the first is kept.
        groups: the network's channel groups.
        round_to: kept widths are rounded up to a multiple of it, capped by what is there.
        within: only channels of this mask are kept.

    Raises:
        ShrinkError: a group has a share and no score.
    """
    widths = {}
    for group in groups:
        if group.name in share_by_group:
            if group.name not in score_by_group:
                raise ShrinkError(
                    f"the channels of {group.name!r} have no score", hint="take find.score l1, which all have"
                )
            num_kept, num_there = (
                _num_kept(share_by_group[group.name], group.width),
                there(group, within).sum(),
            )
            widths[group.name] = rounded_up(num_kept, round_to, width=int(num_there))
    return mask_from_widths(widths, score_by_group, groups, within=within)


def _require(scope: str, round_to: int, score: str, extra_fraction: float) -> None:
    for what, value, known in (("refill scope", scope, SCOPES), ("score", score, SCORES)):
        if value not in known:
            raise ShrinkError(f"the {what} is {value!r}", hint=f"it may be {', '.join(known)}")
    if round_to < 1:
        raise ShrinkError(f"round_to is {round_to}", hint="it must be at least 1")
    if not 0 <= extra_fraction < 1:
        raise ShrinkError(f"extra_fraction is {extra_fraction}", hint="it must be at least 0 and below 1")


def _keep_by_layer(
    group: ChannelGroup,
    element_mask: ElementMask,
    weights: Mapping[str, Tensor],
    score: str,
    extra_fraction: float,
    round_to: int,
) -> Tensor:
    covered = element_mask.keep_by_parameter
    if group.pinned is not None or not any(m.tensor in covered for m in group.producers):
        return torch.ones(group.width, dtype=torch.bool)
    total_C = torch.zeros(group.width, dtype=torch.float64)
    keep_C = torch.zeros(group.width, dtype=torch.bool)
    for member in group.producers:
        score_C = _member_scores(member, element_mask, weights, score)
        keep = covered.get(member.tensor)
        share = 1.0 if keep is None else _with_extra(int(keep.sum()) / keep.numel(), extra_fraction)
        keep_C |= best_channels(score_C, _num_kept(share, group.width))
        total_C += score_C
    # Already chosen channels first, then the best of the rest up to the multiple
    num_kept = rounded_up(int(keep_C.sum()), round_to, width=group.width)
    return best_channels(torch.where(keep_C, torch.inf, total_C), num_kept)


def _with_extra(share: float, extra_fraction: float) -> float:
    return share + (1 - share) * extra_fraction


def _num_kept(share: float, width: int) -> int:
    return max(1, ceil(share * width - _ROUNDING))


def _member_scores(
    member: Member, element_mask: ElementMask, weights: Mapping[str, Tensor], score: str
) -> Tensor:
    return _row_scores(member.tensor, member.axis, element_mask, weights, score)[member.indices].sum(1)


def _row_scores(
    name: str, axis: int, element_mask: ElementMask, weights: Mapping[str, Tensor], score: str
) -> Tensor:
    """Return what each row's survivors are worth, float64; of l2 its square, which sums over producers."""
    if name not in weights:
        raise ShrinkError(
            f"the score of channels needs {name!r}, which is not among the {len(weights)} weights given"
        )
    weight = weights[name].detach().cpu().double()
    keep = element_mask.keep_by_parameter.get(name, torch.ones(weight.shape, dtype=torch.bool))
    if keep.shape != weight.shape:
        raise ShrinkError(
            f"the element mask of {name!r} is {tuple(keep.shape)}, the weight {tuple(weight.shape)}"
        )
    values = {"l1": weight.abs(), "l2": weight.square(), "count": torch.ones_like(weight)}[score]
    surviving = values * keep
    return surviving.movedim(axis, 0).flatten(1).sum(1) if weight.dim() > 1 else surviving
