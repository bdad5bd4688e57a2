"""An event of a search: channels are scored and chosen, the others set to zero, the dead ones cut out.

Source: the released code of SuperTickets (You et al. 2022, arXiv 2207.03677), whose pruned weights may come
back; here whole channels may, as in soft filter pruning (He et al. 2018, arXiv 1808.06866).
"""

# C channels of a group, in the whole network's numbering
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.errors import ShrinkError
from ticket_export.find.best import best_channels, rounded_up
from ticket_export.find.control import require_round_to
from ticket_export.find.search_rules import Choose, SearchRules
from ticket_export.find.sliced_state import Standing, cut_dead

_LEAST_SCORE = 1e-300  # of a channel that is there
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The scale that decides over a group.

    Attributes:
        group: the group's name.
        scale: the parameter, e.g. "blocks.0.branches.k3.bn2.weight".
        places: int64 [C], where on the scale each channel lies, in the whole network.
        may_be_empty: whether the group may lose all its channels.
        block: path of the module that holds the branch.
    """

    group: str
    scale: str
    places: Tensor
    may_be_empty: bool
    block: str

    @property
    def shift(self) -> str:
        """Return the parameter that the norm adds."""
        return f"{self.scale.rpartition('.')[0]}.bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an event decided, by group in the whole network's numbering, and where the search stands now."""

    keep: Mapping[str, Tensor]
    removed: int
    reactivated: int
    rel_error: float
    average_rel_error: float
    standing: Standing


def decisions_of(
    model: nn.Module, groups: Sequence[ChannelGroup], scales: Sequence[str]
) -> tuple[Decision, ...]:
    """Return which group each decision norm's scale decides over.

    Raises:
        ShrinkError: there is no scale, or one that decides over no group, a pinned one, or one twice.
    """
    if not scales:
        raise ShrinkError(
            f"{type(model).__name__} has no decision norms to search by",
            hint="search a network of branches, e.g. zoo:supernet, or choose another find.method",
        )
    found = {member.tensor: (group, member) for group in groups for member in group.members}
    names = {name for name, _ in model.named_parameters()}
    decisions: dict[str, Decision] = {}
    for scale in scales:
        group, member = found.get(scale, (None, None))
        if group is None or member is None or scale not in names:
            raise ShrinkError(f"the decision norm {scale!r} belongs to no channel group")
        if group.pinned is not None or group.name in decisions or member.indices.shape[1] != 1:
            why = group.pinned or "it has a decision norm already, or several numbers for a channel"
            raise ShrinkError(f"{scale!r} cannot decide over the group {group.name!r}: {why}")
        # .../block.branches.k3.bn2.weight: the holder of branches is the norm's grandparent
        path = scale.split(".")
        decisions[group.name] = Decision(
            group=group.name,
            scale=scale,
            places=member.indices[:, 0],
            may_be_empty=group.branch is not None,
            block=".".join(path[:-3]) or group.name,
        )
    return tuple(decisions.values())


def rank_channels(
    score_by_group: Mapping[str, Tensor],
    target: float,
    *,
    never_empty: Collection[str] = (),
    round_to: int = 1,
) -> dict[str, Tensor]:
    """Return the channels that stay when the lowest scores of all groups go, `target` of all channels.

    Of equal ones the first goes. What is gone already counts; it never comes back.

    Args:
        score_by_group: at least 0; 0 = is gone.
        target: share of all channels, in [0, 1).
        never_empty: groups that keep their best channel.
        round_to: kept widths are rounded up to a multiple of this with the next best that are there.
    """
    require_round_to(round_to)
    score_C = torch.cat(list(score_by_group.values())).double()
    num_gone = int(Fraction(str(target)) * len(score_C))  # exact: 0.29 of 100 are 29
    order = torch.sort(score_C, stable=True).indices
    keep_C = torch.ones(len(score_C), dtype=torch.bool).index_fill_(0, order[:num_gone], False)
    kept = torch.split(keep_C, [len(score) for score in score_by_group.values()])
    chosen = {}
    for (name, score), keep in zip(score_by_group.items(), kept, strict=True):
        num_there, num_kept = int((score > 0).sum()), int((keep & (score > 0)).sum())
        if name in never_empty:
            num_kept = max(1, num_kept)
        chosen[name] = best_channels(score, rounded_up(num_kept, round_to, width=num_there))
    return chosen


def ranked_choice(groups: Sequence[ChannelGroup], *, round_to: int = 1) -> Choose:
    """Return `rank_channels` that empties no group outside branches."""
    never_empty = frozenset(group.name for group in groups if group.branch is None)
    return partial(rank_channels, never_empty=never_empty, round_to=round_to)


