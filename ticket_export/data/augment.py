"""Images as the network takes them: rotated, cropped, flipped, cut out and normalised on the device."""

# N images, C channels, H W pixels
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ticket_export.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What is done to training images.

    Attributes:
        mean: per channel, of pixels scaled to 0..1; one number per channel of the images.
        std: per channel, in the same scale, above 0.
        pad_crop: pixels of zeros put around before a crop of the original size is taken; 0 = off.
        flip: mirror left and right with probability 1/2.
        cutout: side of the square set to the mean (zero after normalising); 0 = off. Its centre may lie
            anywhere, so that it may reach over the border (DeVries & Taylor, arXiv 1708.04552).
        rotation: degrees; images are turned by a random angle of at most this, zeros following; 0 = off.
        random_resized_crop: the smallest share of its area that is taken of an image and scaled to the whole
            size, in (0, 1]; 0 = off. Streamed images alone have it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad_crop: int = 0
    flip: bool = False
    cutout: int = 0
    rotation: float = 0.0
    random_resized_crop: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """The random numbers of one epoch, one entry per image; None where an augmentation is off.

    `crop_row`, `crop_column` int64 [N] in 0..2*pad_crop; `flip` bool [N]; `cut_row`, `cut_column` int64 [N];
    `angle` float32 [N], radians.
    """

    crop_row: Tensor | None
    crop_column: Tensor | None
    flip: Tensor | None
    cut_row: Tensor | None
    cut_column: Tensor | None
    angle: Tensor | None


def normalise(x_NCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return `(x / 255 - mean) / std` of uint8 images as float32.

    Raises:
        DataError: the images are not uint8, or mean and std do not have one number per channel.
    """
    channels = x_NCHW.shape[1]
    if x_NCHW.dtype != torch.uint8:
        raise DataError(f"images to normalise are {x_NCHW.dtype}, not torch.uint8")
    if not len(mean) == len(std) == channels:
        raise DataError(
            f"the images have {channels} channels, mean has {len(mean)} numbers and std {len(std)}",
            hint="set data.mean and data.std to one number per channel",
        )
    if min(std) <= 0:
        raise DataError(f"std is {list(std)}", hint="each number of data.std must be above 0")
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), x_NCHW.device)
    return torch.addcmul(shift, x_NCHW.float(), scale)


@lru_cache(maxsize=16)  # a transfer to the device in every batch would make the host wait for it
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    scale_C = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift_C = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    scale, shift = (value.float().to(device).view(-1, 1, 1) for value in (scale_C, shift_C))
    return scale, shift


def draw(
    augment: Augment,
    num_images: int,
    height: int,
    width: int,
    *,
    generator: torch.Generator,
    device: torch.device,
) -> Draws:
    """Return the random numbers of one epoch of `num_images`, drawn on the CPU and moved to `device`.

    One draw per epoch, not per batch: the numbers do not depend on the device, and no step waits for a
    transfer.
    """

    def below(limit: int, on: bool) -> Tensor | None:
        return torch.randint(limit, (num_images,), generator=generator).to(device) if on else None

    crop, cut = augment.pad_crop > 0, augment.cutout > 0
    flips = below(2, augment.flip)
    return Draws(
        crop_row=below(2 * augment.pad_crop + 1, crop),
        crop_column=below(2 * augment.pad_crop + 1, crop),
        flip=None if flips is None else flips.bool(),
        cut_row=below(height, cut),
        cut_column=below(width, cut),
        angle=_angles(augment.rotation, num_images, generator).to(device) if augment.rotation else None,
    )


def _angles(degrees: float, num_images: int, generator: torch.Generator) -> Tensor:
    return math.radians(degrees) * (2 * torch.rand(num_images, generator=generator) - 1)


def augmented(x_NCHW: Tensor, augment: Augment, draws: Draws, part: slice) -> Tensor:
    """Return the augmented and normalised float32 images of one batch, on the device of `x_NCHW`.

    Args:
        x_NCHW: uint8 images.
        augment: what is done.
        draws: the epoch's random numbers.
        part: the batch's place in the epoch, the entries of `draws` that belong to it.
    """
    if draws.angle is not None:
        x_NCHW = _rotated(x_NCHW, draws.angle[part])
    if draws.crop_row is not None and draws.crop_column is not None:
        x_NCHW = _crop(x_NCHW, augment.pad_crop, draws.crop_row[part], draws.crop_column[part])
    if draws.flip is not None:
        x_NCHW = torch.where(draws.flip[part].view(-1, 1, 1, 1), x_NCHW.flip(3), x_NCHW)
    y_NCHW = normalise(x_NCHW, augment.mean, augment.std)
    if draws.cut_row is not None and draws.cut_column is not None:
        y_NCHW = _cut_out(y_NCHW, augment.cutout, draws.cut_row[part], draws.cut_column[part])
    return y_NCHW


def _rotated(x_NCHW: Tensor, angle_N: Tensor) -> Tensor:
    """Turn each image around its middle; every pixel is the nearest one, as torchvision's default has it."""
    height, width = x_NCHW.shape[2:]
    cos_N, sin_N, zero_N = angle_N.cos(), angle_N.sin(), torch.zeros_like(angle_N)
    # Coordinates run from -1 to 1 along both axes, whatever the lengths
    rows = (
        torch.stack((cos_N, sin_N * (height / width), zero_N), dim=1),
        torch.stack((-sin_N * (width / height), cos_N, zero_N), dim=1),
    )
    grid = torch.nn.functional.affine_grid(torch.stack(rows, dim=1), list(x_NCHW.shape), align_corners=False)
    turned = torch.nn.functional.grid_sample(
        x_NCHW.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return turned.to(torch.uint8)


def _crop(x_NCHW: Tensor, pad: int, row_N: Tensor, column_N: Tensor) -> Tensor:
    height, width = x_NCHW.shape[2:]
    padded = torch.nn.functional.pad(x_NCHW, (pad, pad, pad, pad))
    # All crops as a view; indexing it copies the chosen ones, with no index tensor as large as the images
    crops = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    return crops[torch.arange(len(x_NCHW), device=x_NCHW.device), row_N, column_N]


def _cut_out(x_NCHW: Tensor, side: int, row_N: Tensor, column_N: Tensor) -> Tensor:
    height, width = x_NCHW.shape[2:]

    def inside(size: int, centre_N: Tensor) -> Tensor:
        start_N1 = centre_N.unsqueeze(1) - side // 2
        place = torch.arange(size, device=x_NCHW.device)
        return (place >= start_N1) & (place < start_N1 + side)

    square_N1HW = (inside(height, row_N)[:, :, None] & inside(width, column_N)[:, None, :]).unsqueeze(1)
    return x_NCHW.masked_fill(square_N1HW, 0.0)
