"""Sites: every layer that multiplies, with the channel groups that decide how wide it is.

What a network of any widths costs is a sum over its sites: each reads one width and writes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.trace import example_tuple
from ticket_export.errors import ShrinkError

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The channels on one side of a layer.

    Attributes:
        fixed: elements that always stay.
        parts: (group name, elements per channel of the group); several after a concatenation.
    """

    fixed: int
    parts: tuple[tuple[str, int], ...]

    def width(self, kept: Mapping[str, int]) -> int:
        """Return the elements that stay when each group keeps as many channels as `kept` says."""
        return self.fixed + sum(per_channel * kept[group] for group, per_channel in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSite:
    """One layer at one place of the network.

    Attributes:
        name: the module that owns the weight, e.g. "layer1.0.conv1"; it stands twice where it runs twice.
        op: "conv", "linear" or "norm"; norms cost weights alone, and only their rows count.
        kernel: height and width of the kernel; (1, 1) for linear layers and norms.
        stride: of the kernel.
        padding: on each side.
        in_size: height and width of the input; (1, 1) for linear layers and norms.
        out_size: height and width of the output, or (1, positions) of a linear layer.
        depthwise: each channel is convolved alone; `columns` are the `rows`.
        has_bias: one more weight per row.
        is_repeated: its weights are those of an earlier site.
        rows: output channels.
        columns: input channels.
    """

    name: str
    op: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    depthwise: bool = False
    has_bias: bool = False
    is_repeated: bool = False
    rows: Axis
    columns: Axis


def layer_sites(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[LayerSite, ...]:
    """Return a site per call of a convolution or linear layer, in the order they run, and one per norm.

    Args:
        model: the dense network; its mode is restored.
        example_inputs: as of `channel_groups`.
        groups: of `channel_groups`; pinned ones count as fixed.

    Raises:
        ShrinkError: a grouped or transposed convolution, or weights that no Conv2d or Linear owns: their
            costs are no sum over widths.
    """
    finder = _Finder(model, groups)
    handles = [
        module.register_forward_hook(
            lambda layer, given, result, path=path: finder.add(path, layer, given, result)
        )
        for path, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(*(x[:1] for x in example_tuple(example_inputs)))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    norms = [
        LayerSite(name=path, op="norm", has_bias=module.bias is not None, rows=rows, columns=rows)
        for path, module in model.named_modules()
        if isinstance(module, _NORMS) and module.weight is not None
        for rows in [finder.axis(f"{path}.weight", 0, len(module.weight))]
    ]
    return (*finder.sites, *norms)


class _Finder:
    """Collects sites while a network runs."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self.sites: list[LayerSite] = []
        self._calls: Counter[int] = Counter()
        self._parts: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
        for group in groups:
            if group.pinned is None:
                for member in group.members:
                    per_channel = member.indices.shape[1]
                    place = self._parts.setdefault((member.tensor, member.axis), [])
                    place.append((group.name, per_channel, group.width))

    def axis(self, tensor: str, axis: int, size: int) -> Axis:
        """Return which groups own the positions of a tensor's axis."""
        owners = self._parts.get((tensor, axis), [])
        free = sum(per_channel * width for _, per_channel, width in owners)
        parts = tuple((name, per_channel) for name, per_channel, _ in owners)
        return Axis(fixed=size - free, parts=parts)

    def add(self, path: str, layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        """Add the site of one call."""
        weight = f"{path}.weight"
        assert isinstance(layer, _ConvNd | nn.Linear)  # no other is hooked
        repeated = self._calls[id(layer.weight)] > 0
        self._calls[id(layer.weight)] += 1
        rows = self.axis(weight, 0, layer.weight.shape[0])
        common: dict[str, Any] = {
            "name": path,
            "has_bias": layer.bias is not None,
            "is_repeated": repeated,
            "rows": rows,
        }  # Any: fields
        if isinstance(layer, nn.Linear):
            columns = self.axis(weight, 1, layer.weight.shape[1])
            positions = result.numel() // result.shape[0] // result.shape[-1]
            self.sites.append(LayerSite(op="linear", out_size=(1, positions), columns=columns, **common))
            return
        if isinstance(layer, _ConvTransposeNd) or layer.weight.dim() != 4 or isinstance(layer.padding, str):
            raise ShrinkError(
                f"{path}: a {type(layer).__name__} with padding {layer.padding!r} has no price by its widths",
                hint="budgets and tables know Conv2d with padding in pixels, and Linear",
            )
        depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
        if layer.groups > 1 and not depthwise:
            raise ShrinkError(
                f"{path} is a convolution in {layer.groups} groups: its cost is no function of two widths",
                hint="budgets and tables know groups = 1 and depthwise convolutions",
            )
        columns = rows if depthwise else self.axis(weight, 1, layer.weight.shape[1])
        self.sites.append(
            LayerSite(
                op="conv",
                kernel=_pair(layer.kernel_size),
                stride=_pair(layer.stride),
                padding=_pair(layer.padding),
                in_size=_pair(given[0].shape[2:]),
                out_size=_pair(result.shape[2:]),
                depthwise=depthwise,
                columns=columns,
                **common,
            )
        )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)
