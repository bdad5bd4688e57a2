"""A ticket: what is kept, the weights its training restarts from, and how it was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ticket_export.channels.mask import ElementMask, Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A mask and the weights training restarts from.

    Attributes:
        mask: the channels that are kept.
        element_mask: the single weights that magnitude pruning kept before channels were chosen, or None.
        weights: the dense network's state dict at the rewind point, all of it: norms, their statistics, stem
            and classifier included.
        method: what found it, e.g. `refill`.
        level: pruning rounds done, from 1.
        parent: the subject whose trained weights were scored, e.g. `dense`, or None.
    """

    mask: Mask
    element_mask: ElementMask | None
    weights: Mapping[str, Tensor]
    method: str
    level: int
    parent: str | None
