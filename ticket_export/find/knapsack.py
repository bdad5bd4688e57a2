"""Widths under a budget: one width per group, so that what is kept is worth the most for what it costs.

A knapsack with one choice per group: latencies are staircases, so a group has few sensible widths, and what a
layer costs depends on the two groups that it joins. Solved exactly, as a mixed-integer program by HiGHS.
"""

# g groups, w candidate widths of a group
from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ticket_export.channels.cost_models import CostModel, network_cost
from ticket_export.channels.sites import LayerSite
from ticket_export.errors import ShrinkError
from ticket_export.find.site_costs import SiteCosts
from ticket_export.find.width_program import WidthProgram

OBJECTIVES = ("product", "sum")
_NUM_WIDTHS = 16  # candidates of a group in one program, at most: pairs of groups have their square
_LEAST_SHARE = 1e-9  # of a group's importance; its logarithm must exist


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Widths that keep to a budget.

    Attributes:
        widths: group name -> channels kept, of the groups that were chosen for.
        kept_importance: of `product` the geometric mean over groups of the kept share of their importance, of
            `sum` the kept share of all importance; in (0, 1].
        cost: of the network, by the cost model.
        gap: how much less another choice among the widths tried could lose, as a share of what this one loses
            of the objective; proven by the solver, and 1e-5 at most where the time was enough.
    """

    widths: Mapping[str, int]
    kept_importance: float
    cost: float
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Which widths a group may have.

    Attributes:
        round_to: multiples of it, and the largest width allowed.
        lower: group name -> at least so many channels.
        upper: group name -> at most so many.
        may_be_empty: groups that may lose every channel.
    """

    round_to: int = 1
    lower: Mapping[str, int] | None = None
    upper: Mapping[str, int] | None = None
    may_be_empty: Collection[str] = ()

    def known(self, group: str, priced: Sequence[int]) -> list[int]:
        """Return the widths that a group may have, rising.

        Args:
            group: its name.
            priced: the widths that have a price; the last is the whole width.
        """
        whole = priced[-1]
        high = min(whole, (self.upper or {}).get(group, whole))
        least = (self.lower or {}).get(group, 0)
        low = min(high, max(1, least))
        inside = [w for w in priced if low <= w <= high and (w % self.round_to == 0 or w == whole)]
        # The widest is always there, so that no budget is refused for a grid; as is a lower bound
        widths = sorted({*inside, high, *((low,) if least else ())})
        return [0, *widths] if group in self.may_be_empty and not least else widths

    @staticmethod
    def spread(widths: Sequence[int]) -> list[int]:
        """Return at most 16 of the widths, evenly spread, both ends among them."""
        if len(widths) <= _NUM_WIDTHS:
            return list(widths)
        places = np.unique(np.linspace(0, len(widths) - 1, _NUM_WIDTHS).round().astype(int))
        return [widths[place] for place in places]


def choose_widths(
    score_by_group: Mapping[str, Tensor],
    sites: Sequence[LayerSite],
    costs: CostModel,
    *,
    whole: Mapping[str, int],
    target: float,
    objective: str = "product",
    limits: Limits | None = None,
    time_limit_s: float = 60.0,
) -> Choice:
    """Return the widths that keep the most importance at a cost of at most `target`.

    A width keeps the channels of the highest scores. The choice is exact among 16 widths of every group, then
    again among those between the neighbours of the first choice. Last, widths grow as far as the cost
    stays within the target, also where that gains no importance: none stops in the middle of a stair.

    Args:
        score_by_group: of the groups to choose for, [width] each, at least 0.
        sites: of `layer_sites`.
        costs: prices the sites.
        whole: the width of every free group; one without a score keeps it.
        target: in the unit of `costs`; kept to within the solver's 1e-6.
        objective: `product` weighs shares of groups, whatever their scale, and never empties one; `sum` adds
            scores of all groups, which must be comparable.
        limits: of the widths.
        time_limit_s: of each program; after it the best choice found stands, with its gap.

    Raises:
        ShrinkError: even the narrowest network costs more, or a layer has no price.
    """
    if objective not in OBJECTIVES:
        raise ShrinkError(f"the objective is {objective!r}", hint=f"it may be {', '.join(OBJECTIVES)}")
    limits = limits or Limits()
    if objective == "product" and limits.may_be_empty:
        raise ShrinkError("objective product keeps every group", hint="use objective sum, or empty none")
    _check_scores(score_by_group, whole)
    search = _Search(score_by_group, sites, costs, whole, objective, time_limit_s)
    known = {g: limits.known(g, costs.widths(g, whole[g])) for g in score_by_group}
    widths, gap = search.solve({g: limits.spread(ws) for g, ws in known.items()}, target)
    near = {g: _between_neighbours(ws, limits.spread(ws), widths[g]) for g, ws in known.items()}
    if any(len(near[g]) > 3 for g in near):  # the spread left widths out around the choice
        widths, nearer_gap = search.solve({g: limits.spread(ws) for g, ws in near.items()}, target)
        gap = max(gap, nearer_gap)
    widths = search.widened(widths, known, target)
    return Choice(
        widths=widths,
        kept_importance=kept_importance(score_by_group, widths, objective),
        cost=network_cost(costs, sites, {**whole, **widths}),
        gap=gap,
    )


