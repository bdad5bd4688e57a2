"""Events of a search: what is chosen, what is set to zero, what is cut out, and what is cut along."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_search import BRANCHES, DECISIONS, groups, net, rules
from torch import Tensor, nn

from ticket_export.channels.graph import channel_groups
from ticket_export.errors import ShrinkError
from ticket_export.find.sliced_state import Standing
from ticket_export.find.structure import Structure
from ticket_export.find.supernet_events import (
    Outcome,
    decisions_of,
    hold_event,
    rank_channels,
    ranked_choice,
    scores_of,
)

FIRST = f"{BRANCHES[0]}.expand"  # the group of the first branch, 8 channels
NAMES = tuple(f"{branch}.expand" for branch in BRANCHES)
X_NCHW = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def standing(gammas: Tensor | None = None, averages: Tensor | None = None) -> Standing:
    """The whole network with these scales in its first branch; momenta that tell their places."""
    model = net()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    average = {name: value.clone() for name, value in weights.items()}
    for state, values in ((weights, gammas), (average, averages)):
        state[DECISIONS[0]] = torch.ones(8) if values is None else values.clone()
    optimizer = {
        f"{name}/momentum_buffer": torch.arange(value.numel(), dtype=torch.float32).view(value.shape) + 1
        for name, value in model.named_parameters()
    }
    optimizer |= {f"{name}/step": torch.tensor(5.0) for name, _ in model.named_parameters()}
    decisions = decisions_of(model, groups(), DECISIONS)
    return Standing(
        structure=Structure.of_whole(model, groups()),
        weights=weights,
        average=average,
        optimizer=optimizer,
        zeroed={d.group: torch.zeros(len(d.places), dtype=torch.bool) for d in decisions},
    )


def held(
    before: Standing, dropped: dict[str, list[int]], *, is_last: bool = False, **changed: bool
) -> Outcome:
    """Hold an event that drops these channels of the whole network."""

    def choose(scores: dict[str, Tensor], target: float) -> dict[str, Tensor]:
        keep = {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}
        for name, channels in dropped.items():
            keep[name][channels] = False
        return keep

    return hold_event(
        before,
        net(),
        decisions_of(net(), groups(), DECISIONS),
        rules=rules(**changed),
        choose=choose,
        target=0.5,
        is_last=is_last,
        example_inputs=X_NCHW,
    )


def test_the_lowest_scales_of_the_whole_network_go() -> None:
    scores = {"a": torch.tensor([0.1, 0.9, 0.5, 0.0]), "b": torch.tensor([0.2, 0.05])}
    keep = rank_channels(scores, 0.5)
    assert keep["a"].tolist() == [False, True, True, False]
    assert keep["b"].tolist() == [True, False]
    keep = rank_channels(scores, 0.7)  # 4 of 6, the one that is gone already among them
    assert keep["b"].tolist() == [False, False]
    assert rank_channels(scores, 0.7, never_empty=["b"])["b"].tolist() == [True, False]


def test_widths_are_rounded_up_with_the_next_best_that_are_there() -> None:
    scores = {"a": torch.tensor([0.1, 0.9, 0.5, 0.0, 0.2]), "b": torch.tensor([0.01, 0.02])}
    keep = rank_channels(scores, 4 / 7, round_to=4)
    assert keep["a"].tolist() == [True, True, True, False, True]
    assert keep["b"].tolist() == [False, False]  # nothing is rounded up to nothing


def test_only_groups_in_branches_may_be_emptied_by_the_default_choice() -> None:
    names = {group.name for group in groups() if group.branch is not None}
    assert names == set(NAMES)
    scores = {"conv1": torch.tensor([0.1, 0.2]), FIRST: torch.tensor([0.3, 0.4, 0.9])}
    keep = ranked_choice(groups())(scores, 0.8)
    assert keep["conv1"].tolist() == [False, True]
    assert keep[FIRST].tolist() == [False, False, True]


def test_scores_are_the_sizes_of_the_scales_in_the_whole_networks_numbering() -> None:
    gammas = torch.tensor([0.5, -0.7, 0.1, 0.0, 0.2, 0.3, 0.4, 0.6])
    before, decisions = standing(gammas, gammas), decisions_of(net(), groups(), DECISIONS)
    assert (scores_of(before, decisions, before.weights)[FIRST] > 0).all()  # there, though one is zero
    outcome = held(before, {FIRST: [0, 6]}, reactivation=False)
    scores = scores_of(outcome.standing, decisions, outcome.standing.weights)
    assert scores[FIRST].tolist() == pytest.approx([0, 0.7, 0.1, 0, 0.2, 0.3, 0, 0.6])
    # The zero one was cut out with those that were dropped: nothing comes out of it
    assert outcome.removed == 3
    assert outcome.keep[FIRST].tolist() == [False, True, True, False, True, True, False, True]


def test_without_reactivation_what_is_dropped_is_cut_out_at_once() -> None:
    outcome = held(standing(), {FIRST: [1, 2], NAMES[5]: [0]}, reactivation=False)
    assert outcome.removed == 3
    assert outcome.standing.structure.mask.kept_widths()[FIRST] == 6
    assert outcome.standing.weights[f"{BRANCHES[0]}.expand.weight"].shape == (6, 4, 1, 1)
    assert outcome.standing.weights[f"{BRANCHES[0]}.project.weight"].shape == (4, 6, 1, 1)
    assert not any(zeroed_C.any() for zeroed_C in outcome.standing.zeroed.values())
    assert 0 <= max(outcome.rel_error, outcome.average_rel_error) < 1e-5


def test_the_state_of_the_optimiser_and_the_average_are_cut_with_the_weights() -> None:
    before = standing()
    after = held(before, {FIRST: [1, 2]}, reactivation=False).standing
    keep = torch.tensor([0, 3, 4, 5, 6, 7])
    for name, axis in (("expand.weight", 0), ("depthwise.weight", 0), ("project.weight", 1), ("bn1.bias", 0)):
        path = f"{BRANCHES[0]}.{name}"
        for part in ("weights", "average"):
            whole = getattr(before, part)[path]
            assert torch.equal(getattr(after, part)[path], whole.index_select(axis, keep))
        momentum = before.optimizer[f"{path}/momentum_buffer"].index_select(axis, keep)
        assert torch.equal(after.optimizer[f"{path}/momentum_buffer"], momentum)
        assert after.optimizer[f"{path}/step"] == 5
    assert torch.equal(after.weights["conv1.weight"], before.weights["conv1.weight"])
    assert after.optimizer.keys() == before.optimizer.keys()


def test_a_second_cut_is_numbered_by_the_whole_network() -> None:
    first = held(standing(), {FIRST: [0, 3]}, reactivation=False).standing
    second = held(first, {FIRST: [0, 3, 4, 7]}, reactivation=False).standing
    keep_C = second.structure.mask.keep_by_group[FIRST]
    assert keep_C.tolist() == [False, True, True, False, False, True, True, False]
    momentum = standing().optimizer[f"{BRANCHES[0]}.expand.weight/momentum_buffer"]
    cut = second.optimizer[f"{BRANCHES[0]}.expand.weight/momentum_buffer"]
    assert torch.equal(cut, momentum[[1, 2, 5, 6]])


def test_with_reactivation_what_is_dropped_stays_and_is_almost_zero() -> None:
    gammas = torch.tensor([0.5, -0.7, 0.1, 0.3, 0.2, 0.3, 0.4, 0.6])
    before = standing(gammas, 2 * gammas)
    outcome = held(before, {FIRST: [0, 1]})
    after = outcome.standing
    assert outcome.removed == 0
    assert after.zeroed[FIRST].tolist() == [True, True, *[False] * 6]
    for state, factor in ((after.weights, 1), (after.average, 2)):
        assert state[DECISIONS[0]].tolist() == pytest.approx([1e-6, -1e-6, *(factor * gammas[2:]).tolist()])
        assert state[f"{BRANCHES[0]}.bn2.bias"][:2].tolist() == [0, 0]
    momentum = after.optimizer[f"{DECISIONS[0]}/momentum_buffer"]
    assert momentum.tolist() == [0, 0, 3, 4, 5, 6, 7, 8]
    assert torch.equal(after.weights["conv1.weight"], before.weights["conv1.weight"])


def test_a_dropped_channel_may_compete_with_its_old_scale() -> None:
    gammas = torch.tensor([0.5, -0.7, 0.1, 0.3, 0.2, 0.3, 0.4, 0.6])
    before = standing(gammas, gammas)
    first = held(before, {FIRST: [0, 1]}, zeroes=False)
    assert torch.equal(first.standing.weights[DECISIONS[0]], gammas)
    assert first.standing.zeroed[FIRST].tolist() == [True, True, *[False] * 6]
    second = held(first.standing, {FIRST: [1, 2]}, zeroes=False)
    assert (first.reactivated, second.reactivated) == (0, 1)
    assert held(second.standing, {FIRST: [1]}, zeroes=False, is_last=True).removed == 1


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_a_scale_of_exactly_zero_would_never_come_back(scale: float) -> None:
    branch = net().blocks[0].branches["k3"]
    with torch.no_grad():
        branch.bn2.weight.fill_(scale)
        branch.bn2.bias.zero_()
    x_NCHW = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    branch(x_NCHW).square().sum().backward() if scale == 0 else branch(x_NCHW).sum().backward()
    learns = branch.bn2.weight.grad.abs() > 1e-3
    assert bool(learns.all()) == (scale > 0)
    assert bool(learns.any()) == (scale > 0)


def test_a_zeroed_channel_is_cut_out_when_neither_network_brought_it_back() -> None:
    live = torch.tensor([1e-4, 5e-3, 1e-4, 5e-3, 1.0, 1.0, 1.0, 1e-4])
    average = torch.tensor([1e-4, 1e-4, 5e-3, 5e-3, 1.0, 1.0, 1.0, 1e-4])
    before = standing(live, average)
    zeroed = torch.tensor([True, True, True, True, True, False, False, False])
    before = replace(before, zeroed=before.zeroed | {FIRST: zeroed})
    outcome = held(before, {FIRST: [0, 1, 2, 3, 7]})
    after = outcome.standing
    # 0 is dead in both; 1 to 3 live in one; 4 was chosen again; 7 was never zero before
    assert outcome.removed == 1
    assert outcome.reactivated == 1
    assert after.structure.mask.keep_by_group[FIRST].tolist() == [False, *[True] * 7]
    assert after.zeroed[FIRST].tolist() == [False, True, True, True, False, False, False, True]
    assert after.weights[DECISIONS[0]].shape == (7,)
    assert after.weights[DECISIONS[0]][[0, 1, 2, 6]].tolist() == pytest.approx([1e-6] * 4)


def test_the_last_event_cuts_out_all_that_is_not_chosen() -> None:
    outcome = held(standing(), {FIRST: [0, 1]}, is_last=True)
    assert outcome.removed == 2
    assert not outcome.standing.zeroed[FIRST].any()


def test_branches_and_blocks_go_whole() -> None:
    dropped = {name: list(range(8)) for name in NAMES[:3]} | {NAMES[3]: [0, 1, 2, 3]}
    before = standing()
    outcome = held(before, dropped, reactivation=False)
    after = outcome.standing
    left = {name for name in after.weights if name.startswith("blocks.0.")}
    assert left == {"blocks.0.bn.bias"}  # the norm's constant
    assert not any(name.startswith(BRANCHES[3]) for name in after.weights)
    assert after.weights.keys() == after.average.keys()
    assert torch.equal(
        after.optimizer["blocks.0.bn.bias/momentum_buffer"],
        before.optimizer["blocks.0.bn.bias/momentum_buffer"],
    )
    assert {name.rpartition("/")[0] for name in after.optimizer} <= after.weights.keys()
    assert max(outcome.rel_error, outcome.average_rel_error) < 1e-5
    # A search that goes on scores what is gone as gone
    scores = scores_of(after, decisions_of(net(), groups(), DECISIONS), after.average)
    assert [float(scores[name].sum()) for name in NAMES[:4]] == [0, 0, 0, 0]


class Chain(nn.Module):
    """A branch block without a shortcut: nothing else reaches the output."""

    def __init__(self, reads_zero: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        self.branch = net().blocks[0]
        self.conv2, self.reads_zero = nn.Conv2d(4, 3, 1), reads_zero
        self.bn2 = nn.BatchNorm2d(3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.bn1(self.conv1(x_NCHW))
        y_NCHW = torch.relu(y_NCHW) if self.reads_zero else torch.nn.functional.softplus(y_NCHW)
        return self.bn2(self.conv2(y_NCHW)).mean((2, 3))


def held_on_chain(model: Chain, keep_C: Tensor) -> Outcome:
    found = channel_groups(model, X_NCHW)
    decisions = decisions_of(model, found, ["bn1.weight"])
    weights = model.state_dict()
    before = Standing(
        structure=Structure.of_whole(model, found),
        weights=weights,
        average=weights,
        optimizer={},
        zeroed={decisions[0].group: torch.zeros(4, dtype=torch.bool)},
    )
    return hold_event(
        before, model, decisions, rules=rules(), choose=lambda scores, target: {decisions[0].group: keep_C},
        target=0.5, is_last=True, example_inputs=X_NCHW,
    )  # fmt: skip


def test_what_must_keep_a_channel_is_told_from_branches() -> None:
    with pytest.raises(ShrinkError, match="keeps 0 of 4 channels of group 'conv1', which is in no branch"):
        held_on_chain(Chain(True).eval(), torch.zeros(4, dtype=torch.bool))


def test_a_network_that_its_input_does_not_reach_is_refused() -> None:
    model = Chain(True).eval()
    with torch.no_grad():
        model.bn1.weight[0] = 0  # the one channel that is kept is dead
        model.bn1.bias[0] = 0
    with pytest.raises(ShrinkError, match="the output of Chain depends on no input"):
        held_on_chain(model, torch.tensor([True, False, False, False]))


def test_a_constant_that_would_need_a_bias_is_refused() -> None:
    with pytest.raises(ShrinkError, match="cannot be cut"):
        held_on_chain(Chain(False).eval(), torch.tensor([True, False, True, False]))


@pytest.mark.parametrize(
    ("scales", "text"),
    [
        ([], "Net has no decision norms to search by"),
        (["bn9.weight"], r"'bn9\.weight' belongs to no channel group"),
        ([DECISIONS[0], DECISIONS[0]], "cannot decide over the group .* has a decision norm already"),
    ],
)
def test_scales_that_decide_over_nothing_are_refused(scales: list[str], text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        decisions_of(net(), groups(), scales)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({}, "the choice for group .* is nothing, not bool"),
        ({FIRST: torch.ones(7, dtype=torch.bool)}, r"is torch.bool \(7,\), not bool \(8,\)"),
        ({FIRST: torch.ones(8)}, r"is torch.float32 \(8,\)"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(choice: dict[str, Tensor], text: str) -> None:
    decisions = decisions_of(net(), groups(), DECISIONS)[:1]
    with pytest.raises(ShrinkError, match=text):
        hold_event(
            standing(), net(), decisions, rules=rules(), choose=lambda scores, target: choice,
            target=0.5, is_last=False, example_inputs=X_NCHW,
        )  # fmt: skip
