"""Seeded batches of images that live on the device."""

# N images, C channels, H W pixels
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ticket_export.data.augment import Augment, augmented, draw, normalise
from ticket_export.errors import DataError
from ticket_export.seeds import stream

SeedPath = tuple[int | str, ...]  # the root seed, then what the numbers are for


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Training batches in a seeded order, augmented on the device where the images live.

    Every batch has `batch` images; what is left over at the end of an epoch is dropped, so that every step
    averages the same number of images (the order is new each epoch, so no image is left out for good). A set
    smaller than `batch` is one batch.

    Attributes:
        x: uint8 [N, C, H, W] on the device.
        y: int64 [N] on the same device.
        batch: images in a batch.
        augment: what is done to the images.
        seed_path: root seed and path; the numbers of epoch e depend on it and on e alone.
        shard: this process and the number of processes that share each batch; it gets every n-th image of it.
    """

    x: Tensor
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

    @property
    def batch_size(self) -> int:
        """Return the images in each batch, over all processes: `batch`, or all of a smaller set."""
        return min(self.batch, len(self.y))

    @property
    def num_batches(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.y) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch: float32 [batch, C, H, W] and int64 [batch].

        Args:
            epoch: 0 is the first.
        """
        root, *path = self.seed_path
        name = f"epoch-{epoch}"
        order = torch.randperm(len(self.y), generator=stream(int(root), *path, "order", name)).to(
            self.x.device
        )
        draws = draw(
            self.augment,
            len(self.y),
            *self.x.shape[2:],
            generator=stream(int(root), *path, "augment", name),
            device=self.x.device,
        )
        for index in range(self.num_batches):
            first, end = index * self.batch_size, (index + 1) * self.batch_size
            part = slice(first + self.shard[0], end, self.shard[1])
            chosen = order[part]
            yield augmented(self.x[chosen], self.augment, draws, part), self.y[chosen]


def in_order(
    x: Tensor, y: Tensor, *, mean: Sequence[float], std: Sequence[float], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in batches as networks take them: floating [batch, C, H, W], int64 [batch].

    Args:
        x: [N, C, H, W]; uint8 images are normalised, floating ones are taken as they are.
        y: int64 [N].
        mean: per channel, of pixels scaled to 0..1.
        std: per channel, in the same scale.
        batch: images in a batch; the last one may hold fewer.
    """
    for x_NCHW, y_N in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        yield x_NCHW if x_NCHW.is_floating_point() else normalise(x_NCHW, mean, std), y_N
