from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError
from ticket_export.find.magnitude import magnitude_mask

WEIGHTS = {"a": torch.tensor([[1.0, -5.0], [3.0, 2.0]]), "b": torch.tensor([-4.0, 0.5, 6.0, 0.1])}


def test_the_largest_magnitudes_of_all_parameters_together_are_kept() -> None:
    kept = magnitude_mask(WEIGHTS, keep_fraction=0.5).keep_by_parameter
    assert kept["a"].tolist() == [[False, True], [True, False]]
    assert kept["b"].tolist() == [True, False, True, False]


def test_each_parameter_keeps_its_own_largest_in_layer_scope() -> None:
    weights = {"a": WEIGHTS["a"] * 100, "b": WEIGHTS["b"]}
    kept = magnitude_mask(weights, keep_fraction=0.5, scope="layer").keep_by_parameter
    assert kept["a"].tolist() == [[False, True], [True, False]]
    assert kept["b"].tolist() == [True, False, True, False]


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    kept = magnitude_mask({"a": torch.ones(3), "b": -torch.ones(2)}, keep_fraction=0.6).keep_by_parameter
    assert kept["a"].tolist() == [True, True, True]
    assert kept["b"].tolist() == [False, False]


@pytest.mark.parametrize(("level", "count"), [(1, 80), (2, 64), (3, 52), (4, 41)])
def test_counts_are_exact_and_free_of_rounding_noise(level: int, count: int) -> None:
    weights = {"w": torch.randn(100, generator=torch.Generator().manual_seed(0))}
    kept = magnitude_mask(weights, keep_fraction=0.8**level).keep_by_parameter["w"]
    assert int(kept.sum()) == count  # 0.8 ** 2 * 100 is 64.00000000000001 in floating point


def test_what_is_dropped_stays_dropped_even_if_it_grew() -> None:
    previous = ElementMask({"a": torch.tensor([[True, False], [True, True]]), "b": torch.ones(4).bool()})
    kept = magnitude_mask(WEIGHTS, keep_fraction=0.5, previous=previous).keep_by_parameter
    assert kept["a"].tolist() == [[False, False], [True, True]]
    assert kept["b"].tolist() == [True, False, True, False]


def test_no_more_is_kept_than_the_round_before_left() -> None:
    previous = ElementMask({"b": torch.tensor([True, False, False, False])})
    kept = magnitude_mask({"b": WEIGHTS["b"]}, keep_fraction=0.75, previous=previous)
    assert kept.keep_by_parameter["b"].tolist() == [True, False, False, False]


def test_a_weight_of_zero_can_be_kept() -> None:
    assert magnitude_mask({"w": torch.zeros(4)}, keep_fraction=1.0).element_density == 1.0


@given(
    values=st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=40),
    keep_fraction=st.floats(0.01, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_nothing_kept_is_smaller_than_anything_dropped(values: list[float], keep_fraction: float) -> None:
    weight = torch.tensor(values)
    keep = magnitude_mask({"w": weight}, keep_fraction=keep_fraction).keep_by_parameter["w"]
    kept, dropped = weight[keep].abs(), weight[~keep].abs()
    assert len(kept) - 1 < keep_fraction * len(weight) + 1e-6
    assert len(kept) >= keep_fraction * len(weight) - 1e-6
    assert not len(dropped) or float(kept.min()) >= float(dropped.max())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"keep_fraction": 0.0}, "keep_fraction is 0.0"),
        ({"keep_fraction": 1.5}, "1.5"),
        ({"scope": "channel"}, "'channel'"),
        ({"weights": {}}, "no weights"),
        ({"weights": {"w": torch.tensor([1.0, float("nan")])}}, "'w' holds values that are not finite"),
        ({"previous": ElementMask({})}, "None for 'a'"),
        ({"previous": ElementMask({"a": torch.ones(3).bool()})}, r"\(3,\) for 'a', the weight is \(2, 2\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(changed: dict[str, object], text: str) -> None:
    given_: dict[str, object] = {"weights": WEIGHTS, "keep_fraction": 0.5} | changed
    weights = given_.pop("weights")
    with pytest.raises(ShrinkError, match=text):
        magnitude_mask(weights, **given_)
