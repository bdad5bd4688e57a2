"""Parameters and multiply-adds, with a list of what was not counted.

One multiply-add is 1 MAC. Only convolutions, linear layers and matrix products are counted; every other
operation that ran is named in `not_counted`, so that no cost is silently zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ticket_export.channels.trace import example_tuple


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
        example_inputs: a tensor or a tuple of tensors; one image of the batch is used, or all where the
            forward fixes the batch.
    """
    inputs = example_tuple(example_inputs)
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    has_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused call would hide its products
    try:
        try:
            counter, num_images = _counted(model, tuple(x[:1] for x in inputs)), 1
        except (RuntimeError, ValueError):  # its forward fixes the batch
            counter, num_images = _counted(model, inputs), len(inputs[0])
    finally:
        torch.backends.mha.set_fastpath_enabled(has_fast_path)
        for module, training in was_training.items():
            module.training = training
    params = sum(parameter.numel() for parameter in model.parameters())
    return Costs(params=params, macs=counter.macs // num_images, not_counted=dict(counter.not_counted))


def _counted(model: nn.Module, inputs: Sequence[Tensor]) -> _MacCounter:
    counter = _MacCounter()
    with torch.no_grad(), counter:
        model(*inputs)
    return counter


class _MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
