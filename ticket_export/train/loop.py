"""The training loop: seeded batches, a schedule, checkpoints; bit-equal when resumed on a CPU."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_export.data.augment import Augment
from ticket_export.data.batches import SeedPath, in_order
from ticket_export.data.sources import Images
from ticket_export.errors import TrainError
from ticket_export.seeds import seed_from_path
from ticket_export.train.device import accelerated, own_random_state
from ticket_export.train.evaluate import evaluating
from ticket_export.train.schedule import learning_rate
from ticket_export.train.settings import TrainSettings
from ticket_export.train.state import EpochRecord, Run, resume, save, start, state_copy

Event = Mapping[str, object]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_VALIDATION_BATCH = 256
_EVENT_INTERVAL_S = 1.0  # an event reads the loss, which makes a GPU wait; once a second no one notices


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training produced.

    Attributes:
        weights: the trained state dict, buffers included, on the CPU.
        snapshot: the state dict at the start of `snapshot_epoch`, or None where none was asked for.
        history: one record per epoch: epoch, train_loss (smoothed where smoothing is on), train_accuracy,
            val_loss, val_accuracy (fractions), lr of the last step, seconds, images_per_s (training images).
        min_val_loss: the lowest of the validation losses, which are taken at the end of each epoch.
        min_val_loss_iteration: steps done when it was reached, counted from the start of the dense training
            (the early-stopping proxy of arXiv 1803.03635, section 2).
        val_accuracy: at the end.
        seconds: of all epochs, those before a resume included.
    """

    weights: dict[str, Tensor]
    snapshot: dict[str, Tensor] | None
    history: tuple[EpochRecord, ...]
    min_val_loss: float
    min_val_loss_iteration: int
    val_accuracy: float
    seconds: float


def train(
    model: nn.Module,
    images: Images,
    *,
    augment: Augment,
    settings: TrainSettings,
    seed_path: SeedPath,
    device: torch.device | str = "cpu",
    start_epoch: int = 0,
    snapshot_epoch: int | None = None,
    hold_zero: Mapping[str, Tensor] | None = None,
    checkpoint_folder: Path | None = None,
    checkpoint_interval_s: float = 10.0,
    on_event: Callable[[Event], None] | None = None,
) -> TrainResult:
    """Train `model` in place from `start_epoch` to `settings.epochs` and return what came of it.

    On a CPU with the same number of threads the weights are bit-equal from run to run, resumed or not. The
    test images are not touched.

    Args:
        model: [N, C, H, W] -> [N, K], with the weights to start from; it ends on the device in training mode.
        images: training and validation images.
        augment: what is done to training images; validation images are normalised alike.
        settings: optimiser, schedule, precision.
        seed_path: root seed and path, e.g. `(seed, "replicate", 0)`.
        device: where it trains.
        start_epoch: the schedule and the order of images go on as if the epochs before it had been trained.
        snapshot_epoch: epoch at whose start the state dict is copied (the rewind point).
        hold_zero: parameter name -> bool of its shape; where it is False the parameter stays zero.
        checkpoint_folder: an existing folder; its checkpoint is resumed, and new ones are written there.
        checkpoint_interval_s: least time between two checkpoints; it changes no result.
        on_event: called once a second and at the end of an epoch with `{"event": "progress", "epoch",
            "epochs", "loss", "accuracy", "eta_s"}`; epoch counts finished ones and ends in a fraction.

    Raises:
        TrainError: the settings do not fit, the loss is not finite, or the checkpoint is of another training.
        StoreError: a checkpoint cannot be written.
    """
    device = torch.device(device)
    _check_epochs(settings, start_epoch, snapshot_epoch)
    seed = seed_from_path(int(seed_path[0]), *seed_path[1:], "dropout")
    with own_random_state(device, seed), accelerated(device) as accelerator:
        run = start(
            model,
            images,
            augment=augment,
            settings=settings,
            seed_path=seed_path,
            accelerator=accelerator,
            device=device,
            start_epoch=start_epoch,
            hold_zero=hold_zero or {},
        )
        if checkpoint_folder is not None:
            resume(run, checkpoint_folder)
        run.hold_zero()
        _run_epochs(run, snapshot_epoch, checkpoint_folder, checkpoint_interval_s, on_event)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in the stub
    return _result(run)


def _check_epochs(settings: TrainSettings, start_epoch: int, snapshot_epoch: int | None) -> None:
    for name, epoch in (("start_epoch", start_epoch), ("snapshot_epoch", snapshot_epoch)):
        first = 0 if name == "start_epoch" else start_epoch
        if epoch is not None and not first <= epoch < settings.epochs:
            raise TrainError(
                f"{name} is {epoch}, the training runs from epoch {first} to {settings.epochs}",
                hint="it must lie before the last epoch",
            )


def _run_epochs(
    run: Run,
    snapshot_epoch: int | None,
    folder: Path | None,
    checkpoint_interval_s: float,
    on_event: Callable[[Event], None] | None,
) -> None:
    saved_s = time.perf_counter()
    for epoch in range(run.next_epoch, run.settings.epochs):
        if epoch == snapshot_epoch:
            run.snapshot = state_copy(run.model)
        run.history.append(_epoch(run, epoch, on_event))
        run.next_epoch = epoch + 1
        due = time.perf_counter() - saved_s >= checkpoint_interval_s
        if folder is not None and due and run.accelerator.is_main_process:
            save(run, folder)
            saved_s = time.perf_counter()


