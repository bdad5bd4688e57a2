"""Images in `.npz` files named on the command line, and the numbers that normalise them. No torch."""

# N images, C channels, H W pixels
from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_export.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from numpy.lib.npyio import NpzFile

CALIBRATION_IMAGES = 256  # evenly over the file; the ranges of activations hardly move with more
_CALIBRATION_KEYS = ("train_x", "x")
_CALIBRATION_HINT = "numpy.savez(path, x=uint8 images (N, C, H, W)), with --mean and --std of the training"


@contextmanager
def opened_npz(option: str, path: Path, hint: str) -> Iterator[NpzFile]:
    """Give the arrays of an `.npz` file, which holds no Python objects.

    Raises:
        DataError: it cannot be read, here or while arrays are taken out of it inside the block.
    """
    import numpy

    try:
        # numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{option}: {path} is not an .npz file", hint=hint)
            file.seek(0)
            with numpy.load(file, allow_pickle=False) as held:
                yield held
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        told = "it holds Python objects, which are never run" if "allow_pickle" in str(error) else error
        raise DataError(f"{option}: {path} cannot be read: {told}", hint=hint) from error


def numbers_from_text(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers joined by commas, or None without a text.

    Raises:
        DataError: a word is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise DataError(
            f"{option}: {text!r} is not a list of numbers", hint=f"for example {option} 0.49,0.48,0.44"
        ) from error


def calibration_images(path: Path, mean: str | None, std: str | None) -> npt.NDArray[np.float32]:
    """Return at most CALIBRATION_IMAGES images under `train_x` or `x` as a network is fed them.

    Args:
        path: an `.npz` file; its images are uint8, or float32 and normalised already.
        mean: numbers joined by commas, one per channel, in [0, 1]; None is 0. `std` alike; None is 1.
        std: see `mean`.

    Returns:
        float32 [N, C, H, W]: `(x / 255 - mean) / std` of uint8 images, other ones as they are.

    Raises:
        DataError: the file, its array or the numbers are wrong.
    """
    import numpy

    with opened_npz("--calibration", path, _CALIBRATION_HINT) as held:
        key = next((key for key in _CALIBRATION_KEYS if key in held.files), None)
        if key is None:
            raise DataError(
                f"--calibration: {path} holds [{', '.join(held.files)}], neither train_x nor x",
                hint=_CALIBRATION_HINT,
            )
        x_NCHW = held[key]
    if x_NCHW.dtype.name not in ("uint8", "float32") or x_NCHW.ndim != 4 or len(x_NCHW) == 0:
        raise DataError(
            f"--calibration: {key} of {path} is {x_NCHW.dtype} of shape {x_NCHW.shape}",
            hint=_CALIBRATION_HINT,
        )
    places = numpy.linspace(0, len(x_NCHW) - 1, min(CALIBRATION_IMAGES, len(x_NCHW))).round().astype(int)
    mean_C, std_C = numbers_from_text("--mean", mean), numbers_from_text("--std", std)
    if x_NCHW.dtype.name == "float32":
        if mean_C is not None or std_C is not None:
            raise DataError(
                f"--calibration: {key} of {path} is float32, so --mean and --std would be applied twice",
                hint="leave them out",
            )
        return numpy.asarray(x_NCHW[places])
    channels = x_NCHW.shape[1]
    mean_1C11, std_1C11 = (
        _per_channel(option, numbers, channels)
        for option, numbers in (
            ("--mean", mean_C or (0.0,) * channels),
            ("--std", std_C or (1.0,) * channels),
        )
    )
    if std_1C11.min() <= 0:
        raise DataError(f"--std: {std!r}", hint="each number must be above 0")
    return numpy.asarray((x_NCHW[places] / 255 - mean_1C11) / std_1C11, dtype=numpy.float32)


def _per_channel(option: str, numbers: Sequence[float], channels: int) -> npt.NDArray[np.float64]:
    import numpy

    if len(numbers) != channels:
        raise DataError(f"{option}: {len(numbers)} numbers, but the images have {channels} channels")
    return numpy.array(numbers, dtype=numpy.float64).reshape(1, channels, 1, 1)
