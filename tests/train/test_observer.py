"""What watches a training, and ends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_training import KilledError, equal, interrupted, net, settings, timeless, trained
from torch import Tensor, nn

from ticket_export.errors import TrainError
from ticket_export.train.checkpoint import load_checkpoint
from ticket_export.train.progress import Event


class Watcher:
    """Notes a weight after each epoch, and ends the training after one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.epochs: list[int] = []
        self.weights: list[Tensor] = []
        self.was_training: list[bool] = []

    def after_epoch(self, epoch: int, model: nn.Module) -> bool:
        self.epochs.append(epoch)
        self.weights.append(model.get_parameter("linear.bias").detach().clone())
        self.was_training.append(model.training)
        return epoch == self.last

    def state(self) -> dict[str, Tensor]:
        return {"epochs": torch.tensor(self.epochs), "weights": torch.stack(self.weights)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.epochs, self.weights = state["epochs"].tolist(), list(state["weights"])

    def facts(self) -> Mapping[str, object]:
        return {"last": self.last}


def test_an_observer_sees_the_network_after_each_epoch_and_changes_nothing() -> None:
    watcher = Watcher()
    result = trained(observer=watcher)
    assert watcher.epochs == [0, 1, 2, 3]
    assert watcher.was_training == [True] * 4
    assert torch.equal(watcher.weights[-1], result.weights["linear.bias"])
    assert not torch.equal(watcher.weights[0], watcher.weights[1])
    assert equal(result.weights, trained().weights)
    assert (result.num_epochs, result.stopped_epoch) == (4, None)


def test_a_stopped_training_is_the_whole_one_up_to_there() -> None:
    whole = trained(observer=Watcher())
    stopped = trained(observer=Watcher(last=1))
    assert (stopped.num_epochs, stopped.stopped_epoch) == (2, 2)
    assert timeless(stopped) == timeless(whole)[:2]
    assert stopped.val_accuracy == whole.history[1]["val_accuracy"]
    assert int(stopped.weights["bn1.num_batches_tracked"]) == 8


def test_an_end_at_the_last_epoch_is_told_too() -> None:
    result = trained(observer=Watcher(last=3))
    assert (result.num_epochs, result.stopped_epoch) == (4, 4)


def test_epochs_count_from_the_start_of_the_dense_training() -> None:
    watcher = Watcher(last=2)
    result = trained(start_epoch=1, start_step=2, observer=watcher)
    assert watcher.epochs == [1, 2]
    assert (result.num_epochs, result.stopped_epoch) == (3, 3)


def test_a_stopped_training_stays_stopped_when_it_is_resumed(tmp_path: Path) -> None:
    first = trained(observer=Watcher(last=1), checkpoint_folder=tmp_path, checkpoint_interval_s=0)
    events: list[Event] = []
    watcher = Watcher(last=1)
    again = trained(net(9), observer=watcher, checkpoint_folder=tmp_path, on_event=events.append)
    assert equal(again.weights, first.weights)
    assert (again.num_epochs, again.stopped_epoch) == (2, 2)
    assert watcher.epochs == [0, 1]
    assert events == []


def test_what_an_observer_noted_before_a_break_is_there_after_it(tmp_path: Path) -> None:
    whole, resumed = Watcher(), Watcher()
    trained(observer=whole)
    interrupted(tmp_path, settings(), 3, observer=Watcher())
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["observer.epochs"].tolist() == [0, 1]
    trained(net(9), observer=resumed, checkpoint_folder=tmp_path)
    assert resumed.epochs == whole.epochs
    assert all(map(torch.equal, resumed.weights, whole.weights))


def test_a_checkpoint_of_another_observer_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, settings(), 3, observer=Watcher())
    with pytest.raises(TrainError, match=r"observer = \{'last': None\}, not \{'last': 2\}"):
        trained(observer=Watcher(last=2), checkpoint_folder=tmp_path)
    with pytest.raises(TrainError, match=r"observer = \{'last': None\}, not None"):
        trained(checkpoint_folder=tmp_path)


def test_an_observers_own_error_ends_the_training_with_the_checkpoint_before(tmp_path: Path) -> None:
    class Failing(Watcher):
        def after_epoch(self, epoch: int, model: nn.Module) -> bool:
            if epoch == 2:
                raise KilledError
            return super().after_epoch(epoch, model)

    with pytest.raises(KilledError):
        trained(observer=Failing(), checkpoint_folder=tmp_path, checkpoint_interval_s=0)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["next_epoch"] == 2
