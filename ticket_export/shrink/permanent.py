"""Masks and parametrisations made permanent: every weight one plain parameter again."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import parametrize, prune


def with_plain_parameters(model: nn.Module) -> nn.Module:
    """Return the model itself, or a copy in which every computed weight is the parameter it computes to.

    `torch.nn.utils.prune` keeps `weight_orig` and a mask, a parametrisation computes the weight in each
    forward; channels are then hidden behind a product. The function is unchanged.
    """
    if not any(_is_computed(module) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for module in plain.modules():
        for name in _pruned_names(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
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


def _is_computed(module: nn.Module) -> bool:
    return bool(_pruned_names(module)) or parametrize.is_parametrized(module)


def _pruned_names(module: nn.Module) -> list[str]:
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
