"""Module form: the same classes with their tensors sliced on a copy, and their size attributes updated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ticket_export.channels.branches import drop_empty_branches
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.labelled import LabelledGraph
from ticket_export.channels.mask import Mask
from ticket_export.channels.trace import named_tensors
from ticket_export.errors import ShrinkError
from ticket_export.shrink.equivalence import FORWARD_ERRORS, evaluating
from ticket_export.shrink.fold import FoldedTensors
from ticket_export.shrink.layers import MORE, give_more, live_rows, scatter_from_live
from ticket_export.shrink.plan import Plan, plan_from_mask


def small_from_mask(model: nn.Module, groups: Sequence[ChannelGroup], mask: Mask) -> nn.Module:
    """Return a copy of `model` with the channels that `mask` drops cut out; kept values are as they were.

    Nothing is folded: this is the network that a ticket is trained as. Same class, same `state_dict` keys,
    but for those of branches that the mask empties: they are gone, whatever the values were.

    Args:
        model: the dense network.
        groups: its channel groups (`channel_groups`).
        mask: which channels stay.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    return model_from_plan(model, plan_from_mask(groups, mask))


def model_from_plan(model: nn.Module, plan: Plan, folded: FoldedTensors | None = None) -> nn.Module:
    """Return a copy of `model` in which every tensor is what `plan` keeps of it.

    Args:
        model: the dense network; it is not changed.
        plan: the kept positions.
        folded: dense-shaped values that replace the model's own, biases of layers that have none, and border
            terms; None builds the shapes for weights that are loaded later.

    Raises:
        ShrinkError: the plan names a tensor that the model does not have, or a position outside it.
    """
    small = copy.deepcopy(model)
    _check_names(small, plan)
    tensors = {} if folded is None else folded.tensors
    num_groups = {
        name: plan.groups_of(name, tensor.shape[1])
        for name, tensor in named_tensors(small)
        if name in plan.grouped
    }
    _slice_tensors(small, plan, tensors)
    for weight in plan.new_biases:
        _add_bias(
            small,
            weight,
            None if folded is None else _kept_rows(small, plan, weight, folded.new_biases[weight]),
        )
    for weight in plan.terms:
        _add_term(
            small, weight, None if folded is None else _kept_rows(small, plan, weight, folded.terms[weight])
        )
    for weight, rows in plan.live_rows.items():
        _keep_live_rows(small, weight, rows)
    groups_by_id = {id(_attribute(small, name)): number for name, number in num_groups.items()}
    for module in small.modules():
        update_sizes(module, groups_by_id.get(id(getattr(module, "weight", None))))
    for path, num_channels in plan.bare_norms.items():
        _resize_bare_norm(small.get_submodule(path), num_channels)
    drop_empty_branches(small)
    return small


