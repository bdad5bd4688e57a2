"""A training in two parts is the whole training: schedule, optimiser's state and average go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import equal, interrupted, net, settings, still, timeless, trained

from ticket_export.errors import TrainError
from ticket_export.train.average import Average
from ticket_export.train.loop import TrainResult
from ticket_export.train.penalty import PricedGammaL1

MOST = {"optimizer": "adamw", "lr": 0.02, "channels_last": True, "weight_decay": 1e-3}
RAMP = {"price_by_name": {"bn1.weight": 1.5}, "limit": 0.1, "ramp_steps": 12}


def two_parts(changed: dict[str, Any], average: bool, folder: Path | None = None) -> TrainResult:
    """Two epochs, then two more in a network that knows nothing of the first two but what it is given."""
    model, made = still(), settings(**changed)
    given: dict[str, Any] = {"average": Average(decay=0.8)} if average else {}
    first = trained(model, made, stop_epoch=2, penalties=[PricedGammaL1(**RAMP)], **given)
    assert first.num_epochs == 2
    fresh = still(seed=7)
    fresh.load_state_dict(first.weights)
    if average:
        given = {"average": Average(decay=0.8, initial=first.average)}
    second = {
        "start_epoch": 2,
        "optimizer_state": first.optimizer_state,
        "penalties": [PricedGammaL1(**RAMP, first_step=8)],
    }
    if folder is not None:
        interrupted(folder, made, 3, model=fresh, **second, **given)
        fresh = still(seed=8)
        fresh.load_state_dict(first.weights)
        second["checkpoint_folder"] = folder
    return trained(fresh, made, **second, **given)


@pytest.mark.parametrize("changed", [{}, MOST], ids=["sgd", "adamw"])
@pytest.mark.parametrize("average", [False, True], ids=["alone", "averaged"])
def test_two_parts_are_bit_equal_to_one_training(changed: dict[str, Any], average: bool) -> None:
    given = {"average": Average(decay=0.8)} if average else {}
    whole = trained(still(), settings(**changed), penalties=[PricedGammaL1(**RAMP)], **given)
    parts = two_parts(changed, average)
    assert equal(whole.weights, parts.weights)
    assert equal(whole.optimizer_state, parts.optimizer_state)
    assert timeless(whole)[2:] == timeless(parts)
    assert (whole.average is None) == (parts.average is None) == (not average)
    assert whole.average is None or equal(whole.average, parts.average)


def test_a_second_part_that_was_stopped_is_bit_equal_too(tmp_path: Path) -> None:
    whole, resumed = two_parts(MOST, True), two_parts(MOST, True, tmp_path)
    assert equal(whole.weights, resumed.weights)
    assert equal(whole.average, resumed.average)
    assert equal(whole.optimizer_state, resumed.optimizer_state)


def test_the_optimisers_state_matters_and_is_named_after_its_parameters() -> None:
    first = trained(still(), stop_epoch=2)
    names = {f"{name}/momentum_buffer" for name, _ in still().named_parameters()}
    assert first.optimizer_state.keys() == names
    assert first.optimizer_state["conv1.weight/momentum_buffer"].abs().sum() > 0
    rest = []
    for given in (first.optimizer_state, None):
        model = still()
        model.load_state_dict(first.weights)
        rest.append(trained(model, start_epoch=2, optimizer_state=given).weights)
    assert not equal(*rest)


def test_the_schedule_knows_all_epochs_and_the_training_stops_where_it_is_told() -> None:
    result = trained(stop_epoch=3)
    assert result.num_epochs == 3
    assert result.stopped_epoch is None  # no observer ended it
    assert [record["lr"] for record in result.history] == [record["lr"] for record in trained().history][:3]
    assert trained(made=settings(epochs=3)).history[2]["lr"] < result.history[2]["lr"]


def test_the_average_is_the_geometric_mean_of_all_weights_so_far() -> None:
    """One step an epoch, so that the snapshots of `stop_epoch` are all the weights there were."""
    made = settings(batch=72)
    weights = [still().state_dict()["conv1.weight"]]
    weights += [trained(still(), made, stop_epoch=epoch).weights["conv1.weight"] for epoch in range(1, 5)]
    expected = weights[0].double()
    for value in weights[1:]:
        expected = 0.75 * expected + 0.25 * value
    result = trained(still(), made, average=Average(decay=0.75))
    assert result.average is not None
    torch.testing.assert_close(result.average["conv1.weight"].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(result.average["bn1.running_var"], result.weights["bn1.running_var"])
    assert int(result.average["bn1.num_batches_tracked"]) == 4


def test_an_average_is_taken_beside_the_training() -> None:
    plain, averaged = trained(), trained(average=Average(decay=0.5))
    assert equal(plain.weights, averaged.weights)
    assert plain.average is None
    now = trained(average=Average(decay=0.0))
    assert equal(now.average, now.weights)


def test_what_is_held_at_zero_is_zero_in_the_average() -> None:
    rows = torch.arange(54).view(6, 1, 3, 3) >= 27
    result = trained(hold_zero={"conv1.weight": rows}, average=Average(decay=0.9))
    assert result.average is not None
    assert result.average["conv1.weight"][~rows].abs().max() == 0
    assert result.average["conv1.weight"][rows].abs().min() > 0


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({}, {"stop_epoch": 3}, "stop_epoch = None, not 3"),
        ({"average": Average(decay=0.5)}, {}, "average = .*0.5.*, not None"),
        ({"average": Average(decay=0.5)}, {"average": Average(decay=0.6)}, "0.5.*0.6"),
        (
            {},
            {"optimizer_state": {"conv1.weight/momentum_buffer": torch.ones(6, 1, 3, 3)}},
            "optimizer_state = None, not '[0-9a-f]{16}'",
        ),
    ],
)
def test_a_checkpoint_of_another_part_is_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], text: str
) -> None:
    interrupted(tmp_path, settings(), 2, **before)
    with pytest.raises(TrainError, match=text):
        trained(checkpoint_folder=tmp_path, **after)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TrainError, match="stop_epoch is 5, the schedule has 4 epochs"):
        trained(stop_epoch=5)
    with pytest.raises(TrainError, match="start_epoch is 2, the training runs from epoch 0 to 2"):
        trained(start_epoch=2, stop_epoch=2)
    with pytest.raises(TrainError, match=r"'conv9\.weight/momentum_buffer' belongs to no trained parameter"):
        trained(optimizer_state={"conv9.weight/momentum_buffer": torch.zeros(1)})
    with pytest.raises(TrainError, match=r"'conv1.bias/momentum_buffer' is \(5,\), the parameter \(6,\)"):
        trained(optimizer_state={"conv1.bias/momentum_buffer": torch.zeros(5)})
    with pytest.raises(TrainError, match="decay is 1"):
        Average(decay=1)
    initial = net().state_dict() | {"conv9": torch.zeros(1)}
    del initial["conv2.bias"]
    with pytest.raises(TrainError, match=r"conv2\.bias: missing.*conv9: unknown"):
        trained(average=Average(decay=0.5, initial=initial))
