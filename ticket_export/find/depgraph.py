"""The peer as a control: the channels that torch-pruning's own pruner keeps, as a Mask of our groups.

Fang et al. 2023 (arXiv 2301.12900): `BasePruner` with `GroupMagnitudeImportance(p=2)`. Nothing of ours
chooses a channel; only the pruning ratio is searched, so that its network costs what the ticket costs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.channels.trace import example_tuple
from ticket_export.errors import ShrinkError, TicketExportError
from ticket_export.find.control import require_round_to, scoped_groups
from ticket_export.shrink.surgery import small_from_mask

RANKINGS = ("global", "local")
# MACs do not fall steadily with the ratio: a group of which rounding would leave nothing stays whole. So the
# whole range is looked at, then the neighbourhood of the best.
COARSE_RATIO, FINE_RATIO = 1 / 32, 1 / 256
HINT = "leave depgraph out of find.controls"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pruned:
    """What torch-pruning made of a copy of the network at one ratio; `history` is its own record of it."""

    model: nn.Module
    history: Sequence[tuple[str, bool, Sequence[int]]]
    macs: int


def depgraph_mask(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    groups: Sequence[ChannelGroup],
    *,
    target_macs: int,
    round_to: int = 1,
    scope: str = "coupled",
    ranking: str = "global",
) -> Mask:
    """Return the channels that torch-pruning keeps at the pruning ratio whose MACs are nearest to the target.

    The network that the mask leaves has the shapes of torch-pruning's own, tensor by tensor.

    Args:
        model: the trained network, in float32 on the CPU; it is not changed.
        example_inputs: a tensor or a tuple of tensors, axis 0 is the batch.
        groups: the network's channel groups; those that are pinned stay whole.
        target_macs: of one image.
        round_to: torch-pruning's own `round_to`: kept widths are multiples of it, or whole.
        scope: `coupled` for every group, `inner` for groups that one layer writes (residual streams stay).
        ranking: `global` compares channels over the whole network, as the paper's CIFAR runs do; `local`
            takes the same share of every layer, which is the package's default.

    Raises:
        ShrinkError: torch-pruning cannot prune the network, or not as our groups are; or an argument is out
            of range.
    """
    require_round_to(round_to)
    if ranking not in RANKINGS:
        raise ShrinkError(f"the ranking is {ranking!r}", hint=f"it may be {', '.join(RANKINGS)}")
    inputs = example_tuple(example_inputs)
    whole = _whole_layers(groups, scoped_groups(groups, scope))
    peer = _Peer(model, inputs, whole, round_to=round_to, is_global=ranking == "global")
    pruned = peer.nearest(target_macs)
    mask = _mask_of(peer.tagged(pruned, groups), groups)
    _require_equal_shapes(small_from_mask(model, groups, mask), pruned.model, type(model).__name__)
    return mask


def require_depgraph(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> None:
    """Pass when torch-pruning prunes this network along our groups, seen at half its channels.

    Raises:
        ShrinkError: it does not, with the reason.
    """
    inputs = example_tuple(example_inputs)
    peer = _Peer(model, inputs, _whole_layers(groups, groups), round_to=1, is_global=False)
    pruned = peer.at(0.5)
    mask = _mask_of(peer.tagged(pruned, groups), groups)
    _require_equal_shapes(small_from_mask(model, groups, mask), pruned.model, type(model).__name__)


class _Peer:
    """torch-pruning on copies of one network."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        whole: Sequence[str],
        *,
        round_to: int,
        is_global: bool,
    ) -> None:
        self.model, self.inputs, self.whole = model, inputs, whole
        self.round_to, self.is_global = round_to, is_global

    def nearest(self, target_macs: int) -> _Pruned:
        """Return what it makes at the ratio whose MACs are nearest; of equal ones at the largest ratio."""
        steps = round(1 / COARSE_RATIO)
        best, ratio = self._best([step * COARSE_RATIO for step in range(steps)], target_macs)
        steps = round(COARSE_RATIO / FINE_RATIO)
        near = [ratio + step * FINE_RATIO for step in range(1 - steps, steps)]
        closer, _ = self._best([r for r in near if 0 < r < 1 and r != ratio], target_macs)
        return min((closer, best), key=lambda pruned: abs(pruned.macs - target_macs))

    def _best(self, ratios: Sequence[float], target_macs: int) -> tuple[_Pruned, float]:
        found: tuple[_Pruned, float] | None = None
        for ratio in ratios:
            pruned = self.at(ratio)
            if found is None or abs(pruned.macs - target_macs) <= abs(found[0].macs - target_macs):
                found = pruned, ratio
        assert found is not None
        return found

    def at(self, ratio: float) -> _Pruned:
        """Return the network pruned at a ratio in [0, 1)."""
        import torch_pruning as tp

        model = copy_with_gradients(self.model)
        with _foreign(type(self.model).__name__):
            pruner = tp.pruner.BasePruner(
                model,
                self.inputs,
                importance=tp.importance.GroupMagnitudeImportance(p=2),
                global_pruning=self.is_global,
                pruning_ratio=ratio,
                round_to=self.round_to,
                ignored_layers=[_layer(model, name) for name in self.whole],
                in_channel_groups={},  # its own defaults are shared between pruners, and filled
                out_channel_groups={},
                num_heads={},
            )
            if ratio:
                pruner.step()
            macs = count_costs(model, self.inputs).macs
        return _Pruned(model=model, history=pruner.pruning_history(), macs=macs)

    def tagged(self, pruned: _Pruned, groups: Sequence[ChannelGroup]) -> dict[str, set[int]]:
        """Return per weight that writes channels the rows it kept: their numbers are pruned like weights."""
        import torch_pruning as tp

        model = copy_with_gradients(self.model)
        producers = {member.tensor: member.axis for group in groups for member in group.producers}
        with torch.no_grad():
            for name, axis in producers.items():
                weight = _tensor(model, name)
                line = torch.arange(weight.shape[axis], dtype=weight.dtype)
                weight.copy_(
                    line.reshape([-1 if a == axis else 1 for a in range(weight.dim())]).expand_as(weight)
                )
        with _foreign(type(self.model).__name__):
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=self.inputs, verbose=False)
            graph.load_pruning_history(list(pruned.history))
        return {
            name: {int(tag) for tag in _tensor(model, name).detach().movedim(axis, 0).flatten(1)[:, 0]}
            for name, axis in producers.items()
        }


