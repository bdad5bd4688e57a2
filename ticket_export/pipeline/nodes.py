"""Nodes: results to be made, each with its key; which of them a run needs, and in which order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticket_export.errors import RecipeError
from ticket_export.models.facts import BUNDLE_PREFIX
from ticket_export.pipeline.images import data_hash
from ticket_export.recipe.schema import Recipe
from ticket_export.shrink.bundle_files import MANIFEST, PLAN, WEIGHTS
from ticket_export.stages import StageWord
from ticket_export.store.key import canonical_json, sha256_of_file

# What a step costs beside the others, to start the longest chain first; seconds of ResNet-20 on the digits.
_COST: Mapping[StageWord, float] = {"train": 10.0, "find": 1.0, "shrink": 3.0, "export": 3.0, "measure": 0.5}
EVERY_SUBJECT = "all"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One result to be made.

    Attributes:
        stage: the stage that makes it.
        subject: of the comparison; `all` for a latency, which times every subject in one run.
        replicate: from 0; None for a latency.
        key: of the result in the store.
        revision: of the stage's code.
        item: what tells this result from the stage's others, JSON values.
        sections: the recipe's values it depends on, without defaults.
        parents: role -> the node whose result is read.
    """

    stage: StageWord
    subject: str
    replicate: int | None
    key: str
    revision: int
    item: Mapping[str, Any]  # Any: JSON values, also below
    sections: Mapping[str, Any]
    parents: Mapping[str, Node] = field(repr=False)

    @property
    def is_latency(self) -> bool:
        """Return whether the node times every subject beside the others."""
        return self.item.get("kind") == "latency"

    @property
    def is_table(self) -> bool:
        """Return whether the node times layers over their widths."""
        return self.item.get("kind") == "table"

    @property
    def is_timed(self) -> bool:
        """Return whether the node times networks, which nothing else may disturb.

        A latency does, a table of them, the choice of widths by measurement, and a finder with a budget of
        latency.
        """
        return (
            self.is_latency or self.is_table or (self.stage in ("find", "shrink") and "runtime" in self.item)
        )

    @property
    def wave(self) -> int:
        """Return how many timed nodes lie one behind another before this one."""
        return max((parent.wave + parent.is_timed for parent in self.parents.values()), default=0)

    def __str__(self) -> str:
        replicate = "" if self.replicate is None else f", replicate {self.replicate}"
        return f"{self.stage} {self.subject}{replicate}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputHashes:
    """The contents of the files a recipe reads, which stand in keys for their paths; None = no file."""

    data: str | None
    weights: str | None
    builder: str | None


def hash_inputs(recipe: Recipe) -> InputHashes:
    """Return the hashes of the recipe's input files.

    Raises:
        DataError: the images are missing.
        RecipeError: the weights, the builder's file or the bundle are missing.
    """
    return InputHashes(
        data=data_hash(recipe.data),
        weights=_file_hash("model.weights", recipe.model.weights),
        builder=_builder_hash(recipe.model.builder),
    )


def _file_hash(place: str, path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return sha256_of_file(Path(path))
    except OSError as error:
        raise RecipeError(f"{place}: {path} cannot be read: {error.strerror}") from error


def _builder_hash(builder: str) -> str | None:
    if builder.startswith(BUNDLE_PREFIX):
        return _bundle_hash(Path(builder.removeprefix(BUNDLE_PREFIX)))
    file = builder.rpartition(":")[0]
    return _file_hash("model.builder", file if file.endswith(".py") else None)


def _bundle_hash(folder: Path) -> str:
    """Return what a bundle's network is, wherever it lies: its files, and how its dense network is built."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [sha256_of_file(folder / name) for name in (PLAN, WEIGHTS)]
    except OSError as error:
        raise RecipeError(
            f"model.builder: {folder} is no bundle: {error.strerror}: {error.filename}",
            hint="a shrink of a run writes one: <out>/store/shrink/<key>/bundle",
        ) from error
    except ValueError as error:
        raise RecipeError(f"model.builder: {folder / MANIFEST} is no JSON: {error}") from error
    origin = manifest["origin"] if isinstance(manifest, dict) and "origin" in manifest else None
    built = [origin.get(name) for name in ("builder", "args", "input_shapes")] if origin else None
    return hashlib.sha256(canonical_json([files, built]).encode()).hexdigest()


def nodes_until(nodes: Sequence[Node], until: StageWord) -> tuple[Node, ...]:
    """Return the nodes of stage `until` and all they need, in the same order; `report` needs everything."""
    if until == "report":
        return tuple(nodes)
    wanted: set[Node] = set()
    for node in reversed(nodes):
        if node.stage == until or node in wanted:
            wanted.add(node)
            wanted.update(node.parents.values())
    return tuple(node for node in nodes if node in wanted)


def longest_chain_first(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes ordered so that what most still hangs on comes first; equal ones keep their order."""
    rest = dict.fromkeys(nodes, 0.0)
    for node in reversed(nodes):
        rest[node] += _COST[node.stage]
        for parent in node.parents.values():
            if parent in rest:
                rest[parent] = max(rest[parent], rest[node])
    return tuple(sorted(nodes, key=lambda node: -rest[node]))
