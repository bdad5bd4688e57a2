"""Computed weights made permanent: every weight one plain parameter again."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ticket_export.channels.computed import weights_by_module
from ticket_export.channels.trace import Trace
from ticket_export.shrink.equivalence import evaluating


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in which every computed weight is the parameter it computes to; the function is the same.

    `torch.nn.utils.prune` and the older `weight_norm` keep a weight's parts and write the weight before each
    forward, a parametrisation computes it in each forward; channels are then hidden behind a product.
    """
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
        and not value.is_leaf  # torch refuses to copy what has a gradient's history
    }
    plain = copy.deepcopy(model, computed)
    for module in plain.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            _make_plain(module)
    return plain


def make_layers_standard(model: nn.Module, traced: Trace, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """Turn layers that compute their weight from parameters into torch's own, where that changes nothing.

    A weight standardisation hides a zero column behind a mean. The layer with the computed weight is the same
    function; trained further, it is no longer standardised.

    Args:
        model: changed in place.
        traced: its trace.
        inputs: example inputs, to compare each layer's output before and after.

    Returns:
        The paths of the layers that were turned.
    """
    weights = weights_by_module(traced)
    seen = _calls(model, list(weights), inputs) if weights else {}
    turned = []
    for path, weight in weights.items():
        layer = model.get_submodule(path)
        if path not in seen or _standard_class(layer) is None:
            continue
        x, expected = seen[path]
        plain = copy.deepcopy(layer)
        make_standard(plain, weight)
        with torch.no_grad():
            y = plain(x)
        if y.shape == expected.shape and torch.allclose(y, expected, rtol=1e-5, atol=1e-6):
            make_standard(layer, weight)
            turned.append(path)
    return tuple(turned)


def make_standard(layer: nn.Module, weight: Tensor | None = None) -> None:
    """Turn a convolution or linear layer into torch's own class of its kind, in place.

    Args:
        layer: of a subclass; parameters other than weight and bias go.
        weight: takes the place of the parameter; None keeps it.
    """
    plain = _standard_class(layer)
    assert plain is not None, f"{type(layer).__name__} is no convolution or linear layer"
    layer.__class__ = plain
    for name in [name for name in layer._parameters if name not in {"weight", "bias"}]:
        del layer._parameters[name]
    layer._buffers.clear()
    if weight is not None:
        layer.weight = nn.Parameter(weight.clone())


def _standard_class(layer: nn.Module) -> type[nn.Module] | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return next((kind for kind in kinds if isinstance(layer, kind)), None)


def _calls(
    model: nn.Module, paths: Sequence[str], inputs: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return path -> input and output of the layers that are called with one tensor."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(path: str, given: tuple[object, ...], output: object) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            seen[path] = (given[0].clone(), output.clone())

    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, given, y, path=path: note(path, given, y))
        for path in paths
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _make_plain(module: nn.Module) -> None:
    # torch's own removal takes the property off the class, which a deep copy shares with its original
    names = list(module.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(module, name).detach().clone() for name in names}
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
