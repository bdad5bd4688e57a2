"""Labelled images from the embedded digits, an `.npz` file or class folders, always split in three."""

# N images, C channels, H W pixels
from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ticket_export.errors import DataError, MissingDependency
from ticket_export.seeds import stream

Arrays = Mapping[str, npt.NDArray[np.generic]]

SOURCES = ("digits", "arrays", "folder")
_KEYS = ("train_x", "train_y", "test_x", "test_y")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
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
        arrays = _digits()
        origin = "digits"
    else:
        if path is None:
            raise DataError(f"data.source {source} has no path", hint="set data.path")
        origin = str(path)
        arrays = _arrays(Path(path)) if source == "arrays" else _folder(Path(path))
    _check(arrays, origin)
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


def _arrays(path: Path) -> Arrays:
    if not path.is_file():
        raise DataError(f"data file {path} does not exist", hint="check data.path")
    try:
        # numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise DataError(f"data file {path} holds one array, not {', '.join(_KEYS)}")
            missing = [key for key in _KEYS if key not in held.files]
            if missing:
                raise DataError(
                    f"data file {path} lacks {', '.join(missing)}; it holds [{', '.join(held.files)}]",
                    hint=f"write it with numpy.savez(path, {', '.join(f'{key}=...' for key in _KEYS)})",
                )
            return {key: held[key] for key in _KEYS}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"data file {path} cannot be read: {error}", hint="it is damaged or cut short; fetch it again"
        ) from error


def _folder(path: Path) -> Arrays:
    for part in ("train", "test"):
        if not (path / part).is_dir():
            raise DataError(
                f"data folder {path} has no folder {part}", hint="put images at train/CLASS/ and test/CLASS/"
            )
    classes = sorted(entry.name for entry in _entries(path / "train") if entry.is_dir())
    unknown = [e.name for e in _entries(path / "test") if e.is_dir() and e.name not in classes]
    if unknown:
        raise DataError(f"{path / 'test'}: class {unknown[0]!r} has no folder under {path / 'train'}")
    files = {
        part: [
            (file, label)
            for label, name in enumerate(classes)
            for file in _entries(path / part / name)
            if file.suffix.lower() in _SUFFIXES
        ]
        for part in ("train", "test")
    }
    for part, found in files.items():
        if not found:
            raise DataError(
                f"{path / part} holds no images", hint=f"known kinds: {', '.join(sorted(_SUFFIXES))}"
            )
    pixels_NCHW = _read_images([file for part in ("train", "test") for file, _ in files[part]])
    num_train = len(files["train"])
    return {
        "train_x": pixels_NCHW[:num_train],
        "train_y": np.array([label for _, label in files["train"]]),
        "test_x": pixels_NCHW[num_train:],
        "test_y": np.array([label for _, label in files["test"]]),
    }


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read_images(files: list[Path]) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependency(
            "data.source folder needs Pillow", hint="pip install 'ticket-export[vision]'"
        ) from error
    images: list[npt.NDArray[np.uint8]] = []
    all_grey = True
    for file in files:
        try:
            with Image.open(file) as image:
                all_grey = all_grey and image.mode in ("L", "1")
                images.append(np.asarray(image.convert("RGB"), dtype=np.uint8))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise DataError(f"image {file} cannot be read: {error}", hint="remove or replace it") from error
        if images[-1].shape != images[0].shape:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (images[0], images[-1])]
            raise DataError(
                f"images of mixed size: {files[0]} is {sizes[0]}, {file} is {sizes[1]}",
                hint="bring all images to one size first",
            )
    x_NCHW = np.stack(images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x_NCHW[:, :1] if all_grey else x_NCHW)


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
    _check_labels(arrays["train_y"], arrays["test_y"], origin)


def _check_labels(train_y_N: npt.NDArray[np.generic], test_y_N: npt.NDArray[np.generic], origin: str) -> None:
    present = np.unique(train_y_N)
    lowest = min(int(present[0]), int(np.min(test_y_N)))
    if lowest < 0:
        raise DataError(f"{origin}: label {lowest} is negative", hint="labels count from 0")
    # A gap is a label out of range seen from the other side: one 255 among 0..9 leaves 10..254 empty
    if int(present[-1]) != len(present) - 1:
        gap = next(label for label, held in enumerate(present.tolist()) if label != held)
        raise DataError(
            f"{origin}: labels reach {present[-1]}, but no training image is labelled {gap}",
            hint="labels count from 0 without gaps",
        )
    highest = int(np.max(test_y_N))
    if highest >= len(present):
        raise DataError(
            f"{origin}: test label {highest} is out of range",
            hint=f"the training images hold {len(present)} classes, 0 to {len(present) - 1}",
        )


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
