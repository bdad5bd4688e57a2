"""What a source holds, looked at and checked without torch: `plan` reads it too.

A set that passes here can be trained on: what is wrong with it is told before anything is trained.
"""

# N images, C channels, H W pixels
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ticket_export.data.files import Arrays, arrays_from_npz, rows_from_folder
from ticket_export.data.hub import Table, is_hub, rows_from_hub
from ticket_export.data.rows import Pixels, Rows, View, is_grey, mixed_sizes, open_image, pixels_from_image
from ticket_export.errors import DataError

SOURCES = ("digits", "arrays", "folder", "hub", "hub:<name>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the images of a source are found and brought to one size; every default means "no effect".

    Attributes:
        splits: the split, or the folder, that trains and validates; and the one that tests.
        view: how images come to one size.
        table: what is read of a set that the package `datasets` knows.
    """

    splits: tuple[str, str] = ("train", "test")
    view: View = field(default_factory=View)
    table: Table = field(default_factory=Table)


AS_THEY_ARE = Reading()


def arrays_from_source(source: str, path: Path | None, reading: Reading) -> Arrays:
    """Return train_x, train_y, test_x and test_y: uint8 [N, C, H, W] and integer labels from 0, checked.

    Args:
        source: `arrays` (an `.npz` with these keys), or what `rows_from_source` reads.
        path: the file or the folder; None for a set from the hub.
        reading: how they are found and brought to one size.

    Raises:
        DataError: images or labels are missing, damaged, mixed in size or labelled out of range.
        MissingDependency: Pillow or datasets is needed and not installed.
    """
    origin = origin_of(source, path)
    if source == "arrays":
        assert path is not None  # require_path has seen it
        arrays = arrays_from_npz(path)
    else:
        train, test = rows_from_source(source, path, reading)
        pixels_NCHW = _decoded((train, test), reading.view)
        num_train = len(train.labels)
        arrays = {
            "train_x": pixels_NCHW[:num_train],
            "train_y": train.labels,
            "test_x": pixels_NCHW[num_train:],
            "test_y": test.labels,
        }
    _check(arrays, origin)
    return arrays


def rows_from_source(source: str, path: Path | None, reading: Reading) -> tuple[Rows, Rows]:
    """Return the encoded training and test images with their checked labels; no image is decoded.

    Args:
        source: `folder`, `hub` (files at `path` that the package `datasets` knows) or `hub:<name>`.
        path: the folder; None for a set from the hub.
        reading: how they are found.

    Raises:
        DataError: images or labels are missing, or labelled out of range.
        MissingDependency: datasets is needed and not installed.
    """
    train: Rows
    test: Rows
    if is_hub(source):
        train, test = rows_from_hub(source, path, reading.splits, reading.table)
    else:
        assert path is not None  # require_path has seen it
        train, test = rows_from_folder(path, reading.splits)
    check_labels(train.labels, test.labels, origin_of(source, path))
    return train, test


def shape_from_source(
    source: str, path: Path | None, reading: Reading, *, streamed: bool
) -> tuple[int, int, int]:
    """Return channels, height and width of the images after everything `plan` can look at was checked.

    Args:
        source: as for `arrays_from_source`.
        path: the file or the folder; None for a set from the hub.
        reading: how images are found and brought to one size.
        streamed: the first image alone is decoded.

    Raises:
        DataError: as for `arrays_from_source`.
        MissingDependency: as for `arrays_from_source`.
    """
    require_path(source, path)
    if streamed:
        channels, height, width = first_pixels(rows_from_source(source, path, reading)[0], reading.view).shape
    else:
        channels, height, width = arrays_from_source(source, path, reading)["train_x"].shape[1:]
    return channels, height, width


def first_pixels(rows: Rows, view: View) -> Pixels:
    """Return the first image, uint8 [3, H, W]: its size is that of all."""
    return pixels_from_image(open_image(rows, 0), view)


def require_path(source: str, path: Path | None) -> None:
    """Raise DataError unless the source is known and a path stands beside it where it needs one."""
    if source not in SOURCES and not is_hub(source):
        raise DataError(f"data.source is {source!r}", hint=f"it may be {', '.join(SOURCES)}")
    if path is None and source in ("arrays", "folder", "hub"):
        raise DataError(f"data.source {source} has no path", hint="set data.path")


def origin_of(source: str, path: Path | None) -> str:
    """Return what a source is called in an error."""
    return source if path is None else str(path)


def _decoded(parts: Sequence[Rows], view: View) -> Pixels:
    """Return the images of all parts, in one channel where all of them are grey."""
    pixels_NCHW: Pixels | None = None
    all_grey, done = True, 0
    for rows in parts:
        for index in range(len(rows.labels)):
            image = open_image(rows, index)
            all_grey = all_grey and is_grey(image)
            x_CHW = pixels_from_image(image, view)
            if pixels_NCHW is None:
                pixels_NCHW = np.empty(
                    (sum(len(each.labels) for each in parts), *x_CHW.shape), dtype=np.uint8
                )
            if x_CHW.shape != pixels_NCHW.shape[1:]:
                first = parts[0].where(0), pixels_NCHW.shape[1:]
                raise mixed_sizes(*first, rows.where(index), x_CHW.shape)
            pixels_NCHW[done] = x_CHW
            done += 1
    assert pixels_NCHW is not None  # no part is empty
    return np.ascontiguousarray(pixels_NCHW[:, :1]) if all_grey else pixels_NCHW


def _check(arrays: Arrays, origin: str) -> None:
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype != np.uint8 or x.ndim != 4:
            raise DataError(
                f"{origin}: {part}_x is {x.dtype} of shape {x.shape}", hint="it must be uint8 (N, C, H, W)"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
            raise DataError(
                f"{origin}: {part}_y is {y.dtype} of shape {y.shape}", hint="it must be integers (N,)"
            )
        if len(x) != len(y):
            raise DataError(f"{origin}: {len(x)} images in {part}_x, {len(y)} labels in {part}_y")
        if 0 in x.shape:
            raise DataError(f"{origin}: {part}_x is empty, its shape is {x.shape}")
    train_shape, test_shape = arrays["train_x"].shape[1:], arrays["test_x"].shape[1:]
    if train_shape != test_shape:
        raise DataError(f"{origin}: training images are {train_shape}, test images {test_shape}")
    check_labels(arrays["train_y"], arrays["test_y"], origin)


def check_labels(train_y_N: npt.NDArray[np.generic], test_y_N: npt.NDArray[np.generic], origin: str) -> None:
    """Raise DataError unless the training labels are 0 to K - 1, at least two, and the others among them."""
    for part, y_N in (("train", train_y_N), ("test", test_y_N)):
        if not len(y_N):
            raise DataError(f"{origin}: the images to {part} on are none", hint=f"set data.{part}_split")
    present = np.unique(train_y_N)
    lowest = min(int(present[0]), int(np.min(test_y_N)))
    if lowest < 0:
        raise DataError(
            f"{origin}: label {lowest} is negative",
            hint="labels count from 0; a split with secret labels cannot test, choose data.test_split",
        )
    # A gap is a label out of range seen from the other side: one 255 among 0..9 leaves 10..254 empty
    if int(present[-1]) != len(present) - 1:
        gap = next(label for label, held in enumerate(present.tolist()) if label != held)
        raise DataError(
            f"{origin}: labels reach {present[-1]}, but no training image is labelled {gap}",
            hint="labels count from 0 without gaps",
        )
    if len(present) == 1:
        raise DataError(
            f"{origin}: every training image is labelled 0", hint="at least two classes are needed"
        )
    highest = int(np.max(test_y_N))
    if highest >= len(present):
        raise DataError(
            f"{origin}: test label {highest} is out of range",
            hint=f"the training images hold {len(present)} classes, 0 to {len(present) - 1}",
        )
