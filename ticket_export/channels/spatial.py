"""Operations that work on every channel by itself along trailing axes: pools, interpolation and pads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.classes import ChannelClasses
from ticket_export.channels.compact import along, compact, core, varying_axes
from ticket_export.channels.known import Known, all_tainted
from ticket_export.channels.trace import concrete_shape, example_shape

# ---------------------------------------------------------------------- labels


def label_pool(classes: ChannelClasses, node: Node, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Return the labels of a pool or an interpolation."""
    first = labels.dim() - ops.POOLS[ops.op_name(node)]
    labels = core(classes.uniform_along(labels, range(first, labels.dim())))
    value = node.meta["val"]
    if isinstance(value, tuple | list):
        return tuple(labels.expand(example_shape(part)) for part in value)
    return labels.expand(concrete_shape(node))


def label_pad(
    classes: ChannelClasses, node: Node, labels: Tensor, amounts: Sequence[object]
) -> Tensor | None:
    """Return the labels of a pad, or None where it copies channels beside themselves.

    Args:
        classes: the classes; zeros put on a channel axis become channels of their own.
        node: the operation.
        labels: of its input.
        amounts: before and after of each axis, from the last backwards.
    """
    for index in range(len(amounts) // 2):
        axis = labels.dim() - 1 - index
        before, after = amounts[2 * index], amounts[2 * index + 1]
        assert isinstance(before, int)
        assert isinstance(after, int)
        if before < 0 or after < 0:
            labels = labels.narrow(axis, max(-before, 0), labels.shape[axis] + min(before, 0) + min(after, 0))
        if ops.pad_mode(node) != "constant" and (before or after) and axis in varying_axes(labels):
            return None
        labels = _padded(classes, labels, axis, max(before, 0), max(after, 0))
    return labels


def _padded(classes: ChannelClasses, labels: Tensor, axis: int, before: int, after: int) -> Tensor:
    if before == after == 0:
        return labels
    shape = list(labels.shape)
    if axis not in varying_axes(labels):
        shape[axis] += before + after
        return labels.narrow(axis, 0, 1).expand(shape)
    # slots on a channel axis are channels of their own: they are zero, and go when nothing joins them
    edges = []
    for amount in (before, after):
        shape[axis] = amount
        edges.append(along(classes.fresh(amount), axis, len(shape)).expand(shape))
    return compact(torch.cat([edges[0], labels, edges[1]], dim=axis))


# ---------------------------------------------------------------------- known values


def known_pool(node: Node, source: Known) -> Known | tuple[Known, ...] | None:
    """Return the known values of a pool or an interpolation, or None where a constant changes over places.

    A constant that is equal along the pooled axes stays what it is, except where counted zeros or a divisor
    of its own enter an average.
    """
    name = ops.op_name(node)
    value, taint = core(source.value), core(source.taint)
    pooled = range(source.value.dim() - ops.POOLS[name], source.value.dim())
    if set(varying_axes(source.value)) & set(pooled):
        return None
    for axis in pooled:
        taint = taint.any(dim=axis, keepdim=True)
    if name.startswith("avg_pool") and not _averages_in_bounds(node):
        taint = taint | (value != 0)
    output = node.meta["val"]
    if isinstance(output, tuple | list):
        shape = example_shape(output[0])
        return (Known.of(value.expand(shape), taint.expand(shape)), all_tainted(shape))
    shape = concrete_shape(node)
    return Known.of(value.expand(shape), taint.expand(shape))


def known_pad(node: Node, source: Known, amounts: object) -> Known | None:
    """Return the known values of a pad; None where it copies what changes along a padded axis."""
    if ops.pad_mode(node) == "constant":
        fill = ops.argument(node, "value") or 0.0
        pad = torch.ops.aten.constant_pad_nd.default
        return Known.of(pad(source.value, amounts, fill), pad(source.taint, amounts, False))
    padded = {source.value.dim() - 1 - index // 2 for index, n in enumerate(ops.numbers(amounts)) if n}
    if padded & {*varying_axes(source.value), *varying_axes(source.taint)}:
        return None
    shape = concrete_shape(node)
    return Known.of(core(source.value).expand(shape), core(source.taint).expand(shape))


def _averages_in_bounds(node: Node) -> bool:
    """Return whether every output of an average pool is the mean of input elements alone."""
    has_own_divisor = ops.argument(node, "divisor_override") is not None
    return not has_own_divisor and not (ops.argument(node, "count_include_pad") and ops.adds_zeros(node))
