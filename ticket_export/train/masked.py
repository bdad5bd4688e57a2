"""Masked training: which weights are held at zero so that the dense shape trains like the small network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask, held_elements


def hold_zero_from_mask(model: nn.Module, groups: Sequence[ChannelGroup], mask: Mask) -> dict[str, Tensor]:
    """Return what dropped channels own, for `train(hold_zero=...)`: parameter name -> bool, True = keep.

    Every member is held: a norm whose gamma is zero but whose beta trains would still emit beta, which the
    small network cannot. An element mask needs no conversion: its `keep_by_parameter` is what `train` takes.

    Args:
        model: the dense network.
        groups: its channel groups.
        mask: what is kept of them.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    held = held_elements(groups, mask, {name: held.shape for name, held in (parameters | buffers).items()})
    return {name: keep for name, keep in held.items() if name in parameters}
