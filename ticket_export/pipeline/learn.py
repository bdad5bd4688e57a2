"""The steps that learn: trainings from the start or the rewind point, and the masks found between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import ElementMask, Mask, zero_dropped
from ticket_export.data.augment import Augment
from ticket_export.find.control import macs_of_masks, random_mask, uniform_mask
from ticket_export.find.depgraph import depgraph_mask
from ticket_export.find.imp import imp_mask, prunable_weights
from ticket_export.find.refill import refill, refill_rows
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import (
    ELEMENTS_FILE,
    REWIND_FILE,
    WEIGHTS_FILE,
    dense_network,
    elements_of,
    is_small,
    load_state,
    mask_of,
    save_mask,
    save_state,
    small_elements,
)
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.work import Emit
from ticket_export.recipe.schema import ZOO_PREFIX
from ticket_export.seeds import stream
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.stages import Subject, subject_from_text
from ticket_export.train.loop import train
from ticket_export.train.masked import hold_zero_from_mask
from ticket_export.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Where a training begins; `hold_zero` is parameter name -> bool, True = keep."""

    model: nn.Module
    epoch: int
    hold_zero: Mapping[str, Tensor] | None


def train_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Train one subject and write its weights, for the dense one also those of the rewind point.

    A checkpoint in `scratch` is resumed.
    """
    device = context.device  # first, as it sets torch's threads
    recipe = context.recipe
    is_dense = subject_from_text(node.subject).kind == "dense"
    start = _start(context, node)
    result = train(
        start.model,
        context.images,
        augment=_augment(context),
        settings=_settings(context),
        seed_path=(recipe.seed, "replicate", node.replicate or 0),
        device=device,
        start_epoch=start.epoch,
        snapshot_epoch=recipe.find.rewind_epoch if is_dense else None,
        hold_zero=start.hold_zero,
        checkpoint_folder=scratch,
        on_event=progress,
    )
    save_state(result.weights, folder / WEIGHTS_FILE)
    if result.snapshot is not None:
        save_state(result.snapshot, folder / REWIND_FILE)
    costs = count_costs(start.model.cpu(), context.example_inputs)
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        "history": list(result.history),
        "min_val_loss": result.min_val_loss,
        "min_val_loss_iteration": result.min_val_loss_iteration,
        "val_accuracy": result.val_accuracy,
        "seconds": result.seconds,
        "threads": context.threads,
        "device": str(device),
        "params": costs.params,
        "macs": costs.macs,
    }


def _augment(context: Context) -> Augment:
    data = context.recipe.data
    return Augment(
        mean=context.mean,
        std=context.std,
        pad_crop=data.pad_crop,
        flip=data.flip,
        cutout=data.cutout,
        rotation=data.rotation,
        random_resized_crop=data.random_resized_crop,
    )


def _settings(context: Context) -> TrainSettings:
    values = context.recipe.train.model_dump()
    if values["gamma"] is None:  # only `step` has one
        del values["gamma"]
    return TrainSettings(**values)


def _start(context: Context, node: Node) -> _Start:
    """Return the network a training begins with: fresh or rewound; whole, cut small, or held at zero."""
    assert node.replicate is not None  # trainings have one
    subject = subject_from_text(node.subject)
    model = dense_network(context, node.replicate)
    epoch = 0
    if "start" in node.parents:
        model.load_state_dict(load_state(context.file(node.parents["start"], REWIND_FILE)))
        epoch = context.recipe.find.rewind_epoch
    elif subject.kind != "dense":
        model = context.fresh_network(node.replicate, subject)
    if "mask" not in node.parents:
        return _Start(model=model, epoch=epoch, hold_zero=None)
    finder = node.parents["mask"]
    elements = elements_of(context, finder)
    if subject.kind == "unstructured":
        assert elements is not None  # its finder publishes nothing else
        return _Start(model=model, epoch=epoch, hold_zero=elements.keep_by_parameter)
    mask = mask_of(context, finder)
    cut = _cut_small if is_small(context, node) else _hold_masked
    return cut(context, model, mask, elements, epoch)


def _cut_small(
    context: Context, model: nn.Module, mask: Mask, rows: ElementMask | None, epoch: int
) -> _Start:
    held = None if rows is None else small_elements(rows, model, context.groups, mask)
    return _Start(model=small_from_mask(model, context.groups, mask), epoch=epoch, hold_zero=held)


def _hold_masked(
    context: Context, model: nn.Module, mask: Mask, rows: ElementMask | None, epoch: int
) -> _Start:
    zero_dropped(model, context.groups, mask)
    held = hold_zero_from_mask(model, context.groups, mask)
    for name, keep in ({} if rows is None else rows.keep_by_parameter).items():
        held[name] = keep & held[name] if name in held else keep
    return _Start(model=model, epoch=epoch, hold_zero=held)


def find_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Find one subject's mask and write it."""
    subject = subject_from_text(node.subject)
    if subject.kind == "unstructured":
        return _find_elements(context, node, folder)
    if subject.kind == "ticket":
        mask, rows, element_density = _refilled(context, node)
    else:
        mask, rows, element_density = _control(context, node, subject), None, None
    save_mask(mask, folder)
    if rows is not None:
        rows.save(folder / ELEMENTS_FILE)
    return {**_facts(context, node, mask), "element_density": element_density}


