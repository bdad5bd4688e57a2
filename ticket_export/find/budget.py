"""The widths that keep to a budget of weights, MACs or latency, in the proportions that a finder gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.refill import mask_from_shares

_NUM_EXPONENTS = 400  # from dense to almost nothing; finer than one channel of 512 in most layers
_LARGEST_EXPONENT = 8.0


def mask_within_budget(
    share_by_group: Mapping[str, float],
    score_by_group: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    *,
    cost_of: Callable[[Mask], float],
    target: float,
    round_to: int = 1,
    within: Mask | None = None,
) -> Mask:
    """Return the widest mask whose network costs at most the target.

    Every group keeps `share ** t` of its width, with one exponent t for all: t = 1 is what the finder found,
    and groups that it dropped more of go on losing more. Costs fall with t, so few networks are counted.

    Args:
        share_by_group: of `remaining_shares`.
        score_by_group: of `channel_scores`.
        groups: the network's channel groups.
        cost_of: counts or times the network that a mask leaves, as a share of dense.
        target: in (0, 1).
        round_to: as of `mask_from_shares`.
        within: only channels of this mask are kept.

    Raises:
        ShrinkError: even the narrowest network costs more.
    """
    masks: dict[tuple[int, ...], Mask] = {}
    for step in range(_NUM_EXPONENTS + 1):
        exponent = _LARGEST_EXPONENT * step / _NUM_EXPONENTS
        shares = {name: share**exponent for name, share in share_by_group.items()}
        mask = mask_from_shares(shares, score_by_group, groups, round_to=round_to, within=within)
        masks.setdefault(tuple(mask.kept_widths().values()), mask)
    candidates = list(masks.values())
    low, high = 0, len(candidates) - 1  # the first that fits lies in low..high, or none does
    while low < high:
        middle = (low + high) // 2
        if cost_of(candidates[middle]) <= target:
            high = middle
        else:
            low = middle + 1
    cost = cost_of(candidates[low])
    if cost > target:
        raise ShrinkError(
            f"the budget is {target:.3f} of dense, and the narrowest network in these proportions costs "
            f"{cost:.3f}",
            hint="raise find.budget, use scope coupled, or lower find.round_to",
        )
    return candidates[low]
