from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticket_export.channels.cost_models import MacCosts, network_cost, width_grid
from ticket_export.channels.sites import Axis, LayerSite
from ticket_export.errors import ShrinkError
from ticket_export.find.knapsack import Limits, choose_widths, fill_free, kept_importance


def _site(name, columns, rows, *, fixed_in=0, fixed_out=0, depthwise=False):
    return LayerSite(
        name=name, op="conv", kernel=(3, 3), stride=(1, 1), padding=(1, 1), in_size=(4, 4), out_size=(4, 4),
        depthwise=depthwise, has_bias=False,
        rows=Axis(fixed=fixed_out, parts=tuple((group, 1) for group in rows)),
        columns=Axis(fixed=fixed_in, parts=tuple((group, 1) for group in columns)),
    )  # fmt: skip


# A stem, a residual block that reads and writes it, two branches that are concatenated, a classifier
NETWORK = (
    _site("stem", [], ["s"], fixed_in=3),
    _site("inner", ["s"], ["a"]),
    _site("outer", ["a"], ["s"]),
    _site("depthwise", ["s"], ["s"], depthwise=True),
    _site("left", ["s"], ["b"]),
    _site("join", ["a", "b"], [], fixed_out=5),
)
WHOLE = {"s": 4, "a": 5, "b": 3}


class Stairs:
    """Seconds that rise with steps of `step` channels, tabulated for every width."""

    name = "latency_fraction"

    def __init__(self, step=1):
        self._step = step

    def cost(self, site, width_in, width_out):
        if site.op == "norm":
            return 0.0
        inside, outside = (-(-width // self._step) for width in (width_in, width_out))
        slope = 1 + (sum(site.name.encode()) % 7) / 7
        return 0.0 if width_in * width_out == 0 else slope * (3 + inside * outside + outside)

    def fixed(self):
        return 2.0

    def widths(self, group, width):
        return tuple(range(1, width + 1))


def _best_by_brute_force(scores, sites, costs, target, objective, empty=()):
    """Return the largest kept importance of all widths whose cost keeps to the target, or None."""
    found = None
    ranges = [range(0 if g in empty else 1, len(s) + 1) for g, s in scores.items()]
    for choice in itertools.product(*ranges):
        widths = dict(zip(scores, choice, strict=True))
        if network_cost(costs, sites, widths) <= target * (1 + 1e-9):
            worth = kept_importance(scores, widths, objective)
            found = worth if found is None else max(found, worth)
    return found


_SCORES = st.fixed_dictionaries(
    {
        group: st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 7.0]), min_size=width, max_size=width)
        for group, width in WHOLE.items()
    }
)


@settings(max_examples=40, deadline=None)
@given(scores=_SCORES, fraction=st.floats(0.05, 1.0), objective=st.sampled_from(["product", "sum"]))
def test_no_choice_of_widths_keeps_more_macs_worth(scores, fraction, objective):
    scores = {g: torch.tensor(values, dtype=torch.float64) for g, values in scores.items()}
    costs = MacCosts(fixed_macs=100)
    _compare(scores, NETWORK, costs, fraction, objective, empty=("b",) if objective == "sum" else ())


@settings(max_examples=40, deadline=None)
@given(scores=_SCORES, fraction=st.floats(0.05, 1.0), step=st.sampled_from([1, 2, 3]))
def test_no_choice_of_widths_keeps_more_seconds_worth(scores, fraction, step):
    scores = {g: torch.tensor(values, dtype=torch.float64) for g, values in scores.items()}
    sites = tuple(site for site in NETWORK if site.name != "join")
    _compare(scores, sites, Stairs(step), fraction, "product")


def _compare(scores, sites, costs, fraction, objective, empty=()):
    target = fraction * network_cost(costs, sites, WHOLE)
    best = _best_by_brute_force(scores, sites, costs, target, objective, empty)
    options = {"whole": WHOLE, "target": target, "objective": objective, "limits": Limits(may_be_empty=empty)}
    if best is None:
        with pytest.raises(ShrinkError, match="the narrowest network costs"):
            choose_widths(scores, sites, costs, **options)
        return
    choice = choose_widths(scores, sites, costs, **options)
    assert choice.cost == network_cost(costs, sites, choice.widths)
    assert choice.cost <= target * (1 + 1e-6)
    assert choice.gap <= 1e-5
    assert choice.kept_importance == kept_importance(scores, choice.widths, objective)
    assert choice.kept_importance >= best * (1 - 2e-5) - 2e-6
    for group, width in choice.widths.items():  # nothing is free any more
        if 0 < width < WHOLE[group]:
            assert network_cost(costs, sites, {**choice.widths, group: width + 1}) > target


def test_a_width_never_stops_inside_a_stair_even_where_the_channels_are_worth_nothing():
    sites = (_site("conv", [], ["a"], fixed_in=3), _site("head", ["a"], [], fixed_out=5))
    scores = {"a": torch.tensor([5.0, 4.0, 3.0, 2.0] + [0.0] * 12)}
    costs = Stairs(8)
    target = 0.9 * network_cost(costs, sites, {"a": 16})
    choice = choose_widths(scores, sites, costs, whole={"a": 16}, target=target)
    assert choice.widths == {"a": 8}
    assert choice.kept_importance == 1.0


