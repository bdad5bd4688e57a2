"""The step that finds: a subject's mask from what was trained before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.data.augment import normalise
from ticket_export.find.control import (
    macs_of_masks,
    random_mask,
    scoped_groups,
    shuffled_blocks,
    shuffled_elements,
    uniform_mask,
)
from ticket_export.find.depgraph import depgraph_mask
from ticket_export.find.early_bird import gamma_mask, gamma_scores
from ticket_export.find.imp import imp_mask, last_linear, layer_drop_fractions, prunable_weights
from ticket_export.find.in_loop import prune_round
from ticket_export.find.refill import (
    SCORES,
    channel_scores,
    refill,
    refill_rows,
    remaining_shares,
)
from ticket_export.find.regroup import regroup, require_regroupable
from ticket_export.find.rst import rst_mask
from ticket_export.find.score import taylor_saliency, torch_pruning_scores
from ticket_export.pipeline.budgets import uniform_latency_mask
from ticket_export.pipeline.chosen_widths import (
    mask_within_budget,
    widths_of_shares,
    with_free_channels,
)
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import (
    ELEMENTS_FILE,
    REWIND_FILE,
    WEIGHTS_FILE,
    block_facts,
    blocks_of,
    dense_form,
    dense_network,
    elements_of,
    load_state,
    mask_of,
    save_mask,
    unpruned_weights,
)
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.work import Emit
from ticket_export.recipe.find_sections import (
    ChannelImpSection,
    EarlyBirdSection,
    ImpSection,
    RefillPlusSection,
    RefillSection,
    RegroupSection,
    RoundsSection,
    RstSection,
)
from ticket_export.seeds import seed_from_path, stream
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.stages import Subject, subject_from_text

SHARES_FILE = "shares.json"  # of in-loop finders: group -> share of its width, unrounded
_NUM_SCORED = 256  # training images that gradients are taken on


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a finder decided: channels, single weights where it decides on those, and facts of its own."""

    mask: Mask
    elements: ElementMask | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values
    shares: Mapping[str, float] | None = None


def find_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Find one subject's mask and write it."""
    context.device  # sets torch's threads  # noqa: B018
    subject = subject_from_text(node.subject)
    if subject.kind == "unstructured":
        found = _magnitude(context, node, subject)
    elif subject.kind in ("ticket", "no_reactivation"):
        found = _TICKETS[context.recipe.find.method](context, node, subject, scratch)
    else:
        found = _control(context, node, subject)
    save_mask(found.mask, folder)
    if found.elements is not None:
        found.elements.save(folder / ELEMENTS_FILE)
    if found.shares is not None:
        (folder / SHARES_FILE).write_text(json.dumps(found.shares), encoding="utf-8")
    return _facts(context, node, subject, found)


def _whole(context: Context) -> Mask:
    return Mask({group.name: torch.ones(group.width, dtype=torch.bool) for group in context.groups})


def _magnitude(context: Context, node: Node, subject: Subject) -> Found:
    previous = elements_of(context, node.parents["previous"]) if "previous" in node.parents else None
    names, drop_fraction = _rates(context, dense_network(context, node.replicate or 0))
    find = context.recipe.find
    assert isinstance(find, RoundsSection)  # their graphs hold no such finder
    elements = imp_mask(
        load_state(context.file(node.parents["trained"], WEIGHTS_FILE)),
        names,
        level=subject.level or 0,  # only dense has none
        drop_fraction=drop_fraction,
        scope=find.magnitude_scope,
        previous=previous,
    )
    return Found(mask=_whole(context), elements=elements)


def _rates(context: Context, dense: nn.Module) -> tuple[tuple[str, ...], float | dict[str, float]]:
    """Return the weights that may be dropped and the share that a round drops of them."""
    find = context.recipe.find
    assert isinstance(find, RoundsSection)  # they drop channels, not weights
    names = prunable_weights(dense, unpruned=unpruned_weights(context))
    if find.conv_drop_fraction is None and find.classifier_drop_fraction is None:
        return names, find.drop_fraction
    classifier = None
    if find.classifier_drop_fraction is not None:
        classifier = (last_linear(dense), find.classifier_drop_fraction)
    rates = layer_drop_fractions(
        dense, names, drop_fraction=find.drop_fraction, conv=find.conv_drop_fraction, classifier=classifier
    )
    return tuple(rates), rates


