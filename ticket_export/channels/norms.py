"""Norms and softmaxes, in both passes.

A BatchNorm and an InstanceNorm treat every channel by itself. A softmax, a LayerNorm and each group of a
GroupNorm compute every output from all elements of a slice: the slice goes as a whole, and is constant only
as a whole; where it holds all channels there are, they stay.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.classes import ChannelClasses
from ticket_export.channels.compact import aligned_cores, along, compact, core
from ticket_export.channels.known import Known, all_tainted


def mixed_axes(node: Node, num_axes: int) -> list[int]:
    """Return the axes over which a softmax or LayerNorm works."""
    if ops.op_name(node) in ops.SOFTMAXES:
        return [axis % num_axes for axis in ops.numbers(ops.argument(node, "dim"))]
    return list(range(num_axes - len(ops.argument(node, "normalized_shape")), num_axes))


def label_mixer(
    classes: ChannelClasses, node: Node, labels: Tensor, parameter: Callable[[Node], Tensor]
) -> Tensor:
    """Return the labels of a softmax, LayerNorm, RMSNorm or GroupNorm.

    Args:
        classes: the classes to unite and pin in.
        node: the operation.
        labels: of its input.
        parameter: node of a weight or bias -> its labels.
    """
    name = ops.op_name(node)
    if name == "group_norm":
        line = classes.collapse(labels, axis=1)
        num_groups = int(ops.argument(node, "num_groups"))
        grouped = compact(line.reshape(num_groups, -1))
        line = classes.roots(classes.mix(grouped, [1], f"{name} mixes its channels").reshape(-1))
        labels = along(line, 1, labels.dim()).expand(labels.shape)
        first_axis = 1
    else:
        labels = classes.mix(labels, mixed_axes(node, labels.dim()), f"{name} mixes its channels")
        first_axis = None
    for argument in node.args[1:]:
        if isinstance(argument, Node) and argument.op == "get_attr":
            leaf = parameter(argument)
            start = labels.dim() - leaf.dim() if first_axis is None else first_axis
            classes.unite(along(leaf, start, labels.dim()), labels)
    return classes.roots(labels)


def known_mixer(node: Node, source: Known, parameter: Callable[[Node], Known]) -> Known:
    """Return the known values of a LayerNorm, RMSNorm or GroupNorm.

    A slice that depends on the input anywhere depends on it everywhere, except where a weight of zero leaves
    the bias.
    """
    name = ops.op_name(node)
    taint = _slice_taint(node, source)
    weight = ops.argument(node, "weight")
    bias = ops.argument(node, "bias") if name in {"layer_norm", "group_norm"} else None
    value = _value(node, source.value)
    if isinstance(weight, Node):
        axis = 1 if name == "group_norm" else source.value.dim() - parameter(weight).value.dim()
        scale = along(parameter(weight).value, axis, source.value.dim())
        shift = torch.zeros(()) if bias is None else along(parameter(bias).value, axis, source.value.dim())
        (value, taint, scale, shift), shape = aligned_cores([value, taint, scale, shift])
        return Known.of((value * scale + shift).expand(shape), (taint & (scale != 0)).expand(shape))
    return Known.of(value, taint)


def known_batch_norm(
    node: Node, source: Known, parameter: Callable[[Node], Known]
) -> Known | tuple[Known, ...]:
    """Return the known values of a BatchNorm on its running statistics; gamma exactly zero leaves beta."""
    weight, bias, mean, variance = (
        along(parameter(n).value, 1, source.value.dim()) if isinstance(n, Node) else None
        for n in node.args[1:5]
    )
    epsilon = node.args[-1]
    assert isinstance(epsilon, float)
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + epsilon) * (1.0 if weight is None else weight)
    shift = torch.zeros(()) if bias is None else bias
    (value, taint, scale, shift, mean), shape = aligned_cores(
        [source.value, source.taint, scale, shift, mean]
    )
    known = Known.of(((value - mean) * scale + shift).expand(shape), (taint & (scale != 0)).expand(shape))
    nothing = all_tainted(torch.Size([0]))
    return (known, nothing, nothing) if isinstance(node.meta["val"], tuple | list) else known


def known_instance_norm(node: Node, source: Known, parameter: Callable[[Node], Known]) -> Known:
    """Return the known values of an InstanceNorm: a channel equal everywhere is its own mean, so its bias."""
    taint, value = core(source.taint), core(source.value)
    for axis in range(2, taint.dim()):
        taint = taint.any(dim=axis, keepdim=True)
    for axis in range(2, value.dim()):
        taint = taint | (value != value.narrow(axis, 0, 1)).any(dim=axis, keepdim=True)
    if not ops.argument(node, "use_input_stats"):
        taint = torch.ones_like(taint)
    weight, bias = ops.argument(node, "weight"), ops.argument(node, "bias")
    num_axes = source.value.dim()
    scale = torch.ones(()) if weight is None else along(parameter(weight).value, 1, num_axes)
    shift = torch.zeros(()) if bias is None else along(parameter(bias).value, 1, num_axes)
    return Known.of(shift.expand(source.value.shape), taint & (scale != 0))


def _slice_taint(node: Node, source: Known) -> Tensor:
    taint = core(source.taint)
    if ops.op_name(node) != "group_norm":
        for axis in mixed_axes(node, taint.dim()):
            taint = taint.any(dim=axis, keepdim=True)
        return taint.expand(source.taint.shape)
    shape = source.taint.shape
    value = core(source.value)
    for axis in range(2, value.dim()):  # the mean over places would change with the resolution
        taint = taint | (value != value.narrow(axis, 0, 1)).any(dim=axis, keepdim=True)
    line = taint.expand(taint.shape[0], shape[1], *taint.shape[2:])
    rows = line.reshape(taint.shape[0], int(ops.argument(node, "num_groups")), -1).any(dim=2, keepdim=True)
    rows = rows.expand(-1, -1, shape[1] // rows.shape[1]).reshape(taint.shape[0], shape[1])
    return along(rows, 0, len(shape)).expand(shape)


def _value(node: Node, value: Tensor) -> Tensor:
    """Return the normalised value without weight and bias."""
    functional = torch.nn.functional
    name = ops.op_name(node)
    epsilon = ops.argument(node, "eps")
    if name == "group_norm":
        return functional.group_norm(value, int(ops.argument(node, "num_groups")), eps=epsilon)
    shape = list(ops.argument(node, "normalized_shape"))
    if name == "rms_norm":
        return functional.rms_norm(value, shape, eps=epsilon)
    return functional.layer_norm(value, shape, eps=epsilon)
