"""The training loop: seeded batches, a schedule, checkpoints.

On a CPU with as many threads the weights are bit-equal from run to run, resumed or not. Two parts of a
training (`stop_epoch`, then `start_epoch`) are bit-equal to the whole where the second starts from the
optimiser's state and the average of the first; only dropout's draws and the loss scale of fp16 start anew.
The test images are not touched.
"""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ticket_export.data.augment import Augment
from ticket_export.data.batches import SeedPath
from ticket_export.data.sources import Images
from ticket_export.errors import TrainError
from ticket_export.seeds import seed_from_path
from ticket_export.train.average import Average
from ticket_export.train.device import accelerated, own_random_state
from ticket_export.train.distill import Distill
from ticket_export.train.observer import Observer
from ticket_export.train.optimizer import state_by_name
from ticket_export.train.penalty import Penalty
from ticket_export.train.points import Point, Points
from ticket_export.train.progress import Event, loss_within_epoch, progress_event
from ticket_export.train.schedule import learning_rate
from ticket_export.train.settings import TrainSettings
from ticket_export.train.state import (
    Additions,
    EpochRecord,
    Plan,
    Run,
    on_cpu,
    resume,
    save,
    start,
    state_copy,
)
from ticket_export.train.step import train_batch, validate
from ticket_export.train.validate import ValidationRecord

