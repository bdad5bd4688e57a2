"""The manifest of a stored result: what it is, what it was made from, and the hash of each of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ticket_export.store.key import KEY_DIGITS

SCHEMA = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a result; `sha256` is 64 hex digits."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a stored result says of itself.

    Attributes:
        stage: the stage's word, also the folder above.
        key: the folder's name.
        revision: of the stage's code.
        item: which of the stage's results it is: subject, replicate, and what else tells two apart.
        parents: role -> `<stage>/<key>` of each result it was made from.
        sections: the recipe's values it depends on, without defaults.
        files: relative path -> hash and size.
        facts: what the stage found out, JSON values.
        machine: where it was made.
        created: UTC, ISO 8601.
    """

    stage: str
    key: str
    revision: int
    item: Mapping[str, Any]  # Any: JSON values, also below
    parents: Mapping[str, str]
    sections: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    facts: Mapping[str, Any]
    machine: Mapping[str, Any]
    created: str

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return the manifest as plain JSON values."""
        return {"schema": SCHEMA, **asdict(self)}


def manifest_from_text(text: str) -> Manifest:
    """Return the manifest written in `text`.

    Raises:
        ValueError: the text is not a manifest of this schema; the message says why.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
        raise ValueError(f"the manifest is not of schema {SCHEMA}")
    try:
        files = {name: StoredFile(**entry) for name, entry in values.pop("files").items()}
        manifest = Manifest(files=files, **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the manifest is incomplete: {error}") from error
    if len(manifest.key) != KEY_DIGITS:
        raise ValueError(f"the manifest's key {manifest.key!r} has not {KEY_DIGITS} digits")
    return manifest
