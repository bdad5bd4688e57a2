"""Norms get the statistics of what they see now: over plain batches, the same ones every time."""

from __future__ import annotations

import pytest
import torch
from small_training import AUGMENT, equal, images, net
from torch import nn

from ticket_export.data.augment import normalise
from ticket_export.errors import TrainError
from ticket_export.train.recalibrate import recalibrate_norms


def recalibrated(model: nn.Module, num_batches: int = 10, batch: int = 24, seed: int = 0) -> int:
    return recalibrate_norms(
        model, images(), augment=AUGMENT, batch=batch, num_batches=num_batches, seed_path=(seed, "replicate")
    )


def test_statistics_are_the_mean_over_the_batches_of_plain_images() -> None:
    model = net()
    assert recalibrated(model) == 3  # all of 72 images
    x_NCHW = normalise(images().train_x, AUGMENT.mean, AUGMENT.std)
    with torch.no_grad():
        y_NCHW = model.conv1(x_NCHW)
    # Batches of one size: the mean of their means is the mean of all, whatever the order of the images
    torch.testing.assert_close(model.bn1.running_mean, y_NCHW.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert int(model.bn1.num_batches_tracked) == 3


def test_nothing_else_changes_and_the_modes_and_the_momentum_come_back() -> None:
    model = net()
    model.train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrated(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
    assert [module.training for module in (model, model.drop, model.bn1)] == [True, True, False]
    assert model.bn1.momentum == 0.1


def test_the_same_seed_gives_the_same_statistics_whatever_was_before() -> None:
    first, second, other = net(), net(), net()
    second.bn1.running_mean.fill_(100)
    recalibrated(first, 2)
    recalibrated(second, 2)
    recalibrated(other, 2, seed=1)
    assert equal(first.state_dict(), second.state_dict())
    assert not equal(first.state_dict(), other.state_dict())


def test_no_batch_is_refused() -> None:
    with pytest.raises(TrainError, match="recalibrated over 0 batches"):
        recalibrated(net(), 0)
