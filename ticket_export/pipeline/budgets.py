"""What choices of widths cost, priced layer by layer, and the best choice at a price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ticket_export.channels.cost_models import CostModel, network_cost
from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.channels.sites import LayerSite, layer_sites
from ticket_export.find.best import mask_from_widths
from ticket_export.find.control import uniform_masks
from ticket_export.find.knapsack import Choice, Limits, choose_widths, fill_free
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import dense_network
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.pricing import cost_model

LATENCY = "latency_fraction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What every choice of widths of a network costs.

    Attributes:
        groups: its channel groups.
        sites: where they stand.
        costs: prices them.
    """

    groups: Sequence[ChannelGroup]
    sites: tuple[LayerSite, ...]
    costs: CostModel

    @property
    def whole(self) -> dict[str, int]:
        """Return the widths of the groups that may get narrower."""
        return {group.name: group.width for group in self.groups if group.pinned is None}

    def share(self, widths: Mapping[str, int]) -> float:
        """Return the predicted cost of widths as a share of dense; groups that are not named stay whole."""
        return self.cost(widths) / self.cost({})

    def choose(
        self,
        score_by_group: Mapping[str, Tensor],
        *,
        share: float,
        round_to: int,
        within: Mask | None = None,
    ) -> Choice:
        """Return the widths that keep the most importance at `share` of the dense cost.

        Raises:
            ShrinkError: even the narrowest network costs more.
        """
        scores = scores_within(score_by_group, within)
        return choose_widths(
            scores,
            self.sites,
            self.costs,
            whole=self.whole,
            target=share * self.cost({}),
            limits=Limits(round_to=round_to, upper=_upper(within)),
        )

    def fill(
        self, score_by_group: Mapping[str, Tensor], mask: Mask, *, round_to: int, within: Mask | None = None
    ) -> Choice:
        """Return the widest widths of the same cost as the mask's."""
        free = self.whole
        widths = {name: width for name, width in mask.kept_widths().items() if name in free}
        return fill_free(
            scores_within(score_by_group, within),
            self.sites,
            self.costs,
            whole=free,
            widths=widths,
            upper=_upper(within),
            round_to=round_to,
        )

    def cost(self, widths: Mapping[str, int]) -> float:
        """Return the predicted cost of widths; groups that are not named stay whole."""
        return network_cost(self.costs, self.sites, {**self.whole, **widths})


def pricing_of(context: Context, node: Node, kind: str) -> Pricing:
    """Return the prices that a finder decides by; latencies come from its parent `table`.

    Raises:
        ShrinkError: a layer of the network has no price.
    """
    dense = dense_network(context, node.replicate or 0)
    sites = layer_sites(dense, context.example_inputs, context.groups)
    whole = {group.name: group.width for group in context.groups}
    costs = cost_model(context, node, kind, sites, whole)
    return Pricing(groups=context.groups, sites=sites, costs=costs)


def scores_within(score_by_group: Mapping[str, Tensor], within: Mask | None) -> dict[str, Tensor]:
    """Return the scores with 0 for channels that are gone already."""
    gone = {} if within is None else within.keep_by_group
    return {
        name: score_C.double().masked_fill(~gone[name], 0.0) if name in gone else score_C.double()
        for name, score_C in score_by_group.items()
    }


def budget_chooser(context: Context, node: Node) -> Callable[[Mapping[str, Tensor]], Mask]:
    """Return what gives the mask of scores within the node's target, by its prices alone.

    Raises:
        ShrinkError: a layer of the network has no price.
    """
    ((kind, asked),) = node.item["target"].items()
    prices, round_to = pricing_of(context, node, kind), context.recipe.find.round_to

    def choose(score_by_group: Mapping[str, Tensor]) -> Mask:
        choice = prices.choose(score_by_group, share=asked, round_to=round_to)
        return mask_from_widths(choice.widths, score_by_group, context.groups)

    return choose


def uniform_latency_mask(context: Context, node: Node, like: Mask) -> tuple[Mask, dict[str, Any]]:
    """Return the mask of one width multiplier whose predicted latency is nearest to that of `like`.

    Of equally near ones the widest is taken: channels that cost nothing are kept, as the ticket keeps them.
    """
    prices = pricing_of(context, node, LATENCY)

    def share(mask: Mask) -> float:
        return prices.share({name: w for name, w in mask.kept_widths().items() if name in prices.whole})

    target = share(like)
    masks = uniform_masks(context.groups, round_to=context.recipe.find.round_to)
    mask = min(reversed(masks), key=lambda one: round(abs(share(one) - target), 9))
    return mask, {"predicted": share(mask), "predicted_of_ticket": target}


def _upper(within: Mask | None) -> Mapping[str, int] | None:
    return None if within is None else within.kept_widths()
