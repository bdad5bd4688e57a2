"""A training that is stopped in every epoch ends as one that never was, whatever else it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import equal, interrupted, net, settings, timeless, trained

from ticket_export.errors import TrainError
from ticket_export.train.average import Average
from ticket_export.train.distill import Distill
from ticket_export.train.penalty import GammaL1, GrowingL2, PricedGammaL1

Options = Callable[[], dict[str, Any]]  # what a new process gives to `train`

ROWS = torch.arange(54).view(6, 1, 3, 3) >= 27


def distilled() -> dict[str, Any]:
    return {"teacher": Distill(teacher=net(3), weight=0.5, temperature=2.0)}


def growing() -> dict[str, Any]:
    return {"penalties": [GrowingL2(keep={"conv1.weight": ROWS}, delta=0.1, interval=2, limit=0.5)]}


def slimmed() -> dict[str, Any]:
    return {"penalties": [GammaL1(names=("bn1.weight",), coefficient=0.05)]}


def averaged() -> dict[str, Any]:
    penalty = PricedGammaL1(price_by_name={"bn1.weight": 0.7}, limit=0.05, ramp_steps=9)
    return {"average": Average(decay=0.9), "penalties": [penalty]}


def late() -> dict[str, Any]:
    return {"start_epoch": 1, "start_step": 2, "snapshot_epoch": 2, "snapshot_step": 3}


CASES: Mapping[str, tuple[dict[str, object], Options]] = {
    "a start and a copy within epochs": ({}, late),
    "a copy before the first checkpoint": ({}, lambda: {"snapshot_epoch": 0, "snapshot_step": 3}),
    "validations between epochs": ({"validate_steps": 3, "lr": 0.3}, dict),
    "distillation": ({}, distilled),
    "growing l2": ({}, growing),
    "gamma l1": ({}, slimmed),
    "an average and a priced gamma l1 that rises": ({}, averaged),
    "fp16 and a penalty": ({"precision": "fp16"}, growing),
    "all at once": (
        {"validate_steps": 1, "optimizer": "adamw", "lr": 0.02, "channels_last": True},
        lambda: late() | distilled() | {"penalties": growing()["penalties"] + slimmed()["penalties"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_stopped_in_every_epoch_is_bit_equal_to_one_that_never_was(
    tmp_path: Path, name: str
) -> None:
    changed, options = CASES[name]
    made = settings(**changed)
    whole = trained(net(), made, **options())
    for epoch in range(int(options().get("start_epoch", 0)) + 1, 5):
        interrupted(tmp_path, made, epoch, **options())  # what this epoch learnt is lost
    resumed = trained(net(seed=9), made, checkpoint_folder=tmp_path, **options())
    assert equal(whole.weights, resumed.weights)
    assert timeless(whole) == timeless(resumed)
    assert whole.validations == resumed.validations
    assert (whole.snapshot is None) == (resumed.snapshot is None)
    assert whole.snapshot is None or equal(whole.snapshot, resumed.snapshot)
    assert (whole.best_weights is None) == (resumed.best_weights is None)
    assert whole.best_weights is None or equal(whole.best_weights, resumed.best_weights)
    assert (whole.average is None) == (resumed.average is None)
    assert whole.average is None or equal(whole.average, resumed.average)
    assert equal(whole.optimizer_state, resumed.optimizer_state)
    facts = ("min_val_loss", "min_val_loss_iteration", "num_epochs", "stopped_epoch")
    assert all(getattr(whole, fact) == getattr(resumed, fact) for fact in facts)


def test_each_addition_changes_what_is_learnt() -> None:
    plain = trained().weights
    for options in (distilled, growing, slimmed, late):
        assert not equal(trained(**options()).weights, plain)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({}, {"start_step": 1}, "start_step = 0, not 1"),
        ({}, {"snapshot_epoch": 1, "snapshot_step": 2}, r"snapshot = None, not \[1, 2\]"),
        (growing(), {}, r"penalties = \[.*growing_l2.*\], not \[\]"),
        (slimmed(), growing(), "gamma_l1.* not .*growing_l2"),
        (
            {"penalties": [GrowingL2(keep={"conv1.weight": ~ROWS}, delta=0.1, interval=2, limit=0.5)]},
            growing(),
            "penalties = .*'keep': '[0-9a-f]{16}'.* not .*'keep': '[0-9a-f]{16}'",
        ),
        (distilled(), {}, "distill = .*'weight': 0.5.*, not None"),
        (
            distilled(),
            {"teacher": Distill(teacher=net(4), weight=0.5, temperature=2.0)},
            "distill = .*'teacher': '[0-9a-f]{16}'",
        ),
    ],
)
def test_a_checkpoint_of_other_additions_is_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], text: str
) -> None:
    interrupted(tmp_path, settings(), 2, **before)
    with pytest.raises(TrainError, match=text):
        trained(checkpoint_folder=tmp_path, **after)
