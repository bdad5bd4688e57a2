"""Labelled images from the embedded digits, an `.npz` file or class folders, always split in three."""

# N images, C channels, H W pixels
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ticket_export.data.files import Arrays, arrays_from_files
from ticket_export.errors import DataError
from ticket_export.seeds import stream

SOURCES = ("digits", "arrays", "folder")
_DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Labelled images in three parts: validation is cut from the training images, test picks nothing.

    Attributes:
        train_x: uint8 [N, C, H, W]; `val_x` and `test_x` alike.
        train_y: int64 [N], from 0 to `num_classes` - 1; `val_y` and `test_y` alike.
        num_classes: number of classes.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of one image."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width


def load_images(source: str, path: str | Path | None, *, holdout_fraction: float, seed: int) -> Images:
    """Return the images of `source`, with `holdout_fraction` of the training images set aside for validation.

    Args:
        source: `digits` (1,797 scans of 8x8 pixels, no download), `arrays` (an `.npz` with train_x, train_y,
            test_x, test_y: uint8 (N, C, H, W) and integer labels) or `folder` (train/CLASS/*.png and
            test/CLASS/*.png).
        path: the file or folder; None for `digits`.
        holdout_fraction: share of the training images, in (0, 1); at least one image is held out.
        seed: of the split between training and validation.

    Raises:
        DataError: the source is unknown, or its images are missing, damaged, mixed in size or labelled out
            of range.
        MissingDependency: `folder` needs Pillow and it is not installed.
    """
    if source not in SOURCES:
        raise DataError(f"data.source is {source!r}", hint=f"it may be {', '.join(SOURCES)}")
    if source == "digits":
        arrays, origin = _digits(), "digits"
    else:
        if path is None:
            raise DataError(f"data.source {source} has no path", hint="set data.path")
        arrays, origin = arrays_from_files(source, Path(path)), str(path)
    return _split(arrays, origin, holdout_fraction, seed)


def _digits() -> Arrays:
    from sklearn.datasets import load_digits  # 0.7 s; no other source needs it

    x_NHW, y_N = load_digits(return_X_y=True)
    x_NCHW = np.rint(x_NHW.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # the scans count 0..16
    # The same test images for every seed, so that no choice of a seed can pick easy ones
    order = torch.randperm(len(y_N), generator=stream(0, "digits", "test")).numpy()
    num_test = round(len(y_N) * _DIGITS_TEST_FRACTION)
    test, train = order[:num_test], order[num_test:]
    return {
        "train_x": x_NCHW[train],
        "train_y": y_N[train],
        "test_x": x_NCHW[test],
        "test_y": y_N[test],
    }


def _split(arrays: Arrays, origin: str, holdout_fraction: float, seed: int) -> Images:
    x_NCHW = torch.from_numpy(np.ascontiguousarray(arrays["train_x"]))
    y_N = torch.from_numpy(arrays["train_y"].astype(np.int64))
    num_val = max(1, round(len(y_N) * holdout_fraction))
    if not 0 < holdout_fraction < 1 or num_val >= len(y_N):
        raise DataError(
            f"{origin}: holding out {holdout_fraction} of {len(y_N)} training images leaves a part empty",
            hint="choose data.holdout_fraction between 0 and 1 so that both parts hold images",
        )
    order = torch.randperm(len(y_N), generator=stream(seed, "data", "holdout"))
    val, train = order[:num_val], order[num_val:]
    return Images(
        train_x=x_NCHW[train],
        train_y=y_N[train],
        val_x=x_NCHW[val],
        val_y=y_N[val],
        test_x=torch.from_numpy(np.ascontiguousarray(arrays["test_x"])),
        test_y=torch.from_numpy(arrays["test_y"].astype(np.int64)),
        num_classes=int(arrays["train_y"].max()) + 1,
    )
