"""One root seed, named streams: adding a consumer never shifts the numbers another one draws."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_from_path(seed: int, *path: str | int) -> int:
    """Return the 63-bit seed that belongs to `path` under the root `seed`.

    Args:
        seed: the recipe's root seed, any integer.
        path: what the numbers are for, e.g. `"replicate", 2, "order", "epoch-3"`.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator whose numbers depend on `seed` and `path` alone.

    Args:
        seed: the recipe's root seed, any integer.
        path: what the numbers are for, e.g. `"replicate", 2, "order", "epoch-3"`.
    """
    import torch  # the recipe, store and report packages use seed_from_path and load no torch

    return torch.Generator().manual_seed(seed_from_path(seed, *path))
