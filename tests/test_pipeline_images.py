"""The images of a recipe in the chain: in keys by their content, checked by plan, streamed through a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ticket_export.errors import DataError
from ticket_export.pipeline import plan, run
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.deploy import _calibration_images
from ticket_export.pipeline.images import check_images, data_hash, images_of
from ticket_export.recipe.data_section import DataSection
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.store.store import Store

SMOKE = Path(__file__).parent / "smoke.yaml"
SMALL = (
    *("model.builder=zoo:conv2", "model.args={}", "train.epochs=1", "train.batch=8", "train.lr=0.01"),
    *("find.rewind_epoch=0", "find.controls=[]", "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.2, 0.2, 0.2]"),
)


def write_folder(root: Path, *, seed: int = 0, size: int = 16) -> Path:
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(10):
                side = size + int(rng.integers(0, 6))
                image = Image.fromarray(rng.integers(0, 256, (side, size, 3), dtype=np.uint8))
                image.save(folder / f"{index}.bmp")
    return root


def streamed(root: Path, *overrides: str) -> Recipe:
    data = (
        *("data.source=folder", f"data.path={root}", "data.streamed=true", "data.workers=1"),
        *("data.resize=10", "data.crop=8", "data.random_resized_crop=0.3", "data.flip=true"),
    )
    last = {override.partition("=")[0]: override for override in (*SMALL, *data, *overrides)}
    return load_recipe(SMOKE, [override for override in last.values() if not override.endswith("=")])


@pytest.mark.slow
def test_streamed_images_go_through_training_finding_exporting_and_accuracy(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    precisions = ("export.precisions=[fp32, int8]", "export.int8_min_agreement=0")
    report = run(streamed(root, *precisions), tmp_path / "out")
    assert report is not None
    accuracies = {(row["subject"], row["precision"]): row["accuracy"] for row in report.rows}
    assert set(accuracies) == {(s, p) for s in ("dense", "ticket@1") for p in ("fp32", "int8")}
    assert all(accuracy * 20 == round(accuracy * 20) for accuracy in accuracies.values())


def test_calibration_and_example_images_are_those_of_images_in_memory(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    seen = []
    for last in ((), ("data.random_resized_crop=0", "data.streamed=false", "data.workers=")):
        recipe = streamed(root, *last)
        with Context(recipe, Store(tmp_path / "out"), device="cpu", threads=1) as context:
            seen.append((_calibration_images(context), context.example_inputs))
    assert seen[0][0].shape == (18, 3, 8, 8)
    assert seen[0][1].shape == (4, 3, 8, 8)  # two images validate: they are repeated
    for lazy, held in zip(*seen, strict=True):
        assert torch.equal(lazy, held)


def test_the_number_of_workers_is_in_no_key_and_streaming_is(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    two, three, memory = (
        [node.key for node in plan(streamed(root, *last), tmp_path / "out")]
        for last in (
            ("data.workers=2",),
            ("data.workers=3",),
            ("data.streamed=false", "data.workers=", "data.random_resized_crop=0"),
        )
    )
    assert two == three
    assert set(two).isdisjoint(memory)


def test_the_context_gives_streamed_images_a_worker_per_core_unless_told(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    data = streamed(root).data
    assert images_of(data, seed=0, num_workers=5).train_x.num_workers == 1  # type: ignore[union-attr]
    told = data.model_copy(update={"workers": None})
    assert images_of(told, seed=0, num_workers=5).train_x.num_workers == 5  # type: ignore[union-attr]


def test_plan_looks_at_labels_columns_and_the_first_streamed_image(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    with pytest.raises(DataError, match="holds 1 value, but the images have 3 channels"):
        plan(streamed(root, "data.mean=[0.5]", "data.std=[0.5]"), tmp_path / "out")
    (root / "train" / "cat" / "0.bmp").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat.0\.bmp cannot be read"):
        plan(streamed(root), tmp_path / "out")
    (root / "train" / "cat").rename(root / "train" / "cow")
    with pytest.raises(DataError, match="class 'cat' has no folder"):
        plan(streamed(root), tmp_path / "out")


def parquet(root: Path, first_label: int) -> Path:
    root.mkdir()
    for split in ("train", "test"):
        labels = [first_label, *[index % 2 for index in range(1, 8)]]
        pq.write_table(pa.table({"image": [b"x"] * 8, "label": labels}), root / f"{split}.parquet")
    return root


def section(**values: object) -> DataSection:
    return DataSection(holdout_fraction=0.1, **values)  # type: ignore[arg-type]


def test_other_labels_are_another_hash_though_the_files_keep_their_size(tmp_path: Path) -> None:
    roots = [parquet(tmp_path / str(index), label) for index, label in enumerate((0, 0, 1))]
    sizes = [[file.stat().st_size for file in sorted(root.iterdir())] for root in roots]
    assert sizes[0] == sizes[2]
    same, again, other = (data_hash(section(source="hub", path=str(root))) for root in roots)
    assert same == again
    assert same != other


def test_a_set_on_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hub:me/pets cannot be loaded: Couldn't reach"):
        data_hash(section(source="hub:me/pets"))
    datasets.load_dataset(str(parquet(tmp_path / "pets", 0)))
    (made,) = (path for path in (tmp_path / "cache/pets/default/0.0.0").iterdir() if path.is_dir())
    place = tmp_path / "cache/me___pets/default/0.0.0" / ("c0ffee" + "0" * 34)  # as a download would leave it
    place.parent.mkdir(parents=True)
    made.rename(place)
    assert data_hash(section(source="hub:me/pets")) == place.name
    assert check_images(section(source="hub:me/pets")) is None  # its size is known when it was fetched
    with pytest.raises(DataError, match="hub:me/pets has no split 'val'"):
        check_images(section(source="hub:me/pets", test_split="val"))


def test_an_image_folder_is_hashed_alike_by_both_readers_of_it(tmp_path: Path) -> None:
    for source in ("folder", "hub"):
        first, same, grown = (write_folder(tmp_path / source / name) for name in "abc")
        (grown / "train" / "dog" / "9.bmp").unlink()
        hashes = [data_hash(section(source=source, path=str(root))) for root in (first, same, grown)]
        assert hashes[0] == hashes[1]
        assert hashes[0] != hashes[2]


def test_hashing_and_checking_images_loads_no_torch(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set")
    code = (
        "import sys\n"
        "from ticket_export.pipeline.images import check_images, data_hash\n"
        "from ticket_export.recipe.data_section import DataSection\n"
        f"data = DataSection(source='folder', path={str(root)!r}, holdout_fraction=0.1, streamed=True,"
        "                   resize=8)\n"
        "assert len(data_hash(data)) == 64\n"
        "assert check_images(data) == (3, 8, 8)\n"
        "assert 'torch' not in sys.modules\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
