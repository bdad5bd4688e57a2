"""What a training needs to know besides the network and the images."""

from __future__ import annotations

from dataclasses import dataclass

from ticket_export.errors import TrainError

_CHOICES = {
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("constant", "step", "cosine", "one_cycle"),
    "precision": ("fp32", "bf16", "fp16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a network is trained; every default means "no effect".

    Attributes:
        epochs: passes over the training images, counted from the start of the dense training.
        batch: images in a step.
        lr: peak learning rate.
        optimizer: `sgd`, `adam` or `adamw`.
        momentum: of `sgd`, in [0, 1).
        nesterov: Nesterov's momentum, for `sgd`.
        weight_decay: added to the gradient (`sgd`, `adam`) or decoupled (`adamw`).
        schedule: `constant`, `step`, `cosine` or `one_cycle`; see `schedule.learning_rate`.
        milestones: epochs at whose start `step` multiplies the rate by `gamma`.
        gamma: factor of `step`.
        warmup_epochs: epochs over which the rate rises linearly.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        precision: `fp32` (the model's own type), or autocast to `bf16` or `fp16` (with loss scaling).
        channels_last: keep images and weights in NHWC order, which convolutions on CPUs and tensor cores
            prefer.
        validate_steps: validate also every so many steps, counted from the start of the dense training, and
            keep the weights of the lowest validation loss; 0 = at the end of each epoch alone, keeping none.
        compile: let torch.compile fuse the forward and the backward pass; it needs a compiler.
    """

    epochs: int
    batch: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 1.0
    warmup_epochs: float = 0
    label_smoothing: float = 0.0
    precision: str = "fp32"
    channels_last: bool = False
    validate_steps: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise TrainError(f"train.{name} is {value!r}", hint=f"it may be {', '.join(choices)}")
        for name in ("epochs", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise TrainError(f"train.{name} is {getattr(self, name)}", hint="it must be above 0")
        if self.validate_steps < 0:
            raise TrainError(f"train.validate_steps is {self.validate_steps}", hint="0 turns it off")
