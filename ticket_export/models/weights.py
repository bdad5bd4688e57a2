"""Weight files: read without running anything stored in them, and copied into a network that they fit."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ticket_export.errors import TrainError

_SUFFIXES = ".safetensors, .pt, .pth, .npz"
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # where training scripts put the weights of a checkpoint
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel, of torch.compile

_log = logging.getLogger(__name__)


def weights_from_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.pt`/`.pth` or `.npz` file by name, on the CPU.

    No pickle is run: `.pt` files are read with `weights_only=True`, `.npz` files without object arrays. A
    `.pt` file may hold the state dict itself, or a checkpoint with it under `state_dict`,
    `model_state_dict` or `model`, the first of them that is there; which one is logged. Names stay as they
    are in the file.

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
    except Exception as error:  # bytes of another kind break the unpickler in any way
        raise _unreadable_pt(path, error) from error
    if not isinstance(held, dict):
        raise TrainError(f"weights file {path} holds a {type(held).__name__}, not tensors by name")
    where = next((key for key in _WRAPPERS if isinstance(held.get(key), dict)), None)
    if where is not None:
        _log.info("weights file %s: a checkpoint, its weights are under %r", path, where)
        held = held[where]
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TrainError(
                f"weights file {path}: {name!r} is a {type(value).__name__}, not a tensor by name",
                hint="save the weights alone: torch.save(model.state_dict(), path)",
            )
    return dict(held)


def _unreadable_pt(path: Path, error: Exception) -> TrainError:
    """Return what to tell: what is not run, with the line that converts the file, or what is damaged."""
    loaded = f"torch.load({str(path)!r}, weights_only=False)"
    if "TorchScript" in str(error):
        return TrainError(
            f"weights file {path} holds a TorchScript program, which is never run",
            hint=f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pt')",
        )
    named = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and named is not None:
        return TrainError(
            f"weights file {path} holds a pickled Python object ({named[1]}), which is never run",
            hint="if you trust the file, convert it once in Python: "
            f"torch.save({loaded}.state_dict(), 'weights.pt') "
            "(['state_dict'] in place of .state_dict() where it is a checkpoint)",
        )
    reason = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reason if line.startswith("Unsupported")), "".join(reason[:1]))
    return TrainError(
        f"weights file {path} cannot be read: {type(error).__name__}: {told}",
        hint="it is damaged or not of torch.save; write it again",
    )


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


def without_prefixes(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the weights under their names in the bare network, and the prefix that was left off ("" = none).

    `module.` (DataParallel, DistributedDataParallel) and `_orig_mod.` (torch.compile) go, also one inside the
    other, where every name carries them.
    """
    prefix = ""
    while found := next((p for p in _PREFIXES if _all_start_with(weights, prefix + p)), ""):
        prefix += found
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}, prefix


def _all_start_with(names: Iterable[str], prefix: str) -> bool:
    held = list(names)
    return bool(held) and all(name.startswith(prefix) for name in held)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `weights` into `model` in place; a missing `num_batches_tracked` keeps the model's own.

    Prefixes of wrappers that every name carries and the model's do not are left off; that is logged.

    Args:
        model: the network; its state dict names what is needed.
        weights: tensors by state-dict name.
        source: what the message calls them, e.g. the file.

    Raises:
        TrainError: names are missing or unknown, shapes differ, or values are NaN or infinite. The text lists
            every one; the model is unchanged.
    """
    needed = model.state_dict()
    bare, prefix = without_prefixes(weights)
    if prefix and not _all_start_with(needed, prefix):
        _log.info("%s: the prefix %r of all %d names is left off", source, prefix, len(bare))
        weights = bare
    problems = [
        f"missing: {name}"
        for name in needed
        if name not in weights and not name.endswith("num_batches_tracked")
    ]
    problems += [f"unknown: {name}" for name in weights if name not in needed]
    for name, held in needed.items():
        problem = _problem(weights[name], held) if name in weights else None
        problems += [f"{name}: {problem}"] if problem is not None else []
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise TrainError(
            f"{source} does not fit the network: {count}\n{lines}",
            hint="check model.builder, model.args and the number of classes",
        )
    model.load_state_dict(dict(weights), strict=False)


def _problem(given: Tensor, held: Tensor) -> str | None:
    """Return why `given` cannot take the place of `held`, or None."""
    if is_lazy(held):
        return None  # its shape comes with the weights
    if given.shape != held.shape:
        return f"shape {tuple(given.shape)}, the network has {tuple(held.shape)}"
    if given.is_complex() and not held.is_complex():
        return f"{given.dtype}, the network has {held.dtype}"
    # a mask of -inf is what the network itself holds; anywhere else it is the end of a failed training
    bad = ~torch.isfinite(given)
    if bad.any() and torch.isfinite(held).all():
        return f"{int(bad.sum())} of {bad.numel()} values are NaN or infinite"
    return None
