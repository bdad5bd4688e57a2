"""Module form: the same classes with their tensors sliced on a copy, and their size attributes updated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.shrink.plan import Plan, plan_from_mask


def small_from_mask(model: nn.Module, groups: Sequence[ChannelGroup], mask: Mask) -> nn.Module:
    """Return a copy of `model` with the channels that `mask` drops cut out; kept values are as they were.

    Nothing is folded: this is the network that a ticket is trained as. Same class, same `state_dict` keys.

    Args:
        model: the dense network.
        groups: its channel groups (`channel_groups`).
        mask: which channels stay.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    return model_from_plan(model, plan_from_mask(groups, mask))


def model_from_plan(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, Tensor] | None = None,
    new_biases: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return a copy of `model` in which every tensor is what `plan` keeps of it.

    Args:
        model: the dense network; it is not changed.
        plan: the kept positions.
        tensors: dense-shaped values that replace the model's own.
        new_biases: weight name -> dense bias of a layer that has none.

    Raises:
        ShrinkError: the plan names a tensor that the model does not have, or a position outside it.
    """
    small = copy.deepcopy(model)
    _check_names(small, plan)
    tensors, new_biases = tensors or {}, new_biases or {}
    named = _named_tensors(small)
    new_by_id = {
        id(old): _like(old, plan.sliced(name, tensors.get(name, old.detach())))
        for name, old in named
        if name in plan.kept or name in tensors
    }
    for name, old in named:  # a shared tensor stays shared: the plan knows it by one of its names
        if id(old) in new_by_id:
            _assign(small, name, new_by_id[id(old)])
    for weight in plan.new_biases:
        _add_bias(
            small, weight, None if weight not in new_biases else _kept_rows(small, plan, weight, new_biases)
        )
    for module in small.modules():
        update_sizes(module)
    return small


def update_sizes(module: nn.Module) -> None:
    """Set the size attributes of one layer to the shapes of its tensors."""
    if isinstance(module, _ConvNd):
        rows, columns = module.weight.shape[:2]
        is_transposed = isinstance(module, _ConvTransposeNd)
        if module.groups > 1 and columns == 1 and not is_transposed:
            module.groups = rows  # depthwise: as many groups as channels
        module.out_channels = columns * module.groups if is_transposed else rows
        module.in_channels = rows if is_transposed else columns * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        described = module.weight if module.weight is not None else module.running_mean
        if described is not None:
            module.num_features = len(described)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _check_names(model: nn.Module, plan: Plan) -> None:
    shapes = {name: tensor.shape for name, tensor in _named_tensors(model)}
    for name, axes in plan.kept.items():
        if name not in shapes:
            raise ShrinkError(
                f"the plan cuts {name!r}, which {type(model).__name__} does not have",
                hint="build the dense network that the plan was made for",
            )
        for axis, positions in axes.items():
            if axis >= len(shapes[name]) or (positions and max(positions) >= shapes[name][axis]):
                raise ShrinkError(
                    f"the plan keeps position {max(positions, default=0)} on axis {axis} of {name!r}, "
                    f"whose shape is {tuple(shapes[name])}",
                    hint="build the dense network that the plan was made for",
                )


def _like(old: Tensor, value: Tensor) -> Tensor:
    value = value.detach().to(old.dtype).contiguous().clone()
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if attribute in owner._buffers:
        owner._buffers[attribute] = value
    else:
        setattr(owner, attribute, value)


def _kept_rows(model: nn.Module, plan: Plan, weight: str, new_biases: Mapping[str, Tensor]) -> Tensor:
    owner = model.get_submodule(weight.rpartition(".")[0])
    row_axis = 1 if isinstance(owner, _ConvTransposeNd) else 0
    bias = new_biases[weight]
    positions = plan.kept.get(weight, {}).get(row_axis)
    return bias if positions is None else bias[torch.tensor(positions)]


def _add_bias(model: nn.Module, weight: str, value: Tensor | None) -> None:
    owner = model.get_submodule(weight.rpartition(".")[0])
    if not isinstance(owner, _ConvNd | nn.Linear):
        raise ShrinkError(
            f"{weight!r} needs a bias, which {type(owner).__name__} cannot take",
            hint="give the layer a bias of zeros before shrinking",
        )
    row_axis = 1 if isinstance(owner, _ConvTransposeNd) else 0
    if value is None:
        value = torch.zeros(owner.weight.shape[row_axis])
    owner.bias = nn.Parameter(value.to(owner.weight).contiguous())
