"""The moving parts of one training: started, saved, resumed."""

# N images, C channels, H W pixels
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.data.augment import Augment, normalise
from ticket_export.data.batches import Batches, SeedPath
from ticket_export.data.sources import Images
from ticket_export.errors import TrainError
from ticket_export.models.weights import load_weights
from ticket_export.train.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from ticket_export.train.device import random_states, set_random_states
from ticket_export.train.evaluate import evaluating
from ticket_export.train.optimizer import (
    optimizer_from_settings,
    restore_optimizer,
    tensors_from_optimizer,
)
from ticket_export.train.settings import TrainSettings

EpochRecord = dict[str, float]


@dataclass(slots=True, kw_only=True)
class Run:
    """One training under way.

    Attributes:
        model: the network, on the device.
        net: what is called: `model`, wrapped where several processes train it.
        val_x: validation images [N, C, H, W]: floating and normalised, or uint8.
        dtype: the floating type of the weights.
        held: parameters and, for each, 1 where it may be other than zero.
        identity: facts by name that a checkpoint must share, as JSON.
        next_epoch: the first epoch not yet trained.
    """

    model: nn.Module
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    accelerator: Any  # accelerate carries no types
    device: torch.device
    settings: TrainSettings
    batches: Batches
    val_x: Tensor
    val_y: Tensor
    dtype: torch.dtype
    held: tuple[list[Tensor], list[Tensor]]
    identity: dict[str, object]
    next_epoch: int
    snapshot: dict[str, Tensor] | None = None
    history: list[EpochRecord] = field(default_factory=list)

    def hold_zero(self) -> None:
        """Set every weight that is held at zero to zero."""
        if self.held[0]:
            torch._foreach_mul_(self.held[0], self.held[1])


def start(
    model: nn.Module,
    images: Images,
    *,
    augment: Augment,
    settings: TrainSettings,
    seed_path: SeedPath,
    accelerator: Any,  # accelerate carries no types
    device: torch.device,
    start_epoch: int,
    hold_zero: Mapping[str, Tensor],
) -> Run:
    """Return a training that stands before its first step, everything on the device."""
    if accelerator.num_processes > 1:
        device = accelerator.device
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]  # the stub splits what torch joins
    model.train()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    val_x = normalise(images.val_x.to(device), augment.mean, augment.std).to(dtype)
    _check_fits(model, val_x[:2], images.num_classes)
    batches = Batches(
        x=images.train_x.to(device),
        y=images.train_y.to(device),
        batch=settings.batch,
        augment=augment,
        seed_path=seed_path,
        shard=(accelerator.process_index, accelerator.num_processes),
    )
    return Run(
        model=model,
        net=accelerator.prepare_model(model, device_placement=False),
        optimizer=optimizer_from_settings(model, settings),
        scaler=torch.amp.GradScaler(device.type) if settings.precision == "fp16" else None,
        accelerator=accelerator,
        device=device,
        settings=settings,
        batches=batches,
        val_x=val_x,
        val_y=images.val_y.to(device),
        dtype=dtype,
        held=_held(model, hold_zero),
        identity=_identity(settings, augment, seed_path, start_epoch, hold_zero),
        next_epoch=start_epoch,
    )


def _check_fits(model: nn.Module, x_NCHW: Tensor, num_classes: int) -> None:
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


def _identity(
    settings: TrainSettings,
    augment: Augment,
    seed_path: SeedPath,
    start_epoch: int,
    hold_zero: Mapping[str, Tensor],
) -> dict[str, object]:
    kept = {name: int(keep.sum()) for name, keep in hold_zero.items()}
    facts = asdict(settings) | asdict(augment)
    facts |= {"seed_path": list(seed_path), "start_epoch": start_epoch, "hold_zero": kept}
    return dict(json.loads(json.dumps(facts)))


def state_copy(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict as copies on the CPU, in plain memory order."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint of a training that stands between two epochs."""
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= tensors_from_optimizer(run.optimizer) | random_states(run.device)
    tensors |= {f"snapshot.{name}": value for name, value in (run.snapshot or {}).items()}
    facts = {
        "identity": run.identity,
        "next_epoch": run.next_epoch,
        "history": run.history,
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
    for name, value in run.identity.items():
        if facts["identity"].get(name) != value:
            raise TrainError(
                f"checkpoint {folder / FILE_NAME} was written with {name} = {facts['identity'].get(name)!r}, "
                f"not {value!r}",
                hint="use another folder, or delete the checkpoint",
            )
    load_weights(run.model, _under("model.", tensors), source=f"checkpoint {folder / FILE_NAME}")
    restore_optimizer(run.optimizer, tensors)
    set_random_states(tensors, run.device)
    if run.scaler is not None:
        run.scaler.load_state_dict(facts["scaler"])
    run.snapshot = _under("snapshot.", tensors) or None
    run.history = list(facts["history"])
    run.next_epoch = facts["next_epoch"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
