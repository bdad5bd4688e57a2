"""Labelled test images named on the command line, and the accuracy of networks on them."""

# N images, C channels, H W pixels
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_export.cli.images import numbers_from_text, opened_npz
from ticket_export.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

_KEYS = ("test_x", "test_y")
_HINT = "numpy.savez(path, test_x=uint8 images (N, C, H, W), test_y=integer labels (N,))"
_BATCH = 64  # images at once, so that large images fit into memory


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Labelled images and how they are normalised.

    Attributes:
        x: uint8 [N, C, H, W].
        y: int64 [N].
        mean, std: one number per channel, or None for 0 and 1.
    """

    x: Tensor
    y: Tensor
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def labelled_images(
    path: Path, mean: str | None, std: str | None, image_shape: Sequence[int]
) -> LabelledImages:
    """Return the images under `test_x` and `test_y` of an `.npz` file, checked.

    Args:
        path: the file.
        mean: numbers joined by commas, one per channel, or None; `std` alike.
        std: see `mean`.
        image_shape: of the network's input, without the batch.

    Raises:
        DataError: the file, its arrays or the numbers are wrong.
    """
    import torch

    with opened_npz("--data", path, _HINT) as held:
        missing = [key for key in _KEYS if key not in held.files]
        if missing:
            raise DataError(
                f"--data: {path} lacks {', '.join(missing)}; it holds [{', '.join(held.files)}]", hint=_HINT
            )
        x, y = (held[key] for key in _KEYS)
    if x.dtype.name != "uint8" or x.ndim != 4 or len(x) == 0:
        raise DataError(f"{path}: test_x is {x.dtype} of shape {x.shape}", hint=_HINT)
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise DataError(f"{path}: test_y is {y.dtype} of shape {y.shape} for {len(x)} images", hint=_HINT)
    if x.shape[1:] != tuple(image_shape):
        shapes = ("x".join(map(str, shape)) for shape in (x.shape[1:], image_shape))
        raise DataError("{}: images are {}, --input says {}".format(path, *shapes))
    return LabelledImages(
        x=torch.from_numpy(x),
        y=torch.from_numpy(y.astype("int64")),
        mean=numbers_from_text("--mean", mean),
        std=numbers_from_text("--std", std),
    )


def accuracy_text(networks: Mapping[str, nn.Module], images: LabelledImages) -> str:
    """Return one line with the accuracy of each network on the images."""
    from ticket_export.train.evaluate import evaluate

    found = {
        name: evaluate(network, images.x, images.y, mean=images.mean, std=images.std, batch=_BATCH)
        for name, network in networks.items()
    }
    told = ", ".join(f"{100 * accuracy:.2f} % {name}" for name, accuracy in found.items())
    return f"accuracy on {len(images.y):,} images: {told}"
