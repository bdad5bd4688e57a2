"""Validation losses along a training, and the weights at the lowest of them; nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ValidationRecord = dict[str, float]

_BEST, _BEST_LOSS = "best.", "best_loss"


@dataclass(slots=True, kw_only=True)
class Validations:
    """The validations of one training.

    Attributes:
        keeps_best: whether the state at the lowest loss is kept.
        records: those read back: iteration (steps done since the start of the dense training), val_loss,
            val_accuracy.
        best: the state dict at the lowest loss (the first of equal ones), on the device.
    """

    keeps_best: bool
    records: list[ValidationRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    _best_loss: Tensor | None = None
    _waiting: list[tuple[int, Tensor]] = field(default_factory=list)

    def add(self, iteration: int, means: Tensor, model: nn.Module) -> None:
        """Note a validation, and keep the weights if its loss is the lowest so far.

        Args:
            iteration: steps done since the start of the dense training.
            means: loss and accuracy, float64 [2] on the device.
            model: what was validated.
        """
        self._waiting.append((iteration, means))
        if not self.keeps_best:
            return
        state = {name: value.detach() for name, value in model.state_dict().items()}
        if self._best_loss is None:
            self._best_loss = means[0].clone()
            self.best = {name: value.clone() for name, value in state.items()}
            return
        # Chosen on the device: to read the loss here would make the host wait
        is_lower = means[0] < self._best_loss
        self._best_loss = torch.where(is_lower, means[0], self._best_loss)
        self.best = {name: torch.where(is_lower, value, self.best[name]) for name, value in state.items()}

    def read(self) -> list[ValidationRecord]:
        """Read back what was added since the last call, append it to the records and return it."""
        fresh = []
        for iteration, means in self._waiting:
            loss, accuracy = means.tolist()
            fresh.append({"iteration": iteration, "val_loss": loss, "val_accuracy": accuracy})
        self._waiting.clear()
        self.records += fresh
        return fresh

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs besides the records."""
        held = {f"{_BEST}{name}": value for name, value in self.best.items()}
        return held if self._best_loss is None else held | {_BEST_LOSS: self._best_loss}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Put back what `tensors` returned."""
        if _BEST_LOSS in tensors:
            self._best_loss = tensors[_BEST_LOSS].to(device)
        self.best = {
            name.removeprefix(_BEST): value.to(device)
            for name, value in tensors.items()
            if name.startswith(_BEST)
        }
