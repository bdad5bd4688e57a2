"""A small supernet and a short search of it, which the tests of the search share."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.find.search_rules import SearchResult, SearchRules
from ticket_export.find.supernet import search
from ticket_export.models.supernet import SuperBlock, decision_norms
from ticket_export.train.settings import TrainSettings

AUGMENT = Augment(mean=(0.5,), std=(0.25,), pad_crop=1, flip=True)
STEPS = 4  # of an epoch


class Net(nn.Module):
    """A stem and two blocks of three branches, the second halving the image: [N, 1, 6, 6] -> [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(
            SuperBlock(4, 4, stride=1, expansion=2), SuperBlock(4, 6, stride=2, expansion=1)
        )
        self.linear = nn.Linear(6, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.blocks(torch.relu(self.bn1(self.conv1(x_NCHW)))).mean((2, 3)))


DECISIONS = decision_norms(Net())
NUM_CHANNELS = 3 * 8 + 3 * 4
BRANCHES = tuple(scale.removesuffix(".bn2.weight") for scale in DECISIONS)


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


@cache
def groups() -> list[ChannelGroup]:
    return channel_groups(net().eval(), torch.zeros(2, 1, 6, 6))


def images() -> Images:
    """Noise with a bright row, column or border: three classes."""
    parts = []
    for num in (64, 24, 24):
        generator = torch.Generator().manual_seed(num)
        x = torch.randint(0, 120, (num, 1, 6, 6), dtype=torch.uint8, generator=generator)
        y = torch.arange(num) % 3
        x[y == 0, :, 2:4] += 130
        x[y == 1, :, :, 2:4] += 130
        x[y == 2, :, 0] += 130
        parts += [x, y]
    names = ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y")
    return Images(**dict(zip(names, parts, strict=True)), num_classes=3)


def settings(**changed: Any) -> TrainSettings:
    made = {"epochs": 3, "batch": 16, "lr": 0.05, "momentum": 0.9, "schedule": "cosine"}
    return TrainSettings(**(made | changed))


def rules(**changed: Any) -> SearchRules:
    made = {
        "event_epochs": 1,
        "drop_step": 0.25,
        "drop_fraction": 0.5,
        "gamma_l1": 0.01,
        "ramp_epochs": 1,
        "gamma_threshold": 1e-3,
        "reactivation": True,
        "ema_decay": 0.5,
        "norm_batches": 2,
    }
    return SearchRules(**(made | changed))


def searched(model: nn.Module | None = None, **options: Any) -> SearchResult:
    given = {"settings": settings(), "rules": rules(), "decisions": DECISIONS} | options
    return search(
        net() if model is None else model,
        images(),
        groups=groups(),
        augment=AUGMENT,
        seed_path=(0, "replicate", 0, "search"),
        **given,
    )
