"""The network of a bundle as a builder: its features go over, its head is new, or all of it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ticket_export.errors import RecipeError, ShrinkError
from ticket_export.models.load import build
from ticket_export.shrink.bundle import save_bundle
from ticket_export.shrink.exact import shrink
from ticket_export.shrink.transfer import network_from_builder

# N images, K classes

TWO_BLOCKS = """
from torch import nn
from ticket_export.models.supernet import SuperNet
def make(num_classes):
    model = SuperNet(plan="resnet20", expansion=1, num_classes=num_classes, in_channels=3)
    model.blocks, model.linear = nn.Sequential(*model.blocks[:2]), nn.Linear(16, num_classes)
    return model
"""
ARGS = {"num_classes": 10}


def found(builder: str) -> nn.Module:
    """A trained supernet of which one branch and one block are dead."""
    model = build(builder, ARGS, seed=0).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.bias.data.fill_(0.2)
    for branch in ("blocks.0.branches.k5", *(f"blocks.1.branches.k{k}" for k in (3, 5, 7))):
        nn.init.zeros_(model.get_parameter(f"{branch}.bn2.weight"))
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("found")
    (folder / "nets.py").write_text(TWO_BLOCKS, encoding="utf-8")
    builder = f"{folder / 'nets.py'}:make"
    origin = {"builder": builder, "args": ARGS, "input_shapes": [[3, 8, 8]]}
    save_bundle(shrink(found(builder), images()), folder / "bundle", origin=origin)
    return folder / "bundle"


def images(size: int = 8) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def built(folder: Path, num_classes: int | None = None, seed: int = 0, **args: object) -> nn.Module:
    return network_from_builder(
        f"bundle:{folder}", args, num_classes=num_classes, image_shape=(3, 8, 8), seed=seed
    )


def with_head(folder: Path, classes: int, seed: int = 0, **args: object) -> nn.Module:
    return network_from_builder(
        f"bundle:{folder}",
        {"num_classes": classes, **args},
        num_classes=classes,
        image_shape=(3, 8, 8),
        seed=seed,
    )


def test_a_bundles_network_is_the_small_one_with_its_own_weights(bundle: Path) -> None:
    network = built(bundle, num_classes=10)
    assert network.training
    wanted_NK = found(f"{bundle.parent / 'nets.py'}:make")(images())
    assert torch.allclose(
        network.eval()(images()), wanted_NK, atol=1e-5 * float(wanted_NK.detach().abs().max())
    )
    assert network.get_submodule("blocks.1.branches")._modules == {}


def test_a_new_head_of_other_classes_takes_the_place_of_the_last_layer_alone(bundle: Path) -> None:
    network = with_head(bundle, 7).eval()
    old, new = built(bundle).state_dict(), network.state_dict()
    assert network(images()).shape == (3, 7)
    assert new.keys() == old.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"linear.weight", "linear.bias"}
    assert new["linear.weight"].shape == (7, 16)


def test_the_head_follows_from_the_seed_and_the_global_state_stays(bundle: Path) -> None:
    before = torch.random.get_rng_state()
    a, b, c = (with_head(bundle, 10, seed).get_parameter("linear.weight") for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_fresh_weights_keep_the_widths_and_nothing_else(bundle: Path) -> None:
    fresh, kept = built(bundle, weights="fresh", seed=4), built(bundle)
    own, old = fresh.state_dict(), kept.state_dict()
    assert {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in old.items()}
    dense = build(f"{bundle.parent / 'nets.py'}:make", ARGS, seed=4).state_dict()
    assert torch.equal(own["blocks.0.branches.k3.expand.weight"], dense["blocks.0.branches.k3.expand.weight"])
    assert not own["blocks.1.bn.bias"].any()
    assert old["blocks.1.bn.bias"].any()
    assert not torch.equal(own["conv1.weight"], old["conv1.weight"])


def test_a_network_found_from_a_bundle_is_found_again(bundle: Path, tmp_path: Path) -> None:
    args = {"num_classes": 5}
    second = with_head(bundle, 5).eval()
    nn.init.zeros_(second.get_parameter("blocks.0.branches.k7.bn2.weight"))
    origin = {"builder": f"bundle:{bundle}", "args": args, "input_shapes": [[3, 8, 8]]}
    save_bundle(shrink(second, images()), tmp_path / "second", origin=origin)
    again = built(tmp_path / "second", num_classes=5).eval()
    assert list(again.get_submodule("blocks.0.branches")._modules) == ["k3"]
    assert torch.allclose(again(images()), second(images()), atol=1e-5)


@pytest.mark.parametrize(
    ("args", "num_classes", "text"),
    [
        ({}, 7, "tells 10 classes apart, the images show 7\nhint: --set model.args.num_classes=7"),
        ({"num_classes": 9}, 7, "tells 9 classes apart, the images show 7"),
        ({"num_classes": 0}, None, "num_classes is 0"),
        ({"num_classes": "7"}, None, "num_classes is '7'"),
        ({"weights": "old"}, None, "weights is 'old'"),
        ({"head": 1}, None, "takes no argument 'head'"),
    ],
)
def test_what_does_not_fit_is_told(
    bundle: Path, args: dict[str, object], num_classes: int | None, text: str
) -> None:
    with pytest.raises(RecipeError, match=text):
        network_from_builder(f"bundle:{bundle}", args, num_classes=num_classes, image_shape=(3, 8, 8))


def test_a_missing_folder_other_channels_and_weights_of_a_file_are_told(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"the bundle {tmp_path / 'none'} does not exist"):
        built(tmp_path / "none")
    with pytest.raises(RecipeError, match="reads 3 channels, the images have 1"):
        network_from_builder(f"bundle:{bundle}", image_shape=(1, 8, 8))
    with pytest.raises(RecipeError, match=r"model.weights is w\.pt, but bundle:.* brings its own"):
        network_from_builder(f"bundle:{bundle}", weights="w.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShrinkError, match=r"manifest\.json does not exist"):
        built(tmp_path / "empty")


def test_a_bundle_that_does_not_say_where_it_came_from_is_told(tmp_path: Path) -> None:
    save_bundle(shrink(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), images()), tmp_path / "b")
    with pytest.raises(RecipeError, match="does not say how the dense network is built"):
        built(tmp_path / "b")


def test_a_network_of_one_image_size_says_so(tmp_path: Path) -> None:
    model = build("zoo:conv2", num_classes=3, image_shape=(3, 8, 8))
    origin = {"builder": "zoo:conv2", "args": {}, "input_shapes": [[3, 8, 8]]}
    save_bundle(shrink(model, images()), tmp_path / "b", origin=origin)
    with pytest.raises(RecipeError, match="does not run on images of 3x12x12"):
        network_from_builder(f"bundle:{tmp_path / 'b'}", image_shape=(3, 12, 12))
