"""Block form: convolutions whose zeros leave dense blocks run as small convolutions, with the same function.

Blocks are what Regroup finds (`find/regroup.py`): rows that read the same few input channels. Nothing
but exact zeros is looked at, so networks from elsewhere have a block form too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import groups_from_labels
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.labels import label
from ticket_export.channels.trace import concrete_shape, example_tuple, trace
from ticket_export.errors import DivergedError, ShrinkError
from ticket_export.shrink.block_layers import BlockConv2d, joins_parts
from ticket_export.shrink.block_order import Reorder, reorder_for
from ticket_export.shrink.block_rows import Block, blocks_of_weight
from ticket_export.shrink.block_sites import conv2d_uses, norms_behind, replace_module, why_not_divided
from ticket_export.shrink.equivalence import Trials, check_equal, trials_of
from ticket_export.shrink.exact import FLOAT64_TOLERANCE
from ticket_export.shrink.given import check_given, main_dtype
from ticket_export.shrink.permanent import plain_copy

DENSE, BLOCKS, GROUPED = "dense", "blocks", "grouped"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerForm:
    """How one convolution is executed.

    Attributes:
        form: `dense` (as it was), `blocks` (a convolution for each block) or `grouped` (one for all).
        reason: why it is dense, or how its output comes into order.
        blocks: its weights that are not zero, block by block, in the numbering of the given network.
        macs_dense: multiply-adds for one image of the convolution with its zeros.
        macs: those that are executed.
    """

    form: str
    reason: str
    blocks: tuple[Block, ...]
    macs_dense: int
    macs: int

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks, also of a layer that stays dense."""
        return len(self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """A network in block form.

    Attributes:
        model: the same function; a layer that is not dense is a `BlockConv2d`, and the norm behind it, which
            it computes too, is an Identity.
        layers: path of each two-dimensional convolution that mixes channels -> how it is executed.
        macs: multiply-adds that the network executes for one image; `macs_dense`: those of the given one.
        rel_error: largest max|a-b| / max|b| against the given network over all trial inputs.
    """

    model: nn.Module
    layers: Mapping[str, LayerForm]
    macs: int
    macs_dense: int
    rel_error: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))


def block_form(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    min_rows: int = 16,
    min_saved_fraction: float = 0.1,
    tolerance: float = 1e-5,
) -> BlockForm:
    """Return the same function with dense blocks in place of the convolutions whose zeros allow it.

    Each block reads its input channels and is a small convolution; blocks of equal rows and columns are one
    grouped convolution. The rows are put in the order of the blocks throughout the network where that can be
    (`Reorder`), else the output is reordered by an index. Dead channels are the business of `shrink`, which
    goes before.

    Args:
        model: in float32 or float64; it is never changed. Masks of `torch.nn.utils.prune` are made permanent
            on the copy.
        example_inputs: a tensor or a tuple of tensors as for `torch.export`, axis 0 is the batch.
        min_rows: rows of a block, at least; smaller ones are joined. Blocks of 8 rows that read half of 64
            channels run at 0.73x (0.70-0.77) of the dense convolution, of 16 rows at 1.27x (1.20-1.34): 32x32
            pixels, batch 1, ONNX Runtime 1.32.0 on one thread of a 2-core EPYC, n = 10 rounds
            (benchmarks/results/regroup_forms_ort-cpu_epyc-2core_2026-11.md).
        min_saved_fraction: share of a layer's MACs that its blocks must save, in [0, 1): gathers and joins
            cost time that MACs do not count. A layer that would save nothing stays dense.
        tolerance: allowed max|a-b| / max|b|; at most 1e-9 for a model in float64.

    Raises:
        ShrinkError: the model cannot be traced, holds NaN, or an argument is out of range.
        DivergedError: the block form does not compute the same function.
    """
    if min_rows < 1 or not 0 <= min_saved_fraction < 1:
        raise ShrinkError(
            f"block form with min_rows {min_rows} and min_saved_fraction {min_saved_fraction}",
            hint="rows are at least 1, the fraction is at least 0 and below 1",
        )
    inputs = example_tuple(example_inputs)
    check_given(model, inputs)
    device = inputs[0].device
    dense, inputs = plain_copy(model).cpu(), tuple(x.cpu() for x in inputs)
    if main_dtype(model) == torch.float64:
        tolerance = min(tolerance, FLOAT64_TOLERANCE)
    graph = label(trace(dense, inputs))
    layers = _layers(dense, graph, min_rows, min_saved_fraction)
    trials = trials_of(dense, inputs)
    small, reorder, rel_error = _proven(dense, graph, layers, trials, tolerance)
    return BlockForm(
        model=small.to(device),
        layers={path: _told(path, layer, small, reorder) for path, layer in layers.items()},
        macs=count_costs(small, inputs).macs,
        macs_dense=count_costs(dense, inputs).macs,
        rel_error=rel_error,
    )


