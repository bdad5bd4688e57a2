"""What a training tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ticket_export.train.state import EpochRecord, Run

Event = Mapping[str, object]


def loss_within_epoch(
    totals: Tensor, num_images: int, device: torch.device, history: Sequence[EpochRecord]
) -> tuple[float | None, float | None]:
    """Return the loss and accuracy to tell while an epoch runs.

    On a CPU they are this epoch's so far. Elsewhere they are those of the last finished epoch, None in the
    first: reading the totals would make the host wait for all that the device still has to do.

    Args:
        totals: sums of losses and of correct images, float64 [2].
        num_images: how many the totals hold.
        device: where the training runs.
        history: the finished epochs.
    """
    if device.type == "cpu":
        loss, correct = totals.tolist()
        return loss / num_images, correct / num_images
    if not history:
        return None, None
    return history[-1]["train_loss"], history[-1]["train_accuracy"]


def progress_event(run: Run, iteration: int, told: tuple[float | None, float | None], step_s: float) -> Event:
    """Return the event that tells how far a training is.

    Args:
        run: the training.
        iteration: steps done since the start of the dense training.
        told: loss and accuracy.
        step_s: seconds a step takes.
    """
    num_batches = run.batches.num_batches
    loss, accuracy = told
    return {
        "event": "progress",
        "epoch": iteration / num_batches,
        "epochs": run.settings.epochs,
        "loss": loss,
        "accuracy": accuracy,
        "eta_s": step_s * (run.settings.epochs * num_batches - iteration),
    }
