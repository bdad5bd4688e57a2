"""What a recipe may say: one frozen section per stage. Every default means "no effect" and never changes.

Defaults are left out of the keys of stored results, so a field added later with a neutral one keeps them all.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from ticket_export.models.facts import BUNDLE_PREFIX, BUNDLE_WEIGHTS, ZOO_FACTS
from ticket_export.recipe.data_section import DataSection
from ticket_export.recipe.find_sections import NORM_SCORES, FindSection, RoundsSection
from ticket_export.recipe.section import Count, Problems, Section, empty_or_repeats
from ticket_export.recipe.supernet_section import SupernetSection
from ticket_export.runtime.registry import MODULE_PRECISIONS, MODULE_RUNTIMES

ZOO_PREFIX = "zoo:"
_BUILDER = re.compile(r"[^:\s]+:[A-Za-z_][\w.\-/]*")


def _rounding(value: object) -> object:
    if value is None or value == "auto" or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("rounding", "should be auto or a whole number of at least 1")


Rounding: TypeAlias = Annotated[int | Literal["auto"] | None, PlainValidator(_rounding)]


class ModelSection(Section):
    """Which dense network everything starts from.

    Attributes:
        builder: `zoo:resnet20`, `torchvision:resnet18`, `timm:...`, `pkg.module:function` or `file.py:fn`;
            or `bundle:FOLDER`, the network of a bundle.
        args: keyword arguments of the builder. Of a bundle: `num_classes` gives a new last layer, and
            `weights: fresh` new weights in the same widths.
        weights: a .safetensors, .pt or .npz file to start from instead of a fresh initialisation.
    """

    builder: str
    args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    weights: str | None = None

    def _problems(self) -> Problems:
        if self.builder.startswith(BUNDLE_PREFIX):
            yield from self._bundle_problems()
        elif not _BUILDER.fullmatch(self.builder):
            yield (
                "builder",
                f"{self.builder!r} does not name a network (write zoo:resnet20 or package.module:function)",
            )
        elif self.builder.startswith(ZOO_PREFIX):
            yield from self._zoo_problems(self.builder.removeprefix(ZOO_PREFIX))

    def _bundle_problems(self) -> Problems:
        if self.builder == BUNDLE_PREFIX:
            yield "builder", f"{self.builder!r} names no folder (write bundle:FOLDER)"
        if self.weights is not None:
            yield "weights", "a bundle brings its own (leave it out)"
        for key, value in self.args.items():
            if key == "num_classes":
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    yield f"args.{key}", f"{value!r} does not count classes"
            elif key != "weights":
                yield f"args.{key}", "unknown argument; a bundle knows num_classes, weights"
            elif value not in BUNDLE_WEIGHTS:
                yield f"args.{key}", f"{value!r} is not one of {', '.join(BUNDLE_WEIGHTS)}"

    def _zoo_problems(self, name: str) -> Problems:
        if name not in ZOO_FACTS:
            yield "builder", f"{name!r} is not in the zoo, which holds {', '.join(sorted(ZOO_FACTS))}"
            return
        allowed = ZOO_FACTS[name].args
        for key, value in self.args.items():
            if key not in allowed:
                known = f"knows {', '.join(sorted(allowed))}" if allowed else "takes no arguments"
                yield f"args.{key}", f"unknown argument; zoo:{name} {known}"
            elif str(value) not in allowed[key]:
                yield f"args.{key}", f"{value!r} is not one of {', '.join(allowed[key])}"


class TrainSection(Section):
    """How every network of the run is trained.

    Attributes:
        epochs: passes over the training images, from initialisation to the end.
        batch: images per step.
        lr: peak learning rate.
        optimizer: which rule takes the steps.
        momentum: of SGD.
        nesterov: look ahead by one momentum step (SGD).
        weight_decay: L2 coefficient (decoupled with adamw).
        schedule: how the learning rate moves after the warm-up.
        milestones: epochs at which `step` multiplies the rate by `gamma`.
        gamma: factor of `step`.
        warmup_epochs: epochs of linear rise from 0 to `lr`.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        precision: number format of the forward and backward passes.
        channels_last: keep activations in NHWC order.
        validate_steps: also validate every so many steps, and keep the weights of the lowest validation loss;
            0 validates at the end of each epoch.
        compile: let torch.compile fuse the forward and backward passes.
    """

    epochs: Count
    batch: Count
    lr: Annotated[float, Field(gt=0.0)]
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: Annotated[float, Field(gt=0.0)] | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    validate_steps: Annotated[int, Field(ge=0)] = 0
    compile: bool = False

    def _problems(self) -> Problems:
        yield from self._step_problems()
        if self.momentum and self.optimizer != "sgd":
            yield "momentum", f"belongs to sgd; {self.optimizer} has its own, got {self.momentum}"
        if self.nesterov and not self.momentum:
            yield "nesterov", "needs momentum above 0, got momentum 0.0"
        if self.warmup_epochs >= self.epochs:
            yield "warmup_epochs", f"{self.warmup_epochs} is not below epochs ({self.epochs})"

    def _step_problems(self) -> Problems:
        if self.schedule != "step":
            if self.milestones:
                yield (
                    "milestones",
                    f"has no effect with schedule {self.schedule}, got {list(self.milestones)}",
                )
            if self.gamma is not None:
                yield "gamma", f"has no effect with schedule {self.schedule}, got {self.gamma}"
            return
        if not self.milestones:
            yield "milestones", "is required with schedule step"
        if self.gamma is None:
            yield "gamma", "is required with schedule step"
        if any(late <= early for early, late in zip(self.milestones, self.milestones[1:], strict=False)):
            yield "milestones", f"should rise, got {list(self.milestones)}"
        for milestone in self.milestones:
            if not 0 < milestone < self.epochs:
                yield "milestones", f"{milestone} is not between 0 and epochs ({self.epochs})"


class ShrinkSection(Section):
    """How dead channels are removed and how equal the result must be.

    Attributes:
        round_to: kept widths are multiples of this, filled up with exact dead channels; `auto` times 1, 8, 16
            and 32 on this machine, per network, runtime and precision, and keeps the fastest. None keeps the
            widths of `find.round_to`.
        tolerance: largest relative difference between the network before and after.
        residual: `union` keeps a channel of a residual stream while any writer uses it; `index` also lets
            each writer compute its live rows alone.
    """

    round_to: Rounding = None
    tolerance: Annotated[float, Field(gt=0.0)] = 1e-5
    residual: Literal["union", "index"] = "union"


class ExportSection(Section):
    """Which files are written for every subject.

    Attributes:
        targets: kinds of files.
        precisions: number formats; each is a file of its own, `int8` calibrated on training images.
        int8_min_agreement: share of the calibration images that the INT8 file must class as fp32 does.
        int8_activations: `uint8` is fast in ONNX Runtime on x86, TensorRT takes `int8` (symmetric) alone.
    """

    targets: tuple[Literal["onnx"], ...]
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...]
    int8_min_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    int8_activations: Literal["uint8", "int8"] = "uint8"

    def _problems(self) -> Problems:
        yield from empty_or_repeats("targets", self.targets)
        yield from empty_or_repeats("precisions", self.precisions)


class MeasureSection(Section):
    """How latency is measured.

    Attributes:
        runtimes: what executes the exported files or, with torch in its name, the network itself.
        batches: images per inference; each is measured apart.
        scope: `compute` (device work only) or `end_to_end` (with the copies).
        threads: of the runtime, on a CPU.
        rounds: every subject is timed once per round, in random order; rounds are the unit of the interval.
        samples: timings of a subject within a round.
    """

    runtimes: tuple[
        Literal["ort-cpu", "ort-cuda", "tensorrt", "torch", "torch-compile", "torch-cudagraph"], ...
    ]
    batches: tuple[Count, ...]
    scope: Literal["compute", "end_to_end"]
    threads: Count = 1
    rounds: Annotated[int, Field(ge=5)] = 10
    samples: Annotated[int, Field(ge=5, le=1000)]

    def _problems(self) -> Problems:
        yield from empty_or_repeats("runtimes", self.runtimes)
        yield from empty_or_repeats("batches", self.batches)


class Recipe(Section):
    """A complete statement of what to do; it names no output folder and no device.

    Attributes:
        name: of the run's folder.
        seed: every random number of the run follows from it.
        replicates: how often everything is repeated with other random numbers.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0)]
    replicates: Count = 1
    data: DataSection
    model: ModelSection
    train: TrainSection
    find: FindSection
    shrink: ShrinkSection = ShrinkSection()
    export: ExportSection
    measure: MeasureSection

    def _problems(self) -> Problems:
        yield from cross_problems(self.train, self.find)
        yield from network_problems(self.model, self.find)
        yield from runtime_problems(self.export, self.measure)
        if self.find.method == "regroup" and self.shrink.round_to == "auto":
            yield "shrink.round_to", "auto times widths, and regroup runs its layers in blocks"