def _find_elements(context: Context, node: Node, folder: Path) -> dict[str, Any]:
    """One round of magnitude pruning on what the previous one left."""
    find = context.recipe.find
    trained = node.parents["trained"]
    weights = load_state(context.file(trained, WEIGHTS_FILE))
    dense = dense_network(context, node.replicate or 0)
    previous = elements_of(context, node.parents["previous"]) if "previous" in node.parents else None
    level = subject_from_text(node.subject).level
    assert level is not None  # only dense has none
    elements = imp_mask(
        weights,
        prunable_weights(dense, unpruned=_unpruned(context)),
        level=level,
        drop_fraction=find.drop_fraction,
        scope=find.magnitude_scope,
        previous=previous,
    )
    elements.save(folder / ELEMENTS_FILE)
    costs = count_costs(dense, context.example_inputs)
    num_dropped = sum(int((~keep).sum()) for keep in elements.keep_by_parameter.values())
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        "method": "magnitude",
        "scope": find.magnitude_scope,
        "element_density": elements.element_density,
        "channel_density": 1.0,  # whole channels are decided on by others
        "param_density": 1.0 - num_dropped / costs.params,
        "mac_density": 1.0,  # zeros are multiplied like other numbers
        "params": costs.params,
        "macs": costs.macs,
        "widths": {},
    }


def _unpruned(context: Context) -> tuple[str, ...] | None:
    """Return the weights that a network of the zoo leaves whole; for a foreign one the finder has a rule."""
    builder = context.recipe.model.builder
    return ZOO_FACTS[builder.removeprefix(ZOO_PREFIX)].unpruned if builder.startswith(ZOO_PREFIX) else None


def _refilled(context: Context, node: Node) -> tuple[Mask, ElementMask | None, float]:
    find = context.recipe.find
    elements = elements_of(context, node.parents["elements"])
    assert elements is not None  # its finder publishes nothing else
    weights = load_state(context.file(node.parents["trained"], WEIGHTS_FILE))
    mask = refill(elements, weights, context.groups, scope=find.scope, round_to=find.round_to)
    rows = refill_rows(elements, weights, context.groups) if find.scope == "layer" else None
    return mask, rows, elements.element_density


def _control(context: Context, node: Node, subject: Subject) -> Mask:
    ticket = mask_of(context, node.parents["like"])
    if subject.kind == "random":
        path = ("replicate", node.replicate or 0, "find", str(subject))
        return random_mask(ticket, stream(context.recipe.seed, *path))
    dense, find = dense_network(context, node.replicate or 0), context.recipe.find
    macs_of = macs_of_masks(dense, context.example_inputs, context.groups)
    target_macs = macs_of(ticket)
    if subject.kind == "depgraph":
        dense.load_state_dict(load_state(context.file(node.parents["trained"], WEIGHTS_FILE)))
        return depgraph_mask(
            dense,
            context.example_inputs,
            context.groups,
            target_macs=target_macs,
            round_to=find.round_to,
            scope="inner" if find.scope == "inner" else "coupled",
        )
    return uniform_mask(context.groups, round_to=find.round_to, target_macs=target_macs, macs_of=macs_of)


def _facts(context: Context, node: Node, mask: Mask) -> dict[str, Any]:
    find = context.recipe.find
    dense = dense_network(context, node.replicate or 0)
    before = count_costs(dense, context.example_inputs)
    after = count_costs(small_from_mask(dense, context.groups, mask), context.example_inputs)
    kept = mask.kept_widths()
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        "method": find.method,
        "scope": find.scope,
        "channel_density": mask.channel_density,
        "param_density": after.params / before.params,
        "mac_density": after.macs / before.macs,
        **asdict(after),
        "widths": {
            group.name: {"before": group.width, "after": kept[group.name]}
            for group in context.groups
            if group.name in kept
        },
    }
