"""Recipes: every problem at once, with place, value and suggestion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ticket_export.errors import RecipeError
from ticket_export.recipe.load import load_recipe, recipe_from_yaml
from ticket_export.recipe.schema import Recipe

GOOD = """
name: tiny
seed: 0
data: {source: digits, holdout_fraction: 0.1}
model: {builder: zoo:resnet20, args: {shortcut: pad}}
train: {epochs: 4, batch: 128, lr: 1e-1}
find: {method: refill, scope: coupled, levels: 2, drop_fraction: 0.3, rewind_epoch: 1}
export: {targets: [onnx], precisions: [fp32]}
measure: {runtimes: [ort-cpu], batches: [1, 64], scope: compute, samples: 5}
"""


def problems_of(*overrides: str, text: str = GOOD) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_from_yaml(text, source="tiny.yaml", overrides=overrides)
    first, *rest = str(caught.value).splitlines()
    assert first == f"tiny.yaml: {len(rest)} problem{'s' if len(rest) > 1 else ''}"
    return [line.removeprefix("  ") for line in rest]


def recipe_of(*overrides: str) -> Recipe:
    return recipe_from_yaml(GOOD, source="tiny.yaml", overrides=overrides)


def test_a_recipe_holds_its_values_and_the_defaults() -> None:
    recipe = recipe_of()
    assert recipe.train.lr == 0.1
    assert recipe.measure.batches == (1, 64)
    assert recipe.replicates == 1
    assert recipe.find.round_to == 1
    assert recipe.shrink.tolerance == 1e-5
    assert recipe.measure.rounds == 10


def test_a_recipe_survives_the_way_through_json() -> None:
    recipe = recipe_of("data.mean=[0.3]", "data.std=[0.4]", "find.controls=[random, reinit]")
    assert Recipe.model_validate_json(json.dumps(recipe.model_dump(mode="json")), strict=True) == recipe


def test_all_problems_are_told_at_once() -> None:
    text = GOOD.replace("epochs: 4", "epcohs: 4").replace("lr: 1e-1", 'lr: "1"').replace("refill", "refil")
    assert problems_of(text=text) == [
        "train.epochs: is required",
        "train.lr: should be a number, got the text '1'",
        "train.epcohs: unknown key (did you mean epochs?)",
        "find.method: 'refil' is not one of imp, refill, refill_plus, regroup, channel_imp, early_bird, rst, "
        "supernet (did you mean refill?)",
    ]


def test_a_repeated_key_and_a_wrong_value_are_told_together() -> None:
    text = GOOD.replace("seed: 0", "seed: -1\nseed: 2")
    assert problems_of(text=text) == [
        "seed: is given twice, in lines 3 and 4",
        "seed: should be at least 0, got -1",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("find.levels=0", "find.levels: should be at least 1, got 0"),
        ("find.levels=2.0", "find.levels: should be a whole number, got 2.0"),
        ("find.levels=true", "find.levels: should be a whole number, got true"),
        ("find.levels=no", "find.levels: should be a whole number, got the text 'no'"),
        ("find.drop_fraction=1", "find.drop_fraction: should be below 1, got 1"),
        ("find.drop_fraction=0", "find.drop_fraction: should be above 0, got 0"),
        ("find.rewind_epoch=4", "find.rewind_epoch: 4 is not below train.epochs (4)"),
        ("find.rewind_epoch=-1", "find.rewind_epoch: should be at least 0, got -1"),
        ("find.controls=[random, random]", "find.controls: 'random' is given twice"),
        (
            "find.controls=[rando]",
            "find.controls[0]: 'rando' is not one of random, uniform, uniform_latency, reinit, ",
        ),
        (
            "find.controls=[depgraph]",
            "find.controls[0]: torch-pruning cannot prune zoo:resnet20 with shortcut 'pad'",
        ),
        ("find.round_to=0", "find.round_to: should be at least 1, got 0"),
        ("find.scope=group", "find.scope: 'group' is not one of layer, inner, coupled"),
        ("find.form=smal", "find.form: 'smal' is not one of small, masked (did you mean small?)"),
        ("shrink.round_to=0", "shrink.round_to: should be auto or a whole number of at least 1, got 0"),
        ("shrink.round_to=1.0", "shrink.round_to: should be auto or a whole number of at least 1, got 1"),
        ("shrink.round_to=fast", "shrink.round_to: should be auto or a whole number of at least 1, got the"),
        ("shrink.round_to=true", "shrink.round_to: should be auto or a whole number of at least 1, got true"),
        ("train.lr=0", "train.lr: should be above 0, got 0"),
        ("train.lr=.nan", "train.lr: should be a number, got the text '.nan'"),
        ("train.lr=1e999", "train.lr: should be a finite number, got inf"),
        ("train.batch=0", "train.batch: should be at least 1, got 0"),
        ("train.epochs=", "train.epochs: should be a whole number, got nothing"),
        ("train.nesterov=true", "train.nesterov: needs momentum above 0, got momentum 0.0"),
        ("train.nesterov=1", "train.nesterov: should be true or false, got 1"),
        ("train.milestones=[2]", "train.milestones: has no effect with schedule constant, got [2]"),
        ("train.gamma=0.1", "train.gamma: has no effect with schedule constant, got 0.1"),
        ("train.warmup_epochs=4", "train.warmup_epochs: 4 is not below epochs (4)"),
        ("train.label_smoothing=1", "train.label_smoothing: should be below 1, got 1"),
        ("data.path=x.npz", "data.path: the digits are embedded and read no file, got 'x.npz'"),
        ("data.source=arrays", "data.path: is required with source arrays (--set data.path=...)"),
        ("data.source=folder", "data.path: is required with source folder (--set data.path=...)"),
        ("data.mean=[0.5]", "data.std: holds 0 values, but mean holds 1"),
        ("data.holdout_fraction=0", "data.holdout_fraction: should be above 0, got 0"),
        ("data.pad_crop=-1", "data.pad_crop: should be at least 0, got -1"),
        ("model.builder=zoo:resnet21", "model.builder: 'resnet21' is not in the zoo, which holds "),
        ("model.builder=resnet20", "model.builder: 'resnet20' does not name a network"),
        ("model.args.shortcut=pod", "model.args.shortcut: 'pod' is not one of projection, pad"),
        ("model.args.depth=3", "model.args.depth: unknown argument; zoo:resnet20 knows shortcut"),
        ("model.args=[]", "model.args: should be a section, got the list []"),
        ("export.targets=[]", "export.targets: should hold at least one value, got an empty list"),
        ("export.precisions=fp32", "export.precisions: should be a list, got the text 'fp32'"),
        ("export.precisions=[fp8]", "export.precisions[0]: 'fp8' is not one of fp32, fp16, int8"),
        ("measure.batches=[1, 1]", "measure.batches: 1 is given twice"),
        ("measure.batches=[0]", "measure.batches[0]: should be at least 1, got 0"),
        ("measure.runtimes=[tensort]", "measure.runtimes[0]: 'tensort' is not one of ort-cpu, ort-cuda, "),
        ("measure.rounds=4", "measure.rounds: should be at least 5, got 4"),
        ("name=a/b", "name: 'a/b' should hold letters"),
        ("name=3", "name: should be a text, got 3"),
        (
            "colour=red",
            "colour: unknown key; a recipe knows name, seed, replicates, data, model, train, find, shrink,",
        ),
        ("export.zip=true", "export.zip: unknown key; export knows targets, precisions"),
        ("train=fast", "train: should be a section, got the text 'fast'"),
        ("train.lr.peak=1", "--set train.lr.peak: train.lr holds 0.1, not a section"),
        ("train.lr", "--set train.lr: should read KEY=VALUE"),
        ("=1", "--set =1: should read KEY=VALUE"),
        ("train..lr=1", "--set train..lr=1: should read KEY=VALUE"),
        ("find.levles=1", "find.levles: unknown key (did you mean levels?)"),
    ],
)
def test_an_impossible_value_is_told_with_its_place(override: str, told: str) -> None:
    [line] = problems_of(override)
    assert line.startswith(told)


def test_a_runtime_of_modules_needs_a_precision_that_modules_have() -> None:
    (told,) = problems_of("export.precisions=[int8]", "measure.runtimes=[ort-cpu, torch-compile]")
    assert "measure.runtimes[1]: torch-compile runs modules in fp16 or fp32, but export.precisions" in told
    assert "holds only int8" in told


def test_tensorrt_needs_activations_around_zero() -> None:
    overrides = ("export.precisions=[fp32, int8]", "measure.runtimes=[ort-cpu, tensorrt]")
    assert problems_of(*overrides) == [
        "export.int8_activations: uint8 is not what tensorrt runs (--set export.int8_activations=int8)"
    ]
    assert recipe_of(*overrides, "export.int8_activations=int8").export.int8_activations == "int8"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("train.schedule=step",), ["train.milestones: is required", "train.gamma: is required"]),
        (
            ("train.schedule=step", "train.gamma=0.1", "train.milestones=[4]"),
            ["train.milestones: 4 is not between 0 and"],
        ),
        (
            ("train.schedule=step", "train.gamma=0.1", "train.milestones=[3, 2]"),
            ["train.milestones: should rise, got [3, 2]"],
        ),
        (
            ("train.optimizer=adam", "train.momentum=0.9"),
            ["train.momentum: belongs to sgd; adam has its own, got 0.9"],
        ),
        (("data.mean=[0.5]", "data.std=[0.0]"), ["data.std: should be above 0 in every channel, got [0.0]"]),
        (
            ("model.builder=zoo:conv2", "model.args={shortcut: pad}"),
            ["model.args.shortcut: unknown argument; zoo:conv2 takes no"],
        ),
        (("train.lr=1", "train.lr=2"), ["--set train.lr: is given twice"]),
        (
            ("name=a b", "find.rewind_epoch=9"),
            ["name: 'a b'", "find.rewind_epoch: 9 is not below train.epochs (4)"],
        ),
    ],
)
def test_values_that_do_not_fit_together_are_told(overrides: tuple[str, ...], told: list[str]) -> None:
    lines = problems_of(*overrides)
    assert len(lines) == len(told)
    for line, start in zip(lines, told, strict=True):
        assert line.startswith(start)


def test_overrides_are_read_like_the_file() -> None:
    recipe = recipe_of(
        "train.lr=5e-2", "find.controls=[random]", "data.source=arrays", "data.path=/a=b/c.npz"
    )
    assert recipe.train.lr == 0.05
    assert recipe.find.controls == ("random",)
    assert recipe.data.path == "/a=b/c.npz"


def test_an_override_can_open_a_section() -> None:
    assert recipe_of("shrink.tolerance=1e-4").shrink.tolerance == 1e-4


@pytest.mark.parametrize(
    "builder", ["torchvision:resnet18", "timm:resnet18.a1_in1k", "my.nets:small", "nets/my.py:small"]
)
def test_foreign_builders_are_left_to_the_start_of_the_run(builder: str) -> None:
    assert recipe_of(f"model.builder={builder}", "model.args={width: 3}").model.builder == builder


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("model.args={depth: 3}",),
            "model.args.depth: unknown argument; a bundle knows num_classes, weights",
        ),
        (("model.args={num_classes: true}",), "model.args.num_classes: True does not count classes"),
        (("model.args={weights: old}",), "model.args.weights: 'old' is not one of bundle, fresh"),
        (("model.args={}", "model.weights=w.pt"), "model.weights: a bundle brings its own"),
    ],
)
def test_what_a_bundle_does_not_take_is_told_without_its_folder(
    overrides: tuple[str, ...], told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of("model.builder=bundle:/no/such", *overrides)
    assert told in str(caught.value)


def test_a_bundle_without_a_folder_is_told() -> None:
    with pytest.raises(RecipeError, match=r"'bundle:' names no folder \(write bundle:FOLDER\)"):
        recipe_of("model.builder='bundle:'", "model.args={}")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "got nothing"), (b"- 1\n", "got the list [1]"), (b"\xff\xfe\x00", "cannot be read as text")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"odd\.yaml") as caught:
        load_recipe(path)
    assert told in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere.yaml: there is no such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read as text"):
        load_recipe(tmp_path)
