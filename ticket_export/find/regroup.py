"""Regroup: dense blocks of rows and columns from an element mask.

Source: Chen et al. 2022 (arXiv 2202.04736), algorithm 3. There a hypergraph partitioner, hMETIS, clusters the
rows of a layer, a column joins a block when enough of its weights survive in the cluster, and four thresholds
(t1, t2, b1, b2) that are not printed decide what is a block. hMETIS is closed, so here the clusters come from
balanced k-means (`clusters.py`); and instead of thresholds every cluster keeps the budget that magnitude
pruning left it, as Refill does with rows: `k = ceil(remaining fraction * columns)` columns, those whose
surviving weights have the largest l1 norm. A layer without a block stays whole and is named with the reason;
the paper's code leaves it unstructured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError
from ticket_export.find.clusters import balanced_clusters
from ticket_export.find.imp import prunable_weights
from ticket_export.seeds import seed_from_path
from ticket_export.shrink.block_rows import Block

# O I output and input channels

COLUMNS = ("channels", "taps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrouped:
    """An element mask that is nothing but dense blocks, or whole, in every layer.

    Attributes:
        element_mask: True inside the blocks; all True in the layers of `no_block`.
        blocks: weight -> its blocks, in the order of their first rows.
        no_block: weight -> why it has no block and stays whole.
        columns: what a block's columns are: `channels` (input channels with all kernel taps) or `taps`
            (positions in the flattened rows [I * kh * kw]).
    """

    element_mask: ElementMask
    blocks: Mapping[str, tuple[Block, ...]]
    no_block: Mapping[str, str]
    columns: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", MappingProxyType(dict(self.blocks)))
        object.__setattr__(self, "no_block", MappingProxyType(dict(self.no_block)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    num_groups: int
    min_rows: int
    columns: str
    equal_blocks: bool
    extra_fraction: float
    round_to: int


def require_regroupable(model: nn.Module, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the weights among `names` that Regroup makes blocks of: those of Conv2d layers, in module order.

    Args:
        model: the dense network.
        names: what magnitude pruning may drop; None for `prunable_weights(model)`.

    Raises:
        ShrinkError: one of them belongs to a grouped or depthwise convolution, or none to a convolution.
    """
    names = prunable_weights(model) if names is None else names
    found = []
    for path, module in model.named_modules():
        weight = f"{path}.weight" if path else "weight"
        if not isinstance(module, nn.Conv2d) or weight not in names:
            continue
        if module.groups != 1:
            raise ShrinkError(
                f"regroup cannot make blocks of {path!r}: it has {module.groups} groups, so its rows share "
                "no input channels",
                hint="leave its weight unpruned, or take refill",
            )
        found.append(weight)
    if not found:
        raise ShrinkError(
            f"{type(model).__name__} has no two-dimensional convolution to regroup", hint="take imp or refill"
        )
    return tuple(found)


def regroup(
    element_mask: ElementMask,
    weights: Mapping[str, Tensor],
    layers: Collection[str],
    *,
    num_groups: int,
    min_rows: int,
    columns: str = "channels",
    equal_blocks: bool = False,
    extra_fraction: float = 0.0,
    round_to: int = 1,
    seed: int,
) -> Regrouped:
    """Return the union of dense row x column blocks that keeps each layer's budget.

    The rows of a layer that keep any weight are clustered into `min(num_groups, rows // min_rows)` clusters
    whose sizes differ by at most one. A cluster keeps `k = ceil(remaining fraction * columns)` columns, at
    least 1: those whose surviving weights have the largest l1 norm over its rows; of equal ones the first.
    Rows without a surviving weight are dropped, except the first ones where they fill a cluster up to
    `min_rows` or to equal size.

    Args:
        element_mask: what magnitude pruning kept.
        weights: the trained weights it was taken from.
        layers: the weights to make blocks of (`require_regroupable`); all others of the mask stay whole.
        num_groups: clusters of a layer, at most.
        min_rows: rows of a cluster, at least; a layer with fewer stays whole.
        columns: `channels` keeps or drops an input channel with all its kernel taps, `taps` each tap alone.
        equal_blocks: all blocks of a layer have as many rows and columns: k is the layer's, and where the
            rows do not divide there are fewer clusters.
        extra_fraction: share of the dropped columns that is kept beside, as in Refill+.
        round_to: k is rounded up to a multiple of it, capped by the number of columns.
        seed: of the clusters; each layer has its own stream, so that one more shifts no other.

    Raises:
        ShrinkError: an argument is out of range, or mask, weights and layers do not fit.
    """
    options = _Options(
        num_groups=num_groups, min_rows=min_rows, columns=columns, equal_blocks=equal_blocks,
        extra_fraction=extra_fraction, round_to=round_to,
    )  # fmt: skip
    _check_options(options)
    kept: dict[str, Tensor] = {}
    blocks, no_block = dict[str, tuple[Block, ...]](), dict[str, str]()
    for name, keep in element_mask.keep_by_parameter.items():
        kept[name] = torch.ones_like(keep)
        if name not in layers:
            no_block[name] = "it is no two-dimensional convolution"
            continue
        weight = _weight(name, keep, weights)
        if len(keep) < min_rows:
            no_block[name] = f"it has {len(keep)} rows, fewer than min_rows {min_rows}"
            continue
        found = _blocks(keep, weight, options, seed_from_path(seed, "regroup", name) % 2**32)
        filled = _filled(found, keep, options)
        if filled.all():
            no_block[name] = "its blocks would keep every weight"
        else:
            kept[name], blocks[name] = filled, found
    return Regrouped(element_mask=ElementMask(kept), blocks=blocks, no_block=no_block, columns=columns)


