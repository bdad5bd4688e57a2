"""Image files read and checked as arrays, without torch: `plan` looks at them too.

A file that passes here can be trained on: what is wrong with it is told before anything is trained.
"""

# N images, C channels, H W pixels
from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ticket_export.errors import DataError, MissingDependency

Arrays = Mapping[str, npt.NDArray[np.generic]]

_KEYS = ("train_x", "train_y", "test_x", "test_y")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_NUMPY_STARTS = (b"PK", b"\x93NUMPY")  # of .npz and .npy files
_SAVEZ = f"write it with numpy.savez(path, {', '.join(f'{key}=...' for key in _KEYS)})"


def arrays_from_files(source: str, path: Path) -> Arrays:
    """Return train_x, train_y, test_x and test_y: uint8 [N, C, H, W] and integer labels from 0, checked.

    Args:
        source: `arrays` (an `.npz` with these keys) or `folder` (train/CLASS/*.png and test/CLASS/*.png).
        path: the file or the folder.

    Raises:
        DataError: images or labels are missing, damaged, mixed in size or labelled out of range.
        MissingDependency: `folder` needs Pillow and it is not installed.
    """
    arrays = _arrays(path) if source == "arrays" else _folder(path)
    _check(arrays, str(path))
    return arrays


def _arrays(path: Path) -> Arrays:
    if not path.is_file():
        state = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"data file {path} {state}", hint="check data.path and data.source")
    try:
        # numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file:
            return _arrays_in(file, path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):  # numpy's words would tell the user to load it unsafely
            raise DataError(
                f"data file {path} holds Python objects, which are never run",
                hint="save plain arrays: uint8 images and integer labels",
            ) from error
        raise DataError(
            f"data file {path} cannot be read: {error}", hint="it is damaged or cut short; fetch it again"
        ) from error


def _arrays_in(file: IO[bytes], path: Path) -> Arrays:
    start = file.read(8)
    file.seek(0)
    if start and not start.startswith(_NUMPY_STARTS):
        raise DataError(f"data file {path} is not an .npz file", hint=_SAVEZ)
    held = np.load(file, allow_pickle=False)
    if not isinstance(held, np.lib.npyio.NpzFile):
        raise DataError(f"data file {path} holds one array, not {', '.join(_KEYS)}", hint=_SAVEZ)
    missing = [key for key in _KEYS if key not in held.files]
    if missing:
        raise DataError(
            f"data file {path} lacks {', '.join(missing)}; it holds [{', '.join(held.files)}]", hint=_SAVEZ
        )
    return {key: held[key] for key in _KEYS}


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
    for label, name in enumerate(classes):
        if all(label != held for _, held in files["train"]):
            raise DataError(
                f"{path / 'train' / name} holds no images",
                hint="put training images of the class there, or remove the folder",
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