def fill_free(
    score_by_group: Mapping[str, Tensor],
    sites: Sequence[LayerSite],
    costs: CostModel,
    *,
    whole: Mapping[str, int],
    widths: Mapping[str, int],
    upper: Mapping[str, int] | None = None,
    round_to: int = 1,
    tolerance: float = 0.0,
) -> Choice:
    """Return the widest widths that cost no more than `widths` do: the channels that are free.

    Args:
        score_by_group: of the groups that may grow.
        sites: of `layer_sites`.
        costs: prices the sites.
        whole: the width of every free group.
        widths: of the groups now.
        upper: the most channels of a group.
        round_to: a group grows to multiples of it, or to all its channels.
        tolerance: share of the cost that may be added, e.g. half of what a measured price is uncertain by.

    Raises:
        ShrinkError: a layer has no price.
    """
    now = network_cost(costs, sites, {**whole, **widths})
    return choose_widths(
        score_by_group,
        sites,
        costs,
        whole={**whole, **{name: w for name, w in widths.items() if name not in score_by_group}},
        target=now * (1 + tolerance) * (1 + 1e-9),  # its own cost, past the rounding of sums
        limits=Limits(round_to=round_to, lower=widths, upper=upper),
    )


def kept_importance(
    score_by_group: Mapping[str, Tensor], widths: Mapping[str, int], objective: str = "product"
) -> float:
    """Return the kept importance of widths, as `Choice` holds it, when the best channels are kept."""
    if objective == "sum":
        total = sum(float(scores_C.sum()) for scores_C in score_by_group.values())
        kept = sum(float(_best_first(s)[: widths[g]].sum()) for g, s in score_by_group.items())
        return kept / total if total else 1.0
    shares = [_shares(scores_C, [widths[group]])[0] for group, scores_C in score_by_group.items()]
    return math.exp(sum(map(math.log, shares)) / len(shares)) if shares else 1.0


def _best_first(scores_C: Tensor) -> npt.NDArray[np.float64]:
    return np.sort(scores_C.double().cpu().numpy())[::-1]


def _shares(scores_C: Tensor, widths: Sequence[int]) -> list[float]:
    """Return the share of a group's importance that each width keeps; by channels where none has any."""
    best = np.cumsum(_best_first(scores_C))
    if best[-1] <= 0:
        return [max(_LEAST_SHARE, width / len(scores_C)) for width in widths]
    return [
        max(_LEAST_SHARE, float(best[width - 1] / best[-1])) if width else _LEAST_SHARE for width in widths
    ]


def _check_scores(score_by_group: Mapping[str, Tensor], whole: Mapping[str, int]) -> None:
    for group, scores_C in score_by_group.items():
        if len(scores_C) != whole.get(group) or not bool((scores_C >= 0).all() & scores_C.isfinite().all()):
            raise ShrinkError(
                f"the scores of group {group!r} are {len(scores_C)} of {whole.get(group)}, "
                f"the least {float(scores_C.min())}",
                hint="a budget needs a finite score of at least 0 for every channel",
            )


def _between_neighbours(known: Sequence[int], tried: Sequence[int], chosen: int) -> list[int]:
    place = tried.index(chosen)
    low, high = tried[max(0, place - 1)], tried[min(len(tried) - 1, place + 1)]
    return [width for width in known if low <= width <= high]


@dataclass(frozen=True, slots=True)
class _Search:
    """Solves programs over different candidates of one network."""

    score_by_group: Mapping[str, Tensor]
    sites: Sequence[LayerSite]
    costs: CostModel
    whole: Mapping[str, int]
    objective: str
    time_limit_s: float

    def solve(
        self, candidates: Mapping[str, Sequence[int]], target: float, *, width_weight: float = 0.0
    ) -> tuple[dict[str, int], float]:
        """Return the best widths among the candidates and the gap."""
        worths = {
            group: self._worth(group, widths) + width_weight * np.array(widths) / self.whole[group]
            for group, widths in candidates.items()
        }
        site_costs = SiteCosts(self.sites, self.costs, self.whole, candidates)
        solved = WidthProgram(candidates, worths, site_costs).solve(target, self.time_limit_s)
        if solved is None:
            narrowest = {**self.whole, **{group: widths[0] for group, widths in candidates.items()}}
            least = network_cost(self.costs, self.sites, narrowest)
            dense = network_cost(self.costs, self.sites, self.whole)
            raise ShrinkError(
                f"the budget is {target / dense:.3f} of dense, "
                f"and the narrowest network costs {least / dense:.3f}",
                hint="raise find.budget, use scope coupled, or lower find.round_to",
            )
        return solved

    def widened(
        self, widths: Mapping[str, int], known: Mapping[str, Sequence[int]], target: float
    ) -> dict[str, int]:
        """Return widths of which none can grow, to another known one, without a cost above the target."""
        now = dict(widths)
        target = max(
            target, network_cost(self.costs, self.sites, {**self.whole, **now})
        )  # they stay feasible
        while True:
            # An empty group stays empty: its branch was not worth its price
            wider = {
                group: [w for w in widths if w >= now[group]][:_NUM_WIDTHS] if now[group] else [0]
                for group, widths in known.items()
            }
            grown, _ = self.solve(wider, target, width_weight=1.0)
            if grown == now:
                return now
            now = grown

    def _worth(self, group: str, widths: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return what each width adds to the objective."""
        scores_C = self.score_by_group[group]
        if self.objective == "product":
            return np.log(_shares(scores_C, widths)) / len(self.score_by_group)
        total = sum(float(scores_C.sum()) for scores_C in self.score_by_group.values()) or 1.0
        best = np.concatenate([[0.0], np.cumsum(_best_first(scores_C))])
        return np.asarray(best[list(widths)] / total, dtype=np.float64)
