"""Widths within a budget: the widest that fits, in the proportions that a finder gave."""

from __future__ import annotations

from math import log

import pytest
import torch

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.budget import mask_within_budget


def group(name: str, width: int) -> ChannelGroup:
    member = Member(tensor=name, axis=0, indices=torch.arange(width).view(-1, 1), role="producer")
    return ChannelGroup(name=name, width=width, members=(member,), pinned=None)


GROUPS = [group("wide", 100), group("narrow", 100)]
SHARES = {"wide": 0.9, "narrow": 0.5}
SCORES = {name: torch.arange(100.0) for name in SHARES}


def cost(mask: Mask) -> float:
    return sum(mask.kept_widths().values()) / 200


def fitted(target: float, **options: object) -> dict[str, int]:
    mask = mask_within_budget(SHARES, SCORES, GROUPS, cost_of=cost, target=target, **options)  # type: ignore[arg-type]
    return mask.kept_widths()


@pytest.mark.parametrize("target", [0.9, 0.7, 0.5, 0.3])
def test_the_widest_network_that_fits_is_kept(target: float) -> None:
    widths = fitted(target)
    assert target - 0.02 < sum(widths.values()) / 200 <= target


def test_what_the_finder_dropped_more_of_goes_on_losing_more() -> None:
    widths = fitted(0.6)
    share = {name: width / 100 for name, width in widths.items()}
    # one exponent for both: log(share) keeps its proportion, within a channel
    expected = share["narrow"] ** (log(SHARES["wide"]) / log(SHARES["narrow"]))
    assert share["wide"] == pytest.approx(expected, abs=0.015)
    assert widths["wide"] > widths["narrow"]


def test_the_best_channels_stay_and_widths_keep_to_the_grid() -> None:
    mask = mask_within_budget(SHARES, SCORES, GROUPS, cost_of=cost, target=0.6, round_to=8)
    assert all(width % 8 == 0 for width in mask.kept_widths().values())
    for name, keep_C in mask.keep_by_group.items():
        assert keep_C.tolist() == [index >= 100 - mask.kept_widths()[name] for index in range(100)]


def test_only_channels_that_are_there_are_kept() -> None:
    there = Mask({name: torch.arange(100) < 60 for name in SHARES})
    mask = mask_within_budget(SHARES, SCORES, GROUPS, cost_of=cost, target=0.5, within=there)
    assert not any((keep_C & ~there.keep_by_group[name]).any() for name, keep_C in mask.keep_by_group.items())
    assert cost(mask) <= 0.5


def test_few_networks_are_counted() -> None:
    asked = []

    def counted(mask: Mask) -> float:
        asked.append(mask)
        return cost(mask)

    mask_within_budget(SHARES, SCORES, GROUPS, cost_of=counted, target=0.5)
    assert len(asked) < 12


def test_a_budget_below_the_narrowest_network_is_refused() -> None:
    with pytest.raises(
        ShrinkError, match=r"the budget is 0\.010 of dense, and the narrowest .* costs 0\.\d+"
    ):
        fitted(0.01)
