"""The best channels of groups, as many as their widths say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask


def best_channels(score_C: Tensor, num_kept: int) -> Tensor:
    """Return bool [C], True for the `num_kept` channels of the highest score; of equal ones the first."""
    order = torch.sort(score_C, descending=True, stable=True).indices  # stable: of equals, the first
    return torch.zeros(len(score_C), dtype=torch.bool).index_fill_(0, order[:num_kept], True)


def rounded_up(num_kept: int, round_to: int, *, width: int) -> int:
    """Return the next multiple of `round_to`, capped by the channels that are there."""
    return min(width, -(-num_kept // round_to) * round_to)


def there(group: ChannelGroup, within: Mask | None) -> Tensor:
    """Return bool [C], the channels of a group that `within` has; all without one."""
    if within is not None and group.name in within.keep_by_group:
        return within.keep_by_group[group.name]
    return torch.ones(group.width, dtype=torch.bool)


def mask_from_widths(
    widths: Mapping[str, int],
    score_by_group: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    within: Mask | None = None,
) -> Mask:
    """Return the best channels of every group that has a width and a score, the others as they were."""
    keep_by_group = {}
    for group in groups:
        keep_C = there(group, within)
        if group.name in widths and group.name in score_by_group:
            score_C = score_by_group[group.name].double().masked_fill(~keep_C, -torch.inf)
            keep_C = best_channels(score_C, widths[group.name])
        keep_by_group[group.name] = keep_C
    return Mask(keep_by_group)
