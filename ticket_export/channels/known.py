"""A value beside the places where it may depend on the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ticket_export.channels.compact import aligned_cores, broadcast, compact


@dataclass(frozen=True, slots=True)
class Known:
    """A value and where it may depend on the input; `value` is 0 wherever `taint` is True.

    Attributes:
        value: float64, compact.
        taint: bool, same shape, compact.
    """

    value: Tensor
    taint: Tensor

    @classmethod
    def of(cls, value: Tensor, taint: Tensor) -> Known:
        """Return the pair with tainted and non-finite values cleared."""
        value, taint = broadcast(value, taint)
        (stored, stored_taint), shape = aligned_cores([value, taint])
        stored = stored.to(torch.float64)
        stored_taint = stored_taint | ~torch.isfinite(stored)
        stored = torch.where(stored_taint, 0.0, stored)
        return cls(compact(stored.expand(shape)), compact(stored_taint.expand(shape)))


def all_tainted(shape: torch.Size) -> Known:
    """Return a value of which nothing is known."""
    zero, tainted = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.bool)
    return Known(zero.expand(shape), tainted.expand(shape))
