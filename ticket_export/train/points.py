"""Moments of a training: whole epochs, plus steps of the next one."""

from __future__ import annotations

from dataclasses import dataclass

from ticket_export.errors import TrainError


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """The moment before a step; `Point(0, 0)` is the start of the dense training.

    Attributes:
        epoch: whole epochs done.
        step: steps of the next epoch done.
    """

    epoch: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Where a training starts and ends, and where its state is copied.

    Attributes:
        start: the moment it goes on from.
        snapshot: the moment at which its state dict is copied, or None.
        stop_epoch: the epochs done when it ends, or None for all that its schedule knows.
    """

    start: Point
    snapshot: Point | None
    stop_epoch: int | None = None

    def end_epoch(self, epochs: int) -> int:
        """Return the epochs done at the end, where the schedule knows `epochs`."""
        return epochs if self.stop_epoch is None else self.stop_epoch

    def first_step(self, epoch: int) -> int:
        """Return the first step of `epoch` that is trained."""
        return self.start.step if epoch == self.start.epoch else 0

    def first_iteration(self, num_batches: int) -> int:
        """Return the steps that lie before the start; an epoch has `num_batches`."""
        return self.start.epoch * num_batches + self.start.step

    def is_snapshot(self, epoch: int, step: int) -> bool:
        """Return whether the state before this step is to be copied."""
        return self.snapshot == Point(epoch, step)

    def require_reached(self, epochs: int, num_batches: int) -> None:
        """Raise unless the training passes both points.

        Args:
            epochs: that the schedule knows.
            num_batches: steps in an epoch.

        Raises:
            TrainError: a point lies outside the training, or the snapshot before the start.
        """
        if self.stop_epoch is not None and not 0 < self.stop_epoch <= epochs:
            raise TrainError(
                f"stop_epoch is {self.stop_epoch}, the schedule has {epochs} epochs",
                hint=f"it may be 1 to {epochs}",
            )
        epochs = self.end_epoch(epochs)
        first = Point(0, 0)
        for name, point in (("start", self.start), ("snapshot", self.snapshot)):
            if point is None:
                continue
            if not first.epoch <= point.epoch < epochs:
                raise TrainError(
                    f"{name}_epoch is {point.epoch}, the training runs from epoch {first.epoch} to {epochs}",
                    hint="it must lie before the last epoch",
                )
            if not 0 <= point.step < num_batches:
                raise TrainError(
                    f"the rewind step {point.step} is never reached: an epoch has {num_batches} steps",
                    hint=f"it may be 0 to {num_batches - 1}; {num_batches} steps are one more rewind epoch",
                )
            if point < first:
                raise TrainError(
                    f"the snapshot at step {point.step} of epoch {point.epoch} lies before the start "
                    f"at step {first.step}",
                    hint="a training can copy no state that it never has",
                )
            first = point
