"""What the steps of one process share: images, the dense network, its channel groups; loaded on demand."""

# N images, C channels, H W pixels
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ticket_export.errors import DataError, MissingDependency
from ticket_export.models.facts import BUNDLE_PREFIX
from ticket_export.pipeline.images import images_of
from ticket_export.pipeline.nodes import Node
from ticket_export.recipe.schema import Recipe
from ticket_export.seeds import seed_from_path
from ticket_export.stages import Subject
from ticket_export.store.machine import machine_facts
from ticket_export.store.manifest import Manifest
from ticket_export.store.store import Store

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ticket_export.channels.graph import ChannelGroup
    from ticket_export.data.sources import Images

# Rows of the example batch: tracing would fix a 1, and exported files are checked at 1, 3 and one larger.
_NUM_EXAMPLES = 4


class Context:
    """The recipe, the store and the device, with what is expensive to make; torch is loaded on demand.

    While a context is open, torch uses its number of threads.
    """

    def __init__(self, recipe: Recipe, store: Store, *, device: str, threads: int) -> None:
        self.recipe = recipe
        self.store = store
        self.threads = threads
        self._device_name = device
        self._threads_before: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)

    @cached_property
    def device(self) -> torch.device:
        """The device that trains; from here on torch uses the context's threads.

        Raises:
            MissingDependency: this machine has no such device, or not the recipe's number format.
        """
        import torch

        device = _device_from_name(self._device_name)
        if device.type == "cpu" and self.recipe.train.precision == "bf16":
            require_fast_bf16(machine_facts()["isa"])
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        return device

    @cached_property
    def images(self) -> Images:
        """The images of the recipe, split.

        Raises:
            DataError: they are missing, damaged, or do not have the recipe's channels.
        """
        data = self.recipe.data
        images = images_of(data, seed=self.recipe.seed, num_workers=self.threads)
        require_channels(data.mean, images.image_shape)
        return images

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel; zeros where the recipe does not normalise."""
        return self.recipe.data.mean or (0.0,) * self.images.image_shape[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel; ones where the recipe does not normalise."""
        return self.recipe.data.std or (1.0,) * self.images.image_shape[0]

    @cached_property
    def example_inputs(self) -> Tensor:
        """The first validation images as networks take them: float32 [N, C, H, W] on the CPU."""
        import torch

        from ticket_export.data.augment import normalise

        val_x = self.images.val_x
        return normalise(val_x[torch.arange(_NUM_EXAMPLES) % len(val_x)], self.mean, self.std)

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups of the dense network, which are the same for all its weights."""
        from ticket_export.channels.graph import channel_groups

        return channel_groups(self.fresh_network(0, Subject("dense")), self.example_inputs)

    def fresh_network(self, replicate: int, subject: Subject) -> nn.Module:
        """Return a dense network before our training: the recipe's weights, or a subject's own fresh ones."""
        from ticket_export.shrink.transfer import network_from_builder

        model, is_dense = self.recipe.model, subject == Subject("dense")
        fresh = {"weights": "fresh"} if model.builder.startswith(BUNDLE_PREFIX) and not is_dense else {}
        return network_from_builder(
            model.builder,
            {**model.args, **fresh},
            model.weights if is_dense else None,
            num_classes=self.images.num_classes,
            image_shape=self.images.image_shape,
            seed=seed_from_path(self.recipe.seed, "replicate", replicate, "init", str(subject)),
        )

    def result(self, node: Node) -> Manifest:
        """Return the manifest of a result that is complete."""
        found = self.store.look_up(node.stage, node.key)
        assert isinstance(found, Manifest)  # a step starts when its parents are complete
        return found

    def file(self, node: Node, name: str) -> Path:
        """Return the path of one file of a result."""
        return self.store.path(node.stage, node.key) / name


def require_channels(mean: Sequence[float], image_shape: Sequence[int]) -> None:
    """Raise DataError unless `mean` is empty or holds a value per channel of [C, H, W]."""
    if mean and len(mean) != image_shape[0]:
        values = "1 value" if len(mean) == 1 else f"{len(mean)} values"
        size = "x".join(map(str, image_shape))
        raise DataError(
            f"data.mean holds {values}, but the images have {image_shape[0]} channels ({size})",
            hint="give data.mean and data.std one value per channel; arrays are (N, channels, height, width)",
        )


def require_fast_bf16(instruction_sets: Sequence[str]) -> None:
    """Raise MissingDependency where an x86 CPU would emulate bf16.

    A ResNet-20 then trains about 25 times slower than in fp32 (EPYC without AVX512, torch 2.13.0).
    """
    if "avx2" in instruction_sets and not {"avx512_bf16", "amx_bf16"} & set(instruction_sets):
        raise MissingDependency(
            "train.precision bf16: this CPU has neither AVX512-BF16 nor AMX-BF16, so torch would emulate it, "
            "many times slower than fp32",
            hint="--set train.precision=fp32, or train on a GPU",
        )


def _device_from_name(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MissingDependency(
            f"device {name!r} is not known to torch", hint="use cpu, cuda, cuda:1 or mps"
        ) from error
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= count:
        raise MissingDependency(
            f"device {name!r}: this machine offers {count} of type {device.type}",
            hint="use --device cpu, or install the torch that knows your device (pytorch.org/get-started)",
        )
    return device
