from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_training import equal, interrupted, net, settings, still, timeless, trained
from torch import Tensor, nn

from ticket_export.errors import StoreError, TrainError
from ticket_export.train.checkpoint import FILE_NAME, load_checkpoint
from ticket_export.train.progress import Event
from ticket_export.train.schedule import learning_rate


def test_training_learns_and_records_each_epoch() -> None:
    result = trained(made=settings(epochs=25))
    first, last = result.history[0], result.history[-1]
    assert [record["epoch"] for record in result.history] == list(range(25))
    assert last["train_loss"] < 0.5 * first["train_loss"]
    assert result.val_accuracy == last["val_accuracy"] > 0.9
    assert result.min_val_loss == min(record["val_loss"] for record in result.history)
    best = next(r for r in result.history if r["val_loss"] == result.min_val_loss)
    assert result.min_val_loss_iteration == (best["epoch"] + 1) * 4  # 72 images in batches of 16
    assert result.seconds == pytest.approx(sum(record["seconds"] for record in result.history))
    assert last["images_per_s"] > 0


def test_the_same_training_gives_bit_equal_weights_and_another_seed_does_not() -> None:
    first = trained()
    torch.rand(7)
    assert equal(first.weights, trained().weights)
    assert not equal(first.weights, trained(seed_path=(0, "replicate", 1)).weights)


def test_the_callers_random_state_and_test_images_are_not_touched() -> None:
    before = torch.random.get_rng_state()
    trained()
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_are_those_of_the_model_and_later_changes_leave_them_alone() -> None:
    model = net()
    result = trained(model, settings(channels_last=True))
    assert equal(result.weights, model.state_dict())
    assert all(value.is_contiguous() for value in model.state_dict().values())
    held = {name: value.clone() for name, value in result.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert equal(result.weights, held)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"channels_last": True, "precision": "bf16", "label_smoothing": 0.1},
        {"optimizer": "adam", "lr": 1e-3},
        {"optimizer": "adamw", "lr": 1e-3, "channels_last": True},
        {"momentum": 0.0, "nesterov": False},
        {"precision": "fp16"},
    ],
    ids=lambda changed: ",".join(map(str, changed.values())) or "sgd",
)
def test_a_resumed_training_is_bit_equal_to_one_that_was_never_stopped(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    made = settings(**changed)
    whole = trained(made=made, snapshot_epoch=1)
    interrupted(tmp_path, made, 3, snapshot_epoch=1)  # the third epoch is lost, two are in the checkpoint
    resumed = trained(net(seed=9), made, snapshot_epoch=1, checkpoint_folder=tmp_path)
    assert equal(whole.weights, resumed.weights)
    assert equal(whole.snapshot, resumed.snapshot)
    assert timeless(whole) == timeless(resumed)


def test_a_resume_trains_the_missing_epochs_alone(tmp_path: Path) -> None:
    interrupted(tmp_path, settings(), 3)
    epochs: list[object] = []
    trained(checkpoint_folder=tmp_path, on_event=lambda event: epochs.append(event["epoch"]))
    assert epochs == [3.0, 4.0]


def test_a_finished_training_is_read_back_whole(tmp_path: Path) -> None:
    whole = trained(checkpoint_folder=tmp_path, checkpoint_interval_s=0)
    again = trained(net(9), checkpoint_folder=tmp_path, checkpoint_interval_s=0)
    assert equal(whole.weights, again.weights)
    assert again.history == whole.history


@pytest.mark.parametrize(
    ("changed", "text"),
    [({"lr": 0.01}, "lr = 0.05, not 0.01"), ({"epochs": 9}, "epochs = 4, not 9")],
)
def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, changed: dict[str, object], text: str
) -> None:
    interrupted(tmp_path, settings(), 3)
    with pytest.raises(TrainError, match=text):
        trained(made=settings(**changed), checkpoint_folder=tmp_path)


def test_a_checkpoint_of_another_network_lists_what_does_not_fit(tmp_path: Path) -> None:
    interrupted(tmp_path, settings(), 3)
    other = net()
    other.linear = nn.Linear(5, 4)
    with pytest.raises(TrainError, match=r"linear\.bias: shape \(3,\), the network has \(4,\)"):
        trained(other, checkpoint_folder=tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    interrupted(tmp_path, settings(), 3)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TrainError, match=FILE_NAME):
        trained(checkpoint_folder=tmp_path)


def test_a_file_of_tensors_alone_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / FILE_NAME)
    with pytest.raises(TrainError, match=f"{FILE_NAME} cannot be read: it holds no training state"):
        trained(checkpoint_folder=tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="gone"):
        trained(checkpoint_folder=tmp_path / "gone", checkpoint_interval_s=0)


