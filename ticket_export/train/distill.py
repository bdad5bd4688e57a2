"""Distillation: a trained network's outputs as soft labels beside the hard ones.

Source: Hinton et al. 2015 (arXiv 1503.02531); for retraining lottery tickets Chen et al. 2021 (arXiv
2101.03255).
"""

# N images, K classes
from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_export.errors import TrainError
from ticket_export.train.checkpoint import fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """A teacher and how much it counts.

    Attributes:
        teacher: [N, C, H, W] -> [N, K], trained; it is copied, and neither moved nor changed.
        weight: share of the soft labels in the loss, in (0, 1]; the rest is the hard labels'.
        temperature: both networks' logits are divided by it before the softmax; above 0.

    Raises:
        TrainError: weight or temperature is out of range.
    """

    teacher: nn.Module
    weight: float
    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise TrainError(f"distill.weight is {self.weight}", hint="it must be above 0 and at most 1")
        if not self.temperature > 0:
            raise TrainError(f"distill.temperature is {self.temperature}", hint="it must be above 0")

    def copy_for(self, student: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
        """Return the teacher in eval mode, without gradients, where and as the student is."""
        device = next(student.parameters()).device
        teacher = copy.deepcopy(self.teacher).requires_grad_(False).eval()
        teacher.to(device, dtype)
        return teacher.to(memory_format=layout)  # type: ignore[no-any-return, call-overload]  # missing in the stub

    def facts(self) -> Mapping[str, object]:
        """Return, as JSON, what a checkpoint must agree on to be resumed."""
        teacher = fingerprint(self.teacher.state_dict())
        return {"weight": self.weight, "temperature": self.temperature, "teacher": teacher}

    def loss(self, hard_loss: Tensor, logits_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        """Return `(1 - weight) * hard_loss + weight * temperature^2 * KL(teacher || student)`.

        The square keeps the soft part's gradients of one size at every temperature.

        Args:
            hard_loss: cross entropy with the labels, averaged over the images.
            logits_NK: the student's.
            teacher_NK: the teacher's, without gradients.
        """
        soft_loss = functional.kl_div(
            functional.log_softmax(logits_NK / self.temperature, 1),
            functional.log_softmax(teacher_NK / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * hard_loss + self.weight * self.temperature**2 * soft_loss
