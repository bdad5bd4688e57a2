"""The moving parts of one training: started, saved, resumed."""

# N images, C channels, H W pixels
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.data.augment import Augment, normalise
from ticket_export.data.batches import Batches, SeedPath, kept_normalised
from ticket_export.data.sources import Images
from ticket_export.data.streamed import StreamedImages
from ticket_export.errors import TrainError
from ticket_export.models.weights import load_weights
from ticket_export.train.average import Average, Averaged
from ticket_export.train.checkpoint import (
    FILE_NAME,
    fingerprint,
    load_checkpoint,
    require_identity,
    save_checkpoint,
    under,
)
from ticket_export.train.compiled import compiled
from ticket_export.train.device import random_states, set_random_states
from ticket_export.train.distill import Distill
from ticket_export.train.evaluate import evaluating
from ticket_export.train.observer import Observer
from ticket_export.train.optimizer import (
    optimizer_from_settings,
    restore_optimizer,
    start_from_state,
    tensors_from_optimizer,
)
from ticket_export.train.penalty import Penalty
from ticket_export.train.points import Points
from ticket_export.train.settings import TrainSettings
from ticket_export.train.validate import Validations

EpochRecord = dict[str, float]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """What a training may have besides its settings; see `loop.train`."""

    hold_zero: Mapping[str, Tensor]
    distill: Distill | None
    penalties: tuple[Penalty, ...]
    observer: Observer | None
    optimizer_state: Mapping[str, Tensor]
    average: Average | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a training does with the network and the images it is given."""

    augment: Augment
    settings: TrainSettings
    seed_path: SeedPath
    points: Points
    additions: Additions

    @property
    def end_epoch(self) -> int:
        """Return the epochs done at its end."""
        return self.points.end_epoch(self.settings.epochs)


@dataclass(slots=True, kw_only=True)
class Run:
    """One training under way.

    Attributes:
        plan: what it does.
        model: the network, on the device.
        net: what is called: `model`, wrapped where several processes train it, compiled where that is asked.
        parameters: the network's, by every name they have.
        teacher: a copy of the teacher beside the model, or None.
        val_x: validation images [N, C, H, W]: normalised where they are in memory.
        dtype: the floating type of the weights.
        held: parameters and, for each, 1 where it may be other than zero.
        identity: facts by name that a checkpoint must share, as JSON.
        next_epoch: the first epoch not yet trained.
        is_stopped: whether the observer ended the training.
        average: of the weights, or None.
    """

    plan: Plan
    model: nn.Module
    net: Callable[[Tensor], Tensor]
    parameters: dict[str, nn.Parameter]
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    accelerator: Any  # accelerate carries no types
    device: torch.device
    batches: Batches
    val_x: Tensor | StreamedImages
    val_y: Tensor
    dtype: torch.dtype
    held: tuple[list[Tensor], list[Tensor]]
    identity: dict[str, object]
    next_epoch: int
    validations: Validations
    is_stopped: bool = False
    average: Averaged | None = None
    snapshot: dict[str, Tensor] | None = None
    history: list[EpochRecord] = field(default_factory=list)

    @property
    def settings(self) -> TrainSettings:
        """Return the plan's settings."""
        return self.plan.settings

    def hold_zero(self) -> None:
        """Set every weight that is held at zero to zero."""
        if self.held[0]:
            torch._foreach_mul_(self.held[0], self.held[1])

    def share_buffers(self) -> None:
        """Give all processes the first one's buffers: each took its norms' statistics from its own images."""
        if self.accelerator.num_processes > 1:
            buffers = dict(self.model.named_buffers())
            averages = [] if self.average is None else self.average.buffers(buffers)
            for buffer in [*buffers.values(), *averages]:
                torch.distributed.broadcast(buffer, src=0)

    def autocast(self) -> torch.autocast:
        """Return the context in which networks are called."""
        precision = self.settings.precision
        return torch.autocast(self.device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST)

    def as_input(self, x_NCHW: Tensor) -> Tensor:
        """Return images in the type and memory order of the weights."""
        return x_NCHW.to(self.dtype, memory_format=_layout(self.settings))


def _layout(settings: TrainSettings) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def start(
    model: nn.Module,
    images: Images,
    plan: Plan,
    accelerator: Any,  # accelerate carries no types
    device: torch.device,
) -> Run:
    """Return a training that stands before its first step, everything on the device."""
    augment, settings, seed_path = plan.augment, plan.settings, plan.seed_path
    if accelerator.num_processes > 1:
        device = accelerator.device
    layout = _layout(settings)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]  # the stub splits what torch joins
    model.train()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    some_x = normalise(images.val_x[:2], augment.mean, augment.std).to(device=device, dtype=dtype)
    _check_fits(model, some_x, images.num_classes)
    batches = Batches(
        x=images.train_x.to(device),
        y=images.train_y.to(device),
        batch=settings.batch,
        augment=augment,
        seed_path=seed_path,
        shard=(accelerator.process_index, accelerator.num_processes),
    )
    plan.points.require_reached(settings.epochs, batches.num_batches)
    net = accelerator.prepare_model(model, device_placement=False)
    optimizer = optimizer_from_settings(model, settings)
    start_from_state(model, optimizer, plan.additions.optimizer_state)
    run = Run(
        plan=plan,
        model=model,
        net=compiled(net, device) if settings.compile else net,
        parameters=dict(model.named_parameters(remove_duplicate=False)),
        teacher=_teacher(model, plan, some_x),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type) if settings.precision == "fp16" else None,
        accelerator=accelerator,
        device=device,
        batches=batches,
        val_x=kept_normalised(images.val_x.to(device), augment.mean, augment.std, dtype),
        val_y=images.val_y.to(device),
        dtype=dtype,
        held=_held(model, plan.additions.hold_zero),
        identity=_identity(plan),
        next_epoch=plan.points.start.epoch,
        validations=Validations(keeps_best=settings.validate_steps > 0),
    )
    run.hold_zero()
    if plan.additions.average is not None:
        run.average = plan.additions.average.start(model)
    return run


