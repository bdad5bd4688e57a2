"""Where the widths of a network stand: every layer that holds weights, with the groups on both its sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.trace import example_tuple
from ticket_export.errors import ShrinkError

_NO_PRICE = "budgets price Conv2d, Linear and norms; shrink without find.budget, or take another network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Channels on one side of a layer.

    Attributes:
        fixed: elements that stay whatever is chosen; pinned groups count here.
        parts: (group name, elements per channel of the group); several after a concatenation, more than one
            element after a flatten.
    """

    fixed: int
    parts: tuple[tuple[str, int], ...]

    def width(self, kept: Mapping[str, int]) -> int:
        """Return the elements that stay when the groups keep `kept` channels."""
        return self.fixed + sum(elements * kept[group] for group, elements in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSite:
    """One call of a layer that holds weights.

    Attributes:
        name: owner of the weight, like "layer1.0.conv1".
        op: "conv", "linear", or "norm" for all that holds elements per channel: rows alone count there.
        kernel, stride, padding: height, width; (1, 1), (1, 1), (0, 0) where there are none.
        in_size, out_size: height and width of the maps; of a linear layer the positions of one image and 1.
        depthwise: every channel is a group of its own, so that columns is rows.
        has_bias: a bias per row.
        rows, columns: output and input channels.
        owns_weight: False where an earlier site uses the same weight.
    """

    name: str
    op: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    depthwise: bool
    has_bias: bool
    rows: Axis
    columns: Axis
    owns_weight: bool = True

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the names of the groups that decide on its widths, each once, columns first."""
        return tuple(dict.fromkeys(group for group, _ in (*self.columns.parts, *self.rows.parts)))


@dataclass(frozen=True, slots=True)
class _Call:
    path: str
    layer: nn.Conv2d | nn.Linear
    in_shape: torch.Size
    out_shape: torch.Size


def layer_sites(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[LayerSite, ...]:
    """Return a site for every call of a convolution or linear layer, in call order, then those of norms.

    Args:
        model: the dense network; it runs once, in evaluation mode.
        example_inputs: a tensor or a tuple of tensors; one image of the batch is used, or all where the
            forward fixes the batch.
        groups: its channel groups.

    Raises:
        ShrinkError: a convolution has groups and is not depthwise, or a channel group reaches a layer that
            has no price.
    """
    axes = _GroupAxes(model, groups)
    calls, num_images = _calls(model, example_tuple(example_inputs))
    sites: list[LayerSite] = []
    seen: set[int] = set()
    for call in calls:
        sites.append(_layer_site(call, axes, num_images, owns_weight=id(call.layer.weight) not in seen))
        seen.update(id(parameter) for parameter in call.layer.parameters(recurse=False))
    return (*sites, *_per_channel_sites(model, axes, seen))


class _GroupAxes:
    """Which groups own which axes of which parameter."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        ids = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
        self._parts: dict[int, dict[int, list[tuple[str, int]]]] = {}
        self.of_layers: set[int] = set()  # parameters that write or read channels
        for group in groups:
            for member in group.members:
                if group.pinned is None and member.tensor in ids:
                    axes = self._parts.setdefault(ids[member.tensor], {})
                    axes.setdefault(member.axis, []).append((group.name, member.indices.shape[1]))
                    if member.role != "per_channel":
                        self.of_layers.add(ids[member.tensor])
        self._widths = {group.name: group.width for group in groups}

    def of(self, parameter: Tensor, axis: int, length: int) -> Axis:
        parts = tuple(self._parts.get(id(parameter), {}).get(axis, ()))
        whole = Axis(fixed=0, parts=parts).width(self._widths)
        return Axis(fixed=length - whole, parts=parts)

    def decided(self, parameter: Tensor) -> list[int]:
        """Return the axes of a parameter on which a group decides."""
        return sorted(self._parts.get(id(parameter), {}))


def _calls(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[_Call], int]:
    try:
        return _run(model, tuple(x[:1] for x in inputs)), 1
    except (RuntimeError, ValueError):  # its forward fixes the batch
        return _run(model, inputs), len(inputs[0])


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[_Call]:
    calls: list[_Call] = []
    was_training = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(
            lambda layer, given, result, path=path: calls.append(
                _Call(path, layer, given[0].shape, result.shape)
            )
        )
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    model.eval()
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    return calls


def _layer_site(call: _Call, axes: _GroupAxes, num_images: int, *, owns_weight: bool) -> LayerSite:
    layer = call.layer
    num_rows, num_columns = layer.weight.shape[:2]
    rows = axes.of(layer.weight, 0, num_rows)
    columns = axes.of(layer.weight, 1, num_columns)
    if isinstance(layer, nn.Linear):
        positions = (prod(call.in_shape[:-1]) // num_images, 1)
        return LayerSite(
            name=call.path, op="linear", kernel=(1, 1), stride=(1, 1), padding=(0, 0),
            in_size=positions, out_size=positions, depthwise=False, has_bias=layer.bias is not None,
            rows=rows, columns=columns, owns_weight=owns_weight,
        )  # fmt: skip
    is_depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
    if layer.groups > 1 and not is_depthwise:
        raise ShrinkError(
            f"the convolution {call.path!r} has {layer.groups} groups of {num_columns} channels: "
            "its widths have no price",
            hint=_NO_PRICE,
        )
    return LayerSite(
        name=call.path, op="conv", kernel=_pair(layer.kernel_size), stride=_pair(layer.stride),
        padding=_padding(layer), in_size=_pair(call.in_shape[2:]), out_size=_pair(call.out_shape[2:]),
        depthwise=is_depthwise, has_bias=layer.bias is not None,
        rows=rows, columns=rows if is_depthwise else columns, owns_weight=owns_weight,
    )  # fmt: skip


def _per_channel_sites(model: nn.Module, axes: _GroupAxes, seen: set[int]) -> Iterator[LayerSite]:
    """Yield the sites of parameters that no layer call holds: of an owner together where they are alike."""
    for path, owner in model.named_modules():
        alike: dict[tuple[Axis, int], list[str]] = {}
        for name, parameter in owner.named_parameters(recurse=False):
            decided = axes.decided(parameter)
            if id(parameter) in seen or not decided:
                continue
            seen.add(id(parameter))
            full_name = f"{path}.{name}" if path else name
            is_layer = id(parameter) in axes.of_layers or isinstance(owner, _ConvNd | nn.Linear)
            if is_layer or len(decided) > 1:
                raise ShrinkError(
                    f"{full_name!r} of {type(owner).__name__} belongs to channel groups, and its cost is "
                    "not known",
                    hint=_NO_PRICE,
                )
            length = parameter.shape[decided[0]]
            axis = axes.of(parameter, decided[0], length)
            alike.setdefault((axis, parameter.numel() // length), []).append(full_name)
        for (axis, elements), names in alike.items():
            if len(names) == 2:
                yield _per_channel_site(path, axis, elements, has_bias=True)
            else:
                for name in names:
                    yield _per_channel_site(path if len(names) == 1 and path else name, axis, elements)


def _per_channel_site(name: str, axis: Axis, elements: int, *, has_bias: bool = False) -> LayerSite:
    return LayerSite(
        name=name, op="norm", kernel=(elements, 1), stride=(1, 1), padding=(0, 0), in_size=(1, 1),
        out_size=(1, 1), depthwise=True, has_bias=has_bias, rows=axis, columns=axis,
    )  # fmt: skip


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return height, width


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Return the zeros on the top and on the left; what `same` adds is divided as torch divides it."""
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return total[0] // 2, total[1] // 2
    return (0, 0) if isinstance(layer.padding, str) else _pair(layer.padding)