def _epoch(run: Run, epoch: int, on_event: Callable[[Event], None] | None) -> EpochRecord:
    num_batches = run.batches.num_batches
    begun_s = event_s = time.perf_counter()
    totals = torch.zeros(2, dtype=torch.float64, device=run.device)  # loss, correct; added up without waiting
    for index, (x_NCHW, y_N) in enumerate(run.batches.epoch(epoch)):
        lr = learning_rate(run.settings, epoch * num_batches + index, num_batches)
        _step(run, x_NCHW, y_N, lr, totals)
        now_s = time.perf_counter()
        if on_event is not None and now_s - event_s >= _EVENT_INTERVAL_S and index + 1 < num_batches:
            event_s = now_s
            # This process's share alone: the others come here at other moments
            loss, accuracy = _means(run, epoch, totals, (index + 1) * len(y_N))
            on_event(_event(run, epoch, (index + 1) / num_batches, loss, accuracy, now_s - begun_s))
    num_images = num_batches * run.batches.batch_size
    loss, accuracy = _means(run, epoch, run.accelerator.reduce(totals, "sum"), num_images)
    trained_s = time.perf_counter() - begun_s
    val_loss, val_accuracy = _validate(run)
    _check_finite(val_loss, "validation loss", run, epoch)
    seconds = time.perf_counter() - begun_s
    if on_event is not None:
        on_event(_event(run, epoch, 1.0, loss, accuracy, seconds))
    return {
        "epoch": epoch,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "lr": lr,
        "seconds": seconds,
        "images_per_s": num_images / trained_s,
    }


def _step(run: Run, x_NCHW: Tensor, y_N: Tensor, lr: float, totals: Tensor) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    with _autocast(run):
        logits_NK = run.net(_as_model(run, x_NCHW))
    # In the weights' own type: a bf16 softmax loses the small probabilities
    loss = functional.cross_entropy(
        logits_NK.to(run.dtype), y_N, label_smoothing=run.settings.label_smoothing
    )
    run.optimizer.zero_grad(set_to_none=True)
    if run.scaler is None:
        run.accelerator.backward(loss)
        run.optimizer.step()
    else:
        run.accelerator.backward(run.scaler.scale(loss))
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.hold_zero()
    with torch.no_grad():
        totals += torch.stack((loss.detach() * len(y_N), (logits_NK.argmax(1) == y_N).sum()))


def _autocast(run: Run) -> torch.autocast:
    precision = run.settings.precision
    return torch.autocast(run.device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST)


def _as_model(run: Run, x_NCHW: Tensor) -> Tensor:
    layout = torch.channels_last if run.settings.channels_last else torch.contiguous_format
    return x_NCHW.to(run.dtype, memory_format=layout)


def _validate(run: Run) -> tuple[float, float]:
    totals = torch.zeros(2, dtype=torch.float64, device=run.device)
    with evaluating(run.model), _autocast(run):
        for x_NCHW, y_N in _validation(run):
            logits_NK = run.model(_as_model(run, x_NCHW)).to(run.dtype)
            totals[0] += functional.cross_entropy(logits_NK, y_N, reduction="sum")
            totals[1] += (logits_NK.argmax(1) == y_N).sum()
    loss, correct = totals.tolist()
    return loss / len(run.val_y), correct / len(run.val_y)


def _validation(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    augment = run.batches.augment
    return in_order(run.val_x, run.val_y, mean=augment.mean, std=augment.std, batch=_VALIDATION_BATCH)


def _means(run: Run, epoch: int, totals: Tensor, num_images: int) -> tuple[float, float]:
    loss, correct = totals.tolist()
    _check_finite(loss, "loss", run, epoch)
    return loss / num_images, correct / num_images


def _check_finite(loss: float, name: str, run: Run, epoch: int) -> None:
    if not math.isfinite(loss):
        raise TrainError(
            f"the {name} is {loss} in epoch {epoch} of {run.settings.epochs} at lr {run.settings.lr:g}",
            hint="lower train.lr, set train.warmup_epochs, or train in fp32",
        )


def _event(
    run: Run, epoch: int, seen_fraction: float, loss: float, accuracy: float, elapsed_s: float
) -> Event:
    return {
        "event": "progress",
        "epoch": epoch + seen_fraction,
        "epochs": run.settings.epochs,
        "loss": loss,
        "accuracy": accuracy,
        "eta_s": elapsed_s / seen_fraction * (run.settings.epochs - epoch - seen_fraction),
    }


def _result(run: Run) -> TrainResult:
    best = min(run.history, key=lambda record: record["val_loss"])
    return TrainResult(
        weights=state_copy(run.model),
        snapshot=run.snapshot,
        history=tuple(run.history),
        min_val_loss=best["val_loss"],
        min_val_loss_iteration=int(best["epoch"] + 1) * run.batches.num_batches,
        val_accuracy=run.history[-1]["val_accuracy"],
        seconds=sum(record["seconds"] for record in run.history),
    )
