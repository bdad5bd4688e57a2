"""The best channels of a group, as many as a width on the grid allows."""

from __future__ import annotations

import torch
from torch import Tensor


def best_channels(score_C: Tensor, num_kept: int) -> Tensor:
    """Return bool [C], True for the `num_kept` channels of the highest score; of equal ones the first."""
    order = torch.sort(score_C, descending=True, stable=True).indices  # stable: of equals, the first
    return torch.zeros(len(score_C), dtype=torch.bool).index_fill_(0, order[:num_kept], True)


def rounded_up(num_kept: int, round_to: int, *, width: int) -> int:
    """Return the next multiple of `round_to`, capped by the channels that are there."""
    return min(width, -(-num_kept // round_to) * round_to)
