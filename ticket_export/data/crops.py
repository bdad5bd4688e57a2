"""Random parts of images of any size, as torchvision's RandomResizedCrop takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ticket_export.seeds import stream

# Szegedy et al. (arXiv 1409.4842, section 6), and how torchvision carries it out
_ASPECTS = (3 / 4, 4 / 3)
_NUM_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrops:
    """The random crops of one epoch.

    Attributes:
        min_area_fraction: the smallest share of an image's area that a crop covers, in (0, 1].
        seed_path: root seed and path of the epoch. The numbers of an image depend on it and on the image's
            index, never on the process that reads it.
    """

    min_area_fraction: float
    seed_path: tuple[int | str, ...]

    def box(self, index: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return left, top, width and height of the part of image `index` that is taken.

        Args:
            index: of the image in its set.
            size: width and height of the image.
        """
        root, *path = self.seed_path
        generator = stream(int(root), *path, index)
        width, height = size
        for _ in range(_NUM_TRIES):
            area_draw, aspect_draw, left_draw, top_draw = torch.rand(4, generator=generator).tolist()
            area = width * height * (self.min_area_fraction + area_draw * (1 - self.min_area_fraction))
            low, high = map(math.log, _ASPECTS)
            aspect = math.exp(low + aspect_draw * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1)), w, h
        return _middle(width, height)


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Return the largest part from the middle whose aspect is allowed."""
    narrowest, widest = _ASPECTS
    w, h = width, height
    if width / height < narrowest:
        h = round(width / narrowest)
    elif width / height > widest:
        w = round(height * widest)
    return (width - w) // 2, (height - h) // 2, w, h
