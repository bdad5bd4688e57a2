"""Arrays in an `.npz` file, and class folders of image files, read without torch."""

# N images, C channels, H W pixels
from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ticket_export.data.rows import FileRows
from ticket_export.errors import DataError

Arrays = Mapping[str, npt.NDArray[np.generic]]

_KEYS = ("train_x", "train_y", "test_x", "test_y")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_NUMPY_STARTS = (b"PK", b"\x93NUMPY")  # of .npz and .npy files
_SAVEZ = f"write it with numpy.savez(path, {', '.join(f'{key}=...' for key in _KEYS)})"


def arrays_from_npz(path: Path) -> Arrays:
    """Return the arrays train_x, train_y, test_x and test_y of a file, not checked further.

    Raises:
        DataError: the file is missing, damaged, of another kind or lacks one of them.
    """
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


def rows_from_folder(path: Path, splits: tuple[str, str]) -> tuple[FileRows, FileRows]:
    """Return the image files of `path/SPLIT/CLASS/`, at any depth, for training and for testing.

    Args:
        path: the folder.
        splits: names of the two folders below it. The classes are the folders in the first, in the order of
            their names.

    Raises:
        DataError: a folder is missing or holds no images, or a class is not among those of the first.
    """
    for split in splits:
        if not (path / split).is_dir():
            raise DataError(
                f"data folder {path} has no folder {split}",
                hint=f"put images at {splits[0]}/CLASS/ and {splits[1]}/CLASS/, "
                "or name the folders in data.train_split and data.test_split",
            )
    train, test = (path / split for split in splits)
    classes = _folders(train)
    unknown = [name for name in _folders(test) if name not in classes]
    if unknown:
        raise DataError(f"{test}: class {unknown[0]!r} has no folder under {train}")
    found = tuple(_rows(path, split, classes) for split in splits)
    for split, rows in zip(splits, found, strict=True):
        if not len(rows.labels):
            raise DataError(
                f"{path / split} holds no images", hint=f"known kinds: {', '.join(sorted(_SUFFIXES))}"
            )
    for label in sorted(set(range(len(classes))) - set(found[0].labels.tolist())):
        raise DataError(
            f"{train / classes[label]} holds no images",
            hint="put training images of the class there, or remove the folder",
        )
    return found[0], found[1]


def is_image_file(name: str) -> bool:
    """Return whether a file's name ends like an image's."""
    return name.lower().endswith(_SUFFIXES)


def _rows(path: Path, split: str, classes: list[str]) -> FileRows:
    names, labels = [], []
    for label, name in enumerate(classes):
        for file in _image_files(path / split / name):
            names.append(os.fsencode(os.path.relpath(file, path)))
            labels.append(label)
    return FileRows(
        folder=path, names=np.array(names, dtype=np.bytes_), labels=np.array(labels, dtype=np.int64)
    )


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> Iterator[str]:
    for here, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and is_image_file(name):
                yield f"{here}/{name}"
