"""Run by test_processes.py in each process: two trainings in a row, the weights of the second are written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.train.loop import train
from ticket_export.train.settings import TrainSettings


def trained_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8, generator=generator)
    y = torch.arange(64) % 3
    images = Images(train_x=x, train_y=y, val_x=x, val_y=y, test_x=x, test_y=y, num_classes=3)
    torch.manual_seed(0)
    # No batch norm: each process would take its statistics from its own half of the batch
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    result = train(
        model,
        images,
        augment=Augment(mean=(0.5,), std=(0.25,), pad_crop=1, flip=True),
        settings=TrainSettings(epochs=3, batch=16, lr=0.1, momentum=0.9),
        seed_path=(0,),
    )
    weights = result.weights
    weights["losses"] = torch.tensor([record["train_loss"] for record in result.history])
    return weights


if __name__ == "__main__":
    trained_weights()
    save_file(trained_weights(), Path(sys.argv[1]) / f"{os.environ.get('RANK', '0')}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
