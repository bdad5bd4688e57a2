"""A training's state on disk: one safetensors file, tensors and facts together, replaced atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ticket_export.errors import StoreError, TrainError

FILE_NAME = "checkpoint.safetensors"
_FACTS = "facts"

Json = Mapping[str, object]


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], facts: Json) -> None:
    """Replace the folder's checkpoint by this one; killed at any moment, one whole checkpoint remains.

    Args:
        folder: exists already.
        tensors: everything that is a tensor; any device, any memory layout.
        facts: everything else, as JSON.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    # The facts travel in the file's own header, so that tensors and facts can never be of two different
    # moments
    path = folder / FILE_NAME
    partial = path.with_suffix(".partial")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(held, partial, metadata={_FACTS: json.dumps(facts)})
        os.replace(partial, path)  # noqa: PTH105 - named for what it promises: atomic
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"checkpoint {path} cannot be written: {error}", hint="free some space") from error


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:  # Any: JSON
    """Return the tensors and facts that `save_checkpoint` wrote last into `folder`, or None.

    Raises:
        TrainError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata is None or _FACTS not in metadata:
                raise ValueError("it holds no training state")
            facts = json.loads(metadata[_FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainError(
            f"checkpoint {path} cannot be read: {error}", hint="delete it; the training then starts anew"
        ) from error


def require_identity(facts: Mapping[str, Any], identity: Mapping[str, object], folder: Path) -> None:
    """Pass when the folder's checkpoint was written by what goes on from it.

    Args:
        facts: of `load_checkpoint`.
        identity: facts by name that it must share, as JSON.
        folder: for the error's text.

    Raises:
        TrainError: it is of another training or search.
    """
    for name, value in identity.items():
        if facts["identity"].get(name) != value:
            raise TrainError(
                f"checkpoint {folder / FILE_NAME} was written with {name} = {facts['identity'].get(name)!r}, "
                f"not {value!r}",
                hint="use another folder, or delete the checkpoint",
            )


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and values, by which a checkpoint knows them again."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
