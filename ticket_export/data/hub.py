"""Image sets that the package `datasets` reads: from the Hugging Face hub, or files of its kinds. No torch.

Nothing that a set brings is ever run: the package reads data files alone since its version 4.
"""

# N images
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ticket_export.data.rows import Labels, TableRows
from ticket_export.errors import DataError, MissingDependency


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What is read of a set; every default means the only one there is.

    Attributes:
        config: which of several variants.
        revision: commit on the hub; None = the newest.
        image_column: holds the images.
        label_column: holds the classes.
    """

    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None


_LOCAL, _PREFIX = "hub", "hub:"
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves


def is_hub(source: str) -> bool:
    """Return whether `datasets` reads the source: `hub` (files at a path) or `hub:<name>`."""
    return source == _LOCAL or (source.startswith(_PREFIX) and source != _PREFIX)


def hub_name(source: str) -> str | None:
    """Return the name on the hub, or None where the source reads files of this machine."""
    return source.removeprefix(_PREFIX) if source.startswith(_PREFIX) else None


def hub_revision(source: str, table: Table) -> str:
    """Return the commit of a set on the hub, which tells its content; no images are fetched.

    Without a connection it is the commit that lies in the cache.

    Raises:
        DataError: the set is unknown, out of reach and not in the cache, or there in another revision.
        MissingDependency: datasets is not installed.
    """
    return str(_builder(source, table).hash)


def check_hub(source: str, splits: tuple[str, str], table: Table) -> None:
    """Raise what `rows_from_hub` would, as far as the set's description tells; no images are fetched."""
    info = _builder(source, table).info
    if info.splits:
        _require_splits(list(info.splits), splits, source)
    if info.features:
        _columns(info.features, table, source)


def rows_from_hub(
    source: str, path: Path | None, splits: tuple[str, str], table: Table
) -> tuple[TableRows, TableRows]:
    """Return the training and the test split; what is not in the cache of `datasets` yet is fetched.

    Args:
        source: `hub:<name>`, or `hub` for files of this machine.
        path: a folder of images (SPLIT/CLASS/*), of parquet files or of a set saved with `save_to_disk`;
            None for a name.
        splits: names of both.
        table: what is read of the set.

    Raises:
        DataError: the set is unknown or out of reach; a split or a column is missing or of another kind.
        MissingDependency: datasets is not installed.
    """
    origin = source if path is None else str(path)
    found = _fetched(source, table) if path is None else _local(path, table)
    _require_splits(list(found), splits, origin)
    train, test = (_rows(found[split], table, f"split {split} of {origin}") for split in splits)
    return train, test


def _datasets(origin: str) -> Any:  # Any: datasets carries no types, also below
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            f"data.source {origin} needs the package datasets", hint="pip install 'ticket-export[hub]'"
        ) from error
    return datasets


def _builder(source: str, table: Table) -> Any:
    datasets, name = _datasets(source), hub_name(source)
    assert name is not None  # files of this machine have no commit
    if Path(name).is_dir():  # datasets would read it in place of the set on the hub, and no key would tell
        raise DataError(
            f"data.source {source}: the folder {Path(name).absolute()} has the same name",
            hint=f"to read it write source hub and path {name}; else run in another folder",
        )
    try:
        builder = datasets.load_dataset_builder(name, table.config, revision=table.revision)
    except Exception as error:  # datasets, its transport and its readers raise dozens of kinds
        raise DataError(
            f"data.source {source} cannot be loaded: {_first_line(error)}",
            hint="check name, data.config, data.revision and the connection; a set fetched once needs none, "
            "and a downloaded folder is read with source hub and data.path",
        ) from error
    # Out of reach, datasets takes what lies in the cache, whichever revision was asked for
    is_cached = type(builder).__module__.endswith(".cache")
    if is_cached and not str(builder.hash).startswith(table.revision or ""):
        raise DataError(
            f"data.source {source}: the hub is out of reach, and the cache holds revision {builder.hash}, "
            f"not {table.revision}",
            hint="go online once, or set data.revision to the commit in the cache",
        )
    return builder


