"""A bundle as the dense network of another recipe: its features go over to other images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_chain import TESTS, Chain, tiny_recipe, write_images

from ticket_export.cli.networks import network_from_bundle
from ticket_export.errors import RecipeError
from ticket_export.models.load import build
from ticket_export.pipeline import plan
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.networks import network_of
from ticket_export.pipeline.nodes import hash_inputs
from ticket_export.recipe.schema import Recipe
from ticket_export.shrink.bundle import save_bundle
from ticket_export.shrink.exact import shrink
from ticket_export.stages import Subject

BUILDER = f"{TESTS / 'tiny_net.py'}:make"


def write_bundle(folder: Path, seed: int = 0) -> Path:
    """A tiny network of which half of the channels between the convolutions are dead."""
    net = build(BUILDER, {"width": 8}, seed=seed).eval()
    net.get_parameter("conv1.weight").data[::2] = 0
    net.get_parameter("norm1.bias").data.zero_()
    origin = {"builder": BUILDER, "args": {"width": 8}, "input_shapes": [[1, 8, 8]]}
    save_bundle(shrink(net, torch.zeros(2, 1, 8, 8)), folder, origin=origin)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "quarters.npz")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("found") / "bundle")


def recipe_on(folder: Path, images: Path, *overrides: str) -> Recipe:
    return tiny_recipe(
        images,
        f"model.builder=bundle:{folder}",
        "model.args={num_classes: 4}",
        "train.epochs=2",
        "find.levels=1",
        "find.controls=[]",
        *overrides,
    )


def keys(folder: Path, images: Path, *overrides: str) -> list[str]:
    recipe = recipe_on(folder, images, *overrides)
    return [node.key for node in nodes_of(recipe, hash_inputs(recipe), "here")]


def test_keys_hold_what_a_bundle_is_and_not_where_it_lies(bundle: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "moved")
    first = keys(bundle, images)
    assert keys(tmp_path / "moved", images) == first
    assert set(keys(write_bundle(tmp_path / "other", seed=1), images)).isdisjoint(first)
    assert set(keys(bundle, images, "model.args={num_classes: 4, weights: fresh}")).isdisjoint(first)


def test_a_folder_that_is_no_bundle_is_told_by_the_plan(images: Path, tmp_path: Path) -> None:
    recipe = recipe_on(tmp_path / "none", images)  # `check` reads no files
    with pytest.raises(RecipeError, match=f"model.builder: {tmp_path / 'none'} is no bundle: No such file"):
        plan(recipe, tmp_path / "out")


def test_a_head_of_the_wrong_classes_is_told_by_the_plan(bundle: Path, images: Path, tmp_path: Path) -> None:
    recipe = recipe_on(bundle, images, "model.args={num_classes: 6}")
    with pytest.raises(RecipeError, match=r"tells 6 classes apart, the images show 4\nhint: --set model"):
        plan(recipe, tmp_path / "out")


def test_a_recipe_goes_on_from_a_bundle_to_a_bundle(bundle: Path, images: Path, tmp_path: Path) -> None:
    chain = Chain(recipe_on(bundle, images), tmp_path / "out", until="shrink")
    start, fresh = (
        chain.context.fresh_network(0, subject) for subject in (Subject("dense"), Subject("reinit", 1))
    )
    given = build(BUILDER, {"width": 8}, seed=0).state_dict()
    assert torch.equal(start.get_parameter("stem.weight"), given["stem.weight"])
    assert not torch.equal(start.get_parameter("linear.weight"), given["linear.weight"])
    assert not torch.equal(fresh.get_parameter("stem.weight"), given["stem.weight"])
    for network in (start, fresh):
        assert network.get_parameter("conv1.weight").shape == (4, 8, 3, 3)
    shrunk = network_of(chain.context, chain.node("shrink", "ticket@1")).eval()
    folder = chain.file("shrink", "ticket@1", "bundle")
    again, _ = network_from_bundle(folder, builder=None, arguments={}, specs=())
    x_NCHW = chain.context.example_inputs
    assert torch.equal(again(x_NCHW), shrunk(x_NCHW))
    assert shrunk.get_parameter("conv1.weight").shape[0] < 4
