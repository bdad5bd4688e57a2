"""Validations between the ends of epochs, and the weights at the lowest loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_training import AUGMENT, equal, images, net, settings, trained
from torch import nn
from torch.nn import functional

from ticket_export.data.augment import normalise
from ticket_export.errors import TrainError
from ticket_export.train.evaluate import evaluate
from ticket_export.train.validate import Validations


def iterations(**options: Any) -> list[float]:
    made = settings(validate_steps=options.pop("validate_steps"))
    return [record["iteration"] for record in trained(made=made, **options).validations]


def test_without_steps_there_is_one_validation_per_epoch_and_no_best_state() -> None:
    result = trained()
    assert [record["iteration"] for record in result.validations] == [4, 8, 12, 16]
    assert [record["val_loss"] for record in result.validations] == [r["val_loss"] for r in result.history]
    assert result.best_weights is None


@pytest.mark.parametrize(
    ("validate_steps", "expected"),
    [(3, [3, 4, 6, 8, 9, 12, 15, 16]), (4, [4, 8, 12, 16]), (100, [4, 8, 12, 16]), (1, list(range(1, 17)))],
)
def test_steps_are_counted_over_all_epochs_and_no_iteration_is_validated_twice(
    validate_steps: int, expected: list[int]
) -> None:
    assert iterations(validate_steps=validate_steps) == expected


def test_steps_are_counted_from_the_start_of_the_dense_training() -> None:
    assert iterations(validate_steps=3, start_epoch=2, start_step=2) == [12, 15, 16]


def test_validations_change_no_training() -> None:
    assert equal(trained(made=settings(validate_steps=1)).weights, trained().weights)


def test_the_lowest_loss_its_iteration_and_its_weights_belong_together() -> None:
    result = trained(made=settings(epochs=12, lr=0.3, validate_steps=1))
    losses = [record["val_loss"] for record in result.validations]
    assert result.min_val_loss == min(losses)
    best = result.validations[losses.index(min(losses))]
    assert result.min_val_loss_iteration == best["iteration"]
    assert result.best_weights is not None
    assert int(result.best_weights["bn1.num_batches_tracked"]) == best["iteration"]
    assert min(losses) < losses[-1]  # the last is not the best, so the two states differ
    model, held = net(), images()
    model.load_state_dict(result.best_weights)
    x_NCHW = normalise(held.val_x, AUGMENT.mean, AUGMENT.std)
    loss = functional.cross_entropy(model.eval()(x_NCHW), held.val_y)
    assert float(loss.detach()) == pytest.approx(best["val_loss"], rel=1e-5)
    right = evaluate(model, held.val_x, held.val_y, mean=AUGMENT.mean, std=AUGMENT.std)
    assert right == best["val_accuracy"]


def test_the_first_of_equal_losses_is_the_best_and_a_nan_never_is() -> None:
    model = nn.Linear(1, 1)
    noted = Validations(keeps_best=True)
    for iteration, loss in enumerate([2.0, 1.0, float("nan"), 1.0, 1.5]):
        with torch.no_grad():
            model.weight.fill_(iteration)
        noted.add(iteration, torch.tensor([loss, 0.5], dtype=torch.float64), model)
    assert noted.best["weight"].item() == 1
    assert [record["iteration"] for record in noted.read()] == [0, 1, 2, 3, 4]
    assert noted.read() == []


def test_the_state_of_validations_goes_on_where_it_was() -> None:
    model = nn.Linear(1, 1)
    noted = Validations(keeps_best=True)
    noted.add(1, torch.tensor([1.0, 0.5], dtype=torch.float64), model)
    again = Validations(keeps_best=True)
    again.restore(noted.tensors(), torch.device("cpu"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.add_(1)
    again.add(2, torch.tensor([1.25, 0.5], dtype=torch.float64), other)
    assert equal(again.best, model.state_dict())
    again.add(3, torch.tensor([0.75, 0.5], dtype=torch.float64), other)
    assert equal(again.best, other.state_dict())


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(TrainError, match="validate_steps is -1"):
        settings(validate_steps=-1)
