"""Sets that `datasets` reads: on files written here, without a connection."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import CLASSES, nchw, noise, png, sets, write_folder

from ticket_export.data.hub import Table, check_hub, hub_revision, is_hub, rows_from_hub
from ticket_export.data.reading import Reading, arrays_from_source, check_labels
from ticket_export.data.rows import View
from ticket_export.data.sources import load_images, stream_images
from ticket_export.errors import DataError, MissingDependency

SPLITS = ("train", "test")
COMMIT = "c0ffee" + "0" * 34
FEATURES = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of `datasets`, which is this test's own; nothing is looked up anywhere else."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return cache


def cells(split: str) -> list[dict[str, bytes | None]]:
    return [{"bytes": png(image), "path": None} for image in sets()[split][0]]


def parquet(root: Path, columns: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Write a parquet file for each split: images as structs and whole numbers, or the given columns."""
    root.mkdir()
    for split in SPLITS:
        held = {"img": cells(split), "label": sets()[split][1]} if columns is None else columns[split]
        pq.write_table(pa.table(held), root / f"{split}-00000-of-00001.parquet")
    return root


def bare_parquet(root: Path) -> Path:
    columns = {
        split: {"picture": [png(image) for image in images], "y": labels}
        for split, (images, labels) in sets().items()
    }
    return parquet(root, columns)


def as_dict() -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"img": cells(split), "label": sets()[split][1]}, features=FEATURES
            )
            for split in SPLITS
        }
    )


def saved(root: Path) -> Path:
    as_dict().save_to_disk(root)
    return root


def typed_parquet(root: Path) -> Path:
    root.mkdir()
    for split, table in as_dict().items():
        table.to_parquet(root / f"{split}.parquet")
    return root


def in_cache(cache: Path, tmp_path: Path) -> str:
    """Leave a set in the cache as a download of `hub:me/pets` would, and return its source."""
    datasets.load_dataset(str(typed_parquet(tmp_path / "pets")))
    (made,) = (path for path in (cache / "pets" / "default" / "0.0.0").iterdir() if path.is_dir())
    place = cache / "me___pets" / "default" / "0.0.0" / COMMIT
    place.parent.mkdir(parents=True)
    shutil.move(made, place)
    return "hub:me/pets"


@pytest.mark.parametrize("write", [write_folder, parquet, bare_parquet, typed_parquet, saved])
def test_files_of_every_kind_give_the_images_and_labels_that_were_written(tmp_path: Path, write: Any) -> None:
    arrays = arrays_from_source("hub", write(tmp_path / "set"), Reading())
    for split, (images, labels) in sets().items():
        assert np.array_equal(arrays[f"{split}_x"], nchw(images))
        assert arrays[f"{split}_y"].tolist() == labels


def test_a_set_in_the_cache_is_read_by_its_name_without_a_connection(offline: Path, tmp_path: Path) -> None:
    source = in_cache(offline, tmp_path)
    shutil.rmtree(tmp_path / "pets")
    assert hub_revision(source, Table()) == COMMIT
    train, test = rows_from_hub(source, None, SPLITS, Table(revision="c0ffee"))
    assert train.labels.tolist() == sets()["train"][1]
    assert test.where(3) == "in row 3 of split test of hub:me/pets"
    check_hub(source, SPLITS, Table())


def test_another_revision_than_the_one_in_the_cache_is_never_taken_for_it(
    offline: Path, tmp_path: Path
) -> None:
    source = in_cache(offline, tmp_path)
    with pytest.raises(DataError, match=f"the cache holds revision {COMMIT}, not beef") as told:
        rows_from_hub(source, None, SPLITS, Table(revision="beef"))
    assert "set data.revision to the commit in the cache" in str(told.value)


def test_what_the_description_of_a_set_lacks_is_told_before_images_are_fetched(
    offline: Path, tmp_path: Path
) -> None:
    source = in_cache(offline, tmp_path)
    with pytest.raises(DataError, match="hub:me/pets has no split 'validation'; it has train, test") as told:
        check_hub(source, ("train", "validation"), Table())
    assert "hint: set data.test_split" in str(told.value)
    with pytest.raises(DataError, match=r"no column 'breed'; it has img \(Image\), label \(ClassLabel\)"):
        check_hub(source, SPLITS, Table(label_column="breed"))


def test_a_name_out_of_reach_is_one_error_with_the_next_step() -> None:
    with pytest.raises(DataError, match="hub:me/nothing cannot be loaded: Couldn't reach") as told:
        hub_revision("hub:me/nothing", Table())
    assert "check name, data.config, data.revision and the connection" in str(told.value)


def test_a_folder_of_the_same_name_is_not_read_in_place_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_folder(tmp_path / "here").parent)
    with pytest.raises(DataError, match=r"hub:here: the folder .*here has the same name"):
        hub_revision("hub:here", Table())


def test_without_the_package_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'ticket-export\[hub\]'"):
        hub_revision("hub:me/pets", Table())


def columns(**held: Any) -> dict[str, dict[str, Any]]:
    return {split: {"img": cells(split), **held} for split in SPLITS}


LABELS = sets()["train"][1]


