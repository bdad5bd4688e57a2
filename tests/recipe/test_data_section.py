"""What a recipe may say about its images, and what it may not say together."""

from __future__ import annotations

import pytest

from ticket_export.errors import RecipeError
from ticket_export.recipe.data_section import DataSection
from ticket_export.recipe.load import recipe_from_yaml
from ticket_export.recipe.schema import Recipe

GOOD = """
name: tiny
seed: 0
data: {source: digits, holdout_fraction: 0.1}
model: {builder: zoo:resnet20}
train: {epochs: 4, batch: 128, lr: 1e-1}
find: {method: refill, scope: coupled, levels: 2, drop_fraction: 0.3, rewind_epoch: 1}
export: {targets: [onnx], precisions: [fp32]}
measure: {runtimes: [ort-cpu], batches: [1], scope: compute, samples: 5}
"""
FOLDER = ("data.source=folder", "data.path=set")


def recipe_of(*overrides: str) -> Recipe:
    return recipe_from_yaml(GOOD, source="tiny.yaml", overrides=overrides)


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_of(*overrides)
    return [line.removeprefix("  ") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("data.source=cifar",),
            "data.source: 'cifar' is not one of digits, arrays, folder, hub, hub:<name>",
        ),
        (("data.source=hub",), "data.path: is required with source hub (--set data.path=...)"),
        (("data.source='hub:'",), "data.source: names no set (write hub:<name>, or hub with path for files)"),
        (
            ("data.source=hub:./set",),
            "data.source: './set' is no name on the hub (write source hub and path ./set)",
        ),
        (
            ("data.source=hub:/data/set",),
            "data.source: '/data/set' is no name on the hub (write source hub and path /data/set)",
        ),
        (
            ("data.source=hub:imagefolder",),
            "data.source: 'imagefolder' is read from files (write source hub and path)",
        ),
        (
            ("data.source=hub:me/pets", "data.path=set"),
            "data.path: has no effect with a set on the hub (write source hub for files), got 'set'",
        ),
        (("data.config=plain",), "data.config: has no effect with source digits, got 'plain'"),
        ((*FOLDER, "data.label_column=y"), "data.label_column: has no effect with source folder, got 'y'"),
        ((*FOLDER, "data.image_column=x"), "data.image_column: has no effect with source folder, got 'x'"),
        (
            ("data.source=hub", "data.path=set", "data.revision=abc"),
            "data.revision: has no effect with source hub, got 'abc'",
        ),
        (
            ("data.source=arrays", "data.path=a.npz", "data.test_split=val"),
            "data.test_split: has no effect with source arrays, got 'val'",
        ),
        (("data.train_split=all",), "data.train_split: has no effect with source digits, got 'all'"),
        (
            (*FOLDER, "data.test_split=train"),
            "data.test_split: 'train' is train_split too, and the test set picks nothing",
        ),
        (("data.resize=8",), "data.resize: has no effect with source digits, got 8"),
        ((*FOLDER, "data.crop=8"), "data.crop: needs resize, got 8 with resize 0"),
        ((*FOLDER, "data.resize=6", "data.crop=8"), "data.crop: 8 is above resize (6)"),
        (("data.streamed=true",), "data.streamed: has no effect with source digits, got True"),
        ((*FOLDER, "data.workers=2"), "data.workers: has no effect unless streamed is true, got 2"),
        ((*FOLDER, "data.streamed=true", "data.workers=-1"), "data.workers: should be at least 0, got -1"),
        (
            (*FOLDER, "data.random_resized_crop=0.08"),
            "data.random_resized_crop: needs streamed true: images in memory are of one size already",
        ),
        (
            (*FOLDER, "data.streamed=true", "data.random_resized_crop=0.08"),
            "data.random_resized_crop: needs resize: the size of the images that come out",
        ),
        (
            ("data.random_resized_crop=2",),
            "data.random_resized_crop: should be at most 1, got 2",
        ),
        (("data.rotation=-1",), "data.rotation: should be at least 0, got -1"),
        (("data.rotation=181",), "data.rotation: should be at most 180, got 181"),
        (("data.train_limit=-1",), "data.train_limit: should be at least 0, got -1"),
    ],
)
def test_what_is_said_about_images_and_cannot_be_is_told(overrides: tuple[str, ...], told: str) -> None:
    assert problems_of(*overrides) == [told]


def test_what_a_set_needs_can_be_said() -> None:
    cifar100 = recipe_of("data.source=hub:uoft-cs/cifar100", "data.label_column=fine_label").data
    assert cifar100.is_on_hub
    tiny = recipe_of(*FOLDER, "data.test_split=val", "data.rotation=20", "data.flip=true").data
    assert (tiny.rotation, tiny.is_on_hub) == (20.0, False)
    imagenet = recipe_of(
        *FOLDER,
        "data.test_split=val",
        "data.streamed=true",
        "data.workers=8",
        "data.resize=256",
        "data.crop=224",
        "data.random_resized_crop=0.08",
    ).data
    assert (imagenet.resize, imagenet.crop, imagenet.workers) == (256, 224, 8)


def test_a_field_that_was_added_later_has_no_effect_by_default() -> None:
    old = {"source": "folder", "path": "set", "holdout_fraction": 0.1}
    assert DataSection(**old).model_dump(exclude_defaults=True) == old
