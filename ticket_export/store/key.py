"""Keys: twelve hex digits that stand for everything a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

KEY_DIGITS = 12  # 48 bits: among a million results two keys agree with probability 0.2 %

_CHUNK_BYTES = 1 << 20


def canonical_json(value: object) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, UTF-8 kept, no NaN.

    Raises:
        ValueError: a number is not finite.
        TypeError: something in `value` is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_from_content(content: Mapping[str, object]) -> str:
    """Return the key of a result that depends on `content` and nothing else."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:KEY_DIGITS]


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_tree(folder: Path) -> str:
    """Return a sha256 over the relative path and size of every file below `folder`.

    The contents are not read, image folders being large: a file replaced by another of the same name and size
    goes unseen.
    """
    sizes = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    )
    return hashlib.sha256(canonical_json(sizes).encode()).hexdigest()