def _check_fits(model: nn.Module, x_NCHW: Tensor, num_classes: int) -> int:
    """Return the width of the network's output.

    Raises:
        TrainError: it does not take the images, or does not tell as many classes apart.
    """
    shape = tuple(x_NCHW.shape)
    try:
        with evaluating(model):
            logits_NK = model(x_NCHW)
    except (RuntimeError, ValueError) as error:
        raise TrainError(
            f"{type(model).__name__} does not take images {shape}: {error}",
            hint="check model.args against the channels and the size of the images",
        ) from error
    if not isinstance(logits_NK, Tensor) or logits_NK.dim() != 2 or len(logits_NK) != len(x_NCHW):
        told = tuple(logits_NK.shape) if isinstance(logits_NK, Tensor) else type(logits_NK).__name__
        raise TrainError(f"{type(model).__name__} returns {told} for images {shape}, not [N, classes]")
    if logits_NK.shape[1] < num_classes:
        raise TrainError(
            f"{type(model).__name__} tells {logits_NK.shape[1]} classes apart, the images have {num_classes}",
            hint="set the number of classes in model.args",
        )
    return logits_NK.shape[1]


def _teacher(model: nn.Module, plan: Plan, x_NCHW: Tensor) -> nn.Module | None:
    distill = plan.additions.distill
    if distill is None:
        return None
    teacher = distill.copy_for(model, x_NCHW.dtype, _layout(plan.settings))
    taught, width = (_check_fits(network, x_NCHW, 0) for network in (teacher, model))
    if taught != width:
        raise TrainError(
            f"the teacher {type(teacher).__name__} tells {taught} classes apart, the network {width}",
            hint="a teacher is trained on the same labels",
        )
    return teacher


def _held(model: nn.Module, hold_zero: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept, masks = [], []
    for name, keep in hold_zero.items():
        if name not in parameters:
            raise TrainError(f"hold_zero names {name!r}, which is no parameter of {type(model).__name__}")
        parameter = parameters[name]
        if keep.shape != parameter.shape or keep.dtype != torch.bool:
            raise TrainError(
                f"hold_zero {name!r} is {keep.dtype} {tuple(keep.shape)}, "
                f"the parameter has the shape {tuple(parameter.shape)}",
                hint="it must be bool and of the parameter's shape",
            )
        kept.append(parameter.detach())
        masks.append(torch.empty_like(parameter.detach()).copy_(keep))  # in the parameter's own memory order
    return kept, masks


def _identity(plan: Plan) -> dict[str, object]:
    points, additions = plan.points, plan.additions
    facts: dict[str, object] = asdict(plan.settings) | asdict(plan.augment)
    facts |= {
        "seed_path": plan.seed_path,
        "start_epoch": points.start.epoch,
        "start_step": points.start.step,
        "snapshot": points.snapshot and (points.snapshot.epoch, points.snapshot.step),
        "hold_zero": {name: int(keep.sum()) for name, keep in additions.hold_zero.items()},
        "distill": additions.distill and additions.distill.facts(),
        "penalties": [dict(penalty.facts()) for penalty in additions.penalties],
        "observer": additions.observer and dict(additions.observer.facts()),
        # A checkpoint from before these were facts is one of a training without them: None
        "stop_epoch": points.stop_epoch,
        "optimizer_state": fingerprint(additions.optimizer_state) if additions.optimizer_state else None,
        "average": additions.average and dict(additions.average.facts()),
    }
    return dict(json.loads(json.dumps(facts)))


def state_copy(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict as copies on the CPU, in plain memory order."""
    return on_cpu(model.state_dict())


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU, in plain memory order."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint of a training that stands between two epochs."""
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= tensors_from_optimizer(run.optimizer) | random_states(run.device)
    tensors |= {f"snapshot.{name}": value for name, value in (run.snapshot or {}).items()}
    tensors |= {f"validations.{name}": value for name, value in run.validations.tensors().items()}
    if run.average is not None:
        tensors |= {f"average.{name}": value for name, value in run.average.values.items()}
    observer = run.plan.additions.observer
    if observer is not None:
        tensors |= {f"observer.{name}": value for name, value in observer.state().items()}
    facts = {
        "identity": run.identity,
        "next_epoch": run.next_epoch,
        "is_stopped": run.is_stopped,
        "history": run.history,
        "validations": run.validations.records,
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
    }
    save_checkpoint(folder, tensors, facts)


def resume(run: Run, folder: Path) -> None:
    """Continue where the folder's checkpoint stands; without one nothing changes.

    Raises:
        TrainError: the checkpoint is damaged or of another training.
    """
    found = load_checkpoint(folder)
    if found is None:
        return
    tensors, facts = found
    require_identity(facts, run.identity, folder)
    load_weights(run.model, under("model.", tensors), source=f"checkpoint {folder / FILE_NAME}")
    restore_optimizer(run.optimizer, tensors)
    set_random_states(tensors, run.device)
    if run.scaler is not None:
        run.scaler.load_state_dict(facts["scaler"])
    if run.average is not None:
        run.average.restore(under("average.", tensors))
    run.snapshot = under("snapshot.", tensors) or None
    run.validations.restore(under("validations.", tensors), run.device)
    run.validations.records = list(facts["validations"])
    run.history = list(facts["history"])
    run.is_stopped = facts["is_stopped"]
    run.next_epoch = facts["next_epoch"]
    if run.plan.additions.observer is not None:
        run.plan.additions.observer.load(under("observer.", tensors))
