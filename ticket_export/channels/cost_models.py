"""What widths cost, site by site: weights and multiply-adds, counted here; latencies come from a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.sites import LayerSite


class CostModel(Protocol):
    """Prices one site at two widths; a network costs the sum over its sites and what is fixed."""

    @property
    def name(self) -> str:
        """Return the budget it serves: "param_fraction", "mac_fraction" or "latency_fraction"."""

    @property
    def is_bilinear(self) -> bool:
        """Return whether a site's cost is linear in each of its two widths."""

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return weights, multiply-adds of one image, or seconds of one batch; a width of 0 costs 0."""

    def fixed(self) -> float:
        """Return what no width changes."""

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        """Return the widths that a group may have, rising; the last is `width`."""


class _Counted:
    """Counts are known at every width."""

    is_bilinear = True

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        """Return 1 to `width`."""
        return tuple(range(1, width + 1))


class WeightCosts(_Counted):
    """The weights of convolutions, linear layers and norms; other parameters are fixed.

    Args:
        model: the dense network.
        sites: of `layer_sites`.
    """

    name = "param_fraction"

    def __init__(self, model: nn.Module, sites: Sequence[LayerSite]) -> None:
        parameters = dict(model.named_parameters())  # a shared one once
        owned = [
            f"{site.name}.{kind}" for site in sites for kind in ("weight", "bias") if not site.is_repeated
        ]
        counted = sum(parameters[name].numel() for name in owned if name in parameters)
        self._fixed = sum(parameter.numel() for parameter in parameters.values()) - counted

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return how many weights the site holds; a repeated one holds none of its own."""
        if site.is_repeated:
            return 0.0
        if site.op == "norm":
            return float(width_out * (1 + site.has_bias))
        columns = 1 if site.depthwise else width_in
        return float(width_out * (math.prod(site.kernel) * columns + site.has_bias))

    def fixed(self) -> float:
        """Return the parameters that no site owns."""
        return float(self._fixed)


class MacCosts(_Counted):
    """Multiply-adds of one image in convolutions and linear layers, as `count_costs` counts them."""

    name = "mac_fraction"

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return the multiply-adds of one image."""
        if site.op == "norm":
            return 0.0
        columns = 1 if site.depthwise else width_in
        return float(math.prod(site.out_size) * math.prod(site.kernel) * columns * width_out)

    def fixed(self) -> float:
        """Return 0: matrix products between activations are not priced."""
        return 0.0


def network_cost(model: CostModel, sites: Iterable[LayerSite], kept: Mapping[str, int]) -> float:
    """Return what the network costs whose groups keep as many channels as `kept` says."""
    return model.fixed() + sum(
        model.cost(site, site.columns.width(kept), site.rows.width(kept)) for site in sites
    )


def free_widths(groups: Iterable[ChannelGroup]) -> dict[str, int]:
    """Return the widths of the groups that may get narrower."""
    return {group.name: group.width for group in groups if group.pinned is None and group.producers}


def channel_prices(
    model: CostModel, sites: Sequence[LayerSite], widths: Mapping[str, int]
) -> dict[str, float]:
    """Return what one channel of each group costs at full width, on average over its channels.

    Args:
        model: prices the sites.
        sites: of the dense network.
        widths: of `free_widths`.
    """
    whole = network_cost(model, sites, widths)
    prices = {}
    for group, width in widths.items():
        least = model.widths(group, width)[0]
        narrow = network_cost(model, sites, {**widths, group: least})
        prices[group] = (whole - narrow) / (width - least) if width > least else 0.0
    return prices