def live_stream_rows(
    small: nn.Module, graph: LabelledGraph, groups: Sequence[ChannelGroup], round_to: int
) -> dict[str, tuple[int, ...]]:
    """Return for each layer that writes into a residual stream the rows that are not zero.

    Args:
        small: the network after its cut.
        graph: the labels of the dense network.
        groups: its channel groups; a stream is a group with several producers.
        round_to: zero rows stay up to a multiple of this.

    Returns:
        weight name -> positions among the kept rows; layers with no zero row, or with nothing else, are
        absent.
    """
    own = {name for name, _ in named_tensors(small)}  # a branch may be gone
    writers = [member.tensor for group in groups if not group.is_inner for member in group.producers]
    found: dict[str, tuple[int, ...]] = {}
    for weight in dict.fromkeys(writer for writer in writers if writer in own):
        layer = small.get_submodule(weight.rpartition(".")[0])
        is_plain = type(layer) in MORE or type(layer) in MORE.values()
        if not is_plain or graph.trace.layer_of(weight) is None or not _is_zero_padded(layer):
            continue
        lives = live_rows(_layer(small, weight).weight, getattr(layer, "border", None))
        target = min(len(lives), -(-int(lives.sum()) // round_to) * round_to)
        lives |= ~lives & ((~lives).cumsum(0) <= target - int(lives.sum()))
        if lives.any() and not lives.all():
            found[weight] = tuple(torch.nonzero(lives).flatten().tolist())
    return found


def _is_zero_padded(layer: nn.Module) -> bool:
    if not isinstance(layer, _ConvNd):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros"


def _slice_tensors(small: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    named = named_tensors(small)
    new_by_id = {
        id(old): _like(old, plan.sliced(name, tensors.get(name, old.detach())))
        for name, old in named
        if name in plan.kept or name in plan.grouped or name in tensors
    }
    for name, old in named:  # a shared tensor stays shared: the plan knows it by one of its names
        if id(old) in new_by_id:
            _assign(small, name, new_by_id[id(old)])


def update_sizes(module: nn.Module, num_groups: int | None = None) -> None:
    """Set the size attributes of one layer to the shapes of its tensors.

    Args:
        module: any module; layers without such attributes are left as they are.
        num_groups: of a grouped convolution that lost whole groups; None leaves it, except where every
            channel is a group of its own.
    """
    if isinstance(module, _ConvNd):
        rows, columns = module.weight.shape[:2]
        is_transposed = isinstance(module, _ConvTransposeNd)
        if num_groups is not None:
            module.groups = num_groups
        elif module.groups == module.in_channels == module.out_channels and columns == 1:
            module.groups = rows  # depthwise
        scatter = getattr(module, "scatter", None)
        module.out_channels = (
            columns * module.groups if is_transposed else rows if scatter is None else len(scatter)
        )
        module.in_channels = rows if is_transposed else columns * module.groups
    elif isinstance(module, nn.Linear):
        rows, module.in_features = module.weight.shape
        scatter = getattr(module, "scatter", None)
        module.out_features = rows if scatter is None else len(scatter)
    elif isinstance(module, _NormBase):
        described = module.weight if module.weight is not None else module.running_mean
        if described is not None:
            module.num_features = len(described)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        channels_per_group = module.num_channels // module.num_groups
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // channels_per_group
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def resize_bare_norms(small: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Give norms without tensors the width of what they see, in place; nothing else tells it.

    Args:
        small: the module form; its forward need not work to the end.
        inputs: example inputs.

    Returns:
        path of each norm that changed -> its new width.
    """
    norms = {
        path: module
        for path, module in small.named_modules()
        if isinstance(module, _NormBase | nn.GroupNorm) and not [*module.parameters(), *module.buffers()]
    }
    changed: dict[str, int] = {}

    def resize(path: str, given: Sequence[object]) -> None:
        x = next(value for value in given if isinstance(value, Tensor))
        if _num_channels(norms[path]) != x.shape[1]:
            _resize_bare_norm(norms[path], x.shape[1])
            changed[path] = x.shape[1]

    handles = [
        module.register_forward_pre_hook(
            lambda _, given, named, path=path: resize(path, (*given, *named.values())), with_kwargs=True
        )
        for path, module in norms.items()
    ]
    if handles:
        with evaluating(small), torch.no_grad(), suppress(*FORWARD_ERRORS):
            small(*inputs)
    for handle in handles:
        handle.remove()
    return changed


def _num_channels(norm: nn.Module) -> object:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


def _resize_bare_norm(norm: nn.Module, num_channels: int) -> None:
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups = norm.num_groups * num_channels // norm.num_channels
        norm.num_channels = num_channels
    elif isinstance(norm, _NormBase):
        norm.num_features = num_channels


def _check_names(model: nn.Module, plan: Plan) -> None:
    shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
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


def _attribute(model: nn.Module, name: str) -> object:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def _kept_rows(model: nn.Module, plan: Plan, weight: str, values: Tensor) -> Tensor:
    positions = plan.kept.get(weight, {}).get(_row_axis(_layer(model, weight)))
    return values if positions is None else values[torch.tensor(positions)]


def _add_bias(model: nn.Module, weight: str, value: Tensor | None) -> None:
    owner = _layer(model, weight)
    if value is None:
        value = torch.zeros(owner.weight.shape[_row_axis(owner)])
    owner.bias = nn.Parameter(value.to(owner.weight).contiguous())


def _add_term(model: nn.Module, weight: str, value: Tensor | None) -> None:
    owner = _layer(model, weight)
    if value is None:
        value = torch.zeros(owner.weight.shape[0], 1, *owner.weight.shape[2:])
    give_more(owner)
    owner.border = nn.Parameter(value.to(owner.weight).contiguous())


def _keep_live_rows(model: nn.Module, weight: str, rows: Sequence[int]) -> None:
    owner = _layer(model, weight)
    give_more(owner)
    lives = torch.zeros(len(owner.weight), dtype=torch.bool)
    lives[torch.tensor(rows)] = True
    owner.scatter = scatter_from_live(lives).to(owner.weight.device)
    owner.weight = _like(owner.weight, owner.weight[lives])
    border = getattr(owner, "border", None)
    if isinstance(border, Tensor):
        owner.border = _like(border, border[lives])


def _layer(model: nn.Module, weight: str) -> _ConvNd | nn.Linear:
    owner = model.get_submodule(weight.rpartition(".")[0])
    assert isinstance(owner, _ConvNd | nn.Linear), f"{weight} belongs to no convolution or linear layer"
    return owner


def _row_axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _ConvTransposeNd) else 0
