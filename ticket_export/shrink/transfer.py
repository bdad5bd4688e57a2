"""Builders of every kind, the network of a bundle among them: a found feature extractor under a new head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ticket_export.errors import RecipeError
from ticket_export.models.facts import BUNDLE_PREFIX, BUNDLE_WEIGHTS
from ticket_export.models.load import build, num_classes_from
from ticket_export.models.weights import weights_from_file
from ticket_export.shrink.bundle import bundle_manifest, load_bundle, network_of_plan
from ticket_export.shrink.bundle_files import WEIGHTS
from ticket_export.shrink.equivalence import FORWARD_ERRORS, evaluating

Shape = tuple[int, int, int]  # channels, height, width


def network_from_builder(
    builder: str,
    args: Mapping[str, object] | None = None,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    image_shape: Shape = (3, 32, 32),
    seed: int = 0,
) -> nn.Module:
    """Return the network that `builder` names: all that `build` knows, and `bundle:FOLDER`.

    A bundle's network is the small one that was saved in FOLDER. Its `args` are `num_classes`: a new linear
    layer of so many classes takes the place of the last one; and `weights`: `bundle` for the saved ones,
    `fresh` for new ones in the same widths. The other arguments are those of `build`.

    Raises:
        RecipeError: the builder or its arguments are wrong, FOLDER holds no bundle that says how its network
            is built, or the network does not fit the images.
        ShrinkError: the bundle is damaged.
        TrainError, MissingDependency: what `build` raises.
    """
    if not builder.startswith(BUNDLE_PREFIX):
        return build(builder, args, weights, num_classes=num_classes, image_shape=image_shape, seed=seed)
    folder, own = Path(builder.removeprefix(BUNDLE_PREFIX)), dict(args or {})
    if weights is not None:
        raise RecipeError(f"model.weights is {weights}, but {builder} brings its own", hint="leave it out")
    asked, kind = own.pop("num_classes", None), own.pop("weights", BUNDLE_WEIGHTS[0])
    if own:
        raise RecipeError(
            f"{builder} takes no argument {next(iter(own))!r}", hint="its arguments: num_classes, weights"
        )
    if kind not in BUNDLE_WEIGHTS:
        raise RecipeError(f"{builder}: weights is {kind!r}", hint=f"it may be {' or '.join(BUNDLE_WEIGHTS)}")
    dense = dense_of_bundle(folder, num_channels=image_shape[0], seed=seed)
    network = load_bundle(folder, dense) if kind == "bundle" else network_of_plan(folder, dense)
    if asked is not None:
        _give_head(network, asked, builder, seed)
    _require_fit(network, builder, num_classes, image_shape)
    return network.train()


def dense_of_bundle(folder: Path, *, num_channels: int, seed: int = 0) -> nn.Module:
    """Return the dense network that a bundle was cut from, with fresh weights.

    Args:
        folder: the bundle.
        num_channels: of the images that the network is to read.
        seed: of the fresh weights.

    Raises:
        RecipeError: there is no such folder, its manifest does not say how the network is built, or the
            network reads images of other channels.
        ShrinkError: the bundle is damaged.
        TrainError, MissingDependency: what `build` raises.
    """
    if not folder.is_dir():
        raise RecipeError(
            f"model.builder: the bundle {folder} does not exist", hint="paths start at the current folder"
        )
    origin = bundle_manifest(folder)["origin"]
    assert isinstance(origin, dict)
    if not {"builder", "args"} <= origin.keys():
        raise RecipeError(
            f"model.builder: the manifest of {folder} does not say how the dense network is built",
            hint="te.save_bundle(..., origin={'builder': ..., 'args': ..., 'input_shapes': ...}) writes it",
        )
    builder = str(origin["builder"])
    shape = _image_shape(origin)
    if shape[0] != num_channels:
        raise RecipeError(
            f"model.builder: the network of {folder} reads {shape[0]} channels, "
            f"the images have {num_channels}"
        )
    classes = None
    if builder.startswith("zoo:"):
        classes = num_classes_from(builder.removeprefix("zoo:"), weights_from_file(folder / WEIGHTS))
    return network_from_builder(builder, origin["args"], num_classes=classes, image_shape=shape, seed=seed)


def _image_shape(origin: Mapping[str, object]) -> Shape:
    shapes = origin.get("input_shapes", [])
    assert isinstance(shapes, list)
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise RecipeError(
            f"model.builder: the bundle's network reads inputs of shapes {shapes}, no images of one shape"
        )
    channels, height, width = shapes[0]
    return channels, height, width


def _give_head(network: nn.Module, num_classes: object, builder: str, seed: int) -> None:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise RecipeError(f"{builder}: num_classes is {num_classes!r}", hint="it counts classes, from 1")
    path, old = _last_linear(network, builder)
    owner, _, name = path.rpartition(".")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(old.weight.shape[1], num_classes, bias=old.bias is not None).to(old.weight)
    setattr(network.get_submodule(owner), name, head)


def _last_linear(network: nn.Module, builder: str) -> tuple[str, nn.Linear]:
    layers = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise RecipeError(
            f"{builder}: no linear layer is left whose place a new head could take",
            hint="leave num_classes out, or use a bundle in module form",
        )
    return layers[-1]


def _require_fit(network: nn.Module, builder: str, num_classes: int | None, image_shape: Shape) -> None:
    size = "x".join(map(str, image_shape))
    try:
        with evaluating(network), torch.no_grad():
            logits_NK = network(torch.zeros(2, *image_shape))
    except FORWARD_ERRORS as error:
        raise RecipeError(
            f"{builder} does not run on images of {size}: {error}",
            hint="use images of the size that it was found on, or a network that takes any",
        ) from error
    if num_classes is not None and logits_NK.shape[-1] != num_classes:
        raise RecipeError(
            f"{builder} tells {logits_NK.shape[-1]} classes apart, the images show {num_classes}",
            hint=f"--set model.args.num_classes={num_classes} gives it a new head",
        )