def _layers(
    dense: nn.Module, graph: LabelledGraph, min_rows: int, min_saved_fraction: float
) -> dict[str, LayerForm]:
    """Return every two-dimensional convolution of the network with the form that it takes."""
    layers = {}
    for weight, uses in conv2d_uses(graph).items():
        values = dense.get_parameter(weight).detach()
        num_positions = sum(math.prod(concrete_shape(use.node)[2:]) for use in uses)
        macs = num_positions * values.numel()
        reason = why_not_divided(dense, weight, uses[0])
        if reason is None:
            layer = _divided(values, num_positions, min_rows, min_saved_fraction)
        else:
            layer = LayerForm(form=DENSE, reason=reason, blocks=(), macs_dense=macs, macs=macs)
        layers[weight.rpartition(".")[0]] = layer
    return layers


def _divided(weight_OIHW: Tensor, num_positions: int, min_rows: int, min_saved_fraction: float) -> LayerForm:
    blocks = blocks_of_weight(weight_OIHW, min_rows=min_rows)
    weights_in_blocks = sum(len(block.rows) * len(block.columns) for block in blocks)
    macs = num_positions * math.prod(weight_OIHW.shape[2:]) * weights_in_blocks
    macs_dense = num_positions * weight_OIHW.numel()
    shapes = {(len(block.rows), len(block.columns)) for block in blocks}
    form, reason = (GROUPED if len(blocks) > 1 and len(shapes) == 1 else BLOCKS), ""
    if not blocks:
        form, reason = DENSE, "all its weights are zero"
    elif macs == macs_dense:
        form, reason = DENSE, "its blocks hold every row and every input channel"
    elif macs > (1 - min_saved_fraction) * macs_dense:
        form = DENSE
        reason = f"its {len(blocks)} blocks would execute {100 * macs / macs_dense:.1f} % of its MACs"
    return LayerForm(
        form=form, reason=reason, blocks=blocks, macs_dense=macs_dense,
        macs=macs_dense if form == DENSE else macs,
    )  # fmt: skip


def _proven(
    dense: nn.Module,
    graph: LabelledGraph,
    layers: Mapping[str, LayerForm],
    trials: Trials,
    tolerance: float,
) -> tuple[nn.Module, Reorder, float]:
    """Return the block form, the order of its channels, and its error.

    Where the network is another one in the blocks' order, channels keep the order that they had.
    """
    wanted = {
        _weight(path): _rows_written(dense, path, layer)
        for path, layer in layers.items()
        if layer.form != DENSE
    }
    reorder = reorder_for(dense, groups_from_labels(graph), wanted)
    small = _built(dense, graph, layers, reorder)
    try:
        return small, reorder, check_equal(small, dense, trials, tolerance=tolerance)
    except DivergedError:
        if not reorder.old_by_new:
            raise
    reorder = Reorder(old_by_new={}, kept=dict.fromkeys(wanted, "the network treats channels by their place"))
    small = _built(dense, graph, layers, reorder)
    return small, reorder, check_equal(small, dense, trials, tolerance=tolerance)


def _rows_written(dense: nn.Module, path: str, layer: LayerForm) -> list[int]:
    """Return the rows of a layer in the order that its blocks write them, rows of zeros last."""
    rows = [row for block in layer.blocks for row in block.rows]
    return rows + sorted(set(range(len(dense.get_parameter(_weight(path))))) - set(rows))


def _built(
    dense: nn.Module, graph: LabelledGraph, layers: Mapping[str, LayerForm], reorder: Reorder
) -> nn.Module:
    small = copy.deepcopy(dense)
    reorder.apply(small)
    norms = norms_behind(small, graph)
    for path, layer in layers.items():
        if layer.form == DENSE:
            continue
        conv = small.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        weight = _weight(path)
        blocks = [
            Block(
                rows=reorder.new_positions(weight, 0, block.rows),
                columns=reorder.new_positions(weight, 1, block.columns),
            )
            for block in layer.blocks
        ]
        norm = norms.get(weight) if joins_parts(conv, blocks, is_grouped=layer.form == GROUPED) else None
        replace_module(small, conv, BlockConv2d(conv, blocks, is_grouped=layer.form == GROUPED, norm=norm))
        if norm is not None:
            replace_module(small, norm, nn.Identity())
    return small


def _told(path: str, layer: LayerForm, small: nn.Module, reorder: Reorder) -> LayerForm:
    """Return the layer with the word on how its output comes into order, if it is in blocks."""
    if layer.form == DENSE:
        return layer
    if small.get_submodule(path).place_of_row is None:
        is_moved = (_weight(path), 0) in reorder.old_by_new
        reason = "its channels stand in its blocks' order throughout the network" if is_moved else "as it was"
    else:
        reason = f"its output is put in order by an index: {reorder.kept[_weight(path)]}"
    return replace(layer, reason=reason)


def _weight(path: str) -> str:
    return f"{path}.weight"
