from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError
from ticket_export.find.refill import refill, refill_rows


def rows(tensor: str, width: int, axis: int = 0) -> Member:
    return Member(tensor=tensor, axis=axis, indices=torch.arange(width).view(-1, 1), role="producer")


def group(name: str, width: int, *producers: Member, pinned: str | None = None) -> ChannelGroup:
    norm = Member(tensor=f"{name}.bn", axis=0, indices=torch.arange(width).view(-1, 1), role="per_channel")
    return ChannelGroup(name=name, width=width, members=(*producers, norm), pinned=pinned)


def matrix(*row_sums: float) -> Tensor:
    """Each row holds its sum in four equal parts."""
    return (torch.tensor(row_sums) / 4).view(-1, 1).expand(-1, 4).clone()


def half(weight: Tensor) -> Tensor:
    """Keep two of each row's four weights: the remaining fraction is one half."""
    return torch.tensor([True, True, False, False]).expand(weight.shape).clone()


WEIGHTS = {"one": matrix(1, 4, 3, 2), "two": matrix(9, 1, 1, 5), "stem": matrix(8, 8, 8, 8)}
MASK = ElementMask({"one": half(WEIGHTS["one"]), "two": half(WEIGHTS["two"])})
INNER = group("inner", 4, rows("one", 4))
STREAM = group("stream", 4, rows("one", 4), rows("two", 4))


def kept(groups: list[ChannelGroup], mask: ElementMask = MASK, **options: object) -> dict[str, list[int]]:
    found = refill(mask, WEIGHTS, groups, **options)  # type: ignore[arg-type]
    return {name: keep.nonzero().flatten().tolist() for name, keep in found.keep_by_group.items()}


@pytest.mark.parametrize("scope", ["layer", "inner", "coupled"])
def test_a_single_layer_keeps_its_rows_of_largest_surviving_norm_in_every_scope(scope: str) -> None:
    assert kept([INNER], scope=scope) == {"inner": [1, 2]}


def test_coupled_scope_sums_the_scores_of_all_producers() -> None:
    assert kept([STREAM]) == {"stream": [0, 3]}  # 10, 5, 4, 7


def test_inner_scope_leaves_joined_channels_whole() -> None:
    assert kept([STREAM, INNER], scope="inner") == {"stream": [0, 1, 2, 3], "inner": [1, 2]}


def test_layer_scope_drops_a_channel_only_where_every_producer_drops_it() -> None:
    # one keeps 1 and 2, two keeps 0 and 3
    assert kept([STREAM], scope="layer") == {"stream": [0, 1, 2, 3]}
    quarter = {name: torch.tensor([True, False, False, False]).expand(4, 4) for name in ("one", "two")}
    assert kept([STREAM], ElementMask(quarter), scope="layer") == {"stream": [0, 1]}


def test_only_surviving_weights_score() -> None:
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[0] = True  # row 0 has the smallest weights, but they are the ones left
    assert kept([INNER], ElementMask({"one": keep})) == {"inner": [0]}


@pytest.mark.parametrize(("surviving", "num_kept"), [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (16, 4)])
def test_the_number_of_kept_channels_is_the_ceiling_of_the_remaining_fraction(
    surviving: int, num_kept: int
) -> None:
    keep = (torch.arange(16) < surviving).view(4, 4)
    assert len(kept([INNER], ElementMask({"one": keep}))["inner"]) == num_kept


def test_of_equal_scores_the_first_are_kept() -> None:
    equal = group("equal", 4, rows("stem", 4))
    assert kept([equal], ElementMask({"stem": half(WEIGHTS["stem"])})) == {"equal": [0, 1]}


@pytest.mark.parametrize(
    ("round_to", "expected"), [(1, [1, 2]), (2, [1, 2]), (3, [1, 2, 3]), (8, [0, 1, 2, 3])]
)
def test_widths_are_rounded_up_with_the_next_best_and_capped(round_to: int, expected: list[int]) -> None:
    assert kept([INNER], round_to=round_to) == {"inner": expected}
    assert kept([INNER], round_to=round_to, scope="layer") == {"inner": expected}


def test_pinned_groups_and_groups_the_mask_does_not_cover_stay_whole() -> None:
    pinned = group("out", 4, rows("one", 4), pinned="model output")
    stem = group("stem", 4, rows("stem", 4))
    assert kept([pinned, stem]) == {"out": [0, 1, 2, 3], "stem": [0, 1, 2, 3]}


def test_the_uncovered_producer_of_a_group_scores_and_does_not_set_its_width() -> None:
    weights = WEIGHTS | {"stem": matrix(0, 0, 9, 0)}
    joined = group("joined", 4, rows("one", 4), rows("stem", 4))
    found = refill(MASK, weights, [joined]).keep_by_group["joined"]
    assert found.tolist() == [False, True, True, False]


def test_a_channel_may_own_several_rows_and_any_axis() -> None:
    member = Member(tensor="one", axis=0, indices=torch.tensor([[0, 2], [1, 3]]), role="producer")
    pair = ChannelGroup(name="pair", width=2, members=(member,), pinned=None)
    assert kept([pair], ElementMask({"one": half(WEIGHTS["one"])})) == {"pair": [1]}  # 1 + 3 against 4 + 2
    turned = refill(
        ElementMask({"one": half(WEIGHTS["one"]).T.clone()}),
        {"one": WEIGHTS["one"].T},
        [group("turned", 4, rows("one", 4, axis=1))],
    )
    assert turned.keep_by_group["turned"].tolist() == [False, True, True, False]


def test_refilled_rows_are_whole_or_empty_and_as_many_as_the_fraction_says() -> None:
    found = refill_rows(MASK, WEIGHTS, [STREAM]).keep_by_parameter
    assert found["one"].tolist() == [[keep] * 4 for keep in (False, True, True, False)]
    assert found["two"].tolist() == [[keep] * 4 for keep in (True, False, False, True)]
    pinned = group("out", 4, rows("one", 4), pinned="model output")
    assert refill_rows(MASK, WEIGHTS, [pinned]).keep_by_parameter["one"].all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShrinkError, match="'channel'"):
        kept([INNER], scope="channel")
    with pytest.raises(ShrinkError, match="round_to is 0"):
        kept([INNER], round_to=0)
    with pytest.raises(ShrinkError, match="'three', which is not among the 3"):
        kept([group("three", 4, rows("one", 4), rows("three", 4))])
    with pytest.raises(ShrinkError, match=r"'one' is \(3, 4\), the weight \(4, 4\)"):
        kept([INNER], ElementMask({"one": torch.ones(3, 4).bool()}))
