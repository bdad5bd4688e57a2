"""A dumped recipe loads as the same recipe, whatever its texts look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from ticket_export.recipe.dump import yaml_from_recipe
from ticket_export.recipe.load import load_recipe, recipe_from_yaml

SMOKE = Path(__file__).parents[1] / "smoke.yaml"


@pytest.mark.parametrize("name", ["1e3", "08", "12", "1.5", "true", "null", "no", "plain", "2026-11-20"])
def test_a_name_that_looks_like_something_else_stays_a_text(name: str) -> None:
    recipe = load_recipe(SMOKE, [f'name="{name}"'])
    assert recipe.name == name
    assert recipe_from_yaml(yaml_from_recipe(recipe), source="dumped") == recipe


@pytest.mark.parametrize(
    "path", ["a: b.npz", "#1.npz", " x ", "[a].npz", "ü.npz", 'say "x".npz', "a\\b", "-", "*x", "&y", "!z"]
)
def test_any_path_survives(path: str) -> None:
    recipe = load_recipe(SMOKE, ["data.source=arrays", "data.path=x"])
    odd = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": path})})
    assert recipe_from_yaml(yaml_from_recipe(odd), source="dumped") == odd


def test_defaults_are_written_out() -> None:
    text = yaml_from_recipe(load_recipe(SMOKE, ["shrink.tolerance=2e-7"]))
    assert "tolerance: 2.0e-07" in text
    assert "magnitude_scope: global" in text