def test_of_two_columns_of_a_kind_the_recipe_chooses(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set", columns(fine=LABELS, coarse=LABELS[::-1]))
    with pytest.raises(DataError, match="has 2 label columns: fine, coarse") as told:
        rows_from_hub("hub", root, SPLITS, Table())
    assert "choose one with data.label_column" in str(told.value)
    train, _ = rows_from_hub("hub", root, SPLITS, Table(label_column="coarse"))
    assert train.labels.tolist() == LABELS[::-1]


@pytest.mark.parametrize(
    ("held", "table", "told"),
    [
        ({"label": ["a"] * 8}, Table(), r"no label column; it has img \(dict\), label \(string\)"),
        ({"label": ["a"] * 8}, Table(label_column="label"), "'label' holds string, not classes or whole"),
        ({"label": [0.5] * 8}, Table(label_column="label"), "'label' holds .*, not classes or whole numbers"),
        ({"label": LABELS}, Table(image_column="label"), "'label' holds int64, not images"),
        ({"label": LABELS}, Table(image_column="image"), r"no column 'image'; it has img \(dict\)"),
        ({"label": [None, *LABELS[1:]]}, Table(), "'label' has rows without a label"),
        ({"label": LABELS, "thumb": cells("train")}, Table(), "2 image columns: img, thumb"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, held: Any, table: Table, told: str) -> None:
    root = parquet(tmp_path / "set", columns(**held))
    with pytest.raises(DataError, match=told):
        rows_from_hub("hub", root, SPLITS, table)


def test_a_damaged_image_is_named_by_its_row(tmp_path: Path) -> None:
    held = columns(label=LABELS)
    held["test"]["img"] = [*cells("test")[:5], {"bytes": b"no image", "path": None}, *cells("test")[6:]]
    root = parquet(tmp_path / "set", held)
    with pytest.raises(DataError, match=f"image in row 5 of split test of {root} cannot be read"):
        arrays_from_source("hub", root, Reading())
    held["test"]["img"][5] = {"bytes": None, "path": None}
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"image in row 5 of split test of .* is missing"):
        arrays_from_source("hub", parquet(tmp_path / "set", held), Reading())


def test_images_of_mixed_size_need_resize(tmp_path: Path) -> None:
    held = columns(label=LABELS)
    held["train"]["img"][2] = {"bytes": png(noise(1, 12, 9)), "path": None}
    root = parquet(tmp_path / "set", held)
    with pytest.raises(DataError, match=r"row 0 of split train .* is 6x5, .*row 2 of .* is 9x12") as told:
        arrays_from_source("hub", root, Reading())
    assert "set data.resize" in str(told.value)
    arrays = arrays_from_source("hub", root, Reading(view=View(resize=4)))
    assert arrays["train_x"].shape == (8, 3, 4, 4)


def test_places_that_hold_no_set_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        rows_from_hub("hub", tmp_path / "no", SPLITS, Table())
    file = parquet(tmp_path / "set") / "train-00000-of-00001.parquet"
    with pytest.raises(DataError, match="is a file, not a folder"):
        rows_from_hub("hub", file, SPLITS, Table())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty cannot be read by datasets: .*any data file"):
        rows_from_hub("hub", tmp_path / "empty", SPLITS, Table())
    as_dict()["train"].save_to_disk(tmp_path / "alone")
    with pytest.raises(DataError, match="holds one split without a name"):
        rows_from_hub("hub", tmp_path / "alone", SPLITS, Table())


def test_a_split_that_is_missing_is_named(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set")
    with pytest.raises(DataError, match="set has no split 'train2'; it has train, test") as told:
        rows_from_hub("hub", root, ("train2", "test"), Table())
    assert "hint: set data.train_split" in str(told.value)


def test_a_damaged_file_of_rows_is_told_with_its_cause(tmp_path: Path) -> None:
    root = parquet(tmp_path / "set")
    file = root / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-4] + b"gone")
    with pytest.raises(DataError, match=r"cannot be read by datasets: .*Parquet magic bytes not found"):
        rows_from_hub("hub", root, SPLITS, Table())


def test_a_set_without_images_in_a_split_is_refused() -> None:
    some, none = np.array([0, 1]), np.zeros(0, int)
    with pytest.raises(DataError, match="me/pets: the images to test on are none"):
        check_labels(some, none, "me/pets")
    with pytest.raises(DataError, match="me/pets: the images to train on are none"):
        check_labels(none, some, "me/pets")


def test_a_split_with_secret_labels_cannot_test(tmp_path: Path) -> None:
    held = {"train": columns(label=LABELS)["train"], "test": columns(label=[-1] * 8)["test"]}
    with pytest.raises(DataError, match=r"label -1 is negative\n.*choose data.test_split"):
        arrays_from_source("hub", parquet(tmp_path / "set", held), Reading())


@pytest.mark.parametrize("write", [write_folder, parquet, saved])
def test_rows_are_streamed_by_workers_as_they_are_held_in_memory(tmp_path: Path, write: Any) -> None:
    root = write(tmp_path / "set")
    in_memory = load_images("hub", root, holdout_fraction=0.25, seed=0)
    streamed = stream_images("hub", root, holdout_fraction=0.25, seed=0, num_workers=2)
    for part in ("train", "val", "test"):
        x_NCHW, y_N = getattr(in_memory, f"{part}_x"), getattr(in_memory, f"{part}_y")
        assert torch.equal(getattr(streamed, f"{part}_y"), y_N)
        places = torch.arange(len(y_N)).split(2)
        assert torch.equal(torch.cat(list(getattr(streamed, f"{part}_x").batches(places))), x_NCHW)


def test_a_source_is_of_the_hub_by_its_first_word() -> None:
    assert [is_hub(source) for source in ("hub", "hub:mnist", "hub:", "hubs", "folder")] == [True, True] + [
        False
    ] * 3