def _fetched(source: str, table: Table) -> Mapping[str, Any]:
    builder = _builder(source, table)
    try:
        builder.download_and_prepare()
        tables: Mapping[str, Any] = builder.as_dataset()
    except Exception as error:  # as above
        raise DataError(
            f"data.source {source} cannot be fetched: {_first_line(error)}",
            hint="run the same command again; what has arrived is kept",
        ) from error
    return tables


def _local(path: Path, table: Table) -> Mapping[str, Any]:
    datasets = _datasets("hub")
    if not path.is_dir():
        state = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"data folder {path} {state}", hint="check data.path")
    is_saved = any((path / name).is_file() for name in _SAVED)
    try:
        if is_saved:
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path.absolute()), table.config)
    except Exception as error:  # as above
        raise DataError(
            f"data folder {path} cannot be read by datasets: {_first_line(error)}",
            hint="it may hold SPLIT/CLASS/ image files, parquet files named after their split, "
            "or what save_to_disk wrote",
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        raise DataError(
            f"data folder {path} holds one split without a name",
            hint="save both: DatasetDict({'train': ..., 'test': ...}).save_to_disk(path)",
        )
    tables: Mapping[str, Any] = found
    return tables


def _require_splits(found: Sequence[str], wanted: tuple[str, str], origin: str) -> None:
    for field, split in zip(("train_split", "test_split"), wanted, strict=True):
        if split not in found:
            raise DataError(
                f"{origin} has no split {split!r}; it has {', '.join(map(str, found))}",
                hint=f"set data.{field}",
            )


def _rows(split: Any, table: Table, origin: str) -> TableRows:
    import datasets

    image, label = _columns(split.features, table, origin)
    labels = _labels(split, label, origin)
    split = split.select_columns([image])
    if isinstance(split.features[image], datasets.Image):
        split = split.cast_column(image, datasets.Image(decode=False))
    return TableRows(table=split, column=image, labels=labels, origin=origin)


def _labels(split: Any, column: str, origin: str) -> Labels:
    y_N = np.asarray(split.select_columns([column]).with_format("numpy")[:][column])
    if not np.issubdtype(y_N.dtype, np.integer):  # integers with gaps come out as floating numbers
        raise DataError(
            f"{origin}: column {column!r} has rows without a label",
            hint="every row needs a whole number from 0",
        )
    return y_N.astype(np.int64)


def _columns(features: Any, table: Table, origin: str) -> tuple[str, str]:
    image = _column("image", features, table.image_column, (_is_image, _is_encoded), origin)
    return image, _column("label", features, table.label_column, (_is_class, _is_integer), origin)


def _column(
    role: str, features: Any, named: str | None, kinds: Sequence[Callable[[Any], bool]], origin: str
) -> str:
    """Return the named column, or the only one of the first kind that there is any of."""
    columns = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
    if named is not None:
        if named not in features:
            raise DataError(
                f"{origin} has no column {named!r}; it has {columns}", hint=f"set data.{role}_column"
            )
        if not any(is_kind(features[named]) for is_kind in kinds):
            wanted = "images" if role == "image" else "classes or whole numbers"
            raise DataError(
                f"{origin}: column {named!r} holds {_kind(features[named])}, not {wanted}",
                hint=f"set data.{role}_column to one of {columns}",
            )
        return named
    for is_kind in kinds:
        found = [str(name) for name, feature in features.items() if is_kind(feature)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{origin} has {len(found)} {role} columns: {', '.join(found)}",
                hint=f"choose one with data.{role}_column",
            )
    raise DataError(f"{origin} has no {role} column; it has {columns}", hint=f"set data.{role}_column")


def _kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    return str(dtype) if type(feature).__name__ == "Value" else type(feature).__name__


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_encoded(feature: Any) -> bool:
    """Return whether a column holds image files as bytes, written without the package's own kind."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_class(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _is_integer(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and "int" in str(feature.dtype)


def _first_line(error: BaseException) -> str:
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        return _first_line(error.__cause__)  # its own text only says that there was an error
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
