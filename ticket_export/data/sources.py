"""Labelled images from every source, always split in three; held in memory or streamed."""

# N images, C channels, H W pixels
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ticket_export.data.files import Arrays
from ticket_export.data.reading import (
    AS_THEY_ARE,
    Reading,
    arrays_from_source,
    first_pixels,
    origin_of,
    require_path,
    rows_from_source,
)
from ticket_export.data.streamed import StreamedImages
from ticket_export.errors import DataError
from ticket_export.seeds import stream

_DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Labelled images in three parts: validation is cut from the training images, test picks nothing.

    Attributes:
        train_x: uint8 [N, C, H, W], or streamed images that stand for it; `val_x` and `test_x` alike.
        train_y: int64 [N], from 0 to `num_classes` - 1; `val_y` and `test_y` alike.
        num_classes: number of classes.
    """

    train_x: Tensor | StreamedImages
    train_y: Tensor
    val_x: Tensor | StreamedImages
    val_y: Tensor
    test_x: Tensor | StreamedImages
    test_y: Tensor
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of one image."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width


def load_images(
    source: str,
    path: str | Path | None,
    *,
    holdout_fraction: float,
    seed: int,
    train_limit: int = 0,
    reading: Reading = AS_THEY_ARE,
) -> Images:
    """Return the images of `source` in memory.

    Args:
        source: `digits` (1,797 scans of 8x8 pixels, no download), `arrays` (an `.npz` with train_x, train_y,
            test_x, test_y: uint8 (N, C, H, W) and integer labels), `folder` (train/CLASS/*.png and
            test/CLASS/*.png), `hub` (files that the package `datasets` knows) or `hub:<name>`.
        path: the file or folder; None for `digits` and `hub:<name>`.
        holdout_fraction: share of the training images that validates, in (0, 1); at least one image does.
        seed: of the split between training and validation.
        train_limit: images that train, of those that do not validate; 0 = all. The others go unused.
        reading: how images are found and brought to one size.

    Raises:
        DataError: the source is unknown, or its images are missing, damaged, mixed in size or labelled out
            of range.
        MissingDependency: Pillow or datasets is needed and not installed.
    """
    place = None if path is None else Path(path)
    require_path(source, place)
    arrays = _digits() if source == "digits" else arrays_from_source(source, place, reading)
    x_NCHW, y_N = _tensors(arrays, "train")
    val, train = _parts(len(y_N), holdout_fraction, seed, train_limit, origin_of(source, place))
    test_x_NCHW, test_y_N = _tensors(arrays, "test")
    return Images(
        train_x=x_NCHW[train],
        train_y=y_N[train],
        val_x=x_NCHW[val],
        val_y=y_N[val],
        test_x=test_x_NCHW,
        test_y=test_y_N,
        num_classes=int(y_N.max()) + 1,
    )


def stream_images(
    source: str,
    path: str | Path | None,
    *,
    holdout_fraction: float,
    seed: int,
    train_limit: int = 0,
    reading: Reading = AS_THEY_ARE,
    num_workers: int = 0,
) -> Images:
    """Return the images of `source` in three channels, decoded when they are needed.

    They are the images of `load_images`, in the same parts and order.

    Args:
        source: `folder`, `hub` or `hub:<name>`.
        path: the folder; None for `hub:<name>`.
        holdout_fraction: share of the training images that validates, in (0, 1); at least one image does.
        seed: of the split between training and validation.
        train_limit: images that train, of those that do not validate; 0 = all. The others go unused.
        reading: how images are found and brought to one size.
        num_workers: processes that decode; 0 = this one.

    Raises:
        DataError: the source cannot be streamed, the first image cannot be read, or images or labels are
            missing.
        MissingDependency: Pillow or datasets is needed and not installed.
    """
    place = None if path is None else Path(path)
    require_path(source, place)
    if source in ("digits", "arrays"):
        raise DataError(f"data.source {source} cannot be streamed", hint="set data.streamed to false")
    rows, test_rows = rows_from_source(source, place, reading)
    channels, height, width = first_pixels(rows, reading.view).shape
    y_N, test_y_N = (torch.from_numpy(each.labels) for each in (rows, test_rows))
    val, train = _parts(len(y_N), holdout_fraction, seed, train_limit, origin_of(source, place))
    test = torch.arange(len(test_y_N))
    train_x, val_x, test_x = (
        StreamedImages(
            rows=part_rows,
            chosen=chosen.numpy(),
            view=reading.view,
            image_shape=(channels, height, width),
            num_workers=num_workers,
        )
        for part_rows, chosen in ((rows, train), (rows, val), (test_rows, test))
    )
    return Images(
        train_x=train_x,
        train_y=y_N[train],
        val_x=val_x,
        val_y=y_N[val],
        test_x=test_x,
        test_y=test_y_N,
        num_classes=int(y_N.max()) + 1,
    )


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


def _tensors(arrays: Arrays, part: str) -> tuple[Tensor, Tensor]:
    x_NCHW = torch.from_numpy(np.ascontiguousarray(arrays[f"{part}_x"]))
    return x_NCHW, torch.from_numpy(arrays[f"{part}_y"].astype(np.int64))


def _parts(
    num_images: int, holdout_fraction: float, seed: int, train_limit: int, origin: str
) -> tuple[Tensor, Tensor]:
    """Return the indices of the images that validate and of those that train, the same for each replicate."""
    num_val = max(1, round(num_images * holdout_fraction))
    if not 0 < holdout_fraction < 1 or num_val >= num_images:
        raise DataError(
            f"{origin}: holding out {holdout_fraction} of {num_images} training images leaves a part empty",
            hint="choose data.holdout_fraction between 0 and 1 so that both parts hold images",
        )
    order = torch.randperm(num_images, generator=stream(seed, "data", "holdout"))
    val, train = order[:num_val], order[num_val:]
    if train_limit > len(train):
        raise DataError(
            f"{origin}: {train_limit} images should train, but {len(train)} of {num_images} do not validate",
            hint="lower data.train_limit, or set it to 0 for all",
        )
    return val, train[: train_limit or None]
