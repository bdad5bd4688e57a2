"""Masks: True means keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.trace import named_tensors
from ticket_export.errors import ShrinkError


@dataclass(frozen=True, slots=True)
class Mask:
    """Which channels of each group stay. Because it is per group, every Mask can be shrunk.

    Attributes:
        keep_by_group: group name -> bool [width], True = keep. All may be False where the group lies inside a
            branch that the network can do without (`ChannelGroup.branch`); other groups keep one at least.

    Raises:
        ShrinkError: an entry is no one-dimensional bool tensor.
    """

    keep_by_group: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, keep_C in self.keep_by_group.items():
            if keep_C.dtype != torch.bool or keep_C.dim() != 1:
                raise ShrinkError(
                    f"mask of group {name!r} is {keep_C.dtype} with shape {tuple(keep_C.shape)}: "
                    "it must be a bool vector"
                )
        object.__setattr__(self, "keep_by_group", MappingProxyType(dict(self.keep_by_group)))

    def kept_widths(self) -> dict[str, int]:
        """Return group name -> number of kept channels."""
        return {name: int(keep_C.sum()) for name, keep_C in self.keep_by_group.items()}

    @property
    def channel_density(self) -> float:
        """Return kept channels / all channels, over all groups of the mask, in [0, 1]."""
        total = sum(len(keep_C) for keep_C in self.keep_by_group.values())
        return sum(self.kept_widths().values()) / total if total else 1.0

    def to_json(self) -> dict[str, object]:
        """Return a JSON value: per group its width and the kept indices."""
        return {
            name: {"width": len(keep_C), "kept": torch.nonzero(keep_C).flatten().tolist()}
            for name, keep_C in self.keep_by_group.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, object]]) -> Mask:
        """Return the mask that `to_json` described.

        Raises:
            ShrinkError: a kept index lies outside its group.
        """
        keep_by_group = {}
        for name, entry in value.items():
            width, kept = entry["width"], entry["kept"]
            if (
                not isinstance(width, int)
                or not isinstance(kept, list)
                or any(not 0 <= i < width for i in kept)
            ):
                raise ShrinkError(f"mask of group {name!r} is damaged: width {width!r}, kept {kept!r}")
            keep_C = torch.zeros(width, dtype=torch.bool)
            keep_C[torch.tensor(kept, dtype=torch.int64)] = True
            keep_by_group[name] = keep_C
        return cls(keep_by_group)


@dataclass(frozen=True, slots=True)
class ElementMask:
    """Which single weights stay: what magnitude pruning finds before Refill or Regroup.

    Attributes:
        keep_by_parameter: parameter name -> bool of the parameter's shape, True = keep.
    """

    keep_by_parameter: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, keep in self.keep_by_parameter.items():
            if keep.dtype != torch.bool:
                raise ShrinkError(f"element mask of {name!r} is {keep.dtype}: it must be bool")
        object.__setattr__(self, "keep_by_parameter", MappingProxyType(dict(self.keep_by_parameter)))

    @property
    def element_density(self) -> float:
        """Return kept weights / all weights, over the masked parameters, in [0, 1]."""
        total = sum(keep.numel() for keep in self.keep_by_parameter.values())
        return sum(int(keep.sum()) for keep in self.keep_by_parameter.values()) / total if total else 1.0

    def save(self, path: str | Path) -> None:
        """Write the mask to `path` as safetensors of uint8."""
        save_file(
            {name: keep.to(torch.uint8).contiguous() for name, keep in self.keep_by_parameter.items()}, path
        )

    @classmethod
    def load(cls, path: str | Path) -> ElementMask:
        """Return the mask that `save` wrote."""
        return cls({name: keep.to(torch.bool) for name, keep in load_file(path).items()})


def check_mask(groups: Sequence[ChannelGroup], mask: Mask) -> None:
    """Raise unless every entry of `mask` names a group of its width, and what must stay does.

    Pinned groups stay whole; a group that is in no branch keeps a channel.

    Raises:
        ShrinkError: naming the group and the two widths, or the reason of the pin.
    """
    by_name = {group.name: group for group in groups}
    for name, keep_C in mask.keep_by_group.items():
        if name not in by_name:
            raise ShrinkError(
                f"the mask names group {name!r}, which the model does not have",
                hint=f"its groups: {', '.join(list(by_name)[:8])}{', ...' if len(by_name) > 8 else ''}",
            )
        group = by_name[name]
        if len(keep_C) != group.width:
            raise ShrinkError(
                f"the mask of group {name!r} has {len(keep_C)} channels, the group has {group.width}"
            )
        if group.pinned is not None and not keep_C.all():
            raise ShrinkError(
                f"the mask drops {int((~keep_C).sum())} of {group.width} channels of group {name!r}, "
                f"which must stay whole: {group.pinned}"
            )
        if group.branch is None and not keep_C.any():
            raise ShrinkError(
                f"mask of group {name!r} keeps 0 of {len(keep_C)} channels",
                hint="keep at least one channel of every group that is in no branch",
            )


def zero_dropped(model: nn.Module, groups: Sequence[ChannelGroup], mask: Mask) -> None:
    """Set every slice of every dropped channel to zero, in place: rows, biases, norm parameters and columns.

    Running variances stay as they are: zero would be a division by almost nothing where only the mean
    matters.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    check_mask(groups, mask)
    tensors = dict(named_tensors(model))
    with torch.no_grad():
        for name, keep in held_elements(groups, mask, {n: t.shape for n, t in tensors.items()}).items():
            if not name.endswith("running_var"):
                tensors[name].mul_(keep.to(tensors[name].device))


def held_elements(
    groups: Sequence[ChannelGroup], mask: Mask, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Return tensor name -> bool of its shape: False in every slice that belongs to a dropped channel.

    Raises:
        ShrinkError: the mask does not fit the groups.
    """
    check_mask(groups, mask)
    keep_by_tensor: dict[str, Tensor] = {}
    for group in groups:
        keep_C = mask.keep_by_group.get(group.name)
        if keep_C is None or keep_C.all():
            continue
        for member in group.members:
            shape = shapes[member.tensor]
            keep = keep_by_tensor.setdefault(member.tensor, torch.ones(shape, dtype=torch.bool))
            keep.index_fill_(member.axis, member.indices[~keep_C].flatten(), False)
    return keep_by_tensor
