"""The step that searches: a supernet is trained, pruned and cut until its budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ticket_export.channels.costs import count_costs
from ticket_export.data.augment import Augment
from ticket_export.find.best import best_channels
from ticket_export.find.knapsack import Limits, choose_widths
from ticket_export.find.search_rules import Choose, SearchResult, SearchRules
from ticket_export.find.supernet import search
from ticket_export.find.supernet_events import ranked_choice
from ticket_export.models.supernet import decision_norms
from ticket_export.pipeline.budgets import pricing_of
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import (
    WEIGHTS_FILE,
    dense_network,
    save_mask,
    save_state,
    scattered,
)
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.work import Emit
from ticket_export.recipe.supernet_section import SupernetSection
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.train.penalty import mean_prices
from ticket_export.train.settings import TrainSettings

_KINDS = {"weights": "param_fraction", "macs": "mac_fraction", "latency": "latency_fraction"}


def search_step(
    context: Context,
    node: Node,
    folder: Path,
    scratch: Path,
    progress: Emit,
    *,
    augment: Augment,
    settings: TrainSettings,
    seed_path: tuple[int | str, ...],
) -> dict[str, Any]:
    """Search a supernet and write the mask it ends with and its weights, in the dense shape.

    A checkpoint in `scratch` is resumed.
    """
    find = context.recipe.find
    assert isinstance(find, SupernetSection)  # no other method searches this way
    dense = dense_network(context, node.replicate or 0)
    device = context.device
    found = search(
        dense,
        context.images,
        groups=context.groups,
        decisions=decision_norms(dense),
        augment=augment,
        settings=settings,
        rules=_rules(find, node),
        seed_path=seed_path,
        prices=_prices(context, node, find.price, decision_norms(dense)),
        choose=_choice(context, node, find),
        device=device,
        checkpoint_folder=scratch,
        on_event=progress,
    )
    save_mask(found.mask, folder)
    small = small_from_mask(dense, context.groups, found.mask)
    small.load_state_dict(found.weights)
    masked = scattered(small, dense_network(context, node.replicate or 0), context.groups, found.mask)
    save_state(masked.state_dict(), folder / WEIGHTS_FILE)
    costs = count_costs(small, context.example_inputs)
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        **_trained_facts(found),
        "threads": context.threads,
        "device": str(device),
        "params": costs.params,
        "macs": costs.macs,
        "reactivation": node.item.get("reactivation", True),
        "events": [asdict(event) for event in found.events],
        "event_seconds": found.event_seconds,
    }


def _rules(find: SupernetSection, node: Node) -> SearchRules:
    return SearchRules(
        event_epochs=find.event_epochs,
        drop_step=find.drop_step,
        drop_fraction=find.final_target,
        gamma_l1=find.gamma_l1,
        ramp_epochs=find.ramp_epochs,
        gamma_threshold=find.gamma_threshold,
        reactivation=node.item.get("reactivation", find.reactivation),
        zeroes=find.zeroes,
        ema_decay=find.ema_decay,
        norm_batches=find.norm_batches,
    )


def _trained_facts(found: SearchResult) -> dict[str, Any]:  # Any: JSON values
    """Return the facts that every training has; its MACs are the mean over what it trained meanwhile."""
    best = min(found.history, key=lambda record: record["val_loss"])
    num_images = sum(event.trained_images for event in found.events)
    steps_before = found.events[0].trained_images // found.events[0].epoch
    return {
        "history": list(found.history),
        "num_epochs": len(found.history),
        "end_epoch": found.num_epochs,
        "min_val_loss": best["val_loss"],
        "min_val_loss_iteration": int((best["epoch"] + 1) * steps_before),
        "val_accuracy": found.history[-1]["val_accuracy"],
        "early_stop": None,
        "seconds": found.seconds + found.event_seconds,
        "processes": found.num_processes,
        "trained_macs": found.image_macs // num_images,
    }


def _prices(context: Context, node: Node, price: str, scales: Sequence[str]) -> dict[str, float] | None:
    """Return norm scale -> what one of its channels costs over the mean of all; None = all alike."""
    if price == "none":
        return None
    pricing = pricing_of(context, node, _KINDS[price])
    group_by_scale = {member.tensor: group for group in context.groups for member in group.members}
    groups = {scale: group_by_scale[scale] for scale in scales}
    cost_by_name = {
        scale: (pricing.cost({}) - pricing.cost({group.name: 0})) / group.width
        for scale, group in groups.items()
    }
    return mean_prices(cost_by_name, {scale: group.width for scale, group in groups.items()})


def _choice(context: Context, node: Node, find: SupernetSection) -> Choose:
    """Return what decides at an event which channels stay."""
    if find.budget is None:
        return ranked_choice(context.groups, round_to=find.round_to)
    pricing = pricing_of(context, node, find.budget.kind)
    may_be_empty = frozenset(group.name for group in context.groups if group.branch is not None)

    def choose(score_by_group: Mapping[str, Tensor], target: float) -> Mapping[str, Tensor]:
        there = {name: int((score_C > 0).sum()) for name, score_C in score_by_group.items()}
        chosen = choose_widths(
            {name: score_C for name, score_C in score_by_group.items() if there[name]},
            pricing.sites,
            pricing.costs,
            whole=pricing.whole | {name: 0 for name, width in there.items() if not width},
            target=pricing.cost({}) * (1 - target),
            objective="sum",
            limits=Limits(round_to=find.round_to, upper=there, may_be_empty=may_be_empty),
        )
        return {
            name: best_channels(score_C, chosen.widths.get(name, 0))
            for name, score_C in score_by_group.items()
        }

    return choose
