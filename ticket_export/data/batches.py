"""Seeded batches of images that live on the device, or are streamed to it."""

# N images, C channels, H W pixels
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ticket_export.data.augment import Augment, augmented, draw, normalise
from ticket_export.data.crops import RandomCrops
from ticket_export.data.streamed import StreamedImages
from ticket_export.errors import DataError
from ticket_export.seeds import stream

SeedPath = tuple[int | str, ...]  # the root seed, then what the numbers are for


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Training batches in a seeded order, augmented on the device.

    Every batch has `batch` images; what is left over at the end of an epoch is dropped, so that every step
    averages the same number of images (the order is new each epoch, so no image is left out for good). A set
    smaller than `batch` is one batch.

    Attributes:
        x: uint8 [N, C, H, W] on the device, or images that are streamed there.
        y: int64 [N] on the same device.
        batch: images in a batch.
        augment: what is done to the images.
        seed_path: root seed and path; the numbers of epoch e depend on it and on e alone.
        shard: this process and the number of processes that share each batch; it gets every n-th image of it.
    """

    x: Tensor | StreamedImages
    y: Tensor
    batch: int
    augment: Augment
    seed_path: SeedPath
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"a batch of {self.batch} images", hint="train.batch must be at least 1")
        if self.batch_size % self.shard[1]:
            raise DataError(
                f"a batch of {self.batch_size} images cannot be shared evenly by {self.shard[1]} processes",
                hint="set train.batch to a multiple of the processes",
            )
        if self.augment.random_resized_crop and isinstance(self.x, Tensor):
            raise DataError(
                "images in memory are of one size already, so no random part of the original can be taken",
                hint="set data.streamed, or data.random_resized_crop to 0",
            )

    @property
    def batch_size(self) -> int:
        """Return the images in each batch, over all processes: `batch`, or all of a smaller set."""
        return min(self.batch, len(self.y))

    @property
    def num_batches(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.y) // self.batch_size

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch: float32 [batch, C, H, W] and int64 [batch].

        Args:
            epoch: 0 is the first.
            first: batches to leave out at its start; they are not read.
        """
        root, *path = self.seed_path
        name = f"epoch-{epoch}"
        order = torch.randperm(len(self.y), generator=stream(int(root), *path, "order", name))
        draws = draw(
            self.augment,
            len(self.y),
            *self.x.shape[2:],
            generator=stream(int(root), *path, "augment", name),
            device=self.y.device,
        )
        parts = [
            slice(index * self.batch_size + self.shard[0], (index + 1) * self.batch_size, self.shard[1])
            for index in range(first, self.num_batches)
        ]
        on_device = order.to(self.y.device)
        if isinstance(self.x, Tensor):
            found: Iterator[Tensor] = iter(self.x[on_device[part]] for part in parts)
        else:
            found = self.x.batches([order[part] for part in parts], self._crops(name))
        for part, x_NCHW in zip(parts, found, strict=True):
            yield augmented(x_NCHW, self.augment, draws, part), self.y[on_device[part]]

    def _crops(self, epoch: str) -> RandomCrops | None:
        if not self.augment.random_resized_crop:
            return None
        return RandomCrops(
            min_area_fraction=self.augment.random_resized_crop,
            seed_path=(*self.seed_path, "augment", epoch),
        )


def in_order(
    x: Tensor | StreamedImages, y: Tensor, *, mean: Sequence[float], std: Sequence[float], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in batches as networks take them: floating [batch, C, H, W], int64 [batch].

    Args:
        x: [N, C, H, W]; uint8 images are normalised, floating ones are taken as they are.
        y: int64 [N].
        mean: per channel, of pixels scaled to 0..1.
        std: per channel, in the same scale.
        batch: images in a batch; the last one may hold fewer.
    """
    if isinstance(x, Tensor):
        found: Iterator[Tensor] = iter(torch.split(x, batch))
    else:
        found = x.batches(torch.split(torch.arange(len(x)), batch))
    for x_NCHW, y_N in zip(found, torch.split(y, batch), strict=True):
        yield x_NCHW if x_NCHW.is_floating_point() else normalise(x_NCHW, mean, std), y_N


def kept_normalised(
    x: Tensor | StreamedImages, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor | StreamedImages:
    """Return images in memory normalised once for all epochs; streamed ones wait for `in_order`."""
    return normalise(x, mean, std).to(dtype) if isinstance(x, Tensor) else x
