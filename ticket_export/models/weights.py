"""Weight files: read without running anything stored in them, and copied into a network that they fit."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ticket_export.errors import TrainError

_SUFFIXES = ".safetensors, .pt, .pth, .npz"


def weights_from_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.pt`/`.pth` or `.npz` file by name, on the CPU.

    No pickle is run: `.pt` files are read with `weights_only=True`, `.npz` files without object arrays. A
    `.pt` file may hold the state dict itself or a dict with it under `state_dict`.

    Raises:
        TrainError: the file is missing, damaged, of another kind, or holds something else than tensors.
    """
    if not path.is_file():
        raise TrainError(f"weights file {path} does not exist", hint="check model.weights or --weights")
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".pt" | ".pth":
            return _read_pt(path)
        case ".npz":
            return _read_npz(path)
    raise TrainError(f"weights file {path}: {path.suffix!r} is not one of {_SUFFIXES}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise TrainError(f"weights file {path} cannot be read: {error}", hint="write it again") from error


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TrainError(
            f"weights file {path} holds Python objects, which are never run",
            hint="save the weights alone: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:  # bytes of another kind break the unpickler in any way
        raise TrainError(
            f"weights file {path} cannot be read: {type(error).__name__}: {error}", hint="write it again"
        ) from error
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict):
        raise TrainError(f"weights file {path} holds a {type(held).__name__}, not tensors by name")
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise TrainError(
                f"weights file {path}: {name!r} is a {type(value).__name__}, not a tensor",
                hint="save the weights alone: torch.save(model.state_dict(), path)",
            )
    return dict(held)


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        # numpy leaves a file that it opened itself open when the archive is damaged
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise TrainError(
                    f"weights file {path} is not an .npz file", hint="numpy.savez(path, **arrays_by_name)"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):  # numpy's words would tell the user to load it unsafely
            raise TrainError(
                f"weights file {path} holds Python objects, which are never run",
                hint="save plain arrays by name",
            ) from error
        raise TrainError(f"weights file {path} cannot be read: {error}", hint="write it again") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `weights` into `model` in place; a missing `num_batches_tracked` keeps the model's own.

    Args:
        model: the network; its state dict names what is needed.
        weights: tensors by state-dict name.
        source: what the message calls them, e.g. the file.

    Raises:
        TrainError: names are missing or unknown, or shapes differ. The text lists every one; the model is
            unchanged.
    """
    needed = model.state_dict()
    problems = [
        f"missing: {name}"
        for name in needed
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    problems += [f"unknown: {name}" for name in weights if name not in needed]
    problems += [
        f"{name}: shape {tuple(weights[name].shape)}, the network has {tuple(held.shape)}"
        for name, held in needed.items()
        if name in weights and weights[name].shape != held.shape
    ]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TrainError(
            f"{source} does not fit the network: {len(problems)} problems\n{lines}",
            hint="check model.builder, model.args and the number of classes",
        )
    model.load_state_dict(dict(weights), strict=False)