def _check_options(options: _Options) -> None:
    for name in ("num_groups", "min_rows", "round_to"):
        if getattr(options, name) < 1:
            raise ShrinkError(
                f"the {name} of regroup is {getattr(options, name)}", hint="it must be at least 1"
            )
    if options.columns not in COLUMNS:
        raise ShrinkError(
            f"the columns of regroup are {options.columns!r}", hint=f"they may be {' or '.join(COLUMNS)}"
        )
    if not 0 <= options.extra_fraction < 1:
        raise ShrinkError(
            f"the extra_fraction of regroup is {options.extra_fraction}",
            hint="it must be at least 0 and below 1",
        )


def _weight(name: str, keep: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    if name not in weights:
        raise ShrinkError(f"regroup needs the weight {name!r}, which is not among the {len(weights)} given")
    weight = weights[name].detach().cpu()
    if weight.dim() != 4 or keep.shape != weight.shape:
        raise ShrinkError(
            f"regroup of {name!r}: the element mask is {tuple(keep.shape)}, the weight "
            f"{tuple(weight.shape)}; both must be [O, I, kh, kw]"
        )
    return weight


def _as_columns(tensor: Tensor, options: _Options) -> Tensor:
    """Return [O, columns, weights of a column]."""
    return tensor.flatten(2) if options.columns == "channels" else tensor.flatten(1).unsqueeze(2)


def _blocks(keep: Tensor, weight: Tensor, options: _Options, seed: int) -> tuple[Block, ...]:
    surviving = _as_columns(keep, options)
    num_columns, column_size = surviving.shape[1:]
    count_OC = surviving.sum(dim=2)
    score_OC = (_as_columns(weight.double().abs(), options) * surviving).sum(dim=2)
    rows, num_groups = _clustered_rows(count_OC.any(dim=1), options)
    blocks = []
    for cluster in balanced_clusters(count_OC[rows], num_groups, seed=seed):
        own = rows[cluster]
        shared = rows if options.equal_blocks else own  # whose remaining fraction tells k
        num_kept = _num_columns(int(count_OC[shared].sum()), len(shared) * column_size, num_columns, options)
        order = torch.sort(score_OC[own].sum(dim=0), descending=True, stable=True).indices
        columns = order[:num_kept].sort().values
        blocks.append(Block(rows=tuple(own.tolist()), columns=tuple(columns.tolist())))
    return tuple(blocks)


def _clustered_rows(lives_O: Tensor, options: _Options) -> tuple[Tensor, int]:
    """Return the rows that join a cluster, ascending, and the number of clusters.

    Those are the rows with a weight, and the first of the others up to `min_rows`, or up to equal clusters.
    """
    num_rows = max(int(lives_O.sum()), options.min_rows)
    num_groups = min(options.num_groups, num_rows // options.min_rows)
    if options.equal_blocks:
        while -(-num_rows // num_groups) * num_groups > len(lives_O):
            num_groups -= 1
        num_rows = -(-num_rows // num_groups) * num_groups
    order = torch.sort(lives_O, descending=True, stable=True).indices
    return order[:num_rows].sort().values, num_groups


def _num_columns(surviving: int, weights_per_column: int, num_columns: int, options: _Options) -> int:
    """Return k; the remaining fraction times the number of columns is `surviving / weights_per_column`."""
    budget = surviving / weights_per_column
    budget += options.extra_fraction * (num_columns - budget)
    num_kept = max(1, math.ceil(budget - 1e-6))  # rounding noise must not keep one column more
    return min(num_columns, -(-num_kept // options.round_to) * options.round_to)


def _filled(blocks: Collection[Block], keep: Tensor, options: _Options) -> Tensor:
    filled = torch.zeros(_as_columns(keep, options).shape, dtype=torch.bool)
    for block in blocks:
        rows, columns = torch.tensor(block.rows), torch.tensor(block.columns)
        filled[rows.unsqueeze(1), columns] = True
    return filled.view(keep.shape)