def copy_with_gradients(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose parameters take gradients, which scores and torch-pruning read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, when a traced graph is copied
        model = copy.deepcopy(model).eval()
    return model.requires_grad_(True)


def _whole_layers(groups: Sequence[ChannelGroup], scoped: Sequence[ChannelGroup]) -> list[str]:
    """Return the layers, or bare parameters, whose channels must all stay."""
    free = {group.name for group in scoped if group.pinned is None}
    return sorted(
        {m.tensor for group in groups if group.name not in free for m in group.producers},
    )


def _mask_of(kept_by_weight: dict[str, set[int]], groups: Sequence[ChannelGroup]) -> Mask:
    keep_by_group = {}
    for group in groups:
        keep_C = torch.ones(group.width, dtype=torch.bool)
        for place, member in enumerate(group.producers):
            rows = kept_by_weight[member.tensor]
            own_C = torch.tensor([all(i in rows for i in own) for own in member.indices.tolist()])
            if place and not torch.equal(own_C, keep_C):
                raise ShrinkError(
                    f"torch-pruning keeps {int(own_C.sum())} rows of {member.tensor!r} and "
                    f"{int(keep_C.sum())} of {group.producers[0].tensor!r}, which must be the same",
                    hint=HINT,
                )
            keep_C = own_C
        keep_by_group[group.name] = keep_C
    return Mask(keep_by_group)


def _require_equal_shapes(ours: nn.Module, theirs: nn.Module, name: str) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    for key, tensor in ours.state_dict().items():
        if shapes.get(key) != tuple(tensor.shape):
            raise ShrinkError(
                f"torch-pruning prunes {name} along other channels: it leaves {key!r} with shape "
                f"{shapes.get(key)}, and its channels would leave {tuple(tensor.shape)}",
                hint=HINT,
            )


@contextmanager
def _foreign(name: str) -> Iterator[None]:
    """Silence its warnings, and tell its errors as ours."""
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # it tells which parameters it prunes on their last axis
            yield
    except TicketExportError:
        raise
    except Exception as error:  # it raises what it meets, AttributeError and ZeroDivisionError among them
        first = next(iter(str(error).splitlines()), "")
        raise ShrinkError(
            f"torch-pruning cannot prune {name}: {type(error).__name__}: {first}", hint=HINT
        ) from error


def _layer(model: nn.Module, tensor: str) -> nn.Module | nn.Parameter:
    """Return the layer that owns a weight; the weight itself where it is bare in a larger module."""
    owner = model.get_submodule(tensor.rpartition(".")[0])
    return owner if tensor.endswith(".weight") else _tensor(model, tensor)


def _tensor(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(name)
