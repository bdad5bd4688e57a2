"""A small network and a small training of it, which the tests of the training loop share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.train.loop import TrainResult, train
from ticket_export.train.progress import Event
from ticket_export.train.settings import TrainSettings

AUGMENT = Augment(mean=(0.5,), std=(0.25,), pad_crop=1, flip=True)
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "schedule": "cosine"}


class Net(nn.Module):
    """conv-norm-relu, a strided convolution, dropout, linear: [N, 1, 6, 6] -> [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2)
        self.drop = nn.Dropout(0.2)
        self.linear = nn.Linear(5, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.bn1(self.conv1(x_NCHW))))
        return self.linear(self.drop(torch.relu(x).mean((2, 3))))


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def stripes(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright row, column or border: three classes that a small network can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 120, (num, 1, 6, 6), dtype=torch.uint8, generator=generator)
    y = torch.arange(num) % 3
    x[y == 0, :, 2:4] += 130
    x[y == 1, :, :, 2:4] += 130
    x[y == 2, :, 0] += 130
    return x, y


def images() -> Images:
    (train_x, train_y), (val_x, val_y), (test_x, test_y) = (stripes(n, n) for n in (72, 30, 33))
    return Images(
        train_x=train_x,
        train_y=train_y,
        val_x=val_x,
        val_y=val_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=3,
    )


def settings(**changed: Any) -> TrainSettings:
    return TrainSettings(**({"epochs": 4, "batch": 16} | SGD | changed))


def trained(model: nn.Module | None = None, made: TrainSettings | None = None, **options: Any) -> TrainResult:
    seed_path = options.pop("seed_path", (0, "replicate", 0))
    return train(
        model or net(), images(), augment=AUGMENT, settings=made or settings(), seed_path=seed_path, **options
    )


def equal(a: Mapping[str, Tensor] | None, b: Mapping[str, Tensor] | None) -> bool:
    assert a is not None
    assert b is not None
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class KilledError(Exception):
    """Stands for a kill in the middle of an epoch's end."""


def interrupted(folder: Path, made: TrainSettings, at_epoch: int, **options: Any) -> None:
    def stop(event: Event) -> None:
        if event["epoch"] == at_epoch:
            raise KilledError

    with pytest.raises(KilledError):
        trained(made=made, checkpoint_folder=folder, checkpoint_interval_s=0, on_event=stop, **options)


def still(seed: int = 0) -> nn.Module:
    """Without dropout; without momentum too, an epoch depends on its first weights and its number alone."""
    model = net(seed)
    model.drop = nn.Identity()
    return model


def timeless(result: TrainResult) -> list[dict[str, float]]:
    """The history without its clocks."""
    return [
        {name: value for name, value in record.items() if name not in ("seconds", "images_per_s")}
        for record in result.history
    ]
