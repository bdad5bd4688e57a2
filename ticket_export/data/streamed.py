"""Images too many for the memory: read and decoded by worker processes, batch by batch."""

# N images, C channels, H W pixels
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ticket_export.data.crops import RandomCrops
from ticket_export.data.rows import (
    Labels,
    Pixels,
    Rows,
    View,
    mixed_sizes,
    open_image,
    pixels_from_box,
    pixels_from_image,
)
from ticket_export.errors import DataError, WorkerDiedError

_DIED = "DataLoader worker"  # how torch's message about one begins


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedImages:
    """Images that stand for a uint8 tensor [N, C, H, W] and are decoded when they are asked for.

    Attributes:
        rows: the encoded images.
        chosen: which of them belong here, in order.
        view: how they come to one size.
        image_shape: channels, height and width.
        num_workers: processes that decode; 0 = this one. They change no result.
        device: where batches end.
    """

    rows: Rows
    chosen: Labels
    view: View
    image_shape: tuple[int, int, int]
    num_workers: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the tensor these stand for."""
        return (len(self.chosen), *self.image_shape)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        """Return the images at `places`, decoded by this process: uint8 [n, C, H, W] on the device.

        Raises:
            DataError: an image is damaged or of another size.
        """
        index = torch.arange(len(self))[places]
        return _stacked([self.pixels(place) for place in index.tolist()]).to(self.device)

    def to(self, device: torch.device) -> StreamedImages:
        """Return the same images, whose batches end on `device`."""
        return replace(self, device=device)

    def pixels(self, place: int, crops: RandomCrops | None = None) -> Pixels:
        """Return the image at `place`, uint8 [C, H, W]: as `view` says, or a random part of it.

        Raises:
            DataError: it is damaged or of another size.
        """
        row = int(self.chosen[place])
        image = open_image(self.rows, row)
        if crops is not None:
            return pixels_from_box(image, crops.box(place, image.size), self.view.side)
        x_CHW = pixels_from_image(image, self.view)
        if x_CHW.shape != self.image_shape:
            raise mixed_sizes("the first image", self.image_shape, self.rows.where(row), x_CHW.shape)
        return x_CHW

    def batches(self, places: Sequence[Tensor], crops: RandomCrops | None = None) -> Iterator[Tensor]:
        """Yield the images of each entry of `places` in turn: uint8 [n, C, H, W] on the device.

        Args:
            places: int64 indices of each batch, on the CPU.
            crops: random parts to take; None = the middle.

        Raises:
            DataError: an image is damaged or of another size.
            WorkerDiedError: a process that decodes was killed.
        """
        loader = DataLoader(
            _Reader(self, crops),
            batch_size=None,  # an index is a whole batch
            sampler=[place.numpy() for place in places],
            num_workers=min(self.num_workers, len(places)),
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the stream that dropout draws from
        )
        try:
            for read in loader:
                if isinstance(read, DataError):
                    raise read
                yield read.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if not str(error).startswith(_DIED):
                raise
            raise WorkerDiedError(
                f"a process that decodes images ended: {error}",
                hint="use fewer (--set data.workers=2), or a larger /dev/shm: batches travel through it",
            ) from error


class _Reader(Dataset[Tensor | DataError]):
    """Decodes a whole batch; an error is returned, for torch would turn its text into a traceback."""

    def __init__(self, images: StreamedImages, crops: RandomCrops | None) -> None:
        self._images = images
        self._crops = crops

    def __getitem__(self, places: Labels) -> Tensor | DataError:
        try:
            return _stacked([self._images.pixels(int(place), self._crops) for place in places])
        except DataError as error:
            return error


def _stacked(pixels: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(pixels))


def _as_it_is(read: Any) -> Any:  # Any: torch calls it with a list or, as here, with what was read
    return read