def _refilled(context: Context, node: Node, subject: Subject, scratch: Path) -> Found:
    find = context.recipe.find
    assert isinstance(find, RefillSection | RefillPlusSection)
    elements = elements_of(context, node.parents["elements"])
    assert elements is not None  # its finder always publishes them
    network = dense_form(context, node.parents["trained"])
    extra_fraction = find.extra_fraction if isinstance(find, RefillPlusSection) else 0.0
    weights, by_group = _scores(context, network, find.score)
    score = find.score if find.score in SCORES else "l1"  # l1 of what stands in the weights' place
    if find.scope == "layer":
        options: dict[str, Any] = {"score": score, "extra_fraction": extra_fraction}  # Any: keyword arguments
        mask = refill(elements, weights, context.groups, scope="layer", round_to=find.round_to, **options)
        rows = refill_rows(elements, weights, context.groups, **options)
        return Found(mask=mask, elements=rows, facts={"element_density": elements.element_density})
    if by_group is None:
        by_group = channel_scores(elements, weights, context.groups, score=score)
    shares = remaining_shares(elements, context.groups, scope=find.scope, extra_fraction=extra_fraction)
    mask, cost = widths_of_shares(context, node, shares, by_group, scratch)
    return Found(mask=mask, facts={"element_density": elements.element_density, **cost})


