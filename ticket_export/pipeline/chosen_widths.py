"""Chosen widths as masks: by shares or within a budget, filled with free channels, and timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.find.best import mask_from_widths
from ticket_export.find.knapsack import Choice
from ticket_export.find.refill import mask_from_shares
from ticket_export.pipeline.budgets import LATENCY, Pricing, pricing_of
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import dense_network
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.share_timer import Share, ShareTimer, timer_of
from ticket_export.recipe.find_sections import WidthsSection
from ticket_export.shrink.surgery import small_from_mask

MAX_TRIES = 3  # of a latency budget: a table that misses twice by more than the tolerance misses for a reason
TOLERANCE = 0.02  # of dense: how far the measured share may lie from the asked one


def widths_of_shares(
    context: Context,
    node: Node,
    shares: Mapping[str, float],
    by_group: Mapping[str, Tensor],
    scratch: Path,
    *,
    within: Mask | None = None,
) -> tuple[Mask, dict[str, Any]]:  # Any: JSON values
    """Return the mask of these shares, or of the most important channels within the budget."""
    round_to = context.recipe.find.round_to
    scores = {name: by_group[name] for name in shares if name in by_group}
    if "target" in node.item and len(scores) == len(shares):
        mask, cost = mask_within_budget(context, node, scores, scratch, within=within)
    else:  # tells of groups without scores
        mask = mask_from_shares(shares, by_group, context.groups, round_to=round_to, within=within)
        cost = {}
    mask, free = with_free_channels(context, node, scores, mask, scratch, within=within)
    return mask, {**cost, **free}


def with_free_channels(
    context: Context,
    node: Node,
    scores: Mapping[str, Tensor],
    mask: Mask,
    scratch: Path,
    *,
    within: Mask | None = None,
) -> tuple[Mask, dict[str, Any]]:  # Any: JSON values
    """Return the mask, with its free channels where the recipe asks for them."""
    find = context.recipe.find
    if not (isinstance(find, WidthsSection) and find.free_channels):
        return mask, {}
    return filled_mask(context, node, scores, mask, scratch, within=within)


def mask_within_budget(
    context: Context,
    node: Node,
    score_by_group: Mapping[str, Tensor],
    scratch: Path,
    *,
    within: Mask | None = None,
) -> tuple[Mask, dict[str, Any]]:  # Any: JSON values
    """Return the mask that keeps the most importance within the node's target, and the facts of the choice.

    A budget of latency is chosen by the table and then timed beside dense. Where the measured share is more
    than 2 points off, it is chosen again by a target that is corrected by what the table missed, three times
    at most; the nearest of all tries is taken.

    Args:
        context: of the run.
        node: the finder; its item names the target.
        score_by_group: of the groups to choose for.
        scratch: where networks to be timed are exported.
        within: only channels of this mask are kept.

    Raises:
        ShrinkError: no network is that cheap, or a layer has no price.
    """
    ((kind, asked),) = node.item["target"].items()
    prices, round_to = pricing_of(context, node, kind), context.recipe.find.round_to
    dense = dense_network(context, node.replicate or 0)
    if kind == LATENCY:
        timer = timer_of(context, node, dense, scratch)
        tries = _tries(context, prices, timer, score_by_group, asked, within=within)
        one = min(tries, key=lambda one: abs(one.measured.share - asked))
        mask, choice, reached = one.mask, one.choice, one.measured.share
        timed = {"measured": asdict(one.measured), "tries": [one.facts for one in tries]}
    else:
        choice = prices.choose(score_by_group, share=asked, round_to=round_to, within=within)
        mask = mask_from_widths(choice.widths, score_by_group, context.groups, within=within)
        reached = _counted_share(context, dense, mask, kind)
        timed = {}
    return mask, {
        "target": {kind: asked},
        "reached": reached,
        "predicted": prices.share(choice.widths),
        "kept_importance": choice.kept_importance,
        "gap": choice.gap,
        **timed,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """A choice by the table and what it takes."""

    choice: Choice
    mask: Mask
    predicted: float
    measured: Share

    @property
    def facts(self) -> dict[str, Any]:  # Any: JSON values
        return {"predicted": self.predicted, "measured": asdict(self.measured)}


def _tries(
    context: Context,
    prices: Pricing,
    timer: ShareTimer,
    score_by_group: Mapping[str, Tensor],
    asked: float,
    *,
    within: Mask | None,
) -> list[_Try]:
    """Return the choices at targets that are corrected until one takes what is asked."""
    round_to, tries, aim = context.recipe.find.round_to, list[_Try](), asked
    while len(tries) < MAX_TRIES:
        try:
            choice = prices.choose(score_by_group, share=aim, round_to=round_to, within=within)
        except ShrinkError:
            if not tries:
                raise
            break  # the corrected target is too low for any network: the tries before it are told
        if any(choice.widths == older.choice.widths for older in tries):
            break
        mask = mask_from_widths(choice.widths, score_by_group, context.groups, within=within)
        predicted, measured = prices.share(choice.widths), timer.share_of_dense(mask)
        tries.append(_Try(choice=choice, mask=mask, predicted=predicted, measured=measured))
        if abs(measured.share - asked) <= TOLERANCE:
            break
        aim = min(1.0, asked * predicted / measured.share)
    return tries


def filled_mask(
    context: Context,
    node: Node,
    score_by_group: Mapping[str, Tensor],
    mask: Mask,
    scratch: Path,
    *,
    within: Mask | None = None,
) -> tuple[Mask, dict[str, Any]]:  # Any: JSON values
    """Return the mask with the channels that the table calls free, timed beside the one without them.

    Args:
        context: of the run.
        node: the finder.
        score_by_group: of the groups that may grow.
        mask: what was chosen.
        scratch: where networks to be timed are exported.
        within: only channels of this mask are kept.

    Raises:
        ShrinkError: a layer has no price.
    """
    prices = pricing_of(context, node, LATENCY)
    choice = prices.fill(score_by_group, mask, round_to=context.recipe.find.round_to, within=within)
    chosen = {name: width for name, width in choice.widths.items() if name in score_by_group}
    filled = mask_from_widths(chosen, score_by_group, context.groups, within=within)
    before, after = mask.kept_widths(), filled.kept_widths()
    timer = timer_of(context, node, dense_network(context, node.replicate or 0), scratch)
    facts: dict[str, Any] = {  # Any: JSON values
        "channels_before": sum(before.values()),
        "channels_after": sum(after.values()),
        "predicted": prices.share(chosen) / prices.share({n: w for n, w in before.items() if n in chosen}),
        "measured": None if before == after else asdict(timer.share(filled, mask)),
    }
    return filled, {"free_channels": facts}


def _counted_share(context: Context, dense: nn.Module, mask: Mask, kind: str) -> float:
    before = count_costs(dense, context.example_inputs)
    after = count_costs(small_from_mask(dense, context.groups, mask), context.example_inputs)
    return after.params / before.params if kind == "param_fraction" else after.macs / before.macs
