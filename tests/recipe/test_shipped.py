"""Every shipped recipe loads, says how it is run and what to expect, and so do the variants of its header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from ticket_export.recipe.dump import yaml_from_recipe
from ticket_export.recipe.load import load_recipe, recipe_from_yaml
from ticket_export.recipe.schema import Recipe

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
NEEDS_A_GPU = ("imagenet_resnet50", "tiny_imagenet_resnet50")


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#") for line in comments)


def entries(path: Path) -> Mapping[str, str]:
    """Return label -> text of a header's entries, which may go on over indented lines."""
    found = re.findall(r"^ ([A-Z][\w .-]{2,9}):  +(.*(?:\n {6,}.*)*)", header(path), re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


def overrides_in(text: str) -> list[str]:
    return re.findall(r"--set (\S+)", text)


def variants() -> list[tuple[Path, str]]:
    return [(path, label) for path in RECIPES for label, text in entries(path).items() if overrides_in(text)]


def by_name(name: str, *overrides: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml", overrides)


def test_these_recipes_are_shipped() -> None:
    assert [path.stem for path in RECIPES] == [
        "cifar100_resnet18",
        "cifar100_vgg16",
        "cifar10_conv6",
        "cifar10_mobilenet_v1",
        "cifar10_resnet18",
        "cifar10_resnet20",
        "cifar10_supernet",
        "cifar10_vgg16",
        "cifar10_wrn_32_2",
        "digits_channel_imp",
        "digits_early_bird",
        "digits_resnet20",
        "digits_supernet",
        "fashion_mnist_resnet20",
        "imagenet_resnet50",
        "mnist_lenet",
        "tiny_imagenet_resnet50",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_like_its_file_and_tells_its_command_cost_and_source(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    told = entries(path)
    assert told["Run"].startswith(f"ticket-export run recipes/{path.name}")
    assert "Cost" in told
    assert ("Source" in told) == (path.stem != "digits_resnet20")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_survives_being_written_out_with_its_defaults(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe_from_yaml(yaml_from_recipe(recipe), source="dumped") == recipe


@pytest.mark.parametrize(
    ("path", "label"),
    variants(),
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else value.stem,
)
def test_every_variant_of_a_header_loads_and_changes_something(path: Path, label: str) -> None:
    overrides = overrides_in(entries(path)[label])
    recipe = load_recipe(path, overrides)
    assert (recipe == load_recipe(path)) == (label == "Run")


@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if not path.stem.startswith(("digits", *NEEDS_A_GPU))],
    ids=lambda path: path.stem,
)
def test_the_variant_for_a_cpu_is_small_and_has_a_name_of_its_own(path: Path) -> None:
    whole, small = load_recipe(path), load_recipe(path, overrides_in(entries(path)["On a CPU"]))
    assert small.name.endswith("_cpu")
    assert small.train.epochs <= 10
    assert small.find.levels <= 7
    assert small.train.precision == "fp32"  # bf16 is refused by CPUs that would emulate it
    assert small.data == whole.data.model_copy(update={"train_limit": small.data.train_limit})


def test_the_variant_off_the_width_grid_loads() -> None:
    path = FOLDER / "digits_resnet20.yaml"
    assert load_recipe(path, overrides_in(entries(path)["Off grid"])).find.round_to == 1


def test_the_main_job_is_what_the_readme_promises() -> None:
    recipe = by_name("digits_resnet20")
    assert recipe.replicates == 3
    assert recipe.find.method == "refill"
    assert (recipe.find.levels, recipe.find.scope, recipe.find.round_to) == (2, "coupled", 8)
    assert recipe.find.controls == ("random", "uniform", "reinit", "unstructured", "depgraph")
    assert recipe.measure.threads == 1


@pytest.mark.parametrize("name", ["channel_imp", "early_bird"])
def test_the_cheap_finders_are_trained_and_measured_as_the_main_job(name: str) -> None:
    cheap, main = by_name(f"digits_{name}"), by_name("digits_resnet20")
    assert cheap.find.method == name
    for section in ("data", "model", "train", "export", "measure", "replicates"):
        assert getattr(cheap, section) == getattr(main, section)


def test_the_section_for_regroup_in_the_header_of_vgg16_takes_the_place_of_the_recipes_own() -> None:
    path = FOLDER / "cifar10_vgg16.yaml"
    offered = re.search(r"^(#   find:\n(?:#     .*\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert offered is not None
    section = re.sub(r"^#   ", "", offered[1], flags=re.MULTILINE)
    own = re.compile(r"^find:\n(?:  .*\n)+", re.MULTILINE)
    text, count = own.subn(section, path.read_text(encoding="utf-8"))
    assert count == 1
    regroup, refill = recipe_from_yaml(text, source="regroup"), load_recipe(path)
    assert regroup.find.method == "regroup"
    assert (regroup.find.num_groups, regroup.find.min_rows) == (8, 16)
    assert regroup.find.levels == refill.find.levels
    assert regroup.model_copy(update={"find": refill.find}) == refill


@pytest.mark.parametrize(
    ("name", "network", "batch", "weight_decay"),
    [
        ("cifar10_resnet18", "resnet18", 128, 1e-4),
        ("cifar10_mobilenet_v1", "mobilenet_v1", 128, 1e-4),
        ("cifar10_vgg16", "vgg16", 128, 2e-4),
        ("cifar10_wrn_32_2", "wrn_32_2", 128, 1e-4),
        ("cifar100_resnet18", "resnet18", 128, 2e-4),
        ("cifar100_vgg16", "vgg16", 128, 5e-4),
        ("tiny_imagenet_resnet50", "resnet50", 32, 5e-4),
        ("imagenet_resnet50", "resnet50", 256, 1e-4),
    ],
)
def test_refill_is_trained_as_table_1_of_its_paper_says(
    name: str, network: str, batch: int, weight_decay: float
) -> None:
    recipe = by_name(name)
    epochs, milestones = (160, (80, 120)) if name.startswith("cifar") else (95, (30, 60))
    train = recipe.train
    assert recipe.model.builder == f"zoo:{network}"
    assert (train.epochs, train.milestones, train.gamma, train.lr) == (epochs, milestones, 0.1, 0.1)
    assert (train.optimizer, train.momentum, train.schedule) == ("sgd", 0.9, "step")
    assert (train.batch, train.weight_decay) == (batch, weight_decay)
    assert recipe.find.method == "refill"
    assert (recipe.find.drop_fraction, recipe.find.rewind_epoch, recipe.find.rewind) == (0.2, 8, "weights")


@pytest.mark.parametrize(
    ("name", "lr", "num_train", "steps", "conv_drop_fraction"),
    [("mnist_lenet", 1.2e-3, 55_000, 50_000, None), ("cifar10_conv6", 3e-4, 45_000, 30_000, 0.15)],
)
def test_the_first_tickets_are_trained_as_figure_2_of_their_paper_says(
    name: str, lr: float, num_train: int, steps: int, conv_drop_fraction: float | None
) -> None:
    recipe = by_name(name)
    train, find = recipe.train, recipe.find
    assert (train.optimizer, train.lr, train.batch, train.weight_decay) == ("adam", lr, 60, 0.0)
    per_epoch = num_train // train.batch
    assert steps <= train.epochs * per_epoch < steps + per_epoch
    num_images = {"mnist_lenet": 60_000, "cifar10_conv6": 50_000}[name]
    assert num_images - round(num_images * recipe.data.holdout_fraction) == num_train
    assert (recipe.data.flip, recipe.data.pad_crop) == (False, 0)
    assert find.method == "imp"
    assert (find.drop_fraction, find.classifier_drop_fraction) == (0.2, 0.1)
    assert find.conv_drop_fraction == conv_drop_fraction
    assert (find.magnitude_scope, find.rewind_epoch, train.validate_steps) == ("layer", 0, 100)
    assert (recipe.replicates, find.controls) == (5, ("random", "reinit", "random_reinit"))
