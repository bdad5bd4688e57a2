"""A training is copied before any step, and another one goes on from there."""

from __future__ import annotations

import pytest
import torch
from small_training import AUGMENT, equal, images, net, settings, still, trained

from ticket_export.data.batches import Batches
from ticket_export.errors import TrainError
from ticket_export.train.points import Point, Points
from ticket_export.train.progress import Event
from ticket_export.train.schedule import learning_rate

NUM_STEPS = 4  # of an epoch: 72 images in batches of 16


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 3), (2, 1), (3, 3)])
def test_the_snapshot_is_the_state_before_exactly_that_step(epoch: int, step: int) -> None:
    snapshot = trained(snapshot_epoch=epoch, snapshot_step=step).snapshot
    assert snapshot is not None
    assert int(snapshot["bn1.num_batches_tracked"]) == epoch * NUM_STEPS + step


def test_a_copy_changes_no_training_and_is_no_view_of_its_weights() -> None:
    whole = trained(snapshot_epoch=1, snapshot_step=2)
    assert equal(whole.weights, trained().weights)
    assert not equal(whole.snapshot, whole.weights)
    assert equal(trained(snapshot_epoch=0, snapshot_step=0).snapshot, net().state_dict())


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_without_momentum_the_rest_of_a_training_is_bit_equal_from_any_step_on(
    epoch: int, step: int, schedule: str
) -> None:
    made = settings(momentum=0.0, nesterov=False, schedule=schedule, lr=0.3)
    whole = trained(still(), made, snapshot_epoch=epoch, snapshot_step=step)
    late = still(seed=5)
    late.load_state_dict(whole.snapshot or {})
    rest = trained(late, made, start_epoch=epoch, start_step=step)
    assert equal(rest.weights, whole.weights)
    assert [record["epoch"] for record in rest.history] == list(range(epoch, 4))
    assert rest.history[-1]["lr"] == learning_rate(made, 4 * NUM_STEPS - 1, NUM_STEPS)
    assert rest.validations[-1] == whole.validations[-1]
    assert rest.num_epochs == 4


def test_with_momentum_only_the_optimisers_state_is_missing() -> None:
    made = settings()
    whole = trained(still(), made, snapshot_epoch=1, snapshot_step=2)
    late = still()
    late.load_state_dict(whole.snapshot or {})
    rest = trained(late, made, start_epoch=1, start_step=2)
    assert int(rest.weights["bn1.num_batches_tracked"]) == 4 * NUM_STEPS
    assert not equal(rest.weights, whole.weights)


def test_means_of_a_part_epoch_are_over_the_images_it_saw() -> None:
    model = still()
    made = settings(lr=1e-30, schedule="constant", epochs=1)  # every step sees the same weights
    alone = [
        trained(still(), made, start_step=step).history[0]["train_loss"] * (NUM_STEPS - step)
        for step in range(NUM_STEPS)
    ]
    batches = [sum_now - sum_next for sum_now, sum_next in zip(alone, [*alone[1:], 0.0], strict=True)]
    assert sum(batches) == pytest.approx(NUM_STEPS * trained(model, made).history[0]["train_loss"])
    assert all(0.3 < loss < 3 for loss in batches)  # around ln 3, never a share of it


def test_progress_of_a_late_start_tells_the_epochs_and_time_that_are_left() -> None:
    events: list[Event] = []
    result = trained(start_epoch=2, start_step=3, on_event=events.append)
    assert [event["epoch"] for event in events] == [3.0, 4.0]
    (first, _) = result.history
    assert events[0]["eta_s"] == pytest.approx(first["seconds"] * NUM_STEPS)  # one step done, four to go


@pytest.mark.parametrize("name", ["start", "snapshot"])
def test_a_step_that_an_epoch_does_not_have_is_never_reached(name: str) -> None:
    options = {f"{name}_epoch": 1, f"{name}_step": 4}
    with pytest.raises(TrainError, match="the rewind step 4 is never reached: an epoch has 4 steps") as error:
        trained(**options)
    assert error.value.hint == "it may be 0 to 3; 4 steps are one more rewind epoch"


def test_a_step_below_zero_is_never_reached() -> None:
    with pytest.raises(TrainError, match="rewind step -1"):
        trained(snapshot_epoch=0, snapshot_step=-1)


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (Point(1, 2), "step 2 of epoch 1 lies before the start at step 3"),
        (Point(0, 3), "snapshot_epoch is 0, the training runs from epoch 1 to 4"),
        (Point(4, 0), "snapshot_epoch is 4"),
    ],
)
def test_a_snapshot_outside_the_training_is_refused(snapshot: Point, text: str) -> None:
    with pytest.raises(TrainError, match=text):
        Points(start=Point(1, 3), snapshot=snapshot).require_reached(4, NUM_STEPS)


def test_a_snapshot_at_the_start_is_what_the_training_starts_from() -> None:
    result = trained(start_epoch=1, start_step=2, snapshot_epoch=1, snapshot_step=2)
    assert equal(result.snapshot, net().state_dict())


def test_the_batches_before_a_start_are_not_read() -> None:
    held = images()
    batches = Batches(x=held.train_x, y=held.train_y, batch=16, augment=AUGMENT, seed_path=(0, "any"))
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, first=3))
    assert (len(whole), len(rest)) == (4, 1)
    assert all(map(torch.equal, whole[3], rest[0]))
