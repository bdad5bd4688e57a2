"""Random sparse tickets: channels chosen almost freely, and a training that empties them before the cut.

Source: Bai et al. 2022, the dual lottery ticket hypothesis (arXiv 2203.04248). A share of every layer's
channels is chosen, by chance or by norm; while the network trains, a growing l2 penalty
(`train.penalty.GrowingL2`) moves what they have learnt into the others; then they are cut, which changes
little, and the small network trains on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.best import best_channels, rounded_up
from ticket_export.find.control import require_round_to, scoped_groups
from ticket_export.find.refill import channel_scores
from ticket_export.train.masked import hold_zero_from_mask

CRITERIA = ("random", "l1")


def rst_mask(
    groups: Sequence[ChannelGroup],
    weights: Mapping[str, Tensor],
    *,
    drop_fraction: float,
    criterion: str,
    scope: str = "coupled",
    round_to: int = 1,
    generator: torch.Generator | None = None,
) -> Mask:
    """Return a mask that drops the same share of every group of the scope; every group is in the mask.

    `floor(drop_fraction * width)` channels go, fewer where `round_to` rounds the kept width up. Pinned
    groups, and groups that no layer writes, stay whole.

    Args:
        groups: the network's channel groups.
        weights: the state dict that `l1` scores.
        drop_fraction: in (0, 1).
        criterion: `random` draws the kept channels; `l1` keeps those whose rows, over all layers that write
            them, have the largest l1 norm, of equal ones the first.
        scope: `coupled` for every group, `inner` for groups that one layer writes (residual streams stay).
        round_to: kept widths are multiples of it, capped by the width.
        generator: what `random` draws from, group by group.

    Raises:
        ShrinkError: an argument is out of range, or a scored weight is missing.
    """
    require_round_to(round_to)
    if not 0 < drop_fraction < 1:
        raise ShrinkError(f"drop_fraction is {drop_fraction}", hint="it must lie between 0 and 1")
    if criterion not in CRITERIA:
        raise ShrinkError(f"the criterion is {criterion!r}", hint=f"it may be {', '.join(CRITERIA)}")
    if criterion == "random" and generator is None:
        raise ShrinkError("the criterion 'random' has no generator to draw from")
    keep_by_group = {group.name: torch.ones(group.width, dtype=torch.bool) for group in groups}
    for group in scoped_groups(groups, scope):
        if group.pinned is not None or not group.producers:
            continue
        num_dropped = int(Fraction(str(drop_fraction)) * group.width)  # exact: 0.29 of 100 are 29
        num_kept = rounded_up(group.width - num_dropped, round_to, width=group.width)
        if criterion == "random":
            chosen = torch.randperm(group.width, generator=generator)[:num_kept]
            keep_C = torch.zeros(group.width, dtype=torch.bool).index_fill_(0, chosen, True)
        else:  # l1 of whole rows: nothing is masked yet
            [score_C] = channel_scores(ElementMask({}), weights, [group]).values()
            keep_C = best_channels(score_C, num_kept)
        keep_by_group[group.name] = keep_C
    return Mask(keep_by_group)


def dropped_elements(model: nn.Module, groups: Sequence[ChannelGroup], mask: Mask) -> dict[str, Tensor]:
    """Return what `GrowingL2` takes: parameter name -> bool, False in all that dropped channels own.

    Rows, biases, norm scales and shifts, and the columns that read them: once they are zero, cutting the
    channels changes nothing. Rows alone would never be: a norm behind them undoes what shrinks them, and the
    smaller they are the harder the loss pulls.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    return hold_zero_from_mask(model, groups, mask)
