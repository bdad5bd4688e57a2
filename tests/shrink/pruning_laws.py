"""Ways in which a pruned network holds zeros, for the tests of the shrink."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def _half(count: int, generator: Generator) -> Tensor:
    drop = torch.zeros(count, dtype=torch.bool)
    drop[torch.randperm(count, generator=generator)[: count // 2]] = True
    return drop


def _layers(net: nn.Module) -> list[nn.Module]:
    """All layers but the last, whose rows are the output."""
    return [module for module in net.modules() if isinstance(module, LAYERS)][:-1]


def zero_rows(net: nn.Module, generator: Generator) -> None:
    for layer in _layers(net):
        layer.weight[_half(len(layer.weight), generator)] = 0.0


def zero_gammas(net: nn.Module, generator: Generator) -> None:
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight[_half(len(norm.weight), generator)] = 0.0


def zero_rows_and_gammas(net: nn.Module, generator: Generator) -> None:
    zero_rows(net, generator)
    zero_gammas(net, generator)


def zero_columns(net: nn.Module, generator: Generator) -> None:
    for layer in (module for module in net.modules() if isinstance(module, LAYERS)):
        if layer.weight.shape[1] > 3:
            layer.weight[:, _half(layer.weight.shape[1], generator)] = 0.0


def zero_a_layer(net: nn.Module, generator: Generator) -> None:
    layers = _layers(net)
    layers[int(torch.randint(len(layers), (1,), generator=generator))].weight.zero_()


def leave_one_channel(net: nn.Module, generator: Generator) -> None:
    for layer in _layers(net):
        layer.weight[1:] = 0.0


def zero_elements(net: nn.Module, generator: Generator) -> None:
    for layer in _layers(net):
        layer.weight[torch.rand(layer.weight.shape, generator=generator) < 0.9] = 0.0


def zero_nothing(net: nn.Module, generator: Generator) -> None:
    pass


LAWS: dict[str, Callable[[nn.Module, Generator], None]] = {
    "rows": zero_rows,
    "gammas": zero_gammas,
    "both": zero_rows_and_gammas,
    "columns": zero_columns,
    "layer": zero_a_layer,
    "one_left": leave_one_channel,
    "elements": zero_elements,
    "nothing": zero_nothing,
}


def with_zeros(net: nn.Module, law: str, seed: int = 0) -> nn.Module:
    """Apply one law in place, and non-trivial biases, so that no constant is zero by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3)
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
                module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) + 0.5)
        LAWS[law](net, generator)
    return net.eval()
