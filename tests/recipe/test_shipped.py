"""Every shipped recipe loads, says how it is run, and its CPU-sized variant loads too."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from ticket_export.recipe.load import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    comments = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#") for line in comments)


def overrides_after(label: str, text: str) -> list[str]:
    """The `--set` values of a header's entry, which may go on over indented lines."""
    match = re.search(rf"^ {label}:(.*(?:\n {{6,}}.*)*)", text, re.MULTILINE)
    assert match is not None
    words = shlex.split(match[1])
    return [after for before, after in pairwise(words) if before == "--set"]


def test_these_recipes_are_shipped() -> None:
    assert [path.name for path in RECIPES] == [
        "cifar10_resnet18.yaml",
        "cifar10_resnet20.yaml",
        "digits_resnet20.yaml",
        "fashion_mnist_resnet20.yaml",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_like_its_file_and_tells_its_command_and_cost(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    assert f"ticket-export run recipes/{path.name}" in header(path)
    assert re.search(r"^ Cost: ", header(path), re.MULTILINE)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if "digits" not in path.name], ids=lambda path: path.stem
)
def test_the_variant_for_a_cpu_loads_under_a_name_of_its_own(path: Path) -> None:
    small = load_recipe(path, overrides_after("On a CPU", header(path)))
    assert small.name == f"{path.stem}_cpu"
    assert small.train.epochs <= 10
    assert small.data.path is not None


def test_the_variant_off_the_width_grid_loads() -> None:
    path = FOLDER / "digits_resnet20.yaml"
    assert load_recipe(path, overrides_after("Off grid", header(path))).find.round_to == 1


def test_the_main_job_is_what_the_readme_promises() -> None:
    recipe = load_recipe(FOLDER / "digits_resnet20.yaml")
    assert recipe.replicates == 3
    assert (recipe.find.levels, recipe.find.scope, recipe.find.round_to) == (2, "coupled", 8)
    assert recipe.find.controls == ("random", "uniform", "reinit", "unstructured", "depgraph")
    assert recipe.measure.threads == 1