def network_problems(model: ModelSection, find: FindSection) -> Problems:
    """Yield (place, text) where a method does not fit a network of the zoo."""
    facts = ZOO_FACTS.get(model.builder.removeprefix(ZOO_PREFIX))
    if not model.builder.startswith(ZOO_PREFIX) or facts is None:
        return
    if find.method == "supernet" and not facts.has_branches:
        text = f"supernet searches among parallel branches, and {model.builder} has none (zoo:supernet)"
        yield "find.method", text
    if "depgraph" in find.controls:
        place = f"find.controls[{find.controls.index('depgraph')}]"
        for key, value in facts.beyond_torch_pruning.items():
            if model.args.get(key) == value:
                yield (
                    place,
                    f"torch-pruning cannot prune {model.builder} with {key} {value!r} (leave depgraph out)",
                )
    if find.method == "early_bird" and not facts.has_norm:
        yield "find.method", f"early_bird reads the scales of norms, and {model.builder} has none"
    if find.method == "regroup" and facts.has_depthwise:
        text = f"regroup joins columns, and depthwise layers of {model.builder} have one each"
        yield "find.method", text
    if (
        find.method in ("refill", "refill_plus", "channel_imp")
        and not facts.has_norm
        and find.score in NORM_SCORES
    ):
        yield "find.score", f"{find.score} reads the scales of norms, and {model.builder} has none"


