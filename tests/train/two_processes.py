"""Run by test_processes.py in each process: two trainings in a row, what each came to is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.train.average import Average
from ticket_export.train.distill import Distill
from ticket_export.train.loop import train
from ticket_export.train.penalty import GrowingL2
from ticket_export.train.settings import TrainSettings


class LastEnds:
    """An observer that ends the training in the last process alone, which must end it in all."""

    def after_epoch(self, epoch: int, model: nn.Module) -> bool:
        is_last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
        return is_last and epoch == 1

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass

    def facts(self) -> Mapping[str, object]:
        return {}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # No batch norm: each process would take its statistics from its own half of the batch
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()


def trained_weights(**options: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8, generator=generator)
    y = torch.arange(64) % 3
    images = Images(train_x=x, train_y=y, val_x=x, val_y=y, test_x=x, test_y=y, num_classes=3)
    result = train(
        network(0),
        images,
        augment=Augment(mean=(0.5,), std=(0.25,), pad_crop=1, flip=True),
        settings=TrainSettings(epochs=3, batch=16, lr=0.1, momentum=0.9, validate_steps=3),
        seed_path=(0,),
        **options,
    )
    weights = result.weights
    weights["losses"] = torch.tensor([record["train_loss"] for record in result.history])
    weights["validations"] = torch.tensor([record["val_loss"] for record in result.validations])
    weights |= {f"average.{name}": value for name, value in (result.average or {}).items()}
    assert result.best_weights is not None
    return weights | {f"best.{name}": value for name, value in result.best_weights.items()}


def with_additions() -> dict[str, Tensor]:
    """Everything a training may have besides: what a process adds to its gradients, it adds in all."""
    keep = {"3.weight": torch.arange(48).view(3, 16) % 2 > 0}
    return trained_weights(
        start_step=1,
        teacher=Distill(teacher=network(1), weight=0.5, temperature=2.0),
        penalties=[GrowingL2(keep=keep, delta=0.2, interval=1, limit=1.0)],
        observer=LastEnds(),
        average=Average(decay=0.5),
    )


if __name__ == "__main__":
    told = {f"plain.{name}": value for name, value in trained_weights().items()}
    told |= {f"additions.{name}": value for name, value in with_additions().items()}
    save_file(told, Path(sys.argv[1]) / f"{os.environ.get('RANK', '0')}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
