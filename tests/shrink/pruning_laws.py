"""Ways in which a pruned network holds zeros, for the tests and the coverage table of the shrink."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

# N images, C channels, H W pixels

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def _half(count: int, generator: Generator) -> Tensor:
    drop = torch.zeros(count, dtype=torch.bool)
    drop[torch.randperm(count, generator=generator)[: count // 2]] = True
    return drop


def _weights(net: nn.Module) -> list[Tensor]:
    """Weights of layers, [out, in, ...]: packed q, k and v are three layers in one tensor."""
    found = []
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d):
            found.append(module.weight.transpose(0, 1))
        elif isinstance(module, LAYERS):
            found.append(module.weight)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found.append(module.in_proj_weight)
    return found


def _inner(net: nn.Module) -> list[Tensor]:
    """All weights but the last, whose rows are the output."""
    return _weights(net)[:-1]


def zero_rows(net: nn.Module, generator: Generator) -> None:
    for weight in _inner(net):
        weight[_half(len(weight), generator)] = 0.0


def zero_gammas(net: nn.Module, generator: Generator) -> None:
    for norm in (module for module in net.modules() if isinstance(module, NORMS)):
        if norm.weight is not None:
            axis = norm.weight.dim() - 1  # a LayerNorm over several axes: its last one
            norm.weight.index_fill_(axis, _half(norm.weight.shape[axis], generator).nonzero()[:, 0], 0.0)


def zero_rows_and_gammas(net: nn.Module, generator: Generator) -> None:
    zero_rows(net, generator)
    zero_gammas(net, generator)


def zero_columns(net: nn.Module, generator: Generator) -> None:
    for weight in _weights(net):
        if weight.shape[1] > 3:
            weight[:, _half(weight.shape[1], generator)] = 0.0


def zero_a_layer(net: nn.Module, generator: Generator) -> None:
    weights = _inner(net)
    weights[int(torch.randint(len(weights), (1,), generator=generator))].zero_()


def leave_one_channel(net: nn.Module, generator: Generator) -> None:
    for weight in _inner(net):
        weight[1:] = 0.0


def zero_elements(net: nn.Module, generator: Generator) -> None:
    for weight in _inner(net):
        weight[torch.rand(weight.shape, generator=generator) < 0.9] = 0.0


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


# networks of any kind, as if they had been trained, pruned and trained a little more


def pruned_as_trained(
    net: nn.Module, x: Tensor, law: str, *, with_biases: bool = True, seed: int = 0
) -> nn.Module:
    """Apply one law in place to a network in which every tensor has something to say.

    Freshly built networks hide mistakes: biases are zero, layer scales 1e-6, heads and last gammas zero. Here
    each of those is drawn anew. After the zeros, running statistics become those of `x`, moved at random, so
    that the signal reaches the output however deep the network is.

    Args:
        net: any module; BatchNorm needs at least two images.
        x: [N, ...], a batch for the statistics.
        law: a key of LAWS.
        with_biases: False sets every bias, beta and running mean to zero.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _draw_trivial(net.eval(), generator)
        LAWS[law](net, generator)
        if not with_biases:
            for name, parameter in net.named_parameters():
                if name.endswith(("bias", "beta")):
                    parameter.zero_()
        _set_statistics(net, x, generator, with_means=with_biases)
    return net


def _draw_trivial(net: nn.Module, generator: Generator) -> None:
    """Draw every parameter anew that holds one single value: zeros, ones, 1e-6."""
    layer_weights = {id(module.weight) for module in net.modules() if isinstance(module, LAYERS)}
    for parameter in net.parameters():
        if not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        first = parameter.flatten()[0]
        if not bool((parameter == first).all()):
            continue
        if id(parameter) in layer_weights:
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
        elif first == 0 and parameter.numel() > 1:
            # mostly above zero: a deep chain of activations that cut half away amplifies rounding past 1e-5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.3)
        else:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.5 + 0.25)


def _set_statistics(net: nn.Module, x: Tensor, generator: Generator, *, with_means: bool) -> None:
    with _measuring_statistics(net) as norms:
        net(x)
    for norm in norms:
        shape = norm.running_mean.shape
        deviation = 0.2 * torch.randn(shape, generator=generator).to(x.dtype)
        factor = (torch.rand(shape, generator=generator) + 0.5).to(x.dtype)
        moment = norm.running_var + (0 if with_means else norm.running_mean**2)
        still = moment < 1e-4
        # few images: a channel that hardly moves on them would blow up on others, and rounding with it
        floor = 0.3 * moment[~still].mean() if bool((~still).any()) else 0.0
        norm.running_var.copy_(torch.where(still, factor, moment.clamp_min(floor) * factor))
        if with_means:
            norm.running_mean.add_(deviation * torch.where(still, 1.0, norm.running_var.sqrt()))
        else:
            norm.running_mean.zero_()


@contextmanager
def _measuring_statistics(net: nn.Module) -> Iterator[list[nn.Module]]:
    """Let norms with running statistics take those of the next batch; yield them."""
    norms = [m for m in net.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.training = True
    try:
        yield norms
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False