def test_free_channels_fill_the_stair_and_cost_nothing():
    sites = tuple(site for site in NETWORK if site.name != "join")
    whole = {"s": 16, "a": 20, "b": 24}
    scores = {
        group: torch.rand(width, generator=torch.Generator().manual_seed(1)) for group, width in whole.items()
    }
    given_widths = {"s": 5, "a": 9, "b": 3}
    filled = fill_free(scores, sites, Stairs(8), whole=whole, widths=given_widths)
    assert filled.widths == {"s": 8, "a": 16, "b": 8}
    assert filled.cost == network_cost(Stairs(8), sites, given_widths)
    narrower = fill_free(scores, sites, Stairs(8), whole=whole, widths=given_widths, upper={"a": 12})
    assert narrower.widths == {"s": 8, "a": 12, "b": 8}


def test_wide_groups_are_refined_between_the_neighbours_of_the_first_choice():
    sites = (_site("conv", [], ["a"], fixed_in=1), _site("head", ["a"], [], fixed_out=1))
    scores = {"a": torch.arange(512, 0, -1).double()}
    costs = MacCosts(fixed_macs=0)
    dense = network_cost(costs, sites, {"a": 512})

    class Every(MacCosts):
        def widths(self, group, width):
            return tuple(range(1, width + 1))

    choice = choose_widths(scores, sites, Every(fixed_macs=0), whole={"a": 512}, target=dense * 301 / 512)
    assert choice.widths == {"a": 301}


def test_the_product_keeps_equal_shares_where_the_sum_empties_the_quieter_group():
    sites = (_site("conv", [], ["a"], fixed_in=1), _site("other", [], ["b"], fixed_in=1))
    scores = {"a": torch.full((4,), 100.0), "b": torch.full((4,), 1.0)}
    options = {"whole": {"a": 4, "b": 4}, "target": 4 * 9 * 16}
    costs = MacCosts(fixed_macs=0)
    assert choose_widths(scores, sites, costs, **options).widths == {"a": 2, "b": 2}
    limits = Limits(may_be_empty=("b",))
    emptied = choose_widths(scores, sites, costs, objective="sum", limits=limits, **options)
    assert emptied.widths == {"a": 4, "b": 0}
    assert emptied.kept_importance == pytest.approx(400 / 404)


def test_limits_hold():
    scores = {group: torch.arange(width, 0, -1).double() for group, width in WHOLE.items()}
    limits = Limits(round_to=2, upper={"s": 3}, lower={"b": 3})
    costs = MacCosts(fixed_macs=0)
    target = 0.8 * network_cost(costs, NETWORK, WHOLE)
    choice = choose_widths(scores, NETWORK, costs, whole=WHOLE, target=target, limits=limits)
    assert choice.widths["s"] in (2, 3)
    assert choice.widths["b"] == 3
    assert choice.widths["a"] in (2, 4, 5)


def test_a_group_without_scores_keeps_its_width():
    scores = {"a": torch.ones(5)}
    costs = MacCosts(fixed_macs=0)
    choice = choose_widths(scores, NETWORK, costs, whole=WHOLE, target=1e9)
    assert choice.widths == {"a": 5}
    assert choice.cost == network_cost(costs, NETWORK, WHOLE)


def test_a_concatenation_has_no_latency_as_a_sum_and_is_refused_by_name():
    scores = {group: torch.ones(width) for group, width in WHOLE.items()}
    with pytest.raises(ShrinkError, match="join joins the groups a, b side by side"):
        choose_widths(scores, NETWORK, Stairs(), whole=WHOLE, target=100.0)


def test_a_target_below_the_narrowest_network_is_refused_with_its_cost():
    scores = {group: torch.ones(width) for group, width in WHOLE.items()}
    costs = MacCosts(fixed_macs=0)
    least = network_cost(costs, NETWORK, dict.fromkeys(WHOLE, 1)) / network_cost(costs, NETWORK, WHOLE)
    with pytest.raises(ShrinkError, match=f"the narrowest network costs {least:.3f}"):
        choose_widths(scores, NETWORK, costs, whole=WHOLE, target=1.0)


@pytest.mark.parametrize(
    "bad", [torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, math.nan, 1.0]), torch.ones(2)]
)
def test_scores_that_are_none_are_refused(bad):
    with pytest.raises(ShrinkError, match="the scores of group 'b' are"):
        choose_widths({"b": bad}, NETWORK, MacCosts(fixed_macs=0), whole=WHOLE, target=1.0)


def test_what_the_solver_prints_stays_off_stdout(capfd):
    scores = {group: torch.ones(width) for group, width in WHOLE.items()}
    choose_widths(scores, NETWORK, MacCosts(fixed_macs=0), whole=WHOLE, target=3000.0)
    assert capfd.readouterr().out == ""


def test_twelve_groups_of_sixteen_widths_are_solved_in_five_seconds():

    groups = [f"g{i}" for i in range(12)]
    whole = dict(zip(groups, itertools.cycle((16, 32, 64)), strict=False))
    sites = tuple(
        _site(f"{a}-{b}", [a], [b])
        for a, b in [*itertools.pairwise(groups), *zip(groups, groups[3:], strict=False)]
    )
    generator = torch.Generator().manual_seed(0)
    scores = {g: torch.rand(w, generator=generator) for g, w in whole.items()}

    class Grid(MacCosts):
        def widths(self, group, width):
            return width_grid(width, max_widths=16)

    costs = Grid(fixed_macs=0)
    start = time.process_time()
    choice = choose_widths(scores, sites, costs, whole=whole, target=0.4 * network_cost(costs, sites, whole))
    assert time.process_time() - start < 5
    assert choice.gap <= 1e-5
