"""Within an epoch nothing is read back from the device: the host would wait for all that is still queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from small_training import net, settings, trained
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ticket_export.data.augment import normalise
from ticket_export.train import loop
from ticket_export.train.average import Average
from ticket_export.train.distill import Distill
from ticket_export.train.penalty import GammaL1, GrowingL2, PricedGammaL1
from ticket_export.train.progress import Event, loss_within_epoch
from ticket_export.train.settings import TrainSettings

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class WaitedError(AssertionError):
    """A value was read back."""


class NoReading(TorchDispatchMode):
    """Refuses, while it is armed, what makes the host wait: numbers from tensors, and indices from masks."""

    def __init__(self) -> None:
        super().__init__()
        self.is_armed = True
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_armed:
            self.num_operations += 1
            indices = args[1] if func is torch.ops.aten.index.Tensor else ()
            if func in READS or any(i is not None and i.dtype == torch.bool for i in indices):
                raise WaitedError(func)
        return func(*args, **(kwargs or {}))


def watched(monkeypatch: pytest.MonkeyPatch, made: TrainSettings, **options: Any) -> NoReading:
    """Train under the mode, armed from each epoch's first step to its last."""
    mode = NoReading()
    epoch, record, to_list = loop._epoch, loop._record, Tensor.tolist

    def armed_epoch(*args: Any) -> Any:
        mode.is_armed = True
        with mode:
            return epoch(*args)

    def disarmed_record(*args: Any) -> Any:
        mode.is_armed = False
        return record(*args)

    def guarded_list(tensor: Tensor) -> Any:  # on a CPU it reads memory and dispatches nothing
        if mode.is_armed:
            raise WaitedError("tolist")
        return to_list(tensor)

    monkeypatch.setattr(loop, "_epoch", armed_epoch)
    monkeypatch.setattr(loop, "_record", disarmed_record)
    monkeypatch.setattr(Tensor, "tolist", guarded_list)
    mode.is_armed = False
    trained(made=made, **options)
    return mode


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "adamw", "lr": 1e-3, "channels_last": True},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"validate_steps": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_additions", [False, True])
def test_no_step_and_no_validation_reads_a_value(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], has_additions: bool
) -> None:
    rows = torch.arange(54).view(6, 1, 3, 3) >= 27
    additions = {
        "teacher": Distill(teacher=net(3), weight=0.5, temperature=2.0),
        "penalties": [
            GammaL1(names=("bn1.weight",), coefficient=0.1),
            GrowingL2(keep={"conv1.weight": rows}, delta=0.1, interval=1, limit=1.0),
            PricedGammaL1(price_by_name={"bn1.weight": 0.5}, limit=0.1, ramp_steps=5),
        ],
        "average": Average(decay=0.9),
        "hold_zero": {"conv2.bias": torch.arange(5) > 0},
        "snapshot_epoch": 1,
        "snapshot_step": 2,
    }
    made = settings(**({"epochs": 2} | changed))
    mode = watched(monkeypatch, made, **(additions if has_additions else {}))
    assert mode.num_operations > 200  # of eight steps


def test_a_second_batch_makes_no_constants_to_normalise_with() -> None:
    made: list[str] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(str(func))
            return func(*args, **(kwargs or {}))

    x_NCHW = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    normalise(x_NCHW, [0.25, 0.5, 0.75], [0.5, 0.25, 0.5])
    with Noting():
        normalise(x_NCHW, [0.25, 0.5, 0.75], [0.5, 0.25, 0.5])
    assert made == ["aten._to_copy.default", "aten.addcmul.default"]


def test_the_watch_sees_a_value_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading:
        def add_gradients(self, parameters: Mapping[str, Tensor], step: int) -> None:
            assert float(parameters["bn1.weight"].detach().sum()) > 0

        def facts(self) -> dict[str, object]:
            return {}

    with pytest.raises(WaitedError, match="_local_scalar_dense"):
        watched(monkeypatch, settings(), penalties=[Reading()])


def test_the_watch_sees_a_list_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_EVENT_INTERVAL_S", 0.0)
    with pytest.raises(WaitedError, match="tolist"):
        watched(monkeypatch, settings(), on_event=lambda _: None)  # a CPU tells the running loss


def test_off_the_cpu_an_event_tells_the_last_epochs_loss_and_reads_none() -> None:
    unreadable = torch.zeros(2, device="meta")
    history = [{"train_loss": 2.5, "train_accuracy": 0.25}, {"train_loss": 1.5, "train_accuracy": 0.75}]
    assert loss_within_epoch(unreadable, 16, torch.device("cuda"), history) == (1.5, 0.75)
    assert loss_within_epoch(unreadable, 16, torch.device("cuda"), []) == (None, None)
    read = loss_within_epoch(torch.tensor([8.0, 4.0]), 16, torch.device("cpu"), history)
    assert read == (0.5, 0.25)


def test_events_within_epochs_come_with_that_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_gpu(
        totals: Tensor, num_images: int, device: torch.device, history: Sequence[dict[str, float]]
    ) -> tuple[float | None, float | None]:
        assert device.type == "cpu"
        return loss_within_epoch(totals.to("meta"), num_images, torch.device("cuda"), history)

    monkeypatch.setattr(loop, "_EVENT_INTERVAL_S", 0.0)
    monkeypatch.setattr(loop, "loss_within_epoch", on_a_gpu)
    events: list[Event] = []
    result = trained(made=settings(epochs=2), on_event=events.append)
    first, second = (record["train_loss"] for record in result.history)
    assert [event["epoch"] for event in events] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert [event["loss"] for event in events] == [None, None, None, first, first, first, first, second]


def test_on_a_cpu_events_within_epochs_tell_the_running_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_EVENT_INTERVAL_S", 0.0)
    events: list[Event] = []
    result = trained(made=settings(epochs=1, lr=1e-30, schedule="constant"), on_event=events.append)
    losses = [event["loss"] for event in events]
    assert len(set(losses)) == 4
    assert losses[-1] == result.history[0]["train_loss"]
    assert all(isinstance(loss, float) and 0.5 < loss < 2 for loss in losses)
