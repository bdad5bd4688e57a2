"""The step that trains: from fresh, rewound or trained weights, whole, cut small, or held at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import ElementMask, Mask, zero_dropped
from ticket_export.data.augment import Augment
from ticket_export.errors import TrainError
from ticket_export.find.early_bird import EarlyBird
from ticket_export.find.rst import dropped_elements
from ticket_export.pipeline.budgets import budget_chooser
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import (
    REWIND_FILE,
    WEIGHTS_FILE,
    dense_form,
    dense_network,
    elements_of,
    is_small,
    load_state,
    mask_of,
    save_state,
    small_elements,
    trained_network,
)
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.searching import search_step
from ticket_export.pipeline.work import Emit
from ticket_export.recipe.find_sections import EarlyBirdSection, RoundsSection, RstSection
from ticket_export.recipe.supernet_section import SupernetSection
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.stages import Subject, subject_from_text
from ticket_export.train.distill import Distill
from ticket_export.train.evaluate import evaluate
from ticket_export.train.loop import TrainResult, train
from ticket_export.train.masked import hold_zero_from_mask
from ticket_export.train.penalty import GammaL1, GrowingL2, Penalty, norm_scales
from ticket_export.train.points import Point
from ticket_export.train.schedule import learning_rate
from ticket_export.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Where a training begins; `hold_zero` is parameter name -> bool, True = keep."""

    model: nn.Module
    point: Point
    hold_zero: Mapping[str, Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """What a training that searches adds to the loss, and what ends it."""

    penalties: tuple[Penalty, ...] = ()
    observer: EarlyBird | None = None


def train_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Train one subject and write its weights, for the dense one also those of the rewind point.

    A checkpoint in `scratch` is resumed.
    """
    context.device  # sets torch's threads  # noqa: B018
    subject = subject_from_text(node.subject)
    if subject.kind == "search" and context.recipe.find.method == "supernet":
        return search_step(
            context,
            node,
            folder,
            scratch,
            progress,
            augment=_augment(context),
            settings=_settings(context, subject),
            seed_path=_seed_path(context, node, subject),
        )
    return _trained(context, node, subject, folder, scratch, progress)


def _trained(
    context: Context, node: Node, subject: Subject, folder: Path, scratch: Path, progress: Emit
) -> dict[str, Any]:  # Any: JSON values
    device, find = context.device, context.recipe.find
    start = _start(context, node, subject)
    search = _search(context, node, subject, start.model)
    result = train(
        start.model,
        context.images,
        augment=_augment(context),
        settings=_settings(context, subject),
        seed_path=_seed_path(context, node, subject),
        device=device,
        start_epoch=start.point.epoch,
        start_step=start.point.step,
        snapshot_epoch=find.rewind_epoch if subject.kind == "dense" else None,
        snapshot_step=find.rewind_step if subject.kind == "dense" else 0,
        hold_zero=start.hold_zero,
        teacher=_teacher(context, node),
        penalties=search.penalties,
        observer=search.observer,
        checkpoint_folder=scratch,
        on_event=progress,
    )
    _require_found(context, search.observer)
    save_state(result.weights, folder / WEIGHTS_FILE)
    if result.snapshot is not None:
        save_state(result.snapshot, folder / REWIND_FILE)
    early_stop = _early_stop(context, start.model, result)
    costs = count_costs(start.model.cpu(), context.example_inputs)
    return {
        "subject": node.subject,
        "replicate": node.replicate,
        "history": list(result.history),
        "num_epochs": len(result.history),
        "end_epoch": result.num_epochs,
        "min_val_loss": result.min_val_loss,
        "min_val_loss_iteration": result.min_val_loss_iteration,
        "val_accuracy": result.val_accuracy,
        "early_stop": early_stop,
        "seconds": result.seconds,
        "threads": context.threads,
        "processes": result.num_processes,
        "device": str(device),
        "params": costs.params,
        "macs": costs.macs,
        **_search_facts(search.observer),
    }


def _seed_path(context: Context, node: Node, subject: Subject) -> tuple[int | str, ...]:
    """Return the seeds of a training: one order of images for a replicate, so that subjects are pairs."""
    path = (context.recipe.seed, "replicate", node.replicate or 0)
    return (*path, "search") if subject.kind == "search" else path


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


def _settings(context: Context, subject: Subject) -> TrainSettings:
    train, find = context.recipe.train, context.recipe.find
    values = train.model_dump()
    if values["gamma"] is None:  # only `step` has one
        del values["gamma"]
    settings = TrainSettings(**values)
    if isinstance(find, SupernetSection) and subject.kind not in ("dense", "search"):
        return replace(settings, **_after_search(find, subject, settings))
    constant: dict[str, Any] = {"schedule": "constant", "milestones": (), "warmup_epochs": 0}  # Any: settings
    if isinstance(find, RstSection) and subject.kind == "search":
        return replace(settings, epochs=find.search_epochs, lr=find.search_lr, **constant)
    trains_on = subject.kind in ("ticket", "random", "depgraph", "unstructured")
    if trains_on and isinstance(find, RoundsSection) and find.rewind == "none":
        steps = max(1, len(context.images.train_y) // settings.batch)
        last = learning_rate(settings, settings.epochs * steps - 1, steps)
        return replace(settings, lr=last, **constant)
    return settings


def _after_search(find: SupernetSection, subject: Subject, settings: TrainSettings) -> dict[str, Any]:
    """Return for how long a network trains on, or, from new weights, as long as search and that together."""
    if subject.kind in ("ticket", "no_reactivation"):
        warmup = min(settings.warmup_epochs, find.retrain_epochs - 1)
        late = tuple(m for m in settings.milestones if m < find.retrain_epochs)
        return {"epochs": find.retrain_epochs, "warmup_epochs": warmup, "milestones": late}
    return {"epochs": settings.epochs + find.retrain_epochs}


def _teacher(context: Context, node: Node) -> Distill | None:
    distill = context.recipe.find.distill
    if distill is None or "teacher" not in node.parents:
        return None
    teacher = trained_network(context, node.parents["teacher"])
    return Distill(teacher=teacher, weight=distill.weight, temperature=distill.temperature)


def _search(context: Context, node: Node, subject: Subject, model: nn.Module) -> _Search:
    find = context.recipe.find
    if subject.kind != "search":
        return _Search()
    if isinstance(find, EarlyBirdSection):
        penalty = GammaL1(names=norm_scales(model), coefficient=find.gamma_l1)
        observer = EarlyBird(
            model,
            context.groups,
            drop_fraction=find.drop_fraction,
            choose=None if find.budget is None else budget_chooser(context, node),
            scope=find.scope,
            window=find.window,
            max_distance=find.max_distance,
        )
        return _Search(penalties=(penalty,), observer=observer)
    assert isinstance(find, RstSection)  # no other method searches
    penalty_l2 = GrowingL2(
        keep=dropped_elements(model, context.groups, mask_of(context, node.parents["mask"])),
        delta=find.penalty_step,
        interval=find.penalty_interval,
        limit=find.penalty_limit,
    )
    return _Search(penalties=(penalty_l2,))


def _require_found(context: Context, observer: EarlyBird | None) -> None:
    if observer is None:
        return
    epochs = context.recipe.train.epochs
    if observer.found_epoch is None:
        last = observer.distances[-1]["distances"]
        raise TrainError(
            f"no Early-Bird ticket in {epochs} epochs: the last mask still differs from one of the "
            f"{observer.window - 1} before it in {max(last, default=1.0):.3f} of its channels",
            hint=f"raise find.max_distance above {observer.max_distance:g}, or train.epochs",
        )
    if observer.found_epoch + 1 == epochs:
        raise TrainError(
            f"the Early-Bird ticket was found after the last of {epochs} epochs; none is left to train it",
            hint="raise train.epochs or find.max_distance, or lower find.window",
        )


def _search_facts(observer: EarlyBird | None) -> dict[str, Any]:  # Any: JSON values
    if observer is None:
        return {}
    return {"distances": observer.distances, "found_epoch": observer.found_epoch}


def _early_stop(
    context: Context, model: nn.Module, result: TrainResult
) -> dict[str, Any] | None:  # Any: JSON values
    """Return what the network was at its lowest validation loss, the paper's early-stopping criterion.

    The test images pick nothing: the moment is the validation images'. Source: Frankle & Carbin 2019 (arXiv
    1803.03635), section 2.
    """
    if result.best_weights is None:
        return None
    images = context.images
    model.load_state_dict(result.best_weights)
    accuracy = evaluate(
        model, images.test_x, images.test_y, mean=context.mean, std=context.std, device=context.device
    )
    model.load_state_dict(result.weights)
    best = min(result.validations, key=lambda record: record["val_loss"])
    return {
        "iteration": result.min_val_loss_iteration,
        "val_loss": result.min_val_loss,
        "val_accuracy": best["val_accuracy"],
        "test_accuracy": accuracy,
    }


def _start(context: Context, node: Node, subject: Subject) -> _Start:
    """Return the network a training begins with: fresh or rewound; whole, cut small, or held at zero."""
    assert node.replicate is not None  # trainings have one
    model, point = _first_weights(context, node, subject)
    if "mask" not in node.parents or subject.kind == "search":
        return _Start(model=model, point=point, hold_zero=None)
    finder = node.parents["mask"]
    elements = elements_of(context, finder)
    if subject.kind == "unstructured":
        assert elements is not None  # its finder publishes nothing else
        return _Start(model=model, point=point, hold_zero=elements.keep_by_parameter)
    mask = mask_of(context, finder)
    cut = _cut_small if is_small(context, node) else _hold_masked
    model, held = cut(context, model, mask, elements)
    return _Start(model=model, point=point, hold_zero=held)


def _first_weights(context: Context, node: Node, subject: Subject) -> tuple[nn.Module, Point]:
    """Return the network in the dense shape, and the moment of the schedule it goes on from."""
    find, replicate = context.recipe.find, node.replicate or 0
    rewound = Point(find.rewind_epoch, find.rewind_step)
    if "start" in node.parents:
        model = dense_network(context, replicate)
        model.load_state_dict(load_state(context.file(node.parents["start"], REWIND_FILE)))
        return model, Point(0, 0) if subject.kind == "search" else rewound
    if "weights" in node.parents:
        trained = node.parents["weights"]
        if isinstance(find, EarlyBirdSection):
            rewound = Point(context.result(trained).facts["end_epoch"], 0)
        elif isinstance(find, RstSection | SupernetSection):
            rewound = Point(0, 0)
        return dense_form(context, trained), rewound
    if subject.kind in ("dense", "search"):
        return dense_network(context, replicate), Point(0, 0)
    return context.fresh_network(replicate, subject), Point(0, 0)


def _cut_small(
    context: Context, model: nn.Module, mask: Mask, elements: ElementMask | None
) -> tuple[nn.Module, dict[str, Tensor] | None]:
    held = None if elements is None else small_elements(elements, model, context.groups, mask)
    return small_from_mask(model, context.groups, mask), held


def _hold_masked(
    context: Context, model: nn.Module, mask: Mask, elements: ElementMask | None
) -> tuple[nn.Module, dict[str, Tensor] | None]:
    zero_dropped(model, context.groups, mask)
    held = hold_zero_from_mask(model, context.groups, mask)
    for name, keep in ({} if elements is None else elements.keep_by_parameter).items():
        held[name] = keep & held[name] if name in held else keep
    return model, held
