"""Parameters and multiply-adds, with a list of what was not counted.

One multiply-add is 1 MAC. Only convolutions, linear layers and matrix products are counted; every other operation
that ran is named in `not_counted`, so that no cost is silently zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.labels import LabelledGraph
from ticket_export.channels.mask import Mask, check_mask
from ticket_export.channels.trace import concrete_shape, example_tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one network costs.

    Attributes:
        params: number of parameter elements, shared ones once.
        macs: multiply-adds for one image.
        not_counted: operation -> number of calls that `macs` leaves out.
    """

    params: int
    macs: int
    not_counted: Mapping[str, int]


def count_costs(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> Costs:
    """Return the costs of one forward pass over a single image, in evaluation mode.

    Args:
        model: the network; its training mode is restored.
        example_inputs: a tensor or a tuple of tensors; only the first image of the batch is used.
    """
    inputs = tuple(x[:1] for x in example_tuple(example_inputs))
    was_training = {module: module.training for module in model.modules()}
    counter = _MacCounter()
    try:
        with torch.no_grad(), counter:
            model.eval()(*inputs)
    finally:
        for module, training in was_training.items():
            module.training = training
    params = sum(parameter.numel() for parameter in model.parameters())
    return Costs(params=params, macs=counter.macs, not_counted=dict(counter.not_counted))


class _MacCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.not_counted: Counter[str] = Counter()

    def __torch_dispatch__(  # type: ignore[no-untyped-def]  # the signature is torch's
        self, func, types, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        if name in {"convolution", "mkldnn_convolution"}:
            weight, is_transposed = args[1], len(args) > 6 and args[6] is True
            positions = args[0].shape[2:] if is_transposed else result.shape[2:]
            self.macs += result.shape[0] * math.prod(positions) * weight.numel()
        elif name in {"mm", "bmm", "addmm", "baddbmm"}:
            left = args[1] if name in {"addmm", "baddbmm"} else args[0]
            self.macs += result.numel() * left.shape[-1]
        elif "scaled_dot_product" in name:
            query, key, value = args[:3]
            pairs = math.prod(query.shape[:-1]) * key.shape[-2]
            self.macs += pairs * (query.shape[-1] + value.shape[-1])
        elif not func.is_view:
            self.not_counted[name] += 1
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCosts:
    """Costs of any mask of one traced network, without building the small network.

    Attributes:
        groups: the channel groups of the network.
        shapes: parameter name -> shape.
        macs_by_weight: weight name -> MACs of one image through the dense layer, all its uses together.
    """

    groups: Sequence[ChannelGroup]
    shapes: Mapping[str, tuple[int, ...]]
    macs_by_weight: Mapping[str, int]

    def params(self, mask: Mask) -> int:
        """Return the parameter count of the network that `mask` leaves."""
        return sum(math.prod(shape) for shape in self._kept_shapes(mask).values())

    def macs(self, mask: Mask) -> int:
        """Return the MACs of one image through the network that `mask` leaves."""
        kept = self._kept_shapes(mask)
        return sum(
            macs * math.prod(kept[name]) // math.prod(self.shapes[name])
            for name, macs in self.macs_by_weight.items()
        )

    def _kept_shapes(self, mask: Mask) -> dict[str, list[int]]:
        check_mask(self.groups, mask)
        kept = {name: list(shape) for name, shape in self.shapes.items()}
        for group in self.groups:
            keep_C = mask.keep_by_group.get(group.name)
            if keep_C is None:
                continue
            for member in group.members:
                if member.tensor in kept:
                    kept[member.tensor][member.axis] -= int((~keep_C).sum()) * member.indices.shape[1]
        return kept


def mask_costs(graph: LabelledGraph, groups: Sequence[ChannelGroup]) -> MaskCosts:
    """Return the cost table of a labelled graph: exact for convolutions and linear layers."""
    module = graph.trace.module
    macs: dict[str, int] = {}
    for node in module.graph.nodes:
        weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
        name = str(getattr(node.target, "__name__", ""))
        if isinstance(weight, Node) and weight.op == "get_attr" and name.startswith(("conv", "linear")):
            shape, batch = concrete_shape(node), graph.trace.inputs[0].shape[0]
            tensor = graph.trace.tensor(str(weight.target))
            if name.startswith("linear"):
                positions = math.prod(shape[:-1])
            elif name.startswith("conv_transpose"):
                source = node.args[0]
                assert isinstance(source, Node)
                positions = math.prod((shape[0], *concrete_shape(source)[2:]))
            else:
                positions = math.prod((shape[0], *shape[2:]))
            macs[str(weight.target)] = macs.get(str(weight.target), 0) + positions * tensor.numel() // batch
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    return MaskCosts(groups=groups, shapes=shapes, macs_by_weight=macs)