def scores_of(
    standing: Standing, decisions: Sequence[Decision], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return group -> |gamma| of each channel, float64 [C]: 0 where it is gone, above 0 elsewhere."""
    scores = {}
    for decision in decisions:
        kept = standing.structure.kept(decision.scale, 0)
        gamma = torch.zeros(len(kept), dtype=torch.float64)
        if kept.any():
            gamma[kept] = state[decision.scale].double().abs().clamp(min=_LEAST_SCORE)
        scores[decision.group] = gamma[decision.places]
    return scores


def hold_event(
    standing: Standing,
    whole: nn.Module,
    decisions: Sequence[Decision],
    *,
    rules: SearchRules,
    choose: Choose,
    target: float,
    is_last: bool,
    example_inputs: Tensor,
) -> Outcome:
    """Return the search after an event; live and averaged network are treated alike.

    Channels that are not chosen by their scores in the averaged network are cut out without reactivation, and
    at the last event. Else they are set to zero (`rules.zeroes`) and train on; one is cut out when the event
    before did not choose it either and it has not grown above the threshold in either network.

    Raises:
        ShrinkError: the choice does not fit, or leaves nothing of what must stay.
        DivergedError: the cut changes a network.
    """
    scores = scores_of(standing, decisions, standing.average)
    keep = _chosen(choose, scores, target, decisions)
    live = scores_of(standing, decisions, standing.weights)
    gone, soft = {}, {}
    for name, score in scores.items():
        dropped_C = (score > 0) & ~keep[name]
        is_dead_C = standing.zeroed[name] & (torch.maximum(score, live[name]) <= rules.gamma_threshold)
        gone[name] = dropped_C if is_last or not rules.reactivation else dropped_C & is_dead_C
        soft[name] = dropped_C & ~gone[name]
    reactivated = sum(int((standing.zeroed[name] & keep[name]).sum()) for name in keep)
    standing = replace(standing, zeroed=soft)
    if rules.zeroes:
        standing = _with_zeros(standing, decisions, soft, rules.gamma_threshold)
    standing = _with_zeros(standing, decisions, gone, 0.0)
    errors = 0.0, 0.0
    if any(gone_C.any() for gone_C in gone.values()):
        cut = cut_dead(standing, whole, example_inputs, tolerance=rules.tolerance)
        standing, errors = cut.standing, (cut.rel_error, cut.average_rel_error)
    left = standing.structure.mask.keep_by_group
    # What could not be cut is in a pinned group, which no norm decides over
    assert not any((gone_C & left[name]).any() for name, gone_C in gone.items())
    return Outcome(
        keep={name: keep_C & left[name] for name, keep_C in keep.items()},
        removed=sum(int(((score > 0) & ~left[name]).sum()) for name, score in scores.items()),
        reactivated=reactivated,
        rel_error=errors[0],
        average_rel_error=errors[1],
        standing=standing,
    )


def _chosen(
    choose: Choose, scores: Mapping[str, Tensor], target: float, decisions: Sequence[Decision]
) -> dict[str, Tensor]:
    """Return what is chosen of what is there."""
    chosen = choose(scores, target)
    keep = {}
    for decision in decisions:
        name, score = decision.group, scores[decision.group]
        keep_C = chosen.get(name)
        if keep_C is None or keep_C.dtype != torch.bool or keep_C.shape != score.shape:
            told = "nothing" if keep_C is None else f"{keep_C.dtype} {tuple(keep_C.shape)}"
            raise ShrinkError(f"the choice for group {name!r} is {told}, not bool {tuple(score.shape)}")
        keep[name] = keep_C.cpu() & (score > 0)
        if not keep[name].any() and not decision.may_be_empty:
            raise ShrinkError(
                f"the choice keeps 0 of {int((score > 0).sum())} channels of group {name!r}, which is in no "
                "branch that may go",
                hint="keep at least one channel of it",
            )
    return keep


def _with_zeros(
    standing: Standing, decisions: Sequence[Decision], chosen: Mapping[str, Tensor], threshold: float
) -> Standing:
    """Return the standing with the norms of chosen channels at zero, in both networks.

    A scale of exactly 0 beside a shift of 0 would stay there: behind it a relu passes no gradient at 0. A
    channel that may come back keeps a thousandth of the threshold, with its sign, and the first moments of
    the optimiser, which would move it as it moved before, are forgotten.
    """
    tensors = [dict(standing.weights), dict(standing.average), dict(standing.optimizer)]
    for decision in decisions:
        if not chosen[decision.group].any():
            continue
        kept = standing.structure.kept(decision.scale, 0)
        on_scale = torch.zeros_like(kept)
        on_scale[decision.places[chosen[decision.group]]] = True
        rows = on_scale[kept]
        for state in tensors[:2]:
            sign = torch.where(state[decision.scale] < 0, -1.0, 1.0).to(state[decision.scale].dtype)
            state[decision.scale] = torch.where(rows, sign * threshold / 1000, state[decision.scale])
            state[decision.shift] = state[decision.shift].masked_fill(rows, 0.0)
        for key in (f"{name}/{moment}" for name in _norm(decision) for moment in _FIRST_MOMENTS):
            if key in tensors[2]:
                tensors[2][key] = tensors[2][key].masked_fill(rows, 0.0)
    weights, average, optimizer = tensors
    return replace(standing, weights=weights, average=average, optimizer=optimizer)


def _norm(decision: Decision) -> tuple[str, str]:
    return decision.scale, decision.shift
