"""Rounds inside the loop: what is counted is what is still there, and shares are carried unrounded."""

from __future__ import annotations

import pytest
import torch

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.in_loop import Round, prune_round


def member(tensor: str, width: int, axis: int, role: str) -> Member:
    return Member(tensor=tensor, axis=axis, indices=torch.arange(width).view(-1, 1), role=role)


# two layers in a row: the first writes 10 channels, the second reads them and writes the pinned output
HIDDEN = ChannelGroup(
    name="hidden",
    width=10,
    members=(member("one", 10, 0, "producer"), member("two", 10, 1, "consumer")),
    pinned=None,
)
OUTPUT = ChannelGroup(
    name="output", width=4, members=(member("two", 4, 0, "producer"),), pinned="model output"
)
WEIGHTS = {"one": torch.arange(1.0, 51.0).view(10, 5), "two": torch.full((4, 10), 100.0)}


def round_of(previous: Mask | None, shares: dict[str, float], drop_fraction: float = 0.2) -> Round:
    return prune_round(
        WEIGHTS,
        ["one"],
        [HIDDEN, OUTPUT],
        drop_fraction=drop_fraction,
        magnitude_scope="global",
        scope="coupled",
        previous=previous,
        previous_shares=shares,
    )


def test_the_first_round_drops_its_share_of_all_weights() -> None:
    found = round_of(None, {})
    assert int(found.element_mask.keep_by_parameter["one"].sum()) == 40
    assert found.shares == {"hidden": 0.8}


def test_a_later_round_drops_its_share_of_what_was_cut_to() -> None:
    eight = Mask({"hidden": torch.arange(10) >= 2, "output": torch.ones(4).bool()})
    found = round_of(eight, {"hidden": 0.8})
    keep = found.element_mask.keep_by_parameter["one"]
    assert not keep[:2].any()  # what was cut out stays out
    assert int(keep.sum()) == 32  # 0.8 of the 40 weights that were there
    assert found.shares == {"hidden": pytest.approx(0.64)}


def test_a_width_that_was_rounded_up_loses_as_much_as_one_that_was_not() -> None:
    whole = Mask({"hidden": torch.ones(10).bool(), "output": torch.ones(4).bool()})  # 0.8 rounded up to 10
    assert round_of(whole, {"hidden": 0.8}).shares["hidden"] == pytest.approx(0.64)


def test_pinned_groups_have_no_share() -> None:
    assert "output" not in round_of(None, {}).shares


def test_a_round_that_leaves_nothing_of_a_layer_is_told() -> None:
    weights = WEIGHTS | {"two": torch.zeros(4, 10)}
    with pytest.raises(ShrinkError, match="keeps 0 of the 40 weights of 'two'"):
        prune_round(
            weights,
            ["one", "two"],
            [HIDDEN, OUTPUT],
            drop_fraction=0.6,
            magnitude_scope="global",
            scope="coupled",
            previous=None,
            previous_shares={},
        )
