"""A network's cost as constants, vectors and matrices over candidate widths: what a solver can add up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ticket_export.channels.cost_models import CostModel
from ticket_export.channels.sites import Axis, LayerSite
from ticket_export.errors import ShrinkError

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Free:
    """Prices nothing; whether a sum over layers tells the cost does not depend on the prices."""

    name: str

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        return 0.0

    def fixed(self) -> float:
        return 0.0

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        return (width,)


def require_priced(
    sites: Sequence[LayerSite], *, kind: str, whole: Mapping[str, int], chosen: Collection[str]
) -> None:
    """Pass when the cost of every choice of widths is a sum over groups and pairs of groups.

    Args:
        sites: of `layer_sites`.
        kind: `param_fraction`, `mac_fraction` or `latency_fraction`.
        whole: the width of every free group.
        chosen: the groups whose widths are to be chosen.

    Raises:
        ShrinkError: a layer reads several groups side by side, and its latency is no sum over them.
    """
    SiteCosts(sites, _Free(kind), whole, {group: [whole[group]] for group in chosen})


class SiteCosts:
    """The cost of every choice of widths, split by the groups it depends on.

    Attributes:
        constant: what no choice changes.
        by_group: group name -> cost per candidate width.
        by_pair: (group, group) -> cost per pair of candidate widths.

    Args:
        sites: of `layer_sites`.
        costs: prices the sites.
        whole: the width of every free group, kept where it has no candidates.
        candidates: group name -> the widths to choose from.

    Raises:
        ShrinkError: a layer reads several groups side by side, and its cost is no sum over them.
    """

    def __init__(
        self,
        sites: Sequence[LayerSite],
        costs: CostModel,
        whole: Mapping[str, int],
        candidates: Mapping[str, Sequence[int]],
    ) -> None:
        self._costs, self._whole, self._candidates = costs, whole, candidates
        self._is_bilinear = costs.name != "latency_fraction"  # counts are products of widths
        self.constant = costs.fixed()
        self.by_group: dict[str, _Floats] = {g: np.zeros(len(w)) for g, w in candidates.items()}
        self.by_pair: dict[tuple[str, str], _Floats] = {}
        for site in sites:
            self._add(site)

    def _add(self, site: LayerSite) -> None:
        fixed_out, rows = self._split(site.rows)
        if site.depthwise or site.op == "norm":
            self._add_alone(site, fixed_out, rows)
            return
        fixed_in, columns = self._split(site.columns)
        if len(rows) <= 1 and len(columns) <= 1:
            self._add_joining(site, fixed_in, columns, fixed_out, rows)
            return
        if not self._is_bilinear:
            several = columns if len(columns) > 1 else rows
            groups = ", ".join(group for group, _ in several)
            raise ShrinkError(
                f"{site.name} joins the groups {groups} side by side: its latency is no sum over them",
                hint="use scope inner, or a budget of mac_fraction or param_fraction",
            )
        self._add_bilinear(site, fixed_in, columns, fixed_out, rows)

    def _split(self, axis: Axis) -> tuple[int, list[tuple[str, _Floats]]]:
        """Return what of an axis is fixed here, and per group the elements at each candidate width."""
        fixed, parts = axis.fixed, []
        for group, per_channel in axis.parts:
            if group in self._candidates:
                parts.append((group, per_channel * np.array(self._candidates[group])))
            else:
                fixed += per_channel * self._whole[group]
        return fixed, parts

    def _price(self, site: LayerSite, width_in: float, width_out: float) -> float:
        return self._costs.cost(site, int(width_in), int(width_out))

    def _add_alone(self, site: LayerSite, fixed: int, rows: Sequence[tuple[str, _Floats]]) -> None:
        if len(rows) > 1 and not self._is_bilinear and site.op != "norm":
            groups = ", ".join(group for group, _ in rows)
            raise ShrinkError(
                f"{site.name} convolves the channels of {groups} together: its latency is no sum over them",
                hint="use scope inner, or a budget of mac_fraction or param_fraction",
            )
        if len(rows) == 1:
            [(group, widths)] = rows
            self.by_group[group] += [self._price(site, fixed + w, fixed + w) for w in widths]
            return
        self.constant += self._price(site, fixed, fixed)
        for group, widths in rows:
            self.by_group[group] += [self._price(site, w, w) - self._price(site, 0, 0) for w in widths]

    def _add_joining(
        self,
        site: LayerSite,
        fixed_in: int,
        columns: Sequence[tuple[str, _Floats]],
        fixed_out: int,
        rows: Sequence[tuple[str, _Floats]],
    ) -> None:
        if not columns and not rows:
            self.constant += self._price(site, fixed_in, fixed_out)
        elif not columns:
            self.by_group[rows[0][0]] += [self._price(site, fixed_in, fixed_out + w) for w in rows[0][1]]
        elif not rows:
            self.by_group[columns[0][0]] += [
                self._price(site, fixed_in + w, fixed_out) for w in columns[0][1]
            ]
        elif columns[0][0] == rows[0][0]:
            both = zip(columns[0][1], rows[0][1], strict=True)
            self.by_group[rows[0][0]] += [self._price(site, fixed_in + i, fixed_out + o) for i, o in both]
        else:
            prices = np.array(
                [[self._price(site, fixed_in + i, fixed_out + o) for o in rows[0][1]] for i in columns[0][1]]
            )
            self._add_pair(columns[0][0], rows[0][0], prices)

    def _add_bilinear(
        self,
        site: LayerSite,
        fixed_in: int,
        columns: Sequence[tuple[str, _Floats]],
        fixed_out: int,
        rows: Sequence[tuple[str, _Floats]],
    ) -> None:
        """Add a cost that is linear in each width, term by term."""

        def price(i: float, o: float) -> float:
            return self._price(site, i, o)

        self.constant += price(fixed_in, fixed_out)
        for group, widths in columns:
            self.by_group[group] += [price(i, fixed_out) - price(0, fixed_out) for i in widths]
        for group, widths in rows:
            self.by_group[group] += [price(fixed_in, o) - price(fixed_in, 0) for o in widths]
        for left, ins in columns:
            for right, outs in rows:
                terms = np.array(
                    [[price(i, o) - price(i, 0) - price(0, o) + price(0, 0) for o in outs] for i in ins]
                )
                if left == right:
                    self.by_group[left] += np.diagonal(terms)
                else:
                    self._add_pair(left, right, terms)

    def _add_pair(self, left: str, right: str, prices: _Floats) -> None:
        if (right, left) in self.by_pair:
            self.by_pair[right, left] += prices.T
        else:
            self.by_pair[left, right] = self.by_pair.get((left, right), 0.0) + prices
