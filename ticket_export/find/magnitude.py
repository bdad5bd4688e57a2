"""Element masks by weight magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError

_SCOPES = ("global", "layer")


def magnitude_mask(
    weights: Mapping[str, Tensor],
    *,
    keep_fraction: float | Mapping[str, float],
    scope: str = "global",
    previous: ElementMask | None = None,
) -> ElementMask:
    """Keep exactly `ceil(keep_fraction * n)` of the n weights: those of the largest magnitude.

    Of equal magnitudes the first in the order of `weights`, then in memory order, are kept. A weight that
    `previous` dropped stays dropped; where fewer than that number are left, all of them are kept.
    Source: arXiv 1803.03635, section 2 (per layer) and appendix I (global).

    Args:
        weights: parameter name -> tensor; only what may be pruned (see `imp.prunable_weights`).
        keep_fraction: share of all weights, dropped ones included, that remain, in (0, 1]; with scope `layer`
            also one for each parameter.
        scope: `global` ranks the weights of all parameters together, `layer` each parameter's own.
        previous: the mask of the round before, over the same parameters.

    Raises:
        ShrinkError: the fraction or scope is out of range, a weight is not finite, or `previous` does not
            fit.
    """
    if scope not in _SCOPES:
        raise ShrinkError(f"the magnitude scope is {scope!r}", hint=f"it may be {' or '.join(_SCOPES)}")
    if not weights:
        raise ShrinkError("there are no weights to prune")
    fractions = {
        name: keep_fraction[name] if isinstance(keep_fraction, Mapping) else keep_fraction for name in weights
    }
    for name, fraction in fractions.items():
        if not 0 < fraction <= 1:
            raise ShrinkError(
                f"keep_fraction is {fraction} for {name!r}", hint="it must be above 0 and at most 1"
            )
    ranked = {name: _ranked(name, weight, previous) for name, weight in weights.items()}
    if scope == "layer":
        kept = {name: _largest(rank, fractions[name]) for name, rank in ranked.items()}
    elif isinstance(keep_fraction, Mapping):
        raise ShrinkError("one keep_fraction per parameter needs the magnitude scope 'layer', not 'global'")
    else:
        parts = torch.split(
            _largest(torch.cat(list(ranked.values())), keep_fraction),
            [len(rank) for rank in ranked.values()],
        )
        kept = dict(zip(ranked, parts, strict=True))
    return ElementMask({name: keep.view(weights[name].shape) for name, keep in kept.items()})


def _ranked(name: str, weight: Tensor, previous: ElementMask | None) -> Tensor:
    """Return the magnitudes as a vector, -1 where the weight is dropped already."""
    if not torch.isfinite(weight).all():
        raise ShrinkError(f"weight {name!r} holds values that are not finite", hint="its training diverged")
    magnitude = weight.detach().cpu().abs().flatten()
    if previous is None:
        return magnitude
    keep = previous.keep_by_parameter.get(name)
    if keep is None or keep.shape != weight.shape:
        shape = None if keep is None else tuple(keep.shape)
        raise ShrinkError(f"the previous mask has {shape} for {name!r}, the weight is {tuple(weight.shape)}")
    return magnitude.masked_fill(~keep.flatten(), -1.0)


def _largest(rank: Tensor, keep_fraction: float) -> Tensor:
    # 0.8 ** 2 * 100 is 64.00000000000001: rounding noise must not keep one weight more
    num_keep = math.ceil(keep_fraction * len(rank) - 1e-6)
    num_keep = min(num_keep, int((rank >= 0).sum()))
    if num_keep == 0:
        return torch.zeros(len(rank), dtype=torch.bool)
    threshold = torch.kthvalue(rank, len(rank) - num_keep + 1).values
    keep = rank > threshold
    ties = (rank == threshold).nonzero().flatten()
    keep[ties[: num_keep - int(keep.sum())]] = True
    return keep
