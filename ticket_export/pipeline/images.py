"""What `data` in a recipe stands for: the hash of its content, and the images. Torch is loaded on demand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ticket_export.errors import DataError
from ticket_export.recipe.data_section import DataSection
from ticket_export.store.key import key_from_content, sha256_of_file, sha256_of_tree

if TYPE_CHECKING:
    from ticket_export.data.reading import Reading
    from ticket_export.data.sources import Images


def data_hash(data: DataSection) -> str | None:
    """Return what changes when the images or labels do, or None for those inside a package.

    That is the content of a file, the names and sizes of class folders, and for a set on the hub its commit.

    Raises:
        DataError: the images are missing, or out of reach.
        MissingDependency: a set on the hub is asked for and datasets is not installed.
    """
    if data.is_on_hub:
        from ticket_export.data.hub import hub_revision

        return hub_revision(data.source, _reading(data).table)
    if data.path is None:
        return None
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist", hint="set it with --set data.path=...")
    try:
        if path.is_file():
            return sha256_of_file(path)
        return _tables_hash(path) if data.source == "hub" else sha256_of_tree(path)
    except OSError as error:
        raise DataError(f"data.path: {path} cannot be read: {error.strerror}") from error


def _tables_hash(folder: Path) -> str:
    """Return a hash over a folder in which other labels need not change the size of a file."""
    from ticket_export.data.files import is_image_file

    content = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        if is_image_file(path.name)
        else sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return key_from_content(content)


def check_images(data: DataSection) -> tuple[int, int, int] | None:
    """Return channels, height and width after what can be checked without a download was, or None if unknown.

    Raises:
        DataError: as `load_images`.
        MissingDependency: as `load_images`.
    """
    from ticket_export.data.hub import check_hub
    from ticket_export.data.reading import shape_from_source

    if data.is_on_hub:
        check_hub(data.source, (data.train_split, data.test_split), _reading(data).table)
    elif data.path is not None:
        return shape_from_source(data.source, Path(data.path), _reading(data), streamed=data.streamed)
    return None


def images_of(data: DataSection, *, seed: int, num_workers: int) -> Images:
    """Return the images a recipe names, split by its root seed.

    Args:
        data: the recipe's section.
        seed: the recipe's root seed.
        num_workers: processes that decode streamed images, unless the section says how many.

    Raises:
        DataError: they are missing, damaged, mixed in size or mislabelled.
        MissingDependency: Pillow or datasets is needed and not installed.
    """
    from ticket_export.data.sources import load_images, stream_images

    if not data.streamed:
        return load_images(
            data.source,
            data.path,
            holdout_fraction=data.holdout_fraction,
            seed=seed,
            train_limit=data.train_limit,
            reading=_reading(data),
        )
    return stream_images(
        data.source,
        data.path,
        holdout_fraction=data.holdout_fraction,
        seed=seed,
        train_limit=data.train_limit,
        reading=_reading(data),
        num_workers=num_workers if data.workers is None else data.workers,
    )


def _reading(data: DataSection) -> Reading:
    from ticket_export.data.hub import Table
    from ticket_export.data.reading import Reading
    from ticket_export.data.rows import View

    return Reading(
        splits=(data.train_split, data.test_split),
        view=View(resize=data.resize, crop=data.crop),
        table=Table(
            config=data.config,
            revision=data.revision,
            image_column=data.image_column,
            label_column=data.label_column,
        ),
    )
