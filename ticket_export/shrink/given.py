"""What a network and its example inputs must be before they can be shrunk; each fault is told by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ticket_export.errors import ShrinkError


def main_dtype(model: nn.Module) -> torch.dtype:
    """Return the type of the model's first parameter of real numbers, float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def check_given(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise unless the model is a network with finite weights in float32 or float64, where its inputs are.

    Raises:
        ShrinkError: naming the tensor, the type or the device.
    """
    if not isinstance(model, nn.Module):
        raise ShrinkError(
            f"the model is a {type(model).__name__}, no torch.nn.Module", hint="wrap it in a module's forward"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ShrinkError(
            f"{type(model).__name__} cannot be traced: it is a ScriptModule",
            hint="give the network that it was made from",
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter):
            raise ShrinkError(
                f"{name!r} is uninitialized: a lazy layer has seen no input", hint="run the network once"
            )
        if tensor.is_meta:
            raise ShrinkError(
                f"{name!r} is on the meta device, which holds no values", hint="load its weights"
            )
    dtype = main_dtype(model)
    if dtype not in (torch.float32, torch.float64):
        raise ShrinkError(
            f"the model is in {dtype}", hint="shrink it in float32 (model.float()) and convert the result"
        )
    for name, tensor in model.state_dict().items():  # a mask of minus infinity is no weight
        if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
            raise ShrinkError(
                f"{name!r} holds a value that is not finite", hint="check the training run or the file"
            )
    device = next(iter(model.parameters()), torch.zeros(())).device
    for position, x in enumerate(inputs):
        if x.device != device:
            raise ShrinkError(f"example_inputs[{position}] is on {x.device}, the model on {device}")
