"""A network from its BUILDER string: the zoo, torchvision, timm, or the user's own function."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from ticket_export.errors import MissingDependency, RecipeError
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.weights import load_weights, weights_from_file, without_prefixes
from ticket_export.models.zoo import zoo_network

_FORMS = "zoo:NAME, torchvision:NAME, timm:NAME, package.module:function or file.py:function"


def build(
    builder: str,
    args: Mapping[str, object] | None = None,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    seed: int = 0,
) -> nn.Module:
    """Return the network that `builder` names, in training mode, on the CPU.

    The same seed gives the same weights. The global random state is the same before and after.

    Args:
        builder: `zoo:`, `torchvision:` or `timm:` and a name; or `package.module:function`,
            `file.py:function`.
        args: keyword arguments of the builder. `num_classes` is filled in for the zoo, torchvision and
            timm (and `in_chans` for timm) where they do not hold it; a user's own function gets `args` alone.
        weights: a `.safetensors`, `.pt` or `.npz` file to load, or None for fresh weights. A prefix `module.`
            or `_orig_mod.` of all its names is left off, which is logged.
        num_classes: width of the output; None leaves it to the builder, or to the weights for a network of
            the zoo.
        image_shape: channels, height, width of one image.
        seed: of the fresh weights.

    Raises:
        RecipeError: the builder, its name or its arguments are wrong.
        TrainError: the weights cannot be read or do not fit.
        MissingDependency: the package the builder needs is not installed.
    """
    kind, _, name = builder.rpartition(":")
    if not kind or not name:
        raise RecipeError(f"model.builder is {builder!r}", hint=f"write {_FORMS}")
    held = None if weights is None else weights_from_file(Path(weights))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _fresh(builder, kind, name, dict(args or {}), held, num_classes, image_shape)
    if held is not None:
        load_weights(model, held, source=f"weights file {weights}")
    return model


def _fresh(
    builder: str,
    kind: str,
    name: str,
    args: dict[str, object],
    held: Mapping[str, Tensor] | None,
    num_classes: int | None,
    image_shape: tuple[int, int, int],
) -> nn.Module:
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if kind == "zoo":
        if num_classes is None:
            num_classes = num_classes_from(name, held)
        return zoo_network(name, args, num_classes=num_classes, image_shape=image_shape)
    if kind == "torchvision":
        function = _function(_vision_package("torchvision.models"), name, builder)
        return _call(builder, function, classes | args)
    if kind == "timm":
        function = _function(_vision_package("timm"), "create_model", builder)
        return _call(builder, function, classes | {"model_name": name, "in_chans": image_shape[0]} | args)
    module = _module_from_file(Path(kind)) if kind.endswith(".py") else _module_from_name(kind, builder)
    return _call(builder, _function(module, name, builder), args)


def num_classes_from(name: str, held: Mapping[str, Tensor] | None) -> int:
    """Return how many classes the weights of a network of the zoo tell apart, which no removal changes.

    Raises:
        RecipeError: the name is unknown, or no weights are given, or they hold no classifier.
    """
    if name not in ZOO_FACTS:
        raise RecipeError(f"the zoo holds no network {name!r}", hint=f"it holds {', '.join(ZOO_FACTS)}")
    if held is not None:
        classifier = without_prefixes(held)[0].get(f"{ZOO_FACTS[name].classifier}.weight")
        if classifier is not None and classifier.ndim == 2:
            return classifier.shape[0]
    raise RecipeError(
        f"zoo:{name} needs the number of classes",
        hint="give num_classes, or weights that hold the classifier",
    )


def _vision_package(name: str) -> ModuleType:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"the builder {package}: needs the package {package} ({error})",
            hint="pip install 'ticket-export[vision]'",
        ) from error
    except RuntimeError as error:  # built for another torch: "operator torchvision::nms does not exist"
        raise MissingDependency(
            f"the installed {package} does not fit torch {torch.__version__}: {error}",
            hint=f"pip install --force-reinstall {package} from the same index as torch",
        ) from error


def _module_from_name(name: str, builder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(f"model.builder {builder!r}: {error}", hint=f"write {_FORMS}") from error


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"model.builder: {path} does not exist", hint="paths start at the current folder")
    name = f"ticket_export_builder_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"a .py file always has a spec: {path}"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        raise RecipeError(
            f"model.builder: {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module


def _function(module: ModuleType, name: str, builder: str) -> Callable[..., object]:
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(
            f"model.builder {builder!r}: there is no function {name!r} in it", hint=f"write {_FORMS}"
        )
    return cast(Callable[..., object], function)


def _call(builder: str, function: Callable[..., object], args: Mapping[str, object]) -> nn.Module:
    try:
        model = function(**args)
    except (Exception, SystemExit) as error:  # a foreign function may raise anything
        raise RecipeError(
            f"model.builder {builder!r} failed on {dict(args)}: {type(error).__name__}: {error}",
            hint="check model.args",
        ) from error
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"model.builder {builder!r} returned a {type(model).__name__}, not a torch.nn.Module"
        )
    return model
