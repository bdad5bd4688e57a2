"""One step of a training, and one validation; neither reads a value back from the device."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ticket_export.data.batches import in_order
from ticket_export.train.evaluate import evaluating
from ticket_export.train.schedule import learning_rate
from ticket_export.train.state import Run

_VALIDATION_BATCH = 256


def train_batch(run: Run, x_NCHW: Tensor, y_N: Tensor, iteration: int, totals: Tensor) -> None:
    """Make one step, and add its loss and its correct images to the totals.

    Args:
        run: the training.
        x_NCHW: augmented images on the device.
        y_N: their labels.
        iteration: steps done since the start of the dense training.
        totals: sums of losses and of correct images, float64 [2] on the device.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.settings, iteration, run.batches.num_batches)
    x_NCHW = run.as_input(x_NCHW)
    with run.autocast():
        logits_NK = run.net(x_NCHW)
    loss = _loss(run, x_NCHW, logits_NK, y_N)
    run.optimizer.zero_grad(set_to_none=True)
    run.accelerator.backward(loss if run.scaler is None else run.scaler.scale(loss))
    _add_penalties(run, iteration)
    if run.scaler is None:
        run.optimizer.step()
    else:
        run.scaler.step(run.optimizer)
        run.scaler.update()
    run.hold_zero()
    if run.average is not None:
        run.average.step()
    with torch.no_grad():
        totals += torch.stack((loss.detach() * len(y_N), (logits_NK.argmax(1) == y_N).sum()))


def _loss(run: Run, x_NCHW: Tensor, logits_NK: Tensor, y_N: Tensor) -> Tensor:
    # In the weights' own type: a bf16 softmax loses the small probabilities
    logits_NK = logits_NK.to(run.dtype)
    loss = functional.cross_entropy(logits_NK, y_N, label_smoothing=run.settings.label_smoothing)
    distill = run.plan.additions.distill
    if distill is None or run.teacher is None:
        return loss
    with torch.no_grad(), run.autocast():
        teacher_NK = run.teacher(x_NCHW)
    return distill.loss(loss, logits_NK, teacher_NK.to(run.dtype))


def _add_penalties(run: Run, iteration: int) -> None:
    penalties = run.plan.additions.penalties
    if penalties and run.scaler is not None:
        run.scaler.unscale_(run.optimizer)  # the penalties' gradients are of the true size
    step = iteration - run.plan.points.first_iteration(run.batches.num_batches)
    for penalty in penalties:
        penalty.add_gradients(run.parameters, step)


def validate(run: Run, iteration: int) -> None:
    """Note loss and accuracy on the validation images, and the weights where the loss is the lowest so far.

    Args:
        run: the training; its modes and gradients stay as they are.
        iteration: steps done since the start of the dense training.
    """
    run.share_buffers()
    totals = torch.zeros(2, dtype=torch.float64, device=run.device)
    with evaluating(run.model), run.autocast():
        for x_NCHW, y_N in _validation(run):
            logits_NK = run.model(run.as_input(x_NCHW)).to(run.dtype)
            totals[0] += functional.cross_entropy(logits_NK, y_N, reduction="sum")
            totals[1] += (logits_NK.argmax(1) == y_N).sum()
    run.validations.add(iteration, totals / len(run.val_y), run.model)


def _validation(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    augment = run.batches.augment
    return in_order(run.val_x, run.val_y, mean=augment.mean, std=augment.std, batch=_VALIDATION_BATCH)
