"""What a run was made from, remembered in its folder: files by their hashes, results by their revisions.

Keys keep results apart, the name of a run does not. A run that would make everything again because a file or
the package has changed, and not its recipe, is refused: nobody asked for that, and nothing would say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ticket_export.errors import DataError, RecipeError, RevisionError, StoreError
from ticket_export.models.facts import BUNDLE_PREFIX
from ticket_export.pipeline.nodes import InputHashes, Node
from ticket_export.recipe.schema import Recipe
from ticket_export.store.key import KEY_DIGITS, canonical_json
from ticket_export.store.store import Store, disk_errors_told

ORIGINS_FILE = "inputs.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """A file that a run read, or a folder of files.

    Attributes:
        place: in the recipe.
        asked: what the recipe says of it, JSON text: with other words it may be another file.
        name: its path, or where it comes from.
        digest: of its content.
        since: when a run of this name read it first, UTC.
    """

    place: str
    asked: str
    name: str
    digest: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedResult:
    """A result that a run made or found; `item` is JSON text."""

    stage: str
    item: str
    key: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """What the runs of one name were made from, the latest of each kind."""

    files: tuple[ReadFile, ...] = ()
    results: tuple[PlannedResult, ...] = ()

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return it as JSON values."""
        return {"schema": 1, **asdict(self)}


def origins_of_run(
    folder: Path, recipe: Recipe, inputs: InputHashes, nodes: Sequence[Node], store: Store
) -> Origins:
    """Return what the folder of a run is to remember, what it remembers already included.

    Args:
        folder: of the run; it need not exist.
        recipe: what is to be made.
        inputs: the hashes of its files as they are now.
        nodes: the results it asks for, parents before children.
        store: where results are.

    Raises:
        DataError: the images have changed since results of this name were made from them.
        RecipeError: the weights or the builder's file have.
        RevisionError: another revision of the package made results that this one would make again.
        StoreError: what the folder remembers cannot be read.
    """
    before = _remembered(folder / ORIGINS_FILE)
    has_results = any(_is_there(result.stage, result.key, store) for result in before.results)
    files = {(file.place, file.asked): file for file in before.files}
    for file in _files_now(recipe, inputs):
        known = files.get((file.place, file.asked), file)
        if known.digest == file.digest:
            file = known
        elif has_results:
            raise _changed(folder, known, file)
        files[file.place, file.asked] = file
    results = {(result.stage, result.item): result for result in before.results}
    _require_revisions(folder, nodes, results, store)
    for node in nodes:
        result = PlannedResult(
            stage=node.stage, item=canonical_json(node.item), key=node.key, revision=node.revision
        )
        results[result.stage, result.item] = result
    return Origins(files=tuple(files.values()), results=tuple(results.values()))


def _remembered(path: Path) -> Origins:
    with disk_errors_told(path):
        if not path.exists():
            return Origins()
        text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
        return Origins(
            files=tuple(ReadFile(**file) for file in values["files"]),
            results=tuple(PlannedResult(**result) for result in values["results"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read: {error!r}", hint="remove it; it only tells what the run was made from"
        ) from error


def _files_now(recipe: Recipe, inputs: InputHashes) -> Iterator[ReadFile]:
    """Yield the files that the recipe names, as they are now."""
    data, model = recipe.data, recipe.model
    asked = data.model_dump(mode="json", exclude_defaults=True)
    for place, words, name, digest in (
        ("data", asked, data.path or data.source, inputs.data),
        ("model.weights", model.weights, model.weights, inputs.weights),
        ("model.builder", model.builder, _file_of_builder(model.builder), inputs.builder),
    ):
        if digest is not None and name is not None:
            now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            yield ReadFile(place=place, asked=canonical_json(words), name=name, digest=digest, since=now)


def _file_of_builder(builder: str) -> str:
    is_bundle = builder.startswith(BUNDLE_PREFIX)
    return builder.removeprefix(BUNDLE_PREFIX) if is_bundle else builder.rpartition(":")[0]


def _changed(folder: Path, before: ReadFile, now: ReadFile) -> DataError | RecipeError:
    kind = DataError if before.place == "data" else RecipeError
    return kind(
        f"{before.place}: {before.name} has changed since {folder} was first run with it on {before.since}: "
        f"its hash was {before.digest[:KEY_DIGITS]}, now it is {now.digest[:KEY_DIGITS]}",
        hint=_hint(folder),
    )


def _require_revisions(
    folder: Path,
    nodes: Sequence[Node],
    results: Mapping[tuple[str, str], PlannedResult],
    store: Store,
) -> None:
    """Raise RevisionError if results that are there would be made again, by this revision of the package."""
    changed: set[Node] = set()
    told: dict[str, str] = {}
    num_again = 0
    for node in nodes:
        before = results.get((node.stage, canonical_json(node.item)))
        if before is not None and before.revision != node.revision:
            changed.add(node)
            told[node.stage] = (
                f"by {node.stage} revision {before.revision}, this package makes revision {node.revision}"
            )
        elif any(parent in changed for parent in node.parents.values()):
            changed.add(node)
        if node in changed and before is not None and _is_there(before.stage, before.key, store):
            num_again += not _is_there(node.stage, node.key, store)
    if num_again:
        results_are = "1 result" if num_again == 1 else f"{num_again} results"
        raise RevisionError(
            f"{folder} was made {'; '.join(told.values())}: {results_are} would be made again",
            hint=_hint(folder),
        )


def _is_there(stage: str, key: str, store: Store) -> bool:
    return store.path(stage, key).is_dir()  # published whole; whether its files are intact is asked later


def _hint(folder: Path) -> str:
    return (
        f"add --set name=... to keep both, or remove {folder} to start anew; "
        "the results that were made stay in the store"
    )