def runtime_problems(export: ExportSection, measure: MeasureSection) -> Problems:
    """Yield (place, text) for each runtime that runs none of the precisions, or not as they are written."""
    if "tensorrt" in measure.runtimes and "int8" in export.precisions and export.int8_activations != "int8":
        yield (
            "export.int8_activations",
            f"{export.int8_activations} is not what tensorrt runs (--set export.int8_activations=int8)",
        )
    if MODULE_PRECISIONS.isdisjoint(export.precisions):
        for index, runtime in enumerate(measure.runtimes):
            if runtime in MODULE_RUNTIMES:
                yield (
                    f"measure.runtimes[{index}]",
                    f"{runtime} runs modules in {' or '.join(sorted(MODULE_PRECISIONS))}, "
                    f"but export.precisions holds only {', '.join(export.precisions)}",
                )


def cross_problems(train: TrainSection, find: FindSection) -> Problems:
    """Yield (place, text) for each value that is right by itself and wrong beside another section's."""
    if find.rewind_epoch >= train.epochs:
        yield "find.rewind_epoch", f"{find.rewind_epoch} is not below train.epochs ({train.epochs})"
    if (
        isinstance(find, RoundsSection)
        and find.rewind == "none"
        and train.schedule in ("cosine", "one_cycle")
    ):
        yield "find.rewind", f"none trains on at the last learning rate, which {train.schedule} brings to 0"
    if find.method == "early_bird" and find.window >= train.epochs:
        yield "find.window", f"{find.window} masks, one an epoch, do not fit train.epochs ({train.epochs})"
    if find.method == "supernet":
        yield from supernet_problems(train, find)


def supernet_problems(train: TrainSection, find: SupernetSection) -> Problems:
    """Yield (place, text) where events and epochs do not fit, or the target is never reached."""
    if train.epochs % find.event_epochs:
        text = f"{find.event_epochs} does not divide train.epochs ({train.epochs}), which the last event ends"
        yield "find.event_epochs", text
    num_events = train.epochs // find.event_epochs
    if num_events * find.drop_step < find.final_target - 1e-9:
        reached = f"{num_events} events reach {num_events * find.drop_step:g} of {find.final_target:g}"
        yield "find.drop_step", f"{reached} (raise it, or train.epochs, or lower find.event_epochs)"
