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
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from ticket_export.channels.cost_models import CostModel, network_cost
from ticket_export.channels.sites import LayerSite
from ticket_export.errors import ShrinkError
from ticket_export.find.site_costs import SiteCosts

OBJECTIVES = ("product", "sum")
_WIDER = 1e-6  # what a group at full width adds to the objective: of equal choices the widest is taken
_NUM_WIDTHS = 16  # candidates of a group, at most
_LEAST_SHARE = 1e-9  # of a group's importance; its logarithm must exist
_REL_GAP = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Widths that keep to a budget.

    Attributes:
        widths: group name -> channels kept, of the groups that were chosen for.
        kept_importance: of `product` the geometric mean over groups of the kept share of their importance, of
            `sum` the kept share of all importance; in (0, 1].
        cost: of the network, by the cost model.
        gap: by how much a better choice could still beat this one, as a share of the objective; 0 = proven.
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

    def candidates(self, group: str, known: Sequence[int]) -> list[int]:
        """Return the widths to choose from, rising, at most 16.

        Args:
            group: its name.
            known: the widths that have a price; the last is the whole width.

        Raises:
            ShrinkError: none is left.
        """
        high = min(known[-1], (self.upper or {}).get(group, known[-1]))
        low = min(high, max(1, (self.lower or {}).get(group, 1)))
        inside = [w for w in known if low <= w <= high and (w % self.round_to == 0 or w == known[-1])]
        # The widest is always there, so that no budget is refused for a grid; as is a lower bound
        widths = sorted({*inside, high, *((low,) if (self.lower or {}).get(group) else ())})
        if len(widths) > _NUM_WIDTHS:
            places = np.unique(np.linspace(0, len(widths) - 1, _NUM_WIDTHS).round().astype(int))
            widths = [widths[place] for place in places]
        if group in self.may_be_empty and not (self.lower or {}).get(group):
            widths.insert(0, 0)
        return widths


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

    A width keeps the channels of the highest scores. Of equally good choices the widest is taken, up to 1e-6
    of the objective: a width in the middle of a stair never stays there.

    Args:
        score_by_group: of the groups to choose for, [width] each, at least 0.
        sites: of `layer_sites`.
        costs: prices the sites.
        whole: the width of every free group; one without a score keeps it.
        target: in the unit of `costs`.
        objective: `product` weighs shares of groups, whatever their scale, and never empties one; `sum` adds
            scores of all groups, which must be comparable.
        limits: of the widths.
        time_limit_s: after it the best choice found is returned, with its gap.

    Raises:
        ShrinkError: even the narrowest network costs more, or a layer has no price.
    """
    if objective not in OBJECTIVES:
        raise ShrinkError(f"the objective is {objective!r}", hint=f"it may be {', '.join(OBJECTIVES)}")
    limits = limits or Limits()
    if objective == "product" and limits.may_be_empty:
        raise ShrinkError("objective product keeps every group", hint="use objective sum, or empty none")
    candidates = {g: limits.candidates(g, costs.widths(g, whole[g])) for g in score_by_group}
    worths = _worths(score_by_group, candidates, objective)
    site_costs = SiteCosts(sites, costs, whole, candidates)
    program = _Program(candidates, worths, site_costs)
    solved = program.solve(target, time_limit_s)
    if solved is None:
        narrowest = {**whole, **{group: widths[0] for group, widths in candidates.items()}}
        least = network_cost(costs, sites, narrowest)
        dense = network_cost(costs, sites, whole)
        raise ShrinkError(
            f"the budget is {target / dense:.3f} of dense, "
            f"and the narrowest network costs {least / dense:.3f}",
            hint="raise find.budget, use scope coupled, or lower find.round_to",
        )
    widths, gap = solved
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
        limits=Limits(lower=widths, upper=upper),
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


def _worths(
    score_by_group: Mapping[str, Tensor], candidates: Mapping[str, Sequence[int]], objective: str
) -> dict[str, npt.NDArray[np.float64]]:
    """Return what each candidate width adds to the objective."""
    total = sum(float(scores_C.sum()) for scores_C in score_by_group.values()) or 1.0
    worths = {}
    for group, scores_C in score_by_group.items():
        widths = np.array(candidates[group])
        if objective == "product":
            worth = np.log(_shares(scores_C, candidates[group])) / len(score_by_group)
        else:
            best = np.concatenate([[0.0], np.cumsum(_best_first(scores_C))])
            worth = best[widths] / total
        worths[group] = worth + _WIDER * widths / len(scores_C) / len(score_by_group)
    return worths


class _Program:
    """One binary per group and width; for each pair of groups that layers join, a share per pair of widths.

    Those shares are continuous: sums over one side equal the other side's binaries, so they are 0 or 1 where
    the binaries are. That is the transport form, whose relaxation is tight.
    """

    def __init__(
        self,
        candidates: Mapping[str, Sequence[int]],
        worths: Mapping[str, npt.NDArray[np.float64]],
        site_costs: SiteCosts,
    ) -> None:
        self._candidates, self._site_costs = candidates, site_costs
        self._first: dict[str, int] = {}
        objective: list[npt.NDArray[np.float64]] = []
        costs: list[npt.NDArray[np.float64]] = []
        for group in candidates:
            self._first[group] = sum(map(len, objective))
            objective.append(-worths[group])
            costs.append(site_costs.by_group[group])
        self._num_binaries = sum(map(len, objective))
        for matrix in site_costs.by_pair.values():
            objective.append(np.zeros(matrix.size))
            costs.append(matrix.ravel())
        self._objective, self._costs = np.concatenate(objective), np.concatenate(costs)

    def solve(self, target: float, time_limit_s: float) -> tuple[dict[str, int], float] | None:
        """Return widths and the proven gap; None where no choice keeps to the target."""
        rows, values = self._equalities()
        left = target - self._site_costs.constant
        scale = max(abs(left), float(np.abs(self._costs).max(initial=0.0)), 1e-300)
        budget = LinearConstraint(sparse.csr_matrix(self._costs / scale), -np.inf, left / scale)
        found = milp(
            self._objective,
            integrality=(np.arange(len(self._objective)) < self._num_binaries).astype(int),
            bounds=Bounds(0.0, 1.0),
            constraints=[LinearConstraint(rows, values, values), budget],
            options={"time_limit": time_limit_s, "mip_rel_gap": _REL_GAP},
        )
        if found.x is None:
            if found.status == 1:
                raise ShrinkError(
                    f"no widths were found within {time_limit_s:g} s",
                    hint="raise find.round_to: fewer widths",
                )
            return None
        widths = {
            group: int(widths[int(np.argmax(found.x[first : first + len(widths)]))])
            for (group, widths), first in zip(self._candidates.items(), self._first.values(), strict=True)
        }
        return widths, float(found.mip_gap or 0.0)

    def _equalities(self) -> tuple[sparse.csr_matrix, npt.NDArray[np.float64]]:
        """Return one row per group (one width each), and per pair and width of either side."""
        entries: list[tuple[int, int, float]] = []
        values: list[float] = []
        for group, first in self._first.items():
            entries += [(len(values), first + place, 1.0) for place in range(len(self._candidates[group]))]
            values.append(1.0)
        start = self._num_binaries
        for (left, right), matrix in self._site_costs.by_pair.items():
            places = start + np.arange(matrix.size).reshape(matrix.shape)
            start += matrix.size
            for group, lines in ((left, places), (right, places.T)):
                for place, line in enumerate(lines):
                    entries += [(len(values), int(variable), 1.0) for variable in line]
                    entries.append((len(values), self._first[group] + place, -1.0))
                    values.append(0.0)
        row, column, data = zip(*entries, strict=True)
        shape = (len(values), len(self._objective))
        return sparse.csr_matrix((data, (row, column)), shape=shape), np.array(values)
