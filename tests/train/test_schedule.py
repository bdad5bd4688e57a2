from __future__ import annotations

import pytest
import torch

from ticket_export.errors import TrainError
from ticket_export.train.schedule import learning_rate
from ticket_export.train.settings import TrainSettings


def rates(steps_per_epoch: int = 10, **settings: object) -> list[float]:
    made = TrainSettings(**({"epochs": 4, "batch": 1, "lr": 0.5} | settings))  # type: ignore[arg-type]
    return [learning_rate(made, step, steps_per_epoch) for step in range(made.epochs * steps_per_epoch)]


def test_a_constant_rate_stays() -> None:
    assert set(rates()) == {0.5}


def test_step_multiplies_at_the_start_of_each_milestone() -> None:
    lrs = rates(schedule="step", milestones=(1, 3), gamma=0.1)
    assert lrs[:10] == [0.5] * 10
    assert lrs[10:30] == pytest.approx([0.05] * 20)
    assert lrs[30:] == pytest.approx([0.005] * 10)


def test_cosine_falls_from_the_peak_to_nothing() -> None:
    lrs = rates(schedule="cosine")
    assert lrs[0] == 0.5
    assert lrs[20] == pytest.approx(0.25)
    assert lrs[-1] == pytest.approx(0.25 * (1 - torch.cos(torch.tensor(torch.pi / 40)).item()), rel=1e-4)
    assert lrs == sorted(lrs, reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_the_warm_up_rises_linearly_and_ends_at_the_full_rate(schedule: str) -> None:
    lrs = rates(schedule=schedule, warmup_epochs=1, gamma=0.1, milestones=(2,))
    assert lrs[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert lrs[10] == pytest.approx(0.5)


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_one_cycle_equals_torchs(warmup_epochs: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, total_steps=40, pct_start=warmup_epochs / 4 or 0.3, cycle_momentum=False
    )
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(schedule="one_cycle", warmup_epochs=warmup_epochs) == pytest.approx(expected, rel=1e-9)


def test_a_rise_of_a_single_step_starts_at_the_peak() -> None:
    assert rates(1, schedule="one_cycle", warmup_epochs=1)[0] == 0.5


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"optimizer": "lamb"}, "'lamb'"),
        ({"schedule": "linear"}, "'linear'"),
        ({"precision": "int8"}, "'int8'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changed: dict[str, object], text: str) -> None:
    with pytest.raises(TrainError, match=text):
        rates(**changed)
