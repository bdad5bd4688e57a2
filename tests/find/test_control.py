from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.control import (
    random_mask,
    shuffled_blocks,
    shuffled_elements,
    uniform_mask,
    uniform_masks,
)


def groups(*widths: int, pinned: int = 5) -> list[ChannelGroup]:
    free = [ChannelGroup(name=f"g{i}", width=w, members=(), pinned=None) for i, w in enumerate(widths)]
    return [*free, ChannelGroup(name="out", width=pinned, members=(), pinned="model output")]


def macs(mask: Mask) -> int:
    """A chain: each layer costs its width times the next one's."""
    widths = list(mask.kept_widths().values())
    return sum(a * b for a, b in pairwise(widths))


def test_random_channels_have_the_tickets_widths() -> None:
    ticket = Mask({"a": torch.arange(20) < 7, "b": torch.arange(9) < 9})
    drawn = random_mask(ticket, torch.Generator().manual_seed(0))
    assert drawn.kept_widths() == {"a": 7, "b": 9}
    assert not torch.equal(drawn.keep_by_group["a"], ticket.keep_by_group["a"])
    again = random_mask(ticket, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.keep_by_group["a"], again.keep_by_group["a"])


def test_random_channels_are_all_equally_likely() -> None:
    ticket = Mask({"a": torch.arange(8) < 4})
    generator = torch.Generator().manual_seed(0)
    counts = sum(random_mask(ticket, generator).keep_by_group["a"].int() for _ in range(400))
    assert isinstance(counts, torch.Tensor)
    assert int(counts.min()) > 160  # 200 expected, four standard deviations are 40
    assert int(counts.max()) < 240


def test_one_multiplier_gives_the_macs_nearest_to_the_target() -> None:
    made = groups(16, 32, 64)
    every = [uniform_mask(made, round_to=1, target_macs=other, macs_of=macs) for other in range(0, 3200, 16)]
    for target in (100, 900, 1500, 2400):
        found = uniform_mask(made, round_to=1, target_macs=target, macs_of=macs)
        nearest = min(abs(macs(mask) - target) for mask in every)
        assert abs(macs(found) - target) == nearest
        a, b, c, out = found.kept_widths().values()
        assert out == 5
        assert abs(b - 2 * a) <= 1
        assert abs(c - 4 * a) <= 3


def test_every_uniform_mask_stands_once_from_the_narrowest_to_dense() -> None:
    widths = [tuple(mask.kept_widths().values()) for mask in uniform_masks(groups(16, 20), round_to=8)]
    assert widths == [(8, 8, 5), (8, 16, 5), (16, 16, 5), (16, 20, 5)]


def test_widths_are_multiples_of_round_to_or_whole() -> None:
    found = uniform_mask(groups(16, 20, 64), round_to=8, target_macs=900, macs_of=macs)
    assert all(kept % 8 == 0 or kept == 20 for kept in list(found.kept_widths().values())[:3])


def test_the_whole_network_and_the_smallest_are_reached() -> None:
    made = groups(6, 6)
    assert uniform_mask(made, round_to=1, target_macs=10**9, macs_of=macs).channel_density == 1.0
    smallest = uniform_mask(made, round_to=1, target_macs=0, macs_of=macs)
    assert smallest.kept_widths() == {"g0": 1, "g1": 1, "out": 5}


def test_few_networks_are_counted() -> None:
    calls: list[Mask] = []

    def counted(mask: Mask) -> int:
        calls.append(mask)
        return macs(mask)

    uniform_mask(groups(16, 32, 64), round_to=1, target_macs=900, macs_of=counted)
    assert len(calls) <= 9


def test_a_network_without_free_groups_stays_whole() -> None:
    assert uniform_mask(groups(), round_to=8, target_macs=1, macs_of=macs).kept_widths() == {"out": 5}


def test_round_to_below_one_is_refused() -> None:
    with pytest.raises(ShrinkError, match="round_to is 0"):
        uniform_mask(groups(4), round_to=0, target_macs=1, macs_of=macs)


def test_shuffled_elements_keep_as_many_of_every_layer_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = ElementMask({"a": torch.arange(60).view(6, 10) < 20, "b": torch.arange(40) < 30})
    shuffled = shuffled_elements(kept, generator).keep_by_parameter
    assert {name: int(keep.sum()) for name, keep in shuffled.items()} == {"a": 20, "b": 30}
    assert not torch.equal(shuffled["a"], kept.keep_by_parameter["a"])


def test_shuffled_blocks_have_the_same_blocks_at_other_rows_and_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.zeros(8, 6, 3, 3, dtype=torch.bool)
    keep[:4, :2], keep[4:, 2:5] = True, True
    moved = shuffled_blocks(ElementMask({"conv": keep}), generator).keep_by_parameter["conv"]
    supports = [tuple(row.nonzero().flatten().tolist()) for row in moved.flatten(2).all(2)]
    assert torch.equal(moved.flatten(2).all(2), moved.flatten(2).any(2))  # whole kernels
    assert sorted(map(len, supports)) == [2] * 4 + [3] * 4
    assert len(set(supports)) == 2
    assert not torch.equal(moved, keep)
