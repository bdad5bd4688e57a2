"""The learning rate of every step from the step alone, so that resuming and rewinding need no state."""

from __future__ import annotations

import math

from ticket_export.train.settings import TrainSettings

# Of one_cycle, as in torch.optim.lr_scheduler.OneCycleLR: the start is 1/25 of the peak, the end 1/10,000
# of the start, and the peak is reached after 30 % where no warm-up is named (Smith & Topin, arXiv
# 1708.07120)
_START_DIVISOR = 25.0
_END_DIVISOR = 1e4
_RISE_FRACTION = 0.3


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step.

    `constant` stays at the peak; `step` multiplies it by gamma at each milestone; `cosine` falls to zero
    from the end of the warm-up on. During the first `warmup_epochs` these three rise linearly: the last
    step of the warm-up has the full rate. `one_cycle` rises from 1/25 of the peak to the peak over
    `warmup_epochs` (over 30 % of all steps where that is 0), then falls to 1/250,000 of it, both along a
    cosine.

    Args:
        settings: the schedule's name and numbers.
        step: 0 for the first step of epoch 0; a training that starts at epoch e starts at step
            `e * steps_per_epoch`.
        steps_per_epoch: batches in an epoch.
    """
    num_steps = settings.epochs * steps_per_epoch
    num_warmup = settings.warmup_epochs * steps_per_epoch
    if settings.schedule == "one_cycle":
        return _one_cycle(settings.lr, step, num_steps, num_warmup or _RISE_FRACTION * num_steps)
    factor = min(1.0, (step + 1) / num_warmup) if num_warmup else 1.0
    if settings.schedule == "step":
        epoch = step // steps_per_epoch
        factor *= settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones)
    elif settings.schedule == "cosine":
        fallen_fraction = max(0.0, step - num_warmup) / max(1.0, num_steps - num_warmup)
        factor *= 0.5 * (1 + math.cos(math.pi * fallen_fraction))
    return settings.lr * factor


def _one_cycle(peak: float, step: int, num_steps: int, num_rise: float) -> float:
    start = peak / _START_DIVISOR
    end = start / _END_DIVISOR
    last_rise, last = num_rise - 1, num_steps - 1
    if step <= last_rise:
        return _between(start, peak, step / last_rise if last_rise else 1.0)
    return _between(peak, end, (step - last_rise) / (last - last_rise))


def _between(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))