def test_a_checkpoint_holds_the_random_state_and_no_second_file(tmp_path: Path) -> None:
    interrupted(tmp_path, settings(), 3)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["rng.cpu"].dtype == torch.uint8
    assert found[1]["next_epoch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_snapshot_is_the_state_at_the_start_of_its_epoch_with_norm_statistics() -> None:
    whole = trained(snapshot_epoch=2)
    assert whole.snapshot is not None
    assert whole.snapshot["bn1.num_batches_tracked"] == 2 * 4
    assert equal(trained(snapshot_epoch=0).snapshot, net().state_dict())
    assert trained().snapshot is None


def test_a_late_start_goes_on_with_the_schedule_and_the_order_of_the_epochs_before() -> None:
    made = settings(momentum=0.0, nesterov=False)
    whole = trained(still(), made, snapshot_epoch=2)
    late = still()
    late.load_state_dict(whole.snapshot or {})
    rest = trained(late, made, start_epoch=2)
    assert equal(rest.weights, whole.weights)
    assert [record["epoch"] for record in rest.history] == [2, 3]
    lrs = [learning_rate(made, (epoch + 1) * 4 - 1, 4) for epoch in range(4)]
    assert [record["lr"] for record in whole.history] == lrs
    assert [record["lr"] for record in rest.history] == lrs[2:]


@pytest.mark.parametrize("options", [{"start_epoch": 4}, {"snapshot_epoch": 4}, {"start_epoch": -1}])
def test_an_epoch_outside_the_training_is_refused(options: dict[str, int]) -> None:
    ((name, epoch),) = options.items()
    with pytest.raises(TrainError, match=f"{name} is {epoch}"):
        trained(**options)


@pytest.mark.parametrize("changed", [{}, {"optimizer": "adamw", "lr": 0.01}, {"channels_last": True}])
def test_weights_held_at_zero_are_zero_after_the_last_step_and_the_others_train(
    changed: dict[str, object],
) -> None:
    model = net()
    keep = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    bias = torch.tensor([True, False] * 3)
    before = model.state_dict()["conv1.weight"].clone()
    result = trained(model, settings(**changed), hold_zero={"conv1.weight": keep, "conv1.bias": bias})
    after = result.weights["conv1.weight"]
    assert torch.equal(after != 0, keep)
    assert not (after == before)[keep].any()
    assert torch.equal(result.weights["conv1.bias"] != 0, bias)


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"conv9.weight": torch.ones(1, dtype=torch.bool)}, "'conv9.weight'"),
        ({"conv1.bias": torch.ones(5, dtype=torch.bool)}, r"\(5,\).*\(6,\)"),
        ({"conv1.bias": torch.ones(6)}, "float32"),
        ({"bn1.running_mean": torch.ones(6, dtype=torch.bool)}, "no parameter"),
    ],
)
def test_masks_that_do_not_fit_are_refused(held: dict[str, Tensor], text: str) -> None:
    with pytest.raises(TrainError, match=text):
        trained(hold_zero=held)


def test_a_loss_that_is_not_finite_names_epoch_and_rate() -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("linear.bias").fill_(float("inf"))
    with pytest.raises(TrainError, match=r"the loss is nan in epoch 0 of 4 at lr 0\.05"):
        trained(model)


def test_label_smoothing_changes_the_trained_loss() -> None:
    plain, smooth = trained(), trained(made=settings(label_smoothing=0.3))
    assert smooth.history[0]["train_loss"] != plain.history[0]["train_loss"]


def test_trainings_in_one_process_keep_their_own_precision() -> None:
    import accelerate
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    mine = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    alone = trained()
    lower = trained(made=settings(precision="bf16"))
    assert equal(alone.weights, trained().weights)
    assert not equal(alone.weights, lower.weights)
    assert mine.mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_double_precision_stays_double() -> None:
    result = trained(net().double())
    assert {v.dtype for v in result.weights.values() if v.is_floating_point()} == {torch.float64}


def test_progress_tells_epoch_loss_accuracy_and_time_left() -> None:
    events: list[Event] = []
    result = trained(on_event=events.append)
    assert [event["epoch"] for event in events] == [1.0, 2.0, 3.0, 4.0]
    assert [event["loss"] for event in events] == [record["train_loss"] for record in result.history]
    assert events[-1]["eta_s"] == 0.0
    assert events[0]["epochs"] == 4
    assert events[0]["event"] == "progress"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), "tells 2 classes apart, the images have 3"),
        (nn.Conv2d(1, 3, 3), r"Conv2d returns \(2, 3, 4, 4\) for images \(2, 1, 6, 6\)"),
        (nn.LSTM(6, 2), r"LSTM does not take images \(2, 1, 6, 6\)"),
        (nn.Conv2d(3, 3, 3), "to have 3 channels, but got 1 channels"),
    ],
    ids=["few classes", "a map", "no sequence", "other channels"],
)
def test_a_network_that_does_not_fit_the_images_is_refused(model: nn.Module, text: str) -> None:
    with pytest.raises(TrainError, match=text):
        trained(model)


def test_a_network_without_weights_to_train_is_refused() -> None:
    model = net()
    model.requires_grad_(False)
    with pytest.raises(TrainError, match="Net has no parameter"):
        trained(model)


def test_frozen_weights_stay() -> None:
    model = net()
    model.get_parameter("conv1.weight").requires_grad_(False)
    before = model.get_parameter("conv1.weight").clone()
    assert torch.equal(trained(model).weights["conv1.weight"], before)
