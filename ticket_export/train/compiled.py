"""A network's forward and backward pass through torch.compile."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING

import torch

from ticket_export.errors import MissingDependency
from ticket_export.runtime.offers import offer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


def compiled(net: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that calls `net` compiled; the module, its weights and their names stay as they are.

    The first call compiles, which takes a minute or so; batches are of one shape, so there is no second.

    Raises:
        MissingDependency: what builds the kernels is missing.
    """
    commands = offer("torch-compile", has_gpu=device.type != "cpu").commands
    if commands:
        raise MissingDependency(
            f"train.compile needs what builds kernels for {device.type}, and it is missing here",
            hint=f"{'; '.join(commands)}; or set train.compile to false",
        )

    def forward(x_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = net(x_NCHW)
        return logits_NK

    # TorchDynamo keeps what it compiled by code object and gives up after eight entries: the trainings of one
    # process would share them
    own = FunctionType(
        forward.__code__.replace(), forward.__globals__, forward.__name__, None, forward.__closure__
    )
    call: Callable[[Tensor], Tensor] = torch.compile(own, dynamic=False)
    return call
