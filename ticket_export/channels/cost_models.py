"""What a layer costs at a pair of widths, in weights or multiply-adds; latency tables fit the same seam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Protocol

from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.sites import LayerSite

# Pairs of widths grow with the square of this, and two neighbours of 32 differ by 3 % of a layer
MAX_WIDTHS = 32


class CostModel(Protocol):
    """What layers cost; the sum over sites and `fixed` is the network's cost."""

    @property
    def name(self) -> str:
        """Return `param_fraction`, `mac_fraction` or `latency_fraction`."""

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return what one site costs: weights, multiply-adds of one image, or seconds of one batch."""

    def fixed(self) -> float:
        """Return what no width changes."""

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        """Return the widths that a group may have, rising; the last is `width`."""


def network_cost(costs: CostModel, sites: Sequence[LayerSite], kept: Mapping[str, int]) -> float:
    """Return what the network costs when its groups keep `kept` channels."""
    return costs.fixed() + sum(
        costs.cost(site, site.columns.width(kept), site.rows.width(kept)) for site in sites
    )


def width_grid(width: int, *, round_to: int = 1, max_widths: int = MAX_WIDTHS) -> tuple[int, ...]:
    """Return at most `max_widths` widths, multiples of `round_to` apart, rising; the last is `width`."""
    step = round_to * ceil(width / (max_widths * round_to))
    return (*range(step, width, step), width)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCosts:
    """Parameters, shared ones once.

    Attributes:
        fixed_params: of all that is in no site.
        round_to: widths are multiples of it.
    """

    fixed_params: int
    round_to: int = 1

    @property
    def name(self) -> str:
        """Return the kind of budget that these costs serve."""
        return "param_fraction"

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return the parameters of a site."""
        if not site.owns_weight:
            return 0
        columns = 1 if site.depthwise else width_in
        if site.op == "norm":
            return width_out * prod(site.kernel) * (2 if site.has_bias else 1)
        return width_out * (columns * prod(site.kernel) + site.has_bias)

    def fixed(self) -> float:
        """Return the parameters that are in no site."""
        return self.fixed_params

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        """Return up to 32 widths."""
        return width_grid(width, round_to=self.round_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class MacCosts:
    """Multiply-adds of one image.

    Attributes:
        fixed_macs: of all that is in no site; products without weights count at their dense widths.
        round_to: widths are multiples of it.
    """

    fixed_macs: int
    round_to: int = 1

    @property
    def name(self) -> str:
        """Return the kind of budget that these costs serve."""
        return "mac_fraction"

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return the multiply-adds of a site."""
        if site.op == "norm":
            return 0
        columns = 1 if site.depthwise else width_in
        return width_out * columns * prod(site.kernel) * prod(site.out_size)

    def fixed(self) -> float:
        """Return the multiply-adds that are in no site."""
        return self.fixed_macs

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        """Return up to 32 widths."""
        return width_grid(width, round_to=self.round_to)


def counted_costs(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    sites: Sequence[LayerSite],
    *,
    kind: str,
    dense: Mapping[str, int],
    round_to: int = 1,
) -> WeightCosts | MacCosts:
    """Return the costs of which the sum over dense is what `count_costs` counts.

    Args:
        model: the dense network.
        example_inputs: of the network.
        sites: of `layer_sites`.
        kind: `param_fraction` or `mac_fraction`.
        dense: group name -> its whole width.
        round_to: widths are multiples of it.
    """
    counted = count_costs(model, example_inputs)
    if kind == "param_fraction":
        in_sites = network_cost(WeightCosts(fixed_params=0), sites, dense)
        return WeightCosts(fixed_params=counted.params - round(in_sites), round_to=round_to)
    in_sites = network_cost(MacCosts(fixed_macs=0), sites, dense)
    return MacCosts(fixed_macs=counted.macs - round(in_sites), round_to=round_to)
