"""Every shipped recipe is planned whole and run for a few steps, on images of its size written here."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ticket_export.pipeline import coordinate, plan, run
from ticket_export.pipeline.images import images_of
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.store.store import Store

FOLDER = Path(__file__).parents[2] / "recipes"
NUM_CLASSES = 4  # the least that tells a wrong output width; the sets' own numbers would need more images
TRAIN, TEST = 6 * NUM_CLASSES, 2 * NUM_CLASSES

QUICK = (
    *("digits_resnet20", "digits_channel_imp", "digits_early_bird", "mnist_lenet", "fashion_mnist_resnet20"),
    *("cifar10_conv6", "cifar10_resnet20"),
)
SLOW = (
    *("cifar10_mobilenet_v1", "cifar10_resnet18", "cifar10_vgg16", "cifar10_wrn_32_2"),
    *("cifar10_supernet", "digits_supernet"),
    *("cifar100_resnet18", "cifar100_vgg16", "imagenet_resnet50", "tiny_imagenet_resnet50"),
)
# channels, height and width of an image as networks take it, by how the recipe's name begins
SHAPES = {
    "mnist": (1, 28, 28),
    "fashion": (1, 28, 28),
    "digits": (1, 8, 8),
    "cifar": (3, 32, 32),
    "tiny": (3, 64, 64),
    "imagenet": (3, 224, 224),
}
# height and width of the stored images, where they are brought to another size
STORED = {"imagenet_resnet50": (280, 300)}


@pytest.fixture(autouse=True)
def _one_core_and_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinate, "num_usable_cores", lambda: 1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def pixels(label: int, index: int, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    generator = np.random.default_rng((label, index))
    return (generator.integers(0, 128, size) + 30 * label).astype(np.uint8)


def shape_of(name: str) -> tuple[int, int, int]:
    return next(shape for start, shape in SHAPES.items() if name.startswith(start))


def arrays_file(path: Path, shape: tuple[int, int, int]) -> Path:
    held = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        y_N = np.arange(count) % NUM_CLASSES
        held[f"{part}_x"] = np.stack([pixels(int(label), index, shape) for index, label in enumerate(y_N)])
        held[f"{part}_y"] = y_N
    np.savez(path, **held)
    return path


def table_files(root: Path, recipe: Recipe) -> Path:
    """Write parquet files named, and with the columns, as the set on the hub has them."""
    height, width = STORED.get(recipe.name, shape_of(recipe.name)[1:])
    image, *labels = ("img", "fine_label", "coarse_label") if recipe.data.label_column else ("image", "label")
    (root / "data").mkdir(parents=True)
    for split, count in ((recipe.data.train_split, TRAIN), (recipe.data.test_split, TEST)):
        y = [index % NUM_CLASSES for index in range(count)]
        cells = [jpeg(pixels(label, index, (height, width, 3))) for index, label in enumerate(y)]
        held = {image: [{"bytes": cell, "path": None} for cell in cells]}
        held |= {name: y if name == labels[0] else [0] * count for name in labels}
        pq.write_table(pa.table(held), root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def jpeg(pixels_HWC: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "jpeg")
    return file.getvalue()


def on_written_images(name: str, folder: Path) -> list[str]:
    """Return the overrides that put images written here in the place of the recipe's own."""
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    if recipe.data.source == "digits":
        return []
    if recipe.data.source == "arrays":
        return [f"data.path={arrays_file(folder / 'images.npz', shape_of(name))}"]
    assert recipe.data.is_on_hub
    return ["data.source=hub", f"data.path={table_files(folder / 'set', recipe)}"]


def in_a_few_steps(name: str) -> list[str]:
    """Return the overrides that leave two short epochs and one level of a recipe."""
    recipe = load_recipe(FOLDER / f"{name}.yaml")
    values = {
        "replicates": "1",
        "train.epochs": "2",
        "train.batch": "8",
        "train.lr": "1e-3",
        "train.warmup_epochs": "0",
        "train.precision": "fp32",  # what every CPU can do
        "find.rewind_epoch": "0",
        "find.controls": "[]",
        "find.control_levels": "last",
    }
    if recipe.data.source == "digits":
        values["data.train_limit"] = "32"
    if recipe.data.streamed:
        values["data.workers"] = "0"
    if recipe.train.schedule == "step":
        values |= {"train.schedule": "constant", "train.milestones": "[]", "train.gamma": ""}
    if recipe.find.method == "early_bird":
        values |= {"train.epochs": "3", "find.window": "2", "find.max_distance": "0.99"}
    elif recipe.find.method == "supernet":
        values |= {"find.event_epochs": "1", "find.drop_step": "0.3", "find.retrain_epochs": "1"}
    else:
        values["find.levels"] = "1"
    return [f"{key}={value}" for key, value in values.items()]


def facts_of(recipe: Recipe, out: Path) -> Callable[[str, str], dict[str, Any]]:
    store = Store(out)
    planned = {(node.stage, node.subject): node.key for node in plan(recipe, out)}

    def facts(stage: str, subject: str) -> dict[str, Any]:
        path = store.path(stage, planned[stage, subject]) / "manifest.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))["facts"])

    return facts


def test_each_shipped_recipe_is_among_those_that_run_here() -> None:
    assert sorted(QUICK + SLOW) == sorted(path.stem for path in FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("name", QUICK + SLOW)
def test_a_recipe_is_planned_with_all_its_subjects_and_replicates(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(FOLDER / f"{name}.yaml", on_written_images(name, tmp_path))
    planned = plan(recipe, tmp_path / "out")
    find = recipe.find
    levels = range(1, find.levels + 1)
    controlled = levels if find.control_levels == "every" else levels[-1:]
    compared = {
        "dense",
        *(f"ticket@{level}" for level in levels),
        *(f"{control}@{level}" for control in find.controls for level in controlled),
    }
    exported = {(node.subject, node.replicate) for node in planned if node.stage == "export"}
    assert exported == {(subject, r) for subject in compared for r in range(recipe.replicates)}
    timed = [node for node in planned if node.stage == "measure" and node.replicate is None]
    num_tables = getattr(find, "needs_table", False)
    assert len(timed) == len(recipe.measure.batches) + num_tables
    assert not any(node.done for node in planned)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_recipe_trains_finds_and_trains_its_ticket(name: str, tmp_path: Path) -> None:
    path, out = FOLDER / f"{name}.yaml", tmp_path / "out"
    recipe = load_recipe(path, [*on_written_images(name, tmp_path), *in_a_few_steps(name)])
    assert run(recipe, out, until="train") is None
    assert images_of(recipe.data, seed=0, num_workers=0).image_shape == shape_of(name)
    facts = facts_of(recipe, out)
    is_imp = recipe.find.method == "imp"
    subject = "unstructured@1" if is_imp else "ticket@1"  # the tickets of imp are those of the element mask
    dense, ticket, found = facts("train", "dense"), facts("train", subject), facts("find", subject)
    assert dense["num_epochs"] == recipe.train.epochs
    assert all(math.isfinite(record["train_loss"]) for record in dense["history"] + ticket["history"])
    assert found["param_density"] < 0.95
    assert (ticket["macs"] < dense["macs"]) != is_imp
