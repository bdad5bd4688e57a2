"""Labelled image files that are decoded one at a time, and brought to one size. Imports no torch."""

# N images, C channels, H W pixels
from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ticket_export.errors import DataError, MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_SIZE_HINT = "set data.resize, and data.crop if you like, to bring all images to one size"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How images of any size come to one.

    Attributes:
        resize: pixels of the shorter side after scaling, the proportions kept; 0 = images stay as they are.
        crop: side of the square taken from the middle after that; 0 = `resize`.
    """

    resize: int = 0
    crop: int = 0

    @property
    def side(self) -> int:
        """Return the side of the square images that come out, or 0 where they stay as they are."""
        return self.crop or self.resize


class Rows(Protocol):
    """Encoded images with their labels; it travels to worker processes."""

    @property
    def labels(self) -> Labels:
        """One class per image, from 0."""

    def where(self, index: int) -> str:
        """Return the name of an image for an error."""

    def encoded(self, index: int) -> Path | io.BytesIO:
        """Return what Pillow opens.

        Raises:
            DataError: the row holds no image.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """Image files below one folder.

    Attributes:
        folder: the folder.
        names: paths below it as bytes: a million `Path` objects would fill the memory of every worker.
        labels: one class per file.
    """

    folder: Path
    names: npt.NDArray[np.bytes_]
    labels: Labels

    def where(self, index: int) -> str:
        """Return the path."""
        return str(self.encoded(index))

    def encoded(self, index: int) -> Path:
        """Return the path."""
        return self.folder / os.fsdecode(self.names[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Rows of a split of a `datasets.Dataset` whose images are not decoded.

    Attributes:
        table: the split.
        column: holds `{"bytes", "path"}` or bytes.
        labels: one class per row.
        origin: what the split is called in an error.
    """

    table: Any  # Any: datasets carries no types
    column: str
    labels: Labels
    origin: str

    def where(self, index: int) -> str:
        """Return split and row."""
        return f"in row {index} of {self.origin}"

    def encoded(self, index: int) -> Path | io.BytesIO:
        """Return the row's bytes, or the path that stands for them."""
        cell = self.table[index][self.column]
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if content is not None:
            return io.BytesIO(content)
        if path is not None:
            return Path(path)
        raise DataError(f"image {self.where(index)} is missing", hint="remove the row, or put an image there")


def open_image(rows: Rows, index: int) -> Image:
    """Return an image, read and decoded.

    Raises:
        DataError: it is missing or damaged; the text names the file or the row.
        MissingDependency: Pillow is not installed.
    """
    try:
        from PIL import Image as pillow  # noqa: N813 - a module
    except ImportError as error:
        raise MissingDependency(
            "image files need Pillow", hint="pip install 'ticket-export[hub]'  # or [vision]"
        ) from error
    try:
        with pillow.open(rows.encoded(index)) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DataError(
            f"image {rows.where(index)} cannot be read: {error}", hint="remove or replace it"
        ) from error


def is_grey(image: Image) -> bool:
    """Return whether an image holds no colour by its kind, whatever its pixels are."""
    return image.mode in ("L", "1")


def pixels_from_image(image: Image, view: View) -> Pixels:
    """Return an image in three channels as uint8 [3, H, W], scaled and cropped as `view` says."""
    image = image.convert("RGB")
    if view.resize:
        image = image.resize(_scaled(image.size, view.resize), _bilinear())
        left, top = (round((side - view.side) / 2.0) for side in image.size)
        image = image.crop((left, top, left + view.side, top + view.side))
    return _chw(image)


def pixels_from_box(image: Image, box: tuple[int, int, int, int], side: int) -> Pixels:
    """Return one part of an image as uint8 [3, side, side].

    Args:
        image: of any size.
        box: left, top, width and height of the part.
        side: of the square it is scaled to.
    """
    left, top, width, height = box
    part = image.crop((left, top, left + width, top + height))
    return _chw(part.convert("RGB").resize((side, side), _bilinear()))


def mixed_sizes(first: str, first_shape: tuple[int, ...], other: str, shape: tuple[int, ...]) -> DataError:
    """Return the error for two images [C, H, W] of different sizes."""
    told = [
        f"{name} is {width}x{height}" for name, (_, height, width) in ((first, first_shape), (other, shape))
    ]
    return DataError(f"images of mixed size: {', '.join(told)}", hint=_SIZE_HINT)


def _scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    # Rounded down as by torchvision's Resize, whose numbers the papers' recipes give
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _bilinear() -> Any:  # Any: Pillow's own kind
    from PIL.Image import Resampling

    return Resampling.BILINEAR  # wide enough for what is scaled down, so that nothing flickers


def _chw(image: Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
