"""The search of a small supernet: it is a training, cuts exactly, and goes on where it was broken off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import (
    AUGMENT,
    BRANCHES,
    DECISIONS,
    NUM_CHANNELS,
    groups,
    images,
    net,
    rules,
    searched,
    settings,
)
from torch import Tensor

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import channel_groups
from ticket_export.data.batches import Batches
from ticket_export.errors import ShrinkError, TrainError
from ticket_export.find.search_rules import SearchResult
from ticket_export.find.supernet import search
from ticket_export.find.supernet_events import rank_channels
from ticket_export.models.supernet import decision_norms
from ticket_export.models.zoo import zoo_network
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.train.average import Average
from ticket_export.train.loop import train
from ticket_export.train.penalty import PricedGammaL1
from ticket_export.train.recalibrate import recalibrate_norms

SEED_PATH = (0, "replicate", 0, "search")
NAMES = tuple(f"{branch}.expand" for branch in BRANCHES)
Scores = Mapping[str, Tensor]


def keep_all(scores: Scores, target: float) -> dict[str, Tensor]:
    return {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def whole_training(**options: Any) -> Any:
    return train(
        net(), images(), augment=AUGMENT, settings=settings(), seed_path=SEED_PATH,
        average=Average(decay=0.5), **options,
    )  # fmt: skip


def test_a_search_that_drops_nothing_is_the_training_itself() -> None:
    penalty = PricedGammaL1(price_by_name=dict.fromkeys(DECISIONS, 1.0), limit=rules().gamma_l1, ramp_steps=4)
    trained = whole_training(penalties=[penalty])
    result = searched(choose=keep_all)
    assert equal(result.live_weights, trained.weights)
    averaged = net()
    averaged.load_state_dict(trained.average)
    recalibrate_norms(averaged, images(), augment=AUGMENT, batch=16, num_batches=2, seed_path=SEED_PATH)
    assert equal(result.weights, averaged.state_dict())
    assert result.mask.channel_density == 1
    assert [record["train_loss"] for record in result.history] == [
        record["train_loss"] for record in trained.history
    ]


def test_what_is_cut_out_had_no_part_in_the_training() -> None:
    """The whole network with the same channels held at zero learns the same: all state was cut alike."""
    dropped = {NAMES[0]: [1, 5], NAMES[4]: [0]}

    def choose(scores: Scores, target: float) -> dict[str, Tensor]:
        keep = keep_all(scores, target)
        for name, channels in dropped.items():
            keep[name][channels] = False
        return keep

    held, hold_zero = net(), {}
    for branch, channels in zip((BRANCHES[0], BRANCHES[4]), dropped.values(), strict=True):
        for kind in ("weight", "bias"):
            keep = torch.ones(held.get_parameter(f"{branch}.bn2.{kind}").shape, dtype=torch.bool)
            keep[channels] = False
            hold_zero[f"{branch}.bn2.{kind}"] = keep
    ramp = {"price_by_name": dict.fromkeys(DECISIONS, 1.0), "limit": 0.01, "ramp_steps": 4}
    first = whole_training(stop_epoch=1, penalties=[PricedGammaL1(**ramp)])
    held.load_state_dict(first.weights)
    average, moments = dict(first.average), dict(first.optimizer_state)
    for name, keep in hold_zero.items():
        average[name] = average[name] * keep
    rest = train(
        held, images(), augment=AUGMENT, settings=settings(), seed_path=SEED_PATH, start_epoch=1,
        penalties=[PricedGammaL1(**ramp, first_step=4)],
        optimizer_state=moments, average=Average(decay=0.5, initial=average), hold_zero=hold_zero,
    )  # fmt: skip
    result = searched(choose=choose, rules=rules(reactivation=False))
    assert [event.removed for event in result.events] == [3, 0, 0]
    held.load_state_dict(rest.weights)
    expected = small_from_mask(held, groups(), result.mask).state_dict()
    assert expected.keys() == result.live_weights.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result.live_weights[name], value, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module", name="found")
def _found() -> SearchResult:
    return searched()


def test_the_found_network_has_the_channels_that_were_asked_for(found: SearchResult) -> None:
    kept = {name: found.mask.kept_widths()[name] for name in NAMES}
    assert sum(kept.values()) == NUM_CHANNELS // 2
    assert found.events[-1].kept_channels == NUM_CHANNELS // 2
    small = small_from_mask(net(), groups(), found.mask)
    for weights in (found.live_weights, found.weights):
        small.load_state_dict(weights)
    assert count_costs(small, torch.zeros(1, 1, 6, 6)).macs == found.events[-1].macs
    assert sum(parameter.numel() for parameter in small.parameters()) == found.events[-1].params


def test_every_event_tells_what_it_did(found: SearchResult) -> None:
    assert [event.epoch for event in found.events] == [1, 2, 3]
    assert [event.target for event in found.events] == [0.25, 0.5, 0.5]
    assert [event.kept_channels for event in found.events] == [27, 18, 18]
    # What is kept, waits, or is gone is all there ever was
    gone = 0
    for event in found.events:
        gone += event.removed
        assert event.kept_channels + event.zeroed + gone == NUM_CHANNELS
        assert max(event.rel_error, event.average_rel_error) <= 1e-5
        assert (event.kept_branches, event.kept_blocks) == (6, 2)
    assert found.events[-1].zeroed == 0
    assert found.num_epochs == 3


def test_the_cost_of_a_search_is_that_of_the_networks_that_were_trained(found: SearchResult) -> None:
    whole = count_costs(net(), torch.zeros(1, 1, 6, 6)).macs
    trained = [whole, *(event.macs for event in found.events[:-1])]
    assert [event.trained_macs for event in found.events] == trained
    assert found.image_macs == sum(64 * macs for macs in trained)
    assert found.image_macs < 3 * 64 * whole
    assert found.seconds == sum(record["seconds"] for record in found.history)
    assert found.event_seconds > 0


def test_the_given_network_stays_as_it_is_and_the_search_comes_out_the_same(found: SearchResult) -> None:
    model = net()
    again = searched(model)
    assert equal(model.state_dict(), net().state_dict())
    assert equal(again.weights, found.weights)
    assert again.mask.to_json() == found.mask.to_json()


def test_a_dropped_channel_comes_back_when_it_is_worth_it() -> None:
    """Dropped once while the network still learns most; without the penalty nothing holds it down."""
    calls = []

    def choose(scores: Scores, target: float) -> dict[str, Tensor]:
        calls.append(scores)
        keep = keep_all(scores, target)
        if len(calls) == 1:
            keep[NAMES[0]][:4] = False
        return keep

    result = searched(choose=choose, rules=rules(gamma_l1=0.0))
    assert [event.zeroed for event in result.events] == [4, 0, 0]
    assert [event.reactivated for event in result.events] == [0, 4, 0]
    assert result.num_reactivated == 4
    # Grown in four steps by what the loss asks for; a thousandth of the threshold was left of it
    assert float(calls[1][NAMES[0]][:4].min()) > 100 * 1e-6
    assert result.mask.channel_density == 1


def test_dear_channels_shrink_faster() -> None:
    prices = dict.fromkeys(DECISIONS, 0.0) | {DECISIONS[2]: 3.0}
    pulled = searched(choose=keep_all, prices=prices, rules=rules(gamma_l1=0.1)).live_weights
    free = searched(choose=keep_all, rules=rules(gamma_l1=0.0)).live_weights
    assert pulled[DECISIONS[2]].mean() < free[DECISIONS[2]].mean() - 0.05
    assert pulled[DECISIONS[0]].mean() == pytest.approx(float(free[DECISIONS[0]].mean()), abs=0.02)


class KilledError(Exception):
    """Stands for a kill at some moment."""


def test_a_search_broken_off_anywhere_is_bit_equal_to_one_that_never_was(tmp_path: Path) -> None:
    """Six epochs, three events: broken off within each part, and at each event before it is written."""
    made = {"settings": settings(epochs=6), "rules": rules(event_epochs=2)}
    whole = searched(**made)

    def broken(at_epoch: float) -> None:
        def stop(event: Mapping[str, Any]) -> None:
            if event["epoch"] == at_epoch:
                raise KilledError

        with pytest.raises(KilledError):
            searched(checkpoint_folder=tmp_path, checkpoint_interval_s=0, on_event=stop, **made)

    def broken_event(scores: Scores, target: float) -> dict[str, Tensor]:
        raise KilledError

    for event in range(3):
        broken(2 * event + 2)
        assert (tmp_path / f"part-{event}" / "checkpoint.safetensors").is_file()
        with pytest.raises(KilledError):
            searched(checkpoint_folder=tmp_path, checkpoint_interval_s=0, choose=broken_event, **made)
        if event < 2:
            broken(2 * event + 3)  # the event is held, and written; its part is gone
            assert not (tmp_path / f"part-{event}").exists()
    resumed = searched(checkpoint_folder=tmp_path, **made)
    finished = searched(checkpoint_folder=tmp_path, choose=broken_event, **made)  # nothing is left to do
    for result in (resumed, finished):
        assert equal(result.weights, whole.weights)
        assert equal(result.live_weights, whole.live_weights)
        assert result.mask.to_json() == whole.mask.to_json()
        assert [timeless(event) for event in result.events] == [timeless(event) for event in whole.events]
        assert len(result.history) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def timeless(event: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(event).items() if "seconds" not in name}


def test_a_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    made = {"settings": settings(epochs=1), "choose": keep_all, "checkpoint_folder": tmp_path}
    searched(rules=rules(drop_step=0.5), **made)
    with pytest.raises(TrainError, match=r"'drop_fraction': 0\.5.*not .*'drop_fraction': 0\.4"):
        searched(rules=rules(drop_step=0.5, drop_fraction=0.4), **made)
    with pytest.raises(TrainError, match=r"weights = '[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        searched(net(1), rules=rules(drop_step=0.5), **made)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"decisions": ()}, "Net has no decision norms"),
        (
            {"rules": rules(event_epochs=2)},
            "a search of 3 epochs with an event every 2 does not end with one",
        ),
        ({"rules": rules(event_epochs=4)}, "does not end with one"),
        ({"rules": rules(drop_step=0.1)}, r"3 events of find.drop_step 0.1 reach 0\.3, not .* 0\.5"),
        ({"prices": {DECISIONS[0]: 1.0}}, r"differ in blocks\.0\.branches\.k5\.bn2\.weight"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(options: dict[str, Any], text: str) -> None:
    def never(event: Mapping[str, Any]) -> None:
        raise KilledError

    with pytest.raises(ShrinkError, match=text):
        searched(on_event=never, **options)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"drop_step": 0.0}, r"drop_step is 0\.0"),
        ({"drop_fraction": 1.0}, r"drop_fraction is 1\.0"),
        ({"event_epochs": 0}, "event_epochs is 0"),
        ({"gamma_threshold": 0.0}, r"gamma_threshold is 0\.0"),
    ],
)
def test_rules_out_of_range_are_refused(changed: dict[str, float], text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        rules(**changed)


def test_targets_rise_by_exact_steps_to_the_end() -> None:
    made = rules(drop_step=0.1, drop_fraction=0.35, event_epochs=25)
    assert [made.target(event) for event in range(5)] == [0.1, 0.2, 0.3, 0.35, 0.35]
    assert made.num_events(350) == 14


def test_one_event_is_held_after_so_many_images() -> None:
    batches = Batches(x=images().train_x, y=images().train_y, batch=16, augment=AUGMENT, seed_path=(0,))
    result = searched(settings=settings(epochs=1), rules=rules(drop_step=0.5), choose=keep_all)
    assert result.events[0].trained_images == batches.num_batches * batches.batch_size == 64


@pytest.mark.slow
def test_the_zoos_supernet_loses_branches_and_a_block_exactly() -> None:
    """In two events: channels everywhere and one branch; then a whole block."""
    args = {"plan": "resnet20", "expansion": "1"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo_network("supernet", args, num_classes=3, image_shape=(1, 6, 6))
    scales = decision_norms(model)
    found = channel_groups(model.eval(), torch.zeros(2, 1, 6, 6))
    branches = [scale.removesuffix("bn2.weight") + "expand" for scale in scales]
    emptied = iter(([branches[0]], branches[:1] + branches[12:15]))

    def choose(scores: Scores, target: float) -> dict[str, Tensor]:
        gone = next(emptied)
        keep = rank_channels(scores, target, never_empty=branches)
        return {name: keep_C & (name not in gone) for name, keep_C in keep.items()}

    result = search(
        model, images(), groups=found, decisions=scales, augment=AUGMENT, seed_path=SEED_PATH, choose=choose,
        settings=settings(epochs=2), rules=rules(reactivation=False),
    )  # fmt: skip
    assert [event.kept_branches for event in result.events] == [26, 23]
    assert [event.kept_blocks for event in result.events] == [9, 8]
    assert all(0 <= event.rel_error <= 1e-5 and event.average_rel_error <= 1e-5 for event in result.events)
    small = small_from_mask(model, found, result.mask)
    small.load_state_dict(result.weights)
    assert count_costs(small, torch.zeros(1, 1, 6, 6)).macs == result.events[-1].macs
    assert result.events[-1].macs < 0.6 * result.events[0].trained_macs
