"""Image files, and the same images as arrays, for the tests of their sources."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

CLASSES = ("cat", "dog")
PER_CLASS = 4


def noise(seed: int, height: int = 5, width: int = 6) -> Pixels:
    """Return one image [H, W, 3] that has nothing in common with that of another seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels_HWC: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "png")
    return file.getvalue()


def sets(
    num: int = 2 * PER_CLASS, height: int = 5, width: int = 6
) -> dict[str, tuple[list[Pixels], list[int]]]:
    """Return images and labels of both splits, the labels in the order of class folders."""
    return {
        split: (
            [noise(1000 * place + index, height, width) for index in range(num)],
            [index * len(CLASSES) // num for index in range(num)],
        )
        for place, split in enumerate(("train", "test"))
    }


def write_folder(root: Path, held: dict[str, tuple[list[Pixels], list[int]]] | None = None) -> Path:
    """Write `SPLIT/CLASS/000.png` so that the files, sorted, are in the order of `held`."""
    for split, (images, labels) in (held or sets()).items():
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            path = root / split / CLASSES[label] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
    return root


def nchw(images: list[Pixels]) -> Pixels:
    return np.stack(images).transpose(0, 3, 1, 2)
