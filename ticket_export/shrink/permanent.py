"""Masks and parametrisations made permanent: every weight one plain parameter again."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


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


def _make_plain(module: nn.Module) -> None:
    # torch's own removal takes the property off the class, which a deep copy shares with its original
    names = list(module.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(module, name).detach().clone() for name in names}
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
