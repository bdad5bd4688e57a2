"""Early-Bird tickets: the channels of the largest norm scales, as soon as they stop changing.

Source: You et al. 2020 (arXiv 1909.11957). While the dense network trains under an l1 penalty on its norm
scales (`train.penalty.GammaL1`), the channels that a cut would keep are noted once an epoch; when the last
few notes agree, the ticket is drawn, most often long before the training ends. Three things differ from the
released code: its note at the start of an epoch is ours after the epoch before, so that there is none of the
untrained scales, which are all equal; a channel is one of a group, with the mean over the group's norms as
its score; and no group loses its last channel.
"""

# C channels of all ranked groups, one after another; M masks in the window
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, Member
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.best import best_channels, rounded_up
from ticket_export.find.control import require_round_to, scoped_groups
from ticket_export.train.penalty import norm_scales


def require_norms(model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
    """Pass when some channels have a norm whose scale ranks them.

    Raises:
        ShrinkError: the network has none.
    """
    names = set(norm_scales(model))
    if not any(_scales(group, names) for group in groups):
        raise ShrinkError(
            f"Early-Bird without norms: {type(model).__name__} has no norm scale to rank channels by",
            hint="choose a method that scores weights, e.g. refill or rst",
        )


def gamma_scores(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Return group name -> each channel's mean |gamma| over the group's norms, float64 [width] on the CPU.

    Groups without a norm have no scores and are left out.
    """
    names = set(norm_scales(model))
    scales = {group.name: _scales(group, names) for group in groups}
    return {name: _mean_gammas(model, members) for name, members in scales.items() if members}


def gamma_mask(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    *,
    drop_fraction: float,
    scope: str = "coupled",
    round_to: int = 1,
) -> Mask:
    """Return the channels whose norm scales are the largest; every group is in the mask.

    Of all channels of the scope that have a norm, `drop_fraction` goes, compared over the whole network; of
    equal ones the first goes. A group keeps at least one. Pinned groups, and those without a norm, stay
    whole.

    Args:
        model: the trained network.
        groups: its channel groups.
        drop_fraction: in (0, 1).
        scope: `coupled` for every group, `inner` for groups that one layer writes (residual streams stay).
        round_to: kept widths are rounded up to a multiple of it, capped by the width; the next best fill.

    Raises:
        ShrinkError: an argument is out of range, or no channel has a norm.
    """
    require_round_to(round_to)
    ranking = _Ranking(model, groups, drop_fraction, scope)
    scores = ranking.scores(model)
    kept = ranking.split(ranking.keep(scores))
    keep_by_group = {group.name: torch.ones(group.width, dtype=torch.bool) for group in groups}
    for name, score in ranking.split(scores).items():
        num_kept = rounded_up(int(kept[name].sum()), round_to, width=len(score))
        # Those that are kept already come first, whatever the ties
        keep_by_group[name] = best_channels(torch.where(kept[name], torch.inf, score), num_kept)
    return Mask(keep_by_group)


class EarlyBird:
    """Ends a training at the first epoch whose mask differs little from those of the epochs before it."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        *,
        drop_fraction: float | None = None,
        choose: Callable[[Mapping[str, Tensor]], Mask] | None = None,
        scope: str = "coupled",
        window: int = 5,
        max_distance: float = 0.1,
    ) -> None:
        """Note no mask yet.

        Args:
            model: the dense network, for the names of its norms.
            groups: its channel groups.
            drop_fraction: share of the ranked channels that a cut would drop, in (0, 1).
            choose: in its place, what returns the mask of the groups' scores (`gamma_scores`).
            scope: `coupled` or `inner`, as of `gamma_mask`.
            window: masks that are compared; at least 2.
            max_distance: largest share of the ranked channels in which the newest mask may differ from each
                of the others, in [0, 1].

        Raises:
            ShrinkError: an argument is out of range, or no channel has a norm.
        """
        if window < 2 or not 0 <= max_distance <= 1:
            raise ShrinkError(
                f"a window of {window} masks at a max_distance of {max_distance}",
                hint="at least two masks are compared, and a distance is a share of the channels",
            )
        self.window, self.max_distance = window, max_distance
        self.found_epoch: int | None = None
        self._distances: dict[int, tuple[float, ...]] = {}  # epoch -> of its mask from each older one
        self._choose = choose
        self._ranking = _Ranking(model, groups, drop_fraction, scope)
        if (drop_fraction is None) == (choose is None):
            raise ShrinkError(
                f"drop_fraction is {drop_fraction} and choose is {choose}", hint="give one of the two"
            )
        self._masks: deque[Tensor] = deque(maxlen=window)

    @property
    def distances(self) -> list[dict[str, Any]]:  # Any: JSON values
        """Return, per epoch, how far its mask is from each older one in the window, the oldest first."""
        return [
            {"epoch": epoch, "distances": list(distances)} for epoch, distances in self._distances.items()
        ]

    def after_epoch(self, epoch: int, model: nn.Module) -> bool:
        """Note the mask of this epoch, and return whether the ticket is found."""
        score_C = self._ranking.scores(model)
        if self._choose is None:
            return self.note(epoch, self._ranking.keep(score_C))
        chosen = self._choose(self._ranking.split(score_C)).keep_by_group
        return self.note(epoch, torch.cat([chosen[name] for name in self._ranking.widths]))

    def note(self, epoch: int, keep_C: Tensor) -> bool:
        """Compare a mask with those in the window, add it, and return whether the ticket is found.

        Args:
            epoch: the one it was taken after.
            keep_C: bool, over all ranked channels.
        """
        distances = tuple(int((keep_C != older_C).sum()) / len(keep_C) for older_C in self._older())
        self._masks.append(keep_C)
        self._distances[epoch] = distances
        is_found = len(distances) == self.window - 1 and max(distances) <= self.max_distance
        if is_found and self.found_epoch is None:
            self.found_epoch = epoch
        return is_found

    def _older(self) -> list[Tensor]:
        """Return the masks that a new one is compared with, the oldest first."""
        return list(self._masks)[-(self.window - 1) :]

    def state(self) -> dict[str, Tensor]:
        """Return the masks in the window and all distances."""
        absent = float("nan")
        padded = [[*found, *[absent] * (self.window - 1 - len(found))] for found in self._distances.values()]
        masks = list(self._masks)
        return {
            "masks": torch.stack(masks) if masks else torch.zeros(0, self._ranking.num_channels).bool(),
            "distances": torch.tensor(padded, dtype=torch.float64).view(-1, self.window - 1),
            "epochs": torch.tensor(list(self._distances), dtype=torch.int64),
            "found": torch.tensor([] if self.found_epoch is None else [self.found_epoch], dtype=torch.int64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self._masks = deque(state["masks"].unbind(), maxlen=self.window)
        rows = zip(state["epochs"].tolist(), state["distances"], strict=True)
        self._distances = {epoch: tuple(row[~row.isnan()].tolist()) for epoch, row in rows}
        found: list[int] = state["found"].tolist()
        self.found_epoch = found[0] if found else None

    def facts(self) -> Mapping[str, object]:
        """Return what the search was asked for."""
        asked = {"drop_fraction": self._ranking.drop_fraction, "groups": self._ranking.widths}
        return {"observer": "early_bird", "window": self.window, "max_distance": self.max_distance} | asked


class _Ranking:
    """The free channels of a scope that have norms, ranked together."""

    def __init__(
        self, model: nn.Module, groups: Sequence[ChannelGroup], drop_fraction: float | None, scope: str
    ) -> None:
        if drop_fraction is not None and not 0 < drop_fraction < 1:
            raise ShrinkError(f"drop_fraction is {drop_fraction}", hint="it must lie between 0 and 1")
        require_norms(model, groups)
        names = set(norm_scales(model))
        free = [group for group in scoped_groups(groups, scope) if group.pinned is None]
        found = {group.name: (group.width, _scales(group, names)) for group in free}
        self.drop_fraction = drop_fraction
        self._scales = {name: scales for name, (_, scales) in found.items() if scales}
        self.widths = {name: found[name][0] for name in self._scales}
        if not self.widths:
            raise ShrinkError(
                f"no group that scope {scope} may shrink has a norm in {type(model).__name__}",
                hint="choose a method that scores weights, e.g. refill or rst",
            )

    @property
    def num_channels(self) -> int:
        return sum(self.widths.values())

    def scores(self, model: nn.Module) -> Tensor:
        """Return the scores of all ranked channels, float64 [C] on the CPU."""
        return torch.cat([_mean_gammas(model, members) for members in self._scales.values()])

    def keep(self, score_C: Tensor) -> Tensor:
        """Return bool [C]: the lowest are dropped, but for the best of a group that would lose all."""
        assert self.drop_fraction is not None  # what chooses in its place keeps by itself
        num_dropped = int(Fraction(str(self.drop_fraction)) * len(score_C))  # exact: 0.29 of 100 are 29
        order = torch.sort(score_C, stable=True).indices
        keep_C = torch.ones(len(score_C), dtype=torch.bool).index_fill_(0, order[:num_dropped], False)
        parts = zip(self.split(keep_C).values(), self.split(score_C).values(), strict=True)
        for part, score in parts:  # views of keep_C
            if not part.any():
                part[score.argmax()] = True
        return keep_C

    def split(self, values_C: Tensor) -> dict[str, Tensor]:
        """Return group name -> its part."""
        return dict(zip(self.widths, torch.split(values_C, list(self.widths.values())), strict=True))


def _scales(group: ChannelGroup, names: set[str]) -> tuple[Member, ...]:
    return tuple(member for member in group.members if member.tensor in names)


def _mean_gammas(model: nn.Module, members: Sequence[Member]) -> Tensor:
    gammas = [model.get_parameter(member.tensor).detach().cpu().double().abs() for member in members]
    rows = [gamma[member.indices] for gamma, member in zip(gammas, members, strict=True)]
    return torch.cat(rows, 1).mean(1)