def _scores(
    context: Context, network: nn.Module, score: str
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """Return what stands for the weights in a score, and the scores of channels where those are given."""
    weights: Mapping[str, Tensor] = network.state_dict()
    if score == "gamma":
        return weights, gamma_scores(network, context.groups)
    if score == "taylor":
        return {**weights, **taylor_saliency(network, *_scored_images(context))}, None
    if score.startswith("tp_"):
        return weights, torch_pruning_scores(score, network, context.groups, *_scored_images(context))
    return weights, None


def _scored_images(context: Context) -> tuple[Tensor, Tensor]:
    """Return training images as networks take them, and their labels: the same for all subjects."""
    images = context.images
    order = torch.randperm(len(images.train_y), generator=stream(context.recipe.seed, "find", "score"))
    chosen = order[:_NUM_SCORED]
    return normalise(images.train_x[chosen], context.mean, context.std), images.train_y[chosen]


def _in_loop(context: Context, node: Node, subject: Subject, scratch: Path) -> Found:
    find = context.recipe.find
    assert isinstance(find, ChannelImpSection)
    previous, shares = None, {}
    if "previous" in node.parents:
        previous = mask_of(context, node.parents["previous"])
        shares = json.loads(context.file(node.parents["previous"], SHARES_FILE).read_text(encoding="utf-8"))
    network = dense_form(context, node.parents["trained"])
    weights, by_group = _scores(context, network, find.score)
    names, drop_fraction = _rates(context, network)
    pruned = prune_round(
        network.state_dict(),
        names,
        context.groups,
        drop_fraction=drop_fraction,
        magnitude_scope=find.magnitude_scope,
        scope=find.scope,
        previous=previous,
        previous_shares=shares,
    )
    if by_group is None:
        score = find.score if find.score in SCORES else "l1"
        by_group = channel_scores(pruned.element_mask, weights, context.groups, score=score)
    mask, cost = widths_of_shares(context, node, pruned.shares, by_group, scratch, within=previous)
    return Found(mask=mask, shares=pruned.shares, facts=cost)


def _regrouped(context: Context, node: Node, subject: Subject, scratch: Path) -> Found:
    find = context.recipe.find
    assert isinstance(find, RegroupSection)
    elements = elements_of(context, node.parents["elements"])
    assert elements is not None  # its finder always publishes them
    dense = dense_network(context, node.replicate or 0)
    found = regroup(
        elements,
        load_state(context.file(node.parents["trained"], WEIGHTS_FILE)),
        require_regroupable(dense, list(elements.keep_by_parameter)),
        num_groups=find.num_groups,
        min_rows=find.min_rows,
        columns=find.columns,
        equal_blocks=find.equal_blocks,
        extra_fraction=find.extra_fraction,
        round_to=find.round_to,
        seed=seed_from_path(context.recipe.seed, "replicate", node.replicate or 0, "find", str(subject)),
    )
    return Found(
        mask=_whole(context),
        elements=found.element_mask,
        facts={
            "imp_density": elements.element_density,
            "blocks": {"no_block": dict(found.no_block)},
        },
    )


def _early_bird(context: Context, node: Node, subject: Subject, scratch: Path) -> Found:
    find = context.recipe.find
    assert isinstance(find, EarlyBirdSection)
    search = node.parents["trained"]
    network = dense_form(context, search)
    ranked = {group.name for group in scoped_groups(context.groups, find.scope) if group.pinned is None}
    scores = {g: score_C for g, score_C in gamma_scores(network, context.groups).items() if g in ranked}
    cost: dict[str, Any] = {}  # Any: JSON values
    if find.drop_fraction is None:
        mask, cost = mask_within_budget(context, node, scores, scratch)
    else:
        mask = gamma_mask(
            network,
            context.groups,
            drop_fraction=find.drop_fraction,
            scope=find.scope,
            round_to=find.round_to,
        )
    mask, free = with_free_channels(context, node, scores, mask, scratch)
    facts = context.result(search).facts
    told = {name: facts[name] for name in ("distances", "found_epoch")}
    return Found(mask=mask, facts={**told, **cost, **free})


def _random_sparse(context: Context, node: Node, subject: Subject, scratch: Path) -> Found:
    find = context.recipe.find
    assert isinstance(find, RstSection)
    path = ("replicate", node.replicate or 0, "find", str(subject))
    mask = rst_mask(
        context.groups,
        load_state(context.file(node.parents["start"], REWIND_FILE)),
        drop_fraction=find.drop_fraction,
        criterion=find.criterion,
        scope=find.scope,
        round_to=find.round_to,
        generator=stream(context.recipe.seed, *path),
    )
    return Found(mask=mask)


def _searched(context: Context, node: Node, subject: Subject, scratch: Path) -> Found:
    """Return what a search ended with; its training decided."""
    search = node.parents["trained"]
    facts = context.result(search).facts
    return Found(mask=mask_of(context, search), facts={"events": facts["events"]})


_TICKETS = {
    "refill": _refilled,
    "refill_plus": _refilled,
    "regroup": _regrouped,
    "channel_imp": _in_loop,
    "early_bird": _early_bird,
    "rst": _random_sparse,
    "supernet": _searched,
}


def _control(context: Context, node: Node, subject: Subject) -> Found:
    like, find = node.parents["like"], context.recipe.find
    if subject.kind in ("random", "random_reinit"):
        # One shuffle for both: they differ in their weights alone
        path = ("replicate", node.replicate or 0, "find", str(Subject("random", subject.level)))
        generator = stream(context.recipe.seed, *path)
        elements = elements_of(context, like)
        if isinstance(find, ImpSection | RegroupSection) and elements is not None:
            shuffled = shuffled_elements if isinstance(find, ImpSection) else shuffled_blocks
            return Found(mask=mask_of(context, like), elements=shuffled(elements, generator))
        return Found(mask=random_mask(mask_of(context, like), generator))
    if subject.kind == "uniform_latency":
        mask, facts = uniform_latency_mask(context, node, mask_of(context, like))
        return Found(mask=mask, facts=facts)
    dense = dense_network(context, node.replicate or 0)
    target_macs = context.result(like).facts["macs"]
    scope = "inner" if find.scope == "inner" else "coupled"
    if subject.kind == "depgraph":
        dense.load_state_dict(load_state(context.file(node.parents["trained"], WEIGHTS_FILE)))
        return Found(
            mask=depgraph_mask(
                dense,
                context.example_inputs,
                context.groups,
                target_macs=target_macs,
                round_to=find.round_to,
                scope=scope,
            )
        )
    macs_of = macs_of_masks(dense, context.example_inputs, context.groups)
    return Found(
        mask=uniform_mask(context.groups, round_to=find.round_to, target_macs=target_macs, macs_of=macs_of)
    )


def _with_elements(dense: nn.Module, elements: ElementMask) -> nn.Module:
    """Return the network, in eval mode, with zeros where the mask drops a weight."""
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name in elements.keep_by_parameter:
                parameter.mul_(elements.keep_by_parameter[name])
    return dense.eval()


def _facts(context: Context, node: Node, subject: Subject, found: Found) -> dict[str, Any]:
    """Return what the network that a mask leaves has: weights, MACs as they are executed, widths."""
    find = context.recipe.find
    dense = dense_network(context, node.replicate or 0)
    before = count_costs(dense, context.example_inputs)
    small = small_from_mask(dense, context.groups, found.mask)
    after = count_costs(small, context.example_inputs)
    params, macs, blocks = after.params, after.macs, {}
    if found.elements is not None and found.mask.channel_density == 1.0:
        params = before.params - sum(int((~keep).sum()) for keep in found.elements.keep_by_parameter.values())
        if isinstance(find, RegroupSection) and subject.kind != "unstructured":
            form = blocks_of(context, _with_elements(dense, found.elements))
            no_block = found.facts.get("blocks", {}).get("no_block", {})
            macs, blocks = form.macs, {"blocks": {"layers": block_facts(form), "no_block": no_block}}
    kept = found.mask.kept_widths()
    elements = {} if found.elements is None else {"element_density": found.elements.element_density}
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        "method": "magnitude" if subject.kind == "unstructured" else find.method,
        "level": subject.level,
        "scope": find.scope,
        "channel_density": found.mask.channel_density,
        "param_density": params / before.params,
        "mac_density": macs / before.macs,
        "params": params,
        "macs": macs,
        "not_counted": dict(after.not_counted),
        **elements,
        **found.facts,
        **blocks,
        "widths": {
            group.name: {"before": group.width, "after": kept[group.name]}
            for group in context.groups
            if group.name in kept
        },
    }