_EVENT_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training produced. Iterations are steps done since the start of the dense training.

    Attributes:
        weights: the trained state dict, buffers included, on the CPU.
        snapshot: the state dict at the snapshot's point, or None where none was asked for.
        history: one record per epoch: epoch, train_loss (all of it: smoothed, distilled), train_accuracy,
            val_loss, val_accuracy (fractions), lr of the last step, seconds, images_per_s (training images).
        validations: one record per validation, at the end of each epoch and every `validate_steps`:
            iteration, val_loss, val_accuracy.
        min_val_loss: the lowest loss of the validations.
        min_val_loss_iteration: the first at which it was reached (the early-stopping proxy of arXiv
            1803.03635, section 2).
        best_weights: the state dict at that iteration, or None where `validate_steps` is 0.
        val_accuracy: at the end.
        num_epochs: epochs done since the start of the dense training.
        stopped_epoch: `num_epochs` where the observer ended the training, or None.
        seconds: of all epochs, those before a resume included.
        num_processes: that shared the batches.
        optimizer_state: `PARAMETER/NAME` -> tensor on the CPU, e.g. `conv1.weight/momentum_buffer`.
        average: the averaged network's state dict, or None where none was asked for.
    """

    weights: dict[str, Tensor]
    snapshot: dict[str, Tensor] | None
    history: tuple[EpochRecord, ...]
    validations: tuple[ValidationRecord, ...]
    min_val_loss: float
    min_val_loss_iteration: int
    best_weights: dict[str, Tensor] | None
    val_accuracy: float
    num_epochs: int
    stopped_epoch: int | None
    seconds: float
    num_processes: int
    optimizer_state: dict[str, Tensor]
    average: dict[str, Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saving:
    """Where checkpoints go, if anywhere, and the least seconds between two."""

    folder: Path | None
    interval_s: float


def train(
    model: nn.Module,
    images: Images,
    *,
    augment: Augment,
    settings: TrainSettings,
    seed_path: SeedPath,
    device: torch.device | str = "cpu",
    start_epoch: int = 0,
    start_step: int = 0,
    stop_epoch: int | None = None,
    snapshot_epoch: int | None = None,
    snapshot_step: int = 0,
    hold_zero: Mapping[str, Tensor] | None = None,
    teacher: Distill | None = None,
    penalties: Sequence[Penalty] = (),
    observer: Observer | None = None,
    optimizer_state: Mapping[str, Tensor] | None = None,
    average: Average | None = None,
    checkpoint_folder: Path | None = None,
    checkpoint_interval_s: float = 10.0,
    on_event: Callable[[Event], None] | None = None,
) -> TrainResult:
    """Train `model` in place to the end of `settings.epochs`, or to `stop_epoch`, and return what came of it.

    Args:
        model: [N, C, H, W] -> [N, K], with the weights to start from; it ends on the device in training mode.
        images: training and validation images.
        augment: what is done to training images; validation images are normalised alike.
        settings: optimiser, schedule, precision.
        seed_path: root seed and path, e.g. `(seed, "replicate", 0)`.
        device: where it trains.
        start_epoch: rates and the order of images go on as if the epochs before it had been trained,
        start_step: and so many steps of that epoch.
        stop_epoch: epochs done when it ends, though rates follow `settings.epochs`; None = at their end.
        snapshot_epoch: epoch in which the state dict is copied (the rewind point),
        snapshot_step: after so many steps of it.
        hold_zero: parameter name -> bool of its shape; where it is False the parameter stays zero.
        teacher: whose outputs are learnt beside the labels.
        penalties: what is added to the gradients.
        observer: looks at the network after each epoch and may end the training.
        optimizer_state: what the optimiser starts from, as `TrainResult.optimizer_state` holds it.
        average: of the weights, taken beside the training.
        checkpoint_folder: an existing folder; its checkpoint is resumed, and new ones are written there.
        checkpoint_interval_s: least time between two checkpoints; it changes no result.
        on_event: gets a `progress_event` once a second and at the end of each epoch.

    Raises:
        TrainError: something does not fit, the loss is not finite, or the checkpoint is of another training.
        StoreError: a checkpoint cannot be written.
    """
    snapshot = None if snapshot_epoch is None else Point(snapshot_epoch, snapshot_step)
    points = Points(start=Point(start_epoch, start_step), snapshot=snapshot, stop_epoch=stop_epoch)
    extra = Additions(
        hold_zero=hold_zero or {}, distill=teacher, penalties=tuple(penalties), observer=observer,
        optimizer_state=optimizer_state or {}, average=average,
    )  # fmt: skip
    plan = Plan(augment=augment, settings=settings, seed_path=seed_path, points=points, additions=extra)
    saving = _Saving(folder=checkpoint_folder, interval_s=checkpoint_interval_s)
    return _trained(model, images, plan, torch.device(device), saving, on_event)


def _trained(
    model: nn.Module,
    images: Images,
    plan: Plan,
    device: torch.device,
    saving: _Saving,
    on_event: Callable[[Event], None] | None,
) -> TrainResult:
    seed = seed_from_path(int(plan.seed_path[0]), *plan.seed_path[1:], "dropout")
    with own_random_state(device, seed), accelerated(device) as accelerator:
        run = start(model, images, plan, accelerator, device)
        if saving.folder is not None:
            resume(run, saving.folder)
        run.hold_zero()
        _run_epochs(run, saving, on_event)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in the stub
    return _result(run)


def _run_epochs(run: Run, saving: _Saving, on_event: Callable[[Event], None] | None) -> None:
    saved_s = time.perf_counter()
    while run.next_epoch < run.plan.end_epoch and not run.is_stopped:
        epoch = run.next_epoch
        run.history.append(_epoch(run, epoch, on_event))
        run.next_epoch = epoch + 1
        run.is_stopped = _ends_here(run, epoch)
        due = time.perf_counter() - saved_s >= saving.interval_s
        if saving.folder is not None and due and run.accelerator.is_main_process:
            save(run, saving.folder)
            saved_s = time.perf_counter()


def _ends_here(run: Run, epoch: int) -> bool:
    observer = run.plan.additions.observer
    if observer is None:
        return False
    ends = torch.tensor(int(observer.after_epoch(epoch, run.model)), device=run.device)
    # One process ends it for all: each has norm statistics of its own, and who goes on alone waits for ever
    return bool(run.accelerator.reduce(ends, "sum") > 0)


def _epoch(run: Run, epoch: int, on_event: Callable[[Event], None] | None) -> EpochRecord:
    num_batches, first = run.batches.num_batches, run.plan.points.first_step(epoch)
    begun_s = event_s = time.perf_counter()
    totals = torch.zeros(2, dtype=torch.float64, device=run.device)  # loss, correct; added up without waiting
    for step, (x_NCHW, y_N) in enumerate(run.batches.epoch(epoch, first=first), first):
        if run.plan.points.is_snapshot(epoch, step):
            run.share_buffers()
            run.snapshot = state_copy(run.model)
        train_batch(run, x_NCHW, y_N, epoch * num_batches + step, totals)
        iteration, num_done = epoch * num_batches + step + 1, step + 1 - first
        if step + 1 < num_batches and _is_due(run.settings.validate_steps, iteration):
            validate(run, iteration)
        now_s = time.perf_counter()
        if on_event is not None and now_s - event_s >= _EVENT_INTERVAL_S and step + 1 < num_batches:
            event_s = now_s
            # This process's share alone: the others come here at other moments
            told = loss_within_epoch(totals, num_done * len(y_N), run.device, run.history)
            _check_finite(told[0], "loss", run, epoch)
            on_event(progress_event(run, iteration, told, (now_s - begun_s) / num_done))
    record = _record(run, epoch, run.accelerator.reduce(totals, "sum"), begun_s)
    if on_event is not None:
        told = record["train_loss"], record["train_accuracy"]
        on_event(progress_event(run, iteration, told, record["seconds"] / num_done))
    return record


def _is_due(interval: int, iteration: int) -> bool:
    return interval > 0 and iteration % interval == 0


def _record(run: Run, epoch: int, totals: Tensor, begun_s: float) -> EpochRecord:
    """Return what an epoch came to; here the host waits for the device."""
    num_batches = run.batches.num_batches
    num_images = (num_batches - run.plan.points.first_step(epoch)) * run.batches.batch_size
    loss, correct = totals.tolist()
    trained_s = time.perf_counter() - begun_s
    _check_finite(loss, "loss", run, epoch)
    validate(run, (epoch + 1) * num_batches)
    validations = run.validations.read()
    for validation in validations:
        _check_finite(validation["val_loss"], "validation loss", run, epoch)
    return {
        "epoch": epoch,
        "train_loss": loss / num_images,
        "train_accuracy": correct / num_images,
        "val_loss": validations[-1]["val_loss"],
        "val_accuracy": validations[-1]["val_accuracy"],
        "lr": learning_rate(run.settings, (epoch + 1) * num_batches - 1, num_batches),
        "seconds": time.perf_counter() - begun_s,
        "images_per_s": num_images / trained_s,
    }


def _check_finite(loss: float | None, name: str, run: Run, epoch: int) -> None:
    if loss is not None and not math.isfinite(loss):
        raise TrainError(
            f"the {name} is {loss} in epoch {epoch} of {run.settings.epochs} at lr {run.settings.lr:g}",
            hint="lower train.lr, set train.warmup_epochs, or train in fp32",
        )


def _result(run: Run) -> TrainResult:
    best = min(run.validations.records, key=lambda record: record["val_loss"])
    return TrainResult(
        weights=state_copy(run.model),
        snapshot=run.snapshot,
        history=tuple(run.history),
        validations=tuple(run.validations.records),
        min_val_loss=best["val_loss"],
        min_val_loss_iteration=int(best["iteration"]),
        best_weights=on_cpu(run.validations.best) if run.validations.keeps_best else None,
        val_accuracy=run.history[-1]["val_accuracy"],
        num_epochs=run.next_epoch,
        stopped_epoch=run.next_epoch if run.is_stopped else None,
        seconds=sum(record["seconds"] for record in run.history),
        num_processes=run.batches.shard[1],
        optimizer_state=on_cpu(state_by_name(run.model, run.optimizer)),
        average=None if run.average is None else on_cpu(run.average.state()),
    )
