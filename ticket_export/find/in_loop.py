"""In-loop Refill: each level is scored on the small network that the level before left.

Chen et al. 2022 (arXiv 2202.04736, algorithm 4) tried regrouping inside the loop; refilling inside it makes
every level cheaper to train, because what is dropped is cut out at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import ElementMask, Mask, held_elements
from ticket_export.find.imp import require_no_empty_layer
from ticket_export.find.magnitude import magnitude_mask
from ticket_export.find.refill import remaining_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of magnitude pruning on a network that was cut already.

    Attributes:
        element_mask: what magnitude kept of the weights that are there, in dense numbering.
        shares: group name -> share of the dense width that stays; carried unrounded from level to level, so
            that rounding up a width does not keep it for ever.
    """

    element_mask: ElementMask
    shares: Mapping[str, float]


def prune_round(
    weights: Mapping[str, Tensor],
    names: Collection[str],
    groups: Sequence[ChannelGroup],
    *,
    drop_fraction: float | Mapping[str, float],
    magnitude_scope: str,
    scope: str,
    previous: Mask | None,
    previous_shares: Mapping[str, float],
) -> Round:
    """Return what a round keeps when it drops `drop_fraction` of the weights that are still there.

    Args:
        weights: trained, in dense numbering; what was cut out is anything.
        names: the weights that may be dropped.
        groups: of the dense network.
        drop_fraction: in (0, 1), or one for each name with magnitude scope `layer`.
        magnitude_scope: `global` or `layer`.
        scope: `inner` or `coupled`: the groups that may get narrower.
        previous: the channels that the network has; None = all.
        previous_shares: of the level before; empty before the first.

    Raises:
        ShrinkError: rates or masks do not fit, or nothing is left of a layer.
    """
    alive = _alive(weights, names, groups, previous)
    chosen = {name: weights[name] for name in names}
    mask = magnitude_mask(
        chosen,
        keep_fraction=_keep_fractions(alive, drop_fraction),
        scope=magnitude_scope,
        previous=alive,
    )
    require_no_empty_layer(mask, "this level")
    shares = remaining_shares(mask, groups, scope=scope, alive=alive)
    return Round(
        element_mask=mask,
        shares={name: share * previous_shares.get(name, 1.0) for name, share in shares.items()},
    )


def _alive(
    weights: Mapping[str, Tensor],
    names: Collection[str],
    groups: Sequence[ChannelGroup],
    previous: Mask | None,
) -> ElementMask:
    held = {}
    if previous is not None:
        held = held_elements(groups, previous, {name: tensor.shape for name, tensor in weights.items()})
    whole = {name: torch.ones(weights[name].shape, dtype=torch.bool) for name in names}
    return ElementMask({name: held.get(name, whole[name]) for name in names})


def _keep_fractions(
    alive: ElementMask, drop_fraction: float | Mapping[str, float]
) -> float | dict[str, float]:
    """Return the shares of *all* weights that stay when `drop_fraction` of the living ones goes."""
    if isinstance(drop_fraction, Mapping):
        return {
            name: (1 - drop_fraction[name]) * int(keep.sum()) / keep.numel()
            for name, keep in alive.keep_by_parameter.items()
        }
    return (1 - drop_fraction) * alive.element_density
